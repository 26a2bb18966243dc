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
"""Scores from the second moments of what flows into an output projection and of the gradient behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup
from ..architectures.structure import linear_map
from ..config import PruningConfig
from ..methods.registry import Scorer
from ..utils.sharding import compute_device, is_sharded
from .batches import Batch, count_examples
from .capture import ActivationCapture
from .forward import check_inputs, output_weight, real_tokens
from .loss import EXAMPLES, SCORED, SKIPPED, CheckedLoss, each_loss, tell_skipped
from .sums import RunningSums, widest
from .weights import EachBatch


GRADIENTS = ".gradients"  # after the name of a group: the sum of what is behind its projection


def score_curvature(
    model: PreTrainedModel,
    groups: list[PrunableGroup],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> dict[str, Tensor]:
    """By XXᵀ of the inputs of an output projection, a mean over tokens, and by GGᵀ of the loss gradients behind it,
    a sum over tokens and a mean over examples. Tokens of which no gradient comes are not read: they count in neither.

    Raises:
        `ValueError`: groups inside of experts.
    """
    check_inputs(groups, scorer)
    for group in groups:  # a projection that is never called reads nothing
        outputs = output_weight(model, group).shape[1]
        for name, size in ((group.name, group.size * group.output.width + 1), (group.name + GRADIENTS, outputs)):
            sums.values.setdefault(name, torch.zeros(size, size, dtype=torch.float64))
    for name in (EXAMPLES, SCORED, SKIPPED):
        sums.values.setdefault(name, torch.zeros(1, dtype=torch.float64))

    def score(pieces: list[Batch]) -> Callable[[], None]:
        examples = sum(map(count_examples, pieces))
        found = {SCORED: torch.ones(1).double(), EXAMPLES: torch.tensor([float(examples)]).double()}
        for piece, loss in each_loss(model, pieces, loss_function, all_run=is_sharded(model)):

            def observe(group: PrunableGroup, activation: Tensor, gradient: Tensor, piece: Batch = piece) -> None:
                real = real_tokens(piece, group.name, model, activation) & (gradient != 0).any(-1).any(-1)
                rows = real.flatten().nonzero().squeeze(1)  # one wait for the device, not two
                values, behind = (each.flatten(0, 1)[rows].flatten(1) for each in (activation, gradient))
                values = torch.cat([values.new_ones(len(values), 1), values], dim=1)
                with torch.autocast(values.device.type, enabled=False):
                    inputs = _of_biased(values) if _bias(model, group) is not None else values.T @ values
                    for name, product in ((group.name, inputs), (group.name + GRADIENTS, behind.T @ behind)):
                        found[name] = found[name].add_(product) if name in found else product

            capture.gradients(loss, count_examples(piece), observe)
        if loss_function.of_nothing:
            found = {SKIPPED: torch.ones(1).double()}

        def add() -> None:
            for name, value in found.items():
                sums.add(name, value)

        return add

    with ActivationCapture(model, groups, behind=True) as capture:
        each_batch(score)
    totals, scores = sums.reduce(PartialState().device), {}
    tell_skipped(totals)
    device = compute_device(model)
    device = device if widest(device) == torch.float64 else torch.device("cpu")
    for group in groups:
        moments, gradients = (
            totals.pop(name).to(device, torch.float64) for name in (group.name, group.name + GRADIENTS)
        )
        moments /= moments[0, 0].clamp(min=1)
        inputs, mean = moments[1:, 1:], moments[0, 1:]
        if _bias(model, group) is not None:
            inputs = inputs - torch.outer(mean, mean)  # the bias makes up for what is always there
        weight, examples = output_weight(model, group).to(device), float(totals[EXAMPLES])
        scores[group.name] = scorer.function(weight, inputs, gradients / examples, group.size).float().cpu()
    return scores


def _bias(model: PreTrainedModel, group: PrunableGroup) -> Tensor | None:
    return getattr(linear_map(model, group.output.module), "bias", None)


def _of_biased(values: Tensor) -> Tensor:
    """XXᵀ as exact as float64 where it matters: when the mean is taken out of a product in float32, what varies little
    would be left as rounding.

    Args:
        values (`Tensor`): `(tokens, inputs)`.
    """
    wide = widest(values.device)
    middle = values.sum(0) / max(len(values), 1)
    centered = values - middle
    rest, middle = centered.sum(0, dtype=wide), middle.to(wide)
    beside = rest + len(values) / 2 * middle
    return (centered.T @ centered).to(wide).addr_(middle, beside).addr_(beside, middle)
