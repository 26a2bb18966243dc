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

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from ..architectures.entry import HEAD, QUERIES, UNIT, Architecture, Cut
from ..architectures.modeling_camcut import list_blocks
from ..architectures.structure import check_blocks, features_of, linear_map


def wrong(model: PreTrainedModel, field: str, what: str) -> ValueError:
    """The error to raise: what is wrong with a field of the entry."""
    return ValueError(f"the entry {model.config.model_type!r} of ARCHITECTURES: {field} {what}")


def check_paths(model: PreTrainedModel, entry: Architecture) -> None:
    """Raises `ValueError` unless what is named is there, and maps have as many features as their units say."""
    key_value_heads, widths = _sizes(model)
    try:
        check_blocks(model)
    except ValueError as error:
        raise wrong(model, "layers", f"is {entry.layers!r}, but {error}") from error
    counts: dict[str, int] = {}
    for block in list_blocks(model):
        heads = _count_units(model, block, "heads", entry.heads, widths, key_value_heads)
        counts = {"heads": heads, "neurons": _count_units(model, block, "neurons", entry.neurons, widths)}
        _check_attributes(model, block, entry, counts, widths)
        for number, path in enumerate(entry.residual):
            _module(model, block, path, f"residual[{number}]")
        for number, modules in enumerate(entry.bypass or ()):
            for path in modules:
                _module(model, block, path, f"bypass[{number}]")
        if entry.position_bias is not None:
            _module(model, block, entry.position_bias, "position_bias")
    _check_config_fields(model, entry, counts)


def _sizes(model: PreTrainedModel) -> tuple[int, dict[str, int]]:
    """The number of heads that are cut, and the features that each symbolic width stands for."""
    config = model.config
    total = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not total or not hidden:
        raise wrong(model, "the config", "has no num_attention_heads or hidden_size, which the head size comes from")
    shared = getattr(config, "num_key_value_heads", None) or total
    head = getattr(config, "head_dim", None) or hidden // total
    return shared, {UNIT: 1, HEAD: head, QUERIES: head * (total // shared)}


def _module(model: PreTrainedModel, block: str, path: str, field: str) -> nn.Module:
    try:
        return model.get_submodule(f"{block}.{path}")
    except AttributeError as error:
        known = [name for name, _ in model.get_submodule(block).named_modules() if name]
        raise wrong(model, field, f"is {path!r}, which {block} lacks; it has {', '.join(known)}") from error


def _count_units(
    model: PreTrainedModel,
    block: str,
    kind: str,
    cuts: tuple[Cut, ...],
    widths: Mapping[str, int],
    expected: int | None = None,
) -> int:
    """How many units of a kind a block has, by the maps that are cut: all say the same, or that which is expected."""
    sizes = []
    for number, cut in enumerate(cuts):
        field = f"{kind}[{number}]"
        _module(model, block, cut.module, f"{field}.module")
        try:
            features = features_of(linear_map(model, f"{block}.{cut.module}"), cut.axis)
        except ValueError as error:
            raise wrong(model, f"{field}.module", f"names no map that can be cut: {error}") from error
        width = widths[cut.width] * cut.blocks
        if features % width:
            raise wrong(
                model,
                field,
                f"gives each unit {width} features, but {block}.{cut.module} has {features} on its "
                f"{cut.axis!r} side, which is no multiple; look at axis, width and blocks",
            )
        sizes.append(features // width)
    expected = sizes[-1] if expected is None else expected
    for number, (size, cut) in enumerate(zip(sizes, cuts)):
        if size != expected:
            raise wrong(
                model,
                f"{kind}[{number}]",
                f"({cut.module!r}, {cut.axis!r}, {cut.width!r}, blocks={cut.blocks}) gives {size} {kind} in "
                f"{block}, but there are {expected}; look at axis, width and blocks",
            )
    return expected


def _check_attributes(
    model: PreTrainedModel, block: str, entry: Architecture, counts: Mapping[str, int], widths: Mapping[str, int]
) -> None:
    for kind, name in (("heads", "attributes"), ("neurons", "neuron_attributes")):
        for path, width in getattr(entry, name).items():
            owner, _, attribute = path.rpartition(".")
            field = f"{name}[{path!r}]"
            value = getattr(_module(model, block, owner, field) if owner else None, attribute, None)
            if value != counts[kind] * widths[width]:
                raise wrong(
                    model,
                    field,
                    f"should be {counts[kind] * widths[width]} in {block}, {counts[kind]} times {width!r}; it is "
                    f"{value!r:.99}",
                )


def _check_config_fields(model: PreTrainedModel, entry: Architecture, counts: Mapping[str, int]) -> None:
    for kind, names in entry.config_fields.items():
        for name in names:
            if not hasattr(model.config, name):
                raise wrong(model, f"config_fields[{kind!r}]", f"names {name!r}, which the config lacks")
        value = getattr(model.config, names[0])
        if value is not None and value != counts[kind]:  # None stands for a default in GPT-2
            raise wrong(
                model,
                f"config_fields[{kind!r}]",
                f"names {names[0]!r}, which is {value!r:.99}, but every layer has {counts[kind]} {kind}",
            )
