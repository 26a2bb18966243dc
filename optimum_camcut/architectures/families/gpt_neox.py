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
"""GPT-NeoX, GPT-J, GPT-Neo and CodeGen."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut


GPT_NEOX = Architecture(
    layers="layers.{}",
    heads=(Cut("attention.query_key_value", "out", "3 * head"), Cut("attention.dense", "in", HEAD)),
    neurons=(Cut("mlp.dense_h_to_4h", "out"), Cut("mlp.dense_4h_to_h", "in")),
    residual=("input_layernorm", None),
    bypass=(
        {"input_layernorm": "input", "attention": "zeros pair"},
        {"post_attention_layernorm": "input", "mlp": "zeros"},
    ),
    config_fields={"neurons": ("intermediate_size",)},
    variants={"use_parallel_residual=False": {"residual": ("input_layernorm", "post_attention_layernorm")}},
)
GPTJ = Architecture(
    layers="h.{}",
    heads=(
        Cut("attn.q_proj", "out", HEAD),
        Cut("attn.k_proj", "out", HEAD),
        Cut("attn.v_proj", "out", HEAD),
        Cut("attn.out_proj", "in", HEAD),
    ),
    neurons=(Cut("mlp.fc_in", "out"), Cut("mlp.fc_out", "in")),
    residual=("ln_1", None),
    attributes={"attn.num_attention_heads": UNIT},
    bypass=({"attn": "zeros pair"}, {"mlp": "zeros"}),
    config_fields={"neurons": ("n_inner",)},
)
GPT_NEO = Architecture(
    layers="h.{}",
    heads=(
        Cut("attn.attention.q_proj", "out", HEAD),
        Cut("attn.attention.k_proj", "out", HEAD),
        Cut("attn.attention.v_proj", "out", HEAD),
        Cut("attn.attention.out_proj", "in", HEAD),
    ),
    neurons=(Cut("mlp.c_fc", "out"), Cut("mlp.c_proj", "in")),
    residual=("ln_1", "ln_2"),
    attributes={"attn.attention.num_heads": UNIT},
    bypass=({"ln_1": "input", "attn": "zeros pair"}, {"ln_2": "input", "mlp": "zeros"}),
    config_fields={"neurons": ("intermediate_size",)},
)
CODEGEN = Architecture(
    layers="h.{}",
    heads=(Cut("attn.qkv_proj", "out", HEAD, blocks=3), Cut("attn.out_proj", "in", HEAD)),
    neurons=GPTJ.neurons,
    residual=GPTJ.residual,
    bypass=GPTJ.bypass,
    config_fields=GPTJ.config_fields,
    refused={"heads": "its fused map holds them in four parts, and its forward splits what comes out in four"},
)
PERSIMMON = replace(
    GPT_NEOX,
    heads=(Cut("self_attn.query_key_value", "out", "3 * head"), Cut("self_attn.dense", "in", HEAD)),
    residual=("input_layernorm", "post_attention_layernorm"),
    attributes={"self_attn.num_heads": UNIT},
    bypass=(
        {"input_layernorm": "input", "self_attn": "zeros pair"},
        {"post_attention_layernorm": "input", "mlp": "zeros"},
    ),
    variants={},
)

ENTRIES = {"persimmon": PERSIMMON, "gpt_neox": GPT_NEOX, "gptj": GPTJ, "gpt_neo": GPT_NEO, "codegen": CODEGEN}
