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
"""ViT, and what has its layers: DeiT, BEiT, DINOv2, MAE and others, and the audio spectrogram transformer."""

from dataclasses import replace
from typing import Any

from ..entry import HEAD, UNIT, Architecture, Cut
from .bert import BERT


# Modules had other names in transformers 4, and some have them still.
OLD = Architecture(
    layers="encoder.layer.{}",
    heads=(
        Cut("attention.attention.query", "out", HEAD),
        Cut("attention.attention.key", "out", HEAD),
        Cut("attention.attention.value", "out", HEAD),
        Cut("attention.output.dense", "in", HEAD),
    ),
    neurons=BERT.neurons,
    residual=("layernorm_before", "layernorm_after"),
    attributes={"attention.attention.num_attention_heads": UNIT, "attention.attention.all_head_size": HEAD},
    bypass=(
        {"layernorm_before": "input", "attention": "zeros"},
        {"layernorm_after": "input", "intermediate": "input", "output": "residual"},
    ),
    config_fields={"neurons": ("intermediate_size",)},
)
VIT = Architecture(
    layers="layers.{}",
    heads=(
        Cut("attention.q_proj", "out", HEAD),
        Cut("attention.k_proj", "out", HEAD),
        Cut("attention.v_proj", "out", HEAD),
        Cut("attention.o_proj", "in", HEAD),
    ),
    neurons=(Cut("mlp.fc1", "out"), Cut("mlp.fc2", "in")),
    residual=("layernorm_before", "layernorm_after"),
    attributes={"attention.num_attention_heads": UNIT},
    bypass=(
        {"layernorm_before": "input", "attention": "zeros pair"},
        {"layernorm_after": "input", "mlp": "zeros"},
    ),
    config_fields={"neurons": ("intermediate_size",)},
    variants={
        "transformers=4": {
            "layers": OLD.layers,
            "heads": OLD.heads,
            "neurons": OLD.neurons,
            "attributes": OLD.attributes,
            "bypass": OLD.bypass,
        }
    },
)
# Each output is multiplied by a vector.
DINOV2 = replace(
    VIT,
    layers="encoder.layer.{}",
    neurons=(
        Cut("mlp.fc1", "out", optional=True),
        Cut("mlp.fc2", "in"),
    ),
    residual=("norm1", "norm2"),
    factors=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    bypass=({"norm1": "input", "attention": "zeros pair"}, {"norm2": "input", "mlp": "zeros"}),
    config_fields={},
    variants={
        "use_swiglu_ffn=True": {
            "neurons": (Cut("mlp.gate_proj", "out"), Cut("mlp.up_proj", "out"), Cut("mlp.down_proj", "in"))
        },
        "use_swiglu_ffn=True&transformers=4": {
            "neurons": (Cut("mlp.weights_in", "out", blocks=2), Cut("mlp.weights_out", "in"))
        },
        "transformers=4": {
            "heads": OLD.heads,
            "attributes": OLD.attributes,
            "bypass": ({"norm1": "input", "attention": "zeros"}, {"norm2": "input", "mlp": "zeros"}),
        },
    },
)
# Each layer may have a table of biases by distance, with a column for each head, or all layers share one.
DATA2VEC = replace(
    OLD,
    heads=(
        *OLD.heads[:-1],
        Cut("attention.attention.relative_position_bias.relative_position_bias_table", 1, optional=True),
        OLD.heads[-1],
    ),
    factors=("lambda_1", "lambda_2"),
    bypass=(
        {"layernorm_before": "input", "attention": "zeros pair"},
        {"layernorm_after": "input", "intermediate": "input", "output": "zeros"},
    ),
    variants={"use_shared_relative_position_bias=True": {"position_bias": "attention:relative_position_bias"}},
)
BEIT = replace(
    VIT,
    heads=(
        *VIT.heads[:-1],
        Cut("relative_position_bias.relative_position_bias_table", 1, optional=True),
        VIT.heads[-1],
    ),
    factors=DATA2VEC.factors,
    variants={
        "use_shared_relative_position_bias=True": {"position_bias": "attention:attention_mask,relative_position_bias"},
        "use_relative_position_bias=True&use_shared_relative_position_bias=True": {
            "refused": {"heads": "its layers add a position bias of their own to one that all share"}
        },
        "transformers=4": {
            "layers": DATA2VEC.layers,
            "heads": DATA2VEC.heads,
            "neurons": DATA2VEC.neurons,
            "attributes": DATA2VEC.attributes,
            "bypass": DATA2VEC.bypass,
        },
    },
)
VIDEOMAE = replace(
    OLD,
    heads=(
        *OLD.heads[:-1],
        Cut("attention.attention.q_bias", 0, HEAD, optional=True),
        Cut("attention.attention.v_bias", 0, HEAD, optional=True),
        OLD.heads[-1],
    ),
)
SIGLIP = Architecture(
    layers="encoder.layers.{}",
    heads=(
        Cut("self_attn.q_proj", "out", HEAD),
        Cut("self_attn.k_proj", "out", HEAD),
        Cut("self_attn.v_proj", "out", HEAD),
        Cut("self_attn.out_proj", "in", HEAD),
    ),
    neurons=(Cut("mlp.fc1", "out"), Cut("mlp.fc2", "in")),
    residual=("layer_norm1", "layer_norm2"),
    attributes={"self_attn.num_heads": UNIT, "self_attn.embed_dim": HEAD},
    bypass=(
        {"layer_norm1": "input", "self_attn": "zeros pair"},
        {"layer_norm2": "input", "mlp": "zeros"},
    ),
    config_fields={"neurons": ("intermediate_size",)},
    head_size="self_attn.head_dim",
)
NARROW = "its forward takes all heads together to be as wide as the hidden state"
FUSED = replace(
    SIGLIP,
    heads=(Cut("self_attn.qkv", "out", HEAD, blocks=3), Cut("self_attn.projection", "in", HEAD)),
    refused={"heads": NARROW},
)
# Transformers 4 has a model of one tower one module deeper, and its attention cannot be narrowed.
REFUSED = {"heads": f"in transformers 4 {NARROW}"}


def alone(tower: str, **changes: Any) -> Architecture:
    return replace(
        SIGLIP,
        **changes,
        variants={"transformers=4": {"layers": f"{tower}_model.encoder.layers.{{}}", "refused": REFUSED}},
    )


def one_of_two(tower: str) -> Architecture:
    return replace(
        SIGLIP,
        layers=f"{tower}_model.encoder.layers.{{}}",
        config_fields={},
        variants={"transformers=4": {"refused": REFUSED}},
    )


TOWERS = {"text": one_of_two("text"), "vision": one_of_two("vision")}

ENTRIES = {
    **dict.fromkeys(["vit", "deit", "vit_mae", "vit_msn", "ijepa", "audio-spectrogram-transformer"], VIT),
    "dpt": OLD,
    "yolos": OLD,
    "videomae": VIDEOMAE,
    "blip_vision_model": FUSED,
    "data2vec-vision": DATA2VEC,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "beit": BEIT,
    **dict.fromkeys(["clip_text_model", "siglip_text_model"], alone("text")),
    **dict.fromkeys(["clip_vision_model", "chinese_clip_vision_model"], alone("vision")),
    "siglip_vision_model": alone("vision", config_fields={}),  # its pooling head has a layer of the same size
    **dict.fromkeys(["clip", "siglip"], TOWERS),
}
