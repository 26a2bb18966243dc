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
"""GPT-2, with fused maps of queries, keys and values, and those that come from it."""

from dataclasses import replace

from ..entry import HEAD, UNIT, Architecture, Cut


GPT2 = Architecture(
    layers="h.{}",
    heads=(Cut("attn.c_attn", "out", HEAD, blocks=3), Cut("attn.c_proj", "in", HEAD)),
    neurons=(Cut("mlp.c_fc", "out"), Cut("mlp.c_proj", "in")),
    residual=("ln_1", "ln_2"),
    attributes={"attn.num_heads": UNIT, "attn.split_size": HEAD},
    bypass=({"ln_1": "input", "attn": "zeros pair"}, {"ln_2": "input", "mlp": "zeros"}),
    native_pruned_heads=True,
    config_fields={"neurons": ("n_inner",)},
)
OPENAI_GPT = replace(
    GPT2,
    residual=("attn.c_attn", "mlp.c_fc"),
    attributes={"attn.n_head": UNIT, "attn.split_size": HEAD},
    bypass=None,  # attention gives a list
    config_fields={},
)
GPT_BIGCODE = replace(
    GPT2,
    heads=(Cut("attn.c_attn", "out", "3 * head"), Cut("attn.c_proj", "in", HEAD)),
    attributes={"attn.num_heads": UNIT, "attn.kv_heads": UNIT, "attn.embed_dim": HEAD, "attn.kv_dim": HEAD},
    native_pruned_heads=False,
    key_value_heads="",
    variants={
        "multi_query=True": {  # all heads share one key and one value
            "heads": (Cut("attn.c_attn", "out", HEAD, rest="2 * head"), Cut("attn.c_proj", "in", HEAD)),
            "attributes": {"attn.num_heads": UNIT, "attn.embed_dim": HEAD},
        }
    },
)
CTRL = Architecture(
    layers="h.{}",
    heads=(
        Cut("multi_head_attention.Wq", "out", HEAD),
        Cut("multi_head_attention.Wk", "out", HEAD),
        Cut("multi_head_attention.Wv", "out", HEAD),
        Cut("multi_head_attention.dense", "in", HEAD),
    ),
    neurons=(Cut("ffn.0", "out"), Cut("ffn.2", "in")),
    residual=("layernorm1", "layernorm2"),
    attributes={"multi_head_attention.num_heads": UNIT, "multi_head_attention.d_model_size": HEAD},
    bypass=(
        {"layernorm1": "input", "multi_head_attention": "zeros pair"},
        {"layernorm2": "input", "ffn": "zeros"},
    ),
    config_fields={"neurons": ("dff",)},
)
IMAGEGPT = replace(GPT2, native_pruned_heads=False)

ENTRIES = {"ctrl": CTRL, "imagegpt": IMAGEGPT, "gpt2": GPT2, "openai-gpt": OPENAI_GPT, "gpt_bigcode": GPT_BIGCODE}
