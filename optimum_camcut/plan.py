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
"""`PruningPlan`: what to keep. Made from scores by `make_plan`, or by hand."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import PruningConfig
from .files import read_json, write_json
from .groups import WEIGHTS, PrunableGroup
from .scoring import get_scorer
from .scoring.loop import Scores, check_scores
from .units import IndexSet, mask_of


PLAN_NAME = "pruning_plan.json"


@dataclass(frozen=True)
class PruningPlan:
    """Which units of each group are kept, by their index in the uncut model.

    Groups that are not named stay whole. A plan made by hand needs only `keep`:
    `PruningPlan(keep={"layer.0.heads": [0, 3, 5]})`.

    Of single weights, a group is a parameter and its units are the elements in row-major order; `make_plan` keeps
    them as an `IndexSet`, a sequence like any other that takes one byte a weight.

    Args:
        keep (`Mapping[str, Sequence[int]]`): group name -> kept indices; stored sorted.
        sizes (`Mapping[str, int]`): group name -> number of units in the uncut model, if known.
        model_type (`str`, *optional*): the architecture the plan was made for.
        config (`PruningConfig`, *optional*): how the plan was made.
        num_layers (`int`, *optional*): blocks of the model that the plan was made for.

    Raises:
        `ValueError`: an index that is negative, repeated, no integer, or not below the group's size.
    """

    keep: Mapping[str, Sequence[int]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    model_type: str | None = None
    config: PruningConfig | None = None
    num_layers: int | None = None

    def __post_init__(self):
        keep = {}
        for name, units in dict(self.keep).items():
            if isinstance(units, IndexSet):
                if self.sizes.get(name, units.size) != units.size:
                    raise ValueError(f"the plan keeps {units!r} of {name!r}, which has size {self.sizes[name]!r}")
                keep[name] = units
                continue
            if not isinstance(units, Iterable):
                raise ValueError(f"the plan should keep a list of indices of {name!r}; got {units!r}")
            try:
                indices = [operator.index(unit) for unit in units if not isinstance(unit, bool)]
            except TypeError:
                indices = []
            units = tuple(units)
            if len(indices) != len(units) or any(i < 0 for i in indices) or len(set(indices)) != len(indices):
                raise ValueError(f"the plan should keep distinct indices of at least 0 of {name!r}; got {units!r:.99}")
            units = tuple(indices)
            size = self.sizes.get(name)
            if size is not None and (type(size) is not int or any(unit >= size for unit in units)):
                raise ValueError(f"the plan keeps unit {max(units, default=0)} of {name!r}, which has size {size!r}")
            keep[name] = tuple(sorted(units))
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "sizes", dict(self.sizes))

    def mask(self, name: str) -> np.ndarray:
        """Bool of shape `(sizes[name],)`: True at the units of a group that are kept.

        Raises:
            `KeyError`: the plan does not know the group, or its size.
        """
        return mask_of(self.keep[name], self.sizes[name])

    def removed(self, name: str) -> Sequence[int]:
        """Original indices of the units of a group that are gone.

        Raises:
            `KeyError`: the plan does not know the group, or its size.
        """
        removed = IndexSet(~self.mask(name))
        return removed if isinstance(self.keep[name], IndexSet) else tuple(removed)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return {
            "model_type": self.model_type,
            "num_layers": self.num_layers,
            "sizes": dict(self.sizes),
            "keep": {n: u.to_dict() if isinstance(u, IndexSet) else list(u) for n, u in self.keep.items()},
            "config": self.config.to_dict() if self.config else None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PruningPlan:
        """From what `to_dict` gives.

        Raises:
            `ValueError`: an unknown key, or a value of the wrong form.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown keys {unknown} in a pruning plan; known keys: {', '.join(known)}")
        keep, sizes = values.get("keep"), values.get("sizes") or {}
        if not isinstance(keep, Mapping) or not all(isinstance(u, Sequence | Mapping) for u in keep.values()):
            raise ValueError(f"a pruning plan should hold 'keep', group name -> list of indices; got {keep!r:.200}")
        keep = {n: IndexSet.from_dict(u) if isinstance(u, Mapping) else u for n, u in keep.items()}
        if not isinstance(sizes, Mapping):
            raise ValueError(f"'sizes' of a pruning plan should map group name -> number of units; got {sizes!r}")
        config = values.get("config")
        if config is not None and not isinstance(config, Mapping):
            raise ValueError(f"'config' of a pruning plan should hold the fields of PruningConfig; got {config!r}")
        config = PruningConfig.from_dict(config) if config else None
        return cls(keep, sizes, values.get("model_type"), config, values.get("num_layers"))

    def save(self, path: str | Path) -> None:
        """Writes the plan to a JSON file, or to `pruning_plan.json` in a folder."""
        path = Path(path)
        write_json(path / PLAN_NAME if path.is_dir() else path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Reads a JSON file, or `pruning_plan.json` in a folder."""
        path = Path(path)
        return cls.from_dict(read_json(path / PLAN_NAME if path.is_dir() else path))

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of layer, kind and what is kept: `("3", "heads", "7 / 12")`. The weights of a layer are counted
        together."""
        return [(*cell, self._count(names)) for cell, names in self._cells().items()]

    def __str__(self) -> str:
        cells = self._cells()
        kinds = list(dict.fromkeys(kind for _, kind in cells))
        lines = [["layer", *kinds]]
        for layer in dict.fromkeys(layer for layer, _ in cells):
            lines.append([layer, *(self._count(cells[layer, k]) if (layer, k) in cells else "all" for k in kinds)])
        total = {kind: [n for (_, k), names in cells.items() if k == kind for n in names] for kind in kinds}
        lines.append(["total", *(self._count(total[kind]) for kind in kinds)])
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)

    def _cells(self) -> dict[tuple[str, str], list[str]]:
        """Layer and kind -> names of the groups."""
        cells: dict[tuple[str, str], list[str]] = {}
        for name in self.keep:
            cells.setdefault((layer_of(name), _label(name)), []).append(name)
        return cells

    def _count(self, names: Sequence[str]) -> str:
        sizes = [self.sizes.get(name) for name in names]
        return f"{sum(len(self.keep[name]) for name in names)} / {'?' if None in sizes else sum(sizes)}"


