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
"""The record of transformers 4, which pruned heads by itself: `config.pruned_heads`, layer -> removed heads.

Checkpoints of the architectures that it did this for carry this file too.
"""

import re
from collections.abc import Mapping

from transformers import PretrainedConfig, PreTrainedModel

from .modeling_camcut import AFTER_SHRINKING, OTHER_RECORDS, blocks_of


def pruned_heads(config: PretrainedConfig, layers: int) -> dict[str, list[int]]:
    """Removed heads by group, from `config.pruned_heads`. As in transformers 4, layers may be counted from the end.

    Raises:
        `ValueError`: it is not what transformers 4 writes.
    """
    pruned, removed = getattr(config, "pruned_heads", None) or {}, dict[str, list[int]]()
    total = config.num_attention_heads if pruned else 0
    valid = isinstance(pruned, dict) and all(isinstance(heads, list) for heads in pruned.values())
    valid = valid and all(type(head) is int and 0 <= head < total for heads in pruned.values() for head in heads)
    if not valid or any(len(set(heads)) < len(heads) for heads in pruned.values()):
        raise ValueError(
            f"config.pruned_heads should map layers to lists of different heads below {total}; it is {pruned!r:.200}"
        )
    for layer, heads in pruned.items():
        layer = layers + int(layer) if re.fullmatch("-[0-9]{1,9}", str(layer)) else layer
        removed[f"layer.{layer}.heads"] = sorted({*removed.get(f"layer.{layer}.heads", ()), *heads})
    return {name: heads for name, heads in removed.items() if heads}


def heads_left(config: PretrainedConfig, units: Mapping[str, int]) -> dict[str, list[int]]:
    """Kept heads by group, where `config.pruned_heads` removes some."""
    removed = pruned_heads(config, int(list(units)[-1].split(".")[-2]) + 1)
    heads = range(config.num_attention_heads if removed else 0)
    return {name: [head for head in heads if head not in gone] for name, gone in removed.items()}


def number_pruned_heads(model: PreTrainedModel, sizes: Mapping[str, int]) -> None:
    """Makes numbers of the layers in `config.pruned_heads` again, of which JSON has made strings."""
    if getattr(model.config, "pruned_heads", None):
        removed = pruned_heads(model.config, len(blocks_of(model)))
        model.config.pruned_heads = {int(name.split(".")[1]): heads for name, heads in removed.items()}


OTHER_RECORDS.append(heads_left)
AFTER_SHRINKING.append(number_pruned_heads)
