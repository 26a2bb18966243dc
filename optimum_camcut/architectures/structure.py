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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .entry import Architecture
from .modeling_camcut import (
    RECORD,
    SUBLAYERS,
    Bypass,
    cut_configs,
    dimension,
    layer_types,
    list_blocks,
    parts_of,
    put,
    stand_ins,
    widths_of,
)
from .native_heads import pruned_heads
from .table import ARCHITECTURES, unsupported_architecture


@dataclass(frozen=True)
class Slice:
    """One linear map, cut along one axis.

    Args:
        module (`str`): path of the map inside the model.
        axis (`str`): `"out"` or `"in"`.
        width (`int`): features per unit.
        blocks (`int`): number of maps fused side by side along the axis.
    """

    module: str
    axis: str
    width: int
    blocks: int = 1

    def index(self, size: int, keep: Sequence[int]) -> torch.Tensor:
        """Features that belong to the units `keep` out of `size`: int64 of shape `(blocks * len(keep) * width,)`."""
        features = torch.arange(self.blocks * size * self.width).view(self.blocks, size, self.width)
        return features[:, list(keep)].flatten()


@dataclass(frozen=True)
class Group:
    """Units that can be cut one by one, and everything that goes with each of them.

    Args:
        name (`str`): unique in the model; its first number is the layer index.
        kind (`str`): `"heads"`, `"neurons"`, `"layers"` (a whole sub-layer, as one unit) or `"weights"`.
        size (`int`): number of units now.
        slices (`tuple[Slice, ...]`): the linear maps involved; the last is the output projection, whose input is
            where activations are observed. None for `"weights"`: the group is the parameter of its name.
        attributes (`Mapping[str, int]`): path of a module attribute -> amount per unit, kept true by a cut.
        bypass (`Mapping[str, str]`): of a sub-layer, path of each module that goes with it -> what stands in for it.
    """

    name: str
    kind: str
    size: int
    slices: tuple[Slice, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)
    bypass: Mapping[str, str] = field(default_factory=dict)

    @property
    def output(self) -> Slice:
        """The output projection."""
        return self.slices[-1]


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
        layers, base, prefix = find_architecture(model).layers, model.base_model, f"{model.base_model_prefix}."
        inside = f"; the path begins inside of it, so leave {prefix!r} out" if layers.startswith(prefix) else ""
        raise ValueError(f"{type(base).__name__} has no module at {layers!r}: nothing can be cut in it{inside}")


def find_architecture(model: PreTrainedModel) -> Architecture:
    """Raises `ValueError`, listing the known ones, if the model's is not in the table."""
    if model.config.model_type not in ARCHITECTURES:
        parts = [path for path, part in parts_of(model).items() if part.config.model_type in ARCHITECTURES]
        hint = f" Its parts can be cut one by one: {', '.join(f'model.{path}' for path in parts)}." if parts else ""
        raise ValueError(f"{unsupported_architecture(model.config.model_type)}{hint}")
    return ARCHITECTURES[model.config.model_type]


def list_groups(model: PreTrainedModel) -> list[Group]:
    """Every group of the model at its present size, in the order of the layers: attention, its heads, feed-forward,
    its neurons. A sub-layer that was removed has size 0, and no group of heads or neurons.

    Raises:
        `ValueError`: the architecture is not in the table, or a module is missing or not a plain linear map.
    """
    architecture, widths = find_architecture(model), widths_of(model.config)
    check_blocks(model)
    groups = []
    kinds = (
        ("heads", architecture.heads, architecture.attributes),
        ("neurons", architecture.neurons, architecture.neuron_attributes),
    )
    for layer, block in enumerate(list_blocks(model)):
        for number, (kind, cuts, attributes) in enumerate(kinds):
            name = f"layer.{layer}.{kind}"
            bypass = {f"{block}.{path}": gives for path, gives in (architecture.bypass or ({}, {}))[number].items()}
            if bypass and all(is_removed(module_at(model, path)) for path in bypass):
                groups.append(Group(sublayer_of(name), "layers", 0, ()))
                continue
            slices = tuple(Slice(f"{block}.{cut.module}", cut.axis, widths[cut.width], cut.blocks) for cut in cuts)
            for piece in slices[:-1]:
                linear_map(model, piece.module)  # raises if it is not plain
            size = count_units(model, slices[-1])
            if bypass:
                whole = tuple(replace(piece, width=piece.width * size) for piece in slices)
                groups.append(Group(sublayer_of(name), "layers", 1, whole, bypass=bypass))
            counted = {f"{block}.{path}": widths[width] for path, width in attributes.items()}
            groups.append(Group(name, kind, size, slices, counted))
    return groups


def sublayer_of(name: str) -> str:
    """Name of the sub-layer that a group is part of: `layer.3.attention` for `layer.3.heads` and for itself."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.{SUBLAYERS.get(part, part)}"


def is_removed(module: nn.Module) -> bool:
    return "gives" in vars(module)  # not by the class: it may be that of a checkpoint's copy of this file


def kept_heads(config: PretrainedConfig, layers: int) -> dict[str, list[int]]:
    """Kept heads by group, where the config records which they are."""
    removed, heads = pruned_heads(config, layers), range(config.num_attention_heads)
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


def features_of(module: nn.Linear | Conv1D, axis: str) -> int:
    return module.weight.shape[dimension(module, axis)]


def count_units(model: nn.Module, output: Slice) -> int:
    """Units that flow into an output projection.

    Raises:
        `AttributeError`: the model has no such module.
        `ValueError`: it is not a plain linear map.
    """
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
    for group, positions in keep:
        if group.bypass:
            if not positions:
                linear_map(model, group.output.module)  # raises if it is not plain
                gone |= stand_ins(model, group.output.module, group.bypass)
            continue
        for piece in group.slices:
            module = linear_map(model, piece.module)
            weight = _take(piece, group.size, positions, module.weight, dimension(module, piece.axis))
            cut_bias = piece.axis == "out" and module.bias is not None
            new.append(
                (module, weight, _take(piece, group.size, positions, module.bias, 0) if cut_bias else module.bias)
            )
    if gone:
        _check_caches(model, gone)
        for path, module in gone.items():
            module.train(model.get_submodule(path).training)
        put(model, gone)
    for module, weight, bias in new:
        module._parameters.update(weight=weight, bias=bias)
        names = ("nx", "nf") if isinstance(module, Conv1D) else ("out_features", "in_features")
        vars(module).update(zip(names, weight.shape))
    for group, positions in keep:
        for path, amount in group.attributes.items():
            owner, _, name = path.rpartition(".")
            setattr(module_at(model, owner), name, len(positions) * amount)


def _check_caches(model: PreTrainedModel, gone: Collection[str]) -> None:
    """Raises `ValueError` if the first place of a key-value cache, or layers that share one, would be left without the
    layer that fills it.

    Args:
        gone: paths of modules that are about to go.
    """
    config, removed, left = model.config.get_text_config(decoder=True), tuple(f"{path}." for path in gone), set()
    kinds, goes = layer_types(model), False
    for kind, block in zip(kinds, list_blocks(model)):
        for path, module in model.get_submodule(block).named_modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                here = f"{block}.{path}.".startswith(removed)
                goes |= here
                left |= set() if here else {kind}
    if goes and (getattr(config, "num_kv_shared_layers", None) or getattr(config, "kv_sharing_modes", None)):
        raise ValueError("layers of this model share a key-value cache by their numbers, so none of them can go")
    if left and kinds[0] not in left:
        raise ValueError(
            f"no attention layer of the type {kinds[0]!r} would be left, which config.layer_types gives to the first "
            "layer: transformers takes the length of a key-value cache from one; keep at least one of them"
        )


def _take(piece: Slice, size: int, keep: Sequence[int], tensor: torch.Tensor, place: int) -> nn.Parameter:
    """The features of the kept units."""
    if tensor.is_meta:  # which they are does not matter, and indices would have to be made there
        shape = list(tensor.shape)
        shape[place] = piece.blocks * len(keep) * piece.width
        taken = torch.empty(shape, dtype=tensor.dtype, device="meta")
    else:
        taken = tensor.index_select(place, piece.index(size, keep).to(tensor.device))
    return nn.Parameter(taken, tensor.requires_grad)
