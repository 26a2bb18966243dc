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

"""A model that can take any size in any layer, at the price of exchanging output projections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.groups import PrunableGroup
from ..architectures.structure import linear_map
from ..scoring.batches import Batch, count_examples, mask_for
from ..scoring.capture import ActivationCapture


DAMPING = 1e-2  # of the mean squared activation


@dataclass
class Sizes:
    """All sizes of one group, whose units go in one order, the last first.

    With the Gram matrix XᵀX of the inputs of the output projection, in that order, and its Cholesky factor L, what is
    lost of ||XW||² where the first n inputs are left and their weights are solved for anew is the sum of the squares
    of LᵀW below its n-th row; those weights are what solves L₁₁ᵀ W' = (LᵀW)₁. One factor serves all sizes.

    Args:
        positions (`Tensor`): of the inputs of the projection, in the order of the units.
        errors (`np.ndarray`): what is lost with 0 to all units, `(units + 1,)`.
        width (`int`): inputs for each unit.
        factor (`Tensor`, *optional*): L. Without it the weights that are left stay as they are.
        rotated (`Tensor`, *optional*): LᵀW, under a first row for the bias, if there is one.
    """

    positions: Tensor
    errors: np.ndarray
    width: int
    factor: Tensor | None = None
    rotated: Tensor | None = None

    @classmethod
    def of(cls, gram: Tensor, weight: Tensor, bias: Tensor | None, order: Sequence[int], rebuilt: bool) -> Sizes:
        """From XᵀX, where the first input is 1, and the weights, `(inputs, outputs)`."""
        width = len(weight) // len(order)
        positions = (torch.tensor(order)[:, None] * width + torch.arange(width)).flatten().to(gram.device)
        weight = weight.to(gram)[positions]
        ends = np.arange(len(order) + 1) * width
        if not rebuilt:
            inner = gram[1:, 1:][positions][:, positions]
            lost = (inner * (weight @ weight.T)).flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
            return cls(positions, np.append(lost.cpu().numpy(), 0.0)[ends].clip(min=0), width)
        biased = int(bias is not None)
        rows = torch.cat([torch.zeros(biased, dtype=torch.long, device=gram.device), positions + 1])
        matrix = gram[rows][:, rows]
        diagonal = matrix.diagonal()
        diagonal[biased:] += DAMPING * (diagonal[biased:].mean() or 1.0)
        factor = torch.linalg.cholesky(matrix)
        whole = weight if bias is None else torch.cat([bias.to(gram)[None], weight])
        rotated = factor.T @ whole
        lost = rotated[biased:].square().sum(1).flip(0).cumsum(0).flip(0)
        errors = np.append(lost.cpu().numpy(), 0.0)[ends]
        return cls(positions, errors, width, factor.float(), rotated.float())

    def weights(self, units: int, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights, `(inputs, outputs)`, with zeros for the units that are gone, and the bias, if it changes."""
        left, found = self.positions[: units * self.width], torch.zeros_like(weight)
        if self.factor is None or self.rotated is None:
            found[left] = weight[left]
            return found, None
        biased = len(self.factor) - len(self.positions)
        end = biased + len(left)
        upper = self.factor[:end, :end].T
        solved = torch.linalg.solve_triangular(upper, self.rotated[:end], upper=True).to(weight.dtype)
        found[left] = solved[biased:]
        return found, solved[0] if biased else None


