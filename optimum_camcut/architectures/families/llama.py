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
"""Llama, and the decoders that have its layers; key-value heads may be shared by several query heads."""

from dataclasses import replace

from ..entry import GROUP, HEAD, QUERIES, UNIT, Architecture, Cut


LLAMA = Architecture(
    layers="layers.{}",
    heads=(
        Cut("self_attn.q_proj", "out", QUERIES),
        Cut("self_attn.k_proj", "out", HEAD),
        Cut("self_attn.v_proj", "out", HEAD),
        Cut("self_attn.o_proj", "in", QUERIES),
    ),
    neurons=(Cut("mlp.gate_proj", "out"), Cut("mlp.up_proj", "out"), Cut("mlp.down_proj", "in")),
    residual=("input_layernorm", "post_attention_layernorm"),
    neuron_attributes={"mlp.intermediate_size": UNIT},
    bypass=(
        {"input_layernorm": "input", "self_attn": "zeros pair"},
        {"post_attention_layernorm": "input", "mlp": "zeros"},
    ),
    config_fields={
        "heads": ("num_key_value_heads", "num_attention_heads"),
        "neurons": ("intermediate_size",),
    },
)
UNGATED = replace(LLAMA, neurons=(Cut("mlp.up_proj", "out"), Cut("mlp.down_proj", "in")))
# What the attention module counts by itself.
COUNTED = {"self_attn.num_heads": GROUP, "self_attn.num_key_value_heads": UNIT}

STABLELM = replace(
    LLAMA,
    attributes={**COUNTED, "self_attn.hidden_size": QUERIES},
    variants={
        "use_parallel_residual=True": {
            "residual": ("input_layernorm", None),
            "bypass": ({"self_attn": "zeros pair"}, {"mlp": "zeros"}),
        },
        "qk_layernorm=True": {"refused": {"heads": "each head has a norm of its own (qk_layernorm)"}},
    },
)
STARCODER2 = replace(LLAMA, neurons=(Cut("mlp.c_fc", "out"), Cut("mlp.c_proj", "in")), neuron_attributes={})
# Attention and feed-forward layer read the same norm, which stays when one of them goes.
COHERE = replace(
    LLAMA,
    residual=("input_layernorm", None),
    bypass=({"self_attn": "zeros pair"}, {"mlp": "zeros"}),
    variants={"use_qk_norm=True": {"refused": {"heads": "each head has a norm of its own (use_qk_norm)"}}},
)
GLM = replace(
    LLAMA,
    neurons=(Cut("mlp.gate_up_proj", "out", blocks=2), Cut("mlp.down_proj", "in")),
    neuron_attributes={},
)
PHI3 = replace(
    GLM,
    heads=(
        Cut("self_attn.qkv_proj", "out", fused=(QUERIES, HEAD, HEAD)),
        Cut("self_attn.o_proj", "in", QUERIES),
    ),
    attributes={"self_attn.num_key_value_heads": UNIT, "self_attn.config.num_attention_heads": GROUP},
)
PHI = replace(
    COHERE,
    variants={},
    heads=(*LLAMA.heads[:-1], Cut("self_attn.dense", "in", QUERIES)),
    neurons=(Cut("mlp.fc1", "out"), Cut("mlp.fc2", "in")),
    neuron_attributes={},
)
APERTUS = replace(
    UNGATED,
    residual=("attention_layernorm", "feedforward_layernorm"),
    neuron_attributes={},
    bypass=(
        {"attention_layernorm": "input", "self_attn": "zeros pair"},
        {"feedforward_layernorm": "input", "mlp": "zeros"},
    ),
)
# A norm stands between what a layer gives and the sum.
GEMMA2 = replace(
    LLAMA,
    residual=(None, None),
    bypass=(
        {"input_layernorm": "input", "self_attn": "zeros pair", "post_attention_layernorm": "input"},
        {"pre_feedforward_layernorm": "input", "mlp": "zeros", "post_feedforward_layernorm": "input"},
    ),
)
GLM4 = replace(
    GLM,
    residual=(None, None),
    bypass=(
        {"input_layernorm": "input", "self_attn": "zeros pair", "post_self_attn_layernorm": "input"},
        {"post_attention_layernorm": "input", "mlp": "zeros", "post_mlp_layernorm": "input"},
    ),
)
POST_NORM = replace(
    LLAMA,
    residual=(None, None),
    bypass=(
        {"self_attn": "zeros pair", "post_attention_layernorm": "input"},
        {"mlp": "zeros", "post_feedforward_layernorm": "input"},
    ),
)
OLMO2 = replace(
    POST_NORM,
    refused={"heads": "its norms of queries and keys run over all heads, so that each head depends on the others"},
)

ENTRIES = {
    **dict.fromkeys(["llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "smollm3"], LLAMA),
    **dict.fromkeys(["gemma", "olmo", "helium", "seed_oss", "hunyuan_v1_dense", "eurobert"], LLAMA),
    "granite": replace(LLAMA, factors=("residual_multiplier", "residual_multiplier")),
    "arcee": UNGATED,
    "nemotron": replace(UNGATED, attributes=COUNTED),
    "stablelm": STABLELM,
    "starcoder2": STARCODER2,
    "cohere": COHERE,
    "cohere2": COHERE,
    "glm": GLM,
    "phi": PHI,
    "phi3": PHI3,
    "apertus": APERTUS,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "glm4": GLM4,
    "exaone4": POST_NORM,
    "olmo2": OLMO2,
    "olmo3": OLMO2,
}