def layer_of(name: str) -> str:
    """The layer index in a group's name, its first number; of a parameter outside of the layers, its module."""
    number = re.search(r"(?<![^.])\d+(?![^.])", name)
    return number[0] if number else name.rpartition(".")[0]


def is_weight(name: str) -> bool:
    """Whether a group of this name is a parameter, whose units are single weights."""
    return name.endswith((".weight", ".bias"))


def _label(name: str) -> str:
    return WEIGHTS if is_weight(name) else name.rpartition(".")[2]


def make_plan(scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig) -> PruningPlan:
    """Chooses the units to keep. A pure function: the same scores give the same plan.

    Ties are broken towards keeping the earlier unit. `sparsity` and `compression` count from the groups as they are:
    a model that has lost half its heads loses half of the rest at `sparsity=0.5`.

    Args:
        scores (`dict[str, Tensor]`): group name -> `(units,)`, larger = keep, as `score_groups` returns; of single
            weights, in the parameter's shape.
        groups (`Sequence[PrunableGroup]`): the groups that were scored; those of `config.granularity` are cut.
        config (`PruningConfig`): `sparsity` or `compression`, `budget`, `allocation`, `min_units`, `multiple_of`.

    Returns:
        `PruningPlan`: with one entry for each group.

    Raises:
        `ValueError`: scores that are missing, NaN, infinite or all zero; a budget that cannot be met (the message
            names the highest possible value).
    """
    if not isinstance(config, PruningConfig):
        raise TypeError(f"expected a PruningConfig, got {type(config).__name__}")
    names = {group.name for group in groups}
    groups = [group for group in groups if group.kind in config.granularity]
    if not groups:
        raise ValueError(
            f"no groups of {' or '.join(config.granularity)} to plan for; find_groups(model, {config.granularity}) "
            "gives them"
        )
    wanted = {group.name for group in groups}
    check_scores({name: s for name, s in scores.items() if name in wanted or name not in names}, groups)
    cost = {g.name: unit_cost(g, config) for g in groups}
    kinds = list(dict.fromkeys(g.kind for g in groups))
    if config.allocation == "global":
        pools, scale = [groups], _scale_of_kinds(scores, groups, cost, config)
    else:
        pools = [[g for g in groups if g.kind == kind] for kind in kinds]
        if config.allocation == "uniform":
            pools = [[g] for g in groups]
        scale = dict.fromkeys(kinds, 1.0)
    fraction = _fraction_to_remove(groups, pools, cost, config)
    keep: dict[str, Sequence[int]] = {}
    for pool in pools:
        if pool[0].kind == WEIGHTS:
            keep |= _keep_largest(scores, pool, fraction)
        else:
            best = _keep_best(scores, pool, config, fraction, cost, scale)
            keep |= {g.name: tuple(g.units[i] for i in best[g.name]) for g in pool}
    return PruningPlan(
        keep={g.name: keep[g.name] for g in groups},
        sizes={g.name: g.original_size for g in groups},
        model_type=groups[0].model_type,
        config=dataclasses.replace(config),
        num_layers=groups[0].num_layers,
    )


def unit_cost(group: PrunableGroup, config: PruningConfig) -> int:
    """What one unit costs in `config.budget`: parameters (also for `compression`), or FLOPs per token at
    `config.sequence_length`. A single weight counts 1 in either."""
    if config.budget == "params" or config.compression is not None:
        return group.unit_parameters
    return group.unit_flops + group.unit_flops_per_position * config.sequence_length


def remaining_budget(before: Sequence[PrunableGroup], now: Sequence[PrunableGroup], config: PruningConfig) -> float:
    """Fraction of the budget of `before` that the same groups still take up."""
    cost = {group.name: unit_cost(group, config) for group in before}
    total = {name: sum(g.size * cost[g.name] for g in groups) for name, groups in (("before", before), ("now", now))}
    return total["now"] / total["before"]


def _multiple(group: PrunableGroup, config: PruningConfig) -> int:
    return config.multiple_of if group.kind == "neurons" else 1


