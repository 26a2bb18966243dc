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
"""wav2vec 2.0, and the speech encoders that have its layers."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut


WAV2VEC2 = Architecture(
    layers="encoder.layers.{}",
    heads=(
        Cut("attention.q_proj", "out", HEAD),
        Cut("attention.k_proj", "out", HEAD),
        Cut("attention.v_proj", "out", HEAD),
        Cut("attention.out_proj", "in", HEAD),
    ),
    neurons=(Cut("feed_forward.intermediate_dense", "out"), Cut("feed_forward.output_dense", "in")),
    residual=("attention.q_proj", "feed_forward.intermediate_dense"),
    attributes={"attention.num_heads": UNIT, "attention.embed_dim": HEAD},
    bypass=(
        {"attention": "zeros pair", "layer_norm": "input"},
        {"feed_forward": "zeros", "final_layer_norm": "input"},
    ),
    config_fields={"neurons": ("intermediate_size",)},
    variants={
        "do_stable_layer_norm=True": {"residual": ("layer_norm", "final_layer_norm")},
        "transformers=4": {
            "bypass": (
                {"attention": "zeros triple", "layer_norm": "input"},
                {"feed_forward": "zeros", "final_layer_norm": "input"},
            )
        },
    },
)
WAVLM = replace(
    WAV2VEC2,
    heads=(),
    residual=("feed_forward.intermediate_dense",),
    attributes={},
    bypass=({"feed_forward": "zeros", "final_layer_norm": "input"},),
    variants={"do_stable_layer_norm=True": {"residual": ("final_layer_norm",)}},
    refused={"heads": "the gate of each head reads its own share of the hidden state"},
)

ENTRIES = {
    **dict.fromkeys(["wav2vec2", "hubert", "data2vec-audio", "unispeech", "unispeech-sat", "sew"], WAV2VEC2),
    "wavlm": WAVLM,
}
