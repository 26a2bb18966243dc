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

import numpy as np
import torch

from ..architectures.groups import WEIGHTS, PrunableGroup
from ..architectures.structure import sublayer_of
from ..architectures.vocabulary import VOCABULARY
from ..config import PruningConfig
from ..scoring.loop import Scores, check_scores
from .costs import Costs, unit_cost
from .exclusion import excluded, with_kept
from .plan import PruningPlan, layer_of
from .ranking import count_kept, keep_best, largest, scale_of_kinds, search
from .times import LatencyTable
from .units import IndexSet, mask_of


logger = logging.getLogger(__name__)

JOINT = ("global", "search")  # allocations that rank all kinds together, or need not
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

    Tokens lose the same fraction of their parameters as all other units together, and at least those that score less
    than `config.min_frequency`.

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
    if config.allocation == "search":
        raise ValueError(
            "allocation='search' goes by what the model gives, which scores do not tell: call "
            "search_plan(model, groups, scores, config, dataloader), or leave it to CamCutTrainer"
        )
    names = {group.name for group in groups}
    groups = [group for group in groups if group.kind in config.granularity]
    if not groups:
        raise ValueError(
            f"no groups of {' or '.join(config.granularity)} to plan for; find_groups(model, {config.granularity}) "
            "gives them"
        )
    wanted = {group.name for group in groups}
    check_scores({name: s for name, s in scores.items() if name in wanted or name not in names}, groups)
    scores = with_kept(scores, groups, config)
    keep: Mapping[str, Sequence[int]]
    if groups[0].kind == WEIGHTS:
        keep = _choose_weights(scores, groups, config)
    else:
        keep, spent = {}, 1.0
        for part, own in _parts(groups, config):
            if part[0].kind == VOCABULARY:
                keep |= _choose_tokens(scores, part[0], own)
            else:
                units, spent = _choose_units(scores, part, own, latency)
                keep |= units
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
        whole = wanted <= excluded(groups, config)
        reason = "exclude names all that there is" if whole else f"{config.amount} is too little for one unit"
        logger.warning("the plan removes nothing: %s", reason)
    groups = [g for g in groups if g.name in keep]
    return PruningPlan(
        keep={g.name: keep[g.name] for g in groups},
        sizes={g.name: g.original_size for g in groups},
        model_type=groups[0].model_type,
        config=dataclasses.replace(config),
        num_layers=groups[0].num_layers,
    )


def _parts(groups: Sequence[PrunableGroup], config: PruningConfig) -> list[tuple[list[PrunableGroup], PruningConfig]]:
    """The units of blocks, and the tokens: each loses the same fraction of its parameters."""
    tokens = [g for g in groups if g.kind == VOCABULARY]
    rest = [g for g in groups if g.kind != VOCABULARY]
    if tokens and rest and config.sparsity is None:
        inner = [g for g in rest if g.kind == "layers"] or rest  # sub-layers hold the rest
        budget = sum(g.size * unit_cost(g, config) for g in [*tokens, *inner])
        fraction = min(_fraction_of_budget(groups[0].model_parameters, budget, config), 1 - 1e-9)
        config = dataclasses.replace(config, sparsity=fraction, compression=None)
    return [(part, config) for part in (rest, tokens) if part]


def _choose_tokens(scores: Scores, group: PrunableGroup, config: PruningConfig) -> dict[str, IndexSet]:
    """Tokens to keep: within the budget, and no others than those that are there often enough."""
    kept, _ = _choose_units(scores, [group], config, None)
    mask = mask_of(kept[group.name], group.original_size).copy()
    if config.min_frequency is not None:
        rare = (scores[group.name] < config.min_frequency).nonzero().flatten().tolist()
        mask[[group.units[position] for position in rare]] = False
    return {group.name: IndexSet(mask)}


