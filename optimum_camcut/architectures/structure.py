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
"""The units of a model, listed by the entry of its architecture, and the cut of their features."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..utils.handed_in import handed_in
from . import modeling_camcut, own_bias, position_bias  # noqa: F401 - take part in every cut
from .entry import GROUP, HEAD, QUERIES, SUBLAYERS, UNIT, Architecture, Sublayer, features, kind_of
from .layer_config import LayerConfig
from .modeling_camcut import (
    BEFORE_CUT,
    RECORD,
    Bypass,
    at,
    cached_blocks,
    cut_configs,
    dimension,
    has_record,
    parts_of,
    places_of,
    put,
    replace_tensor,
    stand_ins,
)
from .native_heads import pruned_heads
from .recipes import stacks_of
from .slices import Group, Observed, Slice
from .table import ARCHITECTURES, unsupported_architecture


# What a config says that has nothing to do with how layers are built.
IDLE = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "pruned_heads",
    "transformers_version",
    "use_cache",
    RECORD,
)


@dataclass(frozen=True)
class Block:
    """A block of a model.

    Args:
        name (`str`): what the names of its groups begin with, such as `layer.3` or `decoder.layer.3`.
        path (`str`): in the model.
        entry (`Architecture`): of its stack.
        widths (`Mapping[str, int]`): what the symbolic widths of its units stand for. Without attention there may be
            no head size.
    """

    name: str
    path: str
    entry: Architecture
    widths: Mapping[str, int]

    def find(self, model: nn.Module, path: str) -> Any:
        """A module, parameter or attribute of the block; None if it lacks that."""
        return at(model, f"{self.path}.{path}")

    def sublayers(self, model: nn.Module) -> list[Sublayer]:
        """Those that the block has or had: blocks of a stack need not be alike."""
        parts = self.entry.sublayers
        return [part for part in parts if self.find(model, part.cuts[-1].module) is not None]


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks stack by stack, each in the order of their numbers. A model may lack a stack of several."""
    stacks, found = stacks_of(model.config), []
    for block in modeling_camcut.blocks_of(model):
        stack = re.sub(r"stage\w+$", "", block.name.rpartition("layer.")[0].rstrip("."))
        found.append(Block(block.name, block.path, stacks[stack], _widths(model, block.path, stacks[stack])))
    return found


def list_blocks(model: PreTrainedModel) -> list[str]:
    """Paths of the blocks."""
    return [block.path for block in modeling_camcut.blocks_of(model)]


