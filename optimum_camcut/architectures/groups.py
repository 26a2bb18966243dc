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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..utils.files import nearest
from .entry import kind_of
from .inner import body_of, check_bare, inner_model, transformers_models
from .modeling_camcut import RECORD, at, places_of
from .recipes import stacks_of
from .slices import Group, Slice
from .structure import blocks_of, check_supported, count_units, kept_heads, linear_map, list_blocks, list_groups
from .table import ARCHITECTURES
from .vocabulary import VOCABULARY, named_ids, vocabulary_slices


__all__ = [
    "PrunableGroup",
    "Slice",
    "below",
    "body_of",
    "check_bare",
    "check_group",
    "find_groups",
    "inner_model",
    "linear_parameters",
    "possible_kinds",
    "transformers_models",
]

KINDS = ("heads", "neurons", "experts", "layers")
WEIGHTS = "weights"
ALL = (*KINDS, VOCABULARY, WEIGHTS)


@dataclass(frozen=True, repr=False)
class PrunableGroup(Group):
    """A group with what is needed to score it and to plan: what its units cost, and where they come from.

    Args:
        name (`str`): unique in the model; its first number is the layer index.
        kind (`str`): `"heads"`, `"neurons"`, `"experts"`, `"layers"` (a whole sub-layer, as one unit), `"vocabulary"`
            or `"weights"`.
        size (`int`): number of units now.
        slices (`tuple[Slice, ...]`): the linear maps involved; the last is the output projection; of experts, the
            router; of the vocabulary, all that has a row for each token. None for `"weights"`: the group is the
            parameter of its name.
        attributes (`Mapping[str, float]`): path of a module attribute -> amount per unit, kept true by a cut.
        bypass (`Mapping[str, str]`): of a sub-layer, path of each module that goes with it -> what stands in for it.
        observed (`str`): where activations are, see `Group`.
        units (`Sequence[int]`): index of each present unit in the uncut model. Default: `0 ... size - 1`.
        original_size (`int`): number of units in the uncut model. Default: `size`.
        residual (`str`, *optional*): path of a module whose input is the residual stream that the output is added to.
        factor (`str`, *optional*): path of a parameter or attribute that the output is multiplied by before.
        unit_parameters (`int`): parameters that go with one unit.
        unit_flops (`int`): FLOPs per token that go with one unit, less the part that grows with the sequence.
        unit_flops_per_position (`int`): that part, per token and position attended to.
        model_parameters (`int`, *optional*): parameters of the whole model now, each counted once.
        model_type (`str`, *optional*): of the model's config.
        num_layers (`int`, *optional*): blocks of the model.
        fewest (`int`): units that always stay, if the sub-layer does: of experts, as many as a token is sent to.
        needed (`Sequence[int]`): positions of units that always stay: of tokens, those that the config names.
    """

    units: Sequence[int] = None  # type: ignore[assignment]  # until `__post_init__`
    original_size: int = None  # type: ignore[assignment]  # until `__post_init__`
    residual: str | None = None
    factor: str | None = None
    unit_parameters: int = 1
    unit_flops: int = 1
    unit_flops_per_position: int = 0
    model_parameters: int | None = None
    model_type: str | None = None
    num_layers: int | None = None
    fewest: int = 0
    needed: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.units is None:
            object.__setattr__(self, "units", tuple(range(self.size)))
        if self.original_size is None:
            object.__setattr__(self, "original_size", self.size)


def below(groups: Sequence[PrunableGroup], path: str) -> list[PrunableGroup]:
    """The groups of a model at a path inside of a module, as that module sees them."""
    return [
        dataclasses.replace(
            group,
            name=f"{path}.{group.name}" if group.kind == WEIGHTS else group.name,
            slices=tuple(dataclasses.replace(piece, module=f"{path}.{piece.module}") for piece in group.slices),
            bypass={f"{path}.{name}": gives for name, gives in group.bypass.items()},
        )
        for group in groups
    ]


