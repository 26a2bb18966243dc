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
"""`make_plan`: how much of what to keep within a budget, by scores."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..architectures.groups import WEIGHTS, PrunableGroup
from ..architectures.modeling_camcut import SUBLAYERS
from ..architectures.structure import sublayer_of
from ..config import PruningConfig
from ..methods import get_scorer
from ..scoring.loop import Scores, check_scores
from ..utils.files import nearest
from .latency import LatencyTable
from .plan import PruningPlan, layer_of
from .units import IndexSet, mask_of


logger = logging.getLogger(__name__)

TICKS = 2**15  # of the time to keep, in the search for the best sizes within it
CHOICES_PER_GROUP = 64  # sizes of a layer in that search
NAMES_SHOWN = 24  # in an error
LATENCY_TOLERANCE = 0.05  # of the time to keep; a plan that is farther from it says so


def make_plan(
    scores: Scores,
    groups: Sequence[PrunableGroup],
    config: PruningConfig,
    *,
    latency: LatencyTable | None = None,
) -> PruningPlan:
    """Chooses the units to keep. A pure function: the same scores give the same plan.

    Ties are broken towards keeping the earlier unit. `sparsity` and `compression` count from the groups as they are:
    a model that has lost half its heads loses half of the rest at `sparsity=0.5`.

    What `allocation="global"` keeps has the largest sum of scores within the budget but for less than the score of one
    step (a head, or `multiple_of` neurons); with `budget="latency"`, the largest that there is among plans of at most
    about 64 sizes a layer.

    What `config.exclude` names stays whole, and a unit whose score is infinity is kept, whatever the others score. A
    sub-layer that holds such a head or neuron is not removed. The others are ranked as if these were not there, and
    lose more: `sparsity` and `compression` count all units, also those that are always kept.

    Args:
        scores (`dict[str, Tensor]`): group name -> `(units,)`, larger = keep, as `score_groups` returns; infinity
            keeps a unit. Of single weights, in the parameter's shape.
        groups (`Sequence[PrunableGroup]`): the groups that were scored; those of `config.granularity` are cut.
        config (`PruningConfig`): `sparsity` or `compression`, `budget`, `allocation`, `layer_unit`, `min_units`,
            `multiple_of`, `exclude`.
        latency (`LatencyTable`, *optional*): from `latency_table(model, config)`, for `budget="latency"`; of the model
            as it is or as it was before earlier cuts.

    Returns:
        `PruningPlan`: with one entry for each group, except the heads and neurons of sub-layers that it removes.

    Raises:
        `ValueError`: scores that are missing, NaN, minus infinity or all zero; an entry of `exclude` that matches
            nothing; a budget that cannot be met (the message names the highest possible value).
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
    scores = _with_kept(scores, groups, config)
    if groups[0].kind == WEIGHTS:
        keep = _choose_weights(scores, groups, config)
    else:
        keep, spent = _choose_units(scores, groups, config, latency)
        if config.budget == "latency" and abs(spent - 1) > LATENCY_TOLERANCE:
            logger.warning(
                "the plan takes %.2f times the time that %s leaves: by the latency table, no sizes that "
                "allocation=%r, min_units=%s and exclude=%s allow come closer",
                spent,
                config.amount,
                config.allocation,
                config.min_units,
                config.exclude and list(config.exclude),
            )
    if all(len(keep.get(g.name, ())) == g.size for g in groups):
        logger.warning("the plan removes nothing: %s is too little for one unit", config.amount)
    groups = [g for g in groups if g.name in keep]
    return PruningPlan(
        keep={g.name: keep[g.name] for g in groups},
        sizes={g.name: g.original_size for g in groups},
        model_type=groups[0].model_type,
        config=dataclasses.replace(config),
        num_layers=groups[0].num_layers,
    )


def _excluded(groups: Sequence[PrunableGroup], config: PruningConfig) -> set[str]:
    """Names of the groups that `config.exclude` keeps whole.

    Raises:
        `ValueError`: an entry matches nothing.
    """
    units = {part: kind for kind, part in SUBLAYERS.items()}
    found: set[str] = set()
    for entry in config.exclude or ():
        matched = set()
        for g in groups:
            # A sub-layer is one with its heads or neurons: what keeps the former keeps the latter.
            layer, sublayer = layer_of(g.name), sublayer_of(g.name)
            start, _, part = sublayer.rpartition(".")
            names = {g.name, sublayer, f"{start}.{units.get(part, part)}"}
            if entry in (layer, layer.removeprefix("decoder.")) or any(fnmatchcase(name, entry) for name in names):
                matched.add(g.name)
        if not matched:
            layers, names = list(dict.fromkeys(layer_of(g.name) for g in groups)), [g.name for g in groups]
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            raise ValueError(
                f"exclude names {entry!r}, which matches nothing that granularity {list(config.granularity)} could "
                f"remove: there are the layers {', '.join(layers[:NAMES_SHOWN])} and the groups "
                f"{', '.join(names[:NAMES_SHOWN])}{more}{nearest(entry, [*layers, *names])}"
            )
        found |= matched
    return found


