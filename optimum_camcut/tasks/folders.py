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
"""Folders of images or of recordings, as `imagefolder` and `audiofolder` of `datasets` read them; recordings without a
library that decodes them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


MEDIA = {
    "image": ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"),
    "audio": ("flac", "mp3", "ogg", "opus", "wav"),
}
TABLES = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}
BESIDE = ("md", "txt")  # files that may stand there, and are not read
SPLITS = ("train", "validation", "validation_matched", "dev", "valid", "val", "eval", "test")
ALSO = {"training": "train", "validate": "validation", "evaluation": "eval", "testing": "test"}


def kind_of(path: Path) -> str | None:
    """`"image"` or `"audio"`, by the ending of a file's name."""
    ending = path.suffix.lstrip(".").lower()
    return next((kind for kind, endings in MEDIA.items() if ending in endings), None)


def media_in(folder: Path) -> str | None:
    """What a folder holds, `"image"` or `"audio"`: `train/cat/1.png`, say, or files that a `metadata.csv` names. None
    of a folder that has other files in it, such as rows that name those beside them."""
    for each in folder.iterdir():
        beside = each.name.startswith(".") or each.name in TABLES or each.suffix.lstrip(".").lower() in BESIDE
        if each.is_file() and not beside and kind_of(each) is None:
            return None
    return next((kind for each in _files(folder) if (kind := kind_of(each))), None)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, but those that are hidden, or in a hidden folder."""
    for each in folder.rglob("*"):
        if each.is_file() and not any(part.startswith(".") for part in each.relative_to(folder).parts):
            yield each


def read_media(folder: Path, kind: str) -> Any:
    """The splits of a folder: those of its folders that are named so, or else all of it is for training. A column of
    paths is named by the kind; the other columns are those of the metadata, or `label`, the names of the folders that
    the files are in.

    Returns:
        `datasets.DatasetDict`.

    Raises:
        `ValueError`: the metadata do not name files, or lie where they are not read; or only some of the folders are
            named like splits.
    """
    from datasets import DatasetDict

    folders = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    names = {each: ALSO.get(each.name.lower(), each.name.lower()) for each in folders}
    splits = {names[each]: each for each in folders if names[each] in SPLITS}
    others = [each.name for each in folders if names[each] not in SPLITS and any(map(kind_of, _files(each)))]
    if splits and (others or len(splits) < sum(name in SPLITS for name in names.values())):
        found = ", ".join(each.name for each in folders if names[each] in SPLITS)
        raise ValueError(
            f"of the folders in {folder}, {found} say a split, {', '.join(others) or 'some the same'}"
            f"{' do not' if others else ''}: name each by another split ({', '.join(SPLITS)}), or put it elsewhere"
        )
    splits = splits or {"train": folder}
    read = {each / name for each in splits.values() for name in TABLES}
    if tables := sorted(each for each in _files(folder) if each.stem == "metadata" and each not in read):
        places = " or ".join(sorted({str(each) for each in splits.values()}))
        raise ValueError(
            f"{tables[0]} would not be read: put it in {places}, as {' or '.join(TABLES)}, with paths from there"
        )
    return DatasetDict({split: _read_split(each, kind, split) for split, each in splits.items()})


def _read_split(folder: Path, kind: str, split: str) -> Any:
    from datasets import ClassLabel, Dataset, NamedSplit, load_dataset

    table = next((folder / name for name in TABLES if (folder / name).exists()), None)
    if table is not None:
        rows = load_dataset(TABLES[table.name], data_files={split: [str(table)]})[split]
        if "file_name" not in rows.column_names:
            raise ValueError(f"{table} should have a column file_name; it has {', '.join(rows.column_names)}")
        if kind in rows.column_names:
            raise ValueError(f"{table} has a column {kind!r}, as that of the files is named: rename it")
        for number, name in enumerate(rows["file_name"]):
            if not isinstance(name, str) or not name:
                raise ValueError(f"row {number} (from 0) of {table} should name a file in file_name; it has {name!r}")
        paths = [str(folder / name) for name in rows["file_name"]]
        return rows.remove_columns("file_name").add_column(kind, paths)
    files = sorted(each for each in _files(folder) if kind_of(each) == kind)
    columns: dict[str, Any] = {kind: [str(each) for each in files]}
    if all(each.parent != folder for each in files):
        columns["label"] = [each.parent.name for each in files]
    rows = Dataset.from_dict(columns, split=NamedSplit(split))
    if "label" in columns:
        rows = rows.cast_column("label", ClassLabel(names=sorted(set(columns["label"]))))
    return rows
