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
"""`fill-mask` and `text-generation`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .task import IGNORED, Task, first_output, register


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction


PIECE = 100_000  # characters of a text that are tokenized at once
CHATS = (("messages",), ("conversations",))  # columns of them
ROLES = {"human": "user", "gpt": "assistant"}  # of ShareGPT, whose messages have `from` and `value`


class LanguageModel(Task):
    """Text alone; the tokens are the labels."""

    texts: ClassVar[tuple[tuple[str, ...], ...]] = (("text",), ("sentence",), ("content",))
    measured = ("accuracy", "perplexity")
    shift: ClassVar[int] = 0  # tokens between a position and the one that it predicts

    @classmethod
    def _choose(
        cls, columns: Sequence[str], what: str, given: tuple[str, ...], guesses: Iterable[tuple[str, ...]]
    ) -> tuple[str, ...]:
        if what == "text":
            return super()._choose(columns, what, given, guesses)
        if given:
            raise ValueError(f"{cls.name} has no label column: the text itself is predicted; got {given[0]!r}")
        return ()

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(self.tokenizer)

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Tensor:
        """Of every token that counts, whether it was predicted and its negative log-likelihood, so that logits of the
        whole vocabulary are not kept: `(batch, tokens, 2)`."""
        import torch

        logits = first_output(logits)[:, : labels.shape[1] - cls.shift].float()
        labels = labels[:, cls.shift :]
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        return torch.stack([(logits.argmax(-1) == labels).float(), loss], -1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        counted = prediction.label_ids[:, self.shift :] != IGNORED
        hits, loss = prediction.predictions[:, : counted.shape[1]][counted].mean(0, dtype=np.float64)
        return {"accuracy": float(hits), "perplexity": float(np.exp(min(loss, 700)))}

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """The commonest token for every one; and all tokens alike."""
        labels = prediction.label_ids[:, self.shift :]
        counts = np.unique(labels[labels != IGNORED], return_counts=True)[1]
        yield {"accuracy": float(counts.max() / counts.sum()), "perplexity": float(len(self.tokenizer))}


@register("fill-mask")
class FillMask(LanguageModel):
    """15 % of the tokens are to be told from the others. Which ones depends on the row alone, so that all models, and
    any number of processes, are asked the same."""

    head = "MaskedLM"

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        texts = rows[self.text_columns[0]]
        numbers = [number for number, text in zip(numbers, texts) if text and text.strip()]
        texts = [text for text in texts if text and text.strip()]
        if not texts:
            return {"input_ids": [], "attention_mask": [], "labels": []}
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"{self.name} needs a tokenizer with a mask token; decoders are for text-generation")
        encoded = self.tokenizer(texts, truncation=True, max_length=self.length, return_special_tokens_mask=True)
        ids, labels = [], []
        for number, tokens, special in zip(numbers, encoded["input_ids"], encoded["special_tokens_mask"]):
            words = np.flatnonzero(np.array(special) == 0)
            generator = np.random.default_rng(number)
            chosen = set(generator.permutation(words)[: max(1, round(0.15 * len(words)))].tolist())
            labels.append([token if place in chosen else IGNORED for place, token in enumerate(tokens)])
            masked = self.tokenizer.mask_token_id
            ids.append([masked if place in chosen else token for place, token in enumerate(tokens)])
        return {"input_ids": ids, "attention_mask": encoded["attention_mask"], "labels": labels}


@register("text-generation")
class TextGeneration(LanguageModel):
    """The next token, in blocks of `length` tokens: texts and chats one after the other, each with an end. Rows that
    end in a line break, as those of a text file do, go on in the next one."""

    head = "CausalLM"
    texts = (*CHATS, *LanguageModel.texts)
    shift = 1
    sums_tokens = True
    packs = True

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        import datasets

        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        self.read(rows)
        if next(self._encoded(rows), None) is None:
            raise ValueError(f"the rows hold no {self.reads} in {', '.join(self.text_columns)}")
        try:
            blocks = datasets.Dataset.from_generator(self._encoded, gen_kwargs={"rows": rows})
        except datasets.exceptions.DatasetGenerationError as error:
            raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None
        return blocks

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        blocks = list(self._blocks(rows[self.text_columns[0]]))
        return {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": [*blocks]}

    def _encoded(self, rows: Any) -> Iterator[dict[str, list[int]]]:
        column = self.text_columns[0]
        cells = (cell for part in rows.select_columns([column]).iter(1000) for cell in part[column])
        for block in self._blocks(cells):
            yield {"input_ids": block, "attention_mask": [1] * len(block), "labels": block}

    def _blocks(self, cells: Iterable[Any]) -> Iterator[list[int]]:
        """All are `length` tokens long but the last."""
        left: list[int] = []
        for tokens in self._tokens(cells):
            left += tokens
            full = len(left) - len(left) % self.length
            yield from (left[start : start + self.length] for start in range(0, full, self.length))
            del left[:full]
        if len(left) > 1:
            yield left

    def _tokens(self, cells: Iterable[Any]) -> Iterator[list[int]]:
        """Of texts and chats, one after the other; of a long text, piece by piece."""
        text, begun = "", False
        for number, cell in enumerate(cells):
            if isinstance(cell, list):
                yield self._of_chat(cell, number)
                continue
            if cell is not None and not isinstance(cell, str):
                raise ValueError(f"{self.place(number, self.text_columns[0])} is no text: {cell!r}")
            if cell and self.text_columns in CHATS:
                raise ValueError(
                    f"{self.place(number, self.text_columns[0])} is text, and the column is for chats, lists of "
                    "messages with a role and a content: decode it first, or give the column another name"
                )
            text += cell or ""
            goes_on = text.endswith("\n")
            if text.strip() and (not goes_on or len(text) > PIECE):
                yield self._of_text(text, begun, not goes_on)
                text, begun = "", goes_on
            elif not goes_on:
                text = ""
        if text.strip():
            yield self._of_text(text, begun, True)

    def _of_text(self, text: str, begun: bool, ends: bool) -> list[int]:
        ids, end = self.tokenizer(text, add_special_tokens=not begun)["input_ids"], self.tokenizer.eos_token_id
        return ids if not ends or end is None or ids[-1:] == [end] else [*ids, end]

    def _of_chat(self, messages: list[Any], number: int) -> list[int]:
        """By the tokenizer's template, which says where a chat ends."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the column {self.text_columns[0]!r} holds chats, and the tokenizer has no template for them: choose "
                "a column of texts by --text_columns, or a tokenizer with a template by --tokenizer"
            )
        messages = [_as_message(each) for each in messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # whatever the template raises
            place = self.place(number, self.text_columns[0])
            raise ValueError(f"{place} is no chat that the tokenizer's template takes: {error}") from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def _as_message(message: Any) -> Any:
    """With a role and a content, where it has the names of ShareGPT."""
    if not isinstance(message, Mapping) or "role" in message or not {"from", "value"} <= set(message):
        return message
    return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
