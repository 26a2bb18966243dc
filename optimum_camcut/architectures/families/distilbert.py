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
"""DistilBERT."""

from ..entry import HEAD, UNIT, Architecture, Cut


DISTILBERT = Architecture(
    layers="transformer.layer.{}",
    heads=(
        Cut("attention.q_lin", "out", HEAD),
        Cut("attention.k_lin", "out", HEAD),
        Cut("attention.v_lin", "out", HEAD),
        Cut("attention.out_lin", "in", HEAD),
    ),
    neurons=(Cut("ffn.lin1", "out"), Cut("ffn.lin2", "in")),
    residual=("attention.q_lin", "ffn.lin1"),
    attributes={"attention.n_heads": UNIT, "attention.dim": HEAD},
    bypass=(
        {"attention": "zeros pair", "sa_layer_norm": "input"},
        {"ffn": "zeros", "output_layer_norm": "input"},
    ),
    native_pruned_heads=True,
    config_fields={"neurons": ("hidden_dim",)},
)

ENTRIES = {"distilbert": DISTILBERT}
