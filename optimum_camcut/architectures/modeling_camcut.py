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
builds the model, shrinks its layers to the sizes that `config.json` records (integers, each checked), and loads them.
"""

import copy
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .entry import GROUP, HEAD, QUERIES, SUBLAYERS, UNIT, Architecture, Cut  # noqa: F401 - public from here
from .recipes import recipe_of
from .table import ARCHITECTURES  # noqa: F401 - public from here


HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
RECORD = "camcut_pruning"  # the key of config.json that holds the kept sizes
# Where config.json names the file of weights. A plain `from_pretrained` shows it as what is wrong, and does not load.
HINT = (
    "this model was pruned, and its layers have sizes of their own: use an auto class with trust_remote_code=True, or "
    "`pip install optimum-camcut` and `import optimum_camcut` before"
)
AnyModel: Any = object  # to type checkers, the transformers class that `PrunedModel` is put before
OTHER_RECORDS: list[Callable[..., dict[str, list[int]]]] = []  # `(config, units by group) -> kept heads by group`
BEFORE_CUT: list[Callable[..., None]] = []  # what some architectures take besides: `(model, kept places by group)`
AFTER_SHRINKING: list[Callable[..., None]] = []  # the same: `(model, sizes by group)`


def has_record(config: PretrainedConfig) -> bool:
    """Whether the config itself says that its model is physically smaller than its class builds it."""
    return getattr(config, RECORD, None) is not None or bool(getattr(config, "pruned_heads", None))


def transformers_4_loads(config: PretrainedConfig) -> bool:
    """Whether nothing but heads is gone, and transformers 4 builds the model without them by itself."""
    sizes = (getattr(config, RECORD, None) or {}).get("sizes", {})
    return bool(getattr(config, "pruned_heads", None)) and all(n.endswith(".heads") and s for n, s in sizes.items())


def write_hint(config: PretrainedConfig, folder: str | os.PathLike[str]) -> None:
    """Lets a plain `from_pretrained` say what to do, where it would find other sizes and advise to ignore them."""
    if not transformers_4_loads(config):
        config = copy.deepcopy(config)
        config.transformers_weights = HINT
        config.to_json_file(os.path.join(folder, "config.json"))


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
    stream, or zeros where the result is added to that; behind these one None in a `" pair"`, two in a `" triple"`.

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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        what, _, more = self.gives.partition(" ")
        result = (*args, *kwargs.values())[what == "residual"]
        result = torch.zeros_like(result) if what == "zeros" else result
        return (result, *[None] * ("pair", "triple").index(more), None) if more else result


def at(module: Any, path: str) -> Any:
    """A module, parameter or attribute by its path, or None."""
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
    return module


class Block(NamedTuple):
    """A block: what its groups' names begin with, and by the kind of their units, the sub-layers it has or had."""

    name: str
    path: str
    recipe: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]


def blocks_of(model: PreTrainedModel) -> list[Block]:
    """The blocks stack by stack, each in the order of their numbers."""
    base = (f"{path}." if path else "" for path, module in model.named_modules() if module is model.base_model)
    start, found = next(base, ""), dict[str, Block]()  # it is among the first: no need to walk over all
    for stack, recipe in recipe_of(model.config).items():
        paths, kinds = [(start, f"{stack}.layer".lstrip("."))], [kind for kind in SUBLAYERS if kind in recipe]
        parts = {kind: {"output": recipe[kind].get("cut", {}).get("in", [""])[-1], **recipe[kind]} for kind in kinds}
        for part in re.split(r"({\w*})", recipe["layers"]):
            if part.startswith("{"):
                lists = [(path, name, getattr(at(model, path.rstrip(".")), "_modules", ())) for path, name in paths]
                inside = [(path + key, name, key) for path, name, keys in lists for key in keys]
                paths = [(path, f"stage{key}.layer" if part == "{stage}" else name) for path, name, key in inside]
            else:
                paths = [(path + part, name) for path, name in paths]
        for path, name in paths:
            name = f"{name}.{sum(other.rpartition('.')[0] == name for other in found)}"
            here = {kind: part for kind, part in parts.items() if at(model, f"{path}.{part['output']}") is not None}
            found[name] = Block(name, path, recipe, here)
    return list(found.values())


