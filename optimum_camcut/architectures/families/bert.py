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
"""BERT, and the encoders that have its layers."""

from dataclasses import replace

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
# In transformers 5, attention gives no maps beside what it computes.
LAYOUTLM = replace(
    BERT,
    bypass=({"attention": "input"}, {"intermediate": "input", "output": "residual"}),
    variants={"transformers=4": {"bypass": BERT.bypass}},
)
# The norm comes before the layer, and the sum is made in `output`.
PRE_NORM = replace(BERT, residual=("attention.LayerNorm", "intermediate.LayerNorm"), bypass=BERT.bypass)
MEGATRON = replace(
    BERT,
    residual=("attention.ln", "ln"),
    bypass=({"attention": "input pair"}, {"ln": "input", "intermediate": "input", "output": "residual"}),
)
XLM_ROBERTA_XL = replace(
    BERT,
    residual=("attention.self_attn_layer_norm", "LayerNorm"),
    bypass=({"attention": "input pair"}, {"LayerNorm": "input", "intermediate": "input", "output": "residual"}),
)
ESM = replace(
    BERT,
    residual=("attention.LayerNorm", "LayerNorm"),
    bypass=({"attention": "input"}, {"LayerNorm": "input", "intermediate": "input", "output": "residual"}),
)
LAYOUTLMV3 = replace(
    BERT,
    bypass=LAYOUTLM.bypass,
    position_bias="attention.self",
    native_pruned_heads=False,
    variants={"transformers=4": {"bypass": BERT.bypass, "position_bias": "attention.self:rel_pos,rel_2d_pos"}},
)
# The feed-forward layers stay: with them would go the adapters of the languages.
XMOD = replace(BERT, bypass=({"attention": "input pair"}, {}))
NYSTROMFORMER = replace(
    BERT,
    native_pruned_heads=False,
    heads=(*BERT.heads[:3], Cut("attention.self.conv.weight", 0, optional=True), BERT.heads[3]),
    attributes={
        **BERT.attributes,
        "attention.self.conv.groups": UNIT,
        "attention.self.conv.in_channels": UNIT,
        "attention.self.conv.out_channels": UNIT,
    },
)
# Queries of their own between words and entities. Attention stays: it gives the two apart.
LUKE = replace(
    BERT,
    heads=(
        *BERT.heads[:3],
        *(Cut(f"attention.self.{pair}_query", "out", HEAD, optional=True) for pair in ("w2e", "e2w", "e2e")),
        BERT.heads[3],
    ),
    residual=(None, "intermediate.dense"),
    bypass=({}, {"intermediate": "input", "output": "residual"}),
    native_pruned_heads=False,
)
# Half of the heads are convolutions, whose sizes go by the heads.
CONVBERT = Architecture(
    layers="encoder.layer.{}",
    neurons=BERT.neurons,
    residual=("intermediate.dense",),
    bypass=({"intermediate": "input", "output": "residual"},),
    config_fields=BERT.config_fields,
    refused={"heads": "its convolution of the values is made of the queries and keys of all heads"},
)
LILT = replace(
    CONVBERT,
    config_fields={},  # the layout has a stream of its own, with a share of them
    refused={"heads": "each goes with one of the layout, of a size of its own"},
    variants={"transformers=4": {"residual": (None,), "bypass": None}},  # a block gives a tuple in a tuple
)
MRA = replace(
    CONVBERT, refused={"heads": "its attention gives zeros without a kernel of the Hub, so a cut cannot be proved"}
)
# Encoders of characters, before and behind that of what they are joined to.
PATHS = {"first": "initial_char_encoder", "encoder": "encoder", "last": "final_char_encoder"}
CANINE = {
    name: replace(BERT, layers=f"{path}.layer.{{}}", native_pruned_heads=False, config_fields={})
    for name, path in PATHS.items()
}
CANINE["first"] = replace(CANINE["first"], residual=(None, "intermediate.dense"))  # its attention sees a part

ENTRIES = {
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "camembert", "electra"], BERT),
    **dict.fromkeys(["ernie", "rembert", "data2vec-text", "roformer", "yoso", "bert-generation"], BERT),
    **dict.fromkeys(["roc_bert", "visual_bert", "blip_text_model"], BERT),
    "tapas": replace(BERT, native_pruned_heads=False),
    "luke": LUKE,
    "convbert": CONVBERT,
    "lilt": LILT,
    "mra": MRA,
    "canine": CANINE,
    "layoutlmv3": LAYOUTLMV3,
    **dict.fromkeys(["layoutlm", "markuplm", "splinter", "chinese_clip_text_model", "bros"], LAYOUTLM),
    "xmod": XMOD,
    "roberta-prelayernorm": PRE_NORM,
    "megatron-bert": MEGATRON,
    "xlm-roberta-xl": XLM_ROBERTA_XL,
    "esm": ESM,
    "nystromformer": NYSTROMFORMER,
}