def find_groups(model: nn.Module, kinds: Sequence[str] | None = None) -> list[PrunableGroup]:
    """Lists everything that can be cut in a model: one group a layer and kind, or one a weight matrix and bias.

    In architectures with grouped key-value heads (llama) a unit of `"heads"` is a key-value head with all the query
    heads that share it. A unit of `"experts"` is an expert with its row of the router. A group of `"layers"` is one
    sub-layer, attention or feed-forward, as a single unit.

    Args:
        model (`PreTrainedModel` or `nn.Module`): a transformers model of a supported architecture, with any task head
            (for `"vocabulary"` and `"weights"`, of any architecture), or a module that holds one: the groups are those
            of the model inside.
        kinds (`Sequence[str]`, *optional*): which of `"heads"`, `"neurons"`, `"experts"` and `"layers"` to list. With
            `"vocabulary"`, the tokens are one group, with their rows in all embeddings, of any architecture. With
            `"weights"`, every weight and bias of the linear layers below the task head is a group, named like the
            parameter; its units are the elements, numbered in row-major order. Default: heads and neurons, if units of
            that kind can go one by one in this architecture.

    Returns:
        `list[PrunableGroup]`: in the order of the layers. In a pruned model, `group.units` holds the original index of
        each unit that is left (of a single weight, that is not masked); of a sub-layer that was removed, nothing is
        listed.

    Raises:
        `TypeError`: `model` neither is a transformers model nor holds exactly one, or it carries an adapter.
        `ValueError`: an unknown kind, or one that cannot go in this architecture, with the reason; an unsupported
            architecture; or a pruned model that has lost its plan.
    """
    if kinds is None:
        kinds = [kind for kind in possible_kinds(model) if kind in ("heads", "neurons")] or ("heads", "neurons")
    if isinstance(kinds, str):
        kinds = (kinds,)
    unknown = set(kinds) - set(ALL)
    if unknown or not kinds:
        raise ValueError(
            f"unknown kinds {sorted(unknown)}; expected one or more of {', '.join(ALL)}"
            f"{nearest(min(unknown, default=''), ALL)}"
        )
    inner = inner_model(model, adapters=False)
    in_blocks = set(kinds) - {VOCABULARY, WEIGHTS}
    if in_blocks:
        check_supported(inner)
        _check_kinds(inner, kinds)
    groups = _unit_groups(inner) if in_blocks else []
    plan = getattr(inner, "pruning_plan", None)
    if plan is None and getattr(inner.config, RECORD, None) is not None:
        raise ValueError(
            "this model is pruned, but which units it kept is not known to it; load it with "
            "`optimum_camcut.load_pruned`, which reads its pruning_plan.json"
        )
    keep, sizes = (plan.keep, plan.sizes) if plan is not None else ({}, {})
    if plan is None and getattr(inner.config, "pruned_heads", None) and in_blocks:  # by transformers 4 itself
        keep = kept_heads(inner.config, len(list_blocks(inner)))
        sizes = dict.fromkeys(keep, inner.config.num_attention_heads)
    groups += [_vocabulary_group(inner)] if VOCABULARY in kinds else []
    groups = [
        dataclasses.replace(group, units=tuple(keep[group.name]), original_size=sizes[group.name])
        if group.name in keep
        else group
        for group in groups
    ]
    listed = [group for group in groups if group.kind in kinds]
    groups = _one_way_inside(listed, keep, sizes)
    if listed and not groups:
        raise ValueError(
            f"no more {' or '.join(kinds)} can go: a layer loses experts or neurons inside of them, not both, and all "
            "have lost the other"
        )
    return groups + _weight_groups(inner, plan) if WEIGHTS in kinds else groups


def _one_way_inside(
    groups: list[PrunableGroup], keep: Mapping[str, Sequence[int]], sizes: Mapping[str, int]
) -> list[PrunableGroup]:
    """Without the experts of layers that have lost neurons inside of them, and the other way round: the units of
    either are numbered by all of the other."""
    taken = {"experts": "expert_neurons", "expert_neurons": "experts"}

    def stays(group: PrunableGroup) -> bool:
        layer, _, label = group.name.rpartition(".")
        other = f"{layer}.{taken.get(label)}"
        return label not in taken or len(keep.get(other, ())) == sizes.get(other, 0)

    return [group for group in groups if stays(group)]


def possible_kinds(model: nn.Module) -> tuple[str, ...]:
    """Kinds of units that can go in a model: whole sub-layers only where its architecture says how.

    Raises:
        `ValueError`: the architecture is not in the table.
    """
    inner = inner_model(model)
    check_supported(inner)
    stacks = stacks_of(inner.config).values()
    can = {kind_of(part.kind) for entry in stacks for part in entry.sublayers if part.kind not in entry.refused}
    can |= {"layers"} if any(entry.bypass is not None for entry in stacks) else set()
    return tuple(kind for kind in KINDS if kind in can)


def _check_kinds(model: PreTrainedModel, kinds: Sequence[str]) -> None:
    """Raises `ValueError` if an architecture does not allow for a kind, and says why, and what can go."""
    possible, model_type = possible_kinds(model), model.config.model_type
    for kind in kinds:
        if kind in possible or kind in (VOCABULARY, WEIGHTS):
            continue
        reasons = {"layers": "its entry of ARCHITECTURES has no `bypass`, which says what stands in for them"}
        for entry in stacks_of(model.config).values():
            reasons |= {kind_of(part): reason for part, reason in entry.refused.items()}
            if {part.kind for part in entry.sublayers} <= set(entry.refused):
                reasons["layers"] = next(iter(entry.refused.values()))
        what = "whole sub-layers" if kind == "layers" else kind
        because = reasons.get(kind, "its entry of ARCHITECTURES names none")
        raise ValueError(
            f"{what} of {model_type!r} cannot go: {because}. Leave {kind!r} out; {' and '.join((*possible, WEIGHTS))} "
            "can go"
        )