def _least(group: PrunableGroup, config: PruningConfig) -> int:
    """The fewest units the group may keep."""
    if group.kind == WEIGHTS:
        return 0
    multiple = _multiple(group, config)
    return min(-(-config.min_units // multiple) * multiple, group.size)


def _scale_of_kinds(
    scores: Scores, groups: Sequence[PrunableGroup], cost: Mapping[str, int], config: PruningConfig
) -> dict[str, float]:
    """What makes scores of different kinds comparable. Estimates of the loss change are; of other scores, each kind
    gets the share of the total that it has of the cost."""
    scale = {group.kind: 1.0 for group in groups}
    if len(scale) > 1 and not get_scorer(config.method).quadratic:
        for kind in scale:
            pool = [g for g in groups if g.kind == kind]
            scale[kind] = sum(g.size * cost[g.name] for g in pool) / sum(float(scores[g.name].sum()) for g in pool)
    return scale


def _fraction_to_remove(
    groups: Sequence[PrunableGroup],
    pools: Sequence[Sequence[PrunableGroup]],
    cost: Mapping[str, int],
    config: PruningConfig,
) -> float:
    """Fraction of each pool's cost to remove.

    Raises:
        `ValueError`: a pool cannot give so much; names the highest value that all can.
    """
    total, prunable = groups[0].model_parameters, sum(g.size * cost[g.name] for g in groups)
    if config.sparsity is not None:
        fraction = config.sparsity
    elif total is None:
        raise ValueError("compression needs the model's parameter count; take the groups from find_groups(model)")
    else:
        fraction = total * (1 - 1 / config.compression) / prunable
    possible, enough = 1.0, fraction <= 1.0
    for pool in pools:
        whole, least = (
            sum(n(g) * cost[g.name] for g in pool) for n in (lambda g: g.size, lambda g: _least(g, config))
        )
        if least - whole * (1 - fraction) > cost[pool[0].name] / 2:  # more than rounding to whole units explains
            possible, enough = min(possible, 1 - least / whole), False
    if not enough:
        name, value = ("sparsity", possible)
        if config.sparsity is None:
            name, value = "compression", total / (total - possible * prunable)
        raise ValueError(
            f"{name}={getattr(config, name)} cannot be reached: the highest possible {name} here is "
            f"{math.floor(value * 1e4) / 1e4} (granularity {list(config.granularity)}, min_units={config.min_units})"
        )
    return fraction


def _keep_largest(scores: Scores, pool: Sequence[PrunableGroup], fraction: float) -> dict[str, IndexSet]:
    """Keeps the weights of a pool with the largest scores: by group. Their number is rounded."""
    present = [torch.from_numpy(mask_of(group.units, group.original_size)) for group in pool]
    values = torch.cat([scores[group.name].flatten()[mask] for group, mask in zip(pool, present)])
    count = math.floor(len(values) * (1 - fraction) + 0.5)
    chosen = torch.zeros(len(values), dtype=torch.bool)
    if count > 0:
        threshold = values.kthvalue(len(values) - count + 1).values
        chosen = values > threshold
        chosen[(values == threshold).nonzero().flatten()[: count - int(chosen.sum())]] = True
    keep = {}
    for group, mask, part in zip(pool, present, chosen.split([int(mask.sum()) for mask in present])):
        kept = torch.zeros(group.original_size, dtype=torch.bool)
        kept[mask] = part
        keep[group.name] = IndexSet(kept.numpy())
    return keep


def _keep_best(
    scores: Scores,
    pool: Sequence[PrunableGroup],
    config: PruningConfig,
    fraction: float,
    cost: Mapping[str, int],
    scale: Mapping[str, float],
) -> dict[str, list[int]]:
    """Fills the budget of a pool with its best units by score per cost: positions to keep, by group.

    Every group keeps its best `min_units` first. Units then enter in steps of `multiple_of`, ranked by their mean
    score; a step of one unit is plain ranking. A joint budget of several kinds is never exceeded; the number of units
    of one kind is rounded.
    """
    order = {g.name: scores[g.name].argsort(descending=True, stable=True).tolist() for g in pool}
    counts = {g.name: _least(g, config) for g in pool}
    steps = []
    for position, group in enumerate(pool):
        ranked = scores[group.name][order[group.name]].tolist()
        multiple = _multiple(group, config)
        for start in range(counts[group.name], group.size, multiple):
            step = ranked[start : start + multiple]
            value = scale[group.kind] * sum(step) / len(step) / cost[group.name]
            steps.append((-value, start, position, len(step)))
    left = sum(g.size * cost[g.name] for g in pool) * (1 - fraction) - sum(counts[n] * cost[n] for n in counts)
    joint = len({g.kind for g in pool}) > 1
    closed = set()
    for _, _, position, size in sorted(steps):
        name = pool[position].name
        price = size * cost[name]
        if name in closed or price * (1 - 1e-9 if joint else 0.5) > left:
            closed.add(name)  # a group's steps enter in order, better units first
            continue
        counts[name] += size
        left -= price
    return {name: sorted(units[: counts[name]]) for name, units in order.items()}
