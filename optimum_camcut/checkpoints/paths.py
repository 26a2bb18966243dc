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
"""Whether what the entry of an architecture names is in a model, and has the size that it should have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.entry import HEAD, QUERIES, Cut, Sublayer, features
from ..architectures.recipes import stacks_of
from ..architectures.structure import Block, blocks_of, check_blocks, config_fields, features_of, label_of, linear_map


def wrong(model: PreTrainedModel, field: str, what: str) -> ValueError:
    """The error to raise: what is wrong with a field of the entry."""
    return ValueError(f"the entry {model.config.model_type!r} of ARCHITECTURES: {field} {what}")


def check_batch(batch: Any) -> None:
    """Raises `TypeError` unless a batch is of tensors by name."""
    expected = "check_architecture takes a batch of tensors by name, such as tokenizer(texts, return_tensors='pt')"
    if not isinstance(batch, Mapping):
        raise TypeError(f"{expected}; got a {type(batch).__name__}")
    for name, value in batch.items():
        if not isinstance(value, Tensor | bool | int | float | str | None):
            raise TypeError(f"{expected}; {name!r} is a {type(value).__name__}")
    if not any(isinstance(value, Tensor) for value in batch.values()):
        raise TypeError(f"{expected}; it has none")


def check_paths(model: PreTrainedModel) -> None:
    """Raises `ValueError` unless what is named is there, and maps have as many features as their units say."""
    stacks, config = stacks_of(model.config), model.config
    told = getattr(config, "num_attention_heads", None) and getattr(config, "hidden_size", None)
    if not told and any(_by_config(part) and not e.head_size for e in stacks.values() for part in e.sublayers):
        lacking = [name for name in ("num_attention_heads", "hidden_size") if not getattr(config, name, None)]
        what = (
            f"has no {' and no '.join(lacking)}, which the head size comes from; give the entry `head_size`, the path "
            "of an attribute inside of the block that holds it, such as 'attention.head_dim'"
        )
        raise wrong(model, "the config", what)
    try:
        check_blocks(model)
    except ValueError as error:
        named = ", ".join(repr(entry.layers) for entry in stacks.values())
        raise wrong(model, "layers", f"is {named}, but {error}") from error
    counts: dict[str, int] = {}  # by label
    for block in blocks_of(model):
        if block.entry.head_size and HEAD not in block.widths:
            what = f"is {block.entry.head_size!r}; {block.path} has no such attribute (a path inside of the block)"
            raise wrong(model, "head_size", what)
        parts = block.sublayers(model)
        if not parts:
            output = block.entry.sublayers[0].cuts[-1].module
            _module(model, block, output, f"{block.entry.sublayers[0].kind}[-1].module")
        for number, part in enumerate(block.entry.sublayers):
            if part not in parts:
                continue
            size = _count_units(model, block, part)
            counts[label_of(f"{block.name}.{part.kind}")] = size
            _check_attributes(model, block, part, size)
            if part.residual is not None:
                _module(model, block, part.residual, f"residual[{number}]")
            for path in part.bypass:
                _module(model, block, path, f"bypass[{number}]")
        if block.entry.position_bias is not None:
            _module(model, block, block.entry.position_bias.partition(":")[0], "position_bias")
    for stack, entry in stacks.items():
        for part in entry.sublayers:
            label = f"{stack}.{part.kind}".lstrip(".")
            if not any(re.sub(r"stage\w+\.", "", found) == label for found in counts):
                first = next(block for block in blocks_of(model) if block.entry == entry)
                _module(model, first, part.cuts[-1].module, f"{part.kind}[{len(part.cuts) - 1}].module")
    _check_config_fields(model, counts)


def _by_config(part: Sublayer) -> bool:
    """Whether the width of the units is that of a head."""
    return part.cuts[-1].width.rpartition(" ")[2] in (HEAD, QUERIES)


def _module(model: PreTrainedModel, block: Block, path: str, field: str) -> nn.Module:
    try:
        return model.get_submodule(f"{block.path}.{path}")
    except AttributeError as error:
        known = [name for name, _ in model.get_submodule(block.path).named_modules() if name]
        raise wrong(model, field, f"is {path!r}, which {block.path} lacks; it has {', '.join(known)}") from error


def _count_units(model: PreTrainedModel, block: Block, part: Sublayer) -> int:
    """How many units a sub-layer has, by the maps that are cut: all say the same. Of heads whose size the config
    tells, it tells their number too."""
    sizes: dict[int, int] = {}
    for number, cut in enumerate(part.cuts):
        field = f"{part.kind}[{number}]"
        if cut.optional and block.find(model, cut.module) is None:
            continue
        found, where = _features(model, block, cut, field), f"{block.path}.{cut.module}"
        widths = cut.fused or (cut.width,) * cut.blocks
        width, rest = sum(features(each, block.widths) for each in widths), features(cut.rest, block.widths)
        if (found - rest) % width or found < rest:
            side = f"on its {cut.axis!r} side" if isinstance(cut.axis, str) else f"in its dimension {cut.axis}"
            behind = f" and leaves {rest} behind them" if rest else ""
            raise wrong(
                model,
                field,
                f"gives each unit {width} features{behind}, but {where} has {found} {side}, which is no multiple; "
                "look at axis, width and blocks",
            )
        sizes[number] = (found - rest) // width
    expected = sizes[len(part.cuts) - 1]
    if part.kind == "heads" and _by_config(part) and not block.entry.head_size:
        heads = model.config.num_attention_heads
        expected = getattr(model.config, block.entry.key_value_heads, None) or heads
    for number, size in sizes.items():
        cut = part.cuts[number]
        if size != expected:
            what = repr(cut.fused) if cut.fused else f"{cut.width!r}, blocks={cut.blocks}"
            raise wrong(
                model,
                f"{part.kind}[{number}]",
                f"({cut.module!r}, {cut.axis!r}, {what}) gives {size} {part.kind} in {block.path}, but there are "
                f"{expected}; look at axis, width and blocks",
            )
    return expected


def _features(model: PreTrainedModel, block: Block, cut: Cut, field: str) -> int:
    """How many features a map has along an axis, or a parameter along a dimension."""
    if isinstance(cut.axis, int):
        value = block.find(model, cut.module)
        if not isinstance(value, Tensor) or not -value.dim() <= cut.axis < value.dim():
            what = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else "no parameter of the block"
            raise wrong(model, field, f"is the dimension {cut.axis} of {cut.module!r}, which is {what}")
        return value.shape[cut.axis]
    module = _module(model, block, cut.module, f"{field}.module")
    if field == f"experts[{len(block.entry.experts) - 1}]":  # a router need not be a linear map
        return features_of(module, cut.axis)
    try:
        return features_of(linear_map(model, f"{block.path}.{cut.module}"), cut.axis)
    except ValueError as error:
        raise wrong(model, f"{field}.module", f"names no map that can be cut: {error}") from error


def _check_attributes(model: PreTrainedModel, block: Block, part: Sublayer, size: int) -> None:
    name = "attributes" if part.kind == "heads" else f"{part.kind.removesuffix('_heads').removesuffix('s')}_attributes"
    for path, width in part.attributes.items():
        owner, _, attribute = path.rpartition(".")
        missing = [cut.module for cut in part.cuts if cut.optional and block.find(model, cut.module) is None]
        if any(module.startswith(f"{owner}.") for module in missing):
            continue
        field, expected = f"{name}[{path!r}]", size * features(width, block.widths)
        if owner.endswith("config"):
            value = block.find(model, path)
        else:
            value = getattr(_module(model, block, owner, field) if owner else None, attribute, None)
        if value != expected:
            raise wrong(
                model,
                field,
                f"should be {expected} in {block.path}, {size} times {width!r}; it is {value!r:.99}",
            )


def _check_config_fields(model: PreTrainedModel, counts: Mapping[str, int]) -> None:
    for kind, names in config_fields(model.config).items():
        for name in names:
            if not hasattr(model.config, name):
                raise wrong(model, f"config_fields[{kind!r}]", f"names {name!r}, which the config lacks")
        value = getattr(model.config, names[0])
        if value is not None and value != counts.get(kind, value):  # None stands for a default in GPT-2
            raise wrong(
                model,
                f"config_fields[{kind!r}]",
                f"names {names[0]!r}, which is {value!r:.99}, but every layer has {counts[kind]} {kind}",
            )
