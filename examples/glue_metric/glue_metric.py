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
"""The metrics of GLUE (Wang et al. 2018), with the results of the Hub's `glue` metric but no Hub.

Load it by path, with the task as configuration: `evaluate.load("examples/glue_metric", "mrpc")`.
"""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef


_CITATION = """\
@inproceedings{wang2018glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={Proceedings of the EMNLP Workshop BlackboxNLP},
  year={2018}
}
"""
_DESCRIPTION = "The metric of each GLUE task; the configuration is the task's name."
_INPUTS_DESCRIPTION = """\
Args:
    predictions: predicted class of each example (stsb: predicted similarity).
    references: true class of each example (stsb: true similarity).
Returns:
    cola: "matthews_correlation"; stsb: "pearson", "spearmanr"; mrpc and qqp: "accuracy", "f1"; others: "accuracy".
"""


def accuracy(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"accuracy": float((predictions == references).mean())}


def accuracy_and_f1(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return accuracy(predictions, references) | {"f1": float(f1_score(y_true=references, y_pred=predictions))}


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def correlations(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    return {
        "pearson": float(pearsonr(predictions, references)[0]),
        "spearmanr": float(spearmanr(predictions, references)[0]),
    }


METRICS = {
    "cola": matthews_correlation,
    "mnli": accuracy,
    "mnli_matched": accuracy,
    "mnli_mismatched": accuracy,
    "mrpc": accuracy_and_f1,
    "qnli": accuracy,
    "qqp": accuracy_and_f1,
    "rte": accuracy,
    "sst2": accuracy,
    "stsb": correlations,
    "wnli": accuracy,
}


class Glue(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise ValueError(f"Unknown GLUE task {self.config_name!r}; choose one of {', '.join(METRICS)}.")
        value = datasets.Value("float32" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return METRICS[self.config_name](predictions, references)
