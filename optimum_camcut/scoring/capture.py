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
"""Watching what flows into the output projections, and its gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..architectures.experts import by_expert, output_norms, watched_inside
from ..architectures.groups import PrunableGroup


# Takes a group with its activation and its gradient, tensors; None in the place of one that is not asked for.
Observe: TypeAlias = Callable[[PrunableGroup, Any, Any], None]
Spread: TypeAlias = Callable[[Tensor], Tensor]  # from what flows through a module to `(..., units * width)`


class ActivationCapture:
    """Watches the input of each group's output projection, where everything about a unit flows through one place. Of
    experts it is the router's weight of each, of a sub-layer with experts what it gives.

    With all parameters frozen, the graph starts at these inputs, so no gradient of a weight is ever computed.

    Args:
        model (`nn.Module`): entered as a context, it has the hooks; left, it has none.
        groups: whose activations to watch.
        norms (`bool`): of experts, watch the norms of what they give, weighted by the router. Those have no gradients.
        behind (`bool`): of projections, the gradient is that of what they give, in place of that of their input.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[PrunableGroup], norms: bool = False, behind: bool = False
    ) -> None:
        self.model, self.groups, self.norms, self.behind = model, groups, norms, behind
        self._hooks = ExitStack()
        self._run: _Run | None = None

    def __enter__(self) -> ActivationCapture:
        for group in self.groups:
            path, watch = group.output.module, partial(self._forward, group)
            if group.observed == "inputs" and self.behind:
                self._before(path, lambda _, args: self._start_graph(args[0]))
                self._behind(path, lambda _, args, result, watch=watch: watch(args[0], result=result))
            elif group.observed == "inputs":
                self._before(path, lambda _, args, watch=watch: watch(args[0]))
            elif group.observed == "outputs":
                added = next(path for path, gives in group.bypass.items() if gives.startswith("zeros"))
                self._behind(added, lambda _, args, result, watch=watch: watch(_first(result)))
            elif group.observed == "inside":
                module = self.model.get_submodule(path.rpartition(".")[0])
                self._hooks.enter_context(watched_inside(module, partial(_inside, watch, group)))
            elif self.norms:
                path = group.slices[0].module.rpartition(".")[0]
                self._before(path, partial(_norms, watch, group))
            else:
                self._behind(path, partial(_routed, watch, group))
        return self

    def _before(self, path: str, hook: Callable[..., None]) -> None:
        self._hooks.callback(self.model.get_submodule(path).register_forward_pre_hook(hook).remove)

    def _behind(self, path: str, hook: Callable[..., None]) -> None:
        self._hooks.callback(self.model.get_submodule(path).register_forward_hook(hook).remove)

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def activations(self, forward: Callable[[], object], batch_size: int, observe: Observe) -> None:
        """Runs `forward` and hands each group's activation to `observe`, with None for the gradient."""
        with torch.no_grad():
            self._observe(forward, _Run(batch_size, observe, activations=True, gradients=False))

    def gradients(
        self, loss: Callable[[], Tensor], batch_size: int, observe: Observe, activations: bool = True
    ) -> None:
        """Runs `loss` and its backward pass, and hands each group's gradient to `observe` as soon as it is there.

        Args:
            loss: returns the scalar to differentiate.
            batch_size (`int`): examples in the batch.
            observe: called once a group with its activation (None unless `activations`) and gradient, `torch.Tensor`
                of shape `(batch, tokens, units, width)` each. A module called several times in a forward pass
                (ALBERT, chunked feed-forward) has the tokens of its calls one after another.
            activations (`bool`): whether to keep activations until their gradients arrive.

        Raises:
            `ValueError`: the loss does not depend on any of the groups.
        """

        def forward_and_backward() -> None:
            value = loss()
            if not value.requires_grad:
                raise ValueError("the loss does not depend on any of the groups to be scored")
            run.recomputing = True
            value.backward()

        run = _Run(batch_size, observe, activations, gradients=True, behind=self.behind)
        with torch.enable_grad():
            self._observe(forward_and_backward, run)

    def _observe(self, function: Callable[[], object], run: _Run) -> None:
        self._run = run
        try:
            function()
            for group in self.groups:
                run.emit(group)  # what the loss did not depend on
        finally:
            self._run = None

    def _forward(
        self, group: PrunableGroup, activation: Tensor, spread: Spread | None = None, result: Tensor | None = None
    ) -> None:
        if self._run is not None:
            self._run.forward(group, activation, spread, result)

    def _start_graph(self, activation: Tensor) -> None:
        if self._run is not None:
            activation.requires_grad_(True)


