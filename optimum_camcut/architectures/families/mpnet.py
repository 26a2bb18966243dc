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
"""MPNet, whose layers share a position bias."""

from ..entry import HEAD, UNIT, Architecture, Cut


MPNET = Architecture(
    layers="encoder.layer.{}",
    heads=(
        Cut("attention.attn.q", "out", HEAD),
        Cut("attention.attn.k", "out", HEAD),
        Cut("attention.attn.v", "out", HEAD),
        Cut("attention.attn.o", "in", HEAD),
    ),
    neurons=(Cut("intermediate.dense", "out"), Cut("output.dense", "in")),
    residual=("attention.attn.q", "intermediate.dense"),
    attributes={"attention.attn.num_attention_heads": UNIT, "attention.attn.all_head_size": HEAD},
    bypass=({"attention": "input pair"}, {"intermediate": "input", "output": "residual"}),
    position_bias="attention.attn",
    config_fields={"neurons": ("intermediate_size",)},
)

ENTRIES = {"mpnet": MPNET}
