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


class LanguageModel(Task):
    """Text alone; the tokens are the labels."""

    texts = (("text",), ("sentence",), ("content",))
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
    """The next token, in blocks of the texts one after the other."""

    head = "CausalLM"
    shift = 1
    sums_tokens = True

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        end = self.tokenizer.eos_token_id
        texts = [text for text in rows[self.text_columns[0]] if text and text.strip()]
        tokens: list[int] = []
        for ids in self.tokenizer(texts)["input_ids"] if texts else ():
            tokens += ids if end is None or ids[-1:] == [end] else [*ids, end]
        blocks = [tokens[start : start + self.length] for start in range(0, len(tokens), self.length)]
        blocks = [block for block in blocks if len(block) > 1]
        return {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": [*blocks]}
