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
"""The loss to score by, and batches that have none because no label in them counts."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedModel

from .batches import Batch, count_examples
from .sums import RunningSums


logger = logging.getLogger(__name__)

LossFunction = Callable[[PreTrainedModel, Batch], Tensor]

IGNORED = -100  # the label of what no loss counts
EXAMPLES = "examples"  # the name of their number among the sums
SCORED, SKIPPED = "batches with labels", "batches without labels"  # the names of their numbers among the sums


class CheckedLoss:
    """A loss function that refuses a loss with which all scores would be NaN.

    Args:
        function: `(model, batch) -> scalar mean loss`.
        sums (`RunningSums`): know which batch it is.

    Attributes:
        of_nothing (`bool`): no label of the last batch counted. Its loss, a mean over nothing, is given as 0.
    """

    def __init__(self, function: LossFunction, sums: RunningSums) -> None:
        self.function, self.sums, self.of_nothing = function, sums, False
        self._losses: list[Tensor] = []  # to be checked
        self._labels: Callable[[], Any] = lambda: None  # the last ones, if they are still there
        self._counted: int | None = None  # how many of them count

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        loss, labels = self.function(model, batch), batch.get("labels")
        # To read a number of the device is to wait for it: not in every pass.
        if isinstance(labels, Tensor) and labels is not self._labels():
            self._labels, self._counted = weakref.ref(labels), counted_labels(model, batch)
        counted = self._counted if isinstance(labels, Tensor) else None
        self.of_nothing = is_mean_of_nothing(loss, counted)
        if self.of_nothing:
            return loss.nan_to_num()
        self._losses.append(loss.detach())
        return loss

    def check(self) -> None:
        """Looks at all losses since the last check, in one go.

        Raises:
            `ValueError`: one of them is NaN or infinite.
        """
        losses, self._losses = self._losses, []
        if losses and not torch.isfinite(torch.stack(losses)).all():
            loss = next(loss for loss in losses if not torch.isfinite(loss).all())
            number = self.sums.batches * PartialState().num_processes + PartialState().process_index
            raise ValueError(
                f"the loss of scoring batch {number} is {loss.tolist()}, with which all scores are NaN or infinite; "
                "look for a NaN loss or weights, or overflow in half precision"
            )


def model_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The loss that a model computes by itself."""
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs.loss
    if loss is None:
        raise ValueError(
            f"the model gave no loss for a batch with {sorted(batch)}; this scoring method needs the labels in the "
            f"batch and a model with a head that computes a loss (this is a {type(model).__name__}), or a "
            "loss_function; or use activation, magnitude or random, which need none"
        )
    return loss


def counted_labels(model: nn.Module, batch: Batch) -> int | None:
    """How many labels of a batch count in its loss: those that are not -100, and that a causal language model does not
    shift away. None if the batch has no labels, or none that are class numbers."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() == 0:
        return None
    shifted = labels.dim() > 1 and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return int((labels[..., int(shifted) :] != IGNORED).sum())


def is_mean_of_nothing(loss: Tensor, counted: int | None) -> bool:
    """Whether no label of a batch counts, so that its loss is NaN (a mean) or 0 (a sum), and the gradient 0.

    Args:
        counted: see `counted_labels`.
    """
    return counted == 0 and not loss.nan_to_num().any()


def loss_shares(model: nn.Module, pieces: list[Batch]) -> list[float]:
    """What share of a batch's mean loss comes from each of its pieces: as many labels as count, or as many examples
    if none does or labels are no class numbers."""
    if len(pieces) == 1:
        return [1.0]
    labels = [counted_labels(model, piece) for piece in pieces]
    counts = [count for count in labels if count is not None]
    if len(counts) < len(pieces) or not any(counts):
        counts = [count_examples(piece) for piece in pieces]
    return [count / sum(counts) for count in counts]


def each_loss(
    model: nn.Module, pieces: list[Batch], loss_function: CheckedLoss, all_run: bool
) -> Iterator[tuple[Batch, Callable[[], Tensor]]]:
    """Each piece of a batch with its part of the loss, summed over the batch's examples, so that each keeps its own
    gradient. Pieces of which no label counts are left out, unless `all_run`. Behind the last, losses are checked."""
    examples = sum(map(count_examples, pieces))
    for piece, share in zip(pieces, loss_shares(model, pieces)):
        if share or all_run:
            yield piece, partial(_part, loss_function, model, piece, share * examples)
    loss_function.check()


def _part(loss_function: LossFunction, model: PreTrainedModel, batch: Batch, factor: float) -> Tensor:
    return loss_function(model, batch) * factor


def tell_skipped(totals: Mapping[str, Tensor]) -> None:
    """Says how many batches were skipped because no label in them counts.

    Args:
        totals: the sums over all processes, with the numbers of the batches that were `SCORED` and `SKIPPED`.

    Raises:
        `ValueError`: all of them were.
    """
    scored, skipped = (int(totals.get(name, torch.zeros(1)).sum()) for name in (SCORED, SKIPPED))
    if skipped and not scored:
        raise ValueError(
            f"all labels in the {skipped} scoring batches are {IGNORED}, which no loss counts: there is nothing to "
            "score on; look at what makes the labels (masking, truncation), or give larger batches"
        )
    if skipped and PartialState().is_main_process:
        logger.warning(
            "%d of %d scoring batches were skipped: all of their labels are %d, which no loss counts",
            skipped,
            scored + skipped,
            IGNORED,
        )
