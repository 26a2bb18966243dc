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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


EVALUATION_SPLITS = ("validation", "validation_matched", "dev", "valid", "val", "eval", "test")
FORMATS = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "json"}


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
        `ConnectionError`: there is no such folder, and no way to the Hub.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        if Path(name).is_dir():
            return _load_folder(Path(name))
        if Path(name).is_file():
            raise ValueError(f"{name} is a file; name the folder that it is in, whose files are named by split")
        if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise FileNotFoundError(f"there is no folder {name} to read data from (and it cannot be a Hub id)")
        name, _, own = name.partition(":")
        return datasets.load_dataset(name, config or own or None)
    except ConnectionError as error:
        raise ConnectionError(f"{name} is no folder, and cannot be fetched from the Hub: {error}") from error
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
