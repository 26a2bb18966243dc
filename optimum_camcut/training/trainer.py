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
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import (
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, TrainOutput
from transformers.utils import is_datasets_available

from ..architectures.groups import WEIGHTS, PrunableGroup, find_groups, inner_model
from ..checkpoints.checkpoint import PrunedCheckpoint
from ..checkpoints.places import Place, first_with_plan, in_folder, on_hub
from ..checkpoints.saving import MODELING_NAME
from ..config import CONFIG_NAME, PruningConfig
from ..methods import get_scorer
from ..planning.allocation import check_budget, make_plan
from ..planning.latency import LatencyTable, latency_table
from ..planning.plan import PLAN_NAME, PruningPlan
from ..reporting.card import write_card
from ..reporting.report import uncut_scores
from ..scoring.batches import Batch
from ..scoring.loop import Scores, score_groups
from ..scoring.loss import IGNORED, is_mean_of_nothing
from ..surgery.cut import apply_plan
from ..surgery.masking import hold_masks, list_masks, warn_of_zeros
from ..surgery.rebuild import reconstruct
from ..utils.files import write_errors
from ..utils.sharding import gather, is_sharded, whole_checkpoints
from .checks import check_masks, check_model, check_overrides, check_trainer, overrides, warn_of_float16
from .distillation import Distillation, distillation_loss, meanings_of
from .evaluations import Evaluations
from .logs import (
    AtEpochBegin,
    AtEveryStep,
    cut_figures,
    logged_dense_metrics,
    place_tensorboard,
    read_state,
    show_in_tensorboard,
    tensorboard_run,
    timed,
)
from .phases import DENSE, phase_arguments, phase_names, round_config
from .progress import load_teacher, remove_progress, save_teacher, scores_file
from .resume import (
    UNFINISHED,
    marked_unfinished,
    phase_to_resume,
    remove_old_checkpoints,
    remove_unfinished_checkpoints,
)
from .run_report import RunReport, can_report
from .sampling import draw_examples
from .wrapping import bare_model, free_training_state, gather_model, place_model, shard_model


if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)


