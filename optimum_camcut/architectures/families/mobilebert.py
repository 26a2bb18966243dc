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
"""MobileBERT, whose blocks are narrow inside, and have several feed-forward layers. The last of them is cut."""

from dataclasses import replace

from .bert import BERT


MOBILEBERT = replace(
    BERT,
    residual=(None, None),  # a norm and a map out of the narrow part stand before the sum
    # The feed-forward layers stay: behind them the way leads out of the narrow part.
    bypass=({"attention.self": "input pair", "attention.output": "residual"}, {}),
    head_size="attention.self.attention_head_size",
    native_pruned_heads=False,
    config_fields={},
)

ENTRIES = {"mobilebert": MOBILEBERT}
