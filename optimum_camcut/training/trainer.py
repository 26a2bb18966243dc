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

import inspect
import logging
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, TrainOutput

from ..checkpoints.saving import MODELING_NAME
from ..config import CONFIG_NAME, PruningConfig
from ..planning.plan import PLAN_NAME, PruningPlan
from ..scoring.batches import Batch
from ..scoring.loop import Scores
from ..search.divergence import distillation_loss, meanings_of
from ..surgery.masking import hold_masks, list_masks, warn_of_zeros
from ..utils.files import write_errors
from ..utils.from_gguf import forget_gguf
from ..utils.sharding import whole_checkpoints
from .adapters import adapted, check_adapters, merged_for_now, save_adapters
from .checks import check_masks, check_overrides, check_trainer, require_config, warn_of_float16
from .keywords import TrainerKeywords, with_pruning_config
from .logs import AtEpochBegin, place_tensorboard, timed
from .losses import count_loss, distilling, items_of
from .records import forget_weights, note_saved, plan_in_memory, record, write_card_and_report
from .resume import UNFINISHED, check_all_read, marked_unfinished, names_in_memory, remove_old_checkpoints
from .run import Run, of_run
from .sampling import scoring_dataloader
from .steps import (
    apply,
    check_last_cut,
    check_own_model,
    finish,
    log_plan,
    one_model,
    plan_by_scores,
    run_phases,
    score,
)
from .tokens import RenumbersTokens
from .wrapping import gather_model, shard_model


if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)


