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
"""BART, and the encoder-decoders that have its layers: for translation, summaries, speech."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut


def attention(path: str) -> tuple[Cut, ...]:
    return (
        Cut(f"{path}.q_proj", "out", HEAD),
        Cut(f"{path}.k_proj", "out", HEAD),
        Cut(f"{path}.v_proj", "out", HEAD),
        Cut(f"{path}.out_proj", "in", HEAD),
    )


SELF_GONE = {"self_attn": "zeros pair", "self_attn_layer_norm": "input"}
FEED_FORWARD_GONE = {"fc1": "input", "activation_fn": "input", "fc2": "zeros", "final_layer_norm": "input"}
ENCODER = Architecture(
    layers="encoder.layers.{}",
    heads=attention("self_attn"),
    neurons=(Cut("fc1", "out"), Cut("fc2", "in")),
    residual=("self_attn.q_proj", "fc1"),
    attributes={"self_attn.num_heads": UNIT, "self_attn.embed_dim": HEAD},
    bypass=(SELF_GONE, FEED_FORWARD_GONE),
    config_fields={"neurons": ("encoder_ffn_dim",)},
    head_size="self_attn.head_dim",
)
DECODER = replace(
    ENCODER,
    layers="decoder.layers.{}",
    cross_heads=attention("encoder_attn"),
    residual=("self_attn.q_proj", "encoder_attn.q_proj", "fc1"),
    cross_attributes={"encoder_attn.num_heads": UNIT, "encoder_attn.embed_dim": HEAD},
    bypass=(
        SELF_GONE,
        {"encoder_attn": "zeros pair", "encoder_attn_layer_norm": "input"},
        FEED_FORWARD_GONE,
    ),
    config_fields={"neurons": ("decoder_ffn_dim",)},
)
BART = {"encoder": ENCODER, "decoder": DECODER}
PRE_NORM = {
    "encoder": replace(ENCODER, residual=("self_attn_layer_norm", "final_layer_norm")),
    "decoder": replace(DECODER, residual=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")),
}

ENTRIES = {
    **dict.fromkeys(["bart", "marian", "blenderbot-small", "plbart"], BART),
    **dict.fromkeys(["mbart", "pegasus", "m2m_100", "blenderbot", "whisper", "speech_to_text"], PRE_NORM),
}
