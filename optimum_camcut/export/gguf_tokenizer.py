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
"""The tokenizer in the words of llama.cpp."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase


# How llama.cpp names the ways to split text, by the expressions that the tokenizers of models have.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {LLAMA_3: "llama-bpe", LLAMA_3.replace("{1,3}", ""): "qwen2"}
BYTE = re.compile("<0x[0-9A-F]{2}>")
INSTEAD = "; give a GGUF file of the dense model, whose tokenizer is then taken (tokenizer_gguf)"


def copy_tokenizer(writer: gguf.GGUFWriter, path: str | Path, rows: int) -> None:
    """Takes the tokenizer of another GGUF file over.

    Args:
        rows: of the word embeddings.

    Raises:
        `ValueError`: the file has none, or that of another model.
    """
    fields = [each for each in gguf.GGUFReader(path).fields.values() if each.name.startswith("tokenizer.")]
    if not fields:
        raise ValueError(f"{path} holds no tokenizer")
    tokens = next((len(field.contents()) for field in fields if field.name == "tokenizer.ggml.tokens"), 0)
    if tokens != rows:
        raise ValueError(
            f"the tokenizer of {path} has {tokens} tokens, the model embeds {rows}: it is not the model's own"
        )
    for field in fields:
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if array else None)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Writes a tokenizer of the kind BPE, of bytes or with bytes to fall back on.

    Args:
        rows: of the word embeddings; tokens that are missing there are filled up.

    Raises:
        `ValueError`: llama.cpp has no such tokenizer, or this cannot tell which it is.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"a {type(tokenizer).__name__} has no tokenizer.json to read it from{INSTEAD}")
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    if found["model"]["type"] != "BPE":
        raise ValueError(
            f"llama-like models of llama.cpp read tokenizers of the kind BPE, not {found['model']['type']}{INSTEAD}"
        )
    bytes_only = not found["model"].get("byte_fallback")
    allowed = {"NFC"} if bytes_only else {"Prepend", "Replace"}
    changes = [each["type"] for each in _parts(found["normalizer"], "normalizers")]
    if not set(changes) <= allowed:
        raise ValueError(f"llama.cpp does not normalize text by {', '.join(changes)}, as this tokenizer does{INSTEAD}")
    writer.add_tokenizer_model("gpt2" if bytes_only else "llama")
    writer.add_tokenizer_pre(split_name(found) if bytes_only else "default")
    added = {each["id"]: each for each in found["added_tokens"]}
    texts = {number: text for text, number in found["model"]["vocab"].items()}
    texts |= {number: each["content"] for number, each in added.items()}
    if texts and max(texts) >= rows:
        raise ValueError(
            f"the tokenizer has {max(texts) + 1} tokens, the model embeds {rows}: it is not the model's own"
        )
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types([_kind(texts.get(number), added.get(number)) for number in range(rows)])
    if not bytes_only:
        writer.add_token_scores(_scores(found["model"], texts, rows))
        writer.add_add_space_prefix("Prepend" in str(found["normalizer"]) or _prepends(found["pre_tokenizer"]))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=bytes_only, n_vocab=rows)
    ids = tokenizer("a")["input_ids"]  # llama.cpp has defaults of its own
    special.add_special_token = {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == tokenizer.eos_token_id}
    special.add_to_gguf(writer)


def split_name(found: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer splits text into words."""
    steps = _parts(found["pre_tokenizer"], "pretokenizers")
    kinds = [step["type"] for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise ValueError(
            f"llama.cpp puts no space before the text of such a tokenizer, as add_prefix_space does{INSTEAD}"
        )
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return "smollm"
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    if pattern not in SPLITS:
        raise ValueError(
            f"it is not known here what llama.cpp calls a tokenizer that splits by {kinds}, {pattern!r}{INSTEAD}"
        )
    whole_words = found["model"].get("ignore_merges", False)
    if whole_words != (SPLITS[pattern] == "llama-bpe"):
        raise ValueError(f"llama.cpp expects another ignore_merges of this tokenizer than {whole_words}{INSTEAD}")
    return SPLITS[pattern]


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step."""
    return [] if step is None else step.get(name, [step])


def _kind(text: str | None, added: dict[str, Any] | None) -> gguf.TokenType:
    if text is None:
        return gguf.TokenType.UNUSED
    if added is not None:
        return gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    return gguf.TokenType.BYTE if BYTE.fullmatch(text) else gguf.TokenType.NORMAL


def _scores(model: dict[str, Any], texts: dict[int, str], rows: int) -> list[float]:
    """llama.cpp merges the pair whose whole has the highest score, BPE the one that comes first among the merges."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    return [-float(ranks[texts[number]]) if texts.get(number) in ranks else -1e6 for number in range(rows)]


def _prepends(step: dict[str, Any] | None) -> bool:
    return step is not None and step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
