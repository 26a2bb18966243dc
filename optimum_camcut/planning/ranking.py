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
"""Which units stay: those with the best scores for what they may cost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..architectures.groups import PrunableGroup
from ..methods import get_scorer
from ..scoring.loop import Scores
from .costs import Costs


TICKS = 2**15  # of the time to keep, in the search for the best sizes within it
CHOICES_PER_GROUP = 64  # sizes of a layer in that search


def largest(values: Tensor, count: int) -> Tensor:
    """Bool: True at the largest values; of equal ones, the earlier."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    if count > 0:
        threshold = values.kthvalue(len(values) - count + 1).values
        chosen = values > threshold
        chosen[(values == threshold).nonzero().flatten()[: count - int(chosen.sum())]] = True
    return chosen


def order_of(scores: Tensor, group: PrunableGroup) -> list[int]:
    """Positions of a group's units, the largest scores first. Of neurons inside of experts, the best of each expert
    first, then the second of each: any multiple of the experts from the start is as many of each."""
    by_expert = scores.view(group.experts or 1, -1)
    order = by_expert.argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(len(by_expert), device=order.device)[:, None] * by_expert.shape[1]
    return (order + starts).T.flatten().tolist()


def count_kept(scores: Tensor, group: PrunableGroup) -> int:
    """How many units stay where some have a score of infinity: those, and of the other experts as many."""
    by_expert = torch.isposinf(scores).view(group.experts or 1, -1)
    return int(by_expert.sum(1).max()) * len(by_expert)


def scale_of_kinds(
    scores: Scores,
    groups: Sequence[PrunableGroup],
    rate: Mapping[str, float],
    costs: Costs,
) -> dict[str, float]:
    """What makes scores of different kinds comparable. Estimates of the loss change are; of other scores, each kind
    gets the share of the total that it has of the cost. Units that are always kept are in neither."""
    scale = {group.kind: 1.0 for group in groups}
    if not get_scorer(costs.config.method, costs.config.granularity).quadratic:
        for kind in scale:
            pool = [g for g in groups if g.kind == kind]
            total = sum(float(_finite(scores[g.name]).sum()) for g in pool)
            scale[kind] = sum((g.size - costs.always[g.name]) * rate[g.name] for g in pool) / (total or 1.0)
    return scale


def _finite(scores: Tensor) -> Tensor:
    """The scores with 0 in the place of infinity, for sums over the others."""
    return scores.masked_fill(torch.isposinf(scores), 0)


def keep_best(
    scores: Scores,
    pool: Sequence[PrunableGroup],
    costs: Costs,
    room: float,
    rate: Mapping[str, float],
    scale: Mapping[str, float],
) -> dict[str, list[int]]:
    """Fills what a pool may cost with its best units by score per cost: positions to keep, by group.

    Every group keeps its best `min_units` first, and all that are always kept. Units then enter in steps of
    `multiple_of`, ranked by their mean score; a step of one unit is plain ranking. A joint budget of several kinds is
    never exceeded; the number of units of one kind is rounded.
    """
    order = {g.name: order_of(scores[g.name], g) for g in pool}
    counts = {g.name: costs.least(g) for g in pool}
    steps = []
    for position, group in enumerate(pool):
        ranked = scores[group.name][order[group.name]].tolist()
        multiple = costs.multiple(group)
        for start in range(counts[group.name], group.size, multiple):
            step = ranked[start : start + multiple]
            value = scale[group.kind] * sum(step) / len(step) / rate[group.name]
            steps.append((-value, start, position, len(step)))
    left = room - sum(costs.price[name][count] for name, count in counts.items())
    joint = len({g.kind for g in pool}) > 1
    closed = set()
    for _, start, position, size in sorted(steps):
        name = pool[position].name
        cost = costs.price[name][start + size] - costs.price[name][start]
        if name in closed or cost * (1 - 1e-9 if joint else 0.5 - 1e-9) > left:
            closed.add(name)  # a group's steps enter in order, better units first
            continue
        counts[name] += size
        left -= cost
    return {name: sorted(units[: counts[name]]) for name, units in order.items()}


def search(
    scores: Scores,
    units: Sequence[PrunableGroup],
    costs: Costs,
    room: float,
    scale: Mapping[str, float],
) -> dict[str, list[int]]:
    """The sizes with the largest sum of scores of which the times fit into `room`: a knapsack with one choice for
    every group, solved by dynamic programming over the time in `TICKS` steps, each group's rounded down.

    Times need not grow evenly with the size, nor at all.
    """
    order = {g.name: order_of(scores[g.name], g) for g in units}
    worth = {}
    for group in units:
        ranked = _finite(scores[group.name])[order[group.name]]  # what is always kept is in every choice
        sums = np.concatenate([[0.0], ranked.double().cumsum(0).numpy()])
        worth[group.name] = scale[group.kind] * sums
    counts = best_sizes(worth, units, costs, room)
    return {name: sorted(order[name][:count]) for name, count in counts.items()}


def best_sizes(
    worth: Mapping[str, np.ndarray],
    units: Sequence[PrunableGroup],
    costs: Costs,
    room: float,
    within: bool = False,
) -> dict[str, int]:
    """The sizes with the largest sum of what they are worth; see `search`.

    Args:
        worth (`Mapping[str, np.ndarray]`): group name -> what it is worth with 0 to all units, `(size + 1,)`.
        within (`bool`): prices are rounded up, so that the room is never exceeded.
    """
    tick = max(room, 1e-12) / TICKS
    rounded = np.ceil if within else np.floor
    best = np.zeros(TICKS + 1)  # of the groups so far, the largest sum within so many ticks
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for group in units:
        multiple = costs.multiple(group)
        step = multiple * -(-group.size // (multiple * CHOICES_PER_GROUP))
        first = costs.least(group)
        counts = np.array([*range(first, group.size, step), group.size])
        ticks = rounded(costs.price[group.name][counts] / tick).astype(int)
        sums, chosen = np.full(TICKS + 1, -np.inf), np.zeros(TICKS + 1, dtype=np.int32)
        for count, used in zip(counts, ticks):
            if used <= TICKS:
                reached = best[: TICKS + 1 - used] + worth[group.name][count]
                better = reached >= sums[used:]
                sums[used:][better] = reached[better]
                chosen[used:][better] = count
        taken.append((chosen, costs.price[group.name]))
        best = sums
    found, left = {}, TICKS
    for group, (chosen, times) in zip(reversed(units), reversed(taken)):
        count = int(chosen[left])
        left -= int(rounded(times[count] / tick))
        found[group.name] = count
    return found