class CamCutTrainer(RenumbersTokens):
    """`transformers.Trainer` with one more keyword.

    With a `pruning_config`, `train()` runs the dense epochs it asks for, scores the model, cuts it, and recovers:

    - dense epochs save their checkpoints in `output_dir/_dense`, since they no longer fit the pruned model;
    - recovery by fine-tuning is ordinary training for `num_train_epochs` (or `max_steps`): evaluation, callbacks,
      logging, `load_best_model_at_end`, gradient accumulation, mixed precision and gradient checkpointing apply;
    - `resume_from_checkpoint` goes on in the phase that the checkpoint belongs to;
    - where the vocabulary is cut, `processing_class` becomes the trimmed tokenizer, and the data keep the numbers of
      the one that was given: every batch is renumbered (see `tokenize_again`);
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

    scores, pruning_plan = of_run("scores"), of_run("plan")
    dense_model, latency_table = of_run("dense_model"), of_run("latency_table")

    def __init__(
        self, *positional: Any, pruning_config: PruningConfig | None = None, **kwargs: Unpack[TrainerKeywords]
    ) -> None:
        if pruning_config is not None and not isinstance(pruning_config, PruningConfig):
            raise TypeError(f"pruning_config should be a PruningConfig, got {type(pruning_config).__name__}")
        forget_gguf(kwargs.get("model", positional[0] if positional else None))
        super().__init__(*positional, **kwargs)
        self.pruning_config = pruning_config
        self.run = Run(Path(self.args.output_dir))
        self._looked_for_zeros = False
        if pruning_config is None:
            return
        check_trainer(self)
        check_adapters(self)
        check_overrides(self, CamCutTrainer)
        if self.model_init is None:
            check_own_model(self)  # what cannot be pruned fails here, not after an epoch

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Dense epochs, scoring, cut and recovery in one call; see the class.

        Returns:
            `TrainOutput`: of the last phase that trained; zero steps if none did.
        """
        if self.pruning_config is None:
            return super().train(resume_from_checkpoint, trial, *args, **kwargs)

        def fit(checkpoint: str | bool | None) -> TrainOutput:
            with adapted(self, self._get_output_dir(trial), checkpoint):
                return super(CamCutTrainer, self).train(checkpoint, trial, *args, **kwargs)

        if trial is not None:  # every trial of a search prunes a model of its own
            self.run = Run(self.run.root)
        fresh = self.model_init is not None
        if fresh or self.pruning_config.dense_epochs:
            self.scores = None  # of another model than is cut first
        with one_model(self, trial):
            if self.pruning_plan is None:
                output = run_phases(self, resume_from_checkpoint, fit, fresh)
            else:
                check_last_cut(self)
                warn_of_float16(self.model)
                output = fit(resume_from_checkpoint)
            if self.run.unfinished:  # this run, or one that was interrupted after its last cut
                finish(self, self._get_output_dir(trial=trial))
        return output

    def score(self) -> Scores:
        """Scores every unit on `pruning_config.num_samples` examples of the training set, and tokens on all of them.

        Returns:
            `dict[str, Tensor]`: group name -> `torch.Tensor` of shape `(units,)`; also kept as `self.scores` until the
                cut.

        Raises:
            `ValueError`: no `pruning_config`; see also `score_groups`.
        """
        config = require_config(self)
        shard_model(self)
        with timed(f"scoring by {config.method}", self.is_world_process_zero()):
            self.scores = score(self)
        return self.scores

    def prune(self) -> PruningPlan:
        """Cuts the model by `self.scores`, which it computes first if need be. Training afterwards starts afresh.

        Returns:
            `PruningPlan`: what was kept.
        """
        config = require_config(self)
        if self.scores is None:
            self.score()
        with timed("planning and cutting", self.is_world_process_zero()):
            plan = apply(self, plan_by_scores(self, config))
        log_plan(self)
        shard_model(self)
        return plan

    def get_scoring_dataloader(self) -> DataLoader[Any]:
        """The examples to score on: those that `DataFrame.sample(num_samples, random_state=seed)` of pandas draws from
        the training set, longest first.

        Every process gets all batches and `score_groups` shares them out, so the batches do not depend on how many
        processes there are.
        """
        return scoring_dataloader(self, require_config(self))

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
        if not self.run.batch_means:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with items_of(self, inputs):
            return super().compute_loss(model, dict(inputs), return_outputs)

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
        config, meanings = require_config(self), meanings_of(self.dense_model, taught)
        mask = inputs.get("attention_mask")
        return distillation_loss(outputs, taught, config.distill_temperature, mask, meanings, config.distill_top_k)

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
            record(self, metrics)
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """That of `Trainer`; a batch in which no label counts, whose loss is NaN, has no part in the mean loss.
        `Trainer` of transformers 5 leaves it out by itself."""
        self.run.counted = (0.0, 0) if transformers.__version__.startswith("4.") else None
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            counted, total = self.run.counted or (0, 0)
        finally:
            self.run.counted = None
        name = f"{metric_key_prefix}_loss"
        if counted < total and name in output.metrics:
            output.metrics[name] *= total / counted if counted else float("nan")
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Any, Any]:
        """That of `Trainer`; of the loss of a batch in which no label counts, see `evaluation_loop`."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self.pruning_config is not None and self.run.counted is not None and loss is not None:
            loss = count_loss(self, loss, inputs)
        return loss, logits, labels

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """That of `Trainer`; TensorBoard's files go below `output_dir`, also before any training."""
        if self.pruning_config is not None:
            place_tensorboard(self)
        super().log(logs, *args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """That of `Trainer`, which evaluates while it trains, by whatever `evaluate` there is."""
        metrics = super()._evaluate(*args, **kwargs)
        record(self, metrics or {})
        return metrics

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.run.best_loaded = True
        note_saved(self, self.state.best_model_checkpoint)
        self.run.evaluations.record_best(self.state, plan_in_memory(self))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Where that of `Trainer` warns that weights are missing in a checkpoint, an error."""
        check_all_read(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), load_result.missing_keys)
        super()._issue_warnings_after_load(load_result)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """That of `Trainer`; under FSDP, the whole model whatever `state_dict_type` says."""
        whole = self.pruning_config is not None and self.is_fsdp_enabled
        advice = "Make room or choose another folder, and save again."
        with (
            write_errors(output_dir or self.args.output_dir, advice),
            whole_checkpoints(self.accelerator) if whole else nullcontext(),
            merged_for_now(self),
        ):
            super().save_model(output_dir, _internal_call)
            note_saved(self, output_dir or self.args.output_dir)
            write_card_and_report(self, output_dir or self.args.output_dir)

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
                with names_in_memory(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
                    super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            save_adapters(self, checkpoint)
            note_saved(self, checkpoint)  # also if `save_model` is the user's own
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
            write_card_and_report(self, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of `Trainer`, with a part on what was pruned."""
        super().create_model_card(*args, **kwargs)
        write_card_and_report(self, self.args.output_dir)

    # ------------------------------------------------------------------------------------------------------ details

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """The loop of `Trainer`, with masked weights held at zero. Here the model is the one that trains, also if
        `Trainer.train` has just made it by `model_init`."""
        if self.pruning_config is not None:
            # accelerate tells the optimizer's parameters by their addresses, and all empty shards are at 0.
            gather_model(self)
        forget_weights(self, kwargs.get("resume_from_checkpoint"))
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        check_masks(self, model)
        if self.is_world_process_zero() and not self._looked_for_zeros:
            warn_of_zeros(model)
        self._looked_for_zeros = True
        kind = "" if self.pruning_config is None else "dense " if self.pruning_plan is None else "recovery "
        log_cut = AtEpochBegin(partial(log_plan, self))
        self.add_callback(log_cut)
        try:
            with (
                hold_masks(model) if list_masks(model) else nullcontext(),
                distilling(self),
                timed(f"{kind}training", self.is_world_process_zero()),
            ):
                return super()._inner_training_loop(*args, **kwargs)
        finally:
            self.remove_callback(log_cut)


# What `help` shows. Functions may have any attribute, which mypy does not know.
CamCutTrainer.__init__.__signature__ = with_pruning_config(inspect.signature(Trainer.__init__))  # type: ignore[attr-defined]
