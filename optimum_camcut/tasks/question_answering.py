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
"""`question-answering`."""

from __future__ import annotations

import copy
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .task import Task, register


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction


@register("question-answering")
class QuestionAnswering(Task):
    """The answer as a span of the context, as in SQuAD; long contexts are read in overlapping windows."""

    head = "QuestionAnswering"
    texts = (("question", "context"),)
    labels = ("answers", "answer")
    measured = ("f1", "exact_match")
    max_length = 384
    by_place = True
    LONGEST = 30  # tokens of an answer

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Pads at the end, whatever the tokenizer does by itself: answers are told by their place in the window."""
        from transformers import DataCollatorWithPadding

        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.padding_side = "right"
        return DataCollatorWithPadding(tokenizer)

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        self.check_texts(rows, numbers, self.text_columns)
        for number, answers in zip(numbers, rows[self.label_column]):
            if answers is None:
                raise ValueError(f"{self.place(number, self.label_column)} has no answers, not even an empty list")
        questions, contexts = (rows[column] for column in self.text_columns)
        encoded = self.tokenizer(
            [question.lstrip() for question in questions],  # some of SQuAD begin with spaces that fill the window
            contexts,
            truncation="only_second",
            max_length=self.length,
            stride=self.length // 4,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        features = {name: encoded[name] for name in self.tokenizer.model_input_names if name in encoded}
        features |= {"start_positions": [], "end_positions": [], "offsets": [], "row": []}
        for window, (row, offsets) in enumerate(zip(encoded["overflow_to_sample_mapping"], encoded["offset_mapping"])):
            parts = encoded.sequence_ids(window)
            spans = [list(span) if part == 1 else [-1, -1] for span, part in zip(offsets, parts)]
            answers = _answers(rows[self.label_column][row])
            start = end = 0  # where there is no answer
            if answers["text"]:
                first = answers["answer_start"][0]
                last = first + len(answers["text"][0])
                starts = [token for token, span in enumerate(spans) if span[0] <= first < span[1]]
                ends = [token for token, span in enumerate(spans) if span[0] < last <= span[1]]
                if starts and ends:
                    start, end = starts[0], ends[-1]
            features["start_positions"].append(start)
            features["end_positions"].append(end)
            features["offsets"].append(spans)
            features["row"].append(numbers[row])
        return features

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        best: dict[int, tuple[float, str]] = {}
        contexts, answers = rows[self.text_columns[1]], list(map(_answers, rows[self.label_column]))
        may_be_none = any(not each["text"] for each in answers)
        for start, end, spans, row in zip(*prediction.predictions[:2], features["offsets"], features["row"]):
            score, text = self._best_span(start[: len(spans)], end[: len(spans)], spans, contexts[row])
            nothing = float(start[0] + end[0])
            if may_be_none and nothing >= score:
                score, text = nothing - 1e4, ""  # another window may have it
            if row not in best or score > best[row][0]:
                best[row] = score, text
        return _measure({row: text for row, (_, text) in best.items()}, answers)

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """Of no answer, and of the words that the context begins with."""
        contexts, answers = rows[self.text_columns[1]], list(map(_answers, rows[self.label_column]))
        for count in (0, 1, 3, 10):
            yield _measure({row: " ".join(contexts[row].split()[:count]) for row in set(features["row"])}, answers)

    def _best_span(
        self, start: np.ndarray, end: np.ndarray, spans: list[list[int]], context: str
    ) -> tuple[float, str]:
        """The likeliest span of a window that is no longer than `LONGEST`, as its score and its text."""
        inside = np.array([span[0] >= 0 for span in spans])
        ahead = np.arange(len(spans)) - np.arange(len(spans))[:, None]
        allowed = inside[:, None] & inside & (ahead >= 0) & (ahead < self.LONGEST)
        scores = np.where(allowed, start[:, None] + end, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        return float(scores[first, last]), context[spans[first][0] : spans[last][1]]


def _measure(texts: Mapping[int, str], answers: list[Mapping[str, list[Any]]]) -> dict[str, float]:
    """F1 and exact match of answers by their row, as SQuAD has them."""
    exact, f1 = [], []
    for row, text in texts.items():
        expected = answers[row]["text"] or [""]
        exact.append(max(_words(text) == _words(each) for each in expected))
        f1.append(max(_overlap(_words(text), _words(each)) for each in expected))
    return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}


def _answers(value: Any) -> Mapping[str, list[Any]]:
    """Texts of the answers and where they start, which some files have as a list of both."""
    if isinstance(value, Mapping):
        return value
    return {name: [answer[name] for answer in value] for name in ("text", "answer_start")}


def _words(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, no punctuation, no articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(predicted: list[str], true: list[str]) -> float:
    """F1 of the words of two texts."""
    same = sum((Counter(predicted) & Counter(true)).values())
    return 2 * same / (len(predicted) + len(true)) if same else float(predicted == true)
