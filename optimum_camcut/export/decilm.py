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
"""Checkpoints for vLLM's `DeciLMForCausalLM`, whose layers may differ in their feed-forward and lack sub-layers.

vLLM reads `block_configs` of the config (`vllm/model_executor/models/nemotron_nas.py`): of a feed-forward its
`intermediate_size`, of an attention how many queries share a key-value head, and `no_op` for what is gone. All layers
that have an attention have as many queries: heads are filled up with zeros to those of the largest layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PretrainedConfig, PreTrainedModel

from ..utils.files import write_text
from .decoder import Block, biased, blocks_of_decoder, check_like_llama, head_width, rotary


CODE_NAME = "configuration_decilm.py"
CODE = '''# Copyright 2026 The optimum-camcut authors. Licensed under the Apache License, Version 2.0.
"""The config of a llama whose layers differ, as vLLM's `DeciLMForCausalLM` reads it."""

from transformers import PretrainedConfig


class Sizes(dict):
    """Of a sub-layer, by attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(PretrainedConfig):  # that of llama wants heads to divide the hidden size
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **kwargs):
        super().__init__(**kwargs)
        self.block_configs = [Sizes({part: Sizes(each[part]) for part in each}) for each in block_configs]
'''
FIELDS = ("vocab_size", "hidden_size", "hidden_act", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def export_decilm(model: PreTrainedModel, folder: str | Path) -> Path:
    """Writes a pruned decoder of llama's shape as a folder that vLLM reads, with `--trust-remote-code`: the config is
    of a class that the folder brings along.

    Args:
        model: of the types in `decoder.LIKE_LLAMA`.
        folder: to write to, made if need be. The tokenizer is for the caller to save there.

    Raises:
        `ValueError`: vLLM would compute something else.
    """
    check_like_llama(model, "vLLM's DeciLM")
    most = max(block.groups for block in blocks_of_decoder(model, lambda block, number: block)) or 1

    def fit(block: Block, number: int) -> Block:
        """vLLM's norm has nothing to add to yet in the first layer, so an attention comes first."""
        return block.with_groups(most) if block.heads or number == 0 else block

    blocks, folder = blocks_of_decoder(model, fit), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base: Any = model.base_model
    weights = {"model.embed_tokens.weight": base.embed_tokens.weight, "model.norm.weight": base.norm.weight}
    if not model.config.tie_word_embeddings:
        weights["lm_head.weight"] = model.get_output_embeddings().weight
    for number, block in enumerate(blocks):
        weights |= {f"model.layers.{number}.{name}": tensor for name, tensor in block.tensors(biased(blocks))}
    ready = {name: tensor.detach().to(model.dtype).contiguous().clone() for name, tensor in weights.items()}
    save_torch_state_dict(ready, folder, metadata={"format": "pt"})
    write_text(folder / CODE_NAME, CODE)
    write_text(folder / "config.json", json.dumps(_config(model.config, blocks, model.dtype), indent=2) + "\n")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    return folder


def _config(config: PretrainedConfig, blocks: list[Block], dtype: torch.dtype) -> dict[str, Any]:
    biases, positions = biased(blocks), rotary(config)
    found: dict[str, Any] = {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {"AutoConfig": f"{CODE_NAME.removesuffix('.py')}.DeciLMConfig"},
        **{name: getattr(config, name) for name in (*FIELDS, *TOKENS)},
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].heads,
        "num_key_value_heads": blocks[0].groups,
        "head_dim": head_width(config),
        "intermediate_size": max(block.neurons for block in blocks),
        "attention_bias": "self_attn.o_proj" in biases,
        "qkv_bias": "self_attn.q_proj" in biases,
        "mlp_bias": "mlp.down_proj" in biases,
        "rope_theta": positions["rope_theta"],
        "rope_parameters": positions,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if positions["rope_type"] != "default":
        found["rope_scaling"] = {name: value for name, value in positions.items() if name != "rope_theta"}
    found["block_configs"] = [_sizes(block) for block in blocks]
    return found


def _sizes(block: Block) -> dict[str, Any]:
    gone = {"no_op": True, "replace_with_linear": False, "n_heads_in_group": None}
    attention = {**gone, "no_op": False, "n_heads_in_group": block.per_group} if block.heads else gone
    neurons = {"no_op": not block.neurons, "replace_with_linear": False, "intermediate_size": block.neurons or None}
    return {"attention": attention, "ffn": neurons}
