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
"""The answer for an architecture that has no entry: one is derived, and what computes the same as when it is masked is
kept of it."""

from __future__ import annotations

import copy
import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.entry import HEAD, SUBLAYERS, UNIT, Architecture, Cut, features
from ..architectures.structure import blocks_of, features_of, linear_map, structure_of
from ..architectures.table import ARCHITECTURES, unsupported_architecture
from ..planning.measure import random_inputs
from .check import check_entry, check_residual
from .dependencies import NotDerived, Units, find_stacks, find_units, layout, linear_maps, reached_inputs


logger = logging.getLogger(__name__)

EXAMPLES, TOKENS, SAMPLES = 3, 32, 4000  # many tokens: a gate that is shut at all of them hides a neuron
ATTRIBUTES = {"heads": "attributes", "cross_heads": "cross_attributes", "neurons": "neuron_attributes"}


def derive_for(model: PreTrainedModel) -> None:
    """Finds an entry for the architecture of a model, proves it on random input, and adds it to `ARCHITECTURES`. What
    cannot be proved is refused in it, and whole sub-layers stay.

    Raises:
        `ValueError`: nothing could be proved; says why.
    """
    model_type = model.config.model_type
    try:
        twin = copy.deepcopy(model).cpu().float().eval()  # fails without storage
        batch = _inputs(twin)
        found = _derived(twin, {name: value[:1] for name, value in batch.items()})
        proved = {stack: _proved(twin, batch, stack, entry) for stack, entry in found.items()}
    except Exception as error:  # in a model of any kind, anything may go wrong
        ARCHITECTURES.pop(model_type, None)
        why = (
            f"none could be derived ({textwrap.shorten(str(error), 300, placeholder=' ...') or type(error).__name__})"
        )
        raise ValueError(unsupported_architecture(model_type, why)) from error
    ARCHITECTURES.pop(model_type, None)
    reasons = {kind: why for entry in proved.values() for kind, why in entry.refused.items()}
    proved = {stack: entry for stack, entry in proved.items() if entry.sublayers}
    if not proved:
        why = "; ".join(f"{kind} cannot be cut: {reason}" for kind, reason in reasons.items())
        raise ValueError(unsupported_architecture(model_type, why))
    ARCHITECTURES[model_type] = proved[""] if "" in proved else proved
    ARCHITECTURES.derived[model_type] = structure_of(model)
    logger.warning(
        "the architecture %r has no entry: one was derived and checked on random input. %s can be cut%s",
        model_type,
        ", ".join(f"{stack} {part.kind}".strip() for stack, e in proved.items() for part in e.sublayers),
        "".join(f"; {kind} not: {why}" for kind, why in reasons.items()),
    )


