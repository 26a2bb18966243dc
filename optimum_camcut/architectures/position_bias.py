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

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .modeling_camcut import AFTER_SHRINKING, OTHER_RECORDS, RECORD, list_blocks, present_units
from .table import ARCHITECTURES


def bind_position_bias(model: PreTrainedModel, kept_heads: Mapping[str, Sequence[int]]) -> None:
    """Makes attention layers take their own heads' maps out of a position bias that all layers share.

    Args:
        model: a model whose architecture may have such a bias; nothing happens where it has none.
        kept_heads: group name -> indices of the kept heads in the uncut model.
    """
    path = ARCHITECTURES[model.config.model_type].position_bias
    for layer, block in enumerate(list_blocks(model)):
        kept = kept_heads.get(f"layer.{layer}.heads")
        if path is not None and kept is not None:
            attention = model.get_submodule(f"{block}.{path}")
            if not hasattr(attention, "camcut_kept_heads"):
                attention.register_forward_pre_hook(_select_position_bias, with_kwargs=True)
            attention.camcut_kept_heads = list(kept)


def _select_position_bias(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    values = dict(zip(type(module).forward.__code__.co_varnames[1:], args)) | kwargs
    if values.get("position_bias") is not None:
        values["position_bias"] = values["position_bias"][:, module.camcut_kept_heads]
    return (), values


def bind_recorded_heads(model: PreTrainedModel, sizes: Mapping[str, int]) -> None:
    """`bind_position_bias` by the heads that the config records.

    Raises:
        `ValueError`: it records none, or not as many as `sizes` says.
    """
    config, total = model.config, model.config.num_attention_heads
    recorded: dict[str, Any] = {n: k for read in OTHER_RECORDS for n, k in read(config, present_units(model)).items()}
    own = (getattr(config, RECORD, None) or {}).get("kept_heads")
    recorded |= own if isinstance(own, dict) else {}
    biased = ARCHITECTURES[config.model_type].position_bias is not None
    kept_of: dict[str, Any] = {name: recorded.get(name) for name in sizes if biased and name.endswith(".heads")}
    for name, kept in kept_of.items():
        valid = isinstance(kept, list) and all(type(head) is int and 0 <= head < total for head in kept)
        if not valid or len(kept) != sizes[name] or kept != sorted(set(kept)):
            expected = f"{sizes[name]} different indices below {total}, ascending"
            raise ValueError(f"config.{RECORD} records the heads {kept!r:.200} for {name!r}; expected {expected}")
    bind_position_bias(model, kept_of)


AFTER_SHRINKING.append(bind_recorded_heads)