class Supernet:
    """Gives the output projections of a model what they have at chosen sizes. Entered as a context; left, the model is
    as it was.

    Args:
        model (`PreTrainedModel`): whole, and in memory.
        groups (`Sequence[PrunableGroup]`): of heads and neurons.
        orders (`Mapping[str, Sequence[int]]`): positions of the units of each, the most important first.
        batches (`Iterable[Batch]`): to solve the projections from.
        rebuilt (`bool`): whether what is left of a projection is solved for anew.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[PrunableGroup],
        orders: Mapping[str, Sequence[int]],
        batches: Iterable[Batch],
        rebuilt: bool,
    ) -> None:
        self.model, self.groups = model, {group.name: group for group in groups}
        grams = _grams(model, groups, batches)
        self.sizes = {}
        for group in groups:  # each Gram matrix goes as soon as it has been read
            weight, bias = self._parameters(group.name)
            self.sizes[group.name] = Sizes.of(grams.pop(group.name), weight, bias, orders[group.name], rebuilt)
        self.counts = {group.name: group.size for group in groups}
        self.before: dict[str, tuple[Tensor, Tensor | None]] = {}

    def _module(self, name: str) -> Any:
        return linear_map(self.model, self.groups[name].output.module)

    def _parameters(self, name: str) -> tuple[Tensor, Tensor | None]:
        module = self._module(name)
        return _by_input(module, module.weight.detach()), None if module.bias is None else module.bias.detach()

    @torch.no_grad()
    def set(self, counts: Mapping[str, int]) -> None:
        """Gives every group so many units."""
        for name, count in counts.items():
            if count == self.counts[name]:
                continue
            weight, bias = self._parameters(name)
            dense = self.before.setdefault(name, (weight.clone(), None if bias is None else bias.clone()))
            whole = count == self.groups[name].size
            new_weight, new_bias = dense if whole else self.sizes[name].weights(count, dense[0])
            weight.copy_(new_weight)
            new_bias = dense[1] if new_bias is None else new_bias
            if bias is not None and new_bias is not None:
                bias.copy_(new_bias)
            self.counts[name] = count

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """The output projections require gradients meanwhile, for `parts`."""
        parameters = [parameter for name in self.groups for parameter in self._module(name).parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def parts(self, value: Tensor) -> list[float]:
        """The part of each group in what the model gives at these sizes: half of the sum of gradient times change over
        the weights and the bias of its projection."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.groups}
        cut = [name for name, group in self.groups.items() if self.counts[name] < group.size]
        if not cut:
            return [0.0] * len(found)
        changed = [(name, self._module(name)) for name in cut]
        biased = [(name, module) for name, module in changed if module.bias is not None]
        parameters = [*(module.weight for _, module in changed), *(module.bias for _, module in biased)]
        gradients = iter(torch.autograd.grad(value, parameters, allow_unused=True))
        for number, modules in enumerate((changed, biased)):
            for (name, module), gradient in zip(modules, gradients):
                now, dense = self._parameters(name)[number], self.before[name][number]
                if gradient is not None and now is not None and dense is not None:
                    gradient = gradient if number else _by_input(module, gradient)
                    found[name].append((gradient.float() * (now - dense).float()).sum().to(value.device))
        # Read in one go: the device is waited for once.
        read = iter(torch.stack([each for sums in found.values() for each in sums] or [value.new_zeros(())]).tolist())
        return [sum(0.5 * next(read) for _ in sums) for sums in found.values()]

    def __enter__(self) -> Supernet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set({name: group.size for name, group in self.groups.items()})


def _by_input(module: nn.Module, values: Tensor) -> Tensor:
    """What is laid out as the weight of a linear layer, as `(inputs, outputs)`."""
    return values if isinstance(module, Conv1D) else values.T


def _grams(model: PreTrainedModel, groups: Sequence[PrunableGroup], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Group name -> XᵀX over all real tokens, of the inputs of its output projection below a first one that is 1."""
    grams: dict[str, Tensor] = {}

    def run() -> None:
        model(**batch)

    def add(group: PrunableGroup, activation: Tensor, gradient: None) -> None:
        tokens = activation.shape[1]
        mask = mask_for(batch, group.name, model, size, tokens).to(activation.device) > 0
        inputs = activation.flatten(2)[mask].float()
        inputs = torch.cat([inputs.new_ones(len(inputs), 1), inputs], dim=1)
        gram = (inputs.T @ inputs).double()
        grams[group.name] = grams[group.name] + gram if group.name in grams else gram

    with ActivationCapture(model, groups) as capture:
        for batch in batches:
            size = count_examples(batch)
            capture.activations(run, size, add)
    return grams