class TrainerKeywords(TypedDict, total=False):
    """The keywords of `Trainer`, for editors to complete; its own documentation says what they are."""

    model: PreTrainedModel | nn.Module | None
    args: TrainingArguments | None
    data_collator: DataCollator | None
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    model_init: Callable[..., PreTrainedModel] | None
    compute_loss_func: Callable[..., Tensor] | None
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[Optimizer | None, LRScheduler | None]
    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None


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
        args, kwargs: those of `Trainer`. The model may be a module of your own around one transformers model: that one
            is cut, by the loss of the whole. It is saved as `Trainer` saves such a module, as a state dict, beside its
            `pruning_plan.json`; see docs/steps.md. `optimizers` cannot be given together with `pruning_config`, since
            the cut replaces the parameters; `optimizer_cls_and_kwargs` can.

    Attributes:
        scores (`dict[str, Tensor]`): of the last call to `score`, or set by the user, else None. The first cut is by
            these, and `train()` does not score for it again; unless dense epochs come first, or `model_init` makes
            another model. None again after a cut.
        pruning_plan (`PruningPlan`): what was kept, once the model is cut, else None.
        dense_model (`PreTrainedModel`): a copy from before the cut, where the recovery needs it, else None.
        latency_table (`LatencyTable`): of the uncut model, measured for `budget="latency"`, else None.
    """

    def __init__(
        self, *args: Any, pruning_config: PruningConfig | None = None, **kwargs: Unpack[TrainerKeywords]
    ) -> None:
        if pruning_config is not None and not isinstance(pruning_config, PruningConfig):
            raise TypeError(f"pruning_config should be a PruningConfig, got {type(pruning_config).__name__}")
        super().__init__(*args, **kwargs)
        self.pruning_config = pruning_config
        self.scores: Scores | None = None
        self.pruning_plan: PruningPlan | None = None
        self.dense_model: PreTrainedModel | None = None
        self.latency_table: LatencyTable | None = None
        self._batch_means = False  # while losses are to be means over one batch
        self._looked_for_zeros = False
        self._evaluations = Evaluations()
        self._counted: list[float] | None = None  # losses of evaluation that count, and all of them, while it lasts
        self._groups_before: list[PrunableGroup] | None = None  # of the model as it was before the first cut
        self._plan_metrics: dict[str, float] | None = None  # of a cut that is yet to be logged
        self._progress_file: Path | None = None  # only inside `train`, which can be resumed
        self._half_cut = False  # while something of the last cut is still to come
        self._unfinished = False  # from the start of a run to its report
        self._report = RunReport()
        self._saved: dict[Path, int] = {}  # folder that weights were saved in -> the step that they had then
        self._best_loaded = False  # the weights are those of the best checkpoint
        self._root = Path(self.args.output_dir)
        if pruning_config is None:
            return
        check_trainer(self)
        check_overrides(self, CamCutTrainer)
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
            self._evaluations.dense, self._report, self._half_cut, self._unfinished = {}, RunReport(), False, False
        if self.model_init is not None or config.dense_epochs:
            self.scores = None  # of another model than is cut first
        with self._one_model(trial):
            if self.pruning_plan is not None or config.finetunes or config.dense_epochs:
                warn_of_float16(self.model)
            if self.pruning_plan is not None:
                self._check_last_cut()
                output = super().train(resume_from_checkpoint, trial, *args, **kwargs)
                if self._unfinished:  # this run, or one that was interrupted after its last cut
                    self._finish(self._get_output_dir(trial=trial))
                return output
            if self._unfinished and config.dense_epochs and self.model_init is None and not resume_from_checkpoint:
                logger.warning(
                    "an earlier train() of this trainer was stopped before its first cut; this one begins with the "
                    "dense epochs again, from the weights that the model has now. To go on from the last checkpoint, "
                    "call train(resume_from_checkpoint=True)"
                )
            self._prepare()
            initial = copy.deepcopy(bare_model(self)) if config.rewind else None
            phases, checkpoint = self._start_or_resume(resume_from_checkpoint)
            self._unfinished = True
            before = find_groups(self.model, config.granularity)
            output = TrainOutput(0, 0.0, {})
            for phase in phases:
                resumed, checkpoint = checkpoint, None
                with tensorboard_run(self, phase), phase_arguments(self.args, config, phase):
                    if phase == DENSE:
                        output = super().train(resumed, trial, *args, **kwargs)
                        continue
                    if resumed is not None:
                        self._restore(resumed)
                    else:
                        self._score_resumably(phase)
                        self._half_cut = True
                        self._cut(phase, before, initial)
                    self._half_cut = phase != phases[-1]
                    if config.finetunes:
                        output = super().train(resumed, trial, *args, **kwargs)
                    self._log_plan()  # has happened if the model was trained
            self._finish(self._get_output_dir(trial=trial))
        return output

    def _check_last_cut(self) -> None:
        """A model that was cut in part must not train on as if it were done."""
        if self._half_cut:
            raise ValueError(
                "this trainer was stopped between its first cut and its last, so its model is neither whole nor as "
                "small as it should be. Make a new trainer with the model from before: train() starts anew, and "
                "train(resume_from_checkpoint=True) goes on from the last checkpoint"
            )

    def _prepare(self) -> None:
        """Finds out what cannot be done before there is anything to lose. The model is then whole on every process."""
        config = self.pruning_config
        has_data = self.train_dataset is not None or overrides(self, CamCutTrainer, "get_train_dataloader")
        if not has_data and (config.finetunes or config.dense_epochs):
            raise ValueError("train_dataset is None: there is nothing to train on")
        self._check_model()
        self._measure_latency()
        check_budget(find_groups(self.model, config.granularity), config, self.latency_table)
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            shard_model(self)  # only the first process has read the weights: this spreads them
        gather_model(self)

    def _start_or_resume(self, resume: str | bool | None) -> tuple[list[str], str | None]:
        """The phases to go through, and the checkpoint that the first of them goes on from. Clears the folder of what
        earlier runs have left half done."""
        config, phases = self.pruning_config, phase_names(self.pruning_config)
        self._root = root = Path(self.args.output_dir)
        pruned_before = getattr(inner_model(self.model), "pruning_plan", None) is not None
        first, checkpoint = phase_to_resume(resume, phases, root, config, pruned_before)
        self.accelerator.wait_for_everyone()  # all have looked before anything goes
        if self.is_world_process_zero():
            with write_errors(root, "Training would have nowhere to save to: choose another output_dir."):
                if not resume:
                    remove_progress(root)
                for phase in phases:
                    remove_unfinished_checkpoints(root / phase)
                config.save_pretrained(root)
        self.accelerator.wait_for_everyone()
        return phases[phases.index(first) :], checkpoint

    def _restore(self, checkpoint: str) -> None:
        """Cuts the model as a checkpoint was cut, so that the checkpoint's weights fit."""
        if self.pruning_config.distill_weight > 0:
            self.dense_model = self._as_teacher(load_teacher(self._root, bare_model(self)))
        if self.pruning_config.dense_epochs:
            self._evaluations.forget()  # of the model before these epochs
        self._apply(PruningPlan.load(checkpoint))
        self._plan_metrics = None  # the history of the checkpoint has them
        self._evaluations.dense = logged_dense_metrics(Path(checkpoint)) or self._evaluations.dense

    def _score_resumably(self, phase: str) -> None:
        """Scores for a phase, unless there are scores from before the first."""
        if self.scores is not None:
            return
        self._progress_file = scores_file(self._root, phase)
        try:
            self.score()
        finally:
            self._progress_file = None

    def _cut(self, phase: str, before: list[PrunableGroup], initial: PreTrainedModel | None) -> None:
        """Cuts what a round removes, and rebuilds if the config says so.

        Args:
            before: the groups that the run began with.
            initial: the model to rewind to, if any.
        """
        config = self.pruning_config
        with self._timed("planning and cutting"):
            now = find_groups(self.model, config.granularity)
            if self.pruning_plan is None and not self.is_fsdp_enabled:
                self._report.plan_by_baselines(inner_model(bare_model(self)), now, config, self.latency_table)
            plan = self._plan(round_config(config, phase, before, now, self.latency_table))
            gather_model(self)
            if config.distill_weight > 0:
                self._keep_dense_model()  # before a rewind: the teacher is the trained model
            if initial is not None:
                rewound = copy.deepcopy(initial)
                if self.pruning_plan is not None:
                    apply_plan(rewound, self.pruning_plan)
                self.model.load_state_dict(rewound.state_dict())
            # A rebuild follows the dense model; a round that trains, the model that it began with.
            keep_copy = config.finetunes and config.rebuilds
            started_with = copy.deepcopy(bare_model(self)) if keep_copy else None
            self._apply(plan)
        if config.rebuilds:
            self._reconstruct(started_with or self.dense_model)

    def _finish(self, folder: str) -> None:
        self._unfinished = False
        shard_model(self)
        if self.is_world_process_zero():
            remove_progress(self._root)
            config, model = self.pruning_config, self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if not isinstance(model, PreTrainedModel):
                return  # a report says how to load the model, which such a module's own code does
            if WEIGHTS not in config.granularity and not self.is_fsdp_enabled and can_report():
                with self._timed("timing the dense and the pruned model"):
                    self._report.time(model, config, self.dense_model)
            self._report.write(folder, *self._to_report())

    # ------------------------------------------------------------------------------------------- the steps apart

    def score(self) -> Scores:
        """Scores every unit on `pruning_config.num_samples` examples of the training set.

        Returns:
            `dict[str, Tensor]`: group name -> `torch.Tensor` of shape `(units,)`; also kept as `self.scores` until the
                cut.

        Raises:
            `ValueError`: no `pruning_config`; see also `score_groups`.
        """
        config = self._require_config()
        shard_model(self)
        model = bare_model(self)
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
        self._log_plan()
        shard_model(self)
        return plan

    def get_scoring_dataloader(self) -> DataLoader:
        """The examples to score on: those that `DataFrame.sample(num_samples, random_state=seed)` of pandas draws from
        the training set, longest first.

        Every process gets all batches and `score_groups` shares them out, so the batches do not depend on how many
        processes there are.
        """
        config, dataset, collator = self._require_config(), self.train_dataset, self.data_collator
        if dataset is None:
            raise ValueError(
                f"train_dataset is None, and method={config.method!r} with recovery={config.recovery!r} reads "
                "training examples: give a train_dataset, or override get_scoring_dataloader"
            )
        if is_datasets_available():
            import datasets

            if isinstance(dataset, datasets.Dataset):
                dataset = self._remove_unused_columns(dataset, description="scoring")
            else:
                collator = self._get_collator_with_removed_columns(collator, description="scoring")
        # A generator of its own: reading must not move the random state that training goes on from.
        return DataLoader(
            draw_examples(dataset, config.num_samples, config.seed),
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
        """The loss of `Trainer`. While the model is scored or distilled it is a mean over the batch, whatever
        `num_items_in_batch` says.

        A subclass may override this as in `Trainer`: the model is scored by that loss, and `distill_weight` mixes into
        it. It then gets the number of labels in the batch as `num_items_in_batch`.
        """
        if not self._batch_means:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = self._mean_loss(model, inputs)
        return (loss, outputs) if return_outputs else loss

    def compute_distillation_loss(self, outputs: Any, taught: Any, inputs: dict[str, Any]) -> Tensor:
        """How far a pruned model is from the dense one on a batch: what `distill_weight` mixes into the loss. Override
        it to compare what a model of your own gives.

        Args:
            outputs, taught: what the pruned and the dense model gave.
            inputs: what both were called with, by name.

        Returns:
            `Tensor`: scalar, a mean over the batch.

        Raises:
            `ValueError`: outputs without logits, or logits whose meaning the model's config does not tell.
        """
        temperature, meanings = self.pruning_config.distill_temperature, meanings_of(self.dense_model, taught)
        return distillation_loss(outputs, taught, temperature, inputs.get("attention_mask"), meanings)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], Tensor | int | None]:
        """That of `Trainer`, which asks only after a step whether that was the last one: what goes on from its last
        checkpoint would take one too many."""
        if self.pruning_config is not None and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """That of `Trainer`; the model card tells what it gives for the trainer's own `eval_dataset`."""
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if eval_dataset is None or eval_dataset is self.eval_dataset:
            self._record(metrics)
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """That of `Trainer`; a batch in which no label counts, whose loss is NaN, has no part in the mean loss.
        `Trainer` of transformers 5 leaves it out by itself."""
        self._counted = [0.0, 0] if transformers.__version__.startswith("4.") else None
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            counted, total = self._counted or (0, 0)
        finally:
            self._counted = None
        name = f"{metric_key_prefix}_loss"
        if counted < total and name in output.metrics:
            output.metrics[name] *= total / counted if counted else float("nan")
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Any, Any]:
        """That of `Trainer`; of the loss of a batch in which no label counts, see `evaluation_loop`."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self.pruning_config is not None and self._counted is not None and loss is not None:
            counts = not is_mean_of_nothing(loss, self.model, inputs)
            flags = torch.full((self.args.eval_batch_size,), float(counts), device=loss.device)
            # As many as the losses that Trainer takes the mean of; a list with `eval_use_gather_object`.
            flags = torch.as_tensor(self.gather_function(flags))
            self._counted = [self._counted[0] + float(flags.sum()), self._counted[1] + len(flags)]
            loss = loss if counts else loss.nan_to_num()
        return loss, logits, labels

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """That of `Trainer`; TensorBoard's files go below `output_dir`, also before any training."""
        if self.pruning_config is not None:
            place_tensorboard(self)
        super().log(logs, *args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """That of `Trainer`, which evaluates while it trains, by whatever `evaluate` there is."""
        metrics = super()._evaluate(*args, **kwargs)
        self._record(metrics or {})
        return metrics

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_loaded = True
        self._note_saved(self.state.best_model_checkpoint)
        self._evaluations.record_best(self.state, self._plan_in_memory())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """That of `Trainer`; under FSDP, the whole model whatever `state_dict_type` says."""
        whole = self.pruning_config is not None and self.is_fsdp_enabled
        advice = "Make room or choose another folder, and save again."
        with (
            write_errors(output_dir or self.args.output_dir, advice),
            whole_checkpoints(self.accelerator) if whole else nullcontext(),
        ):
            super().save_model(output_dir, _internal_call)
            self._note_saved(output_dir or self.args.output_dir)
            self._write_card(output_dir or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """That of `Trainer`, but one that is killed on the way leaves no checkpoint to resume from, and older ones go
        only when the new one is whole."""
        folder = Path(self._get_output_dir(trial=trial))
        limit, main = self.args.save_total_limit, self.is_world_process_zero()
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        advice = "Make room, and go on from the one before with resume_from_checkpoint=True."
        with (
            write_errors(f"the checkpoint {checkpoint}", advice),
            marked_unfinished(checkpoint, main, self.accelerator.wait_for_everyone),
        ):
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            self._note_saved(checkpoint)  # also if `save_model` is the user's own
            if self.args.should_save:
                torch.save(self.args, checkpoint / TRAINING_ARGS_NAME)  # with the limit that the user gave
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
            gather_model(self)
        self._evaluations.forget()
        resumed = kwargs.get("resume_from_checkpoint")
        step = read_state(Path(resumed)).get("global_step") if resumed else None
        self._saved, self._best_loaded = {} if step is None else {Path(resumed): step}, False
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        check_masks(self, model)
        if self.is_world_process_zero() and not self._looked_for_zeros:
            warn_of_zeros(model)
        self._looked_for_zeros = True
        kind = "" if self.pruning_config is None else "dense " if self.pruning_plan is None else "recovery "
        log_plan = AtEpochBegin(self._log_plan)
        self.add_callback(log_plan)
        try:
            with (
                hold_masks(model) if list_masks(model) else nullcontext(),
                self._distilling(),
                self._timed(f"{kind}training"),
            ):
                return super()._inner_training_loop(*args, **kwargs)
        finally:
            self.remove_callback(log_plan)

    @contextmanager
    def _distilling(self) -> Iterator[None]:
        """While a pruned model trains, mixes what it and the dense model are apart into `self.compute_loss`, whoever
        defined that."""
        config = self.pruning_config
        if config is None or config.distill_weight == 0 or self.pruning_plan is None:
            yield
            return
        distillation = Distillation(self.dense_model, config.distill_weight, self.compute_distillation_loss)
        own, assigned = self.compute_loss, vars(self).get("compute_loss")

        def mean_of(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
            loss, outputs = self._batch_mean(own, model, inputs, return_outputs=True)
            # The distance is not to become NaN with it.
            return (loss.nan_to_num() if is_mean_of_nothing(loss, self.model, inputs) else loss), outputs

        def mixed(
            model: nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | int | None = None,
        ) -> Tensor | tuple[Tensor, Any]:
            if not model.training:
                return own(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
            loss, outputs = distillation.mix(model, lambda: mean_of(model, inputs))
            if self._divided_already(num_items_in_batch):
                loss = loss / self.current_gradient_accumulation_steps
            return (loss, outputs) if return_outputs else loss

        def check() -> None:
            if not distillation.calls:
                raise ValueError(
                    f"distill_weight={config.distill_weight} has no effect: training_step of {type(self).__name__} "
                    "gets its loss without self.compute_loss. Call that (or super().training_step) in it, or set "
                    "distill_weight=0"
                )

        after_step = AtEveryStep(check)
        self.add_callback(after_step)
        self.compute_loss = mixed
        try:
            yield
        finally:
            self.remove_callback(after_step)
            del self.compute_loss
            if assigned is not None:
                self.compute_loss = assigned

    def _divided_already(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether `Trainer` takes a loss to be divided by the number of accumulated batches."""
        said = getattr(self, "loss_is_scaled_for_ga", None)  # transformers 5
        if said is not None:
            return said
        counted = num_items_in_batch is not None and self.model_accepts_loss_kwargs
        return counted or self.compute_loss_func is not None

    def _timed(self, what: str) -> AbstractContextManager[None]:
        return timed(what, self.is_world_process_zero())

    def _log_plan(self) -> None:
        """Logs a cut that is not logged yet, as `Trainer` logs its losses; TensorBoard shows the plan's table, too."""
        metrics, self._plan_metrics = self._plan_metrics, None
        if metrics is None:
            return
        self.log(metrics)
        show_in_tensorboard(self, "pruning/plan", self.pruning_plan)

    def _write_card(self, folder: str) -> None:
        """Brings the part on pruning up to date, and the report if there is one, if the model is pruned. Metrics of
        other weights are left out."""
        model = self.accelerator.unwrap_model(self.model)
        if self.is_world_process_zero() and self.pruning_plan is not None and not isinstance(model, PreTrainedModel):
            self.pruning_plan.save(Path(folder))  # beside a state dict that fits once the plan is applied
            self.pruning_config.save_pretrained(folder)
        if self.is_world_process_zero() and isinstance(model, PrunedCheckpoint):
            write_card(folder, model, self.hub_model_id, self.args.hub_revision, self._metrics())
            self._report.update(self._to_report)

    def _note_saved(self, folder: str | Path) -> None:
        """The weights as they are were saved in a folder. The last one comes first."""
        self._saved.pop(Path(folder), None)
        self._saved = {Path(folder): self._weights_step(), **self._saved}

    def _weights_step(self) -> int:
        """That the weights have as they are."""
        return self.state.best_global_step if self._best_loaded else self.state.global_step

    def _to_report(self) -> tuple[PreTrainedModel, Place | None, dict[str, dict[str, float]]]:
        """The model, where it can be loaded from, and what was measured."""
        model = self.accelerator.unwrap_model(self.model)
        if self.hub_model_id is not None:
            return model, on_hub(self.hub_model_id, self.args.hub_revision), self._metrics()
        folders = [folder for folder, step in self._saved.items() if step == self._weights_step()]
        places = [(each / PLAN_NAME, in_folder(each.as_posix(), "the training ran in")) for each in folders]
        return model, first_with_plan(model.pruning_plan, places), self._metrics()

    def _metrics(self) -> dict[str, dict[str, float]]:
        return {"dense": self._evaluations.dense, "pruned": self._measured()}

    def _record(self, metrics: Mapping[str, float]) -> None:
        """What was measured of the model as it is."""
        self._evaluations.record(self.state, self._plan_in_memory(), metrics)

    def _measured(self) -> dict[str, float]:
        return self._evaluations.current(self.state, self._plan_in_memory())

    def _plan_in_memory(self) -> PruningPlan | None:
        """That of the model, which may have been cut by `apply_plan` outside of this trainer."""
        return getattr(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), "pruning_plan", None)

    def _check_model(self) -> None:
        check_model(self, bare_model(self) if self.is_fsdp_enabled else self.model, self.pruning_config)

    def _require_config(self) -> PruningConfig:
        if self.pruning_config is None:
            raise ValueError("this trainer has no pruning_config; pass one to CamCutTrainer")
        return self.pruning_config

    def _mean_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The mean of `Trainer`'s loss over one batch, and the outputs. Models get no number of items, which some
        divide by and others ignore; a loss function of the user's own may need it, and gets that of this batch."""
        own, items = self.compute_loss_func, _number_of_items(inputs)
        if own is not None and items is not None:
            self.compute_loss_func = lambda *outputs_and_labels, num_items_in_batch=None: own(
                *outputs_and_labels, num_items_in_batch=items
            )
        try:
            return super().compute_loss(model, dict(inputs), True)
        finally:
            self.compute_loss_func = own

    def _batch_mean(self, compute_loss: Callable[..., Any], model: nn.Module, inputs: Batch, **kwargs: Any) -> Any:
        """What a `compute_loss`, which may be the user's, gives, with a loss that is a mean over this batch."""
        self._batch_means = True
        try:
            return compute_loss(model, dict(inputs), num_items_in_batch=_number_of_items(inputs), **kwargs)
        finally:
            self._batch_means = False

    def _scoring_loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        with self.compute_loss_context_manager():
            return self._batch_mean(self.compute_loss, model, batch)

    def _plan(self, config: PruningConfig) -> PruningPlan:
        self._measure_latency()
        groups = find_groups(bare_model(self), config.granularity)
        plan = make_plan(self.scores, groups, config, latency=self.latency_table)
        self._report.scores = uncut_scores(self.scores, groups)
        return dataclasses.replace(plan, config=dataclasses.replace(self.pruning_config))

    def _measure_latency(self) -> None:
        """Measures, once, what `budget="latency"` counts in; every process gets the table of the first."""
        if self.pruning_config.budget != "latency" or self.latency_table is not None:
            return
        model = bare_model(self)
        if self.is_fsdp_enabled:  # until it is sharded, the model is on the CPU
            model = gather(model) if is_sharded(model) else copy.deepcopy(model)
            if self.is_world_process_zero():  # the others measure nothing, and may not have the weights yet
                place_model(self, model)
        with self._timed("measuring latency"):
            self.latency_table = latency_table(model, self.pruning_config, disable_tqdm=self.args.disable_tqdm)

    def _keep_dense_model(self) -> None:
        """A copy of the model before its first cut; if it teaches, also on disk, for a run that is resumed."""
        if self.dense_model is not None:
            return
        self.dense_model = self._as_teacher(copy.deepcopy(bare_model(self)))
        if self.pruning_config.distill_weight > 0 and self.is_world_process_zero():
            save_teacher(self._root, self.dense_model)

    def _as_teacher(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model that is not trained, where it will compute."""
        place_model(self, model)
        return model.eval().requires_grad_(False)

    def _apply(self, plan: PruningPlan) -> PruningPlan:
        gather_model(self)
        config, model = self.pruning_config, bare_model(self)
        if config.recovery == "reconstruct" or config.distill_weight > 0:
            self._keep_dense_model()
        if getattr(inner_model(model), "pruning_plan", None) is None:
            self._evaluations.dense = self._measured()
        if self._groups_before is None:
            self._groups_before = find_groups(model, config.granularity)
        self._evaluations.forget()
        self._saved = {}
        apply_plan(model, plan)
        self.model = self.model_wrapped = model
        free_training_state(self)
        self.scores, self.pruning_plan = None, inner_model(model).pruning_plan  # with what earlier rounds have cut
        now = find_groups(model, config.granularity)
        self._plan_metrics = cut_figures(
            self.pruning_plan, self._groups_before, now, config, self.latency_table, self._evaluations.dense
        )
        return self.pruning_plan

    def _reconstruct(self, dense_model: PreTrainedModel) -> None:
        for model in (self.model, dense_model):
            place_model(self, model)
        with self._timed("reconstruction"):
            reconstruct(
                self.model,
                dense_model,
                self.pruning_plan,
                self.get_scoring_dataloader(),
                disable_tqdm=self.args.disable_tqdm,
            )

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


def _with_pruning_config(signature: inspect.Signature) -> inspect.Signature:
    """What `help` and notebooks complete: the arguments of `Trainer`, as they are in this transformers, and ours."""
    ours = inspect.Parameter(
        "pruning_config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="PruningConfig | None"
    )
    return signature.replace(parameters=[*signature.parameters.values(), ours])


CamCutTrainer.__init__.__signature__ = _with_pruning_config(inspect.signature(Trainer.__init__))


def _number_of_items(inputs: dict[str, Any]) -> Tensor | None:
    """Labels that are not ignored, as `Trainer` counts them."""
    labels = inputs.get("labels")
    return (labels != IGNORED).sum() if isinstance(labels, Tensor) else None
