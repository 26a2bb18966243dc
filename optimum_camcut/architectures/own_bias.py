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
"""A position bias that the first layer makes and hands on: once heads go, every layer makes its own.

Checkpoints of architectures with such a bias carry this file too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .modeling_camcut import BEFORE_CUT, at, blocks_of


def give_own_bias(model: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Makes every layer of a stack in which heads or attention go compute its position bias of its own embedding,
    where the first one has handed it on.

    Args:
        model: with that embedding in the first block only; nothing happens where it is in all or in none.
        kept: group name -> places of the kept units, of all groups that are about to be cut.
    """
    shared: dict[str, nn.Embedding] = {}
    for block in blocks_of(model):
        stack = block.name.rpartition("layer.")[0]
        cut = [name for name in kept if name.startswith(f"{stack}layer.") and name.endswith(("heads", "attention"))]
        for path, name in block.recipe.get("own_bias", {}).items() if cut else ():
            attention = at(model, f"{block.path}.{path}")
            if attention is None or "gives" in vars(attention):
                continue
            if name and hasattr(attention, name):
                shared.setdefault(f"{stack}{path}", getattr(attention, name))
            elif name:
                first = shared[f"{stack}{path}"]
                weight = first.weight.detach()[:, list(kept.get(f"{block.name}.heads", range(first.embedding_dim)))]
                own = nn.Embedding.from_pretrained(weight, freeze=not first.weight.requires_grad)
                setattr(attention, name, own)
                attention.has_relative_attention_bias = True
            if _make_own_bias not in attention._forward_pre_hooks.values():
                attention.register_forward_pre_hook(_make_own_bias, with_kwargs=True)


def _make_own_bias(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return args, kwargs | {"position_bias": None}


BEFORE_CUT.append(give_own_bias)
