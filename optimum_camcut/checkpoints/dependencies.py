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
"""What depends on what in a block: which outputs of its linear maps belong to one head or neuron.

One feature after another of each map's output is changed, on random input and in float64, and seen which inputs of the
other maps change. A feature that changes a part of a map's inputs belongs to the units there; one that changes all of
them, by way of the residual stream or a norm, belongs to none. What hangs together is a unit: a neuron, or a head with
all that lies in its fused maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..surgery.streams import Stop, forward_to_stop


ROWS = 256  # changed features at once
PRIME = 7  # rows by which to tell what has a row for each example
STEP = 10.0  # what features are changed by: enough to get any unit past its activation function
# Of the largest input: what differs by less is rounding.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


class NotDerived(ValueError):
    """What cannot be cut by what was found, and why."""


@dataclass(frozen=True)
class Units:
    """What flows into an output projection by units.

    Args:
        output: path of the projection in the block.
        labels: of each of its inputs, the number of the unit.
        maps: path of each map whose outputs belong to these units -> of each output its unit, or -1.
        mixes: whether one token's outputs change another's inputs, as in attention.
        whole: paths of maps of which each output reaches all units.
    """

    output: str
    labels: Tensor
    maps: Mapping[str, Tensor]
    mixes: bool
    whole: tuple[str, ...] = ()


def linear_maps(block: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    return {path: module for path, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def find_stacks(model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, list[str]]:
    """Path of each list of blocks in the base model -> paths of the blocks in the model, of those that run.

    A list counts if all in it are of one class, take hidden states, and give them in the same shape.
    """
    base = next(path for path, module in model.named_modules() if module is model.base_model)
    start = f"{base}." if base else ""
    lists = {
        path: module
        for path, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(each) for each in module}) == 1
    }
    found: dict[str, list[str]] = {}
    for path, module in reversed(lists.items()):  # inner ones first
        if any(inner.startswith(f"{path}.") for inner in found):
            continue
        if len(linear_maps(module[0])) >= 2 and _keeps_shape(model, module[0], batch):
            found[path] = [f"{start}{path}.{name}" for name in module._modules]
    return dict(reversed(found.items()))


def _keeps_shape(model: PreTrainedModel, block: nn.Module, batch: Mapping[str, Any]) -> bool:
    shapes: list[Any] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given: Any = args[0] if args else kwargs.get("hidden_states")
        result = output[0] if isinstance(output, tuple | list) else output
        both = isinstance(given, Tensor) and isinstance(result, Tensor)
        shapes.append(both and given.dim() == 3 and given.shape == result.shape)
        raise Stop

    handle = block.register_forward_hook(see, with_kwargs=True)
    try:
        forward_to_stop(model, batch)
    finally:
        handle.remove()
    return bool(shapes) and bool(shapes[0])


def dependencies(
    model: PreTrainedModel, block: nn.Module, source: str, batch: Mapping[str, Any], first_token: bool = False
) -> dict[str, Tensor]:
    """Which inputs of each map of a block change with each output of one of them: path -> bool of shape `(outputs,
    tokens, inputs)`.

    Args:
        batch: of one example.
        first_token: change the first token alone.
    """
    maps = linear_maps(block)
    outputs = maps[source].weight.shape[isinstance(maps[source], Conv1D)]
    several = {name: torch.cat([v] * PRIME) if isinstance(v, Tensor) and v.dim() else v for name, v in batch.items()}
    shape = _seen(model, block, several, None)[1].get(source)
    if shape is None:  # it does not run
        return {}
    if shape[0] % PRIME:  # what it gives is the same for all rows: feature by feature
        before = _seen(model, block, batch, None)[0]
        changed = [_seen(model, block, batch, (source, feature))[0] for feature in range(outputs)]
        return {path: torch.stack([differs(each[path], before[path]) for each in changed]) for path in before}
    parts = [
        _change(model, block, source, batch, range(outputs)[i : i + ROWS], first_token)
        for i in range(0, outputs, ROWS)
    ]
    return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}


def differs(values: Tensor, others: Tensor) -> Tensor:
    if not others.numel():
        return torch.zeros(values.shape, dtype=torch.bool)
    return (values - others).abs() > TOLERANCES[others.dtype] * others.abs().max().clamp(min=1.0)


def _seen(
    model: PreTrainedModel, block: nn.Module, batch: Mapping[str, Any], changed: tuple[str, int] | None
) -> tuple[dict[str, Tensor], dict[str, torch.Size]]:
    """What each map of a block gets, `(tokens, inputs)`, and the shape of what it gives, with one feature changed."""
    inputs: dict[str, Tensor] = {}
    shapes: dict[str, torch.Size] = {}

    def watch(path: str) -> Callable[..., Tensor]:
        def see(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs.setdefault(path, args[0].reshape(-1, args[0].shape[-1]))
            shapes.setdefault(path, output.shape)
            if changed is None or changed[0] != path:
                return output
            output = output.clone()
            output.view(-1, output.shape[-1])[::2, changed[1]] += STEP
            return output

        return see

    with ExitStack() as stack:
        for path, module in linear_maps(block).items():
            stack.callback(module.register_forward_hook(watch(path)).remove)
        stack.callback(block.register_forward_hook(stop).remove)
        forward_to_stop(model, batch)
    return inputs, shapes


def _change(
    model: PreTrainedModel,
    block: nn.Module,
    source: str,
    batch: Mapping[str, Any],
    features: Sequence[int],
    first_token: bool,
) -> dict[str, Tensor]:
    rows = len(features) + 1  # the last is left as it is
    seen: dict[str, Tensor] = {}
    repeated = {
        name: value.repeat_interleave(rows, 0) if isinstance(value, Tensor) and value.dim() else value
        for name, value in batch.items()
    }

    def change(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        by_row = output.reshape(rows, -1, output.shape[-1]).clone()
        every = torch.arange(by_row.shape[1])
        # Not all tokens alike: attention does not see what all keys have in common.
        tokens = every[:1] if first_token else every[::2]
        by_row[torch.arange(rows - 1)[:, None], tokens[None], torch.tensor(features)[:, None]] += STEP
        return by_row.view_as(output)

    with ExitStack() as stack:
        for path, module in linear_maps(block).items():

            def see(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                if len(args[0]) % rows == 0:  # else it is the same for all rows
                    seen.setdefault(path, args[0].reshape(rows, -1, args[0].shape[-1]))

            stack.callback(module.register_forward_pre_hook(see).remove)
        stack.callback(block.get_submodule(source).register_forward_hook(change).remove)
        stack.callback(block.register_forward_hook(stop).remove)
        forward_to_stop(model, repeated)
    return {path: differs(each[:-1], each[-1:]) for path, each in seen.items() if path != source}


def stop(*_: Any) -> None:
    raise Stop


def find_units(model: PreTrainedModel, block: nn.Module, batch: Mapping[str, Any]) -> list[Units]:
    """The output projections of a block into which several units flow, with all that belongs to these."""
    changes = {path: dependencies(model, block, path, batch) for path in linear_maps(block)}
    inputs = {path: module.weight.shape[not isinstance(module, Conv1D)] for path, module in linear_maps(block).items()}
    reaches = {(a, b) for a, reached in changes.items() for b, each in reached.items() if each.any()}
    found = []
    for output, size in inputs.items():
        through = {a for a, c in reaches if (c, output) in reaches and c != output}  # by way of another map
        feeding = {a: changes[a][output].any(1) for a in changes if (a, output) in reaches and a not in through}
        # What reaches all inputs mixes all units: so a norm over the queries of all heads.
        whole = [path for path, each in feeding.items() if each.all(1).any()]
        partial = {path: each[~each.all(1)] for path, each in feeding.items() if (each.any(1) & ~each.all(1)).any()}
        labels = _join(size, partial.values())
        if not partial or int(labels.max()) == 0:
            continue
        maps = {path: _labels_of(feeding[path], labels) for path in partial}
        mixes = any(bool(dependencies(model, block, path, batch, True)[output][:, 1:].any()) for path in partial)
        found.append(Units(output, labels, maps, mixes, tuple(whole)))
    # What one projection gives and another map reads feature by feature is the residual stream, without a norm.
    kept: list[Units] = []
    # As the stream meets them, attention first: a narrow map inside of it is no stream.
    for each in sorted(found, key=lambda units: (not units.mixes, sum(b == units.output for _, b in reaches))):
        if not {other.output for other in kept} & set(each.maps):
            kept.append(each)
    return [each for each in found if any(each is other for other in kept)]


def _join(size: int, reached: Any) -> Tensor:
    """Numbers of the units that inputs belong to: those that change together are of one."""
    parent = list(range(size))

    def root(each: int) -> int:
        while parent[each] != each:
            parent[each] = parent[parent[each]]
            each = parent[each]
        return each

    for rows in reached:
        for row in rows:
            together = row.nonzero().flatten().tolist()
            for other in together[1:]:
                parent[root(other)] = root(together[0])
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(root(each), len(numbers)) for each in range(size)])


def _labels_of(reached: Tensor, labels: Tensor) -> Tensor:
    """The unit of each output of a map; -1 for those that reach none."""
    first = reached.float().argmax(1)
    return torch.where(reached.any(1), labels[first], -1)


def layout(labels: Tensor) -> tuple[list[int], int]:
    """How features lie by units: features of a unit in each of the maps fused side by side, and how many behind them
    belong to none.

    Raises:
        `NotDerived`: they lie in another order.
    """
    values, lengths = torch.unique_consecutive(labels, return_counts=True)
    runs = list(zip(values.tolist(), lengths.tolist()))
    rest = runs.pop()[1] if runs and runs[-1][0] == -1 else 0
    units = int(labels.max()) + 1
    if len(runs) % units or any(value != number % units for number, (value, _) in enumerate(runs)):
        raise NotDerived("its features do not lie unit by unit")
    widths = [{length for _, length in runs[start : start + units]} for start in range(0, len(runs), units)]
    if any(len(each) > 1 for each in widths):
        raise NotDerived("its units are not of one size")
    return [each.pop() for each in widths], rest


def reached_inputs(
    model: PreTrainedModel,
    block: nn.Module,
    parameter: nn.Parameter,
    place: int,
    indices: Sequence[int],
    output: str,
    batch: Mapping[str, Any],
) -> list[Tensor]:
    """Which inputs of a projection change with each of some slices of a parameter: bool of shape `(inputs,)`."""
    before, reached = _input_of(model, block, output, batch), []
    for index in indices:
        with _moved(parameter, place, index):
            reached.append(differs(_input_of(model, block, output, batch), before).flatten(0, -2).any(0))
    return reached


@contextmanager
def _moved(parameter: nn.Parameter, place: int, index: int) -> Iterator[None]:
    before = parameter.detach().clone()
    part = parameter.select(place, index)
    part.add_(STEP * torch.rand(part.shape, generator=torch.Generator().manual_seed(0)).to(part))  # not all alike
    try:
        yield
    finally:
        parameter.copy_(before)


def _input_of(model: PreTrainedModel, block: nn.Module, output: str, batch: Mapping[str, Any]) -> Tensor:
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Stop

    handle = block.get_submodule(output).register_forward_pre_hook(see)
    try:
        forward_to_stop(model, batch)
    finally:
        handle.remove()
    return seen[0]
