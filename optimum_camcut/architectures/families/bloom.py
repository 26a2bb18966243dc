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
"""BLOOM, Falcon and MPT, whose attention may be biased by distance (ALiBi), with one slope a head."""

from ..entry import GROUP, HEAD, QUERIES, UNIT, Architecture, Cut


BLOOM = Architecture(
    layers="h.{}",
    heads=(Cut("self_attention.query_key_value", "out", "3 * head"), Cut("self_attention.dense", "in", HEAD)),
    neurons=(Cut("mlp.dense_h_to_4h", "out"), Cut("mlp.dense_4h_to_h", "in")),
    residual=("input_layernorm", "post_attention_layernorm"),
    attributes={"self_attention.num_heads": UNIT},
    bypass=(  # what these layers give is the sum itself
        {"input_layernorm": "input", "self_attention": "residual pair"},
        {"post_attention_layernorm": "input", "mlp": "residual"},
    ),
    position_bias="self_attention:alibi",
    variants={
        "apply_residual_connection_post_layernorm=True": {"residual": (None, None), "bypass": None},
        "slow_but_exact=True": {"refused": {"heads": "its forward goes by the uncut width (slow_but_exact)"}},
    },
)
FALCON = Architecture(
    layers="h.{}",
    heads=(
        Cut("self_attention.query_key_value", "out", "3 * head"),
        Cut("self_attention.dense", "in", HEAD),
    ),
    neurons=BLOOM.neurons,
    residual=("input_layernorm", "post_attention_layernorm"),
    attributes={"self_attention.num_heads": UNIT, "self_attention.num_kv_heads": UNIT},
    bypass=(
        {"input_layernorm": "input", "self_attention": "zeros pair"},
        {"post_attention_layernorm": "input", "mlp": "zeros"},
    ),
    position_bias="self_attention:alibi,attention_mask",
    config_fields={"neurons": ("ffn_hidden_size",)},
    key_value_heads="",
    variants={
        "parallel_attn=True": {
            "residual": ("input_layernorm", None),
            "bypass": ({"self_attention": "zeros pair"}, {"mlp": "zeros"}),
        },
        "multi_query=True": {  # all heads share one key and one value
            "heads": (
                Cut("self_attention.query_key_value", "out", HEAD, rest="2 * head"),
                Cut("self_attention.dense", "in", HEAD),
            ),
            "attributes": {"self_attention.num_heads": UNIT},
        },
        "new_decoder_architecture=True": {
            "heads": (
                Cut("self_attention.query_key_value", "out", "queries + 2 * head"),
                Cut("self_attention.dense", "in", QUERIES),
            ),
            "attributes": {"self_attention.num_heads": GROUP, "self_attention.num_kv_heads": UNIT},
            "residual": (None, None),
            "bypass": ({"self_attention": "zeros pair"}, {"mlp": "zeros"}),
            "key_value_heads": "num_kv_heads",
        },
        "new_decoder_architecture=True&alibi=True": {
            "refused": {"heads": "its ALiBi slopes are by query head, its key-value heads shared by several"}
        },
    },
)
MPT = Architecture(
    layers="blocks.{}",
    heads=(Cut("attn.Wqkv", "out", HEAD, blocks=3), Cut("attn.out_proj", "in", HEAD)),
    neurons=(Cut("ffn.up_proj", "out"), Cut("ffn.down_proj", "in")),
    residual=("norm_1", "norm_2"),
    attributes={"attn.n_heads": UNIT},
    bypass=({"norm_1": "input", "attn": "zeros pair"}, {"norm_2": "input", "ffn": "residual"}),
    position_bias="attn",
)

ENTRIES = {"bloom": BLOOM, "falcon": FALCON, "mpt": MPT}
