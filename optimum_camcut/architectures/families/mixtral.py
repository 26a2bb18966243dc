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
"""Like llama, with experts in the feed-forward layers: mixtral, qwen2_moe, qwen3_moe, olmoe, gpt_oss."""

from dataclasses import replace
from typing import Any

from ..entry import GROUP, SUBLAYERS, UNIT, Cut
from .llama import LLAMA, OLMO2


# transformers 4 has a module for each expert.
IN_4: dict[str, Any] = {
    "bypass": None,
    "refused": dict.fromkeys(SUBLAYERS, "layers with experts are cut in transformers 5 alone"),
}
MIXTRAL = replace(
    LLAMA,
    neurons=(),
    neuron_attributes={},
    residual=("input_layernorm", None),
    experts=(
        Cut("mlp.experts.gate_up_proj", 0),
        Cut("mlp.experts.down_proj", 0),
        Cut("mlp.gate", "out"),
    ),
    expert_attributes={"mlp.experts.num_experts": UNIT, "mlp.gate.num_experts": UNIT},
    expert_neurons=(
        Cut("mlp.experts.gate_up_proj", 1, blocks=2, stacked=True),
        Cut("mlp.experts.down_proj", 2, stacked=True),
    ),
    expert_neuron_attributes={"mlp.experts.intermediate_dim": UNIT},
    config_fields={
        "heads": ("num_key_value_heads", "num_attention_heads"),
        "experts": ("num_local_experts",),
        "expert_neurons": ("intermediate_size",),
    },
    variants={"transformers=4": IN_4},
)
FIELDS = {
    "heads": ("num_key_value_heads", "num_attention_heads"),
    "experts": ("num_experts",),
    "expert_neurons": ("moe_intermediate_size",),
}
# A dense expert that sees every token, behind a gate of its own.
QWEN2_MOE = replace(
    MIXTRAL,
    neurons=(
        Cut("mlp.shared_expert.gate_proj", "out"),
        Cut("mlp.shared_expert.up_proj", "out"),
        Cut("mlp.shared_expert.down_proj", "in"),
    ),
    neuron_attributes={"mlp.shared_expert.intermediate_size": UNIT},
    config_fields={**FIELDS, "neurons": ("shared_expert_intermediate_size",)},
)
# Some layers may be dense.
QWEN3_MOE = replace(
    MIXTRAL,
    neurons=LLAMA.neurons,
    neuron_attributes=LLAMA.neuron_attributes,
    residual=LLAMA.residual,
    config_fields={**FIELDS, "neurons": ("intermediate_size",)},
)
OLMOE = replace(
    MIXTRAL,
    refused=OLMO2.refused,
    config_fields={**FIELDS, "expert_neurons": ("intermediate_size",)},
)
# Gate and up take turns, and maps are transposed.
GPT_OSS = replace(
    MIXTRAL,
    heads=(*LLAMA.heads[:-1], Cut("self_attn.sinks", 0, GROUP), LLAMA.heads[-1]),
    experts=(
        Cut("mlp.experts.gate_up_proj", 0),
        Cut("mlp.experts.gate_up_proj_bias", 0),
        Cut("mlp.experts.down_proj", 0),
        Cut("mlp.experts.down_proj_bias", 0),
        Cut("mlp.router", "out"),
    ),
    expert_attributes={"mlp.experts.num_experts": UNIT, "mlp.router.num_experts": UNIT},
    expert_neurons=(
        Cut("mlp.experts.gate_up_proj", 2, "2 * unit", stacked=True),
        Cut("mlp.experts.gate_up_proj_bias", 1, "2 * unit", stacked=True),
        Cut("mlp.experts.down_proj", 1, stacked=True),
    ),
    expert_neuron_attributes={"mlp.experts.intermediate_size": UNIT},
    bypass=(
        {"input_layernorm": "input", "self_attn": "zeros pair"},
        {"post_attention_layernorm": "input", "mlp": "zeros pair"},
    ),
)

ENTRIES = {
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "olmoe": OLMOE,
    "gpt_oss": GPT_OSS,
}
