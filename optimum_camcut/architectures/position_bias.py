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
"""A position bias with one map a head that all layers share: each takes the maps of its own heads out of it.

Checkpoints of architectures with such a bias carry this file too.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from .modeling_camcut import AFTER_SHRINKING, OTHER_RECORDS, RECORD, at, blocks_of, present_units


def bind_position_bias(model: PreTrainedModel, kept_heads: Mapping[str, Sequence[int]]) -> None:
    """Makes attention layers take their own heads' maps out of a position bias that all layers share.

    Args:
        model: a model whose architecture may have such a bias; nothing happens where it has none.
        kept_heads: group name -> indices of the kept heads in the uncut model.
    """
    for block in blocks_of(model):
        path, _, arguments = block.recipe.get("position_bias", "").partition(":")
        if path and f"{block.name}.heads" in kept_heads:
            attention, kept = at(model, f"{block.path}.{path}"), list(kept_heads[f"{block.name}.heads"])
            if not hasattr(attention, "camcut_kept_heads"):
                attention.register_forward_pre_hook(_select_position_bias, with_kwargs=True)
            attention.camcut_arguments = list(inspect.signature(type(attention).forward).parameters)[1:]
            attention.camcut_kept_heads = kept, model.config.num_attention_heads, arguments.split(",")


def _select_position_bias(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    values, (kept, total, biases) = dict(zip(module.camcut_arguments, args)) | kwargs, module.camcut_kept_heads
    for name, bias in [(name, values[name]) for name in biases if values.get(name) is not None]:
        place = bias.dim() - 3  # heads, or batch and heads in one, come before two more dimensions
        if bias.shape[place] > 1:  # else it is the same for all heads
            by_head = bias.unflatten(place, (-1, total))[(slice(None),) * (place + 1) + (kept,)]
            values[name] = by_head.flatten(place, place + 1)
    return (), values


def bind_recorded_heads(model: PreTrainedModel, sizes: Mapping[str, int]) -> None:
    """`bind_position_bias` by the heads that the config records.

    Raises:
        `ValueError`: it records none, or not as many as `sizes` says.
    """
    record, total = getattr(model.config, RECORD, None), getattr(model.config, "num_attention_heads", 0)
    recorded: Any = record.get("kept_heads") if isinstance(record, dict) else None
    for read in OTHER_RECORDS if record is None else ():
        recorded = read(model.config, present_units(model))
    for name in [f"{block.name}.heads" for block in blocks_of(model) if "position_bias" in block.recipe]:
        kept: Any = recorded.get(name) if isinstance(recorded, dict) else None
        valid = isinstance(kept, list) and {type(head) for head in kept} <= {int} and len(kept) == sizes.get(name)
        if name in sizes and not (valid and [-1, *kept, total] == sorted({-1, *kept, total})):
            expected = f"expected {sizes[name]} different indices below {total}, ascending"
            raise ValueError(f"config.{RECORD} records the heads {kept!r:.200} for {name!r}; {expected}")
    bind_position_bias(model, {name: kept for name, kept in (recorded or {}).items() if name in sizes})


AFTER_SHRINKING.append(bind_recorded_heads)
