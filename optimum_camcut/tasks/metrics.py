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
"""What is measured of predictions."""

from __future__ import annotations

import numpy as np


CLASSIFICATION = ("accuracy", "f1", "matthews_correlation")
REGRESSION = ("spearmanr", "pearson", "mse")
# Beside all that ends with one of these words.
SMALLER_IS_BETTER = ("mse", "rmse", "mae", "mape", "smape", "mase", "brier_score", "wer", "cer", "ter", "mahalanobis")
SMALLER_ENDINGS = ("loss", "error", "perplexity")


def larger_is_better(name: str) -> bool:
    """Whether more of a metric is better; of one whose name says nothing of it, this is taken to be so. `Trainer` puts
    the name of a split before it: `eval_mse` is `mse`."""
    name = name.lower().removeprefix("eval_").removeprefix("test_")
    return name not in SMALLER_IS_BETTER and not name.endswith(SMALLER_ENDINGS)


def classification_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """`CLASSIFICATION`: accuracy, F1 (of class 1 of two, else the mean over classes) and Matthews' correlation, of
    class numbers of shape `(examples,)`."""
    size = int(max(predicted.max(initial=0), true.max(initial=0))) + 1
    confusion = np.zeros((size, size))
    np.add.at(confusion, (true, predicted), 1)
    hits, of_true, of_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * hits / np.maximum(of_true + of_predicted, 1)
    count, there = confusion.sum(), of_true + of_predicted > 0
    spread = (count**2 - of_predicted @ of_predicted) * (count**2 - of_true @ of_true)
    matthews = (count * hits.sum() - of_true @ of_predicted) / spread**0.5 if spread > 0 else 0.0
    return {
        "accuracy": float(hits.sum() / max(count, 1)),
        "f1": float(f1[1] if size == 2 else f1[there].mean()),
        "matthews_correlation": float(matthews),
    }


def regression_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """`REGRESSION`: correlations of ranks and of values, 0 where one of both is constant, of shape `(examples,)`."""
    return {
        "spearmanr": _correlation(_ranks(predicted), _ranks(true)),
        "pearson": _correlation(predicted, true),
        "mse": float(np.mean((predicted - true) ** 2)),
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else 0.0
