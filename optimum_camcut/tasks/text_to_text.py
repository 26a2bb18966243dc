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
"""`summarization` and `translation`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .generation import CUT, decoded, padded, references, tell_cut
from .languages import code_of, language_codes, set_languages, unknown_language
from .task import Task, first_output, register
from .text_metrics import chrf, rouge


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class TextToText(Task):
    """A text and the one to write for it, by an encoder-decoder model.

    Attributes:
        prefix (`str`): before every text, as the model's config has it for the task.
    """

    head = "Seq2SeqLM"
    takes_metrics = True
    generates = True
    max_length = 512

    @classmethod
    def choose_texts(cls, columns: Sequence[str], given: tuple[str, ...]) -> tuple[str, ...]:
        if len(given) > 1:
            raise ValueError(f"{cls.name} reads one text, not {', '.join(given)}")
        return super().choose_texts(columns, given)

    def fit_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        super().fit_to(model, tokenizer, max_length)
        positions = getattr(model.config, "max_position_embeddings", None)
        self.target_length = min(self.target_length, positions or self.target_length)
        self.prefix = self._prefix(getattr(model.config, "task_specific_params", None) or {})
        if self.prefix:
            logger.info("every text gets %r before it, as the model's config says", self.prefix)
        codes = language_codes(tokenizer)
        if codes:
            set_languages(model, tokenizer, *self._languages(codes))

    def _languages(self, codes: dict[str, str]) -> tuple[str, str]:
        """The tokenizer's codes for the languages of the texts to read and of those to write."""
        return self.tokenizer.src_lang, self.tokenizer.tgt_lang or self.tokenizer.src_lang

    def _prefix(self, parameters: Mapping[str, Any]) -> str:
        return (parameters.get(self.name) or {}).get("prefix", "")

    def pairs(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> tuple[list[str], list[str]]:
        """The texts to read, and those to write."""
        columns = (*self.text_columns, self.label_column)
        self.check_texts(rows, numbers, columns)
        texts, targets = (rows[column] for column in columns)
        return texts, targets

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        texts, targets = self.pairs(rows, numbers)
        features = dict(
            self.tokenizer([self.prefix + text for text in texts], truncation=True, max_length=self.length)
        )
        labels = self._labels(targets, self.target_length + 1)
        cut = [len(ids) > self.target_length for ids in labels]
        return {**features, "labels": self._labels(targets, self.target_length) if any(cut) else labels, CUT: cut}

    def _labels(self, targets: list[str], length: int) -> list[list[int]]:
        return self.tokenizer(text_target=targets, truncation=True, max_length=length)["input_ids"]

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        encoded = super().prepare(rows, limit)
        tell_cut(sum(encoded[CUT]), len(encoded), self.target_length)
        return encoded.remove_columns(CUT)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return self.collate

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        """A batch of encoded examples."""
        inputs = [{name: value for name, value in each.items() if name != "labels"} for each in examples]
        batch = self.tokenizer.pad(inputs, return_tensors="pt")
        return {**batch, "labels": padded([each["labels"] for each in examples])}

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        predicted = decoded(self.tokenizer, first_output(prediction.predictions))
        return self.measure(predicted, self._true(prediction, features, rows))

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """The first of the references for every row."""
        true = self._true(prediction, features, rows)
        yield self.measure(true[:1] * len(true), true)

    def _true(self, prediction: EvalPrediction, features: Any, rows: Any) -> list[str]:
        numbers = list(range(len(features)))
        columns = list(dict.fromkeys((*self.text_columns, self.label_column)))
        return references(self.pairs(rows.select_columns(columns).select(numbers)[:], numbers)[1], prediction)


@register("summarization")
class Summarization(TextToText):
    """A text and its summary."""

    texts = (("document",), ("article",), ("dialogue",), ("text",), ("content",))
    labels = ("summary", "highlights", "target", "headline", "title")
    measured = ("rougeL", "rouge1", "rouge2")

    def own_metrics(self, predicted: Any, true: Any) -> dict[str, float]:
        return rouge(predicted, true)


@register("translation")
class Translation(TextToText):
    """Two columns, or one of pairs by language, as `{"en": ..., "fr": ...}`: from the first into the second."""

    texts = (("translation",), ("source",), ("text",), ("sentence",))
    labels = ("translation", "target", "label")
    measured = ("chrf",)

    def find_classes(self) -> None:
        super().find_classes()
        feature = self.rows.features[self.text_columns[0]]
        self.languages = list(feature) if isinstance(feature, dict) else list(getattr(feature, "languages", ()))
        if not self.languages:
            if self.text_columns == (self.label_column,):
                raise ValueError(
                    f"the column {self.label_column!r} should have pairs of texts by language; or name two columns by "
                    "--text_columns and --label_column"
                )
            return
        if len(self.languages) != 2 or self.text_columns != (self.label_column,):
            raise ValueError(f"{self.text_columns[0]!r} should have texts in two languages; it has {self.languages}")
        logger.info("translating %s into %s", *self.languages)

    def _prefix(self, parameters: Mapping[str, Any]) -> str:
        direction = "_to_".join(self.languages)  # T5 has translation_en_to_fr, say
        return super()._prefix({self.name: parameters.get(f"{self.name}_{direction}")})

    def _languages(self, codes: dict[str, str]) -> tuple[str, str]:
        source, target = self.languages or (self.text_columns[0], self.label_column)
        found = code_of(source, codes), code_of(target, codes)
        if not self.languages and None in found and self.tokenizer.tgt_lang:  # two columns of whatever name
            return self.tokenizer.src_lang, self.tokenizer.tgt_lang
        for name, code in zip((source, target), found):
            if code is None:
                raise unknown_language(name, codes)
        return found  # type: ignore[return-value]

    def pairs(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> tuple[list[str], list[str]]:
        if not self.languages:
            return super().pairs(rows, numbers)
        both: dict[str, list[Any]] = {
            name: [(cell or {}).get(name) for cell in rows[self.label_column]] for name in self.languages
        }
        self.check_texts(both, numbers, self.languages)
        texts, targets = both.values()
        return texts, targets

    def own_metrics(self, predicted: Any, true: Any) -> dict[str, float]:
        return chrf(predicted, true)
