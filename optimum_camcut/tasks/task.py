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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..files import shown
from ..measure import longest_input
from .metrics import classification_metrics, larger_is_better


IGNORED = -100  # the label of tokens that no loss counts
TASKS: dict[str, type[Task]] = {}


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
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return TASKS[name]


class Task(ABC):
    """What to do with the rows of a data set.

    Args:
        rows (`datasets.Dataset`): the training rows, whose columns and classes count.
        text_columns (`Sequence[str]`, *optional*): the columns to read. Default: those of a usual name.
        label_column (`str`, *optional*): likewise.

    Raises:
        `ValueError`: no such columns; the message lists those there are.

    Attributes:
        names (`list[str]`): the classes of the data, in their order there; empty if there are none.
        headline (`str`): the metric to compare models by.
    """

    name: ClassVar[str]
    head: ClassVar[str]  # AutoModelFor...
    texts: ClassVar[tuple[tuple[str, ...], ...]]  # usual names of the columns to read, the likeliest first
    labels: ClassVar[tuple[str, ...]] = ("label", "labels", "target")
    measured: ClassVar[tuple[str, ...]] = ("accuracy",)  # names of the metrics
    takes_metrics: ClassVar[bool] = False  # those of `evaluate`, too
    by_place: ClassVar[bool] = False  # it asks the tokenizer where a token is in the text
    max_length: ClassVar[int] = 128
    # A loss that is a mean over examples. Trainer takes what accepts keywords for a sum over tokens, and would
    # multiply it by the numbers of processes and of accumulation steps.
    sums_tokens: ClassVar[bool] = False
    preprocess_logits: ClassVar[Callable[[Any, Tensor], Any] | None] = None

    def __init__(self, rows: Any, text_columns: Sequence[str] | None = None, label_column: str | None = None) -> None:
        self.rows, self.numbered = rows, False
        self.split = str(rows.split) if rows.split else None
        self.text_columns = self.choose_texts(tuple(text_columns or ()))
        self.label_column = self._choose("label", (label_column,) if label_column else (), [(n,) for n in self.labels])
        self.label_column = self.label_column[0] if self.label_column else None
        self.find_classes()
        self.headline, self.metric_module = self.metric_names[0], ""

    def choose_texts(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """The columns to read."""
        return self._choose("text", given, self.texts)

    def _choose(self, what: str, given: tuple[str, ...], guesses: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        columns = self.rows.column_names
        for names in [given] if given else guesses:
            if set(names) <= set(columns):
                return names
        problem = (
            f"there is no column {', '.join(sorted(set(given) - set(columns)))}"
            if given
            else (f"no {what} column of a usual name was found")
        )
        raise ValueError(
            f"{problem}; the columns are {', '.join(columns)}; choose by --{what}_column{'s' * (what == 'text')}"
        )

    def find_classes(self) -> None:
        """Sets `names`."""
        self.names: list[str] = []

    def _set_classes(self, feature: Any, values: Iterable[Any]) -> None:
        """Names of the classes as the data have them: of a `ClassLabel`, as texts, or mere numbers."""
        if getattr(feature, "names", None):
            self.names = list(feature.names)
            return
        found = set(values) - {None}  # which `encode` tells, with its row
        if not found:
            raise ValueError(f"the column {self.label_column!r} has no labels")
        self.numbered = all(isinstance(value, int) for value in found)
        if self.numbered:
            if min(found) < 0:
                raise ValueError(f"the labels in {self.label_column!r} should be 0 or more; found {min(found)}")
            self.names = [f"LABEL_{number}" for number in range(max(found) + 1)]
        elif all(isinstance(value, str) for value in found):
            self.names = sorted(found)
        else:
            raise ValueError(f"the labels in {self.label_column!r} should be numbers or names; found {shown(found)}")

    def set_head(self, config: PretrainedConfig) -> None:
        """Tells a model that gets a new head what it is to tell apart."""
        if self.names:
            config.id2label = dict(enumerate(self.names))
            config.label2id = {name: number for number, name in enumerate(self.names)}

    def check_head(self, config: PretrainedConfig) -> None:
        """Raises `ValueError` if a model's head does not fit the data."""
        if self.names and self.numbered and len(self.names) < config.num_labels:
            self.names = [f"LABEL_{number}" for number in range(config.num_labels)]
        if self.names and len(self.names) != config.num_labels:
            raise ValueError(
                f"the model tells {config.num_labels} classes apart ({', '.join(config.id2label.values())}), and the "
                f"data have {len(self.names)} in {self.label_column!r} ({', '.join(self.names)})"
            )

    def fit_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        """Reads the rows as a model and its tokenizer want them. Classes keep the model's own numbers if they have
        its names.

        Raises:
            `ValueError`: the tokenizer does not know where a token is in the text, which the task needs; or so few
                tokens that no text fits.
        """
        if self.by_place and not tokenizer.is_fast:
            raise ValueError(f"{self.name} needs a fast tokenizer, which tells where a token is in the text")
        config = model.config
        model.accepts_loss_kwargs = self.sums_tokens
        self.tokenizer = tokenizer
        self.length = longest_input(model, min(max_length or self.max_length, tokenizer.model_max_length))
        special = tokenizer.num_special_tokens_to_add(pair=len(self.text_columns) > 1)
        if self.length <= special:
            raise ValueError(
                f"an input of {self.length} tokens (--max_length) has no room beside {special} special ones"
            )
        self.of_model = np.arange(len(self.names))  # class of the data -> class of the model
        if self.names:
            own = [config.id2label[number].lower() for number in range(config.num_labels)]
            names = [name.lower() for name in self.names]
            if sorted(own) == sorted(names):
                self.of_model = np.array([own.index(name) for name in names])
        self.of_data = np.argsort(self.of_model)

    def to_class(self, value: Any, row: int) -> int:
        """The model's number of a class of the data, in a row.

        Raises:
            `ValueError`: there is none, or it is not among the classes of the training rows.
        """
        if value is None:
            raise ValueError(f"{self.place(row, self.label_column)} has no label")
        known = range(len(self.names)) if isinstance(value, int) else self.names
        if value not in known:
            classes = f"0 to {len(known) - 1}" if isinstance(value, int) else ", ".join(known)
            raise ValueError(
                f"{self.place(row, self.label_column)} has the label {value!r}; the classes of the training rows are "
                f"{classes}"
            )
        return int(self.of_model[known.index(value)])  # True is 1

    def place(self, row: int, column: str) -> str:
        """A cell of the split that is read, to be told of."""
        return f"row {row} (from 0) of {self.split or 'the data'}, column {column!r},"

    def check_texts(self, rows: Mapping[str, list], numbers: Sequence[int], columns: Sequence[str]) -> None:
        """Raises `ValueError` if a cell of these columns, or an item of one that is a list, is no text."""
        for column in columns:
            for number, cell in zip(numbers, rows[column]):
                texts = cell["text"] if isinstance(cell, Mapping) else cell
                if not all(isinstance(text, str) for text in (texts if isinstance(texts, list) else [texts])):
                    raise ValueError(f"{self.place(number, column)} should have text, it has {shown(cell)}")

    @abstractmethod
    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        """What the model reads: columns of `rows` in, columns of its inputs and labels out."""

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        """Encodes a split, or its first rows."""
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        self.split = str(rows.split) if rows.split else None
        encoded = rows.map(
            self.encode, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Tokenizing"
        )
        if not len(encoded):
            raise ValueError(f"the rows hold no text in {', '.join(self.text_columns)}")
        return encoded

    @property
    def collator(self) -> Callable[[list], dict[str, Tensor]]:
        """Makes batches of examples."""
        return DataCollatorWithPadding(self.tokenizer)

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
            raise ValueError(f"{self.name} measures {', '.join((*self.metric_names, 'loss'))}; got {name!r}")
        import evaluate

        path, _, config = name.partition(":")
        try:
            module = evaluate.load(path, config or None, keep_in_memory=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"the metric {name!r} is none of {', '.join((*self.metric_names, 'loss'))}, nor one that evaluate "
                f"finds: {error}"
            ) from error
        self.metric_module = Path(path).stem

        def measure(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
            found = module.compute(predictions=predicted, references=true)
            found = found if isinstance(found, Mapping) else {self.metric_module: found}  # a few give a number alone
            numbers = {key: float(value) for key, value in found.items() if isinstance(value, Real)}
            if not numbers:
                raise ValueError(f"the metric {name!r} should give numbers by name, it gave {shown(found)}")
            self.headline = next(iter(numbers))
            return numbers

        self.measure = measure

    @property
    def larger_is_better(self) -> bool:
        """Whether more of `headline` is better. What a metric of `evaluate` gives may have a name that says less than
        its own (`score`, of TER)."""
        return larger_is_better(self.headline) and larger_is_better(self.metric_module)

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """Metrics of the data's class numbers, or of values, of shape `(examples,)`."""
        return classification_metrics(predicted, true)

    @abstractmethod
    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        """What is measured of the predictions.

        Args:
            prediction: of all examples.
            features: what `prepare` gave for `rows`, in the same order.
            rows: as they were read.
        """


def first_output(outputs: Any) -> Any:
    """The logits, where a model gives more."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs
