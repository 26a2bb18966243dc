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
"""Scores without a loss or gradients: by what flows into the output projections and by their weights, and by what a
block does to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.groups import PrunableGroup, body_of
from ..architectures.structure import blocks_of, linear_map
from ..config import PruningConfig
from ..methods.registry import Scorer
from ..utils.sharding import whole
from .batches import Batch, count_examples, mask_for
from .capture import ActivationCapture
from .loss import CheckedLoss
from .sums import RunningSums, widest
from .weights import EachBatch


Found = list[tuple[str, Tensor]]  # names of sums, and what one batch adds to them


def score_inputs(
    model: PreTrainedModel,
    groups: list[PrunableGroup],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> dict[str, Tensor]:
    """By the means of the features that an output projection reads, and of their squares, over all real tokens.

    Raises:
        `ValueError`: groups inside of experts.
    """
    check_inputs(groups, scorer)
    for group in groups:  # a projection that is never called reads nothing
        sums.values.setdefault(group.name, torch.zeros(3, group.size, group.output.width, dtype=torch.float64))

    def watch(piece: Batch, found: Found) -> None:
        size = count_examples(piece)

        def observe(group: PrunableGroup, activation: Tensor, gradient: None) -> None:
            values, wide = activation[real_tokens(piece, group.name, model, activation)], widest(activation.device)
            counts = values.new_full(values.shape[1:], len(values), dtype=wide)
            total, square = values.sum(0, dtype=wide), values.square().sum(0, dtype=wide)
            found.append((group.name, torch.stack([total, square, counts])))

        capture.activations(lambda: model(**piece), size, observe)

    with ActivationCapture(model, groups) as capture:
        each_batch(lambda pieces: _score(watch, sums, pieces))
    totals, scores = sums.reduce(PartialState().device), {}
    for group in groups:
        total, square, count = totals[group.name].double()
        weight = output_weight(model, group).reshape(group.size, group.output.width, -1)
        count = count.clamp(min=1)
        scores[group.name] = scorer.function(weight, total / count, square / count).float()
    return scores


def check_inputs(groups: Sequence[PrunableGroup], scorer: Scorer) -> None:
    """Raises `ValueError` for groups inside of experts if the method scores by what flows into projections."""
    inside = [group.name for group in groups if group.observed != "inputs"]
    if inside and scorer.source in ("input", "curvature"):
        raise ValueError(f"the method {scorer.name!r} scores no units of experts, such as {inside[0]!r}")


def score_blocks(
    model: PreTrainedModel,
    groups: list[PrunableGroup],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> dict[str, Tensor]:
    """By the residual stream before and after a block; its sub-layers share the block's score equally."""
    body = body_of(model)
    inside = {
        block.path: [group.name for group in groups if group.name.startswith(f"{block.name}.")]
        for block in blocks_of(body)
    }
    inside = {path: names for path, names in inside.items() if names}
    for path in inside:
        sums.values.setdefault(path, torch.zeros(2, dtype=torch.float64))

    def watch(piece: Batch, found: Found) -> None:
        def observe(path: str, module: nn.Module, args: Sequence[Any], keywords: Mapping[str, Any], out: Any) -> None:
            before = args[0] if args else keywords["hidden_states"]
            after = out[0] if isinstance(out, tuple | list) else out
            shape = (*before.shape[:1], -1, before.shape[-1])  # images may be maps of two dimensions
            before, after = before.reshape(shape), after.reshape(shape)
            real, wide = real_tokens(piece, inside[path][0], model, before), widest(before.device)
            values = scorer.function(before[real].float(), after[real].float())
            found.append((path, torch.stack([values.sum(dtype=wide), values.new_full((), len(values), dtype=wide)])))

        with ExitStack() as stack, torch.no_grad():
            for path in inside:
                module = body.get_submodule(path)
                stack.callback(module.register_forward_hook(partial(observe, path), with_kwargs=True).remove)
            model(**piece)

    each_batch(lambda pieces: _score(watch, sums, pieces))
    totals, scores = sums.reduce(PartialState().device), dict[str, Tensor]()
    for path, names in inside.items():
        total, count = totals[path].double()
        scores |= {name: (total / count.clamp(min=1) / len(names)).float().reshape(1) for name in names}
    return scores


def _score(watch: Callable[[Batch, Found], None], sums: RunningSums, pieces: list[Batch]) -> Callable[[], None]:
    found: Found = []
    for piece in pieces:
        watch(piece, found)

    def add() -> None:
        for name, value in found:
            sums.add(name, value)

    return add


def real_tokens(batch: Batch, name: str, model: nn.Module, values: Tensor) -> Tensor:
    """Which tokens of `values` are real: `(batch, tokens)`."""
    return mask_for(batch, name, model, *values.shape[:2]).to(values.device) > 0


def output_weight(model: nn.Module, group: PrunableGroup) -> Tensor:
    """Of the output projection: `(inputs, outputs)`, float64, on the CPU."""
    module = linear_map(model, group.output.module)
    with align_module_device(module):  # in memory, if it is offloaded
        weight = whole(module.weight.detach()).double().cpu()
    return weight if isinstance(module, Conv1D) else weight.T