def _choose_units(
    scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig, latency: LatencyTable | None
) -> tuple[dict[str, tuple[int, ...]], float]:
    """What to keep of heads, neurons and sub-layers, by group; and what that costs over what it should."""
    always = {g.name: count_kept(scores[g.name], g) for g in groups}
    costs = Costs.of(groups, config, latency, always)
    price, budget, fixed, total = costs.price, costs.budget, costs.fixed, groups[0].model_parameters
    target = (budget + fixed) * (1 - _fraction_of_budget(total, budget, config)) - fixed  # the cost to keep
    layers = [g for g in groups if g.kind == "layers"]
    ranked = _rank_layers(scores, layers, costs) or [[]]
    prices = [sum(price[g.name][-1] for g in candidate) for candidate in ranked]
    fewest = max(sum(any(always[g.name] for g in candidate) for candidate in ranked), 1)
    for count in range(_count_layers(prices, budget, target, len(layers) < len(groups), fewest), fewest - 1, -1):
        removed = {g.name for candidate in ranked[count:] for g in candidate}
        units = [g for g in groups if g.kind != "layers" and sublayer_of(g.name) not in removed]
        present = budget - sum(prices[count:])
        fraction, least = _fraction_to_remove(units, present, target, costs)
        if least - target <= (1e-9 * budget if units else prices[count - 1] / 2):
            break  # else the units that are left cannot give what is wanted, and one more sub-layer goes
    else:
        raise _unreachable(total, budget + fixed, least + fixed, groups, always, config)
    keep = {g.name: [] if g.name in removed else [0] for g in layers}
    keep |= _keep_units(scores, units, costs, fraction, present, target)
    cost = present - sum(price[g.name][-1] - price[g.name][len(keep[g.name])] for g in units)
    kept = {g.name: tuple(g.units[i] for i in keep[g.name]) for g in groups if g.name in keep}
    return kept, (cost + fixed) / ((target + fixed) or 1.0)


def _keep_units(
    scores: Scores,
    units: Sequence[PrunableGroup],
    costs: Costs,
    fraction: float,
    present: float,
    target: float,
) -> dict[str, list[int]]:
    """Positions of the heads and neurons to keep, by group."""
    config, price, rate = costs.config, costs.price, costs.rates(units)
    if config.allocation in JOINT:
        scale = scale_of_kinds(scores, units, rate, costs)
        if config.budget == "latency":
            room = target - present + sum(price[g.name][-1] for g in units)
            return search(scores, units, costs, room, scale)
        return keep_best(scores, units, costs, costs.room(units, fraction), rate, scale)
    keep: dict[str, list[int]] = {}
    scale = dict.fromkeys(config.granularity, 1.0)
    left = list(units)
    for kind in sorted({g.kind for g in units}):  # heads, then neurons, which are finer
        chosen = [g for g in left if g.kind == kind]
        for pool in _pools(chosen, config):
            keep |= keep_best(scores, pool, costs, costs.room(pool, fraction), rate, scale)
        left = [g for g in left if g.kind != kind]
        if left and (config.allocation == "uniform" or config.budget == "latency"):
            present -= sum(price[g.name][-1] - price[g.name][len(keep[g.name])] for g in chosen)
            fraction = min(_fraction_to_remove(left, present, target, costs)[0], 1.0)
    return keep


def budget_of(
    scores: Scores, groups: Sequence[PrunableGroup], config: PruningConfig, latency: LatencyTable | None
) -> tuple[Costs, float]:
    """What heads and neurons cost, and what those that stay may cost; `scores` say which always do.

    Raises:
        `ValueError`: the budget cannot be met.
    """
    _choose_units(scores, groups, config, latency)  # raises
    costs = Costs.of(groups, config, latency, {g.name: count_kept(scores[g.name], g) for g in groups})
    whole = costs.budget + costs.fixed
    return costs, whole * (1 - _fraction_of_budget(groups[0].model_parameters, costs.budget, config)) - costs.fixed


def check_budget(groups: Sequence[PrunableGroup], config: PruningConfig, latency: LatencyTable | None = None) -> None:
    """Raises `ValueError`, naming the highest possible value, if the groups cannot give what the config wants: what
    `make_plan` would raise, before there are scores."""
    if WEIGHTS in config.granularity:
        whole = excluded(groups, config)
        _fraction_of_weights(groups, {g.name: g.size * (g.name in whole) for g in groups}, config)
    else:
        ones = with_kept({g.name: torch.ones(g.size) for g in groups}, groups, config)
        for part, own in _parts(groups, config):
            _choose_units(ones, part, own, latency)


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
    masks = {g.name: torch.from_numpy(mask_of(g.units, g.original_size)) for g in groups}
    keep: dict[str, IndexSet] = {}
    always = {g.name: int((torch.isposinf(scores[g.name]).flatten() & masks[g.name]).sum()) for g in groups}
    fraction = _fraction_of_weights(groups, always, config)
    for pool in _pools(groups, config):
        present, least = [masks[g.name] for g in pool], sum(always[g.name] for g in pool)
        values = torch.cat([scores[group.name].flatten()[mask] for group, mask in zip(pool, present)])
        chosen = largest(values, max(math.floor(len(values) * (1 - fraction) + 0.5), least))
        for group, mask, part in zip(pool, present, chosen.split([int(mask.sum()) for mask in present])):
            kept = torch.zeros(group.original_size, dtype=torch.bool)
            kept[mask] = part
            keep[group.name] = IndexSet(kept.numpy())
    emptied = [name for name, units in keep.items() if not units and name.endswith(".weight")]
    if emptied:
        logger.warning("the plan removes all weights of %s: nothing flows through them any more", ", ".join(emptied))
    return keep


