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
"""Whether a model can be cut by a plan: asked before anything changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.entry import STACKED
from ..architectures.groups import PrunableGroup
from ..architectures.structure import sublayer_of
from ..architectures.vocabulary import VOCABULARY
from ..planning.plan import PruningPlan, is_weight
from ..planning.units import mask_of
from ..utils.files import nearest
from .vocabulary import check_tokens


def check_in_memory(model: PreTrainedModel) -> None:
    """Raises `ValueError` if weights of the model are offloaded."""
    if any(p.is_meta for p in model.parameters()) and any(hasattr(m, "_hf_hook") for m in model.modules()):
        raise ValueError(
            "the model's weights are offloaded by its device_map, out of reach: save the plan, load the model whole "
            "(on the CPU, say) and apply the plan to that"
        )


def check_plan(
    plan: PruningPlan,
    model: PreTrainedModel,
    groups: Mapping[str, PrunableGroup],
    removed: Collection[str],
    layers: int | None,
) -> None:
    """Raises `ValueError` if a plan is for another model, or keeps what an earlier cut removed.

    Args:
        groups: of the model, by name.
        removed: names of the sub-layers that it has lost.
        layers: blocks that it has.
    """
    if plan.model_type is not None and plan.model_type != model.config.model_type:
        raise ValueError(f"the plan is for a {plan.model_type!r} model; this one is {model.config.model_type!r}")
    if plan.num_layers is not None and plan.num_layers != layers:
        raise ValueError(f"the plan is for a model of {plan.num_layers} layers; this one has {layers}")
    for name, units in plan.keep.items():
        if sublayer_of(name) in removed:
            if units:
                raise ValueError(f"the plan keeps units {list(units)} of {name!r}, which was removed already")
            continue
        if name not in groups:
            raise ValueError(
                f"the plan names the group {name!r}, which the model lacks; it has {', '.join(groups)}"
                f"{nearest(name, groups)}"
            )
        _check_units(plan, groups[name])


def _check_units(plan: PruningPlan, group: PrunableGroup) -> None:
    name, units = group.name, plan.keep[group.name]
    size = plan.sizes.get(name, group.original_size)
    if size != group.original_size:
        hint = "; masks number the weights of a model as it was cut, so cut it first" if is_weight(name) else ""
        raise ValueError(
            f"the plan is for a model with {size} units in {name!r}; this has {group.original_size}{hint}"
        )
    if len(units) and units[-1] >= group.original_size:
        raise ValueError(f"{name!r} has no unit {units[-1]}: it has {group.original_size}, numbered from 0")
    gone = mask_of(units, group.original_size) & ~mask_of(group.units, group.original_size)
    if gone.any():
        raise ValueError(
            f"the plan keeps units {gone.nonzero()[0].tolist()[:10]} of {name!r}, which were removed already"
        )


def check_cuts(
    cuts: Sequence[tuple[PrunableGroup, Sequence[int]]],
    model: PreTrainedModel,
    around: nn.Module,
    masked: bool,
    owned: bool,
) -> None:
    """Raises `ValueError` if the model cannot be cut as it is.

    Args:
        cuts: groups of heads, neurons or sub-layers that change, and the units of each to keep.
        around: the module that was given, which may hold the model.
        masked: whether single weights are masked, by this plan or an earlier one.
        owned: whether another transformers model holds this one as a part.
    """
    if cuts and masked:
        raise ValueError(
            f"{cuts[0][0].name!r} cannot be cut together with masking single weights, nor after it: cut first, then "
            "score and mask the weights that are left"
        )
    if cuts and any(isinstance(part, DistributedDataParallel) for part in around.modules()):
        raise ValueError(
            "DistributedDataParallel holds on to the parameters that a cut replaces: cut the model inside "
            "(`model.module`) and wrap it anew"
        )
    named = {group.name for group, _ in cuts}
    for group, units in cuts:
        if group.kind == VOCABULARY:
            check_tokens(model, group, units, owned)
            continue
        _check_experts(group, units, named)
        if not units and not group.bypass and isinstance(model.get_submodule(group.output.module), Conv1D):
            raise ValueError(
                f"the plan keeps nothing of {group.name!r}, and transformers' Conv1D does not run without features; "
                f"remove {sublayer_of(group.name)!r} instead, or keep a unit (min_units=1)"
            )


def _check_experts(group: PrunableGroup, units: Sequence[int], named: Collection[str]) -> None:
    if group.observed == "routing" and len(units) < group.fewest:
        raise ValueError(
            f"the plan keeps {len(units)} experts of {group.name!r}, and each token is sent to {group.fewest} "
            "(num_experts_per_tok); keep as many, or remove the whole sub-layer"
        )
    if group.observed != "inside":
        return
    each = group.original_size // group.experts
    counts = {sum(unit // each == expert for unit in units) for expert in range(group.experts)}
    if len(counts) > 1:
        raise ValueError(
            f"the plan keeps between {min(counts)} and {max(counts)} neurons of the experts in {group.name!r}; their "
            "weights are stacked, so keep the same number in each (unit // "
            f"{each} is the expert of a unit)"
        )
    if not counts - {0}:
        raise ValueError(f"the plan keeps no neurons in {group.name!r}; remove {sublayer_of(group.name)!r} instead")
    if min(counts) % STACKED and min(counts) < each:
        raise ValueError(
            f"the plan keeps {min(counts)} neurons of each expert in {group.name!r}; stacked experts run in torch's "
            f"grouped product, which takes rows of a multiple of 16 bytes: keep a multiple of {STACKED}"
        )
    if group.name.replace("expert_neurons", "experts") in named:
        raise ValueError(
            f"the plan cuts experts and {group.name!r}, which are numbered by all experts; cut one of them"
        )
