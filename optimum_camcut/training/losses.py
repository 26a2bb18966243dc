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
"""The loss of a trainer while its model is scored or distilled: what `compute_loss` gives, the user's or not, as a
mean over one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
)

from ..scoring.batches import Batch
from ..scoring.loss import IGNORED, counted_labels, is_mean_of_nothing
from .distillation import Distillation
from .logs import (
    AtEveryStep,
)


if TYPE_CHECKING:
    from transformers import Trainer as CamCutTrainer  # the one of this package, which imports this module


@contextmanager
def distilling(trainer: CamCutTrainer) -> Iterator[None]:
    """While a pruned model trains, mixes what it and the dense model are apart into `trainer.compute_loss`, whoever
    defined that."""
    config = trainer.pruning_config
    if config is None or config.distill_weight == 0 or trainer.pruning_plan is None:
        yield
        return
    distillation = Distillation(trainer.dense_model, config.distill_weight, trainer.compute_distillation_loss)
    own, assigned = trainer.compute_loss, vars(trainer).get("compute_loss")

    def mean_of(model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> tuple[Tensor, Any]:
        found = batch_mean(trainer, own, model, inputs, return_outputs=return_outputs)
        loss, outputs = found if return_outputs else (found, None)
        # The distance is not to become NaN with it.
        nothing = is_mean_of_nothing(loss, counted_labels(trainer.model, inputs))
        return (loss.nan_to_num() if nothing else loss), outputs

    def mixed(
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        if not model.training:
            return own(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        loss, outputs = distillation.mix(model, lambda: mean_of(model, inputs, return_outputs))
        if divided_already(trainer, num_items_in_batch):
            loss = loss / trainer.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def check() -> None:
        if not distillation.calls:
            raise ValueError(
                f"distill_weight={config.distill_weight} has no effect: training_step of {type(trainer).__name__} "
                "gets its loss without self.compute_loss. Call that (or super().training_step) in it, or set "
                "distill_weight=0"
            )

    after_step = AtEveryStep(check)
    trainer.add_callback(after_step)
    trainer.compute_loss = mixed
    try:
        yield
    finally:
        trainer.remove_callback(after_step)
        del trainer.compute_loss
        if assigned is not None:
            trainer.compute_loss = assigned


def divided_already(trainer: CamCutTrainer, num_items_in_batch: Tensor | int | None) -> bool:
    """Whether `Trainer` takes a loss to be divided by the number of accumulated batches."""
    said = getattr(trainer, "loss_is_scaled_for_ga", None)  # transformers 5
    if said is not None:
        return said
    counted = num_items_in_batch is not None and trainer.model_accepts_loss_kwargs
    return counted or trainer.compute_loss_func is not None


def batch_mean(
    trainer: CamCutTrainer, compute_loss: Callable[..., Any], model: nn.Module, inputs: Batch, **kwargs: Any
) -> Any:
    """What a `compute_loss`, which may be the user's, gives, with a loss that is a mean over this batch."""
    trainer.run.batch_means = True
    try:
        return compute_loss(model, dict(inputs), num_items_in_batch=number_of_items(inputs), **kwargs)
    finally:
        trainer.run.batch_means = False


def scoring_loss(trainer: CamCutTrainer, model: PreTrainedModel, batch: Batch) -> Tensor:
    with trainer.compute_loss_context_manager():
        return batch_mean(trainer, trainer.compute_loss, model, batch)


@contextmanager
def items_of(trainer: CamCutTrainer, inputs: dict[str, Any]) -> Iterator[None]:
    """While a loss is to be a mean over one batch: models get no number of items, which some divide by and others
    ignore; a loss function of the user's own may need it, and gets that of this batch."""
    own, items = trainer.compute_loss_func, number_of_items(inputs)
    if own is not None and items is not None:
        trainer.compute_loss_func = lambda *outputs_and_labels, num_items_in_batch=None: own(
            *outputs_and_labels, num_items_in_batch=items
        )
    try:
        yield
    finally:
        trainer.compute_loss_func = own


def number_of_items(inputs: Batch) -> Tensor | None:
    """Labels that are not ignored, as `Trainer` counts them."""
    labels = inputs.get("labels")
    return (labels != IGNORED).sum() if isinstance(labels, Tensor) else None


def count_loss(trainer: CamCutTrainer, loss: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Adds a batch's loss of evaluation to the number of those that count, and of all. Where no label counts it
    becomes 0, so that `Trainer`, which takes the mean of all, does not get NaN."""
    counts = not is_mean_of_nothing(loss, counted_labels(trainer.model, inputs))
    flags = torch.full((trainer.args.eval_batch_size,), float(counts), device=loss.device)
    # As many as the losses that Trainer takes the mean of; a list with `eval_use_gather_object`.
    flags = torch.as_tensor(trainer.gather_function(flags))
    counted, total = trainer.run.counted
    trainer.run.counted = counted + float(flags.sum()), total + len(flags)
    return loss if counts else loss.nan_to_num()
