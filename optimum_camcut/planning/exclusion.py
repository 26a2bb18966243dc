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
"""What a plan keeps whatever the scores say: what `config.exclude` names, and what has a score of infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from ..architectures.entry import SUBLAYERS
from ..architectures.groups import PrunableGroup
from ..architectures.structure import sublayer_of
from ..config import PruningConfig
from ..scoring.loop import Scores
from ..utils.files import nearest
from .plan import layer_of


NAMES_SHOWN = 24  # in an error


def excluded(groups: Sequence[PrunableGroup], config: PruningConfig) -> set[str]:
    """Names of the groups that `config.exclude` keeps whole.

    Raises:
        `ValueError`: an entry matches nothing.
    """
    found: set[str] = set()
    for entry in config.left_whole:
        matched = set()
        for g in groups:
            # A sub-layer is one with its heads or neurons: what keeps the former keeps the latter.
            layer, sublayer = layer_of(g.name), sublayer_of(g.name)
            start, _, part = sublayer.rpartition(".")
            units = [f"{start}.{kind}" for kind, held in SUBLAYERS.items() if held == part]
            names = {g.name, sublayer, *(units if g.kind == "layers" else ())}
            if entry in (layer, layer.rpartition(".")[2]) or any(fnmatchcase(name, entry) for name in names):
                matched.add(g.name)
        if not matched:
            layers, known = list(dict.fromkeys(layer_of(g.name) for g in groups)), [g.name for g in groups]
            more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
            raise ValueError(
                f"exclude names {entry!r}, which matches nothing that granularity {list(config.granularity)} could "
                f"remove: there are the layers {', '.join(layers[:NAMES_SHOWN])} and the groups "
                f"{', '.join(known[:NAMES_SHOWN])}{more}{nearest(entry, [*layers, *known])}"
            )
        found |= matched
    return found


def with_kept(scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig) -> Scores:
    """The scores with infinity, "keep", for all units of excluded groups, for those that a config names, and for
    sub-layers that hold a unit that is kept."""

    def keep(names: set[str], scores: Scores) -> Scores:
        infinity = {name: torch.tensor(math.inf, device=scores[name].device) for name in names & set(scores)}
        return {name: infinity[name].expand(s.shape) if name in infinity else s for name, s in scores.items()}

    for g in groups:
        if g.needed:
            scores = {**scores, g.name: scores[g.name].index_fill(0, torch.tensor(g.needed), math.inf)}
    kept = keep(excluded(groups, config), {g.name: scores[g.name] for g in groups})
    holding = {sublayer_of(g.name) for g in groups if g.kind in SUBLAYERS and torch.isposinf(kept[g.name]).any()}
    return keep(holding, kept)
