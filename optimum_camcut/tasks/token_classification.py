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
"""`token-classification`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from .metrics import CLASSIFICATION, classification_metrics
from .task import IGNORED, Task, first_output, register


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction


@register("token-classification")
class TokenClassification(Task):
    """Words with a class each, told by their first token."""

    head = "TokenClassification"
    texts = (("tokens",), ("words",))
    labels = ("ner_tags", "tags", "labels", "label", "pos_tags")
    measured = CLASSIFICATION
    by_place = True

    def find_classes(self) -> None:
        feature = self.rows.features[self.label_column]
        feature = getattr(feature, "feature", feature)
        self._set_classes(feature, chain.from_iterable(each or () for each in self.rows[self.label_column]))

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        self.check_texts(rows, numbers, self.text_columns)
        words = rows[self.text_columns[0]]
        for row, own, classes in zip(numbers, words, rows[self.label_column]):
            if len(own) != len(classes or ()):
                raise ValueError(
                    f"{self.place(row, self.label_column)} has {len(classes or ())} classes for {len(own)} words in "
                    f"{self.text_columns[0]!r}"
                )
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.length)
        labels = []
        for number, classes in enumerate(rows[self.label_column]):
            of_words = encoded.word_ids(number)
            firsts = [word is not None and word != before for before, word in zip([None, *of_words], of_words)]
            labels.append(
                [
                    self.to_class(classes[word], numbers[number]) if first else IGNORED
                    for first, word in zip(firsts, of_words)
                ]
            )
        return {**encoded, "labels": labels}

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(self.tokenizer)

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Tensor:
        return first_output(logits).argmax(-1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        counted = prediction.label_ids != IGNORED
        predicted, true = prediction.predictions[counted], prediction.label_ids[counted]
        return classification_metrics(self.of_data[predicted], self.of_data[true])

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        true = self.of_data[prediction.label_ids[prediction.label_ids != IGNORED]]
        yield from self.measure_classes(true, classification_metrics)
