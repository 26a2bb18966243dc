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
"""What may be cut: groups of units that live and die together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from .modeling_camcut import RECORD, PrunableGroup, Slice, count_units, list_groups


__all__ = ["PrunableGroup", "Slice", "check_group", "find_groups"]

KINDS = ("heads", "neurons", "layers")


def find_groups(model: PreTrainedModel, kinds: Sequence[str] = ("heads", "neurons")) -> list[PrunableGroup]:
    """Lists everything that can be cut in a model: one group a layer and kind.

    In architectures with grouped key-value heads (llama) a unit of `"heads"` is a key-value head with all the query
    heads that share it. A group of `"layers"` is one sub-layer, attention or feed-forward, as a single unit.

    Args:
        model (`PreTrainedModel`): a transformers model of a supported architecture, with any task head.
        kinds (`Sequence[str]`): which of `"heads"`, `"neurons"` and `"layers"` to list.

    Returns:
        `list[PrunableGroup]`: in the order of the layers. In a pruned model, `group.units` holds the original index of
        each unit that is left; of a sub-layer that was removed, nothing is listed.

    Raises:
        `TypeError`: `model` is not a transformers model (unwrap it first).
        `ValueError`: an unknown kind, an unsupported architecture, or a pruned model that has lost its plan.
    """
    if isinstance(kinds, str):
        kinds = (kinds,)
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ValueError(f"unknown kinds {sorted(unknown)}; expected one or more of {', '.join(KINDS)}")
    if not isinstance(model, PreTrainedModel):
        hint = "; pass the model inside it (`model.module`)" if isinstance(model, nn.Module) else ""
        raise TypeError(f"expected a transformers PreTrainedModel, got {type(model).__name__}{hint}")
    groups = [group for group in list_groups(model) if group.size or group.kind != "layers"]
    plan = getattr(model, "pruning_plan", None)
    if plan is None and getattr(model.config, RECORD, None) is not None:
        raise ValueError(
            "this model is pruned, but which units it kept is not known to it; load it with "
            "`optimum_camcut.load_pruned`, which reads its pruning_plan.json"
        )
    if plan is not None:
        groups = [
            dataclasses.replace(group, units=plan.keep[group.name], original_size=plan.sizes[group.name])
            if group.name in plan.keep
            else group
            for group in groups
        ]
    return [group for group in groups if group.kind in kinds]


def check_group(model: nn.Module, group: PrunableGroup) -> None:
    """Raises `ValueError` if a group is from another model, or from before a cut."""
    try:
        size = count_units(model, group.output)
    except AttributeError:
        size = None
    if size != group.size:
        has = "lacks it" if size is None else f"has {size}"
        raise ValueError(
            f"the group {group.name!r} has {group.size} units, but the {type(model).__name__} {has}; list the groups "
            "anew with find_groups(model), and pass the model without wrappers"
        )
