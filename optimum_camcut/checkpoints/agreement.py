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
"""Whether an entry and the machine agree on what hangs together: of every output of a linear map, which units of an
output projection change with it in a real forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.groups import find_groups, possible_kinds
from ..architectures.slices import Group, Slice
from ..architectures.structure import Block, blocks_of
from .dependencies import dependencies, linear_maps, reached_inputs
from .paths import wrong


def first_blocks(model: PreTrainedModel) -> list[Block]:
    """The first block of each stack."""
    firsts: dict[str, Block] = {}
    for block in blocks_of(model):
        firsts.setdefault(block.name.partition("layer.")[0], block)
    return list(firsts.values())


def check_agreement(model: PreTrainedModel, batch: Mapping[str, Any]) -> int:
    """Changes one output of a map after another in the first block of each stack, on one example, and compares what
    changes in front of the output projections with what the entry says. Returns the number of maps that were tried.

    Raises:
        `ValueError`: an output changes other units than that which the entry gives it to; a map that the entry names
            changes none; or a map or parameter that it does not name changes some and not others. Names it.
    """
    kinds = [kind for kind in possible_kinds(model) if kind in ("heads", "neurons")]
    groups = find_groups(model, kinds) if kinds else []
    one = {name: value[:1] if isinstance(value, Tensor) and value.dim() else value for name, value in batch.items()}
    tried = 0
    for block in first_blocks(model):
        body = model.get_submodule(block.path)
        inside = [g for g in groups if g.name.rpartition(".")[0] == block.name and g.observed == "inputs"]
        changes = {path: dependencies(model, body, path, one) for path in linear_maps(body)} if inside else {}
        for group in inside:
            _compare(model, block, group, changes)
            _check_parameters(model, block, group, one)
        tried += len(changes)
    return tried


def _compare(model: PreTrainedModel, block: Block, group: Group, changes: Mapping[str, Mapping[str, Tensor]]) -> None:
    start, kind = f"{block.path}.", group.name.rpartition(".")[2]
    output = group.output.module.removeprefix(start)
    named = {piece.module.removeprefix(start): piece for piece in group.slices[:-1] if piece.axis == "out"}
    optional = {cut.module for cut in getattr(block.entry, kind) if cut.optional}
    reaches = {(a, b) for a, reached in changes.items() for b, each in reached.items() if each.any()}
    unit_of = _units_of(group, group.output)
    for path, reached in changes.items():
        by_way = any((path, other) in reaches and (other, output) in reaches for other in changes if other != output)
        if path == output or by_way or output not in reached:
            continue  # what comes by way of another map says nothing of this one
        changed = [set(unit_of[each].tolist()) for each in reached[output].any(1)]
        if path in named:
            owners = _units_of(group, named[path]).tolist()
            for number, (owner, units) in enumerate(zip(owners, changed)):
                if owner >= 0 and not units <= {owner}:
                    what = f"gives output {number} of {path!r} to number {owner}, but it changes {_few(units)}"
                    raise wrong(model, kind, what)
            if not any(changed) and path not in optional:
                raise wrong(model, kind, f"names {path!r}, but no output of it changes what {output!r} gets")
        for number, units in enumerate(changed if path not in named else ()):
            if 0 < len(units) < group.size:
                raise wrong(model, kind, f"misses {path!r}: output {number} of it changes {_few(units)} and no others")


def _check_parameters(model: PreTrainedModel, block: Block, group: Group, batch: Mapping[str, Any]) -> None:
    """What stands beside the linear maps, such as biases of their own and tables, may have something for each unit."""
    body, start = model.get_submodule(block.path), f"{block.path}."
    output, unit_of = group.output.module.removeprefix(start), _units_of(group, group.output)
    of_maps = {id(each) for module in linear_maps(body).values() for each in module.parameters()}
    named = {piece.module.removeprefix(start) for piece in group.slices}
    for path, parameter in body.named_parameters():
        if id(parameter) in of_maps or path in named:
            continue
        for place, size in enumerate(parameter.shape):
            if size % group.size == 0 and group.size > 1:
                changed = reached_inputs(model, body, parameter, place, (0, size - 1), output, batch)
                others, units = (set(unit_of[each].tolist()) for each in changed)
                # What is one's own, the other does not change; what all share may be too little for some to see.
                if others and units and not others & units:
                    what = f"misses {path!r}: number {size - 1} of its dimension {place} changes {_few(units)}"
                    raise wrong(model, group.name.rpartition(".")[2], f"{what} and no others")


def _units_of(group: Group, piece: Slice) -> Tensor:
    """The unit of each feature of a map, -1 for those of none: int64 of shape `(features,)`."""
    units = torch.full((group.size * sum(piece.maps) + piece.rest,), -1)
    for unit in range(group.size):
        units[piece.index(group.size, [unit])[: sum(piece.maps)]] = unit
    return units


def _few(units: set[int]) -> str:
    return f"{', '.join(map(str, sorted(units)[:4]))}{', ...' if len(units) > 4 else ''}"
