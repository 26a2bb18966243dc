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
"""Units that live and die together, and the maps that are cut with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch


Observed = Literal["inputs", "routing", "inside", "outputs"]


@dataclass(frozen=True)
class Slice:
    """One linear map, cut along one axis; or another parameter, along one dimension.

    Args:
        module (`str`): path of the map inside the model; or of the parameter.
        axis (`str` or `int`): `"out"` or `"in"`; or the dimension.
        width (`int`): features per unit.
        blocks (`int`): number of maps fused side by side along the axis.
        fused (`tuple[int, ...]`): in place of `width` and `blocks`, the features per unit of maps of unlike width.
        rest (`int`): features behind the units, which always stay.
        experts (`int`): of a parameter whose first dimension is that of the experts, how many there are. The units
            of the first expert come first, and of each expert as many are kept.
    """

    module: str
    axis: str | int
    width: int
    blocks: int = 1
    fused: tuple[int, ...] = ()
    rest: int = 0
    experts: int = 0

    @property
    def maps(self) -> tuple[int, ...]:
        """Features per unit of each of the maps that are fused."""
        return self.fused or (self.width,) * self.blocks

    def index(self, size: int, keep: Sequence[int]) -> torch.Tensor:
        """Features that belong to the units `keep` out of `size`, and the rest: int64 of shape
        `(len(keep) * sum(maps) + rest,)`. Of stacked experts, in the order of (expert, feature)."""
        if self.experts:
            one, each = replace(self, experts=0), size // self.experts
            features = each * sum(self.maps) + self.rest
            of = [[unit % each for unit in keep if unit // each == expert] for expert in range(self.experts)]
            return torch.cat([one.index(each, units) + expert * features for expert, units in enumerate(of)])
        found, start = [], 0
        for width in self.maps:
            found.append(start + torch.arange(size * width).view(size, width)[list(keep)].flatten())
            start += size * width
        return torch.cat([*found, torch.arange(start, start + self.rest)])

    def take(self, tensor: torch.Tensor, place: int, size: int, keep: Sequence[int]) -> torch.Tensor:
        """The features of the units `keep` out of `size`, of a tensor that is cut along the dimension `place`."""
        if tensor.is_meta:  # which they are does not matter, and indices would have to be made there
            shape = list(tensor.shape)
            shape[place] = len(keep) // (self.experts or 1) * sum(self.maps) + self.rest
            return torch.empty(shape, dtype=tensor.dtype, device="meta")
        index = self.index(size, keep).to(tensor.device)
        if not self.experts:
            return tensor.detach().index_select(place, index)
        rows = tensor.detach().movedim(place, 1)
        taken = rows.flatten(0, 1).index_select(0, index).unflatten(0, (self.experts, len(index) // self.experts))
        return taken.movedim(1, place).contiguous()

    def by_unit(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        """What each of `size` units owns of a tensor whose first dimension is cut: `(size, numbers of a unit)`."""
        if self.experts:
            one, each = replace(self, experts=0), size // self.experts
            return torch.cat([one.by_unit(tensor[:, expert], each) for expert in range(self.experts)])
        found, start = [], 0
        for width in self.maps:
            found.append(tensor[start : start + size * width].reshape(size, -1))
            start += size * width
        return torch.cat(found, dim=1)


@dataclass(frozen=True)
class Group:
    """Units that can be cut one by one, and everything that goes with each of them.

    Args:
        name (`str`): unique in the model; its first number is the layer index.
        kind (`str`): `"heads"`, `"neurons"`, `"experts"`, `"layers"` (a whole sub-layer, as one unit) or `"weights"`.
        size (`int`): number of units now.
        slices (`tuple[Slice, ...]`): the linear maps involved; the last is the output projection; of experts, the
            router. None for `"weights"`: the group is the parameter of its name.
        attributes (`Mapping[str, float]`): path of a module attribute -> amount per unit, kept true by a cut.
        bypass (`Mapping[str, str]`): of a sub-layer, path of each module that goes with it -> what stands in for it.
        observed: where activations are: `"inputs"` of the output projection; `"routing"`, an expert's share of a
            token; `"inside"` of stacked experts; or `"outputs"`, what the whole sub-layer with experts gives.
    """

    name: str
    kind: str
    size: int
    slices: tuple[Slice, ...]
    attributes: Mapping[str, float] = field(default_factory=dict)
    bypass: Mapping[str, str] = field(default_factory=dict)
    observed: Observed = "inputs"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.kind!r}, size={self.size})"

    @property
    def output(self) -> Slice:
        """The output projection."""
        return self.slices[-1]

    @property
    def experts(self) -> int:
        """How many experts the units are inside of, as many of each."""
        return self.slices[-1].experts if self.slices else 0
