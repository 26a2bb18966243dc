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
"""What the tokens of a fast tokenizer need of each other, by its own JSON: WordPiece, BPE and Unigram."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..architectures.vocabulary import VOCABULARY


BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"  # SentencePiece writes it for a space, and decoders look for it before they put bytes together


@dataclass(frozen=True)
class Pieces:
    """The tokens of a tokenizer.

    Args:
        data (`Mapping[str, Any]`): the tokenizer as `tokenizers` writes it.
        ids (`Mapping[str, int]`): token -> its number, of the model inside.
        added (`Mapping[str, int]`): the same, of special and added tokens.
    """

    data: Mapping[str, Any]
    ids: Mapping[str, int]
    added: Mapping[str, int]

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        """Those of a fast tokenizer of transformers.

        Raises:
            `TypeError`: a slow one, or something else.
            `ValueError`: a model that cannot do without its tokens.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(
                "the vocabulary goes with that of a fast tokenizer, one with a tokenizer.json; got "
                f"{type(tokenizer).__name__}. AutoTokenizer.from_pretrained(...) makes fast ones of most: take what "
                "it gives"
            )
        data = json.loads(tokenizer.backend_tokenizer.to_str())
        model = data["model"]
        kind, vocab = model.get("type"), model.get("vocab")
        if kind not in ("WordPiece", "BPE", "Unigram"):
            raise ValueError(
                f"a {kind} tokenizer has no smaller tokens to write text by, as WordPiece, BPE and Unigram have"
            )
        if kind == "BPE" and model.get("continuing_subword_prefix"):
            raise ValueError(
                f"BPE with continuing_subword_prefix={model['continuing_subword_prefix']!r} is not supported: its "
                "merges do not say what they give"
            )
        ids = {piece: number for number, (piece, _) in enumerate(vocab)} if kind == "Unigram" else vocab
        return cls(data, ids, {token["content"]: token["id"] for token in data["added_tokens"]})

    @property
    def model(self) -> Mapping[str, Any]:
        return self.data["model"]

    @property
    def numbers(self) -> dict[str, int]:
        """Token -> its number, of all."""
        return {**self.ids, **self.added}

    def letters(self, token: str) -> list[str]:
        """The smallest tokens that a token is written by: characters, or bytes by the characters that stand for
        them."""
        if self.model["type"] == "WordPiece":
            prefix = self.model["continuing_subword_prefix"]
            inside = token.startswith(prefix) and len(token) > len(prefix)
            first, rest = ([], token[len(prefix) :]) if inside else ([token[:1]], token[1:])
            return [*first, *(prefix + letter for letter in rest)]
        suffix = self.model.get("end_of_word_suffix")
        if suffix and token.endswith(suffix) and len(token) > len(suffix):
            letters = list(token.removesuffix(suffix))
            return [*letters[:-1], letters[-1] + suffix]
        return list(token)

    def always(self) -> set[int]:
        """Numbers of the tokens that stay whatever they are needed for: special and added ones; bytes, or where a
        tokenizer falls back to no bytes, characters; and what these cannot write."""
        model, kept = self.model, set(self.added.values())
        kept |= {self.ids[name] for name in (str(model.get("unk_token")), SPACE) if name in self.ids}
        if model["type"] == "Unigram":
            if model["unk_id"] is not None:
                kept.add(model["unk_id"])
            # The score of what is unknown counts from the lowest of all.
            kept.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
        bytes_kept = {number for token, number in self.ids.items() if BYTE.fullmatch(token)}
        if model.get("byte_fallback") and len(bytes_kept) == 256:
            return kept | bytes_kept
        for token, number in self.ids.items():
            letters = self.letters(token)
            if letters in ([], [token]) or not all(letter in self.ids for letter in letters):
                kept.add(number)
        return kept

    def spelled(self, token: str, stay: Container[str]) -> list[str]:
        """A token by those that stay: the longest that it begins with, then the longest that the rest begins with."""
        found, letters = list[str](), self.letters(token)
        while letters:
            count = next((n for n in range(len(letters), 0, -1) if self.joined(letters[:n]) in stay), 0)
            if count:
                found.append(self.joined(letters[:count]))
            else:  # where a tokenizer falls back to bytes
                found += [f"<0x{byte:02X}>" for byte in letters[0].encode()]
            letters = letters[count or 1 :]
        return found

    def joined(self, letters: Sequence[str]) -> str:
        """The token of some letters."""
        if self.model["type"] != "WordPiece":
            return "".join(letters)
        prefix = self.model["continuing_subword_prefix"]
        return letters[0] + "".join(letter.removeprefix(prefix) for letter in letters[1:])

    def parts(self, tokens: Iterable[str] | None = None) -> dict[str, set[str]]:
        """Of each token that BPE makes by merging others: all that it makes on the way. Empty for other models.

        Args:
            tokens: which to look at. Default: all.
        """
        if self.model["type"] != "BPE":
            return {}
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in self.model["merges"])
        ranks = {(first, second): rank for rank, (first, second) in enumerate(pairs)}
        found = {token: _merged(self.letters(token), ranks) for token in (self.ids if tokens is None else tokens)}
        return {token: made - {token} for token, made in found.items() if token in made and token not in self.added}


def _merged(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All tokens that BPE goes through from the letters of one, as far as it gets."""
    made, never = set(symbols), len(ranks)
    while len(symbols) > 1:
        found = [ranks.get(pair, never) for pair in zip(symbols, symbols[1:])]
        best = min(found)
        if best == never:
            break
        place = found.index(best)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        made.add(symbols[place])
    return made


def with_tokenizer(scores: Mapping[str, Tensor], tokenizer: Any) -> dict[str, Tensor]:
    """Makes sure that a plan by these scores leaves a tokenizer that works: what no text can be written without gets
    infinity, which keeps it; what a token is merged from counts a little more than the token; and embeddings that no
    token has count less than any.

    Args:
        scores (`dict[str, Tensor]`): with those of the group `"vocabulary"`, one for each embedding.
        tokenizer (`PreTrainedTokenizerFast`): of the model as it is.

    Returns:
        `dict[str, Tensor]`: those of the vocabulary anew, the others as they are.

    Raises:
        `TypeError`: a slow tokenizer.
        `ValueError`: a tokenizer that cannot do without its tokens.
    """
    pieces = Pieces.of(tokenizer)
    found = np.full(len(scores[VOCABULARY]), -1, dtype=np.float32)
    numbers = [number for number in pieces.numbers.values() if number < len(found)]
    found[numbers] = scores[VOCABULARY].numpy()[numbers]
    found[[number for number in pieces.always() if number < len(found)]] = np.inf
    parts = pieces.parts()
    for token in sorted(parts, key=len, reverse=True):  # what is made of others is longer
        numbers = [pieces.ids[each] for each in (token, *parts[token])]
        if max(numbers) < len(found):
            more = np.nextafter(found[numbers[0]], np.float32(np.inf))
            found[numbers[1:]] = np.maximum(found[numbers[1:]], more)
    return {**scores, VOCABULARY: torch.from_numpy(found)}