def removed_by(number: int, rounds: int) -> float:
    """The part of what is to be removed that is gone after so many rounds: 1 - (1 - number / rounds)³, much in the
    first and little in the last (Zhu and Gupta 2017, eq. 1)."""
    return 1 - (1 - number / rounds) ** 3


def _pools(units: Sequence[PrunableGroup], config: PruningConfig) -> list[list[PrunableGroup]]:
    """Groups whose units are ranked together."""
    if config.allocation in JOINT:
        return [list(units)] if units else []
    if config.allocation == "uniform":
        return [[g] for g in units]
    return [[g for g in units if g.kind == kind] for kind in dict.fromkeys(g.kind for g in units)]


def _fraction_of_budget(total: int | None, budget: float, config: PruningConfig) -> float:
    """The fraction of the budget that the config wants removed."""
    if config.sparsity is not None:
        return config.sparsity
    if config.compression is None:  # tokens go by min_frequency alone
        return 0.0
    if total is None:
        raise ValueError("compression needs the model's parameter count; take the groups from find_groups(model)")
    return total * (1 - 1 / config.compression) / budget


def _rank_layers(scores: Scores, layers: Sequence[PrunableGroup], costs: Costs) -> list[list[PrunableGroup]]:
    """Sub-layers or whole blocks, the highest score per cost first, the earlier first in a tie."""
    candidates: dict[str, list[PrunableGroup]] = {}
    for g in layers:
        candidates.setdefault(layer_of(g.name) if costs.config.layer_unit == "block" else g.name, []).append(g)

    def value(candidate: list[PrunableGroup]) -> float:
        return sum(float(scores[g.name]) for g in candidate) / (costs.whole(candidate) or 1.0)

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
    units: Sequence[PrunableGroup], present: float, target: float, costs: Costs
) -> tuple[float, float]:
    """Fraction of each pool's units to remove so that of the present cost the target is left, and the least that can
    be left where a pool cannot give so much. For what is always kept, the other pools give more."""
    config, price = costs.config, costs.price
    if config.budget == "latency":
        fractions = np.linspace(0, 1, 4001)
        left = present - costs.whole(units) + costs.room(units, fractions)
        enough = np.flatnonzero(left <= target)
        least = present - sum(price[g.name][-1] - price[g.name][costs.least(g) :].min() for g in units)
        return float(fractions[enough[0]]) if len(enough) else 1.0, least
    pools = _pools(units, config)
    wholes = [costs.whole(pool) for pool in pools]
    free = [whole - costs.floor(pool) for pool, whole in zip(pools, wholes)]
    fraction = possible = _spread(max(present - target, 0), wholes, free)
    for pool, whole in zip(pools, wholes):
        least = costs.whole(pool, {g.name: costs.least(g) for g in pool})
        # Units of one kind are rounded to whole ones; a joint budget is never exceeded.
        slack = unit_cost(pool[0], config) / 2 if len({g.kind for g in pool}) == 1 else 1e-9 * whole
        if least - costs.room(pool, fraction) > slack:
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
    if total is not None and config.sparsity is None:
        name, value = "compression", total / (total - budget + least)
        rest = f": of {total:,} parameters only {budget:,.0f} are of a kind that is cut; embeddings, say, stay"
    limits = f"granularity {list(config.granularity)}"
    limits += "" if WEIGHTS in config.granularity else f", min_units={config.min_units}"
    limits += f", exclude={list(config.exclude)}" if config.exclude else ""
    routed = max((g.fewest for g in groups), default=0)
    limits += f"; each token is sent to {routed} experts (num_experts_per_tok), and as many stay" if routed else ""
    for kind in dict.fromkeys(g.kind for g in groups):
        if kind not in ("layers", WEIGHTS) and all(
            g.size <= config.least_units(kind) for g in groups if g.kind == kind
        ):
            limits += f"; every layer has as few {kind} as it may keep: leave {kind!r} out of granularity"
    for kind in dict.fromkeys(g.kind for g in groups if always[g.name]):
        of = [g for g in groups if g.kind == kind]
        kept, size = sum(always[g.name] for g in of), sum(g.size for g in of)
        limits += f"; {kept:,} of {size:,} {kind} are excluded or have a score of infinity, and stay"
    return ValueError(
        f"{config.amount} cannot be reached: the highest possible {name} here is {math.floor(value * 1e4) / 1e4} "
        f"({limits}){rest}"
    )
