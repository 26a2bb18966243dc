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
"""A tiny model of every type of model that has an entry, with inputs for it."""

import copy
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from optimum_camcut.architectures.table import ARCHITECTURES


ROWS, TOKENS, VOCABULARY = 3, 8, 99
_WORDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ENCODER = {
    **_WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
}
_DECODER = {**_ENCODER, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
_EXPERTS = {**_DECODER, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT = {**_WORDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 37, "n_positions": 64}
_IMAGES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
_STAGES = {"image_size": 16, "num_channels": 3}
_WINDOWS = {**_STAGES, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}
_PYRAMID: dict[str, Any] = {
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "hidden_sizes": [16, 32],
    "num_attention_heads": [2, 4],
    "sr_ratios": [2, 1],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 16,
}
_SEQ2SEQ = {
    **_WORDS,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 41,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5 = {
    **_WORDS,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
}
_SOUND = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "conv_dim": (16, 16),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
}
_TOWERS = {"text_config": _ENCODER, "vision_config": _IMAGES}
_FAMILIES: list[tuple[str, dict[str, Any]]] = [
    (
        "llama mistral ministral ministral3 qwen2 qwen3 smollm3 granite gemma gemma2 gemma3_text olmo olmo2 olmo3",
        _DECODER,
    ),
    ("starcoder2 phi phi3 stablelm cohere cohere2 glm glm4 helium seed_oss arcee nemotron exaone4", _DECODER),
    ("hunyuan_v1_dense apertus", _DECODER),
    ("gpt2 openai-gpt gpt_bigcode imagegpt", _GPT),
    ("gptj codegen", {**_GPT, "rotary_dim": 4}),
    ("gpt_neox biogpt eurobert", _ENCODER),
    ("bert roberta xlm-roberta camembert electra ernie rembert roberta-prelayernorm megatron-bert", _ENCODER),
    ("xlm-roberta-xl layoutlm esm data2vec-text deberta deberta-v2 roformer yoso bert-generation", _ENCODER),
    ("markuplm nystromformer visual_bert roc_bert mpnet modernbert nomic_bert", _ENCODER),
    ("tapas chinese_clip_text_model mra blip_text_model", _ENCODER),
    ("blip_vision_model chinese_clip_vision_model", _IMAGES),
    ("swinv2 donut-swin maskformer-swin", _WINDOWS),
    ("persimmon", _ENCODER),
    ("vit deit beit vit_mae vit_msn data2vec-vision ijepa dpt siglip_vision_model clip_vision_model", _IMAGES),
    ("clip_text_model siglip_text_model", _ENCODER),
    ("clip siglip", _TOWERS),
    ("bart mbart pegasus marian m2m_100 blenderbot blenderbot-small plbart", _SEQ2SEQ),
    ("t5 mt5 umt5 longt5", _T5),
    ("wav2vec2 hubert wavlm data2vec-audio unispeech unispeech-sat sew", _SOUND),
]
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: values for names, values in _FAMILIES for name in names.split()},
    "mixtral": {**_DECODER, "num_local_experts": 5, "intermediate_size": 24},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 13},
    "qwen3_moe": {**_EXPERTS, "mlp_only_layers": [1]},
    "olmoe": {**_EXPERTS, "intermediate_size": 24},
    "gpt_oss": {**_DECODER, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 24},
    "albert": {**_ENCODER, "embedding_size": 16, "num_hidden_groups": 1, "inner_group_num": 2},
    "luke": {**_ENCODER, "entity_vocab_size": 20, "entity_emb_size": 16},
    "bros": {**_ENCODER, "hidden_size": 64, "dim_bbox": 8},
    "lilt": {**_ENCODER, "hidden_size": 48},
    "convbert": {**_ENCODER, "embedding_size": 32, "conv_kernel_size": 3},
    "mobilebert": {**_ENCODER, "embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 3},
    "canine": {
        **_ENCODER,
        "num_hash_buckets": 64,
        "local_transformer_stride": 4,
        "downsampling_rate": 2,
        "upsampling_kernel_size": 2,
    },
    "ctrl": {**_WORDS, "n_embd": 32, "dff": 37, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "yolos": {**_IMAGES, "image_size": (16, 16), "num_detection_tokens": 3},
    "distilbert": {
        **_WORDS,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 37,
        "max_position_embeddings": 64,
    },
    "splinter": {**_ENCODER, "vocab_size": 120},
    "xmod": {**_ENCODER, "languages": ("en_XX", "de_DE"), "default_language": "en_XX"},
    "layoutlmv3": {**_ENCODER, "coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "gpt_neo": {
        **_WORDS,
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
    },
    "opt": {
        **_WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 37,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "xglm": {
        **_WORDS,
        "d_model": 32,
        "num_layers": 3,
        "attention_heads": 4,
        "ffn_dim": 37,
        "max_position_embeddings": 64,
    },
    "bloom": {**_WORDS, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {
        **_WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_hidden_size": 37,
    },
    "mpt": {**_WORDS, "d_model": 32, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64},
    "dinov2": {**_IMAGES, "mlp_ratio": 2},
    "dinov2_with_registers": {**_IMAGES, "mlp_ratio": 2},
    "videomae": {**_IMAGES, "num_frames": 2, "tubelet_size": 1},
    "audio-spectrogram-transformer": {
        **{name: _IMAGES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        "intermediate_size": 37,
        "patch_size": 4,
        "frequency_stride": 4,
        "time_stride": 4,
        "max_length": 16,
        "num_mel_bins": 8,
    },
    "swin": _WINDOWS,
    **dict.fromkeys(["segformer", "glpn"], _PYRAMID),
    "whisper": {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
    "speech_to_text": {
        **_SEQ2SEQ,
        "input_feat_per_channel": 8,
        "max_source_positions": 32,
        "max_target_positions": 16,
        "conv_channels": 16,
    },
}
# What a config says besides of how its layers are built -> the type.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere-normed": ("cohere", {"use_qk_norm": True}),
    "stablelm-normed": ("stablelm", {"qk_layernorm": True}),
    "falcon-new-alibi": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": True}),
    "beit-both-biases": ("beit", {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}),
    "opt-350m": ("opt", {"do_layer_norm_before": False}),
    "falcon-old": ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}),
    "granite-scaled": ("granite", {"residual_multiplier": 0.22}),
    "deberta-relative": ("deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-talking": ("deberta", {"talking_head": True}),
    "deberta-v2-relative": ("deberta-v2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "dinov2-swiglu": ("dinov2", {"use_swiglu_ffn": True}),
    "beit-own-bias": ("beit", {"use_relative_position_bias": True}),
    "beit-shared-bias": ("beit", {"use_shared_relative_position_bias": True}),
    "longt5-global": ("longt5", {"encoder_attention_type": "transient-global", "global_block_size": 2}),
    "t5-gated": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "wav2vec2-stable": ("wav2vec2", {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
}
# What transformers 4.57 lacks; Apertus it cannot build without storage, which loading begins with.
ONLY_5 = ("ministral3", "eurobert", "nomic_bert", "siglip_text_model", "apertus", "stablelm-normed")
# There the configs of the parts are not known by their names.
ONLY_5 += ("blip_text_model", "blip_vision_model", "chinese_clip_text_model")
ONLY_5 += ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")  # there experts are cut
OLD = transformers.__version__.startswith("4.")
TYPES = [name for name in (*CONFIGS, *VARIANTS) if not (OLD and name in ONLY_5)]
# Classes that no class of transformers loads by their configs.
WITHOUT_AUTO = {
    "siglip_text_model": "SiglipTextModel",
    "blip_text_model": "BlipTextModel",
    "blip_vision_model": "BlipVisionModel",
    "chinese_clip_text_model": "ChineseCLIPTextModel",
}
_FIRST = (
    ("ForSeq2SeqLM", "ForSpeechSeq2Seq"),
    ("ForCausalLM", "ForSequenceClassification", "ForCTC", "ForImageClassification", "ForAudioClassification", ""),
)


def type_of(name: str) -> str:
    """The `model_type` of a name, which may be that of a variant."""
    return VARIANTS[name][0] if name in VARIANTS else name


def config_of(name: str) -> PretrainedConfig:
    model_type = type_of(name)
    changes = VARIANTS[name][1] if name in VARIANTS else {}
    config = AutoConfig.for_model(model_type, **copy.deepcopy({**CONFIGS[model_type], **changes}))
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0
    return config


def model_of(name: str, seed: int = 0) -> PreTrainedModel:
    """In evaluation mode, with random weights that are large enough to matter; with the head of a language model if
    the type is made for that."""
    torch.manual_seed(seed)
    config = config_of(name)
    several, others = _FIRST
    language = getattr(config, "is_decoder", True) is not False  # encoders can be decoders too, in another mode
    tasks = several if getattr(config, "is_encoder_decoder", False) else others[not language :]
    if name in ("clip", "siglip", "canine"):  # of canine, tasks do not read all blocks
        tasks = ()
    autos = [getattr(transformers, f"AutoModel{task}") for task in (*tasks, "")]
    found = [auto for auto in autos if isinstance(auto._model_mapping.get(type(config), None), type)]
    model = (found[0].from_config(config) if found else getattr(transformers, WITHOUT_AUTO[name])(config)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "embed_positions" not in path:  # some are sines, and not saved
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch_of(model: PreTrainedModel, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    config, name = model.config, model.main_input_name
    ids = torch.randint(3, 90, (ROWS, TOKENS), generator=draw)
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    target = {"decoder_input_ids": torch.randint(3, 90, (ROWS, 5), generator=draw)}
    image = torch.rand(ROWS, 3, 16, 16, generator=draw)
    if config.model_type in ("clip", "siglip"):
        return {"input_ids": ids, "pixel_values": image}
    if config.model_type in ("lilt", "bros"):
        boxes = torch.rand(ROWS, TOKENS, 4, generator=draw).sort(-1).values
        return {**words, "bbox": (boxes * 50).long() if config.model_type == "lilt" else boxes}
    if config.model_type == "luke":
        entities = torch.randint(1, 20, (ROWS, 3), generator=draw)
        places = torch.randint(0, TOKENS, (ROWS, 3, 2), generator=draw)
        names = {"entity_ids": entities, "entity_attention_mask": torch.ones_like(entities)}
        return {**words, **names, "entity_position_ids": places}
    if config.model_type == "imagegpt":
        return {"input_ids": ids}
    if config.model_type == "vit_mae":
        return {"pixel_values": image, "noise": torch.rand(ROWS, 16, generator=draw)}
    if config.model_type == "videomae":
        return {"pixel_values": image[:, None].repeat(1, 2, 1, 1, 1)}
    if name == "pixel_values":
        return {name: image}
    if config.model_type == "audio-spectrogram-transformer":
        return {name: torch.rand(ROWS, 16, 8, generator=draw)}
    if name == "input_values":
        return {name: torch.rand(ROWS, 200, generator=draw)}
    if name == "input_features":
        shape = (ROWS, 8, 32) if config.model_type == "whisper" else (ROWS, 32, 8)
        return {name: torch.rand(shape, generator=draw), **target}
    return {**words, **(target if getattr(config, "is_encoder_decoder", False) else {})}


def with_own_entries() -> list[str]:
    """One name for each entry and each variant of one: the others are the same code by another name."""
    seen: set[int] = set()
    own = [name for name in TYPES if name in VARIANTS or not (id(_key(name)) in seen or seen.add(id(_key(name))))]
    return own


def _key(name: str) -> Any:
    entry = ARCHITECTURES[name]
    return entry if not isinstance(entry, dict) else next(iter(entry.values()))
