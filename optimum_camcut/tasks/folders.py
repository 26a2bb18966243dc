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

from pathlib import Path
from typing import Any


MEDIA = {
    "image": ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"),
    "audio": ("flac", "mp3", "ogg", "opus", "wav"),
}
TABLES = {"metadata.csv": "csv", "metadata.jsonl": "json", "metadata.parquet": "parquet"}
BESIDE = ("md", "txt")  # files that may stand there, and are not read
SPLITS = ("train", "validation", "validation_matched", "dev", "valid", "val", "eval", "test")


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
    return next((kind for each in folder.rglob("*") if (kind := kind_of(each))), None)


def read_media(folder: Path, kind: str) -> Any:
    """The splits of a folder: those of its folders that are named so, or else all of it is for training. A column of
    paths is named by the kind; the other columns are those of the metadata, or `label`, the names of the folders that
    the files are in.

    Returns:
        `datasets.DatasetDict`.

    Raises:
        `ValueError`: the metadata do not name files.
    """
    from datasets import DatasetDict

    folders = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    splits = {each.name: each for each in folders}
    if not splits or not set(splits) <= set(SPLITS):
        splits = {"train": folder}
    return DatasetDict({split: _read_split(each, kind, split) for split, each in splits.items()})


def _read_split(folder: Path, kind: str, split: str) -> Any:
    from datasets import ClassLabel, Dataset, NamedSplit, load_dataset

    table = next((folder / name for name in TABLES if (folder / name).exists()), None)
    if table is not None:
        rows = load_dataset(TABLES[table.name], data_files={split: [str(table)]})[split]
        if "file_name" not in rows.column_names:
            raise ValueError(f"{table} should have a column file_name; it has {', '.join(rows.column_names)}")
        paths = [str(folder / name) for name in rows["file_name"]]
        return rows.remove_columns("file_name").add_column(kind, paths)
    files = sorted(each for each in folder.rglob("*") if kind_of(each) == kind)
    columns: dict[str, Any] = {kind: [str(each) for each in files]}
    if all(each.parent != folder for each in files):
        columns["label"] = [each.parent.name for each in files]
    rows = Dataset.from_dict(columns, split=NamedSplit(split))
    if "label" in columns:
        rows = rows.cast_column("label", ClassLabel(names=sorted(set(columns["label"]))))
    return rows