def _widths(model: PreTrainedModel, path: str, entry: Architecture) -> dict[str, int]:
    config, queries = model.config, 1
    if entry.head_size:
        size = at(model, f"{path}.{entry.head_size}")
    else:
        heads, hidden = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
        heads = heads if isinstance(heads, int) else None  # of stages there is a list
        size = getattr(config, "head_dim", None) or (hidden // heads if hidden and heads else None)
        queries = heads // (getattr(config, entry.key_value_heads, None) or heads) if heads else 1
    return {UNIT: 1} | ({HEAD: size, QUERIES: size * queries, GROUP: queries} if size else {})


def is_cut(config: PretrainedConfig) -> bool:
    """Whether the config is of a model that is physically smaller than its class builds it, or a part of it is."""
    return bool(cut_configs(config))


def check_blocks(model: PreTrainedModel) -> None:
    """Raises `ValueError` if a model has no blocks where its entry says."""
    try:
        found = list_blocks(model)
    except AttributeError:
        found = []
    if not found:
        base, prefix = model.base_model, f"{model.base_model_prefix}."
        layers = [entry.layers for entry in stacks_of(model.config).values()]
        inside = f"; the path begins inside of it, so leave {prefix!r} out" if layers[0].startswith(prefix) else ""
        named = " or ".join(map(repr, layers))
        raise ValueError(f"{type(base).__name__} has no module at {named}: nothing can be cut in it{inside}")


def check_supported(model: PreTrainedModel) -> None:
    """Raises `ValueError`, naming the nearest ones that are, if the model's has no entry and none can be derived."""
    derived_of = ARCHITECTURES.derived.get(model.config.model_type)
    real = derived_of is not None and not has_record(model.config) and not next(model.parameters()).is_meta
    if real and derived_of != structure_of(model):
        del ARCHITECTURES[model.config.model_type]  # another config or class of that type may be laid out otherwise
    if model.config.model_type not in ARCHITECTURES:
        parts = [path for path, part in parts_of(model).items() if part.config.model_type in ARCHITECTURES]
        if parts or has_record(model.config):
            hint = (
                f" Its parts can be cut one by one: {', '.join(f'model.{path}' for path in parts)}." if parts else ""
            )
            raise ValueError(f"{unsupported_architecture(model.config.model_type)}{hint}")
        handed_in("derive_for")(model)


def structure_of(model: PreTrainedModel) -> tuple[str, str]:
    """What an entry that was derived holds for: the class of the body, and all that the config says."""
    values = model.config.to_dict()
    return type(model.base_model).__qualname__, repr(
        {name: values[name] for name in sorted(values) if name not in IDLE}
    )


def list_groups(model: PreTrainedModel) -> list[Group]:
    """Every group of the model at its present size, in the order of the layers: attention, its heads, feed-forward,
    its neurons and experts. A sub-layer that was removed has size 0, and no group of heads or neurons.

    Raises:
        `ValueError`: the architecture is not in the table, or a module is missing or not a plain linear map.
    """
    check_supported(model)
    check_blocks(model)
    found = []
    for block in blocks_of(model):
        parts = block.sublayers(model)
        for name in dict.fromkeys(part.name for part in parts):
            found += _groups(model, block, [part for part in parts if part.name == name])
    return found


def _groups(model: PreTrainedModel, block: Block, parts: Sequence[Sublayer]) -> list[Group]:
    """A sub-layer as a whole, and its units, kind by kind."""
    bypass = {f"{block.path}.{path}": gives for path, gives in parts[0].bypass.items()}
    if bypass and all(is_removed(module_at(model, path)) for path in bypass):
        return [Group(f"{block.name}.{parts[0].name}", "layers", 0, ())]
    units = [_units(model, block, part) for part in parts]
    found = [group for part, group in zip(parts, units) if part.kind not in block.entry.refused]
    if bypass:
        # All that it has, once; the last is the output projection of the first of its parts.
        whole = tuple(
            replace(piece, width=piece.width * group.size, fused=tuple(w * group.size for w in piece.fused))
            for group in reversed(units)
            for piece in group.slices
            if not piece.experts
        )
        where: Observed = "outputs" if any(group.kind == "experts" for group in units) else "inputs"
        found.insert(0, Group(f"{block.name}.{parts[0].name}", "layers", 1, whole, bypass=bypass, observed=where))
    return found


def _units(model: PreTrainedModel, block: Block, part: Sublayer) -> Group:
    """The units of one kind in a sub-layer."""
    output = block.find(model, part.cuts[-1].module)
    experts = output.shape[0] if part.cuts[-1].stacked else 0
    slices = tuple(
        Slice(
            f"{block.path}.{cut.module}",
            cut.axis,
            features(cut.width, block.widths),
            cut.blocks,
            tuple(features(width, block.widths) for width in cut.fused),
            features(cut.rest, block.widths),
            experts,
        )
        for cut in part.cuts
        if not cut.optional or block.find(model, cut.module) is not None
    )
    for piece in slices[:-1]:
        if isinstance(piece.axis, str):
            linear_map(model, piece.module)  # raises if it is not plain
    counted = {
        f"{block.path}.{path}": features(width, block.widths) / (experts or 1)
        for path, width in part.attributes.items()
        if block.find(model, path) is not None
    }
    where = cast(Observed, {"experts": "routing", "expert_neurons": "inside"}.get(part.kind, "inputs"))
    return Group(
        f"{block.name}.{part.kind}",
        kind_of(part.kind),
        count_units(model, slices[-1]),
        slices,
        counted,
        observed=where,
    )


def sublayer_of(name: str) -> str:
    """Name of the sub-layer that a group is part of: `layer.3.attention` for `layer.3.heads` and for itself."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.{SUBLAYERS.get(part, part)}"


def label_of(name: str) -> str:
    """What a group shares with those of the other layers of its stack: `decoder.cross_heads` for
    `decoder.layer.3.cross_heads`."""
    return re.sub(r"\blayer\.\d+\.", "", name)


def config_fields(config: PretrainedConfig) -> dict[str, tuple[str, ...]]:
    """Label of groups -> the fields of the config that say how many units each of them has."""
    stacks = stacks_of(config).items()
    return {f"{stack}.{kind}".lstrip("."): names for stack, e in stacks for kind, names in e.config_fields.items()}


def is_removed(module: nn.Module) -> bool:
    return "gives" in vars(module)  # not by the class: it may be that of a checkpoint's copy of `Bypass`


def kept_heads(config: PretrainedConfig, layers: int) -> dict[str, list[int]]:
    """Kept heads by group, where the config records which they are."""
    removed = pruned_heads(config, layers)
    heads = range(config.num_attention_heads if removed else 0)
    record = getattr(config, RECORD, None)
    recorded = record.get("kept_heads") if isinstance(record, dict) else None
    kept = {name: [head for head in heads if head not in gone] for name, gone in removed.items()}
    return kept | (recorded if isinstance(recorded, dict) else {})


def sub_configs(config: PretrainedConfig) -> dict[str, PretrainedConfig]:
    """Configs of the parts of a composite model (encoder and decoder, text and vision), by their attributes."""
    return {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}


def module_at(model: nn.Module, path: str) -> nn.Module:
    """`get_submodule`, which takes ten times as long."""
    module: Any = model
    try:
        for name in path.split("."):
            module = module._modules[name]
    except KeyError:
        return model.get_submodule(path)  # says what is missing
    return module


def linear_map(model: nn.Module, path: str) -> nn.Linear | Conv1D:
    module = module_at(model, path)
    if is_removed(module):
        raise AttributeError(f"{path} was removed with its sub-layer")
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear | Conv1D) and weight is not None:
        sizes = (module.nx, module.nf) if isinstance(module, Conv1D) else (module.out_features, module.in_features)
        packed = type(weight).__module__.startswith("torchao.")  # says that it is a matrix of floats
        if weight.dtype.is_floating_point and weight.shape == sizes and not packed:
            return module
    found = f" with a {type(weight).__name__}" if weight is not None else ""
    raise ValueError(
        f"{path} is a {type(module).__module__}.{type(module).__name__}{found}; expected torch.nn.Linear or "
        "Conv1D with a plain weight. Merge adapters (`model = model.merge_and_unload()`) and undo quantization "
        "before pruning."
    )


def features_of(module: Any, axis: str) -> int:
    return module.weight.shape[dimension(module, axis)]


def count_units(model: nn.Module, output: Slice) -> int:
    """Units that flow into an output projection, or experts that a router chooses from.

    Raises:
        `AttributeError`: the model has no such module.
        `ValueError`: it is not a plain linear map.
    """
    if output.experts:
        shape = model.get_parameter(output.module).shape
        return shape[0] * shape[int(output.axis)] // output.width
    if output.axis == "out":  # a router need not be a linear map
        return features_of(module_at(model, output.module), "out") // output.width
    inputs = features_of(linear_map(model, output.module), "in")
    return inputs // output.width if output.width else int(inputs == 0)  # a sub-layer with no units left


@torch.no_grad()
def cut_groups(model: PreTrainedModel, keep: Sequence[tuple[Group, Sequence[int]]]) -> None:
    """Cuts groups down to the given positions, in place: all of them, or none if anything fails. A sub-layer of which
    nothing is kept becomes an identity.

    Parameters keep their dtype, device and `requires_grad`; gradients are dropped.

    Args:
        model: the model the groups were listed from.
        keep: pairs of a group and the kept positions among its present units, ascending.
    """
    new = []
    gone: dict[str, Bypass] = {}
    smaller = {group.name: positions for group, positions in keep if len(positions) < group.size}
    for group, positions in keep:
        if group.bypass:
            if not positions:
                if group.output.axis == "in":
                    linear_map(model, group.output.module)  # raises if it is not plain
                gone |= stand_ins(model, group.output.module, group.bypass)
            continue
        for piece in group.slices:
            for module, name, place in places_of(model, piece.module, piece.axis):
                new.append((module, name, piece.take(getattr(module, name), place, group.size, positions)))
    if gone:
        _check_caches(model, gone)
    for prepare in BEFORE_CUT:
        prepare(model, smaller)
    if gone:
        for path, module in gone.items():
            module.train(model.get_submodule(path).training)
        put(model, gone)
    shared: dict[int, Any] = {}  # what several modules hold stays shared
    for (module, name, value), before in zip(new, [getattr(module, name) for module, name, _ in new]):
        replace_tensor(module, name, shared.get(id(before), value))
        shared[id(before)] = getattr(module, name)
    for group, positions in keep:
        for path, amount in group.attributes.items():
            owner, _, name = path.rpartition(".")
            setattr(at(model, owner), name, round(len(positions) * amount))


def give_config(model: nn.Module, old: PretrainedConfig, new: PretrainedConfig) -> None:
    """Puts a config in the place of another, in all modules of a model that hold it."""
    for module in model.modules():
        held = vars(module).get("config")
        if held is old:
            module.config = new
        elif isinstance(held, LayerConfig) and vars(held)["config"] is old:
            vars(held)["config"] = new


def _check_caches(model: PreTrainedModel, gone: Collection[str]) -> None:
    """Raises `ValueError` if the first place of a key-value cache, or layers that share one, would be left without the
    layer that fills it.

    Args:
        gone: paths of modules that are about to go.
    """
    config, removed, goes = model.config.get_text_config(decoder=True), tuple(f"{path}." for path in gone), False
    without: list[str] = []  # the kinds of attention that a cache could not be measured by
    for blocks in cached_blocks(model):
        left = set()
        for path, kind in blocks.items():
            for name, module in model.get_submodule(path).named_modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    here = f"{path}.{name}.".startswith(removed)
                    goes |= here
                    left |= set() if here else {kind}
        without += [kind for kind in list(blocks.values())[:1] if left and kind not in left]
    if goes and (getattr(config, "num_kv_shared_layers", None) or getattr(config, "kv_sharing_modes", None)):
        raise ValueError("layers of this model share a key-value cache by their numbers, so none of them can go")
    if without:
        raise ValueError(
            f"no attention layer of the type {without[0]!r} would be left, which config.layer_types gives to the "
            "first layer: transformers takes the length of a key-value cache from one; keep at least one of them"
        )