def unit_width(model: PreTrainedModel, block: Block, part: Mapping[str, Any]) -> int:
    """Input features of the output projection for each unit."""
    config, times, (kind, _, name) = model.config, part.get("times", 1), part.get("width", "").partition(":")
    if kind in ("", "at"):  # of heads, the block may say how large they are
        return times * at(model, f"{block.path}.{name}") if name else times
    heads = config.num_attention_heads
    size = times * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return size * (heads // (getattr(config, name, None) or heads) if kind == "queries" else 1)


def dimension(module: nn.Linear | Conv1D, axis: str) -> int:
    """The weight's dimension that holds the axis; GPT-2's Conv1D keeps its weight transposed."""
    return int((axis == "in") != isinstance(module, Conv1D))


def present_units(model: PreTrainedModel) -> dict[str, int]:
    """Group name -> units now, of the heads and neurons that are there and the sub-layers that can go (1, or 0)."""
    found = {}
    for block in blocks_of(model):
        for kind, part in block.parts.items():
            gone = "gone" in part and all("gives" in vars(at(model, f"{block.path}.{path}")) for path in part["gone"])
            if "gone" in part:
                found[f"{block.name}.{SUBLAYERS[kind]}"] = int(not gone)
            if "cut" in part and not gone:
                output = at(model, f"{block.path}.{part['output']}")
                shape, places = (
                    getattr(output, "weight", output).shape,
                    part.get("counted", (dimension(output, "in"),)),
                )
                inputs = torch.Size([shape[place] for place in places])
                found[f"{block.name}.{kind}"] = inputs.numel() // unit_width(model, block, part)
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
        inside = (output[len(path) + 1 :], weight) if f"{output}.".startswith(f"{path}.") else ()
        found[path] = Bypass(gives, *inside)
        facts = vars(model.get_submodule(path)).items()  # which may be asked for; but it fills no cache
        vars(found[path]).update({n: f for n, f in facts if isinstance(f, bool | str | int) and n != "layer_idx"})
    return found


def put(model: PreTrainedModel, stand_ins: Mapping[str, Bypass]) -> None:
    """Puts stand-ins in their places, and gives each attention module that is left the first free place of its kind in
    a key-value cache: of each kind, transformers takes the length and the masks from the first place.

    `config.layer_types` lays out a cache by the blocks of the uncut model."""
    for (owner, _, name), module in [(path.rpartition("."), module) for path, module in stand_ins.items()]:
        setattr(model.get_submodule(owner), name, module)
    for blocks in cached_blocks(model) if stand_ins else ():
        free: dict[tuple[str, str], Iterator[int]] = {}
        for path, kind in blocks.items():
            for name, module in model.get_submodule(path).named_modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    of_kind = iter([place for place, other in enumerate(blocks.values()) if other == kind])
                    module.layer_idx = next(free.setdefault((name, kind), of_kind))


def cached_blocks(model: PreTrainedModel) -> list[dict[str, str]]:
    """For each stack, the paths of its blocks with the kind of attention of each, as a key-value cache has it."""
    stacks = dict[str, list[str]]()
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    for block in blocks_of(model):
        stacks.setdefault(block.name.rpartition(".")[0], []).append(block.path)
    of_all = ["full_attention"] * sum(map(len, stacks.values()))
    return [dict(zip(paths, kinds if len(kinds) == len(paths) else of_all)) for paths in stacks.values()]


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
        layer, _, kind = name.rpartition(".")
        if type(size) is not int or not 0 <= size <= units.get(name, -1):
            known = f"an integer between 0 and {units[name]}" if name in units else f"one of the groups {list(units)}"
            raise ValueError(f"config.{RECORD} records {size!r:.99} units for {name!r}; expected {known}")
        if sizes.get(f"{layer}.{SUBLAYERS.get(kind)}") == 0:
            raise ValueError(f"config.{RECORD} records {size} units for {name!r}, whose sub-layer it records as gone")
    if not other.items() <= sizes.items():
        raise ValueError(f"config.{RECORD} is {sizes}, but config.pruned_heads leaves {other}; restore the config")
    return sizes


def places_of(model: nn.Module, path: str, axis: str | int) -> list[tuple[nn.Module, str, int]]:
    """What a cut takes features from, if it is there: a module, the name of its parameter or buffer, the dimension."""
    module, (owner, _, name) = at(model, path), path.rpartition(".")
    if isinstance(axis, int):
        return [(at(model, owner), name, axis)] if module is not None else []
    bias = axis == "out" and getattr(module, "bias", None) is not None
    return [(module, "weight", dimension(module, axis)), *([(module, "bias", 0)] * bias)] if module is not None else []


def replace_tensor(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a smaller parameter or buffer in the place of one, and keeps the sizes of a linear map true."""
    old = getattr(module, name)
    new = isinstance(old, nn.Parameter) and not isinstance(value, nn.Parameter)
    setattr(module, name, nn.Parameter(value, old.requires_grad) if new else value)
    if name == "weight" and isinstance(module, nn.Linear | Conv1D):
        names = ("nx", "nf") if isinstance(module, Conv1D) else ("out_features", "in_features")
        vars(module).update(zip(names, value.shape))


def shrink(model: PreTrainedModel) -> None:
    """Shrinks a freshly built model and the parts of a composite one to the sizes that their configs record.

    Does nothing to what is that small already."""
    for part in parts_of(model).values():
        shrink(part)
    if not has_record(model.config):
        return
    blocks, units = {block.name: block for block in blocks_of(model)}, present_units(model)
    sizes, gone = recorded_sizes(model.config, units), dict[str, Bypass]()
    smaller = {name: size for name, size in sizes.items() if size < units[name]}
    for prepare in BEFORE_CUT:
        prepare(model, {name: range(units[name]) for name in smaller})
    for name, size in smaller.items():
        start, _, kind = name.rpartition(".")
        path, parts = f"{blocks[start].path}.", blocks[start].parts
        if kind not in parts:
            whole = next(part for unit, part in parts.items() if SUBLAYERS[unit] == kind)
            bypass = {path + inside: gives for inside, gives in whole["gone"].items()}
            gone |= stand_ins(model, path + whole["output"], bypass)
            continue
        for axis, each in [(axis, each) for axis, paths in parts[kind]["cut"].items() for each in paths]:
            rest = parts[kind].get("rest", {}).get(each, 0) * unit_width(model, blocks[start], parts[kind])
            for module, tensor, place in places_of(model, path + each, axis):
                value = getattr(module, tensor).detach()
                kept = (value.shape[place] - rest) * size // units[name] + rest  # which ones does not matter here
                replace_tensor(module, tensor, value.narrow(place, 0, kept).clone())
        for owner, _, count in [(path + each).rpartition(".") for each in parts[kind].get("counts", ())]:
            if hasattr(at(model, owner), count):
                setattr(at(model, owner), count, getattr(at(model, owner), count) * size // units[name])
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
    def from_pretrained(cls, pretrained_model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """As the class's own, but weights of blocks that the files lack are an error: they would start at random."""
        with_info, config = kwargs.pop("output_loading_info", False), kwargs.pop("config", None)
        if not isinstance(config, PretrainedConfig):
            aside = {n: kwargs.pop(n) for n in ("dtype", "torch_dtype", "quantization_config") if n in kwargs}
            hub = {n: kwargs[n] for n in HUB_ARGUMENTS if n in kwargs}
            kwargs["return_unused_kwargs"] = True
            config, kwargs = cls.config_class.from_pretrained(config or pretrained_model_name_or_path, **kwargs)
            kwargs |= aside | hub
        kwargs["config"] = config = copy.deepcopy(config)
        vars(config).pop("transformers_weights", None)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        blocks = tuple(f"{block.path}." for block in blocks_of(model)) if has_record(model.config) else ()
        missing = sorted(name for name in info["missing_keys"] if name.startswith(blocks))
        if missing:
            saved = (getattr(model.config, "architectures", None) or [cls.__name__])[0]
            other = f"it was saved as {saved}: load it as that, by `load_pruned(..., model_class={saved})`"
            advice = "take the files anew from where the model was saved" if saved == cls.__name__ else other
            names = f"the weights of {pretrained_model_name_or_path} lack {', '.join(missing[:5])}"
            raise ValueError(f"{names}, which would start at random; {advice}")
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str, is_main_process: bool = True, **kwargs: Any) -> None:
        """As the class's own, with this file beside the weights if they need it, and the plan from before."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            if cut_configs(self.config):
                shutil.copy(__file__, save_directory)
                write_hint(self.config, save_directory)
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
