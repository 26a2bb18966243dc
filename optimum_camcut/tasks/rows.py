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
"""`RowReader`: which columns of a data set a task reads, which classes they have, and how rows become inputs."""

from __future__ import annotations

import json
import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..utils.files import nearest, shown
from .classes import classes_of, is_blank, match_names, meaningless


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MISSING_LABEL = "fill it in, or leave the row out of the data"


class RowReader(ABC):
    """Reads the rows of a data set. Neither torch nor transformers is imported before a model is there, so that a
    wrong column is told at once.

    Args:
        rows (`datasets.Dataset`): the training rows, whose columns and classes count.
        text_columns (`Sequence[str]`, *optional*): the columns to read. Default: those of a usual name.
        label_column (`str`, *optional*): likewise.
        label_names (`Sequence[str]`, *optional*): the classes of the data in the order of the model's numbers.

    Raises:
        `ValueError`: no such columns; the message lists those there are. Or `label_names` are not the data's.

    Attributes:
        label_column (`str`): empty if the task needs no labels.
        names (`list[str]`): the classes of the data, in their order there, or else in the model's; empty if there are
            none.
    """

    name: ClassVar[str]
    texts: ClassVar[tuple[tuple[str, ...], ...]]  # usual names of the columns to read, the likeliest first
    labels: ClassVar[tuple[str, ...]] = ("label", "labels", "target")
    reads: ClassVar[str] = "text"  # what is in them
    processor: ClassVar[str] = "AutoTokenizer"  # the class of transformers that makes inputs of it
    folder: Path = Path()  # where paths in the cells start, if they do not at the working directory
    by_place: ClassVar[bool] = False  # it asks the tokenizer where a token is in the text
    joins_texts: ClassVar[bool] = True  # several columns are one input
    max_length: ClassVar[int] = 128
    packs: ClassVar[bool] = False  # inputs are blocks of the rows one after the other
    # A loss that is a mean over examples. Trainer takes what accepts keywords for a sum over tokens, and would
    # multiply it by the numbers of processes and of accumulation steps.
    sums_tokens: ClassVar[bool] = False

    def __init__(
        self,
        rows: Any,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        label_names: Sequence[str] | None = None,
    ) -> None:
        self.rows, self.numbered, self.ordered = rows, False, False
        self.read(rows)
        self.text_columns, self.label_column = self.choose_columns(rows.column_names, text_columns, label_column)
        self.label_names = list(label_names or ())
        self.find_classes()
        if self.label_names and not self.names:
            raise ValueError(
                f"--label_names are for classes, and {self.name} has none in {self.label_column or self.text_columns}"
            )
        self.of_model = self.of_data = np.arange(len(self.names))  # class of the data -> class of the model; reverse
        self.fits = False  # it is known which class is which

    @classmethod
    def choose_columns(
        cls, columns: Sequence[str], text_columns: Sequence[str] | None = None, label_column: str | None = None
    ) -> tuple[tuple[str, ...], str]:
        """The columns to read and that of the labels, among those there are: the given, or those of a usual name. The
        latter is empty if the task needs none.

        Raises:
            `ValueError`: no such columns; the message lists those there are.
        """
        texts = cls.choose_texts(columns, tuple(text_columns or ()))
        labels = cls._choose(columns, "label", (label_column,) if label_column else (), [(n,) for n in cls.labels])
        return texts, labels[0] if labels else ""

    @classmethod
    def choose_texts(cls, columns: Sequence[str], given: tuple[str, ...]) -> tuple[str, ...]:
        """The columns to read."""
        return cls._choose(columns, "text", given, cls.texts)

    @classmethod
    def _choose(
        cls, columns: Sequence[str], what: str, given: tuple[str, ...], guesses: Iterable[tuple[str, ...]]
    ) -> tuple[str, ...]:
        for names in [given] if given else guesses:
            if set(names) <= set(columns):
                return names
        unknown = sorted(set(given) - set(columns))
        problem = (
            f"there is no column {', '.join(unknown)}"
            if given
            else f"no {cls.reads if what == 'text' else what} column of a usual name was found"
        )
        raise ValueError(
            f"{problem}; the columns are {', '.join(columns)}; choose by --{what}_column{'s' * (what == 'text')}"
            f"{nearest(unknown[0], columns) if unknown else ''}"
        )

    def find_classes(self) -> None:
        """Sets `names`."""
        self.names: list[str] = []

    def _set_classes(self, feature: Any, values: Iterable[Any]) -> None:
        """Names of the classes as the data have them: of a `ClassLabel`, as texts, or mere numbers."""
        found = classes_of(feature, values, self.label_column, self.label_names)
        self.names, self.classes = found.names, found.values
        self.numbered, self.ordered = found.numbered, found.ordered

    def set_head(self, config: PretrainedConfig) -> None:
        """Tells a model that gets a new head what it is to tell apart."""
        if self.names:
            names = self.label_names or self.names
            _name_classes(config, names)
            order = match_names(self.names, names)
            assert order is not None, "names that a user gives were compared when the classes were found"
            self._number_classes(order)

    def check_head(self, config: PretrainedConfig) -> None:
        """Finds out which class of the data is which of a model: classes keep the model's own numbers if they have
        its names, in whatever case. A model without names gets those of `label_names`. What is assumed is said.

        Raises:
            `ValueError`: the model's head does not fit the data, or has other names.
        """
        if not self.names or self.fits:
            return
        own = [str(config.id2label[number]) for number in range(config.num_labels)]
        if self.numbered and not self.label_names and len(self.names) < len(own):
            known = len(self.names)  # the largest number is not in these rows
            self.names += [f"LABEL_{number}" for number in range(known, len(own))]
            self.classes |= {number: number for number in range(known, len(own))}
        if len(self.names) != len(own) and (len(self.names) > len(own) or self.label_names or meaningless(own)):
            raise ValueError(
                f"the model tells {len(own)} classes apart ({', '.join(own)}), and the data have {len(self.names)} in "
                f"{self.label_column!r} ({', '.join(self.names)})"
            )
        if self.label_names:
            order = match_names(self.names, self.label_names)
            assert order is not None, "names that a user gives were compared when the classes were found"
            logger.info("classes, as --label_names says: %s", self._told(order, own))
            if meaningless(own):
                _name_classes(config, self.label_names)
        elif meaningless(self.names):
            numbers = [str(number) for number in range(len(self.names))]
            order = match_names(numbers, own)  # a model may have the numbers as names, in another order
            order = list(range(len(self.names))) if order is None else order
            if not meaningless(own):
                logger.info("classes, by their number: %s", self._told(order, own))
        elif meaningless(own):
            order = list(range(len(self.names)))
            told = ", ".join(f"{name} is {number}" for number, name in enumerate(self.names[:20]))
            if self.ordered:
                logger.info("classes, by their number in the data, as the model has no names for them: %s", told)
            else:
                logger.warning(
                    "the model has no names for its classes, so those of %r are numbered by the alphabet: %s. If it "
                    "has learned them in another order, give that: --label_names %s",
                    self.label_column,
                    told,
                    " ".join(reversed(self.names)) if len(self.names) == 2 else "NAME0 NAME1 ...",
                )
        else:
            order = match_names(self.names, own)
            if order is None:
                raise ValueError(
                    f"the model tells apart {', '.join(own)}, and the data have {', '.join(self.names)} in "
                    f"{self.label_column!r}: say which is which by --label_names, the data's names in the order of "
                    f"the model's ({' '.join(own)})"
                )
            missing = [number for number in range(len(own)) if number not in order]
            self.classes |= {own[number]: len(self.names) + place for place, number in enumerate(missing)}
            self.names, order = [*self.names, *(own[number] for number in missing)], [*order, *missing]
        self._number_classes(order)

    def _told(self, order: Sequence[int], own: Sequence[str]) -> str:
        told = [f"{name} is {own[number]}" for name, number in zip(self.names[:20], order)]
        return ", ".join(told) + (", ..." if len(self.names) > 20 else "")

    def _number_classes(self, order: Sequence[int]) -> None:
        """Takes the model's number of every class. Where the data have no order of their own, that is taken, too."""
        if not self.ordered:
            rank = np.argsort(order)
            self.names = [self.names[place] for place in rank]
            self.classes = {value: order[place] for value, place in self.classes.items()}
            order = range(len(self.names))
        self.of_model = np.array(order)
        self.of_data, self.fits = np.argsort(self.of_model), True

    def fit_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        """Reads the rows as a model and its tokenizer want them.

        Raises:
            `ValueError`: the tokenizer does not know where a token is in the text, which the task needs; or so few
                tokens that no text fits.
        """
        from ..planning.measure import longest_input

        if self.by_place and not tokenizer.is_fast:
            raise ValueError(f"{self.name} needs a fast tokenizer, which tells where a token is in the text")
        model.accepts_loss_kwargs = self.sums_tokens
        self.tokenizer = tokenizer
        self.length = longest_input(model, min(max_length or self.max_length, tokenizer.model_max_length))
        if max_length and self.length < max_length:
            logger.warning("inputs are cut to %d tokens: the model or its tokenizer takes no more", self.length)
        special = tokenizer.num_special_tokens_to_add(pair=self.joins_texts and len(self.text_columns) > 1)
        if self.length <= special:
            raise ValueError(
                f"an input of {self.length} tokens (--max_length) has no room beside {special} special ones"
            )

    def to_class(self, value: Any, row: int) -> int:
        """The model's number of a class of the data, in a row.

        Raises:
            `ValueError`: there is none, or it is not among the classes of the training rows.
        """
        if is_blank(value):
            raise ValueError(f"{self.place(row, self.label_column)} has no label, it has {value!r}: {MISSING_LABEL}")
        if value not in self.classes:
            raise ValueError(
                f"{self.place(row, self.label_column)} has the label {value!r}; the classes of the training rows are "
                f"{f'0 to {len(self.names) - 1}' if self.numbered else ', '.join(self.names)}"
            )
        return int(self.of_model[self.classes[value]])  # True is 1

    def read(self, rows: Any) -> None:
        """Says which rows are read from now on, for errors that name one: by its number in the file, of which these
        may be a part."""
        self.split, indices = str(rows.split) if rows.split else None, rows._indices
        self.numbers: np.ndarray | None = None if indices is None else indices.column(0).to_numpy()

    def place(self, row: int, column: str) -> str:
        """A cell of the split that is read, to be told of."""
        number = row if self.numbers is None else int(self.numbers[row])
        return f"row {number} (from 0) of {self.split or 'the data'}, column {column!r},"

    def check_texts(self, rows: Mapping[str, list[Any]], numbers: Sequence[int], columns: Sequence[str]) -> None:
        """Raises `ValueError` if a cell of these columns, or an item of one that is a list, is no text."""
        for column in columns:
            for number, cell in zip(numbers, rows[column]):
                texts = cell["text"] if isinstance(cell, Mapping) else cell
                if not all(isinstance(text, str) for text in (texts if isinstance(texts, list) else [texts])):
                    raise ValueError(f"{self.place(number, column)} should have text, it has {shown(cell)}")

    @abstractmethod
    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        """What the model reads: columns of `rows` in, columns of its inputs and labels out."""

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        """Encodes a split, or its first rows."""
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        self.read(rows)
        rows = self._by_own_numbers(rows)
        encoded = rows.map(
            self.encode, batched=True, with_indices=True, remove_columns=rows.column_names, desc="Encoding"
        )
        if not len(encoded):
            raise ValueError(f"the rows hold no {self.reads} in {', '.join(self.text_columns)}")
        return encoded

    def _by_own_numbers(self, rows: Any) -> Any:
        """Rows whose classes have the numbers that they have in the training rows: a `ClassLabel` of another split may
        number them in another way.

        Raises:
            `ValueError`: a class that is not among those of the training rows.
        """
        ours, theirs = (_class_names(each.features.get(self.label_column)) for each in (self.rows, rows))
        if not ours or not theirs or ours == theirs:
            return rows
        numbers = {number: ours.index(name) for number, name in enumerate(theirs) if name in ours}

        def translate(value: Any, row: int) -> Any:
            if isinstance(value, list):
                return [translate(each, row) for each in value]
            if value in range(len(theirs)) and value not in numbers:
                raise ValueError(
                    f"{self.place(row, self.label_column)} has the label {theirs[value]!r}; the classes of the "
                    f"training rows are {', '.join(ours)}"
                )
            return numbers.get(value, value)

        labels = [translate(value, row) for row, value in enumerate(rows[self.label_column])]
        feature = self.rows.features[self.label_column]
        return rows.remove_columns(self.label_column).add_column(self.label_column, labels, feature=feature)

    def digest(self, examples: Sequence[Any]) -> int:
        """A number for encoded examples, which others do not have."""
        return zlib.crc32(json.dumps(examples, sort_keys=True).encode())

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Makes batches of examples."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self.tokenizer)


def _class_names(feature: Any) -> list[str] | None:
    """Of a `ClassLabel`, or of a list of such."""
    return getattr(getattr(feature, "feature", feature), "names", None)


def _name_classes(config: PretrainedConfig, names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
