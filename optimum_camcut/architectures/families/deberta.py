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
"""DeBERTa, whose attention is by content and by distance."""

from dataclasses import replace

from ..entry import HEAD, Cut
from .bert import BERT


DEBERTA_V2 = replace(
    BERT,
    heads=(
        Cut("attention.self.query_proj", "out", HEAD),
        Cut("attention.self.key_proj", "out", HEAD),
        Cut("attention.self.value_proj", "out", HEAD),
        Cut("attention.self.pos_key_proj", "out", HEAD, optional=True),
        Cut("attention.self.pos_query_proj", "out", HEAD, optional=True),
        Cut("attention.output.dense", "in", HEAD),
    ),
    residual=("attention.self.query_proj", "intermediate.dense"),
    native_pruned_heads=False,
)
DEBERTA = replace(
    BERT,
    heads=(
        Cut("attention.self.in_proj", "out", "3 * head"),
        Cut("attention.self.q_bias", 0, HEAD),
        Cut("attention.self.v_bias", 0, HEAD),
        Cut("attention.self.pos_proj", "out", HEAD, optional=True),
        Cut("attention.self.pos_q_proj", "out", HEAD, optional=True),
        Cut("attention.output.dense", "in", HEAD),
    ),
    residual=("attention.self.in_proj", "intermediate.dense"),
    native_pruned_heads=False,
    variants={"talking_head=True": {"refused": {"heads": "its attention mixes the maps of all heads (talking_head)"}}},
)

ENTRIES = {"deberta": DEBERTA, "deberta-v2": DEBERTA_V2}
