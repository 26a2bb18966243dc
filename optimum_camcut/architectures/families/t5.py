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
"""T5 and its relatives, whose layers share a position bias."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut


def attention(path: str, *more: Cut) -> tuple[Cut, ...]:
    return (
        Cut(f"{path}.q", "out", HEAD),
        Cut(f"{path}.k", "out", HEAD),
        Cut(f"{path}.v", "out", HEAD),
        *more,
        Cut(f"{path}.o", "in", HEAD),
    )


def neurons(path: str) -> tuple[Cut, ...]:
    return (
        Cut(f"{path}.wi", "out", optional=True),
        Cut(f"{path}.wi_0", "out", optional=True),
        Cut(f"{path}.wi_1", "out", optional=True),
        Cut(f"{path}.wo", "in"),
    )


SELF, CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"
SELF_GONE = {"layer.0.layer_norm": "input", SELF: "zeros triple"}
ENCODER = Architecture(
    layers="encoder.block.{}",
    heads=attention(SELF, Cut(f"{SELF}.relative_attention_bias.weight", 1, optional=True)),
    neurons=neurons("layer.1.DenseReluDense"),
    residual=("layer.0.layer_norm", "layer.1.layer_norm"),
    attributes={f"{SELF}.n_heads": UNIT, f"{SELF}.inner_dim": HEAD},
    bypass=(SELF_GONE, {"layer.1.layer_norm": "input", "layer.1.DenseReluDense": "zeros"}),
    own_bias={SELF: "relative_attention_bias"},
    config_fields={"neurons": ("d_ff",)},
    head_size=f"{SELF}.key_value_proj_dim",
)
DECODER = replace(
    ENCODER,
    layers="decoder.block.{}",
    cross_heads=attention(CROSS),
    neurons=neurons("layer.2.DenseReluDense"),
    residual=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
    cross_attributes={f"{CROSS}.n_heads": UNIT, f"{CROSS}.inner_dim": HEAD},
    bypass=(
        SELF_GONE,
        {"layer.1.layer_norm": "input", CROSS: "zeros triple"},
        {"layer.2.layer_norm": "input", "layer.2.DenseReluDense": "zeros"},
    ),
    own_bias={SELF: "relative_attention_bias", CROSS: ""},
)
T5 = {"encoder": replace(ENCODER, config_fields={}), "decoder": replace(DECODER, config_fields={})}

# Each layer has its own embedding from the start, and hands nothing on: its attention gives one value less.
UMT5_GONE = (
    {"layer.0.layer_norm": "input", SELF: "zeros pair"},
    {"layer.1.layer_norm": "input", CROSS: "zeros pair"},
)
UMT5 = {
    "encoder": replace(
        T5["encoder"],
        own_bias={},
        bypass=(UMT5_GONE[0], {"layer.1.layer_norm": "input", "layer.1.DenseReluDense": "zeros"}),
    ),
    "decoder": replace(
        T5["decoder"],
        own_bias={},
        bypass=(*UMT5_GONE, {"layer.2.layer_norm": "input", "layer.2.DenseReluDense": "zeros"}),
    ),
}
# The encoder sees a window, and has other names for that.
LOCAL = "layer.0.LocalSelfAttention"
LONGT5 = {
    "encoder": replace(
        T5["encoder"],
        heads=attention(LOCAL, Cut(f"{LOCAL}.relative_attention_bias.weight", 1, optional=True)),
        attributes={f"{LOCAL}.n_heads": UNIT, f"{LOCAL}.inner_dim": HEAD},
        bypass=(
            {"layer.0.layer_norm": "input", LOCAL: "zeros pair"},
            {"layer.1.layer_norm": "input", "layer.1.DenseReluDense": "zeros"},
        ),
        own_bias={LOCAL: "relative_attention_bias"},
        head_size=f"{LOCAL}.key_value_proj_dim",
        variants={
            "encoder_attention_type=transient-global": {
                "heads": (),
                "residual": ("layer.1.layer_norm",),
                "bypass": ({"layer.1.layer_norm": "input", "layer.1.DenseReluDense": "zeros"},),
                "attributes": {},
                "own_bias": {},
                "head_size": "",
                "refused": {"heads": "its layers share an embedding of what lies far away, besides that of positions"},
            }
        },
    ),
    "decoder": T5["decoder"],
}

ENTRIES = {"longt5": LONGT5, "t5": T5, "mt5": T5, "umt5": UMT5}
