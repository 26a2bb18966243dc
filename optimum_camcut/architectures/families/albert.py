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
"""ALBERT, whose layers share their weights."""

from ..entry import HEAD, UNIT, Architecture, Cut


ALBERT = Architecture(
    layers="encoder.albert_layer_groups.{}.albert_layers.{}",
    heads=(
        Cut("attention.query", "out", HEAD),
        Cut("attention.key", "out", HEAD),
        Cut("attention.value", "out", HEAD),
        Cut("attention.dense", "in", HEAD),
    ),
    neurons=(Cut("ffn", "out"), Cut("ffn_output", "in")),
    residual=("attention.query", "ffn"),
    attributes={"attention.num_attention_heads": UNIT, "attention.all_head_size": HEAD},
    bypass=(
        {"attention": "input pair"},
        {"ffn": "input", "activation": "input", "ffn_output": "zeros", "full_layer_layer_norm": "input"},
    ),
    native_pruned_heads=True,
    config_fields={"neurons": ("intermediate_size",)},
)

ENTRIES = {"albert": ALBERT}
