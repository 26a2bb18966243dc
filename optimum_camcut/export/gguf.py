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
"""GGUF files of pruned decoders, for llama.cpp and what is built on it.

The metadata has heads, key-value heads and neurons of every layer, which llama.cpp reads for its architecture `deci`
(`src/models/deci.cpp`). A model whose layers are all the same is written as `llama`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.files import nearest, replacing
from .decoder import Block, blocks_of_decoder, check_like_llama, head_width, rotary
from .kinds import OTHERS, OWN


try:
    import gguf
    from gguf import GGMLQuantizationType as Kind

    from .gguf_tokenizer import add_tokenizer, copy_tokenizer
except ImportError as error:
    raise ImportError(f'GGUF files need an extra: pip install "optimum-camcut[gguf]" ({error})') from error

logger = logging.getLogger(__name__)

OF_TORCH = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
WHOLE = 256  # weights that the kinds of llama.cpp put together
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(
    model: PreTrainedModel,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokenizer_gguf: str | Path | None = None,
    quantize: str | None = None,
    disable_tqdm: bool = False,
) -> Path:
    """Writes a pruned decoder of llama's shape as one GGUF file.

    Neurons are filled up with zeros to a multiple of the weights that a kind of numbers puts together (32 of `Q8_0`);
    so is an attention that is gone from the first layer, and a feed-forward that is gone from a layer that has an
    attention, of which llama.cpp knows none. The model computes the same.

    Args:
        model: of the types in `decoder.LIKE_LLAMA`, pruned or not.
        path: file to write.
        tokenizer: the model's own.
        tokenizer_gguf: GGUF file to take the tokenizer from instead.
        quantize: a kind of numbers: as in `kinds.OWN`, by the package gguf, or as in `kinds.OTHERS`, by llama.cpp,
            which takes `llama-cpp-python`. Default: that of the weights.
        disable_tqdm: show no progress.

    Raises:
        `ValueError`: llama.cpp would compute something else, or does not know the tokenizer or the kind.
        `ImportError`: a kind of `OTHERS` without `llama-cpp-python`.
    """
    check_like_llama(model, "llama.cpp")
    kind = quantize or OF_TORCH.get(model.dtype, "F32")
    if kind not in (*OWN, *OTHERS):
        raise ValueError(
            f"unknown kind of numbers {kind!r}; known: {', '.join((*OWN, *OTHERS))}{nearest(kind, (*OWN, *OTHERS))}"
        )
    if tokenizer is None and tokenizer_gguf is None:
        raise ValueError("a GGUF file holds the tokenizer: give the model's own, or a GGUF file that has it")
    llama_cpp = _llama_cpp(kind) if kind in OTHERS else None
    if tokenizer_gguf is not None and not Path(tokenizer_gguf).is_file():
        raise FileNotFoundError(f"there is no file {tokenizer_gguf} to take the tokenizer from")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if llama_cpp is None:
            _write(model, partial, tokenizer, tokenizer_gguf, kind, 1, disable_tqdm)
            return path
        whole = partial.with_name(f"{partial.name}.f16")
        try:
            _write(model, whole, tokenizer, tokenizer_gguf, "F16", WHOLE, disable_tqdm)
            _requantize(llama_cpp, whole, partial, kind)
        finally:
            whole.unlink(missing_ok=True)
    return path


def _write(
    model: PreTrainedModel,
    path: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    tokenizer_gguf: str | Path | None,
    kind: str,
    multiple: int,
    disable_tqdm: bool,
) -> None:
    multiple = math.lcm(multiple, gguf.GGML_QUANT_SIZES[Kind[kind]][0])

    def fit(block: Block, number: int) -> Block:
        if not block.heads and number == 0:  # the width of all heads is read off the first layer
            block = block.with_groups(1)
        return replace(block, neurons=max(1, math.ceil(block.neurons / multiple)) * multiple)

    blocks = blocks_of_decoder(model, fit)
    sizes = [(block.heads, block.groups, block.neurons) for block in blocks]
    writer = gguf.GGUFWriter(path, "llama" if len(set(sizes)) == 1 else "deci", use_temp_file=True)
    _add_config(writer, model.config, sizes)
    writer.add_name(Path(model.name_or_path).name or model.config.model_type)
    writer.add_file_type(gguf.LlamaFileType[("ALL_" if kind == "F32" else "MOSTLY_") + kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if tokenizer_gguf is not None:
        copy_tokenizer(writer, tokenizer_gguf, model.config.vocab_size)
    elif tokenizer is not None:
        add_tokenizer(writer, tokenizer, model.config.vocab_size)
    tensors = list(_tensors(model, blocks))
    for name, tensor in tqdm(tensors, desc="write", unit="tensor", disable=disable_tqdm):
        _add(writer, name, tensor, Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: gguf.GGUFWriter, config: Any, sizes: list[tuple[int, int, int]]) -> None:
    heads, groups, neurons = map(list, zip(*sizes))
    even, width, positions = len(set(sizes)) == 1, head_width(config), rotary(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(sizes))
    writer.add_head_count(heads[0] if even else heads)
    writer.add_head_count_kv(groups[0] if even else groups)
    writer.add_feed_forward_length(neurons[0] if even else neurons)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(positions["rope_theta"])
    if positions["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(positions["factor"])


def _tensors(model: PreTrainedModel, blocks: list[Block]) -> Iterator[tuple[str, Tensor]]:
    base, config = model.base_model, model.config
    yield "token_embd.weight", base.embed_tokens.weight.detach()
    yield "output_norm.weight", base.norm.weight.detach()
    if not config.tie_word_embeddings:
        yield "output.weight", model.get_output_embeddings().weight.detach()
    if rotary(config)["rope_type"] == "llama3":
        theta, width = rotary(config)["rope_theta"], head_width(config)
        plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        yield (
            "rope_freqs.weight",
            (plain / base.rotary_emb.inv_freq.detach().double()).float(),
        )  # llama.cpp divides by it
    for number, block in enumerate(blocks):
        for name, tensor in block.tensors():
            module, _, rest = name.rpartition(".")
            if module in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = interleave(tensor, block.width)
            yield f"blk.{number}.{NAMES[module]}.{rest}", tensor


def interleave(tensor: Tensor, width: int) -> Tensor:
    """Outputs of queries or keys in the order of llama.cpp, which rotates neighbours where transformers rotates one
    half of a head against the other."""
    halves = tensor.reshape(-1, 2, width // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _add(writer: gguf.GGUFWriter, name: str, tensor: Tensor, kind: Kind) -> None:
    """Vectors stay in float32, and what does not fill whole blocks of a kind in float16, as in llama.cpp."""
    kind = Kind.F32 if tensor.dim() == 1 else kind
    if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        logger.warning(
            "%s of shape %s stays in F16: %s takes rows of whole blocks", name, tuple(tensor.shape), kind.name
        )
        kind = Kind.F16
    values = tensor.float().cpu().numpy()
    if kind in (Kind.F32, Kind.F16):
        writer.add_tensor(name, values if kind == Kind.F32 else values.astype("float16"))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def _llama_cpp(kind: str) -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise ImportError(
            f"{kind} is written by llama.cpp itself: pip install llama-cpp-python, or quantize an F16 file by "
            f"`llama-quantize FILE.gguf OUT.gguf {kind}`, or take one of {', '.join(OWN)} ({error})"
        ) from error
    return llama_cpp


def _requantize(llama_cpp: Any, source: Path, target: Path, kind: str) -> None:
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options) != 0:
        raise ValueError(f"llama.cpp could not quantize to {kind}: its own messages say why")
