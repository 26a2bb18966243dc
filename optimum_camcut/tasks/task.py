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
"""`Task`: what a model is loaded as, how rows become its inputs, and what is measured. And the registry of tasks."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..utils.files import nearest, shown
from .metrics import classification_metrics, larger_is_better
from .rows import RowReader


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)

IGNORED = -100  # the label of tokens that no loss counts
Measure = Callable[[Any, Any], dict[str, float]]  # of what was predicted and what is true
TASKS: dict[str, type[Task]] = {}
ALIASES = {
    "speech-recognition": "automatic-speech-recognition",
    "sentence-similarity": "feature-extraction",  # as the Hub calls it of sentence-transformers
    "embeddings": "feature-extraction",
}


def register(name: str) -> Callable[[type[Task]], type[Task]]:
    """Adds a task under the name that the Hub has for it."""

    def add(cls: type[Task]) -> type[Task]:
        if name in TASKS:
            raise ValueError(f"there is a task {name!r} already")
        cls.name, TASKS[name] = name, cls
        return cls

    return add


def get_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        `ValueError`: an unknown name; the message lists the known.
    """
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}{nearest(name, TASKS)}")
    return TASKS[name]


class Task(RowReader):
    """What to do with the rows of a data set: what a model is loaded as, how rows become its inputs, and what is
    measured. The arguments are those of `RowReader`.

    Attributes:
        headline (`str`): the metric to compare models by.
    """

    head: ClassVar[str]  # AutoModelFor...
    other_heads: ClassVar[tuple[str, ...]] = ()  # of models that have no such
    generates: bool = False  # the metrics are of text that the model writes; of a class, that they may be
    takes_language: ClassVar[bool] = False
    language: str | None = None  # that is spoken, where the model is told it
    prompt: str = ""  # before every text, as the model has it
    embeds: ClassVar[bool] = False  # the metrics are of sentence embeddings, which an `Embedder` makes
    max_target: ClassVar[int] = 128  # tokens to write at most
    target_length: int = 128  # the same, as it was asked for
    measured: ClassVar[tuple[str, ...]] = ("accuracy",)  # names of the metrics
    takes_metrics: ClassVar[bool] = False  # those of `evaluate`, too
    # Why a model may be no better than a constant prediction.
    doubt: ClassVar[str] = "its head may be untrained (--dense_epochs), or have been trained on other columns"

    def __init__(
        self,
        rows: Any,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rows, text_columns, label_column, label_names)
        self.headline, self.metric_module = self.metric_names[0], ""
        self.chosen_metric: Measure | None = None  # in place of the task's own
        self.constant: dict[str, float] = {}  # what predicting the same for every row would give, once it was measured
        self.warned = False  # a first model has been compared with that

    @classmethod
    def check_libraries(cls) -> None:
        """Raises `ImportError` if a library is missing that the task needs beside those that are always there."""

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Any:
        """What is kept of a batch's logits until all are measured."""
        return logits

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` gives."""
        return self.measured

    def use_metric(self, name: str) -> None:
        """Compares models by the loss, by one of `metric_names`, or by a metric that `evaluate` loads, which is then
        the only one.

        Args:
            name: `"loss"`, or of the task's own; or a path or a name for `evaluate.load`, with its configuration after
                a colon.

        Raises:
            `ValueError`: not one of the task's own, which takes no other.
        """
        if name in ("loss", *self.metric_names):
            self.headline = name
            return
        if not self.takes_metrics:
            known = (*self.metric_names, "loss")
            raise ValueError(f"{self.name} measures {', '.join(known)}; got {name!r}{nearest(name, known)}")
        import evaluate

        path, _, config = name.partition(":")
        try:
            module = evaluate.load(path, config or None, keep_in_memory=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"the metric {name!r} is none of {', '.join((*self.metric_names, 'loss'))}, nor one that evaluate "
                f"finds{nearest(name, self.metric_names)} ({error})"
            ) from error
        self.metric_module = self.headline = Path(path).stem  # until it is known what it gives

        def measure(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
            found = module.compute(predictions=predicted, references=true)
            found = found if isinstance(found, Mapping) else {self.metric_module: found}  # a few give a number alone
            numbers = {key: float(value) for key, value in found.items() if isinstance(value, Real)}
            if not numbers:
                raise ValueError(f"the metric {name!r} should give numbers by name, it gave {shown(found)}")
            self.headline = next(iter(numbers))
            return numbers

        self.chosen_metric = measure

    @property
    def larger_is_better(self) -> bool:
        """Whether more of `headline` is better. What a metric of `evaluate` gives may have a name that says less than
        its own (`score`, of TER)."""
        return self.prefers_more(self.headline)

    def prefers_more(self, name: str) -> bool:
        """Whether more of a metric is better."""
        return larger_is_better(name) and larger_is_better(self.metric_module)

    def measure(self, predicted: Any, true: Any) -> dict[str, float]:
        """Metrics of the data's class numbers, or of values, of shape `(examples,)`, or of lists of texts: the task's
        own, or the chosen."""
        return (self.chosen_metric or self.own_metrics)(predicted, true)

    def own_metrics(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """Those that `metric_names` names."""
        return classification_metrics(predicted, true)

    @abstractmethod
    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        """What is measured of the predictions.

        Args:
            prediction: of all examples.
            features: what `prepare` gave for `rows`, in the same order.
            rows: as they were read.
        """

    def compute_metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        """`metrics`; what the best constant prediction would give is kept as `constant`."""
        found = self.metrics(prediction, features, rows)
        if not self.constant:
            for each in self.measure_constants(prediction, features, rows):
                for name, value in each.items():
                    best = max if self.prefers_more(name) else min
                    self.constant[name] = best(self.constant.get(name, value), value)
        return found

    @abstractmethod
    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """Metrics of predictions that do not look at the example; the arguments are those of `metrics`."""

    def measure_classes(self, true: np.ndarray, measure: Measure) -> Iterator[dict[str, float]]:
        """Metrics of predicting the same class everywhere, of the ten that are there the most."""
        for number, _ in Counter(true.tolist()).most_common(10):
            yield measure(np.full_like(true, number), true)

    def warn_of_constants(self, found: Mapping[str, float]) -> None:
        """Warns if a model is no better than a constant prediction: by the metric to compare by, or by an error."""
        self.warned = True
        names = {self.metric_names[0] if self.headline == "loss" else self.headline}
        names |= {name for name in self.constant if not self.prefers_more(name)}
        worse = []
        for name in sorted(names & set(self.constant)):
            model, constant = found[name], self.constant[name]
            if not (model > constant if self.prefers_more(name) else model < constant):
                worse.append(f"{name} {model:.4g}, and it gets {constant:.4g}")
        if not worse:
            return
        reasons = self.doubt
        if self.names:
            reasons = (
                "the classes may have other numbers in the model than in the data (--label_names), or its head is "
                "untrained (--dense_epochs)"
            )
        logger.warning(
            "the dense model is no better than one that gives the same answer for every row: %s. What is pruned by it "
            "means little: %s",
            ", ".join(worse),
            reasons,
        )


def first_output(outputs: Any) -> Any:
    """The logits, where a model gives more."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs
