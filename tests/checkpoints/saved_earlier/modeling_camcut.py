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
"""Pruned Transformers: what can be cut in each architecture, and the classes that load what was cut.

This file is copied beside the weights of every pruned checkpoint, so it stands alone: it needs torch and transformers
and nothing else. With it, `AutoModelFor...from_pretrained(path, trust_remote_code=True)` builds the ordinary
transformers model, shrinks its linear maps to the sizes recorded in `config.json`, and loads the weights. From the
config it reads integers only, each checked against the model.
"""

import difflib
import functools
import os
import re
import shutil
from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


RECORD = "camcut_pruning"  # the key of config.json that holds the kept sizes

UNIT, HEAD, QUERIES = "unit", "head", "queries"  # symbolic widths, see `Architecture`

STAND_INS = tuple(f"{what}{pair}" for what in ("input", "residual", "zeros") for pair in ("", " pair"))  # see `Bypass`

SUBLAYERS = {"heads": "attention", "neurons": "feed_forward"}  # kind of unit -> the sub-layer it is part of


@dataclass(frozen=True)
class Cut:
    """One linear map of a block that loses rows or columns when a unit goes.

    Args:
        module (`str`): path of the map inside the block.
        axis (`str`): `"out"` if a unit owns output features, `"in"` if it owns input features.
        width (`str`): features per unit: `"unit"` (one), `"head"` (the head size), or `"queries"` (the head size times
            the number of query heads that share one key-value head).
        blocks (`int`): how many such maps are fused side by side (3 for a fused query-key-value).
    """

    module: str
    axis: str
    width: str = UNIT
    blocks: int = 1


@dataclass(frozen=True)
class Architecture:
    """What may be cut in one `model_type`. All paths but `layers` are relative to a block.

    Args:
        layers (`str`): path of the blocks inside the base model, `{}` standing for each index.
        heads, neurons (`tuple[Cut, ...]`): the maps of one attention and one feed-forward layer. The last is the
            output projection, where the activations of the units are observed.
        residual (`tuple[str, str]`): for the attention and for the feed-forward layer, a module whose input is the
            residual stream that the layer's output is added to (in pre-norm blocks, the norm before the layer; in
            post-norm blocks, the first linear map of the layer).
        attributes (`Mapping[str, str]`): module attributes that count heads, with the amount per head as a symbolic
            width; they are kept true after a cut.
        neuron_attributes (`Mapping[str, str]`): the same for neurons.
        bypass (`tuple[Mapping[str, str], Mapping[str, str]]`, *optional*): for the attention and for the feed-forward
            layer, the modules that go when the whole sub-layer goes, norms included, and what the stand-in for each
            must give so that the residual stream passes unchanged; see `Bypass`. Without it, sub-layers stay.
        position_bias (`str`, *optional*): path of the attention module whose forward takes a `position_bias` with one
            map per head of the uncut model, shared by all layers. It is cut on the way in.
        native_pruned_heads (`bool`): transformers 4 itself loads `config.pruned_heads` for this architecture.
        config_fields (`Mapping[str, tuple[str, ...]]`): kind of unit -> the fields of the config that say how many
            every layer has: the number itself, then others that grow with it. What they express needs no record.
    """

    layers: str
    heads: tuple[Cut, ...]
    neurons: tuple[Cut, ...]
    residual: tuple[str, str]
    attributes: Mapping[str, str] = field(default_factory=dict)
    neuron_attributes: Mapping[str, str] = field(default_factory=dict)
    bypass: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    position_bias: str | None = None
    native_pruned_heads: bool = False
    config_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_BERT = Architecture(
    layers="encoder.layer.{}",
    heads=(
        Cut("attention.self.query", "out", HEAD),
        Cut("attention.self.key", "out", HEAD),
        Cut("attention.self.value", "out", HEAD),
        Cut("attention.output.dense", "in", HEAD),
    ),
    neurons=(Cut("intermediate.dense", "out"), Cut("output.dense", "in")),
    residual=("attention.self.query", "intermediate.dense"),
    attributes={"attention.self.num_attention_heads": UNIT, "attention.self.all_head_size": HEAD},
    bypass=({"attention": "input pair"}, {"intermediate": "input", "output": "residual"}),
    native_pruned_heads=True,
    config_fields={"neurons": ("intermediate_size",)},
)


class Table(UserDict):
    """`model_type` -> `Architecture`, whose fields are checked when an entry is added. What they say of a model is
    checked by `optimum_camcut.check_architecture`."""

    def __setitem__(self, model_type: str, entry: Architecture) -> None:
        """Raises `ValueError`: names the entry and the field that cannot be right."""

        def need(valid: bool, where: str, expected: str, got: Any, known: Sequence[str] = ()) -> None:
            if not valid:
                near = difflib.get_close_matches(str(got), known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"the entry {model_type!r} of ARCHITECTURES: {where} should be {expected}; got {got!r:.200}{hint}"
                )

        def choice(value: Any, where: str, known: Sequence[str]) -> None:
            expected = "one of " + ", ".join(map(repr, known))
            need(isinstance(value, str) and value in known, where, expected, value, known)

        def path(value: Any, where: str) -> None:
            valid = isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*", value) is not None
            need(valid, where, "a path of names with dots between them", value)

        need(isinstance(model_type, str), "its key", "the model_type of a config, a string", model_type)
        need(isinstance(entry, Architecture), "the entry", "an Architecture", entry)
        valid = isinstance(entry.layers, str) and re.fullmatch(r"\w+(\.(\w+|\{\}))*", entry.layers) is not None
        valid = valid and ".{}" in entry.layers
        need(valid, "layers", "a path with {} in the place of each index, such as 'encoder.layer.{}'", entry.layers)
        for kind in SUBLAYERS:
            cuts, fields = getattr(entry, kind), f"{kind}[%d].%s"
            valid = isinstance(cuts, tuple) and len(cuts) > 1 and all(isinstance(cut, Cut) for cut in cuts)
            need(valid, kind, "a tuple of two or more Cut, the output projection last", cuts)
            for number, cut in enumerate(cuts):
                path(cut.module, fields % (number, "module"))
                choice(cut.axis, fields % (number, "axis"), ("out", "in"))
                choice(cut.width, fields % (number, "width"), (UNIT, HEAD, QUERIES))
                valid = type(cut.blocks) is int and cut.blocks > 0
                need(valid, fields % (number, "blocks"), "an integer of at least 1", cut.blocks)
            last = cuts[-1]
            need(last.axis == "in", fields % (len(cuts) - 1, "axis"), "'in', of the output projection", last.axis)
        valid = isinstance(entry.residual, tuple) and len(entry.residual) == 2
        need(valid, "residual", "two paths: of attention, of feed-forward", entry.residual)
        for number, module in enumerate(entry.residual):
            path(module, f"residual[{number}]")
        for name in ("attributes", "neuron_attributes"):
            values = getattr(entry, name)
            need(isinstance(values, Mapping), name, "a dict of attribute -> width", values)
            for attribute, width in values.items():
                path(attribute, f"a key of {name}")
                choice(width, f"{name}[{attribute!r}]", (UNIT, HEAD, QUERIES))
        if entry.bypass is not None:
            valid = isinstance(entry.bypass, tuple) and len(entry.bypass) == 2
            valid = valid and all(isinstance(modules, Mapping) for modules in entry.bypass)
            need(valid, "bypass", "a pair of dicts of module -> what stands in for it, or None", entry.bypass)
            for number, (modules, kind) in enumerate(zip(entry.bypass, SUBLAYERS)):
                where, output = f"bypass[{number}]", getattr(entry, kind)[-1].module
                for module, gives in modules.items():
                    path(module, f"a key of {where}")
                    choice(gives, f"{where}[{module!r}]", STAND_INS)
                covered = any(f"{output}.".startswith(f"{module}.") for module in modules)
                need(covered, where, f"of modules one of which is or holds the output projection {output!r}", modules)
        if entry.position_bias is not None:
            path(entry.position_bias, "position_bias")
        valid = type(entry.native_pruned_heads) is bool
        need(valid, "native_pruned_heads", "True or False", entry.native_pruned_heads)
        need(isinstance(entry.config_fields, Mapping), "config_fields", "a dict of kind -> names", entry.config_fields)
        for kind, names in entry.config_fields.items():
            choice(kind, "a key of config_fields", tuple(SUBLAYERS))
            valid = isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
            need(bool(valid), f"config_fields[{kind!r}]", "a tuple of names of the config's fields", names)
        super().__setitem__(model_type, entry)


_SHIPPED: dict[str, Architecture] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Architecture(
        layers="transformer.layer.{}",
        heads=(
            Cut("attention.q_lin", "out", HEAD),
            Cut("attention.k_lin", "out", HEAD),
            Cut("attention.v_lin", "out", HEAD),
            Cut("attention.out_lin", "in", HEAD),
        ),
        neurons=(Cut("ffn.lin1", "out"), Cut("ffn.lin2", "in")),
        residual=("attention.q_lin", "ffn.lin1"),
        attributes={"attention.n_heads": UNIT, "attention.dim": HEAD},
        bypass=(
            {"attention": "zeros pair", "sa_layer_norm": "input"},
            {"ffn": "zeros", "output_layer_norm": "input"},
        ),
        native_pruned_heads=True,
        config_fields={"neurons": ("hidden_dim",)},
    ),
    "albert": Architecture(
        layers="encoder.albert_layer_groups.{}.albert_layers.{}",
        heads=(
            Cut("attention.query", "out", HEAD),
            Cut("attention.key", "out", HEAD),
            Cut("attention.value", "out", HEAD),
            Cut("attention.dense", "in", HEAD),
        ),
        neurons=(Cut("ffn", "out"), Cut("ffn_output", "in")),
        residual=("attention.query", "ffn"),
        attributes={"attention.num_attention_heads": UNIT, "attention.all_head_size": HEAD},
        bypass=(
            {"attention": "input pair"},
            {"ffn": "input", "activation": "input", "ffn_output": "zeros", "full_layer_layer_norm": "input"},
        ),
        native_pruned_heads=True,
        config_fields={"neurons": ("intermediate_size",)},
    ),
    "mpnet": Architecture(
        layers="encoder.layer.{}",
        heads=(
            Cut("attention.attn.q", "out", HEAD),
            Cut("attention.attn.k", "out", HEAD),
            Cut("attention.attn.v", "out", HEAD),
            Cut("attention.attn.o", "in", HEAD),
        ),
        neurons=(Cut("intermediate.dense", "out"), Cut("output.dense", "in")),
        residual=("attention.attn.q", "intermediate.dense"),
        attributes={"attention.attn.num_attention_heads": UNIT, "attention.attn.all_head_size": HEAD},
        bypass=({"attention": "input pair"}, {"intermediate": "input", "output": "residual"}),
        position_bias="attention.attn",
        config_fields={"neurons": ("intermediate_size",)},
    ),
    "gpt2": Architecture(
        layers="h.{}",
        heads=(Cut("attn.c_attn", "out", HEAD, blocks=3), Cut("attn.c_proj", "in", HEAD)),
        neurons=(Cut("mlp.c_fc", "out"), Cut("mlp.c_proj", "in")),
        residual=("ln_1", "ln_2"),
        attributes={"attn.num_heads": UNIT, "attn.split_size": HEAD},
        bypass=({"ln_1": "input", "attn": "zeros pair"}, {"ln_2": "input", "mlp": "zeros"}),
        native_pruned_heads=True,
        config_fields={"neurons": ("n_inner",)},
    ),
    "llama": Architecture(
        layers="layers.{}",
        heads=(
            Cut("self_attn.q_proj", "out", QUERIES),
            Cut("self_attn.k_proj", "out", HEAD),
            Cut("self_attn.v_proj", "out", HEAD),
            Cut("self_attn.o_proj", "in", QUERIES),
        ),
        neurons=(Cut("mlp.gate_proj", "out"), Cut("mlp.up_proj", "out"), Cut("mlp.down_proj", "in")),
        residual=("input_layernorm", "post_attention_layernorm"),
        neuron_attributes={"mlp.intermediate_size": UNIT},
        bypass=(
            {"input_layernorm": "input", "self_attn": "zeros pair"},
            {"post_attention_layernorm": "input", "mlp": "zeros"},
        ),
        config_fields={
            "heads": ("num_key_value_heads", "num_attention_heads"),
            "neurons": ("intermediate_size",),
        },
    ),
}

# One entry per `model_type`. To add an architecture, add an entry (README, "Adding an architecture").
ARCHITECTURES = Table(_SHIPPED)
SHIPPED_ARCHITECTURES = dict(ARCHITECTURES)  # as this file has them: other entries travel with the checkpoints


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


def has_record(config: PretrainedConfig) -> bool:
    """Whether the config itself says that its model is physically smaller than its class builds it."""
    return getattr(config, RECORD, None) is not None or bool(getattr(config, "pruned_heads", None))


def sub_configs(config: PretrainedConfig) -> dict[str, PretrainedConfig]:
    """Configs of the parts of a composite model (encoder and decoder, text and vision), by their attributes."""
    return {name: value for name, value in vars(config).items() if isinstance(value, PretrainedConfig)}


def cut_configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Those with a record: the config itself, and those of the parts of a composite model."""
    own = [config] if has_record(config) else []
    return own + [found for part in sub_configs(config).values() for found in cut_configs(part)]


def is_cut(config: PretrainedConfig) -> bool:
    """Whether the config is of a model that is physically smaller than its class builds it, or a part of it is."""
    return bool(cut_configs(config))


def parts_of(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Path -> model, of the parts of a composite model that are models of another type, with a config of their own."""
    found: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or any(f"{name}.".startswith(f"{path}.") for path in found):
            continue
        if module.config.model_type != model.config.model_type:
            found[name] = module
    return found


def sublayer_of(name: str) -> str:
    """Name of the sub-layer that a group is part of: `layer.3.attention` for `layer.3.heads` and for itself."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.{SUBLAYERS.get(part, part)}"


class Bypass(nn.Module):
    """Stands in for a module of a removed sub-layer.

    Args:
        gives (`str`): `"input"`: the first argument; `"residual"`: the second, where the residual stream is that;
            `"zeros"`: zeros, where the result is added to the residual stream. With `" pair"`, a tuple of that and
            None in the place of attention maps.
        output (`str`): path inside the module of the sub-layer's output projection, if it was there.
        weight (`torch.Tensor`, *optional*): that projection's weight with no inputs left. It takes no memory; saved
            under the old name it makes a plain `from_pretrained` fail with a size mismatch, where a name that is
            missing would be filled with random numbers. A buffer, so that nothing tries to train it.
    """

    def __init__(self, gives: str, output: str = "", weight: torch.Tensor | None = None):
        super().__init__()
        self.gives = gives
        child, _, rest = output.partition(".")
        if child:
            self.add_module(child, Bypass(gives, rest, weight))
        elif weight is not None:
            self.register_buffer("weight", weight)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor, None]:
        what, _, pair = self.gives.partition(" ")
        result = (*args, *kwargs.values())[1 if what == "residual" else 0]
        if what == "zeros":
            result = torch.zeros_like(result)
        return (result, None) if pair else result

    def extra_repr(self) -> str:
        return self.gives


def _removed(module: nn.Module) -> bool:
    return "gives" in vars(module)  # not by the class: it may be that of a checkpoint's copy of this file


def unsupported_architecture(model_type: str) -> ValueError:
    return ValueError(
        f"the architecture {model_type!r} is not supported; supported are: {', '.join(sorted(ARCHITECTURES))}. "
        "The section 'Adding an architecture' of the README of optimum-camcut shows how to add one."
    )


def find_architecture(model: PreTrainedModel) -> Architecture:
    """Raises `ValueError`, listing the known ones, if the model's is not in the table."""
    if model.config.model_type not in ARCHITECTURES:
        parts = [path for path, part in parts_of(model).items() if part.config.model_type in ARCHITECTURES]
        hint = f" Its parts can be cut one by one: {', '.join(f'model.{path}' for path in parts)}." if parts else ""
        raise ValueError(f"{unsupported_architecture(model.config.model_type)}{hint}")
    return ARCHITECTURES[model.config.model_type]


def list_blocks(model: PreTrainedModel) -> list[str]:
    """Paths of the blocks, in the order of their numbers.

    Raises:
        `ValueError`: the architecture is not in the table, or the model has no blocks where it should.
    """
    layers, base = find_architecture(model).layers, model.base_model
    paths = [next(f"{name}." if name else "" for name, module in model.named_modules() if module is base)]
    *lists, rest = layers.split(".{}")
    try:
        for part in lists:
            found = {path + part: model.get_submodule(path + part) for path in paths}
            paths = [f"{path}.{name}" for path, blocks in found.items() for name in blocks._modules]
    except AttributeError:
        paths = []
    if not paths:
        raise ValueError(f"{type(model).__name__} has no module at {layers!r}: nothing can be cut in it")
    return [path + rest for path in paths]


