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
"""Swin and SegFormer, whose blocks come in stages of growing width."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut
from .bert import BERT
from .vit import VIT


# As transformers 4 has them.
OLD_ATTENTION = BERT.heads
OLD_COUNTED = BERT.attributes


def depthwise(first: str, last: str) -> tuple[Cut, ...]:
    """A feed-forward layer with a convolution of each neuron on its own in it."""
    weight, bias = Cut("mlp.dwconv.dwconv.weight", 0), Cut("mlp.dwconv.dwconv.bias", 0)
    return (Cut(first, "out"), weight, bias, Cut(last, "in"))


SWIN = Architecture(
    layers="encoder.layers.{stage}.blocks.{}",
    heads=(
        Cut("attention.q_proj", "out", HEAD),
        Cut("attention.k_proj", "out", HEAD),
        Cut("attention.v_proj", "out", HEAD),
        Cut("attention.relative_position_bias.relative_position_bias_table", 1),
        Cut("attention.o_proj", "in", HEAD),
    ),
    neurons=(Cut("mlp.fc1", "out"), Cut("mlp.fc2", "in")),
    residual=(None, "layernorm_after"),  # attention sees the image in windows
    attributes={"attention.num_attention_heads": UNIT},
    bypass=VIT.bypass,
    head_size="attention.head_dim",
    variants={
        "transformers=4": {
            "heads": (
                *OLD_ATTENTION[:-1],
                Cut("attention.self.relative_position_bias_table", 1),
                OLD_ATTENTION[-1],
            ),
            "neurons": (Cut("intermediate.dense", "out"), Cut("output.dense", "in")),
            "attributes": OLD_COUNTED,
            "bypass": (
                {"layernorm_before": "input", "attention": "zeros pair"},
                {"layernorm_after": "input", "intermediate": "input", "output": "zeros"},
            ),
            "head_size": "attention.self.attention_head_size",
        }
    },
)
SEGFORMER = Architecture(
    layers="stages.{stage}.blocks.{}",
    heads=VIT.heads,
    neurons=depthwise("mlp.fc1", "mlp.fc2"),
    residual=("layernorm_before", "layernorm_after"),
    attributes={"attention.num_attention_heads": UNIT},
    neuron_attributes={
        "mlp.dwconv.dwconv.groups": UNIT,
        "mlp.dwconv.dwconv.in_channels": UNIT,
        "mlp.dwconv.dwconv.out_channels": UNIT,
    },
    bypass=VIT.bypass,
    head_size="attention.head_dim",
    variants={
        "transformers=4": {
            "layers": "encoder.block.{stage}.{}",
            "heads": OLD_ATTENTION,
            "neurons": depthwise("mlp.dense1", "mlp.dense2"),
            "residual": ("layer_norm_1", "layer_norm_2"),
            "attributes": OLD_COUNTED,
            "bypass": (
                {"layer_norm_1": "input", "attention": "zeros pair"},
                {"layer_norm_2": "input", "mlp": "zeros"},
            ),
            "head_size": "attention.self.attention_head_size",
        }
    },
)
GLPN = replace(SEGFORMER, **SEGFORMER.variants["transformers=4"], variants={})
# It has the names that transformers 4 has for Swin.
DONUT = replace(SWIN, **SWIN.variants["transformers=4"], variants={})
# The norms come behind the sub-layers, and the position bias is made by a small network of its own.
SWINV2 = replace(
    DONUT,
    heads=(
        *OLD_ATTENTION[:-1],
        Cut("attention.self.logit_scale", 0),
        Cut("attention.self.continuous_position_bias_mlp.2", "out"),
        OLD_ATTENTION[-1],
    ),
    residual=(None, None),
    bypass=(
        {"attention": "zeros pair", "layernorm_before": "input"},
        {"intermediate": "input", "output": "zeros", "layernorm_after": "input"},
    ),
)

ENTRIES = {
    "swinv2": SWINV2,
    "donut-swin": DONUT,
    "maskformer-swin": DONUT,
    "glpn": GLPN,
    "swin": SWIN,
    "segformer": SEGFORMER,
}
