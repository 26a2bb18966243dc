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
"""Scores in a file, with what they were made by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PruningConfig
from ..files import replacing
from .options import SCORING_FIELDS


if TYPE_CHECKING:
    from ..scoring.loop import Scores


SCORES_NAME, SUMMARY_NAME = "scores.safetensors", "scores.md"


def save_scores(path: Path, scores: Scores, config: PruningConfig, model: str) -> None:
    """One tensor a group, and what they were made with."""
    from safetensors.torch import save_file

    settings = {name: value for name, value in config.to_dict().items() if name in SCORING_FIELDS}
    metadata = {"config": json.dumps(settings), "model": model}
    with replacing(path) as partial:
        save_file({name: values.contiguous() for name, values in scores.items()}, partial, metadata)


def load_scores(path: str) -> tuple[Scores, dict[str, Any]]:
    """What `save_scores` wrote: the scores, and the fields of `PruningConfig` that they depend on.

    Raises:
        `ValueError`: the file holds something else.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path) / SCORES_NAME if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"there are no scores in {file}; optimum-cli camcut score writes some")
    try:
        with safe_open(file, "pt") as stored:
            scores = {name: stored.get_tensor(name) for name in stored.keys()}
            settings = json.loads((stored.metadata() or {})["config"])
    except (KeyError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} holds no scores of optimum-cli camcut score: {error!r}") from error
    return scores, settings


def scores_table(scores: Scores) -> list[list[str]]:
    """Of every group, its units, its scores and the units that would go first."""
    lines = [["group", "units", "lowest", "median", "highest", "lowest first"]]
    for name, values in scores.items():
        flat = values.flatten().float()
        first = flat.argsort()[:6].tolist()
        numbers = [flat.min(), flat.median(), flat.max()] if flat.numel() else []
        cells = [f"{number:.3g}" for number in map(float, numbers)] or ["-"] * 3
        lines.append(
            [name, str(flat.numel()), *cells, " ".join(map(str, first)) + (" ..." if flat.numel() > 6 else "")]
        )
    return lines