def _derived(twin: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Architecture]:
    """In float64, where rounding does not look like an effect; or in float32, if the model's masks take no other."""
    double = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    try:
        return derive_entry(copy.deepcopy(twin).double(), double)
    except (NotDerived, RuntimeError):
        return derive_entry(twin, batch)


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tokens, images or sound, whatever the model takes; else its `dummy_inputs`: the first that it runs on."""
    errors = []
    for make in (_as_told, _guessed, _dummies):
        try:
            given = make(model)
            with torch.no_grad():
                model(**given)
        except Exception as error:  # in a model of any kind, anything may go wrong
            errors.append(str(error))
        else:
            return given
    first = errors[0].partition(": its latency")[0][:150]
    raise NotDerived(
        f"it does not run on inputs made for it: {first}; give its class `dummy_inputs`, a property with a dict of "
        "tensors"
    )


def _as_told(model: PreTrainedModel) -> dict[str, Tensor]:
    return random_inputs(model, EXAMPLES, TOKENS)


def _guessed(model: PreTrainedModel) -> dict[str, Tensor]:
    """Where the config does not say how large images are, or how long recordings."""
    name, draw = model.main_input_name, torch.Generator().manual_seed(0)
    channels = getattr(model.config, "num_channels", 3)
    shape = (channels, 32, 32) if name == "pixel_values" else (SAMPLES,)
    return {name: torch.rand(EXAMPLES, *shape, generator=draw)}


def _dummies(model: PreTrainedModel) -> dict[str, Tensor]:
    one = {key: value[:1] for key, value in model.dummy_inputs.items() if isinstance(value, Tensor)}
    return {key: value.repeat_interleave(EXAMPLES, 0) for key, value in one.items()}


def _proved(twin: PreTrainedModel, batch: Mapping[str, Tensor], stack: str, entry: Architecture) -> Architecture:
    """The entry with what computes, when cut, what the masked model does; the rest is refused."""
    fields: dict[str, Any] = {}
    residual, refused = [], dict(entry.refused)
    for part in entry.sublayers:
        others: dict[str, Any] = {kind: () for kind in SUBLAYERS if kind != part.kind}
        alone = replace(entry, **others, residual=(None,), refused={})
        counts = ATTRIBUTES[part.kind]
        errors = []
        for counted in _countings(twin, stack, alone):
            changes: dict[str, Any] = {counts: counted}
            candidate = replace(alone, **changes)
            try:
                _check(twin, batch, stack, candidate)
            except ValueError as error:
                errors.append(str(error).partition("ARCHITECTURES: ")[2] or str(error))
                continue
            fields |= {part.kind: part.cuts, counts: counted}
            residual.append(_residual(twin, batch, stack, candidate))
            break
        else:
            refused[part.kind] = f"they could not be proved to be independent ({errors[-1][:120]})"
    cuts: dict[str, Any] = {kind: fields.pop(kind, ()) for kind in SUBLAYERS}
    return replace(entry, **cuts, **fields, residual=tuple(residual), refused=refused)


def _check(twin: PreTrainedModel, batch: Mapping[str, Tensor], stack: str, entry: Architecture) -> None:
    ARCHITECTURES[twin.config.model_type] = {stack: entry} if stack else entry
    check_entry(twin, batch, reload=False)


CONFIG_FIELDS = ("num_attention_heads", "num_key_value_heads")


def _countings(twin: PreTrainedModel, stack: str, entry: Architecture) -> Iterator[dict[str, str]]:
    """Attributes of a block that may count the units: none, those that say the number, those that say features too."""
    yield {}
    ARCHITECTURES[twin.config.model_type] = {stack: entry} if stack else entry
    block = blocks_of(twin)[0]
    part = entry.sublayers[0]
    width = features(part.cuts[-1].width, block.widths)
    inputs = features_of(linear_map(twin, f"{block.path}.{part.cuts[-1].module}"), "in")
    units = inputs // width
    said: dict[str, dict[str, str]] = {"heads": {}, "numbers": {}, "features": {}, "config": {}}
    for path, module in twin.get_submodule(block.path).named_modules():
        around = any(cut.module.startswith(f"{path}.") for cut in part.cuts)
        if not path or not around or isinstance(module, nn.Linear | Conv1D | nn.LayerNorm | nn.Embedding):
            continue
        config = getattr(module, "config", None)
        own = {name: value for name, value in vars(module).items() if name not in ("layer_idx", "layer_id")}
        of_config = {f"config.{name}": getattr(config, name, None) for name in CONFIG_FIELDS}
        for name, value in {**own, **of_config}.items():
            where = f"{path}.{name}"
            if type(value) is not int or value < units or value % units or where == entry.head_size:
                continue
            kind = "features" if value >= inputs else "heads" if "head" in name else "numbers"
            said["config" if name in of_config else kind][where] = f"{value // units} * unit"
    inner = {where: amount for where, amount in said["features"].items() if "hidden" not in where}
    heads = said["heads"]
    options = [heads, {**heads, **inner}, {**heads, **said["features"]}, {**heads, **said["config"]}]
    yield from (option for option in [*options, {**said["numbers"], **heads, **said["features"]}] if option)


def _residual(twin: PreTrainedModel, batch: Mapping[str, Tensor], stack: str, entry: Architecture) -> str | None:
    """A module whose input is the residual stream that the output is added to, if there is one."""
    block = blocks_of(twin)[0]
    for path, _ in twin.get_submodule(block.path).named_modules():
        if path and not f"{entry.sublayers[0].cuts[-1].module}.".startswith(f"{path}."):
            ARCHITECTURES[twin.config.model_type] = (
                {stack: replace(entry, residual=(path,))} if stack else replace(entry, residual=(path,))
            )
            try:
                check_residual(twin, batch)
            except ValueError:
                continue
            return path
    return None


def derive_entry(model: PreTrainedModel, batch: Mapping[str, Any]) -> dict[str, Architecture]:
    """An entry for each stack of blocks, with the kinds of units that were found; others are `refused`, with why.

    Args:
        model: on the CPU, in float64 and in evaluation mode; its weights do not matter.
        batch: of one example, with several tokens.

    Raises:
        `NotDerived`: no units at all, or no blocks.
    """
    with torch.no_grad():
        stacks = find_stacks(model, batch)
        if not stacks:
            raise NotDerived("no list of blocks was found that run and give hidden states of the shape that they get")
        names = _stack_names(list(stacks))
        found = {}
        for path, blocks in stacks.items():
            block = model.get_submodule(blocks[0])
            entry = _entry(model, block, find_units(model, block, batch), batch)
            if entry is not None:
                found[names[path]] = replace(entry, layers=f"{path}.{{}}")
    if not found:
        raise NotDerived("nothing in its blocks belongs to one unit and not to the others")
    return found if len(found) > 1 else {"": next(iter(found.values()))}


def _stack_names(paths: Sequence[str]) -> dict[str, str]:
    """The first word of each path in which it differs from all others; all of its words where there is none."""
    if len(paths) == 1:
        return {paths[0]: ""}
    words = [path.split(".") for path in paths]
    place = next((i for i in range(min(map(len, words))) if len({w[i] for w in words}) == len(words)), None)
    if place is None:
        return {path: path.replace(".", "_") for path in paths}
    return {path: f"part{w[place]}" if w[place].isdigit() else w[place] for path, w in zip(paths, words)}


def _entry(
    model: PreTrainedModel, block: nn.Module, units: Sequence[Units], batch: Mapping[str, Any]
) -> Architecture | None:
    heads = [each for each in units if each.mixes and len(each.labels) > int(each.labels.max()) + 1]
    others = [each for each in units if not any(each is head for head in heads)]
    widest = sorted(others, key=lambda each: len(each.labels))[-1:]  # beside adapters and the like
    kinds = dict(zip(("heads", "cross_heads"), heads)) | dict(zip(("neurons",), widest))
    fields: dict[str, Any] = {}
    lacking = [kind for kind in ("heads", "neurons") if kind not in kinds]
    refused = dict.fromkeys(lacking, "nothing was found in a block that belongs to one of them and to no other")
    for kind, each in kinds.items():
        try:
            fields |= _fields(model, block, kind, each, batch)
        except NotDerived as error:
            refused[kind] = f"{each.output}: {error}"
    cut = [kind for kind in kinds if kind in fields]
    if not cut:
        return None
    return Architecture(layers="{}", residual=(None,) * len(cut), refused=refused, **fields)


def _fields(
    model: PreTrainedModel, block: nn.Module, kind: str, units: Units, batch: Mapping[str, Any]
) -> dict[str, Any]:
    """The maps that are cut for a kind, and for heads the attribute that tells their size."""
    if units.whole:
        raise NotDerived(f"each of them depends on all outputs of {' and '.join(units.whole)}")
    widths, rest = layout(units.labels)
    if len(widths) > 1 or rest:
        raise NotDerived("several maps are fused side by side in what flows into it")
    size_of = _head_size(block, units.output, widths[0]) if units.mixes else None
    base, symbol = (size_of[1], HEAD) if size_of else (1, UNIT)

    def said(width: int) -> str:
        if width % base:
            raise NotDerived(f"a unit has {width} features of it, which is no multiple of the head size {base}")
        return symbol if width == base else f"{width // base} * {symbol}"

    cuts = []
    for path, labels in units.maps.items():
        fused, behind = layout(labels)
        more: dict[str, Any] = {"rest": said(behind)} if behind else {}
        if len(set(fused)) > 1:
            cuts.append(Cut(path, "out", fused=tuple(map(said, fused)), **more))
        else:
            cuts.append(Cut(path, "out", said(fused[0]), blocks=len(fused), **more))
    cuts += _parameters(model, block, units, batch, said)
    cuts.append(Cut(units.output, "in", said(widths[0])))
    return {kind: tuple(cuts)} | ({"head_size": size_of[0]} if size_of else {})


SIZES = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_per_head", "d_head")


def _head_size(block: nn.Module, output: str, width: int) -> tuple[str, int] | None:
    """Path and value of the attribute that tells the head size, beside the output projection or around it."""
    for path, module in block.named_modules():
        name = next((name for name in SIZES if isinstance(vars(module).get(name), int)), "")
        value = vars(module).get(name)
        around = output.startswith(f"{path}.") or path.rpartition(".")[0] in output
        if value and around and width % value == 0:
            return (f"{path}.{name}" if path else name), value
    return None


def _parameters(
    model: PreTrainedModel, block: nn.Module, units: Units, batch: Mapping[str, Any], said: Any
) -> Iterator[Cut]:
    """Parameters beside the maps that have something for each unit: biases of their own, tables, scales."""
    count, total = int(units.labels.max()) + 1, len(units.labels)
    maps = {id(parameter) for module in linear_maps(block).values() for parameter in module.parameters()}
    for path, parameter in block.named_parameters():
        if id(parameter) in maps:
            continue
        for place, size in enumerate(parameter.shape):
            if size % count or size > total or size == 1:
                continue
            width = size // count
            indices = (0, size // 2, size - 1)
            reached = reached_inputs(model, block, parameter, place, indices, units.output, batch)
            wanted = [units.labels == k // width for k in indices]
            if all(r.any() and not (r & ~w).any() for r, w in zip(reached, wanted)):
                yield Cut(path, place, said(width) if width > 1 else UNIT)
