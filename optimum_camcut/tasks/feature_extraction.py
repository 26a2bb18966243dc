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
"""`feature-extraction`: sentence embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics import REGRESSION, regression_metrics
from .rows import MISSING_LABEL
from .task import Task, first_output, register
from .text_classification import TextClassification


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

OLDEST = 6  # sentence-transformers that asks before it runs code of a folder
LONGEST = 2**20  # tokens: tokenizers without a limit have one that is no number of tokens

logger = logging.getLogger(__name__)


@register("feature-extraction")
class FeatureExtraction(Task):
    """Two texts and how alike they are: a number, which the cosine of their embeddings is to be.

    In a batch the two texts of a pair are rows one after the other, each with the label of the pair.
    """

    head, other_heads = "TextEncoding", ("",)  # an encoder alone, where the model has a decoder
    texts = tuple(columns for columns in TextClassification.texts if len(columns) == 2)
    labels = ("score", "similarity", "similarity_score", "label", "labels", "target")
    measured = REGRESSION
    takes_metrics = True
    embeds = True
    joins_texts = False
    doubt = (
        "its labels may say how far apart the texts are, and not how alike, or it was not trained on sentences "
        "(--dense_epochs)"
    )

    @classmethod
    def check_libraries(cls) -> None:
        try:
            found = version("sentence-transformers")
        except PackageNotFoundError:
            found = "none"
        if found == "none" or int(found.partition(".")[0]) < OLDEST:
            raise ImportError(
                f"{cls.name} needs sentence-transformers {OLDEST} or later, and there is {found}; install it with: "
                "pip install optimum-camcut[embeddings]"
            )

    @classmethod
    def choose_texts(cls, columns: Sequence[str], given: tuple[str, ...]) -> tuple[str, ...]:
        if given and len(given) != 2:
            raise ValueError(f"{cls.name} compares two texts, whose columns are named; got {', '.join(given)}")
        return super().choose_texts(columns, given)

    def find_classes(self) -> None:
        """Finds out the range of the labels of the training rows."""
        super().find_classes()
        classes = list(getattr(self.rows.features[self.label_column], "names", None) or ())
        if len(classes) > 2:
            raise ValueError(
                f"{self.name} wants numbers, more where the texts are more alike, and {self.label_column!r} has "
                f"classes ({', '.join(classes[:20])}): name another column by --label_column, or make numbers of them"
            )
        if classes:
            logger.info(
                "labels, by the number of the class: %s", ", ".join(f"{n} is {i}" for i, n in enumerate(classes))
            )
        values = [self._to_number(value, row) for row, value in enumerate(self.rows[self.label_column])]
        low, high = min(values), max(values)
        if low == high:
            raise ValueError(
                f"all labels in {self.label_column!r} are {low:g}, which tells no texts that are alike from others: "
                "give rows of both kinds"
            )
        self.offset, self.scale = 0.0, 1.0
        if low < -1 or high > 1:
            self.offset, self.scale = low, high - low
            logger.info("labels are scaled to 0 to 1: they go from %g to %g in the training rows", low, high)

    def _to_number(self, value: Any, row: int) -> float:
        if not isinstance(value, Real) or not np.isfinite(float(value)):
            missing = MISSING_LABEL if value is None else "name the column of the similarities by --label_column"
            raise ValueError(
                f"{self.place(row, self.label_column)} should have a number, more where the texts are more alike; it "
                f"has {value!r}: {missing}"
            )
        return float(value)

    def fit_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        from ..planning.measure import longest_input

        own = min(tokenizer.model_max_length, LONGEST)
        super().fit_to(model, tokenizer, max_length or own)
        if max_length is not None:
            self.length = longest_input(model, max_length)
            if self.length != own:
                logger.info(
                    "texts are cut to %d tokens (--max_length), those of the model itself to %d", self.length, own
                )
        if self.prompt:
            logger.info("every text gets %r before it, which is the model's default prompt", self.prompt)

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        self.check_texts(rows, numbers, self.text_columns)
        pairs = zip(*(rows[column] for column in self.text_columns))
        texts = [self.prompt + text for pair in pairs for text in pair]
        flat = self.tokenizer(texts, truncation=True, max_length=self.length)
        features = {name: [values[i : i + 2] for i in range(0, len(values), 2)] for name, values in flat.items()}
        labels = map(self._to_number, rows[self.label_column], numbers)
        return {**features, "labels": [(label - self.offset) / self.scale for label in labels]}

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return self.collate

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        """A batch of encoded pairs, of two rows each."""
        import torch

        names = [name for name in examples[0] if name != "labels"]
        rows = [{name: pair[name][place] for name in names} for pair in examples for place in range(2)]
        labels = torch.tensor([pair["labels"] for pair in examples], dtype=torch.float32)
        return {**self.tokenizer.pad(rows, return_tensors="pt"), "labels": labels.repeat_interleave(2)}

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        return self.measure(first_output(prediction.predictions).reshape(-1), prediction.label_ids.reshape(-1))

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """No correlation. Not the error: cosines rank pairs well and are far from the labels where a model was trained
        by another loss, as most are."""
        yield {"spearmanr": 0.0, "pearson": 0.0}

    def own_metrics(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        return regression_metrics(predicted, true)
