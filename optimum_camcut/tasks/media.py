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
"""Tasks whose rows hold images or recordings. Their cells stay as they are until a batch is made: decoded, they would
fill the disk."""

from __future__ import annotations

import dataclasses
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import shown
from .task import Task


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class MediaTask(Task):
    """A column of images or recordings: of the feature `Image` or `Audio` of `datasets`, or with paths of files."""

    @classmethod
    def choose_texts(cls, columns: Sequence[str], given: tuple[str, ...]) -> tuple[str, ...]:
        if len(given) > 1:
            raise ValueError(f"{cls.name} reads one column, not {', '.join(given)}")
        return super().choose_texts(columns, given)

    def fit_to(self, model: PreTrainedModel, processor: Any, max_length: int | None) -> None:
        """Reads the rows as a model and its processor want them.

        Raises:
            `ValueError`: a length is given, and the task has none.
        """
        model.accepts_loss_kwargs = self.sums_tokens
        self.own_processor, self.input_name = processor, model.main_input_name
        self.dtype = model.dtype

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        """Encodes a split, or its first rows. The column of the model's inputs has the cells, undecoded: a dict of a
        `path`, or of the `bytes` of a file, and of the number of the `row`."""
        for column in self.text_columns:
            feature = rows.features[column]
            if getattr(feature, "decode", False):
                rows = rows.cast_column(column, dataclasses.replace(feature, decode=False))
        return super().prepare(rows, limit)

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        cells = [self._cell(value, number) for value, number in zip(rows[self.text_columns[0]], numbers)]
        return {self.input_name: cells, "labels": self.encode_labels(rows, numbers)}

    @abstractmethod
    def encode_labels(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> list[Any]:
        """The labels of the rows."""

    def _cell(self, value: Any, number: int) -> dict[str, Any]:
        """A path that can be opened from here, or bytes; and where they stand in the data."""
        place = self.place(number, self.text_columns[0])
        cell = value if isinstance(value, Mapping) else {"path": value}
        name = cell.get("path")
        if cell.get("bytes"):
            return {"path": None, "bytes": cell["bytes"], "row": place}
        if not name or not isinstance(name, str):
            raise ValueError(f"{place} should have an {self.reads}, or the path of one; it has {shown(value)}")
        path = next((path for path in (Path(name), self.folder / name) if path.is_file()), None)
        if path is None:
            raise ValueError(f"{place} names {name}, and there is no such file here or in {self.folder}")
        return {"path": str(path.absolute()), "bytes": None, "row": place}

    def digest(self, examples: Sequence[Any]) -> int:
        contents = (each[self.input_name] for each in examples)
        sums = [zlib.crc32(cell["bytes"] or Path(cell["path"]).read_bytes()) for cell in contents]
        return super().digest([sums, [each["labels"] for each in examples]])

    def open(self, cell: Mapping[str, Any], decode: Callable[[BytesIO], Any] | None = None) -> Any:
        """The contents of a cell, decoded as the task does or in another way.

        Raises:
            `ValueError`: they cannot be decoded; the message names the row.
        """
        try:
            return (decode or self.decode)(BytesIO(cell["bytes"] or Path(cell["path"]).read_bytes()))
        except (OSError, RuntimeError) as error:  # that of libsndfile is the latter
            named = f" ({cell['path']})" if cell["path"] else ""
            raise ValueError(f"{cell['row']} holds no {self.reads} that can be read{named}: {error}") from error

    @abstractmethod
    def decode(self, file: BytesIO) -> Any:
        """What is in a file."""

    @abstractmethod
    def inputs(self, contents: list[Any]) -> dict[str, Tensor]:
        """The model's inputs of decoded contents."""

    def collate_labels(self, labels: list[Any]) -> Tensor:
        """Labels of a batch."""
        import torch

        return torch.tensor(labels)

    @property
    def collator(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        return self.collate

    def collate(self, examples: list[Any]) -> dict[str, Tensor]:
        """A batch of encoded examples, in the precision of the model."""
        inputs = self.inputs([self.open(example[self.input_name]) for example in examples])
        inputs = {name: each.to(self.dtype) if each.is_floating_point() else each for name, each in inputs.items()}
        return {**inputs, "labels": self.collate_labels([example["labels"] for example in examples])}
