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
"""What a checkpoint carries of an entry: the recipe that it is shrunk by, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from .entry import GROUP, HEAD, MAJOR, QUERIES, UNIT, Architecture, Sublayer, features
from .table import ARCHITECTURES


def stacks_of(config: PretrainedConfig, version: str = MAJOR) -> dict[str, Architecture]:
    """The entry of each stack of blocks by its name, as it is for a config; of a single one, the name is empty.

    Args:
        version (`str`): the major version of transformers.
    """
    entry = ARCHITECTURES[config.model_type]
    stacks: Mapping[str, Architecture] = {"": entry} if isinstance(entry, Architecture) else entry
    return {name: each.of(config, version) for name, each in stacks.items()}


def recipe_of(config: PretrainedConfig, version: str = MAJOR) -> dict[str, dict[str, Any]]:
    """Name of each stack of blocks -> its recipe. It holds the path of the blocks, and for each kind of unit:

    - `"output"`: path of the output projection, if that is not the last that is cut along `"in"`;
    - `"counted"`: its dimensions that are counted, if it is no linear map that units flow into;
    - `"width"`: how many inputs of that belong to one unit, if more than one: `"head"` and `"queries:FIELD"` by the
      config, `"at:PATH"` by an attribute in the block; and `"times"`, how many of these;
    - `"cut"`: axis -> paths of the maps and parameters that units own a part of; `"rest"`: path -> what of it belongs
      to no unit, in units;
    - `"counts"`: attributes that are a multiple of the number of units;
    - `"gone"`: what stands in for the modules of the whole sub-layer.
    """
    return {name: _recipe(entry) for name, entry in stacks_of(config, version).items()}


def _recipe(entry: Architecture) -> dict[str, Any]:
    found: dict[str, Any] = {"layers": entry.layers}
    for part in entry.sublayers:
        found[part.kind] = _part(entry, part)
    if entry.position_bias is not None:
        found["position_bias"] = entry.position_bias + ("" if ":" in entry.position_bias else ":position_bias")
    if entry.own_bias:
        found["own_bias"] = dict(entry.own_bias)
    return found


def _part(entry: Architecture, part: Sublayer) -> dict[str, Any]:
    output = part.cuts[-1]
    named = part.kind in entry.refused or output.axis != "in"
    found: dict[str, Any] = {"output": output.module} if named else {}
    if output.axis != "in":
        found["counted"] = (0, output.axis) if output.stacked else (0,)
    times, _, symbol = output.width.rpartition(" * ")
    by_config = {UNIT: "", HEAD: "head", QUERIES: f"queries:{entry.key_value_heads}"}
    width = f"at:{entry.head_size}" if symbol == HEAD and entry.head_size else by_config[symbol]
    found |= ({"width": width} if width else {}) | ({"times": int(times)} if times else {})
    if part.kind not in entry.refused:
        axes = dict.fromkeys(cut.axis for cut in part.cuts)
        found["cut"] = {axis: tuple(cut.module for cut in part.cuts if cut.axis == axis) for axis in axes}
        # Widths that only stand in a ratio to each other: that of the output to what is left.
        unit = {UNIT: 1, HEAD: 1, QUERIES: 1, GROUP: 1}
        rest = {cut.module: features(cut.rest, unit) // int(times or 1) for cut in part.cuts if cut.rest}
        found |= {"rest": rest} if rest else {}
        found |= {"counts": tuple(part.attributes)} if part.attributes else {}
    if part.bypass:
        found["gone"] = dict(part.bypass)
    return found
