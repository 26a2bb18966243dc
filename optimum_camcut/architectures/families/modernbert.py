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
"""ModernBERT and Nomic BERT, encoders with rotary positions and gated feed-forward layers."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut
from .llama import LLAMA


MODERNBERT = Architecture(
    layers="layers.{}",
    heads=(Cut("attn.Wqkv", "out", HEAD, blocks=3), Cut("attn.Wo", "in", HEAD)),
    neurons=(Cut("mlp.Wi", "out", blocks=2), Cut("mlp.Wo", "in")),
    residual=("attn_norm", "mlp_norm"),
    bypass=({"attn_norm": "input", "attn": "zeros pair"}, {"mlp_norm": "input", "mlp": "zeros"}),
    config_fields={"neurons": ("intermediate_size",)},
    variants={"transformers=4": {"attributes": {"attn.num_heads": UNIT, "attn.all_head_size": HEAD}}},
)
NOMIC_BERT = replace(
    LLAMA,
    residual=("self_attn.q_proj", "mlp.gate_proj"),
    bypass=(
        {"self_attn": "zeros pair", "post_attention_layernorm": "input"},
        {"mlp": "zeros", "post_mlp_layernorm": "input"},
    ),
    config_fields={"neurons": ("intermediate_size",)},
)

ENTRIES = {"modernbert": MODERNBERT, "nomic_bert": NOMIC_BERT}
