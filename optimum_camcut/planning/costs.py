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
"""What units cost in the budget of a config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..architectures.entry import STACKED
from ..architectures.groups import PrunableGroup
from ..architectures.vocabulary import VOCABULARY
from ..config import PruningConfig
from .times import LatencyTable


def unit_cost(group: PrunableGroup, config: PruningConfig) -> int:
    """What one unit costs in `config.budget`: parameters (also for `compression`), or FLOPs per token at
    `config.sequence_length`. A single weight counts 1 in either."""
    if config.budget == "params" or config.compression is not None:
        return group.unit_parameters
    return group.unit_flops + group.unit_flops_per_position * config.sequence_length


def parameters_of(groups: Sequence[PrunableGroup]) -> int:
    """Parameters of the whole model that `find_groups` has listed these groups of."""
    count = groups[0].model_parameters
    assert count is not None, "a group made by hand need not say it"
    return count


def remaining_budget(
    before: Sequence[PrunableGroup],
    now: Sequence[PrunableGroup],
    config: PruningConfig,
    latency: LatencyTable | None = None,
) -> float:
    """Fraction of the budget of `before` that the same groups still take up; with sub-layers among them, the
    sub-layers', which hold the rest. Of latency, the fraction of the whole model's, as the table predicts it."""
    if config.budget == "latency":
        table = _table_for(config, latency)
        whole = table.total_of(before)
        return table.total_of(now) / whole
    if any(group.kind == "layers" for group in before):
        before, now = ([g for g in groups if g.kind in ("layers", VOCABULARY)] for groups in (before, now))
    after, total = (sum(g.size * unit_cost(g, config) for g in groups) for groups in (now, before))
    return after / total


def _table_for(config: PruningConfig, latency: LatencyTable | None) -> LatencyTable:
    """Raises `ValueError` if there is no latency table, or one of other conditions."""
    if latency is None:
        raise ValueError(
            "budget='latency' needs the times of this model on this device: "
            "make_plan(scores, groups, config, latency=latency_table(model, config)), or CamCutTrainer, which "
            "measures them by itself"
        )
    for wanted, name in ((config.latency_batch_size, "batch_size"), (config.sequence_length, "sequence_length")):
        if latency.conditions.get(name, wanted) != wanted:
            raise ValueError(
                f"the config wants the latency at {config.latency_batch_size} x {config.sequence_length} tokens, but "
                f"the table was measured with {name}={latency.conditions[name]}; measure one for this config with "
                "latency_table(model, config)"
            )
    return latency


@dataclass(frozen=True)
class Costs:
    """What groups cost with any number of their units, and how few units each may keep.

    Args:
        config (`PruningConfig`): `budget`, `min_units`, `multiple_of`.
        price (`Mapping[str, np.ndarray]`): group name -> its cost with 0 to all of its units, `(size + 1,)`.
        always (`Mapping[str, int]`): group name -> units that are always kept.
        budget (`float`): cost of all groups as they are; with sub-layers among them, theirs, which hold the rest.
        fixed (`float`): what counts besides and always stays: of latency, the time of the rest of the model.
    """

    config: PruningConfig
    price: Mapping[str, np.ndarray]
    always: Mapping[str, int]
    budget: float
    fixed: float

    @classmethod
    def of(
        cls,
        groups: Sequence[PrunableGroup],
        config: PruningConfig,
        latency: LatencyTable | None,
        always: Mapping[str, int],
    ) -> Costs:
        """Raises `ValueError` if the budget is latency, and there is no table for this model and config."""
        if config.budget == "latency":
            table = _table_for(config, latency)
            price = {g.name: table.price(g) for g in groups}
        else:
            price = {g.name: float(unit_cost(g, config)) * np.arange(g.size + 1) for g in groups}
        budget = sum(price[g.name][-1] for g in [g for g in groups if g.kind == "layers"] or groups)
        fixed = table.total_of(groups) - budget if config.budget == "latency" else 0
        return cls(config, price, always, budget, fixed)

    def rates(self, units: Sequence[PrunableGroup]) -> dict[str, float]:
        """What a unit of each group costs; of latency, on average over its kind."""
        if self.config.budget != "latency":
            return {g.name: unit_cost(g, self.config) for g in units}
        found: dict[str, float] = {}
        for kind in {g.kind for g in units}:
            pool = [g for g in units if g.kind == kind]
            found[kind] = (self.whole(pool) or 1.0) / max(sum(g.size for g in pool), 1)
        return {g.name: found[g.kind] for g in units}

    def whole(self, pool: Sequence[PrunableGroup], counts: Mapping[str, int] | None = None) -> float:
        """What a pool costs with all of its units, or with so many of each group."""
        return sum(float(self.price[g.name][-1 if counts is None else counts[g.name]]) for g in pool)

    def multiple(self, group: PrunableGroup) -> int:
        """The group keeps a multiple of so many units."""
        multiple = self.config.multiple_of if group.kind == "neurons" else 1
        if not group.experts:
            return multiple
        return group.experts * math.lcm(multiple, STACKED)  # of all experts in a layer, as many

    def least(self, group: PrunableGroup) -> int:
        """The fewest units the group may keep."""
        multiple = self.multiple(group)
        least = self.config.least_units(group.kind)
        least = max(least, 1) * group.experts if group.experts else least  # stacked experts cannot be empty
        least = max(least, self.always[group.name], group.fewest)
        return min(-(-least // multiple) * multiple, group.size)

    def floor(self, pool: Sequence[PrunableGroup]) -> float:
        """What a pool costs at least if some of it always stays: then the other pools make up for what it cannot give.
        Of other pools 0: one that cannot give as much as the rest is an error."""
        if not any(self.always[g.name] for g in pool):
            return 0.0
        return self.whole(pool, {g.name: self.least(g) for g in pool})

    def room(self, pool: Sequence[PrunableGroup], fraction: Any) -> Any:
        """What a pool may cost without a fraction of its units, or without each of an array of fractions; of latency,
        with those that each group must keep."""
        if self.config.budget != "latency":
            return max(self.whole(pool) * (1 - fraction), self.floor(pool))
        sizes = {g.name: np.maximum(g.size * (1 - fraction), self.least(g)) for g in pool}
        return sum(np.interp(sizes[g.name], np.arange(g.size + 1), self.price[g.name]) for g in pool)
