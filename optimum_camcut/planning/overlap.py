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
"""`mask_iou`: how much two plans agree on what to remove."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .plan import PruningPlan, is_weight, layer_of


@dataclass(frozen=True)
class MaskOverlap:
    """Intersection over union of what two plans remove; 1.0 where neither removes anything.

    Args:
        groups (`dict[str, float]`): by group.
        layers (`dict[str, float]`): by layer: the intersections of its groups, summed, over their unions, summed.
        total (`float`): the same over all groups.
    """

    groups: dict[str, float]
    layers: dict[str, float]
    total: float


def mask_iou(first: PruningPlan, second: PruningPlan) -> MaskOverlap:
    """Intersection over union (IoU) of the units that two plans remove, of any granularity.

    1.0 means that they remove the same units (or none at all), 0.0 that they share none. A group that only one plan
    names stays whole in the other.

    Args:
        first, second (`PruningPlan`): for the same model, with the sizes of their groups.

    Raises:
        `TypeError`: not a plan.
        `ValueError`: the plans are for different models, or a plan does not know the size of a group.
    """
    return pairwise_iou({"first": first, "second": second})["first", "second"]


def pairwise_iou(plans: Mapping[str, PruningPlan]) -> dict[tuple[str, str], MaskOverlap]:
    """`mask_iou` of every two of the plans, by their labels, in the order of the plans."""
    _check(plans)
    names = list(dict.fromkeys(name for plan in plans.values() for name in plan.keep))
    pairs = list(combinations(plans, 2))
    # Pair -> group -> (units in the intersection, units in the union).
    counts: dict[tuple[str, str], dict[str, tuple[int, int]]] = {pair: {} for pair in pairs}
    for name in names:  # one group at a time: the masks of a whole model need not fit into memory together
        masks = {label: plan.mask(name) for label, plan in plans.items() if name in plan.keep}
        size = len(next(iter(masks.values())))
        kept = {label: int(np.count_nonzero(mask)) for label, mask in masks.items()}
        for pair in pairs:
            first, second = pair
            if first in masks and second in masks:
                both = int(np.count_nonzero(masks[first] & masks[second]))
            else:
                # A plan that does not name the group keeps it whole.
                both = min(kept.get(first, size), kept.get(second, size))
            either = kept.get(first, size) + kept.get(second, size) - both
            counts[pair][name] = (size - either, size - both)  # removed by both is kept by neither
    return {pair: _overlap(of_pair) for pair, of_pair in counts.items()}


def _overlap(counts: Mapping[str, tuple[int, int]]) -> MaskOverlap:
    layers = defaultdict(list)
    for name, count in counts.items():
        layers[layer_of(name)].append(count)
    return MaskOverlap(
        groups={name: _ratio([count]) for name, count in counts.items()},
        layers={layer: _ratio(of_layer) for layer, of_layer in layers.items()},
        total=_ratio(counts.values()),
    )


def _ratio(counts: Collection[tuple[int, int]]) -> float:
    intersection, union = (sum(column) for column in zip(*counts)) if counts else (0, 0)
    return intersection / union if union else 1.0


def _check(plans: Mapping[str, PruningPlan]) -> None:
    """Raises unless the plans are for one model and know its sizes."""
    for label, plan in plans.items():
        if not isinstance(plan, PruningPlan):
            raise TypeError(f"expected the {label} plan to be a PruningPlan, got {type(plan).__name__}")
        unknown = [name for name in plan.keep if name not in plan.sizes]
        if unknown:
            raise ValueError(
                f"the {label} plan does not know the size of {unknown[0]!r}, so what it removes is unknown; take "
                "`model.pruning_plan` after apply_plan, or give `sizes`, the units of each group in the uncut model"
            )
    weights = [label for label, plan in plans.items() if any(map(is_weight, plan.keep))]
    units = [label for label, plan in plans.items() if not all(map(is_weight, plan.keep))]
    if weights and units and weights != units:
        raise ValueError(
            f"expected plans of one kind; the {weights[0]} plan masks single weights, the {units[0]} cuts units"
        )
    for (first, one), (second, other) in combinations(plans.items(), 2):
        for name in ("model_type", "num_layers"):
            here, there = getattr(one, name), getattr(other, name)
            if here is not None and there is not None and here != there:
                raise ValueError(
                    f"expected plans for one model; the {first} plan is for {name}={here!r}, the {second} plan for "
                    f"{there!r}"
                )
        differing = [name for name in one.sizes if other.sizes.get(name, one.sizes[name]) != one.sizes[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"expected plans for one model; {name!r} has {one.sizes[name]} units in the {first} plan and "
                f"{other.sizes[name]} in the {second} plan"
            )
