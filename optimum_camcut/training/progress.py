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
"""Files that are in `output_dir` for as long as a run lasts: the dense model that teaches, and what scoring has summed
so far."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from ..utils.copies import copy_model
from ..utils.files import replacing
from .phases import ROUND


TEACHER, SCORES = "_teacher.safetensors", "_scores"  # a push to the Hub leaves out what begins with "_"


def scores_file(folder: Path, phase: str) -> Path:
    """Where the scoring of a phase keeps its running sums."""
    return folder / f"{SCORES}{phase}"


def search_file(folder: Path, phase: str) -> Path:
    """Where the search of a phase keeps what it has measured."""
    return folder / f"{SCORES}{phase}.search"


def has_scores(folder: Path, phase: str) -> bool:
    """Whether a process has left running sums of a phase."""
    own = re.compile(rf"{re.escape(scores_file(folder, phase).name)}(\.\d+)?")
    return folder.is_dir() and any(own.fullmatch(path.name) for path in folder.iterdir())


def save_teacher(folder: Path, model: PreTrainedModel) -> None:
    """Keeps the dense model for a run that is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TEACHER) as partial:
        save_model(model, str(partial))


def load_teacher(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The dense model of the run in a folder.

    Args:
        model: of the same shapes; it is copied.

    Raises:
        `ValueError`: there is none.
    """
    path = folder / TEACHER
    if not path.exists():
        raise ValueError(f"resuming a recovery that distills needs the dense model's weights, and {path} is missing")
    teacher = copy_model(model)
    load_model(teacher, str(path))
    return teacher


def remove_progress(folder: Path) -> None:
    """Removes all of these files."""
    own = re.compile(rf"({re.escape(TEACHER)}|{SCORES}({ROUND}\d+)?(\.\d+|\.search)?)(\.\d+\.partial)?")
    for path in folder.iterdir() if folder.is_dir() else ():
        if own.fullmatch(path.name):
            path.unlink(missing_ok=True)