def _with_kept(scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig) -> Scores:
    """The scores with infinity, "keep", for all units of excluded groups, and for sub-layers that hold a unit that is
    kept."""

    def keep(names: set[str], scores: Scores) -> Scores:
        infinity = {name: torch.tensor(math.inf, device=scores[name].device) for name in names & set(scores)}
        return {name: infinity[name].expand(s.shape) if name in infinity else s for name, s in scores.items()}

    kept = keep(_excluded(groups, config), {g.name: scores[g.name] for g in groups})
    holding = {sublayer_of(g.name) for g in groups if g.kind in SUBLAYERS and torch.isposinf(kept[g.name]).any()}
    return keep(holding, kept)


def _choose_units(
    scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig, latency: LatencyTable | None
) -> tuple[dict[str, tuple[int, ...]], float]:
    """What to keep of heads, neurons and sub-layers, by group; and what that costs over what it should."""
    price = _prices(groups, config, latency)
    layers = [g for g in groups if g.kind == "layers"]
    total, budget = groups[0].model_parameters, sum(price[g.name][-1] for g in layers or groups)
    fixed = latency.total_of(groups) - budget if config.budget == "latency" else 0  # what counts and always stays
    target = (budget + fixed) * (1 - _fraction_of_budget(total, budget, config)) - fixed  # the cost to keep
    always = {g.name: int(torch.isposinf(scores[g.name]).sum()) for g in groups}  # units, by group
    ranked = _rank_layers(scores, layers, price, config) or [[]]
    costs = [sum(price[g.name][-1] for g in candidate) for candidate in ranked]
    fewest = max(sum(any(always[g.name] for g in candidate) for candidate in ranked), 1)
    for count in range(_count_layers(costs, budget, target, len(layers) < len(groups), fewest), fewest - 1, -1):
        removed = {g.name for candidate in ranked[count:] for g in candidate}
        units = [g for g in groups if g.kind != "layers" and sublayer_of(g.name) not in removed]
        present = budget - sum(costs[count:])
        fraction, least = _fraction_to_remove(units, present, target, price, always, config)
        if least - target <= (1e-9 * budget if units else costs[count - 1] / 2):
            break  # else the units that are left cannot give what is wanted, and one more sub-layer goes
    else:
        raise _unreachable(total, budget + fixed, least + fixed, groups, always, config)
    keep = {g.name: [] if g.name in removed else [0] for g in layers}
    keep |= _keep_units(scores, units, config, fraction, present, target, price, always)
    cost = present - sum(price[g.name][-1] - price[g.name][len(keep[g.name])] for g in units)
    kept = {g.name: tuple(g.units[i] for i in keep[g.name]) for g in groups if g.name in keep}
    return kept, (cost + fixed) / ((target + fixed) or 1.0)


def _keep_units(
    scores: Scores,
    units: Sequence[PrunableGroup],
    config: PruningConfig,
    fraction: float,
    present: float,
    target: float,
    price: Mapping[str, np.ndarray],
    always: Mapping[str, int],
) -> dict[str, list[int]]:
    """Positions of the heads and neurons to keep, by group."""
    rate = _rates(units, price, config)
    if config.allocation == "global":
        scale = _scale_of_kinds(scores, units, rate, always, config)
        if config.budget == "latency":
            room = target - present + sum(price[g.name][-1] for g in units)
            return _search(scores, units, config, room, price, always, scale)
        room = _room(units, fraction, price, always, config)
        return _keep_best(scores, units, config, room, price, rate, always, scale)
    keep: dict[str, list[int]] = {}
    scale = dict.fromkeys(config.granularity, 1.0)
    left = list(units)
    for kind in sorted({g.kind for g in units}):  # heads, then neurons, which are finer
        chosen = [g for g in left if g.kind == kind]
        for pool in _pools(chosen, config):
            room = _room(pool, fraction, price, always, config)
            keep |= _keep_best(scores, pool, config, room, price, rate, always, scale)
        left = [g for g in left if g.kind != kind]
        if left and (config.allocation == "uniform" or config.budget == "latency"):
            present -= sum(price[g.name][-1] - price[g.name][len(keep[g.name])] for g in chosen)
            fraction = min(_fraction_to_remove(left, present, target, price, always, config)[0], 1.0)
    return keep


