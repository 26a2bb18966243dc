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
"""Loads Transformers that optimum-camcut has pruned, with torch and transformers alone.

`AutoModelFor...from_pretrained(path, trust_remote_code=True)` finds the transformers class of the same name here. It
builds the model, shrinks its layers to the sizes that `config.json` records, and loads the weights. From the config it
reads integers only, each checked against the model.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .entry import HEAD, QUERIES, UNIT, Architecture, Cut  # noqa: F401 - public from here
from .table import ARCHITECTURES


RECORD = "camcut_pruning"  # the key of config.json that holds the kept sizes
SUBLAYERS = {"heads": "attention", "neurons": "feed_forward"}  # kind of unit -> the sub-layer it is part of
AnyModel: Any = object  # to type checkers, the transformers class that `PrunedModel` is put before
OTHER_RECORDS: list[Callable[..., dict[str, list[int]]]] = []  # `(config, units by group) -> kept heads by group`
AFTER_SHRINKING: list[Callable[..., None]] = []  # what some architectures take besides: `(model, sizes by group)`


def has_record(config: PretrainedConfig) -> bool:
    """Whether the config itself says that its model is physically smaller than its class builds it."""
    return getattr(config, RECORD, None) is not None or bool(getattr(config, "pruned_heads", None))


def cut_configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Those with a record: the config itself, and those of the parts of a composite model."""
    parts = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
    return [config] * has_record(config) + [found for part in parts for found in cut_configs(part)]


