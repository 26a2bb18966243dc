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
"""A decoder like llama, block by block, in the sizes that an engine can express.

What an engine cannot say about a layer is filled up with units whose weights are zero. They compute zero, so the model
computes what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.modeling_camcut import Bypass, at
from ..utils.files import nearest


LIKE_LLAMA = ("llama", "mistral", "qwen2")  # RMSNorm, rotary positions, a gated feed-forward with SiLU, any biases
ROTARY = ("default", "linear", "llama3")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = {"input_layernorm": ATTENTION, "post_attention_layernorm": FEED_FORWARD}  # each before its sub-layer


@dataclass(frozen=True)
class Block:
    """Sizes of a block, and where its weights are. Neurons are 0 where the feed-forward is gone, and heads where the
    attention is.

    Args:
        layer: the module; what is gone from it is zero in `tensors`.
        heads: of queries.
        groups: key-value heads, each with as many queries.
        per_group: queries of a group.
        width: of a head.
    """

    layer: torch.nn.Module
    heads: int
    groups: int
    neurons: int
    per_group: int
    width: int

    def with_groups(self, groups: int) -> Block:
        return replace(self, groups=groups, heads=groups * self.per_group)

    def tensors(self, biases: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
        """Name -> tensor, of the sub-layers that have a size: zero where the layer is smaller, or has none.

        Args:
            biases: of these projections there is a bias, be it of zeros.
        """
        for norm, projections in NORMS.items():
            if not (self.heads if projections == ATTENTION else self.neurons):
                continue
            scale = at(self.layer, f"{norm}.weight")
            hidden = at(self.layer, f"{projections[-1]}.weight").shape[0]  # of a stand-in, too
            yield f"{norm}.weight", torch.ones(hidden) if scale is None else scale.detach()
            for name in projections:
                shape, weight, bias = self._shape(name, hidden), *_weight_and_bias(self.layer, name)
                yield f"{name}.weight", torch.zeros(shape) if weight is None else _filled(weight, shape)
                if bias is not None or name in biases:
                    yield f"{name}.bias", torch.zeros(shape[0]) if bias is None else _filled(bias, shape[:1])

    def _shape(self, name: str, hidden: int) -> tuple[int, int]:
        inside = {
            "q_proj": self.heads * self.width,
            "k_proj": self.groups * self.width,
            "v_proj": self.groups * self.width,
            "o_proj": self.heads * self.width,
        }.get(name.rpartition(".")[2], self.neurons)
        return (hidden, inside) if name.endswith(("o_proj", "down_proj")) else (inside, hidden)


def _filled(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    missing = [(0, wanted - there) for wanted, there in zip(shape, tensor.shape)]
    return pad(tensor, [each for pair in reversed(missing) for each in pair])


def biased(blocks: Iterable[Block]) -> set[str]:
    """Projections that have a bias in any block."""
    names = (*ATTENTION, *FEED_FORWARD)
    return {name for block in blocks for name in names if _weight_and_bias(block.layer, name)[1] is not None}


def check_like_llama(model: PreTrainedModel, engine: str) -> None:
    """Raises `ValueError` if an engine would compute something else than the model does."""
    config = model.config
    plain = "write a plain checkpoint (`camcut export --format plain`), and take the engine's own converter"
    if config.model_type not in LIKE_LLAMA or not model.can_generate():
        raise ValueError(
            f"{engine} has layers of different sizes for decoders like llama alone ({', '.join(LIKE_LLAMA)}, with the "
            f"head of a language model), this is a {type(model).__name__} of the type {config.model_type!r}; {plain}"
            f"{nearest(config.model_type, LIKE_LLAMA)}"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None:
        kinds.add("sliding_attention")
    wrong = {
        "attention over a window": kinds != {"full_attention"},
        f"rotary positions of the kind {rotary(config)['rope_type']!r}": rotary(config)["rope_type"] not in ROTARY,
        f"{config.hidden_act} in the feed-forward": config.hidden_act not in ("silu", "swish"),
    }
    for what, found in wrong.items():
        if found:
            raise ValueError(f"{engine} has no {what} in layers of different sizes; {plain}")


def rotary(config: PretrainedConfig) -> dict[str, Any]:
    """`rope_theta`, `rope_type` and what that takes, wherever a version of transformers keeps them."""
    found = {"rope_type": "default", "rope_theta": getattr(config, "rope_theta", None)}
    found |= getattr(config, "rope_scaling", None) or {}
    found |= getattr(config, "rope_parameters", None) or {}
    return {**found, "rope_type": found.get("type", found["rope_type"])}


def head_width(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def blocks_of_decoder(model: PreTrainedModel, fit: Callable[[Block, int], Block]) -> list[Block]:
    """The blocks in their order, without those of which all is gone.

    Args:
        fit: gives a block the sizes that an engine can express, none of them smaller; its second argument is the
            block's number among those that are left.
    """
    config, found = model.config, list[Block]()
    layers: Any = model.base_model.layers
    for layer in layers:
        width = head_width(config)
        per_group = config.num_attention_heads // config.num_key_value_heads
        sizes = list[int]()
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
            weight = _weight_and_bias(layer, name)[0]
            sizes.append(0 if weight is None else weight.shape[0])
        block = Block(layer, sizes[0] // width, sizes[1] // width, sizes[2], per_group, width)
        # Biases are added even where nothing else is left of a sub-layer.
        biases = [_weight_and_bias(layer, projections[-1])[1] is not None for projections in NORMS.values()]
        if biases[0] and not block.heads:
            block = block.with_groups(1)
        if biases[1] and not block.neurons:
            block = replace(block, neurons=1)
        if block.heads or block.neurons:
            found.append(fit(block, len(found)))
    return found


def _weight_and_bias(layer: torch.nn.Module, name: str) -> tuple[Tensor | None, Tensor | None]:
    """Of a projection; None where there is none."""
    module = at(layer, name)
    if module is None or isinstance(module, Bypass):
        return None, None
    return module.weight.detach(), None if module.bias is None else module.bias.detach()
