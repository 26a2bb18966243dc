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
"""BERT and the encoders that have its layers."""

from ..entry import HEAD, UNIT, Architecture, Cut


BERT = Architecture(
    layers="encoder.layer.{}",
    heads=(
        Cut("attention.self.query", "out", HEAD),
        Cut("attention.self.key", "out", HEAD),
        Cut("attention.self.value", "out", HEAD),
        Cut("attention.output.dense", "in", HEAD),
    ),
    neurons=(Cut("intermediate.dense", "out"), Cut("output.dense", "in")),
    residual=("attention.self.query", "intermediate.dense"),
    attributes={"attention.self.num_attention_heads": UNIT, "attention.self.all_head_size": HEAD},
    bypass=({"attention": "input pair"}, {"intermediate": "input", "output": "residual"}),
    native_pruned_heads=True,
    config_fields={"neurons": ("intermediate_size",)},
)

ENTRIES = dict.fromkeys(["bert", "roberta", "xlm-roberta", "camembert", "electra"], BERT)