def _first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple | list) else result


def _routed(watch: Callable[..., None], group: PrunableGroup, _: nn.Module, args: Any, result: Any) -> None:
    weights, index = result[1:]
    watch(weights, lambda values: by_expert(values, index, group.size))


def _inside(watch: Callable[..., None], group: PrunableGroup, values: Tensor, index: Tensor) -> None:
    experts = group.experts
    watch(values, lambda values: by_expert(values.view(*index.shape, -1), index, experts).flatten(1))


def _norms(watch: Callable[..., None], group: PrunableGroup, module: nn.Module, args: Sequence[Tensor]) -> None:
    hidden, index, weights = args
    watch(by_expert(output_norms(module, hidden, index, weights), index, group.size))


class _Run:
    """What one run has seen so far: group name -> one tensor a call of its output projection."""

    def __init__(
        self, batch_size: int, observe: Observe, activations: bool, gradients: bool, behind: bool = False
    ) -> None:
        self.batch_size, self.observe, self.behind = batch_size, observe, behind
        self.keep_activations, self.keep_gradients = activations, gradients
        self.activations: dict[str, list[Tensor]] = defaultdict(list)
        self.gradients: dict[str, list[Tensor]] = defaultdict(list)
        self.missing: dict[str, int] = defaultdict(int)
        self.spread: dict[str, list[Spread | None]] = defaultdict(list)
        self.recomputing = False  # gradient checkpointing runs blocks again in the backward pass

    def forward(
        self, group: PrunableGroup, activation: Tensor, spread: Spread | None = None, result: Tensor | None = None
    ) -> None:
        if self.recomputing:
            activation.requires_grad_(True)  # as it was the first time
            return
        self.spread[group.name].append(spread)
        if self.keep_activations:
            self.activations[group.name].append(activation.detach())
        if self.keep_gradients:
            if not activation.requires_grad:
                activation.requires_grad_(True)
            watched, gradients = activation if result is None else result, self.gradients[group.name]
            watched.register_hook(partial(self.backward, group, len(gradients)))
            gradients.append(watched.new_zeros(()).expand(watched.shape))  # stays so if no gradient ever comes
            self.missing[group.name] += 1

    def backward(self, group: PrunableGroup, call: int, gradient: Tensor) -> None:
        self.gradients[group.name][call] = gradient
        self.missing[group.name] -= 1
        if self.missing[group.name] == 0:
            self.emit(group)

    def emit(self, group: PrunableGroup) -> None:
        activations = self.activations.pop(group.name, [])
        gradients = self.gradients.pop(group.name, [])
        spread = self.spread.pop(group.name, [])
        if activations or gradients:
            units = group.size
            of_gradients = units if not self.behind else 1
            self.observe(group, self.join(activations, spread, units), self.join(gradients, spread, of_gradients))

    def join(self, calls: list[Tensor], spread: Sequence[Spread | None], units: int) -> Tensor | None:
        if not calls:
            return None
        calls = [values if to_units is None else to_units(values) for values, to_units in zip(calls, spread)]
        joined = calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)
        # Multiple choice flattens (batch, choices, tokens): its choices become more tokens of the same example.
        return joined.reshape(self.batch_size, -1, units, joined.shape[-1] // units).float()
