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
"""`text-classification`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics import CLASSIFICATION, REGRESSION, regression_metrics
from .rows import MISSING_LABEL
from .task import Task, first_output, register


if TYPE_CHECKING:
    from transformers import EvalPrediction, PretrainedConfig


@register("text-classification")
class TextClassification(Task):
    """One text or two; classes, or numbers to predict."""

    head = "SequenceClassification"
    texts = (
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("text1", "text2"),
        ("sentence",),
        ("text",),
        ("content",),
        ("review",),
    )
    labels = ("label", "labels", "target", "score")
    measured = CLASSIFICATION
    takes_metrics = True

    @classmethod
    def choose_texts(cls, columns: Sequence[str], given: tuple[str, ...]) -> tuple[str, ...]:
        if len(given) > 2:
            raise ValueError(f"{cls.name} reads one text or two, not {', '.join(given)}")
        return super().choose_texts(columns, given)

    def find_classes(self) -> None:
        feature = self.rows.features[self.label_column]
        self.regression = str(getattr(feature, "dtype", "")).startswith(("float", "double"))
        if self.regression:
            self.names = []
            for number, value in enumerate(self.rows[self.label_column]):  # fails at what is no number
                self._to_number(value, number)
        else:
            self._set_classes(feature, self.rows.unique(self.label_column))

    @property
    def metric_names(self) -> tuple[str, ...]:
        return REGRESSION if self.regression else super().metric_names

    def set_head(self, config: PretrainedConfig) -> None:
        super().set_head(config)
        if self.regression:
            config.num_labels, config.problem_type = 1, "regression"

    def check_head(self, config: PretrainedConfig) -> None:
        if (
            config.num_labels == 1 and self.numbered and not self.label_names
        ):  # numbers to predict that happen to be whole
            self.regression, self.names = True, []
            self.headline = self.metric_names[0]
        if self.regression and config.num_labels != 1:
            raise ValueError(
                f"the labels in {self.label_column!r} are numbers to predict, and the model tells "
                f"{config.num_labels} classes apart"
            )
        super().check_head(config)

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        self.check_texts(rows, numbers, self.text_columns)
        texts = [rows[column] for column in self.text_columns]
        features = dict(self.tokenizer(*texts, truncation=True, max_length=self.length))
        to_label = self._to_number if self.regression else self.to_class
        features["labels"] = list(map(to_label, rows[self.label_column], numbers))
        return features

    def _to_number(self, value: Any, row: int) -> float:
        if value is None or not np.isfinite(value):
            raise ValueError(
                f"{self.place(row, self.label_column)} should have a label, it has {value}: {MISSING_LABEL}"
            )
        return float(value)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        logits = first_output(prediction.predictions)
        predicted = logits.reshape(-1) if self.regression else self.of_data[logits.argmax(-1)]
        return self.measure(predicted, self._true(prediction))

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        true = self._true(prediction)
        if self.regression:
            yield self.measure(np.full_like(true, true.mean()), true)
        else:
            yield from self.measure_classes(true, self.measure)

    def _true(self, prediction: EvalPrediction) -> np.ndarray:
        return prediction.label_ids.reshape(-1) if self.regression else self.of_data[prediction.label_ids]

    def own_metrics(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        return regression_metrics(predicted, true) if self.regression else super().own_metrics(predicted, true)