def check_budget(groups: Sequence[PrunableGroup], config: PruningConfig, latency: LatencyTable | None = None) -> None:
    """Raises `ValueError`, naming the highest possible value, if the groups cannot give what the config wants: what
    `make_plan` would raise, before there are scores."""
    if WEIGHTS in config.granularity:
        excluded = _excluded(groups, config)
        _fraction_of_weights(groups, {g.name: g.size * (g.name in excluded) for g in groups}, config)
    else:
        ones = {g.name: torch.ones(g.size) for g in groups}
        _choose_units(_with_kept(ones, groups, config), groups, config, latency)


def _fraction_of_weights(groups: Sequence[PrunableGroup], always: Mapping[str, int], config: PruningConfig) -> float:
    """The fraction of each pool to remove; for what is always kept, the other pools give more."""
    total, budget, kept = groups[0].model_parameters, sum(group.size for group in groups), sum(always.values())
    amount = _fraction_of_budget(total, budget, config) * budget
    if amount > (budget - kept) * (1 + 1e-9):
        raise _unreachable(total, budget, kept, groups, always, config)
    pools = _pools(groups, config)
    wholes = [sum(g.size for g in pool) for pool in pools]
    free = [whole - sum(always[g.name] for g in pool) for pool, whole in zip(pools, wholes)]
    return min(_spread(amount, wholes, free), 1.0)


def _choose_weights(scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig) -> dict[str, IndexSet]:
    """What to keep of single weights: by parameter, or over all of them, those with the largest scores. Their number
    is rounded."""
    masks, keep = {g.name: torch.from_numpy(mask_of(g.units, g.original_size)) for g in groups}, {}
    always = {g.name: int((torch.isposinf(scores[g.name]).flatten() & masks[g.name]).sum()) for g in groups}
    fraction = _fraction_of_weights(groups, always, config)
    for pool in _pools(groups, config):
        present, least = [masks[g.name] for g in pool], sum(always[g.name] for g in pool)
        values = torch.cat([scores[group.name].flatten()[mask] for group, mask in zip(pool, present)])
        chosen = _largest(values, max(math.floor(len(values) * (1 - fraction) + 0.5), least))
        for group, mask, part in zip(pool, present, chosen.split([int(mask.sum()) for mask in present])):
            kept = torch.zeros(group.original_size, dtype=torch.bool)
            kept[mask] = part
            keep[group.name] = IndexSet(kept.numpy())
    emptied = [name for name, units in keep.items() if not units and name.endswith(".weight")]
    if emptied:
        logger.warning("the plan removes all weights of %s: nothing flows through them any more", ", ".join(emptied))
    return keep


