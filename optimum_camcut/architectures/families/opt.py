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
"""OPT, XGLM and BioGPT, decoders with the layers of BART."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut


OPT = Architecture(
    layers="decoder.layers.{}",
    heads=(
        Cut("self_attn.q_proj", "out", HEAD),
        Cut("self_attn.k_proj", "out", HEAD),
        Cut("self_attn.v_proj", "out", HEAD),
        Cut("self_attn.out_proj", "in", HEAD),
    ),
    neurons=(Cut("fc1", "out"), Cut("fc2", "in")),
    residual=("self_attn_layer_norm", "final_layer_norm"),
    attributes={"self_attn.num_heads": UNIT, "self_attn.embed_dim": HEAD},
    bypass=(
        {"self_attn_layer_norm": "input", "self_attn": "zeros pair"},
        {"final_layer_norm": "input", "fc1": "input", "activation_fn": "input", "fc2": "zeros"},
    ),
    config_fields={"neurons": ("ffn_dim",)},
    variants={"do_layer_norm_before=False": {"residual": ("self_attn.q_proj", "fc1")}},
)

BIOGPT = replace(OPT, layers="layers.{}", config_fields={"neurons": ("intermediate_size",)}, variants={})

ENTRIES = {"opt": OPT, "xglm": replace(OPT, layers="layers.{}"), "biogpt": BIOGPT}