def _unit_groups(model: PreTrainedModel) -> list[PrunableGroup]:
    """Sub-layers that are there, heads and neurons, with their costs."""
    blocks, groups = {block.name: block for block in blocks_of(model)}, []
    facts = {
        "model_parameters": sum(p.numel() for p in model.parameters()),
        "model_type": model.config.model_type,
        "num_layers": len(blocks),
    }
    for group in list_groups(model):
        if not group.slices:
            continue
        name, _, kind = group.name.rpartition(".")
        block = blocks[name]
        part = next(part for part in block.entry.sublayers if kind in (part.kind, part.name))
        count, weights, fewest = _costs(model, group)
        groups.append(
            PrunableGroup(
                **vars(group),
                residual=part.residual and f"{block.path}.{part.residual}",
                factor=part.factor and f"{block.path}.{part.factor}",
                unit_parameters=count,
                unit_flops=2 * weights,
                unit_flops_per_position=4 * group.output.width if "heads" in part.kind else 0,
                fewest=fewest,
                **facts,
            )
        )
    return groups


def _costs(model: PreTrainedModel, group: Group) -> tuple[int, int, int]:
    """Parameters of one unit, those of them that a token is multiplied by, and how many units always stay."""
    owned, weights = {}, 0.0  # what one unit owns of each parameter
    sent = getattr(model.config, "num_experts_per_tok", 0)  # experts that see a token
    for piece in group.slices:
        for module, name, place in places_of(model, piece.module, piece.axis):
            tensor = getattr(module, name)
            if isinstance(tensor, nn.Parameter):
                all_of = tensor.numel() // (piece.experts or 1)
                known = id(tensor) in owned
                owned[id(tensor)] = all_of // max(tensor.shape[place], 1) * sum(piece.maps)
                if isinstance(piece.axis, str) and group.bypass:  # all that a map has, also what stays of it elsewhere
                    weights += tensor.numel() * (name == "weight" and not known)
                elif isinstance(piece.axis, str):
                    weights += owned[id(tensor)] * (name == "weight")
                elif tensor.dim() == 3 and group.observed != "routing":  # of stacked experts
                    weights += owned[id(tensor)] * min(sent / tensor.shape[0], 1.0)
    count = sum(owned.values())
    if group.bypass:
        count = sum(p.numel() for path in group.bypass for p in model.get_submodule(path).parameters())
    return count, round(weights), min(sent, group.size) if group.observed == "routing" else 0


def _vocabulary_group(model: PreTrainedModel) -> PrunableGroup:
    """The tokens of a model, as one group."""
    slices, attributes = vocabulary_slices(model)
    tensors = {id(each): each for each in (at(model, piece.module) for piece in slices)}.values()
    size = len(model.get_input_embeddings().weight)
    output = model.get_output_embeddings()
    return PrunableGroup(
        VOCABULARY,
        VOCABULARY,
        size,
        slices,
        attributes,
        unit_parameters=sum(each.numel() for each in tensors if isinstance(each, nn.Parameter)) // size,
        unit_flops=0 if output is None else 2 * output.weight.numel() // size,
        model_parameters=sum(p.numel() for p in model.parameters()),
        model_type=model.config.model_type,
        needed=sorted(number for number in named_ids(model) if number < size),
    )


def linear_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Name -> parameter, of all linear layers below the task head; what is also an embedding is left out."""
    body = {id(module) for module in model.base_model.modules()}
    shared = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        head = model.base_model is model and path.partition(".")[0] == "classifier"
        if isinstance(module, nn.Linear | Conv1D) and id(module) in body and not head:
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in shared:
                    shared.add(id(parameter))
                    parameters[f"{path}.{name}"] = parameter
    return parameters


def _weight_groups(model: PreTrainedModel, plan: Any) -> list[PrunableGroup]:
    """The linear parameters of a model, as groups."""
    parameters = linear_parameters(model)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in parameters):
        linear_map(model, path)  # raises if its weight is not plain
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no linear layers below its task head: nothing can be masked in it"
        )
    several = model.config.model_type in ARCHITECTURES and len(stacks_of(model.config)) > 1
    layers = len(list_blocks(model)) if several else getattr(model.config, "num_hidden_layers", None)
    masked = {name: plan.keep[name] for name in parameters if plan is not None and name in plan.keep}
    present = sum(p.numel() for p in model.parameters()) - sum(parameters[n].numel() - len(masked[n]) for n in masked)
    return [
        PrunableGroup(
            name=name,
            kind=WEIGHTS,
            size=len(masked.get(name, range(parameter.numel()))),
            slices=(),
            units=masked.get(name, range(parameter.numel())),
            original_size=parameter.numel(),
            model_parameters=present,
            model_type=model.config.model_type,
            num_layers=layers,
        )
        for name, parameter in parameters.items()
    ]


def check_group(model: nn.Module, group: PrunableGroup) -> None:
    """Raises `ValueError` if a group is from another model, or from before a cut."""
    try:
        if group.kind == WEIGHTS:
            size = model.get_parameter(group.name).numel()
        elif group.kind == VOCABULARY:
            size = len(model.get_parameter(group.slices[0].module))
        else:
            size = count_units(model, group.output)
    except AttributeError:
        size = None
    if size != (group.original_size if group.kind == WEIGHTS else group.size):
        has = "lacks it" if size is None else f"has {size}"
        raise ValueError(
            f"the group {group.name!r} has {group.size} units, but the {type(model).__name__} {has}; list the groups "
            "anew with find_groups(model)"
        )
