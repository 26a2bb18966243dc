# Copyright 2026 The optimum-camcut authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""`CamCutTrainer`: a `Trainer` that makes its model physically smaller on the way."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput
from transformers.utils import is_datasets_available

from .allocation import check_budget, make_plan, remaining_budget, removed_by
from .card import load_arguments, write_card
from .checkpoint import PrunedCheckpoint
from .config import CONFIG_NAME, PruningConfig
from .distillation import distillation_loss
from .files import replacing, write_errors, write_text
from .groups import WEIGHTS, PrunableGroup, find_groups
from .latency import LatencyTable, latency_table
from .masking import hold_masks, masked_weights
from .plan import PLAN_NAME, PruningPlan
from .rebuild import reconstruct
from .report import REPORT_NAME, render_report, uncut_scores
from .resume import (
    UNFINISHED,
    check_same_config,
    checkpoints,
    marked_unfinished,
    remove_old_checkpoints,
    remove_unfinished_checkpoints,
)
from .saving import MODELING_NAME
from .scoring import get_scorer
from .scoring.batches import Batch
from .scoring.loop import Scores, score_groups
from .sharding import (
    check_can_gather,
    check_fsdp,
    check_whole,
    gather,
    is_sharded,
    shard_by_block,
    whole_checkpoints,
)
from .surgery import apply_plan


logger = logging.getLogger(__name__)

# Folders in output_dir for the checkpoints of earlier phases. `Trainer.push_to_hub` leaves out what begins with "_".
DENSE, ROUND = "_dense", "_round-"
# And files there, for as long as the run lasts: the dense model that teaches, and the running sums of scoring.
TEACHER, SCORES = "_teacher.safetensors", "_scores"


