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
"""What the benchmarks share: the file that a study's runs are in, and the arguments that several scripts have.

A study is one JSON file: `{"runs": [...]}`, a line a run, each with its settings and figures. There may be other
tables beside `runs`, and `settings` that all rows share. The file is replaced as a whole: a command that was stopped
leaves all runs that it has finished. Commands add to one file one after the other; at the same time they need a lock.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optimum_camcut.utils.files import read_json, write_text


Run = dict[str, Any]


# --- the file -------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """All tables of a study; none where there is no file.

    Raises:
        `ValueError`: the file is something else.
    """
    if not path.exists():
        return {}
    found = read_json(path)
    if not all(isinstance(value, list) for name, value in found.items() if name != "settings"):
        raise ValueError(f"{path} holds no runs of a benchmark: choose another file")
    return found


def read(path: Path, table: str = "runs") -> list[Run]:
    """The runs of a study, or the rows of another table; none where there is no file."""
    return load(path).get(table, [])


def find(runs: Iterable[Run], **key: Any) -> Run | None:
    """The run with these values."""
    return next((run for run in runs if matches(run, key)), None)


def matches(run: Run, key: Run) -> bool:
    return all(run.get(name) == value for name, value in key.items())


def add(path: Path, run: Run, keys: Iterable[str], table: str = "runs") -> None:
    """Adds a run to the file as it is now, in the place of the one with the same values of `keys` if there is one."""
    study = load(path)
    runs = study.setdefault(table, [])
    run = json.loads(json.dumps(run))  # as the file will hold it
    key = {name: run.get(name) for name in keys}
    place = next((number for number, each in enumerate(runs) if matches(each, key)), len(runs))
    runs[place : place + 1] = [run]
    write(path, study)


def write(path: Path, study: dict[str, Any]) -> None:
    """Takes the place of what was there at once."""
    parts = []
    for name, value in study.items():
        lines = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else None
        parts.append(f"{json.dumps(name)}: " + (json.dumps(value) if lines is None else f"[\n{lines}\n]"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


# --- tables ---------------------------------------------------------------------------------------------------------


def header(title: str, fractions: list[float]) -> str:
    """Of a Markdown table with a column for each fraction that is kept."""
    return f"| {title} | {' | '.join(f'{keep:.0%}' for keep in fractions)} |\n|---{'|---' * len(fractions)}|"


def line(label: str, cells: list[list[float]], digits: int) -> str:
    """Of that table; each cell is the mean of its values, with their deviation where there are several."""
    shown = []
    for values in cells:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        shown.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "-")
    return f"| {label} | {' | '.join(shown)} |"


# --- arguments ------------------------------------------------------------------------------------------------------

# As `ArgumentParser.add_argument` takes them.
ARGUMENTS: dict[str, dict[str, Any]] = {
    # models and data
    "model": {"help": "of each task, with {task} in the place of its name"},
    "model_name_or_path": {"help": "default: a BERT-base shape with random weights"},
    "finetune": {"metavar": "BASE", "help": "fine-tune this model where that of a task is missing"},
    "tasks": {"nargs": "+", "default": ["sst2", "mrpc", "cola", "stsb"]},
    "dataset_path": {"help": "DIR with DIR/<task>/{train,validation}.parquet, in place of the Hub"},
    # what is scored and cut
    "method": {},
    "methods": {"nargs": "+"},
    "granularity": {"default": "units"},
    "num_samples": {"type": int, "default": 512, "help": "training examples to score on"},
    "seeds": {"nargs": "+", "type": int, "default": [1, 2, 3], "help": "each draws another scoring sample"},
    "keep": {"nargs": "+", "type": float, "default": [0.5]},
    "sparsity": {"type": float, "default": 0.5},
    "allocation": {"default": "per_kind"},
    "multiple_of": {"type": int, "default": 1},
    # training
    "epochs": {"type": float},
    "learning_rate": {"type": float},
    "bf16": {"action": "store_true"},
    # what is timed
    "rounds": {"type": int, "help": "how often each runs, in turn with the others"},
    "examples": {"type": int},
    "batch_size": {"type": int},
    "tokens": {"type": int, "default": 128},
    "threads": {"type": int, "help": "of torch, on the CPU"},
    "dtype": {"default": "float32"},
    "cpu_time": {"action": "store_true", "help": "count processor time, on a machine that is busy"},
    "quick": {"action": "store_true", "help": "a few seconds of a tiny model: whether it runs at all"},
    # what comes out
    "output": {"type": Path, "help": "write the figures to this JSON file, beside those of other runs"},
    "output_dir": {"type": Path, "required": True},
    "tables": {"action": "store_true", "help": "only print the tables of what is in the output file"},
}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_arguments(parser: argparse.ArgumentParser, *names: str, **changed: Any) -> None:
    """Adds shared arguments: by name, or by name with another default. A dict has more to change:
    `tasks={"choices": [...]}`."""
    for name, change in {**dict.fromkeys(names, {}), **changed}.items():
        change = change if isinstance(change, dict) else {"default": change}
        parser.add_argument(f"--{name}", **{**ARGUMENTS[name], **change})


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a run was asked to do: all arguments but those that say where its figures go."""
    return {name: value for name, value in vars(options).items() if name not in ("output", "output_dir", "tables")}
