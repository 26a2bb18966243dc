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
from dataclasses import dataclass, field

import torch


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
    """

    module: str
    axis: str | int
    width: int
    blocks: int = 1
    fused: tuple[int, ...] = ()
    rest: int = 0

    @property
    def maps(self) -> tuple[int, ...]:
        """Features per unit of each of the maps that are fused."""
        return self.fused or (self.width,) * self.blocks

    def index(self, size: int, keep: Sequence[int]) -> torch.Tensor:
        """Features that belong to the units `keep` out of `size`, and the rest: int64 of shape
        `(len(keep) * sum(maps) + rest,)`."""
        found, start = [], 0
        for width in self.maps:
            found.append(start + torch.arange(size * width).view(size, width)[list(keep)].flatten())
            start += size * width
        return torch.cat([*found, torch.arange(start, start + self.rest)])

    def by_unit(self, tensor: torch.Tensor, size: int) -> torch.Tensor:
        """What each of `size` units owns of a tensor whose first dimension is cut: `(size, numbers of a unit)`."""
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
        kind (`str`): `"heads"`, `"neurons"`, `"layers"` (a whole sub-layer, as one unit) or `"weights"`.
        size (`int`): number of units now.
        slices (`tuple[Slice, ...]`): the linear maps involved; the last is the output projection, whose input is
            where activations are observed. None for `"weights"`: the group is the parameter of its name.
        attributes (`Mapping[str, int]`): path of a module attribute -> amount per unit, kept true by a cut.
        bypass (`Mapping[str, str]`): of a sub-layer, path of each module that goes with it -> what stands in for it.
    """

    name: str
    kind: str
    size: int
    slices: tuple[Slice, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)
    bypass: Mapping[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Slice:
        """The output projection."""
        return self.slices[-1]
