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
"""Llama, with key-value heads that several query heads share."""

from ..entry import HEAD, QUERIES, UNIT, Architecture, Cut


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

ENTRIES = {"llama": LLAMA}
