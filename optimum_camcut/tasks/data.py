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
"""Data sets: reading them, with their splits."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..utils.files import nearest, read_json
from .folders import SPLITS, media_in, read_media


EVALUATION_SPLITS = SPLITS[1:]
FORMATS = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "json", "txt": "text"}
HELD_OUT, SEED = 0.1, 0  # of the training rows, where there are no others to evaluate on


def find_files(name: str | None, train: str | None = None, validation: str | None = None) -> dict[str, list[str]]:
    """The files of a data set, by their splits; none if it is to be read otherwise: what `save_to_disk` wrote, a
    folder of images or of recordings, or a data set on the Hub.

    Args:
        name: see `load_data`.
        train, validation: files, in place of a name.

    Raises:
        `ValueError`: the folder holds nothing of the kind, or a file is of another kind.
        `FileNotFoundError`: there is no such folder or file.
    """
    if name is None:
        given = {"train": train, "validation": validation}
        return _of_one_kind({split: [path] for split, path in given.items() if path is not None})
    path = Path(name)
    if path.is_file():
        return _of_one_kind({"train": [name]})
    if not path.is_dir():
        if path.suffix.lstrip(".") in FORMATS:
            raise FileNotFoundError(f"there is no file {name}")
        if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {name} to read data from (and it cannot be a Hub id)")
        return {}
    if _is_saved(path) or media_in(path):
        return {}
    files: dict[str, list[str]] = {}
    for each in sorted(path.iterdir()):
        split = each.stem.partition("-")[0]
        if each.suffix.lstrip(".") in FORMATS and (each.suffix != ".txt" or split in SPLITS):  # no README.txt
            files.setdefault(split, []).append(str(each))
    if len({FORMATS[Path(file).suffix.lstrip(".")] for found in files.values() for file in found}) != 1:
        found = ", ".join(sorted(each.name for each in path.iterdir())[:20]) or "nothing"
        raise ValueError(
            f"{path} should hold files of one kind, named by split, such as train.parquet and validation.parquet "
            f"(or .csv, .json, .jsonl, .txt), images or recordings, or what save_to_disk wrote; found {found}"
        )
    return files


def _of_one_kind(files: dict[str, list[str]]) -> dict[str, list[str]]:
    for (path,) in files.values():
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        if Path(path).suffix.lstrip(".") not in FORMATS:
            raise ValueError(f"{path} is no file of data: it should end with .{', .'.join(FORMATS)}")
    if len({FORMATS[Path(path).suffix.lstrip(".")] for (path,) in files.values()}) != 1:
        raise ValueError(f"the files should be of one kind; got {' and '.join(path for (path,) in files.values())}")
    return files


def folder_of(name: str | None, train: str | None = None) -> Path:
    """The folder that paths in the cells start from: that of the data, or of the file."""
    path = Path(name or train or "")
    return path if path.is_dir() else path.parent


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def splits_and_columns(name: str | None, train: str | None = None, validation: str | None = None) -> dict[str, Any]:
    """The splits of a data set and the columns of each, from the heads of its files: without a library that takes
    seconds to import. No columns where they are not told at the head; no splits of a data set on the Hub.

    Raises:
        `ValueError`, `FileNotFoundError`: see `find_files`; or a file cannot be read.
    """
    files = find_files(name, train, validation)
    if files or name is None or not Path(name).is_dir():
        return {split: _columns(paths[0]) for split, paths in files.items()}
    saved = Path(name)
    if not _is_saved(saved):
        return {}
    parts = {"train": saved}
    if (saved / "dataset_dict.json").exists():
        parts = {split: saved / split for split in read_json(saved / "dataset_dict.json").get("splits", ())}
    infos = {split: folder / "dataset_info.json" for split, folder in parts.items()}
    known = {split: read_json(info).get("features") if info.exists() else None for split, info in infos.items()}
    return {split: list(features) if features else None for split, features in known.items()}


def _columns(path: str) -> list[str] | None:
    kind = Path(path).suffix.lstrip(".")
    if not Path(path).stat().st_size:
        raise ValueError(f"{path} is empty")
    if kind == "parquet":
        from pyarrow import ArrowInvalid, parquet

        try:
            return parquet.read_schema(path).names
        except ArrowInvalid as error:
            raise ValueError(f"{path} is no parquet file: {error}") from error
    if kind == "txt":
        return ["text"]
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            if kind == "csv":
                return next(csv.reader(file), [])
            rows = [json.loads(line) for line in islice(file, 100)]
        except ValueError:  # not a row a line: it takes the whole file to know
            return None
    return list(dict.fromkeys(chain.from_iterable(rows))) if all(isinstance(row, dict) for row in rows) else None


def load_data(
    name: str | None,
    config: str | None = None,
    train: str | None = None,
    validation: str | None = None,
    streaming: bool = False,
) -> Any:
    """Reads a data set, with its splits.

    Args:
        name: a folder with files named by split (`train.parquet`, `validation-00000-of-00002.csv`, `test.jsonl`), one
            of images or recordings (see `folders`), or one that `save_to_disk` of `datasets` wrote; a file, of
            which all is for training; or a Hub id, also with its configuration (`"nyu-mll/glue:sst2"`). Rows of a
            text file are its lines, each with its line break.
        config: the configuration on the Hub.
        train, validation: files, in place of a name.
        streaming: read nothing yet; `first_rows` does.

    Returns:
        `datasets.DatasetDict`; streaming, `datasets.IterableDatasetDict`.

    Raises:
        `ValueError`: the folder holds nothing of the kind, or what cannot be streamed, or a file cannot be read.
        `FileNotFoundError`: there is no such folder or file, or nothing of that name on the Hub.
        `ConnectionError`: there is no such folder, and no way to the Hub.
    """
    files = find_files(name, train, validation)

    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if files:
            format = FORMATS[Path(next(iter(files.values()))[0]).suffix.lstrip(".")]
            lines = {"keep_linebreaks": True} if format == "text" else {}
            return datasets.load_dataset(format, data_files=files, streaming=streaming, **lines)
        assert name is not None, "what is not read by name has files"
        if streaming and Path(name).is_dir():
            raise ValueError(f"--streaming is for files of rows and data sets on the Hub, not for the folder {name}")
        if Path(name).is_dir():
            if not _is_saved(Path(name)) and (kind := media_in(Path(name))):
                return read_media(Path(name), kind)
            saved = datasets.load_from_disk(name)
            return saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
        name, _, own = name.partition(":")
        return datasets.load_dataset(name, config or own or None, streaming=streaming)
    except ConnectionError as error:
        raise ConnectionError(f"{name} is no folder, and cannot be fetched from the Hub: {error}") from error
    except DatasetsError as error:
        reason = error.__cause__ or error
        raise ValueError(f"the data of {name or train} cannot be read: {reason}") from error


def first_rows(rows: Any, count: int) -> Any:
    """The first rows of a split that is streamed, in memory."""
    import datasets

    first = list(islice(rows, count))  # `take` may read on
    return datasets.Dataset.from_list(first, features=rows.features, split=rows.split)


def has_lines(name: str | None, train: str | None = None) -> bool:
    """Whether the rows are lines of a text, which go on in one another."""
    return any(Path(path).suffix == ".txt" for paths in find_files(name, train).values() for path in paths)


def choose_split(data: Mapping[str, Any], name: str | None, guesses: Sequence[str], purpose: str) -> str:
    """The name of the split for a purpose: the one that was given, or else the first of the guesses that there is.

    Raises:
        `ValueError`: there is none; the message lists the splits there are.
    """
    for guess in [name] if name else guesses:
        if guess in data:
            return guess
    wanted = f"no split {name!r}" if name else f"no split such as {guesses[0]!r}"
    near = nearest(name, data) if name else ""
    raise ValueError(f"there is {wanted} to {purpose} on; the data have {', '.join(data)}{near}")


def evaluation_split(data: Mapping[str, Any], name: str | None, train: str) -> str | None:
    """The name of the split to evaluate on; None if there is none but that to train on, of which a part is then to be
    held out.

    Raises:
        `ValueError`: there is none of the name that was given.
    """
    others = [split for split in EVALUATION_SPLITS if split != train]
    if name is None and not any(split in data for split in others):
        return None
    return choose_split(data, name, others, "evaluate")


def hold_out(rows: Any, ordered: bool = False) -> tuple[Any, Any]:
    """Rows to train and to evaluate on: the same ones in every process and every run.

    Args:
        ordered: they go on in one another, so that the last ones are held out.

    Raises:
        `ValueError`: there are too few.
    """
    if len(rows) < 2:
        raise ValueError(f"there is no split to evaluate on, and {len(rows)} rows are too few to hold some out")
    parts = rows.train_test_split(max(1, round(HELD_OUT * len(rows))), seed=SEED, shuffle=not ordered)
    return parts["train"], parts["test"]
