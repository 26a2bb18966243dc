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
"""Cutting: `apply_plan` and `prune_heads` make the model physically smaller, in place."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.entry import SUBLAYERS
from ..architectures.groups import WEIGHTS, PrunableGroup, find_groups, inner_model, possible_kinds
from ..architectures.modeling_camcut import RECORD
from ..architectures.position_bias import bind_position_bias
from ..architectures.recipes import stacks_of
from ..architectures.structure import (
    blocks_of,
    config_fields,
    cut_groups,
    give_config,
    label_of,
    list_blocks,
    list_groups,
    sub_configs,
)
from ..architectures.vocabulary import VOCABULARY
from ..planning.plan import PruningPlan, as_in_config, is_unit, is_weight, plain_shape, plan_of, without_removed
from ..utils.from_gguf import forget_gguf
from ..utils.handed_in import handed_in
from ..utils.sharding import check_whole
from .masking import list_masks, zero_weights
from .plan_check import check_cuts, check_in_memory, check_plan
from .stale import refuse_steps_of
from .vocabulary import renumber


logger = logging.getLogger(__name__)

ModelOrModule = TypeVar("ModelOrModule", bound=nn.Module)


def apply_plan(model: ModelOrModule, plan: PruningPlan) -> ModelOrModule:
    """Removes from the model every unit that the plan does not keep. All of it happens, or none.

    Heads and neurons are cut: parameters are replaced by smaller ones of the same dtype, device and `requires_grad`.
    Make the optimizer afterwards: the next step of one that holds replaced parameters is an error. A sub-layer that is
    removed passes its input on unchanged, its norm included; blocks keep their numbers. The model's config becomes a
    copy of its own that records the sizes. Single weights are set to zero in place, where `CamCutTrainer` keeps them,
    and `hold_masks` around a training loop of your own.

    A part of a composite model is cut on its own, `apply_plan(model.encoder, plan)`: every model that holds it gets a
    config that records this too, and saves and loads what it takes.

    The model's class becomes a subclass of the same name whose `save_pretrained` also writes the plan. A cut model is
    read by `load_pruned` and by `from_pretrained(..., trust_remote_code=True)`; one with masked weights, or whose
    layers all have the same size in numbers that its config has a field for, is a plain checkpoint; and so is one that
    has lost tokens alone. Those that stay are numbered anew, in the configs too, in the order that they had.

    Args:
        model (`PreTrainedModel` or `nn.Module`): of a supported architecture, or a module that holds one such model;
            pruned before or not.
        plan (`PruningPlan`): indices are those of the uncut model, also for a model pruned before.

    Returns:
        The same object.

    Raises:
        `TypeError`: neither a transformers model nor a module that holds exactly one, or not a plan.
        `ValueError`: the plan is for another model, names a group or unit that the model lacks, keeps a unit that an
            earlier cut removed, keeps nothing of one in GPT-2, or cuts what has masked weights; or the model is
            offloaded or sharded.
    """
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"expected a PruningPlan, got {type(plan).__name__}")
    check_whole(model, "cutting")
    inner = inner_model(model, adapters=False)
    check_in_memory(inner)
    forget_gguf(inner)
    masks = {name for name in plan.keep if is_weight(name)}
    tokens = {VOCABULARY} & set(plan.keep)
    cuts_units = any(map(is_unit, plan.keep)) or not plan.keep
    kinds = [*(possible_kinds(inner) if cuts_units else ()), *tokens, *([WEIGHTS] if masks else ())]
    groups = {group.name: group for group in find_groups(inner, kinds or None)}
    removed = {group.name for group in list_groups(inner)} - set(groups) if cuts_units else set()
    blocks = [block.name for block in blocks_of(inner)] if cuts_units else []
    layers = len(blocks) if cuts_units else next(iter(groups.values())).num_layers
    check_plan(plan, inner, groups, removed, layers)
    before = plan_of(inner)
    keep = without_removed({**(before.keep if before else {}), **plan.keep})
    cuts = [(groups[n], keep[n]) for n in plan.keep if n in groups and n in keep and n not in masks]
    cuts = [(group, units) for group, units in cuts if units != group.units]
    owners = owners_of(inner)
    check_cuts(cuts, inner, model, masked=any(map(is_weight, keep)), owned=bool(owners))
    parts = [name for kind, part in SUBLAYERS.items() for name in (part, kind)]
    order = [f"{block}.{name}" for block in blocks for name in dict.fromkeys(parts)]
    kept = _joined(plan, before, keep, groups, layers, order, inner.config.model_type)

    before_cut = list(inner.parameters())
    positions = {group.name: positions_of(group, units) for group, units in cuts}
    cut_groups(inner, [(group, positions[group.name]) for group, _ in cuts])
    refuse_steps_of(before_cut, inner)
    inner.pruning_plan = kept
    zero_weights(mask for mask in list_masks(inner) if mask.name in masks)
    before_record = inner.config
    if cuts_units:
        record(inner)
    elif tokens:
        give_config(inner, inner.config, copy.deepcopy(inner.config))
    if VOCABULARY in positions:
        renumber(inner, positions[VOCABULARY], groups[VOCABULARY].size)
    inner.__class__ = handed_in("checkpoint_class")(type(inner))
    for owner, path in owners:
        tell_owner(owner, path, inner, before_record)
    logger.info("pruned %s:\n%s", type(inner).__name__, kept)
    return model


def positions_of(group: PrunableGroup, units: Sequence[int]) -> list[int]:
    """Where units are among those that are there."""
    places = {unit: place for place, unit in enumerate(group.units)}
    return [places[unit] for unit in units]


def _joined(
    plan: PruningPlan,
    before: PruningPlan | None,
    keep: Mapping[str, Sequence[int]],
    groups: Mapping[str, PrunableGroup],
    layers: int | None,
    order: Sequence[str],
    model_type: str,
) -> PruningPlan:
    """The plan of a model that was cut by one after another: what both keep, layer by layer.

    Args:
        order: names that groups may have, in the order of the layers.
    """
    sizes = {**(before.sizes if before else {}), **{name: group.original_size for name, group in groups.items()}}
    fewer = [name for name in keep if name.endswith(".experts") and len(keep[name]) < sizes[name]]
    inside = {f"{name.removesuffix('s')}_neurons" for name in fewer}  # which are numbered by all experts of a layer
    keep = {name: units for name, units in keep.items() if name not in inside}
    return PruningPlan(
        {name: keep[name] for name in dict.fromkeys([*order, *keep]) if name in keep},
        {name: sizes.get(name, 1) for name in keep},
        model_type,
        plan.config or (before.config if before else None),
        layers,
        plan.cut_before or (before is not None and (before.cut_before or not _same_run(before, plan))),
    )


def _same_run(before: PruningPlan, plan: PruningPlan) -> bool:
    """Whether a plan is of a later round of the run that a model was cut in before, or of the same one that has cut
    the vocabulary first."""
    config = plan.config
    several = config is not None and (config.rounds > 1 or VOCABULARY in config.granularity)
    return several and config == before.config


def record(model: PreTrainedModel) -> None:
    """Writes the kept sizes into a config that is the model's own, and tells layers that need them the indices.

    The sizes go into the config's own fields if these can express them, and then the config is an ordinary one; else
    into a record beside fields that are those of the uncut model.
    """
    old, new = model.config, copy.deepcopy(model.config)
    give_config(model, old, new)
    plan, stacks = model.pruning_plan, stacks_of(new)
    cut = [name for name in plan.keep if len(plan.keep[name]) < plan.sizes[name] and is_unit(name)]
    heads = {name: list(plan.keep[name]) for name in cut if name.endswith(".heads")}
    entry: dict[str, Any] = {"sizes": {name: len(plan.keep[name]) for name in cut}}
    if any(architecture.position_bias is not None for architecture in stacks.values()):
        entry["kept_heads"] = heads
    shape = plain_shape(model, plan)
    for label, (field, *others) in config_fields(new).items():
        uncut = next((plan.sizes[name] for name in plan.keep if label_of(name) == label), None)
        before, size = getattr(new, field) or uncut, (shape or {}).get(label, uncut)
        size = None if size is None else as_in_config(new, label, size)
        if size != before and size is not None:
            for other in others:
                setattr(new, other, getattr(new, other) * size // before)
            setattr(new, field, size)
            if label == "experts" and hasattr(model, "num_experts"):  # of the loss that balances the router
                model.num_experts = size
    if shape is None:
        setattr(new, RECORD, entry)
    elif getattr(new, RECORD, None) is not None:
        delattr(new, RECORD)
        new.__dict__.pop("auto_map", None)
    if any(architecture.native_pruned_heads for architecture in stacks.values()):
        new.pruned_heads = {int(name.split(".")[1]): list(plan.removed(name)) for name in heads}
    bind_position_bias(model, heads)


def owners_of(model: PreTrainedModel) -> list[tuple[PreTrainedModel, str]]:
    """The transformers models that hold this one as a part, with its path in each. A module does not know what it is
    a part of, so all that live are asked."""
    holders = (each.values() for each in gc.get_referrers(model) if isinstance(each, dict))
    if not any(all(value is None or isinstance(value, nn.Module) for value in values) for values in holders):
        return []  # no module has it among its own, as is usual: found in a third of the time
    # Of a million objects, few types.
    is_model: Callable[[type], bool] = functools.cache(lambda kind: issubclass(kind, PreTrainedModel))
    live = [each for each in gc.get_objects() if is_model(type(each)) and "_modules" in vars(each)]
    return [(owner, path) for owner in live for path, module in owner.named_modules() if path and module is model]


def tell_owner(owner: PreTrainedModel, path: str, model: PreTrainedModel, old: PretrainedConfig) -> None:
    """Makes a model that holds a pruned one save and load what that takes: its config becomes a copy that holds the
    part's, as that of a part of the same config does, and it gets the part's plan.

    Args:
        path: of the part inside of the owner.
        model: the part, as it is now.
        old: its config from before, which the owner's config holds.
    """
    before = owner.config
    if before is old:
        new, plan = model.config, model.pruning_plan
        keep, sizes = (
            {f"{path}.{name}" if is_weight(name) else name: value for name, value in values.items()}
            for values in (plan.keep, plan.sizes)
        )
        owner.pruning_plan = dataclasses.replace(plan, keep=keep, sizes=sizes)
    elif any(value is model.config for value in vars(before).values()):
        new = before  # nothing was recorded, as of masks, or another owner of the same config was told before
    else:
        new = _with_part(before, old, model.config)
    if new is None:
        logger.warning(
            "the config of the %s around it has no place for what was cut of %r: save that part on its own, with its "
            "save_pretrained; what the whole model saves does not load",
            type(owner).__name__,
            path,
        )
        return
    give_config(owner, before, new)
    owner.__class__ = handed_in("checkpoint_class")(type(owner))


def _with_part(config: PretrainedConfig, old: PretrainedConfig, new: PretrainedConfig) -> PretrainedConfig | None:
    """A copy of a config with one of a part in it, at any depth, in the place of another; None if that is not there.
    What some classes give to their parts is a copy of what they hold themselves."""
    subs = sub_configs(config)
    held = [name for name, sub in subs.items() if sub is old]
    held = held or [name for name, sub in subs.items() if sub.to_dict() == old.to_dict()]
    changed = {held[0]: new} if len(held) == 1 else {}
    if not held:
        found = {name: _with_part(sub, old, new) for name, sub in subs.items()}
        changed = {name: sub for name, sub in found.items() if sub is not None}
    if not changed:
        return None
    config = copy.copy(config)
    for name, sub in changed.items():
        setattr(config, name, sub)
    return config


def prune_heads(model: ModelOrModule, heads_to_prune: Mapping[int, Iterable[int]]) -> ModelOrModule:
    """Removes attention heads, as `PreTrainedModel.prune_heads` of transformers 4 did.

    Args:
        model (`PreTrainedModel` or `nn.Module`): see `apply_plan`.
        heads_to_prune (`Mapping[int, Iterable[int]]`): layer -> heads to remove, numbered as in the uncut model. In
            llama a head is a key-value head with all its queries. Layers may be counted from the end, and heads that
            were removed before are passed over.

    Returns:
        The same object.

    Raises:
        `ValueError`: a layer or head that the model lacks, or attention that was removed already.
    """
    heads = [group for group in find_groups(model, kinds=("heads",)) if group.name.endswith(".heads")]
    stacks = list(dict.fromkeys(group.name.partition("layer.")[0] for group in heads))
    if len(stacks) > 1:
        raise ValueError(
            f"the layers are numbered in each of {' and '.join(stack.strip('.') for stack in stacks)}: "
            f"apply_plan(model, PruningPlan({{'{heads[0].name}': [0, ...]}})) says which"
        )
    groups = {int(group.name.split(".")[-2]): group for group in heads}
    layers = range(len(list_blocks(inner_model(model))))
    keep: dict[str, list[int]] = {}
    for layer, removed in heads_to_prune.items():
        if layer not in layers and layer not in range(-len(layers), 0):
            raise ValueError(f"the model has no layer {layer!r}; its layers are {list(layers)}")
        layer = layers[layer]
        if layer not in groups:
            raise ValueError(f"the attention of layer {layer} was removed already, with all its heads")
        group, gone = groups[layer], set(removed)
        lacking = sorted(gone - set(range(group.original_size)))
        if lacking:
            raise ValueError(f"layer {layer} has no heads {lacking}: it has {group.original_size}, numbered from 0")
        keep[group.name] = [unit for unit in keep.get(group.name, group.units) if unit not in gone]
    return apply_plan(model, PruningPlan(keep))