def _largest(values: Tensor, count: int) -> Tensor:
    """Bool: True at the largest values; of equal ones, the earlier."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    if count > 0:
        threshold = values.kthvalue(len(values) - count + 1).values
        chosen = values > threshold
        chosen[(values == threshold).nonzero().flatten()[: count - int(chosen.sum())]] = True
    return chosen


def unit_cost(group: PrunableGroup, config: PruningConfig) -> int:
    """What one unit costs in `config.budget`: parameters (also for `compression`), or FLOPs per token at
    `config.sequence_length`. A single weight counts 1 in either."""
    if config.budget == "params" or config.compression is not None:
        return group.unit_parameters
    return group.unit_flops + group.unit_flops_per_position * config.sequence_length


def remaining_budget(
    before: Sequence[PrunableGroup],
    now: Sequence[PrunableGroup],
    config: PruningConfig,
    latency: LatencyTable | None = None,
) -> float:
    """Fraction of the budget of `before` that the same groups still take up; with sub-layers among them, the
    sub-layers', which hold the rest. Of latency, the fraction of the whole model's, as the table predicts it."""
    if config.budget == "latency":
        _prices(before, config, latency)  # raises if there is no table for this config
        return latency.total_of(now) / latency.total_of(before)
    if any(group.kind == "layers" for group in before):
        before, now = ([g for g in groups if g.kind == "layers"] for groups in (before, now))
    after, total = (sum(g.size * unit_cost(g, config) for g in groups) for groups in (now, before))
    return after / total


def removed_by(number: int, rounds: int) -> float:
    """The part of what is to be removed that is gone after so many rounds: 1 - (1 - number / rounds)³, much in the
    first and little in the last (Zhu and Gupta 2017, eq. 1)."""
    return 1 - (1 - number / rounds) ** 3


def _prices(
    groups: Sequence[PrunableGroup], config: PruningConfig, latency: LatencyTable | None
) -> dict[str, np.ndarray]:
    """What every group costs with 0 to all of its units, in the unit of the budget: `(size + 1,)`."""
    if config.budget != "latency":
        return {g.name: float(unit_cost(g, config)) * np.arange(g.size + 1) for g in groups}
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
    return {g.name: latency.price(g) for g in groups}


def _rates(units: Sequence[PrunableGroup], price: Mapping[str, np.ndarray], config: PruningConfig) -> dict[str, float]:
    """What a unit of each group costs; of latency, on average over its kind."""
    if config.budget != "latency":
        return {g.name: unit_cost(g, config) for g in units}
    whole: dict[str, list[float]] = {}
    for g in units:
        cost, size = whole.get(g.kind, (0.0, 0))
        whole[g.kind] = (cost + float(price[g.name][-1]), size + g.size)
    return {g.name: (whole[g.kind][0] or 1.0) / max(whole[g.kind][1], 1) for g in units}


def _room(
    pool: Sequence[PrunableGroup],
    fraction: Any,
    price: Mapping[str, np.ndarray],
    always: Mapping[str, int],
    config: PruningConfig,
) -> Any:
    """What a pool may cost without a fraction of its units; of latency, with those that each group must keep."""
    if config.budget != "latency":
        return max(_whole(pool, price) * (1 - fraction), _floor(pool, price, always, config))
    sizes = {g.name: np.maximum(g.size * (1 - fraction), _least(g, always, config)) for g in pool}
    return sum(np.interp(sizes[g.name], np.arange(g.size + 1), price[g.name]) for g in pool)


def _floor(
    pool: Sequence[PrunableGroup],
    price: Mapping[str, np.ndarray],
    always: Mapping[str, int],
    config: PruningConfig,
) -> float:
    """What a pool costs at least if some of it always stays: then the other pools make up for what it cannot give. Of
    other pools 0: one that cannot give as much as the rest is an error."""
    if not any(always[g.name] for g in pool):
        return 0.0
    return _whole(pool, price, {g.name: _least(g, always, config) for g in pool})


def _whole(
    pool: Sequence[PrunableGroup], price: Mapping[str, np.ndarray], counts: Mapping[str, int] | None = None
) -> float:
    """What a pool costs with all of its units, or with so many of each group."""
    return sum(float(price[g.name][-1 if counts is None else counts[g.name]]) for g in pool)


def _multiple(group: PrunableGroup, config: PruningConfig) -> int:
    return config.multiple_of if group.kind == "neurons" else 1


def _least(group: PrunableGroup, always: Mapping[str, int], config: PruningConfig) -> int:
    """The fewest units the group may keep."""
    multiple = _multiple(group, config)
    least = max(config.least_units(group.kind), always[group.name])
    return min(-(-least // multiple) * multiple, group.size)


def _scale_of_kinds(
    scores: Scores,
    groups: Sequence[PrunableGroup],
    rate: Mapping[str, float],
    always: Mapping[str, int],
    config: PruningConfig,
) -> dict[str, float]:
    """What makes scores of different kinds comparable. Estimates of the loss change are; of other scores, each kind
    gets the share of the total that it has of the cost. Units that are always kept are in neither."""
    scale = {group.kind: 1.0 for group in groups}
    if not get_scorer(config.method).quadratic:
        for kind in scale:
            pool = [g for g in groups if g.kind == kind]
            total = sum(float(_finite(scores[g.name]).sum()) for g in pool)
            scale[kind] = sum((g.size - always[g.name]) * rate[g.name] for g in pool) / (total or 1.0)
    return scale


def _finite(scores: Tensor) -> Tensor:
    """The scores with 0 in the place of infinity, for sums over the others."""
    return scores.masked_fill(torch.isposinf(scores), 0)


def _pools(units: Sequence[PrunableGroup], config: PruningConfig) -> list[list[PrunableGroup]]:
    """Groups whose units are ranked together."""
    if config.allocation == "global":
        return [list(units)] if units else []
    if config.allocation == "uniform":
        return [[g] for g in units]
    return [[g for g in units if g.kind == kind] for kind in dict.fromkeys(g.kind for g in units)]


def _fraction_of_budget(total: int | None, budget: float, config: PruningConfig) -> float:
    """The fraction of the budget that the config wants removed."""
    if config.sparsity is not None:
        return config.sparsity
    if total is None:
        raise ValueError("compression needs the model's parameter count; take the groups from find_groups(model)")
    return total * (1 - 1 / config.compression) / budget


def _rank_layers(
    scores: Scores, layers: Sequence[PrunableGroup], price: Mapping[str, np.ndarray], config: PruningConfig
) -> list[list[PrunableGroup]]:
    """Sub-layers or whole blocks, the highest score per cost first, the earlier first in a tie."""
    candidates: dict[str, list[PrunableGroup]] = {}
    for g in layers:
        candidates.setdefault(layer_of(g.name) if config.layer_unit == "block" else g.name, []).append(g)

    def value(candidate: list[PrunableGroup]) -> float:
        cost = float(sum(price[g.name][-1] for g in candidate))
        return sum(float(scores[g.name]) for g in candidate) / (cost or 1.0)

    return sorted(candidates.values(), key=value, reverse=True)


def _count_layers(price: Sequence[float], budget: float, target: float, joint: bool, fewest: int) -> int:
    """How many candidates to keep, at prices from the best to the worst: what is nearest to the target, and `fewest`
    at least. With heads or neurons, which can give the rest, only down to the geometric mean of the two."""
    aim = math.sqrt(max(target, 0) * budget) if joint else target
    count, left = len(price), budget
    while count > fewest and left - aim > price[count - 1] / 2 and not (joint and left - price[count - 1] < target):
        count -= 1
        left -= price[count]
    return count


def _fraction_to_remove(
    units: Sequence[PrunableGroup],
    present: float,
    target: float,
    price: Mapping[str, np.ndarray],
    always: Mapping[str, int],
    config: PruningConfig,
) -> tuple[float, float]:
    """Fraction of each pool's units to remove so that of the present cost the target is left, and the least that can
    be left where a pool cannot give so much. For what is always kept, the other pools give more."""
    if config.budget == "latency":
        fractions = np.linspace(0, 1, 4001)
        left = present - _whole(units, price) + _room(units, fractions, price, always, config)
        enough = np.flatnonzero(left <= target)
        least = present - sum(price[g.name][-1] - price[g.name][_least(g, always, config) :].min() for g in units)
        return float(fractions[enough[0]]) if len(enough) else 1.0, least
    pools = _pools(units, config)
    wholes = [_whole(pool, price) for pool in pools]
    free = [whole - _floor(pool, price, always, config) for pool, whole in zip(pools, wholes)]
    fraction = possible = _spread(max(present - target, 0), wholes, free)
    for pool, whole in zip(pools, wholes):
        least = _whole(pool, price, {g.name: _least(g, always, config) for g in pool})
        # Units of one kind are rounded to whole ones; a joint budget is never exceeded.
        slack = unit_cost(pool[0], config) / 2 if len({g.kind for g in pool}) == 1 else 1e-9 * whole
        if least - _room(pool, fraction, price, always, config) > slack:
            possible = min(possible, 1 - least / whole)
    return fraction, present - sum(min(whole * possible, most) for whole, most in zip(wholes, free))


def _spread(amount: float, wholes: Sequence[float], free: Sequence[float]) -> float:
    """The fraction that takes an amount out of pools, of each of which no more than is free."""
    fraction, left = 0.0, sum(wholes)
    for whole, most in sorted(zip(wholes, free), key=lambda pool: pool[1] / (pool[0] or 1.0)):
        if not left:
            break
        fraction = amount / left
        if fraction * whole <= most:
            break
        amount, left = amount - most, left - whole
    return fraction


def _unreachable(
    total: int | None,
    budget: float,
    least: float,
    groups: Sequence[PrunableGroup],
    always: Mapping[str, int],
    config: PruningConfig,
) -> ValueError:
    """Names the highest value, at which the least possible cost is left."""
    name, value, rest = "sparsity", 1 - least / budget, ""
    if config.sparsity is None:
        name, value = "compression", total / (total - budget + least)
        rest = f": of {total:,} parameters only {budget:,.0f} are of a kind that is cut; embeddings, say, stay"
    limits = f"granularity {list(config.granularity)}"
    limits += "" if WEIGHTS in config.granularity else f", min_units={config.min_units}"
    limits += f", exclude={list(config.exclude)}" if config.exclude else ""
    for kind in dict.fromkeys(g.kind for g in groups if always[g.name]):
        of = [g for g in groups if g.kind == kind]
        kept, size = sum(always[g.name] for g in of), sum(g.size for g in of)
        limits += f"; {kept:,} of {size:,} {kind} are excluded or have a score of infinity, and stay"
    return ValueError(
        f"{config.amount} cannot be reached: the highest possible {name} here is {math.floor(value * 1e4) / 1e4} "
        f"({limits}){rest}"
    )


def _keep_best(
    scores: Scores,
    pool: Sequence[PrunableGroup],
    config: PruningConfig,
    room: float,
    price: Mapping[str, np.ndarray],
    rate: Mapping[str, float],
    always: Mapping[str, int],
    scale: Mapping[str, float],
) -> dict[str, list[int]]:
    """Fills what a pool may cost with its best units by score per cost: positions to keep, by group.

    Every group keeps its best `min_units` first, and all that are always kept. Units then enter in steps of
    `multiple_of`, ranked by their mean score; a step of one unit is plain ranking. A joint budget of several kinds is
    never exceeded; the number of units of one kind is rounded.
    """
    order = {g.name: scores[g.name].argsort(descending=True, stable=True).tolist() for g in pool}
    counts = {g.name: _least(g, always, config) for g in pool}
    steps = []
    for position, group in enumerate(pool):
        ranked = scores[group.name][order[group.name]].tolist()
        multiple = _multiple(group, config)
        for start in range(counts[group.name], group.size, multiple):
            step = ranked[start : start + multiple]
            value = scale[group.kind] * sum(step) / len(step) / rate[group.name]
            steps.append((-value, start, position, len(step)))
    left = room - sum(price[name][count] for name, count in counts.items())
    joint = len({g.kind for g in pool}) > 1
    closed = set()
    for _, start, position, size in sorted(steps):
        name = pool[position].name
        cost = price[name][start + size] - price[name][start]
        if name in closed or cost * (1 - 1e-9 if joint else 0.5 - 1e-9) > left:
            closed.add(name)  # a group's steps enter in order, better units first
            continue
        counts[name] += size
        left -= cost
    return {name: sorted(units[: counts[name]]) for name, units in order.items()}


def _search(
    scores: Scores,
    units: Sequence[PrunableGroup],
    config: PruningConfig,
    room: float,
    price: Mapping[str, np.ndarray],
    always: Mapping[str, int],
    scale: Mapping[str, float],
) -> dict[str, list[int]]:
    """The sizes with the largest sum of scores of which the times fit into `room`: a knapsack with one choice for
    every group, solved by dynamic programming over the time in `TICKS` steps, each group's rounded down.

    Times need not grow evenly with the size, nor at all.
    """
    tick = max(room, 1e-12) / TICKS
    best = np.zeros(TICKS + 1)  # of the groups so far, the largest sum within so many ticks
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    order = {g.name: scores[g.name].argsort(descending=True, stable=True).tolist() for g in units}
    for group in units:
        multiple = _multiple(group, config)
        step = multiple * -(-group.size // (multiple * CHOICES_PER_GROUP))
        first = _least(group, always, config)
        counts = np.array([*range(first, group.size, step), group.size])
        ranked = _finite(scores[group.name])[order[group.name]]  # what is always kept is in every choice
        worth = np.concatenate([[0.0], ranked.double().cumsum(0).numpy()])
        ticks = np.floor(price[group.name][counts] / tick).astype(int)
        sums, chosen = np.full(TICKS + 1, -np.inf), np.zeros(TICKS + 1, dtype=np.int32)
        for count, used in zip(counts, ticks):
            if used <= TICKS:
                reached = best[: TICKS + 1 - used] + scale[group.kind] * worth[count]
                better = reached >= sums[used:]
                sums[used:][better] = reached[better]
                chosen[used:][better] = count
        taken.append((chosen, price[group.name]))
        best = sums
    keep, left = {}, TICKS
    for group, (chosen, times) in zip(reversed(units), reversed(taken)):
        count = int(chosen[left])
        left -= int(np.floor(times[count] / tick))
        keep[group.name] = sorted(order[group.name][:count])
    return keep