class CamCutTrainer(Trainer):
    """`transformers.Trainer` with one more keyword.

    With a `pruning_config`, `train()` runs the dense epochs it asks for, scores the model, cuts it, and recovers:

    - dense epochs save their checkpoints in `output_dir/_dense`, since they no longer fit the pruned model;
    - recovery by fine-tuning is ordinary training for `num_train_epochs` (or `max_steps`): evaluation, callbacks,
      logging, `load_best_model_at_end`, gradient accumulation, mixed precision and gradient checkpointing apply;
    - `resume_from_checkpoint` goes on in the phase that the checkpoint belongs to;
    - what was cut goes wherever `report_to` says, as `pruning/...`; the time of every phase to the log, at INFO;
    - at the end, `output_dir/report.html` says what was removed and what that gives (see `write_report`).

    A trainer prunes once. After that, or after `prune()`, `train()` trains the pruned model as `Trainer` does,
    whatever `recovery` says. Without a `pruning_config` it is `Trainer`.

    Args:
        pruning_config (`PruningConfig`, *optional*): what to cut, and how.
        args, kwargs: those of `Trainer`. `optimizers` cannot be given together with `pruning_config`, because the cut
            replaces the parameters; `optimizer_cls_and_kwargs` can.

    Attributes:
        scores (`dict[str, Tensor]`): of the last call to `score`, else None.
        pruning_plan (`PruningPlan`): what was kept, once the model is cut, else None.
        dense_model (`PreTrainedModel`): a copy from before the cut, where the recovery needs it, else None.
        latency_table (`LatencyTable`): of the uncut model, measured for `budget="latency"`, else None.
    """

    def __init__(self, *args: Any, pruning_config: PruningConfig | None = None, **kwargs: Any) -> None:
        if pruning_config is not None and not isinstance(pruning_config, PruningConfig):
            raise TypeError(f"pruning_config should be a PruningConfig, got {type(pruning_config).__name__}")
        super().__init__(*args, **kwargs)
        self.pruning_config = pruning_config
        self.scores: Scores | None = None
        self.pruning_plan: PruningPlan | None = None
        self.dense_model: PreTrainedModel | None = None
        self.latency_table: LatencyTable | None = None
        self._scoring = False
        self._measured: tuple[int, dict[str, float]] = (0, {})  # the last evaluation, and the step it was at
        self._dense_metrics: dict[str, float] = {}
        self._groups_before: list[PrunableGroup] | None = None  # of the model as it was before the first cut
        self._plan_metrics: dict[str, float] | None = None  # of a cut that is yet to be logged
        self._progress_file: Path | None = None  # only inside `train`, which can be resumed
        self._scored: Scores = {}  # of the last cut, by the indices of the uncut model, for the report
        self._page: bytes | None = None  # the last report
        self._root = Path(self.args.output_dir)
        if pruning_config is None:
            return
        if self.optimizer is not None:
            raise ValueError(
                "optimizers= holds on to parameters that the cut replaces; pass optimizer_cls_and_kwargs= instead"
            )
        if self.is_deepspeed_enabled:
            raise ValueError(
                "DeepSpeed keeps parameters of its own, which a cut does not reach. Prune under DDP or FSDP2 "
                "(`accelerate launch --use_fsdp --fsdp_version 2`); or prune with recovery='none' and without "
                "DeepSpeed, and then train `load_pruned(...)` with DeepSpeed and a plain `Trainer`"
            )
        check_fsdp(self.accelerator, asked=bool(self.args.fsdp))
        if self.model_init is None:
            self._check_model()  # what cannot be pruned fails here, not after an epoch

    # ------------------------------------------------------------------------------------------------- the one call

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Dense epochs, scoring, cut and recovery in one call; see the class.

        Returns:
            `TrainOutput`: of the last phase that trained; zero steps if none did.
        """
        config = self.pruning_config
        if config is None:
            return super().train(resume_from_checkpoint, trial, *args, **kwargs)
        if trial is not None:  # every trial of a search prunes a model of its own
            self.pruning_plan = self.scores = self.dense_model = self.latency_table = self._groups_before = None
            self._dense_metrics, self._scored = {}, {}
        with self._one_model(trial):
            self._warn_of_float16()
            if self.pruning_plan is not None:
                return super().train(resume_from_checkpoint, trial, *args, **kwargs)
            if self.train_dataset is None and (config.finetunes or config.dense_epochs):
                raise ValueError("train_dataset is None: there is nothing to train on")
            self._check_model()
            self._measure_latency()
            check_budget(find_groups(self.model, config.granularity), config, self.latency_table)
            if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
                self._shard()  # only the first process has read the weights: this spreads them
            self._gather()
            initial = copy.deepcopy(self._bare_model()) if config.rewind else None
            phases = [*([DENSE] if config.dense_epochs else []), *self._round_names()]
            self._root = Path(self.args.output_dir)
            first, checkpoint = self._phase_to_resume(resume_from_checkpoint, phases)
            self.accelerator.wait_for_everyone()  # all have looked before anything goes
            if self.is_world_process_zero():
                with write_errors(self._root, "Training would have nowhere to save to: choose another output_dir."):
                    if not resume_from_checkpoint:
                        self._remove_progress()
                    for phase in phases:
                        remove_unfinished_checkpoints(self._root / phase)
                    config.save_pretrained(self._root)
            self.accelerator.wait_for_everyone()
            output = TrainOutput(0, 0.0, {})
            before = find_groups(self.model, config.granularity)
            for phase in phases[phases.index(first) :]:
                resumed, checkpoint = checkpoint, None
                with self._phase(phase):
                    if phase == DENSE:
                        output = super().train(resumed, trial, *args, **kwargs)
                        continue
                    if resumed is not None:
                        self._restore(resumed)
                    else:
                        self._progress_file = self._root / f"{SCORES}{phase}"
                        try:
                            self.score()
                        finally:
                            self._progress_file = None
                        with self._timed("planning and cutting"):
                            plan = self._plan(self._round_config(phase, before))
                            self._gather()
                            if config.distill_weight > 0:
                                self._keep_dense_model()  # before a rewind: the teacher is the trained model
                            if initial is not None:
                                rewound = copy.deepcopy(initial)
                                if self.pruning_plan is not None:
                                    apply_plan(rewound, self.model.pruning_plan)
                                self.model.load_state_dict(rewound.state_dict())
                            # A rebuild follows the dense model; a round that trains, the model that it began with.
                            keep_copy = config.finetunes and config.rebuilds
                            started_with = copy.deepcopy(self._bare_model()) if keep_copy else None
                            self._apply(plan)
                            self._plan_metrics = self._measure_plan()
                        if config.rebuilds:
                            self._reconstruct(started_with or self.dense_model)
                            started_with = None
                    if config.finetunes:
                        output = super().train(resumed, trial, *args, **kwargs)
                    self._log_plan()  # has happened if the model was trained
            self._shard()
            if self.is_world_process_zero():
                self._remove_progress()
                self._write_report(self._get_output_dir(trial=trial))
        return output

    # ------------------------------------------------------------------------------------------- the steps apart

    def score(self) -> Scores:
        """Scores every unit on `pruning_config.num_samples` examples of the training set.

        Returns:
            `dict[str, Tensor]`: group name -> `torch.Tensor` of shape `(units,)`; also kept as `self.scores`.

        Raises:
            `ValueError`: no `pruning_config`; see also `score_groups`.
        """
        config = self._require_config()
        self._shard()
        model = self._bare_model()
        needs_data = get_scorer(config.method, config.granularity).source != "weights"
        dropout = WEIGHTS in config.granularity if config.dropout is None else config.dropout
        with self._timed(f"scoring by {config.method}"):
            self.scores = score_groups(
                model,
                find_groups(model, config.granularity),
                self.get_scoring_dataloader() if needs_data else None,
                dataclasses.replace(config, dropout=dropout),
                loss_function=self._scoring_loss,
                disable_tqdm=self.args.disable_tqdm,
                progress_file=self._progress_file,
            )
        return self.scores

    def prune(self) -> PruningPlan:
        """Cuts the model by `self.scores`, which it computes first if need be. Training afterwards starts afresh.

        Returns:
            `PruningPlan`: what was kept.
        """
        config = self._require_config()
        if self.scores is None:
            self.score()
        with self._timed("planning and cutting"):
            plan = self._apply(self._plan(config))
            self._plan_metrics = self._measure_plan()
        self._log_plan()
        self._shard()
        return plan

    def get_scoring_dataloader(self) -> DataLoader:
        """The examples to score on: those that `DataFrame.sample(num_samples, random_state=seed)` of pandas draws from
        the training set, longest first.

        Every process gets all batches and `score_groups` shares them out, so the batches do not depend on how many
        processes there are.
        """
        config, dataset, collator = self._require_config(), self.train_dataset, self.data_collator
        if dataset is None:
            raise ValueError(f"train_dataset is None: {config.method!r} scores the model on training examples")
        if is_datasets_available():
            import datasets

            if isinstance(dataset, datasets.Dataset):
                dataset = self._remove_unused_columns(dataset, description="scoring")
            else:
                collator = self._get_collator_with_removed_columns(collator, description="scoring")
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            examples = [example for _, example in zip(range(config.num_samples), dataset)]
        else:
            chosen = np.random.RandomState(config.seed).permutation(len(dataset))[: config.num_samples]
            examples = [dataset[index] for index in chosen.tolist()]
        if examples and isinstance(examples[0], dict) and "input_ids" in examples[0]:
            examples.sort(key=lambda example: len(example["input_ids"]), reverse=True)  # little padding
        # A generator of its own: reading must not move the random state that training goes on from.
        return DataLoader(
            examples,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=collator,
            generator=torch.Generator().manual_seed(config.seed),
        )

    # ------------------------------------------------------------------------------------------------- Trainer hooks

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of `Trainer`; while a pruned model trains, mixed with `distillation_loss`, which tells how far its
        predictions and hidden states are from the dense model's."""
        weight = self.pruning_config.distill_weight if self.pruning_config is not None else 0.0
        if weight == 0.0 or self.pruning_plan is None or self._scoring or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, **_accepted(self.dense_model, output_hidden_states=True, return_dict=True)}
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        with torch.no_grad():
            teacher = self.dense_model(**inputs)
        distilled = distillation_loss(
            outputs, teacher, self.pruning_config.distill_temperature, inputs.get("attention_mask")
        )
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            distilled = distilled / self.current_gradient_accumulation_steps  # Trainer does not divide such losses
        loss = (1 - weight) * loss + weight * distilled
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """That of `Trainer`; the model card tells what it gives for the trainer's own `eval_dataset`."""
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if eval_dataset is None or eval_dataset is self.eval_dataset:
            self._measured = (self.state.global_step, dict(metrics))
        return metrics

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = [entry for entry in self.state.log_history if entry.get("step") == self.state.best_global_step]
        metrics = {name: value for entry in best for name, value in entry.items() if name.startswith("eval_")}
        self._measured = (self.state.global_step, metrics)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """That of `Trainer`; under FSDP, the whole model whatever `state_dict_type` says."""
        whole = self.pruning_config is not None and self.is_fsdp_enabled
        advice = "Make room or choose another folder, and save again."
        with (
            write_errors(output_dir or self.args.output_dir, advice),
            whole_checkpoints(self.accelerator) if whole else nullcontext(),
        ):
            super().save_model(output_dir, _internal_call)
            self._write_card(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """That of `Trainer`, but one that is killed on the way leaves no checkpoint to resume from, and older ones go
        only when the new one is whole."""
        folder = Path(self._get_output_dir(trial=trial))
        limit, main = self.args.save_total_limit, self.is_world_process_zero()
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.args.save_total_limit = None
        advice = "Make room, and go on from the one before with resume_from_checkpoint=True."
        try:
            with (
                write_errors(f"the checkpoint {checkpoint}", advice),
                marked_unfinished(checkpoint, main, self.accelerator.wait_for_everyone),
            ):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if main:
            remove_old_checkpoints(folder, limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """That of `Trainer`, which copies what it pushes from the checkpoint to `output_dir`, with the files of a
        pruned model. It waits until the checkpoint is whole."""
        checkpoint = Path(checkpoint_folder)
        if not self.is_world_process_zero() or (checkpoint / UNFINISHED).exists():
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if self.args.hub_strategy != HubStrategy.END and (self.args.hub_always_push or not busy):
            for name in (PLAN_NAME, CONFIG_NAME, MODELING_NAME):
                if (checkpoint / name).exists():
                    shutil.copy(checkpoint / name, self.args.output_dir)
            self._write_card(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of `Trainer`, with a part on what was pruned."""
        super().create_model_card(*args, **kwargs)
        self._write_card(self.args.output_dir)

    # ------------------------------------------------------------------------------------------------------ details

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """The loop of `Trainer`, with masked weights held at zero. Here the model is the one that trains, also if
        `Trainer.train` has just made it by `model_init`."""
        if self.pruning_config is not None:
            # accelerate tells the optimizer's parameters by their addresses, and all empty shards are at 0.
            self._gather()
        self._measured = (0, {})
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if masked_weights(model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "the masked weights of this model cannot be held at zero under FSDP or DeepSpeed, which train other "
                "parameters than its own; train it under DDP"
            )
        kind = "" if self.pruning_config is None else "dense " if self.pruning_plan is None else "recovery "
        log_plan = _AtEpochBegin(self._log_plan)
        self.add_callback(log_plan)
        try:
            with hold_masks(model) if masked_weights(model) else nullcontext(), self._timed(f"{kind}training"):
                return super()._inner_training_loop(*args, **kwargs)
        finally:
            self.remove_callback(log_plan)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Says, on the main process, how long a phase took."""
        start = time.perf_counter()
        yield
        if self.is_world_process_zero():
            logger.info("%s took %.2f s", phase, time.perf_counter() - start)

    def _measure_plan(self) -> dict[str, float]:
        """What the cut has come to, as numbers to log."""
        before, now = self._groups_before, find_groups(self._bare_model(), self.pruning_config.granularity)
        figures = {
            "parameters_before": before[0].model_parameters,
            "parameters": now[0].model_parameters,
            "sparsity": 1 - remaining_budget(before, now, self.pruning_config, self.latency_table),
            **self.pruning_plan.counts(),
            **{f"dense_{name}": value for name, value in self._dense_metrics.items()},
        }
        return {f"pruning/{name}": value for name, value in figures.items()}

    def _log_plan(self) -> None:
        """Logs a cut that is not logged yet, as `Trainer` logs its losses; TensorBoard shows the plan's table, too."""
        metrics, self._plan_metrics = self._plan_metrics, None
        if metrics is None:
            return
        self._place_tensorboard()
        self.log(metrics)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                text = {"pruning/plan": f"```\n{self.pruning_plan}\n```"}
                callback.on_log(self.args, self.state, self.control, logs=text)

    def _place_tensorboard(self) -> list[Any]:
        """What says where TensorBoard's files go: the arguments in transformers 4, in 5 its callback, to which that is
        told here if nobody has. What is logged before any training would go to the current folder."""
        if getattr(self.args, "logging_dir", None) is not None:
            return [self.args]
        boards = [each for each in self.callback_handler.callbacks if isinstance(each, TensorBoardCallback)]
        boards = [board for board in boards if hasattr(board, "logging_dir")]
        for board in boards:
            if board.logging_dir is None:
                board.logging_dir = str(Path(self.args.output_dir) / "runs" / time.strftime("%b%d_%H-%M-%S"))
        return boards

    def _write_card(self, folder: str) -> None:
        """Brings the part on pruning up to date, and the report if there is one, if the model is pruned. Metrics of
        other weights are left out."""
        model = self.accelerator.unwrap_model(self.model)
        if self.is_world_process_zero() and isinstance(model, PrunedCheckpoint):
            write_card(folder, model, self.hub_model_id, self.args.hub_revision, self._metrics())
            report = Path(folder) / REPORT_NAME
            if self._page is not None and report.is_file() and report.read_bytes() == self._page:
                self._write_report(folder)  # its own, not one that somebody else wrote there with more in it

    def _write_report(self, folder: str | Path) -> None:
        """Whatever fails here must not lose a trained model."""
        path, model = Path(folder) / REPORT_NAME, self.accelerator.unwrap_model(self.model)
        arguments = load_arguments(self.hub_model_id or path.parent.resolve().name, self.args.hub_revision)
        try:
            page = render_report(model, arguments, scores=self._scored, metrics=self._metrics())
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, page)
            self._page = page.encode()
        except ImportError as error:
            logger.info("no %s was written: %s", REPORT_NAME, error)
        except Exception as error:
            logger.warning("%s could not be written: %s", path, error, exc_info=True)
        else:
            logger.info("wrote %s", path)

    def _metrics(self) -> dict[str, dict[str, float]]:
        """What was measured just before the cut, and of the weights as they are."""
        return {"dense": self._dense_metrics, "pruned": self._fresh_metrics()}

    def _fresh_metrics(self) -> dict[str, float]:
        """What was measured of the weights as they are."""
        step, metrics = self._measured
        return metrics if step == self.state.global_step else {}

    def _check_model(self) -> None:
        """Raises `ValueError` if the model cannot be pruned as the config says, for reasons that show at once."""
        find_groups(self.model, self.pruning_config.granularity)
        if WEIGHTS not in self.pruning_config.granularity and masked_weights(self.model):
            raise ValueError("this model has masked weights, so nothing more can be cut in it: cut first, then mask")
        if self.is_fsdp_enabled:
            if WEIGHTS in self.pruning_config.granularity:
                raise ValueError(
                    "single weights cannot be scored and masked under FSDP, which averages gradients over the "
                    "processes' batches and trains other parameters than the model's; use DDP"
                )
            check_can_gather(self._bare_model())
            shard_by_block(self.accelerator, self._bare_model())
        else:
            check_whole(self.model, "pruning without FSDP")

    def _warn_of_float16(self) -> None:
        """transformers 5 loads weights in the dtype they were saved in, also when they are to be trained."""
        trains = self.pruning_plan is not None or self.pruning_config.finetunes
        if not trains and not self.pruning_config.dense_epochs:
            return
        if any(p.dtype == torch.float16 and p.requires_grad for p in self.model.parameters()):
            logger.warning(
                "the model's float16 weights will be trained as they are, in which small updates are lost and large "
                "values overflow; load it with dtype=torch.float32, and for speed set fp16=True or bf16=True in the "
                "training arguments"
            )

    def _require_config(self) -> PruningConfig:
        if self.pruning_config is None:
            raise ValueError("this trainer has no pruning_config; pass one to CamCutTrainer")
        return self.pruning_config

    def _bare_model(self) -> PreTrainedModel:
        """The model without what accelerate wrapped around it: its mixed-precision forward would follow the model's
        copies and still call the original."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if "_original_forward" in model.__dict__:
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            del model.__dict__["forward"]  # now bound to the model, as the class's own is
            model.__dict__.pop("_is_accelerate_prepared", None)  # or the next phase would train without it
        return model

    def _shard(self) -> None:
        """Under FSDP, shards the model if it is whole, as `Trainer` does when it starts to train."""
        if self.is_fsdp_enabled and not is_sharded(self.model):
            # accelerate shards a model only together with an optimizer; `Trainer` drops this one when it trains.
            stand_in = torch.optim.SGD(self.model.parameters())
            self.model, _ = self.accelerator.prepare(self.model, stand_in)
            self.model_wrapped = self.model

    def _gather(self) -> None:
        """Makes the model whole again if FSDP has sharded it."""
        if is_sharded(self.model):
            self.optimizer = self.lr_scheduler = None
            self.accelerator.free_memory()
            self.model = self.model_wrapped = gather(self._bare_model())
            # Every process has the weights now. To spread those of the first once more fails in accelerate for saved
            # buffers, which stand-ins for removed layers have.
            self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False

    def _scoring_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        self._scoring = True
        try:
            with self.compute_loss_context_manager():
                return self.compute_loss(model, dict(batch))
        finally:
            self._scoring = False

    def _plan(self, config: PruningConfig) -> PruningPlan:
        self._measure_latency()
        groups = find_groups(self._bare_model(), config.granularity)
        plan = make_plan(self.scores, groups, config, latency=self.latency_table)
        self._scored = uncut_scores(self.scores, groups)
        return dataclasses.replace(plan, config=dataclasses.replace(self.pruning_config))

    def _measure_latency(self) -> None:
        """Measures, once, what `budget="latency"` counts in; every process gets the table of the first."""
        if self.pruning_config.budget != "latency" or self.latency_table is not None:
            return
        model = self._bare_model()
        if self.is_fsdp_enabled:  # until it is sharded, the model is on the CPU
            model = gather(model) if is_sharded(model) else copy.deepcopy(model)
            if self.is_world_process_zero():  # the others measure nothing, and may not have the weights yet
                self._place(model)
        with self._timed("measuring latency"):
            self.latency_table = latency_table(model, self.pruning_config, disable_tqdm=self.args.disable_tqdm)

    def _keep_dense_model(self) -> None:
        """A copy of the model before its first cut; if it teaches, also on disk, for a run that is resumed."""
        if self.dense_model is not None:
            return
        self.dense_model = copy.deepcopy(self._bare_model()).eval().requires_grad_(False)
        self._place(self.dense_model)
        if self.pruning_config.distill_weight > 0 and self.is_world_process_zero():
            path = self._root / TEACHER
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                save_model(self.dense_model, str(partial))

    def _remove_progress(self) -> None:
        own = re.compile(rf"({re.escape(TEACHER)}|{SCORES}({ROUND}\d+)?(\.\d+)?)(\.\d+\.partial)?")
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if own.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def _load_dense_model(self) -> None:
        path = self._root / TEACHER
        if not path.exists():
            raise ValueError(
                f"resuming a recovery that distills needs the dense model's weights, and {path} is missing"
            )
        teacher = copy.deepcopy(self._bare_model())
        load_model(teacher, str(path))
        self.dense_model = teacher.eval().requires_grad_(False)
        self._place(self.dense_model)

    def _place(self, model: PreTrainedModel) -> None:
        """Under FSDP, moves a whole model to where it will compute; elsewhere it is there."""
        if self.is_fsdp_enabled:
            self._move_model_to_device(model, self.args.device)

    def _apply(self, plan: PruningPlan) -> PruningPlan:
        self._gather()
        config, model = self.pruning_config, self._bare_model()
        if config.recovery == "reconstruct" or config.distill_weight > 0:
            self._keep_dense_model()
        if getattr(model, "pruning_plan", None) is None:
            self._dense_metrics = self._fresh_metrics()
        if self._groups_before is None:
            self._groups_before = find_groups(model, config.granularity)
        self._measured = (0, {})
        apply_plan(model, plan)
        # The optimizer, the scheduler and any DDP wrapper hold parameters that are gone.
        self.model = self.model_wrapped = model
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()
        self.scores, self.pruning_plan = None, model.pruning_plan  # with what earlier rounds have cut
        return self.pruning_plan

    def _reconstruct(self, dense_model: PreTrainedModel) -> None:
        for model in (self.model, dense_model):
            self._place(model)
        with self._timed("reconstruction"):
            reconstruct(
                self.model,
                dense_model,
                self.pruning_plan,
                self.get_scoring_dataloader(),
                disable_tqdm=self.args.disable_tqdm,
            )

    def _round_names(self) -> list[str]:
        """One folder name a round; the last round saves in `output_dir` itself."""
        return [*(f"{ROUND}{number}" for number in range(1, self.pruning_config.rounds)), ""]

    def _round_config(self, phase: str, before: list) -> PruningConfig:
        """What this round removes of what is left, so that the last one arrives at the target."""
        config, rounds = self.pruning_config, self._round_names()
        if len(rounds) == 1:
            return config
        done = removed_by(rounds.index(phase) + 1, len(rounds))
        now = find_groups(self.model, config.granularity)
        if config.sparsity is not None:
            left = remaining_budget(before, now, config, self.latency_table)
            sparsity = 1 - (1 - config.sparsity * done) / left
            return dataclasses.replace(config, sparsity=max(sparsity, 1e-9))  # rounding to layers may be ahead
        left = now[0].model_parameters / before[0].model_parameters
        compression = left / (1 - (1 - 1 / config.compression) * done)
        return dataclasses.replace(config, compression=max(compression, 1 + 1e-9))

    @contextmanager
    def _one_model(self, trial: Any) -> Iterator[None]:
        """Calls `model_init` once: `Trainer.train` would call it again in every phase and lose the cut."""
        model_init = self.model_init
        if model_init is not None and self.pruning_plan is None:
            self.model = self.model_wrapped = self.call_model_init(trial)
            self._move_model_to_device(self.model, self.args.device)
        self.model_init = None
        try:
            yield
        finally:
            self.model_init = model_init

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Sets the arguments of a phase for as long as it runs."""
        before = {
            key: getattr(self.args, key) for key in ("output_dir", "num_train_epochs", "max_steps", "push_to_hub")
        }
        folders = [(board, board.logging_dir) for board in self._place_tensorboard()]
        for board, folder in folders:  # steps count from zero in every phase: a run of its own
            board.logging_dir = str(Path(folder) / name)
        if name:
            self.args.output_dir = str(Path(self.args.output_dir) / name)
            self.args.push_to_hub = False  # only the final model is for others
        if name == DENSE:
            self.args.num_train_epochs, self.args.max_steps = self.pruning_config.dense_epochs, -1
        set_seed(self.args.seed)  # whatever ran before, or was resumed, a phase draws the same numbers
        try:
            yield
        finally:
            for key, value in before.items():
                setattr(self.args, key, value)
            for board, folder in folders:
                board.logging_dir = folder

    def _phase_to_resume(self, resume: str | bool | None, phases: list[str]) -> tuple[str, str | None]:
        """The phase to start with, and the checkpoint to start it from."""
        if not resume:
            return phases[0], None
        root = Path(self.args.output_dir)
        check_same_config(root, self.pruning_config)
        if resume is True:
            for phase in reversed(phases):
                found = checkpoints(root / phase)
                if found:
                    return phase, str(found[-1])
            logger.warning("no checkpoint to resume from in %s: starting from the beginning", root)
            return phases[0], None
        path = Path(resume)
        if not path.is_dir():
            raise ValueError(f"resume_from_checkpoint={str(path)!r} is no folder")
        if (path / UNFINISHED).exists():
            raise ValueError(f"{path} was not written to its end; resume from an earlier one")
        phase = next((phase for phase in phases if (root / phase).resolve() == path.resolve().parent), "")
        pruned_before = getattr(self.model, "pruning_plan", None) is not None
        if (phase != DENSE or pruned_before) != (path / PLAN_NAME).exists():
            raise ValueError(
                f"{path} {'is' if phase == DENSE else 'is not'} a pruned checkpoint, which does not fit its folder; "
                f"checkpoints of the dense epochs are in {root / DENSE}"
            )
        return phase, str(path)

    def _restore(self, checkpoint: str) -> None:
        """Cuts the model as a checkpoint was cut, so that the checkpoint's weights fit."""
        if self.pruning_config.distill_weight > 0:
            self._load_dense_model()
        self._apply(PruningPlan.load(checkpoint))


class _AtEpochBegin(TrainerCallback):
    """Calls a function when training has begun for all callbacks, so that loggers are set up."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.function()


def _accepted(model: PreTrainedModel, **keywords: Any) -> dict[str, Any]:
    """Those that the model's forward takes: a class of the user's own may know none of them."""
    parameters = inspect.signature(type(model).forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in keywords.items() if anything or name in parameters}
