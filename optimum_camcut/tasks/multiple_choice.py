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
"""`multiple-choice`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .task import Task, first_output, register


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction


@register("multiple-choice")
class MultipleChoice(Task):
    """A context and its endings, in columns of their own (`context ending0 ending1 ...`) or in one column of lists
    (`question choices`). A second column of the context, as in SWAG, begins every ending."""

    head = "MultipleChoice"
    texts = (("question", "choices"), ("question", "options"), ("context", "endings"))
    labels = ("label", "labels", "answer", "answerKey", "target")
    takes_metrics = True
    choices = 0  # of every row, once one was read

    @classmethod
    def choose_texts(cls, columns: Sequence[str], given: tuple[str, ...]) -> tuple[str, ...]:
        endings = sorted(name for name in columns if re.fullmatch(r"(ending|choice|option)_?\d", name))
        if not given and len(endings) > 1:
            for before in (("sent1", "sent2"), ("ctx",), ("context",), ("question",), ("sentence",), ("text",)):
                if set(before) <= set(columns):
                    return (*before, *endings)
        chosen = super().choose_texts(columns, given)
        if len(chosen) < 2:
            raise ValueError(f"{cls.name} reads a context and its choices, not {', '.join(chosen)} alone")
        return chosen

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        first, *others = self.text_columns
        self.check_texts(rows, numbers, self.text_columns)
        begins = rows[others.pop(0)] if others[0] == "sent2" else None
        choices, labels = [], list(rows[self.label_column])
        for number in range(len(numbers)):
            each = [rows[column][number] for column in others]
            each = each[0] if len(others) == 1 else each
            if isinstance(each, Mapping):  # as in ARC, beside their letters or numbers
                names = list(map(str, each.get("label") or ()))
                labels[number] = names.index(str(labels[number])) if str(labels[number]) in names else labels[number]
                each = each["text"]
            self.choices = self.choices or len(each)
            if len(each) != self.choices:
                raise ValueError(
                    f"{self.place(numbers[number], others[0])} has {len(each)} choices, and those before have "
                    f"{self.choices}: every row should have as many; leave the others out of the data"
                )
            choices.append([f"{begins[number]} {text}" if begins else text for text in each])
        contexts = [context for context, each in zip(rows[first], choices) for _ in each]
        flat = self.tokenizer(contexts, list(chain(*choices)), truncation=True, max_length=self.length)
        size = len(choices[0])
        features = {key: [v[i : i + size] for i in range(0, len(v), size)] for key, v in flat.items()}
        features["labels"] = [self._number(*each, size) for each in zip(labels, numbers)]
        return features

    def _number(self, value: Any, row: int, size: int) -> int:
        letter = isinstance(value, str) and len(value) == 1 and value.isalpha()
        try:
            number = ord(value.upper()) - ord("A") if letter else int(value)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < size:
            raise ValueError(
                f"{self.place(row, self.label_column)} has the label {value!r}; expected a number from 0 to "
                f"{size - 1} or a letter"
            )
        return number

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        from transformers import DataCollatorForMultipleChoice

        return DataCollatorForMultipleChoice(self.tokenizer)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        return self.measure(first_output(prediction.predictions).argmax(-1), prediction.label_ids)

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        yield from self.measure_classes(prediction.label_ids, self.measure)

    def own_metrics(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((predicted == true).mean())}