def list_groups(model: PreTrainedModel) -> list[Group]:
    """Every group of the model at its present size, in the order of the layers: attention, its heads, feed-forward,
    its neurons. A sub-layer that was removed has size 0, and no group of heads or neurons.

    Raises:
        `ValueError`: the architecture is not in the table, or a module is missing or not a plain linear map.
    """
    architecture, config = find_architecture(model), model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads // (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )
    widths = {UNIT: 1, HEAD: head, QUERIES: head * queries}

    groups = []
    kinds = (
        ("heads", architecture.heads, architecture.attributes),
        ("neurons", architecture.neurons, architecture.neuron_attributes),
    )
    for layer, block in enumerate(list_blocks(model)):
        for number, (kind, cuts, attributes) in enumerate(kinds):
            name = f"layer.{layer}.{kind}"
            bypass = {f"{block}.{path}": gives for path, gives in (architecture.bypass or ({}, {}))[number].items()}
            if bypass and all(_removed(_module(model, path)) for path in bypass):
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


def _module(model: nn.Module, path: str) -> nn.Module:
    """`get_submodule`, which takes ten times as long."""
    try:
        return functools.reduce(lambda module, name: module._modules[name], path.split("."), model)
    except KeyError:
        return model.get_submodule(path)  # says what is missing


def linear_map(model: nn.Module, path: str) -> nn.Linear | Conv1D:
    module = _module(model, path)
    if _removed(module):
        raise AttributeError(f"{path} was removed with its sub-layer")
    weight = module._parameters.get("weight")
    plain = isinstance(module, (nn.Linear, Conv1D)) and weight is not None
    if plain:
        sizes = (module.nx, module.nf) if isinstance(module, Conv1D) else (module.out_features, module.in_features)
        packed = type(weight).__module__.startswith("torchao.")  # says that it is a matrix of floats
        plain = weight.dtype.is_floating_point and weight.shape == sizes and not packed
    if not plain:
        found = f" with a {type(weight).__name__}" if weight is not None else ""
        raise ValueError(
            f"{path} is a {type(module).__module__}.{type(module).__name__}{found}; expected torch.nn.Linear or "
            "Conv1D with a plain weight. Merge adapters (`model = model.merge_and_unload()`) and undo quantization "
            "before pruning."
        )
    return module


def _dimension(module: nn.Linear | Conv1D, axis: str) -> int:
    """The weight's dimension that holds the axis; GPT-2's Conv1D keeps its weight transposed."""
    return int((axis == "in") != isinstance(module, Conv1D))


def _features(module: nn.Linear | Conv1D, axis: str) -> int:
    return module.weight.shape[_dimension(module, axis)]


def count_units(model: nn.Module, output: Slice) -> int:
    """Units that flow into an output projection.

    Raises:
        `AttributeError`: the model has no such module.
        `ValueError`: it is not a plain linear map.
    """
    features = _features(linear_map(model, output.module), "in")
    return features // output.width if output.width else int(features == 0)  # a sub-layer with no units left


@torch.no_grad()
def cut_groups(model: PreTrainedModel, keep: Sequence[tuple[Group, Sequence[int]]]) -> None:
    """Cuts groups down to the given positions, in place: all of them, or none if anything fails. A sub-layer of which
    nothing is kept becomes an identity.

    Parameters keep their dtype, device and `requires_grad`; gradients are dropped.

    Args:
        model: the model the groups were listed from.
        keep: pairs of a group and the kept positions among its present units, ascending.
    """
    new, bypasses = [], {}
    for group, positions in keep:
        if group.bypass:
            if not positions:
                bypasses |= _stand_ins(model, group)
            continue
        for piece in group.slices:
            module = linear_map(model, piece.module)
            dimension = _dimension(module, piece.axis)
            weight = _take(piece, group.size, positions, module.weight, dimension)
            cut_bias = piece.axis == "out" and module.bias is not None
            new.append(
                (module, weight, _take(piece, group.size, positions, module.bias, 0) if cut_bias else module.bias)
            )
    places = _cache_places(model, bypasses) if bypasses else {}
    for module, weight, bias in new:
        module._parameters.update(weight=weight, bias=bias)
        features = ("nx", "nf") if isinstance(module, Conv1D) else ("out_features", "in_features")
        vars(module).update(zip(features, weight.shape))
    for group, positions in keep:
        for path, amount in group.attributes.items():
            owner, _, name = path.rpartition(".")
            setattr(_module(model, owner), name, len(positions) * amount)
    for path, module in bypasses.items():
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, module)
    for module, place in places.items():
        module.layer_idx = place


def _take(piece: Slice, size: int, keep: Sequence[int], tensor: nn.Parameter, dimension: int) -> nn.Parameter:
    """The features of the kept units."""
    if tensor.is_meta:  # which they are does not matter, and indices would have to be made there
        shape = list(tensor.shape)
        shape[dimension] = piece.blocks * len(keep) * piece.width
        taken = torch.empty(shape, dtype=tensor.dtype, device="meta")
    else:
        taken = tensor.index_select(dimension, piece.index(size, keep).to(tensor.device))
    return nn.Parameter(taken, tensor.requires_grad)


def _stand_ins(model: PreTrainedModel, group: Group) -> dict[str, Bypass]:
    """What takes the place of each module of a sub-layer: path -> stand-in."""
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False) and transformers.__version__.startswith("4."):
        raise ValueError(
            "transformers 4 scales attention by the layer's number here (scale_attn_by_inverse_layer_idx), which "
            "removing layers changes; use transformers 5"
        )
    output = linear_map(model, group.output.module)
    weight = output.weight.detach().narrow(_dimension(output, "in"), 0, 0).clone()
    found = {}
    for path, gives in group.bypass.items():
        inside = f"{group.output.module}.".startswith(f"{path}.")
        found[path] = Bypass(gives, *((group.output.module[len(path) + 1 :], weight) if inside else ()))
        found[path].train(model.get_submodule(path).training)
    return found


def _cache_places(model: PreTrainedModel, gone: Collection[str]) -> dict[nn.Module, int]:
    """The place in a key-value cache of every attention module that is left, in the order of the blocks: the first
    free one of its kind. `config.layer_types` lays out a cache by the blocks of the uncut model, and transformers
    takes its length and its masks from the first place, and from the first of each kind.

    Args:
        model: before or after a cut.
        gone: paths of modules that are about to go.

    Raises:
        `ValueError`: the first place, or layers that share a cache, would be left without the layer that fills it.
    """
    config, blocks = model.config.get_text_config(decoder=True), list_blocks(model)
    kinds = getattr(config, "layer_types", None) or ()
    if len(kinds) != len(blocks):
        kinds = ["full_attention"] * len(blocks)
    free: dict[tuple[str, str], Iterator[int]] = {}
    places, removed, shared = {}, tuple(f"{path}." for path in gone), None
    for kind, block in zip(kinds, blocks):
        for path, module in model.get_submodule(block).named_modules():
            if not isinstance(getattr(module, "layer_idx", None), int):
                continue
            if f"{block}.{path}.".startswith(removed):
                shared = getattr(config, "num_kv_shared_layers", None) or getattr(config, "kv_sharing_modes", None)
                continue
            of_kind = iter([place for place, other in enumerate(kinds) if other == kind])
            places[module] = next(free.setdefault((path, kind), of_kind))
    if shared:
        raise ValueError("layers of this model share a key-value cache by their numbers, so none of them can go")
    if places and kinds[0] not in {kind for _, kind in free}:
        raise ValueError(
            f"no attention layer of the type {kinds[0]!r} would be left, which config.layer_types gives to the first "
            "layer: transformers takes the length of a key-value cache from one; keep at least one of them"
        )
    return places


def bind_position_bias(model: PreTrainedModel, kept_heads: Mapping[str, Sequence[int]]) -> None:
    """Makes attention layers take their own heads' maps out of a position bias that all layers share.

    Args:
        model: a model whose architecture may have such a bias; nothing happens where it has none.
        kept_heads: group name -> indices of the kept heads in the uncut model.
    """
    path = find_architecture(model).position_bias
    for layer, block in enumerate(list_blocks(model)):
        kept = kept_heads.get(f"layer.{layer}.heads")
        if path is not None and kept is not None:
            attention = model.get_submodule(f"{block}.{path}")
            if not hasattr(attention, "camcut_kept_heads"):
                attention.register_forward_pre_hook(_select_position_bias, with_kwargs=True)
            attention.camcut_kept_heads = list(kept)


def _select_position_bias(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    names = type(module).forward.__code__.co_varnames[1:]
    values = dict(zip(names, args)) | kwargs
    if values.get("position_bias") is not None:
        values["position_bias"] = values["position_bias"][:, module.camcut_kept_heads]
    return (), values


def pruned_heads(config: PretrainedConfig, layers: int) -> dict[str, list[int]]:
    """Removed heads by group, from `config.pruned_heads`. As in transformers 4, layers may be counted from the end.

    Raises:
        `ValueError`: it is not what transformers 4 writes.
    """
    pruned, total, removed = getattr(config, "pruned_heads", None) or {}, config.num_attention_heads, {}
    if not isinstance(pruned, dict) or not all(_distinct(heads, total) for heads in pruned.values()):
        raise ValueError(
            f"config.pruned_heads should map layers to lists of different heads below {total}; it is {pruned!r:.200}"
        )
    for layer, heads in pruned.items():
        layer = layers + int(layer) if re.fullmatch("-[0-9]{1,9}", str(layer)) else layer
        removed[f"layer.{layer}.heads"] = sorted({*removed.get(f"layer.{layer}.heads", ()), *heads})
    return {name: heads for name, heads in removed.items() if heads}


def kept_heads(config: PretrainedConfig, layers: int) -> dict[str, list[int]]:
    """Kept heads by group, where the config records which they are."""
    removed, heads = pruned_heads(config, layers), range(config.num_attention_heads)
    record = getattr(config, RECORD, None)
    recorded = record.get("kept_heads") if isinstance(record, dict) else None
    kept = {name: [head for head in heads if head not in gone] for name, gone in removed.items()}
    return kept | (recorded if isinstance(recorded, dict) else {})


def recorded_sizes(config: PretrainedConfig, groups: Sequence[Group]) -> dict[str, int]:
    """Kept size of every group that the config records as cut.

    Raises:
        `ValueError`: a record names an unknown group, or a size that is no integer between 0 and the group's own, or
            disagrees with `pruned_heads`.
    """
    known = {group.name: group for group in groups}
    record, layers = getattr(config, RECORD, None), int(groups[-1].name.split(".")[1]) + 1
    removed = pruned_heads(config, layers)
    sizes = left = {name: config.num_attention_heads - len(heads) for name, heads in removed.items()}
    if record is not None:  # else a checkpoint that transformers 4 pruned by itself
        sizes = record.get("sizes") if isinstance(record, dict) else None
    if not isinstance(sizes, dict):
        raise ValueError(
            f"config.{RECORD} should hold 'sizes', a dict of group name -> kept units; it is {record!r:.200}"
        )
    for name, size in sizes.items():
        if name not in known:
            raise ValueError(f"config.{RECORD} records a size for {name!r}, which this model lacks: {list(known)}")
        if type(size) is not int or not 0 <= size <= known[name].size:
            raise ValueError(
                f"config.{RECORD} records {size!r:.99} units for {name!r}; expected an integer between 0 and "
                f"{known[name].size}"
            )
        if sublayer_of(name) != name and sizes.get(sublayer_of(name)) == 0:
            raise ValueError(f"config.{RECORD} records {size} units for {name!r}, whose sub-layer it records as gone")
    if not left.items() <= sizes.items():
        raise ValueError(
            f"config.{RECORD} records {sizes}, but config.pruned_heads leaves {left}; restore the config, and prune "
            "further with optimum_camcut.prune_heads, where that of transformers 4 was used"
        )
    return sizes


def _distinct(indices: Any, total: int) -> bool:
    """Whether this is a list of different indices below a total."""
    valid = isinstance(indices, list) and all(type(index) is int and 0 <= index < total for index in indices)
    return valid and len(set(indices)) == len(indices)


def shrink(model: PreTrainedModel) -> None:
    """Shrinks a freshly built model, and the parts of a composite one, to the sizes that their configs record. Does
    nothing to what is that small already."""
    for part in parts_of(model).values() if sub_configs(model.config) else ():
        shrink(part)
    if not has_record(model.config):
        return
    groups = {group.name: group for group in list_groups(model)}
    sizes = recorded_sizes(model.config, list(groups.values()))
    cut_groups(model, [(groups[n], range(size)) for n, size in sizes.items() if size < groups[n].size])
    if getattr(model.config, "pruned_heads", None):  # JSON has made strings of the numbers
        removed = pruned_heads(model.config, len(list_blocks(model)))
        model.config.pruned_heads = {int(name.split(".")[1]): heads for name, heads in removed.items()}
    if find_architecture(model).position_bias is None:
        return
    recorded, total = kept_heads(model.config, len(list_blocks(model))), model.config.num_attention_heads
    kept_of = {name: recorded.get(name) for name in sizes if groups[name].kind == "heads"}
    for name, kept in kept_of.items():
        if not _distinct(kept, total) or len(kept) != sizes[name] or kept != sorted(kept):
            raise ValueError(
                f"config.{RECORD} records the heads {kept!r:.200} for {name!r}; expected {sizes[name]} different "
                f"indices below {total}, ascending"
            )
    bind_position_bias(model, kept_of)


class DrawsNothing(TorchFunctionMode):
    """Where models are built without storage, `torch.nn.init` returns at once: to go through it takes as long as the
    rest. In this thread alone, unlike `no_init_weights` of transformers, which replaces its functions for all threads,
    and for good if two of them load at once."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class PrunedModel:
    """Mixed in before a transformers class: builds the model, then shrinks it to the sizes in its config."""

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any):
        # Of the parts of a composite model: transformers 4 would cut by itself, by the strings that JSON has made.
        parts = [(each, getattr(each, "pruned_heads", {})) for each in cut_configs(config) if each is not config]
        for part, _ in parts:
            part.pruned_heads = {}
        with DrawsNothing() if torch.empty(0).is_meta else nullcontext():  # as in from_pretrained
            super().__init__(config, *args, **kwargs)
        for part, removed in parts:
            part.pruned_heads = removed
        with torch._C.DisableTorchFunction():  # a device context makes every step five times slower; devices are known
            shrink(self)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """As the class's own. Weights of the blocks that the files lack are an error: they would start at random, as
        with a class of one's own that was saved and another class that does not know its names."""
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(name_or_path, *args, output_loading_info=True, **kwargs)
        blocks = tuple(f"{block}." for block in list_blocks(model)) if has_record(model.config) else ()
        missing = sorted(name for name in info["missing_keys"] if name.startswith(blocks))
        if missing:
            saved = (getattr(model.config, "architectures", None) or [cls.__name__])[0]
            advice = "take the files anew from where the model was saved"
            if saved != cls.__name__:
                advice = f"it was saved as {saved}: load it as that, by `load_pruned(..., model_class={saved})`"
            raise ValueError(
                f"the weights of {name_or_path} lack {', '.join(missing[:5])}, which would start at random; {advice}"
            )
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str, is_main_process: bool = True, **kwargs: Any) -> None:
        """As the model's own, with this file beside the weights again where loading them takes it, and the plan from
        where it was loaded."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            if is_cut(self.config):
                shutil.copy(__file__, save_directory)
            for name in ("pruning_plan.json", "pruning_plans.json", "pruning_config.json"):
                source = os.path.join(self.name_or_path, name)
                if os.path.isfile(source) and not os.path.exists(os.path.join(save_directory, name)):
                    shutil.copy(source, save_directory)


@functools.cache
def pruned_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class that loads pruned checkpoints of `base`, under the same name (pipelines check the name)."""
    return type(base.__name__, (PrunedModel, base), {"__module__": __name__, "__doc__": base.__doc__})


def __getattr__(name: str) -> type[PreTrainedModel]:
    """Every transformers model class, ready for pruned weights; `auto_map` in the config points here."""
    base = None if name.startswith("_") else getattr(transformers, name, None)
    if not (isinstance(base, type) and issubclass(base, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(base)