def parts_of(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Path -> model, of the parts of a composite model that are models of another type, with a config of their own."""
    models = {path: module for path, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    parts = {path: part for path, part in models.items() if part.config.model_type != model.config.model_type}
    return {path: part for path, part in parts.items() if not any(path.startswith(f"{other}.") for other in parts)}


class Bypass(nn.Module):
    """Stands in for a module of a removed sub-layer: gives its first input, its second where that is the residual
    stream, or zeros where the result is added to that; with `" pair"`, and None in the place of attention maps.

    The one for the output projection keeps its weight with no inputs left: a plain `from_pretrained` then fails with a
    size mismatch, where a missing weight would start at random. It is a buffer, so that nothing tries to train it.
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


def list_blocks(model: PreTrainedModel) -> list[str]:
    """Paths of the blocks, in the order of their numbers."""
    *lists, rest = ARCHITECTURES[model.config.model_type].layers.split(".{}")
    base = (f"{path}." if path else "" for path, module in model.named_modules() if module is model.base_model)
    paths = [next(base, "")]  # it is among the first: no need to walk over all
    for part in lists:
        paths = [f"{path}{part}.{name}" for path in paths for name in model.get_submodule(path + part)._modules]
    return [path + rest for path in paths]


def widths_of(config: PretrainedConfig) -> dict[str, int]:
    """Features of a unit, by the symbolic width of its cut."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries = heads // (getattr(config, "num_key_value_heads", None) or heads)
    return {UNIT: 1, HEAD: size, QUERIES: size * queries}


def dimension(module: nn.Linear | Conv1D, axis: str) -> int:
    """The weight's dimension that holds the axis; GPT-2's Conv1D keeps its weight transposed."""
    return int((axis == "in") != isinstance(module, Conv1D))


def present_units(model: PreTrainedModel) -> dict[str, int]:
    """Group name -> units now, of the heads and neurons that are there and the sub-layers that can go (1, or 0)."""
    entry, widths, found = ARCHITECTURES[model.config.model_type], widths_of(model.config), {}
    for layer, block in enumerate(list_blocks(model)):
        for (kind, part), paths in zip(SUBLAYERS.items(), entry.bypass or ({}, {})):
            gone = bool(paths) and all("gives" in vars(model.get_submodule(f"{block}.{path}")) for path in paths)
            if paths:
                found[f"layer.{layer}.{part}"] = int(not gone)
            if not gone:
                output = getattr(entry, kind)[-1]
                module = model.get_submodule(f"{block}.{output.module}")
                found[f"layer.{layer}.{kind}"] = module.weight.shape[dimension(module, "in")] // widths[output.width]
    return found


def stand_ins(model: PreTrainedModel, output: str, bypass: Mapping[str, str]) -> dict[str, Bypass]:
    """What takes the place of each module of a sub-layer, by its path.

    Args:
        output: path of the sub-layer's output projection.
        bypass: path of each module that goes -> what its stand-in gives.
    """
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False) and transformers.__version__.startswith("4."):
        raise ValueError("transformers 4 would scale attention by the layer's new number here; use transformers 5")
    projection, found = model.get_submodule(output), {}
    weight = projection.weight.detach().narrow(dimension(projection, "in"), 0, 0).clone()
    for path, gives in bypass.items():
        inside = f"{output}.".startswith(f"{path}.")
        found[path] = Bypass(gives, *((output[len(path) + 1 :], weight) if inside else ()))
    return found


def put(model: PreTrainedModel, stand_ins: Mapping[str, Bypass]) -> None:
    """Puts stand-ins in their places, and gives each attention module that is left the first free place of its kind in
    a key-value cache: `config.layer_types` lays out a cache by the blocks of the uncut model, and transformers takes
    its length and its masks from the first place, and from the first of each kind."""
    for path, module in stand_ins.items():
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, module)
    kinds, free = layer_types(model), dict[tuple[str, str], Iterator[int]]()
    for kind, block in zip(kinds, list_blocks(model)) if stand_ins else ():
        for path, module in model.get_submodule(block).named_modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                of_kind = iter([place for place, other in enumerate(kinds) if other == kind])
                module.layer_idx = next(free.setdefault((path, kind), of_kind))


def layer_types(model: PreTrainedModel) -> list[str]:
    """The kind of attention of each block, as a key-value cache has it."""
    config, number = model.config.get_text_config(decoder=True), len(list_blocks(model))
    kinds = list(getattr(config, "layer_types", None) or ())
    return kinds if len(kinds) == number else ["full_attention"] * number


def recorded_sizes(config: PretrainedConfig, units: Mapping[str, int]) -> dict[str, int]:
    """Kept size of every group that the config records as cut.

    Args:
        units: group name -> units of the model as it was built.

    Raises:
        `ValueError`: a record names an unknown group, or a size that is no integer between 0 and the group's own.
    """
    other = {name: len(heads) for read in OTHER_RECORDS for name, heads in read(config, units).items()}
    record = getattr(config, RECORD, None)
    sizes = record.get("sizes") if isinstance(record, dict) else other if record is None else None
    if not isinstance(sizes, dict):
        raise ValueError(f"config.{RECORD} should hold 'sizes', group name -> kept units; it is {record!r:.200}")
    for name, size in sizes.items():
        if type(size) is not int or not 0 <= size <= units.get(name, -1):
            known = f"an integer between 0 and {units[name]}" if name in units else f"one of the groups {list(units)}"
            raise ValueError(f"config.{RECORD} records {size!r:.99} units for {name!r}; expected {known}")
        layer, _, kind = name.rpartition(".")
        if sizes.get(f"{layer}.{SUBLAYERS.get(kind)}") == 0:
            raise ValueError(f"config.{RECORD} records {size} units for {name!r}, whose sub-layer it records as gone")
    if not other.items() <= sizes.items():
        raise ValueError(
            f"config.{RECORD} records {sizes}, but config.pruned_heads leaves {other}; restore the config"
        )
    return sizes


def _narrow(module: nn.Linear | Conv1D, axis: str, features: int) -> None:
    """Keeps so many features of a linear map. Which ones does not matter before the weights are loaded."""
    places = {"weight": dimension(module, axis), **({"bias": 0} if axis == "out" and module.bias is not None else {})}
    for name, place in places.items():
        module._parameters[name] = nn.Parameter(module.get_parameter(name).detach().narrow(place, 0, features).clone())
    names = ("nx", "nf") if isinstance(module, Conv1D) else ("out_features", "in_features")
    vars(module).update(zip(names, module.weight.shape))


def shrink(model: PreTrainedModel) -> None:
    """Shrinks a freshly built model, and the parts of a composite one, to the sizes that their configs record. Does
    nothing to what is that small already."""
    for part in parts_of(model).values():
        shrink(part)
    if not has_record(model.config):
        return
    config, blocks, units = model.config, list_blocks(model), present_units(model)
    entry, widths, sizes = ARCHITECTURES[config.model_type], widths_of(config), recorded_sizes(config, units)
    gone: dict[str, Bypass] = {}
    for name in [name for name, size in sizes.items() if size < units[name]]:
        _, layer, kind = name.split(".")
        block, size = blocks[int(layer)], sizes[name]
        if kind in SUBLAYERS.values():
            number = list(SUBLAYERS.values()).index(kind)
            bypass = {f"{block}.{path}": gives for path, gives in (entry.bypass or ({}, {}))[number].items()}
            gone |= stand_ins(model, f"{block}.{(entry.heads, entry.neurons)[number][-1].module}", bypass)
            continue
        for cut in getattr(entry, kind):
            _narrow(model.get_submodule(f"{block}.{cut.module}"), cut.axis, cut.blocks * size * widths[cut.width])
        for path, width in (entry.attributes if kind == "heads" else entry.neuron_attributes).items():
            owner, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(f"{block}.{owner}"), attribute, size * widths[width])
    put(model, gone)
    for finish in AFTER_SHRINKING:
        finish(model, sizes)


class DrawsNothing(TorchFunctionMode):
    """Draws no initial values, which takes as long as the rest, where there is no storage for them, in this thread."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class PrunedModel(AnyModel):
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
        """As the class's own, but weights of blocks that the files lack are an error: they would start at random."""
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(name_or_path, *args, output_loading_info=True, **kwargs)
        blocks = tuple(f"{block}." for block in list_blocks(model)) if has_record(model.config) else ()
        missing = sorted(name for name in info["missing_keys"] if name.startswith(blocks))
        if missing:
            saved = (getattr(model.config, "architectures", None) or [cls.__name__])[0]
            other = f"it was saved as {saved}: load it as that, by `load_pruned(..., model_class={saved})`"
            advice = "take the files anew from where the model was saved" if saved == cls.__name__ else other
            names = ", ".join(missing[:5])
            raise ValueError(f"the weights of {name_or_path} lack {names}, which would start at random; {advice}")
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str, is_main_process: bool = True, **kwargs: Any) -> None:
        """As the class's own, with this file beside the weights if they need it, and the plan from before."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            if cut_configs(self.config):
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
