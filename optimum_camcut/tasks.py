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
"""Tasks of the command line: for each, the class that a model is loaded as, what its data look like, and what is
measured. A task is one class and one registration."""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .checkpoint import load_pruned
from .files import shown
from .modeling_camcut import is_cut
from .plan import PLAN_NAME
from .stored import find, load_config


logger = logging.getLogger(__name__)

IGNORED = -100  # the label of tokens that no loss counts
TASKS: dict[str, type[Task]] = {}
EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "valid", "val", "eval", "test")
SMALLER_IS_BETTER = ("loss", "mse", "perplexity")
FORMATS = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "json"}


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


# --- data -----------------------------------------------------------------------------------------------------------


def load_data(name: str, config: str | None = None) -> Any:
    """Reads a data set, with its splits.

    Args:
        name: a folder with files named by split (`train.parquet`, `validation-00000-of-00002.csv`, `test.jsonl`), or
            one that `save_to_disk` of `datasets` wrote; or a Hub id, also with its configuration
            (`"nyu-mll/glue:sst2"`).
        config: the configuration on the Hub.

    Returns:
        `datasets.DatasetDict`.

    Raises:
        `ValueError`: the folder holds nothing of the kind, or a file cannot be read.
        `FileNotFoundError`: there is no such folder, or nothing of that name on the Hub.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if Path(name).is_dir():
            return _load_folder(Path(name))
        if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {name} to read data from (and it cannot be a Hub id)")
        name, _, own = name.partition(":")
        return datasets.load_dataset(name, config or own or None)
    except DatasetsError as error:
        reason = error.__cause__ or error
        raise ValueError(f"the data of {name} cannot be read: {reason}") from error


def _load_folder(folder: Path) -> Any:
    import datasets

    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        saved = datasets.load_from_disk(str(folder))
        return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
    files: dict[str, list[str]] = {}
    extensions = set()
    for path in sorted(folder.iterdir()):
        extension = path.suffix.lstrip(".")
        if extension in FORMATS:
            files.setdefault(path.stem.partition("-")[0], []).append(str(path))
            extensions.add(FORMATS[extension])
    if len(extensions) != 1:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise ValueError(
            f"{folder} should hold files of one kind, named by split, such as train.parquet and validation.parquet "
            f"(or .csv, .json, .jsonl), or what save_to_disk wrote; found {found}"
        )
    return datasets.load_dataset(extensions.pop(), data_files=files)


def choose_split(data: Mapping[str, Any], name: str | None, guesses: Sequence[str], purpose: str) -> str:
    """The name of the split for a purpose: the one that was given, or else the first of the guesses that there is.

    Raises:
        `ValueError`: there is none; the message lists the splits there are.
    """
    for guess in [name] if name else guesses:
        if guess in data:
            return guess
    wanted = f"no split {name!r}" if name else f"no split such as {guesses[0]!r}"
    raise ValueError(f"there is {wanted} to {purpose} on; the data have {', '.join(data)}")


# --- models ---------------------------------------------------------------------------------------------------------


def load_model(
    name: str, task: Task | None = None, *, dtype: torch.dtype | str = torch.float32, revision: str | None = None
) -> PreTrainedModel:
    """Loads a dense or a pruned model.

    Args:
        name: a folder or a Hub id.
        task: what it is for. Default: what it was saved as.
        dtype: of the weights; `"auto"` as they were saved.
        revision: branch, tag or commit on the Hub.

    Raises:
        `ValueError`: the architecture has no class for the task, or its head tells other classes apart than the data.
    """
    hub = {"revision": revision} if revision else {}
    config = load_config(name, hub)
    saved = (config.architectures or [None])[0]
    if task is None:
        model_class = getattr(transformers, str(saved), None)
        if model_class is None:
            raise ValueError(f"the config of {name} names no class of transformers to load it as, but {saved!r}")
    else:
        auto_class = getattr(transformers, f"AutoModelFor{task.head}")
        if type(config) not in auto_class._model_mapping:
            raise ValueError(f"{config.model_type!r} models have no head for {task.name} ({auto_class.__name__})")
        model_class = auto_class._model_mapping[type(config)]
        if model_class.__name__ == saved:
            task.check_head(config)
        else:
            task.set_head(config)
            logger.warning(
                "%s was saved as %s: its head for %s starts at random, so train it (dense_epochs) before it is scored",
                name,
                saved,
                task.name,
            )
    if is_cut(config) or find(name, PLAN_NAME, hub) is not None:
        return load_pruned(name, model_class=model_class, config=config, dtype=dtype, **hub)
    return model_class.from_pretrained(name, config=config, dtype=dtype, **hub).eval()


def load_tokenizer(name: str, model: PreTrainedModel, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a token to pad with.

    Raises:
        `ValueError`: there is none. transformers 5 would make an empty one.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, **({"revision": revision} if revision else {}))
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"there is no tokenizer in {name}; name the one of the model that it was made from")
    if tokenizer.pad_token is None:  # decoders are trained without one
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


# --- tasks ----------------------------------------------------------------------------------------------------------


class Task:
    """What to do with the rows of a data set.

    Args:
        rows (`datasets.Dataset`): the training rows, whose columns and classes count.
        text_columns (`Sequence[str]`, *optional*): the columns to read. Default: those of a usual name.
        label_column (`str`, *optional*): likewise.

    Raises:
        `ValueError`: no such columns; the message lists those there are.

    Attributes:
        names (`list[str]`): the classes of the data, in their order there; empty if there are none.
        headline (`str`): the metric to compare models by, larger is better.
    """

    name: ClassVar[str]
    head: ClassVar[str]  # AutoModelFor...
    texts: ClassVar[tuple[tuple[str, ...], ...]]  # usual names of the columns to read, the likeliest first
    labels: ClassVar[tuple[str, ...]] = ("label", "labels", "target")
    measured: ClassVar[tuple[str, ...]] = ("accuracy",)  # names of the metrics
    takes_metrics: ClassVar[bool] = False  # those of `evaluate`, too
    max_length: ClassVar[int] = 128
    # A loss that is a mean over examples. Trainer takes what accepts keywords for a sum over tokens, and would
    # multiply it by the numbers of processes and of accumulation steps.
    sums_tokens: ClassVar[bool] = False
    preprocess_logits: ClassVar[Callable[[Any, Tensor], Any] | None] = None

    def __init__(self, rows: Any, text_columns: Sequence[str] | None = None, label_column: str | None = None) -> None:
        self.rows, self.names, self.numbered = rows, [], False
        self.text_columns = self.choose_texts(tuple(text_columns or ()))
        self.label_column = self._choose("label", (label_column,) if label_column else (), [(n,) for n in self.labels])
        self.label_column = self.label_column[0] if self.label_column else None
        self.find_classes()
        self.headline = self.metric_names[0]

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
        """Sets `names`, if the data have classes."""

    def _set_classes(self, feature: Any, values: Iterable[Any]) -> None:
        """Names of the classes as the data have them: of a `ClassLabel`, as texts, or mere numbers."""
        if getattr(feature, "names", None):
            self.names = list(feature.names)
            return
        found = set(values)
        if any(value is None for value in found):
            raise ValueError(f"the column {self.label_column!r} has rows without a label")
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
        its names."""
        config = model.config
        model.accepts_loss_kwargs = self.sums_tokens
        self.tokenizer = tokenizer
        positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.length = min(max_length or self.max_length, tokenizer.model_max_length, positions)
        self.of_model = np.arange(len(self.names))  # class of the data -> class of the model
        if self.names:
            own = [config.id2label[number].lower() for number in range(config.num_labels)]
            names = [name.lower() for name in self.names]
            if sorted(own) == sorted(names):
                self.of_model = np.array([own.index(name) for name in names])
        self.of_data = np.argsort(self.of_model)

    def to_class(self, value: Any) -> int:
        """The model's number of a class of the data."""
        number = int(value) if isinstance(value, int) else self.names.index(value)  # True is 1
        if not 0 <= number < len(self.names):
            raise ValueError(
                f"a label in {self.label_column!r} is {value!r}; the classes are 0 to {len(self.names) - 1}"
            )
        return int(self.of_model[number])

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        """What the model reads: columns of `rows` in, columns of its inputs and labels out."""
        raise NotImplementedError

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        """Encodes a split, or its first rows."""
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
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
        """Compares models by one of `metric_names`, or by a metric that `evaluate` loads, which is then the only one.

        Args:
            name: of the task's own; or a path or a name for `evaluate.load`, with its configuration after a colon.

        Raises:
            `ValueError`: not one of the task's own, which takes no other.
        """
        if name in SMALLER_IS_BETTER:
            raise ValueError(f"models are compared by a metric of which more is better, which {name!r} is not")
        if name in self.metric_names:
            self.headline = name
            return
        if not self.takes_metrics:
            raise ValueError(f"{self.name} measures {', '.join(self.metric_names)}; got {name!r}")
        import evaluate

        path, _, config = name.partition(":")
        try:
            module = evaluate.load(path, config or None, keep_in_memory=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"the metric {name!r} is none of {', '.join(self.metric_names)}, nor one that evaluate finds: {error}"
            ) from error

        def measure(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
            found = module.compute(predictions=predicted, references=true)
            self.headline = next(iter(found))
            return {name: float(value) for name, value in found.items()}

        self.measure = measure

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """Metrics of the data's class numbers, or of values, of shape `(examples,)`."""
        return classification_metrics(predicted, true)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        """What is measured of the predictions.

        Args:
            prediction: of all examples.
            features: what `prepare` gave for `rows`, in the same order.
            rows: as they were read.
        """
        raise NotImplementedError


def classification_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 (of class 1 of two, else the mean over classes) and Matthews' correlation, of class numbers of
    shape `(examples,)`."""
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
    """Correlations of ranks and of values, 0 where one of both is constant, of shape `(examples,)`."""
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
    measured = ("accuracy", "f1", "matthews_correlation")
    takes_metrics = True

    def choose_texts(self, given: tuple[str, ...]) -> tuple[str, ...]:
        if len(given) > 2:
            raise ValueError(f"{self.name} reads one text or two, not {', '.join(given)}")
        return super().choose_texts(given)

    def find_classes(self) -> None:
        feature = self.rows.features[self.label_column]
        self.regression = str(getattr(feature, "dtype", "")).startswith(("float", "double"))
        if not self.regression:
            self._set_classes(feature, self.rows.unique(self.label_column))

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("spearmanr", "pearson", "mse") if self.regression else super().metric_names

    def set_head(self, config: PretrainedConfig) -> None:
        super().set_head(config)
        if self.regression:
            config.num_labels, config.problem_type = 1, "regression"

    def check_head(self, config: PretrainedConfig) -> None:
        if config.num_labels == 1 and self.numbered:  # numbers to predict that happen to be whole
            self.regression, self.names = True, []
            self.headline = self.metric_names[0]
        if self.regression and config.num_labels != 1:
            raise ValueError(
                f"the labels in {self.label_column!r} are numbers to predict, and the model tells "
                f"{config.num_labels} classes apart"
            )
        super().check_head(config)

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        texts = [rows[column] for column in self.text_columns]
        features = dict(self.tokenizer(*texts, truncation=True, max_length=self.length))
        labels = rows[self.label_column]
        features["labels"] = list(map(float if self.regression else self.to_class, labels))
        return features

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        logits = _first(prediction.predictions)
        if self.regression:
            return self.measure(logits.reshape(-1), prediction.label_ids.reshape(-1))
        return self.measure(self.of_data[logits.argmax(-1)], self.of_data[prediction.label_ids])

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        return regression_metrics(predicted, true) if self.regression else super().measure(predicted, true)


@register("token-classification")
class TokenClassification(Task):
    """Words with a class each, told by their first token."""

    head = "TokenClassification"
    texts = (("tokens",), ("words",))
    labels = ("ner_tags", "tags", "labels", "label", "pos_tags")
    measured = TextClassification.measured

    def find_classes(self) -> None:
        feature = self.rows.features[self.label_column]
        feature = getattr(feature, "feature", feature)
        self._set_classes(feature, chain.from_iterable(self.rows[self.label_column]))

    def fit_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        _check_fast(tokenizer, self.name)
        super().fit_to(model, tokenizer, max_length)

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        words = rows[self.text_columns[0]]
        encoded = self.tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.length)
        labels = []
        for number, classes in enumerate(rows[self.label_column]):
            of_words = encoded.word_ids(number)
            firsts = [word is not None and word != before for before, word in zip([None, *of_words], of_words)]
            labels.append(
                [self.to_class(classes[word]) if first else IGNORED for first, word in zip(firsts, of_words)]
            )
        return {**encoded, "labels": labels}

    @property
    def collator(self) -> Callable[[list], dict[str, Tensor]]:
        return DataCollatorForTokenClassification(self.tokenizer)

    @staticmethod
    def preprocess_logits(logits: Any, labels: Tensor) -> Tensor:
        return _first(logits).argmax(-1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        counted = prediction.label_ids != IGNORED
        predicted, true = prediction.predictions[counted], prediction.label_ids[counted]
        return classification_metrics(self.of_data[predicted], self.of_data[true])


@register("multiple-choice")
class MultipleChoice(Task):
    """A context and its endings, in columns of their own (`context ending0 ending1 ...`) or in one column of lists
    (`question choices`). A second column of the context, as in SWAG, begins every ending."""

    head = "MultipleChoice"
    texts = (("question", "choices"), ("question", "options"), ("context", "endings"))
    labels = ("label", "labels", "answer", "answerKey", "target")
    takes_metrics = True

    def choose_texts(self, given: tuple[str, ...]) -> tuple[str, ...]:
        endings = sorted(name for name in self.rows.column_names if re.fullmatch(r"(ending|choice|option)_?\d", name))
        if not given and len(endings) > 1:
            for before in (("sent1", "sent2"), ("ctx",), ("context",), ("question",), ("sentence",), ("text",)):
                if set(before) <= set(self.rows.column_names):
                    return (*before, *endings)
        chosen = super().choose_texts(given)
        if len(chosen) < 2:
            raise ValueError(f"{self.name} reads a context and its choices, not {', '.join(chosen)} alone")
        return chosen

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        first, *others = self.text_columns
        begins = rows[others.pop(0)] if others[0] == "sent2" else None
        choices, labels = [], list(rows[self.label_column])
        for number in range(len(numbers)):
            each = [rows[column][number] for column in others]
            each = each[0] if len(others) == 1 else each
            if isinstance(each, Mapping):  # as in ARC, beside their letters or numbers
                names = list(map(str, each.get("label") or ()))
                labels[number] = names.index(str(labels[number])) if str(labels[number]) in names else labels[number]
                each = each["text"]
            choices.append([f"{begins[number]} {text}" if begins else text for text in each])
        if len({len(each) for each in choices}) > 1:
            raise ValueError("every row should have as many choices as the others")
        contexts = [context for context, each in zip(rows[first], choices) for _ in each]
        flat = self.tokenizer(contexts, list(chain(*choices)), truncation=True, max_length=self.length)
        size = len(choices[0])
        features = {key: [v[i : i + size] for i in range(0, len(v), size)] for key, v in flat.items()}
        features["labels"] = [self._number(value, size) for value in labels]
        return features

    def _number(self, value: Any, size: int) -> int:
        letter = isinstance(value, str) and len(value) == 1 and value.isalpha()
        try:
            number = ord(value.upper()) - ord("A") if letter else int(value)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < size:
            raise ValueError(
                f"a label in {self.label_column!r} is {value!r}; expected a number from 0 to {size - 1} or a letter"
            )
        return number

    @property
    def collator(self) -> Callable[[list], dict[str, Tensor]]:
        return DataCollatorForMultipleChoice(self.tokenizer)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        return self.measure(_first(prediction.predictions).argmax(-1), prediction.label_ids)

    def measure(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((predicted == true).mean())}


@register("question-answering")
class QuestionAnswering(Task):
    """The answer as a span of the context, as in SQuAD; long contexts are read in overlapping windows."""

    head = "QuestionAnswering"
    texts = (("question", "context"),)
    labels = ("answers", "answer")
    measured = ("f1", "exact_match")
    max_length = 384
    LONGEST = 30  # tokens of an answer

    def fit_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        _check_fast(tokenizer, self.name)
        super().fit_to(model, tokenizer, max_length)

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
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
        exact, f1 = [], []
        for row, (_, text) in best.items():
            expected = answers[row]["text"] or [""]
            exact.append(max(_words(text) == _words(each) for each in expected))
            f1.append(max(_overlap(_words(text), _words(each)) for each in expected))
        return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}

    def _best_span(self, start: np.ndarray, end: np.ndarray, spans: list, context: str) -> tuple[float, str]:
        """The likeliest span of a window that is no longer than `LONGEST`, as its score and its text."""
        inside = np.array([span[0] >= 0 for span in spans])
        ahead = np.arange(len(spans)) - np.arange(len(spans))[:, None]
        allowed = inside[:, None] & inside & (ahead >= 0) & (ahead < self.LONGEST)
        scores = np.where(allowed, start[:, None] + end, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        return float(scores[first, last]), context[spans[first][0] : spans[last][1]]


def _answers(value: Any) -> Mapping[str, list]:
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


class LanguageModel(Task):
    """Text alone; the tokens are the labels."""

    texts = (("text",), ("sentence",), ("content",))
    measured = ("accuracy", "perplexity")
    shift: ClassVar[int] = 0  # tokens between a position and the one that it predicts

    def __init__(self, rows: Any, text_columns: Sequence[str] | None = None, label_column: str | None = None) -> None:
        if label_column:
            raise ValueError(f"{self.name} has no label column: the text itself is predicted; got {label_column!r}")
        super().__init__(rows, text_columns)

    def _choose(self, what: str, given: tuple[str, ...], guesses: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
        return super()._choose(what, given, guesses) if what == "text" else ()

    @property
    def collator(self) -> Callable[[list], dict[str, Tensor]]:
        return DataCollatorForTokenClassification(self.tokenizer)

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Tensor:
        """Of every token that counts, whether it was predicted and its negative log-likelihood, so that logits of the
        whole vocabulary are not kept: `(batch, tokens, 2)`."""
        logits = _first(logits)[:, : labels.shape[1] - cls.shift].float()
        labels = labels[:, cls.shift :]
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        return torch.stack([(logits.argmax(-1) == labels).float(), loss], -1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        counted = prediction.label_ids[:, self.shift :] != IGNORED
        hits, loss = prediction.predictions[:, : counted.shape[1]][counted].mean(0, dtype=np.float64)
        return {"accuracy": float(hits), "perplexity": float(np.exp(min(loss, 700)))}


@register("fill-mask")
class FillMask(LanguageModel):
    """15 % of the tokens are to be told from the others. Which ones depends on the row alone, so that all models, and
    any number of processes, are asked the same."""

    head = "MaskedLM"

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        texts = rows[self.text_columns[0]]
        numbers = [number for number, text in zip(numbers, texts) if text and text.strip()]
        texts = [text for text in texts if text and text.strip()]
        if not texts:
            return {"input_ids": [], "attention_mask": [], "labels": []}
        if self.tokenizer.mask_token_id is None:
            raise ValueError(f"{self.name} needs a tokenizer with a mask token; decoders are for text-generation")
        encoded = self.tokenizer(texts, truncation=True, max_length=self.length, return_special_tokens_mask=True)
        ids, labels = [], []
        for number, tokens, special in zip(numbers, encoded["input_ids"], encoded["special_tokens_mask"]):
            words = np.flatnonzero(np.array(special) == 0)
            generator = np.random.default_rng(number)
            chosen = set(generator.permutation(words)[: max(1, round(0.15 * len(words)))].tolist())
            labels.append([token if place in chosen else IGNORED for place, token in enumerate(tokens)])
            masked = self.tokenizer.mask_token_id
            ids.append([masked if place in chosen else token for place, token in enumerate(tokens)])
        return {"input_ids": ids, "attention_mask": encoded["attention_mask"], "labels": labels}


@register("text-generation")
class TextGeneration(LanguageModel):
    """The next token, in blocks of the texts one after the other."""

    head = "CausalLM"
    shift = 1
    sums_tokens = True

    def encode(self, rows: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        end = self.tokenizer.eos_token_id
        texts = [text for text in rows[self.text_columns[0]] if text and text.strip()]
        tokens = []
        for ids in self.tokenizer(texts)["input_ids"] if texts else ():
            tokens += ids if end is None or ids[-1:] == [end] else [*ids, end]
        blocks = [tokens[start : start + self.length] for start in range(0, len(tokens), self.length)]
        blocks = [block for block in blocks if len(block) > 1]
        return {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": [*blocks]}


def _first(outputs: Any) -> Any:
    """The logits, where a model gives more."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def _check_fast(tokenizer: PreTrainedTokenizerBase, task: str) -> None:
    if not tokenizer.is_fast:
        raise ValueError(f"{task} needs a fast tokenizer, which tells where a token is in the text")
