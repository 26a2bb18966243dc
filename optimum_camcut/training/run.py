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
"""The state of a run, which its phases pass on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup
from ..planning.plan import PruningPlan
from ..planning.times import LatencyTable
from ..scoring.loop import Scores
from ..vocabulary.numbers import Renumbering
from .evaluations import Evaluations
from .run_report import RunReport


@dataclass
class Run:
    """From the first phase to the report.

    Args:
        root (`Path`): `output_dir`.
        scores (`dict[str, Tensor]`): group name -> `torch.Tensor` of shape `(units,)`, of the model as it is.
        plan (`PruningPlan`): what was kept, once the model is cut.
        dense_model (`PreTrainedModel`): a copy from before the cut, where the recovery needs it.
        latency_table (`LatencyTable`): of the uncut model.
        groups_before (`list[PrunableGroup]`): of the model as it was before the first cut.
        unlogged (`dict[str, float]`): figures of a cut that is yet to be logged.
        progress_file (`Path`): of the scores, while a run scores that can be resumed.
        half_cut (`bool`): something of the last cut is still to come.
        unfinished (`bool`): its report is still to come.
        best_loaded (`bool`): the weights are those of the best checkpoint.
        batch_means (`bool`): losses are to be means over one batch for now.
        counted (`tuple[float, int]`): losses of evaluation that count, and all of them, while it lasts.
        renumbering (`Renumbering`): from the tokens of the data to those of the model, once the vocabulary is cut.
        gone (`Tensor`): tokens that were read as others, since that was last told.
        saved (`dict[Path, int]`): folder that weights were saved in -> the step that they had then.
    """

    root: Path
    scores: Scores | None = None
    plan: PruningPlan | None = None
    dense_model: PreTrainedModel | None = None
    latency_table: LatencyTable | None = None
    groups_before: list[PrunableGroup] | None = None
    unlogged: dict[str, float] | None = None
    progress_file: Path | None = None
    half_cut: bool = False
    unfinished: bool = False
    best_loaded: bool = False
    batch_means: bool = False
    counted: tuple[float, int] | None = None
    renumbering: Renumbering | None = None
    gone: Tensor = field(default_factory=lambda: torch.zeros(()))
    saved: dict[Path, int] = field(default_factory=dict)
    evaluations: Evaluations = field(default_factory=Evaluations)
    report: RunReport = field(default_factory=RunReport)


def of_run(name: str) -> Any:
    """An attribute of a trainer that is one of its run."""

    def get(trainer: Any) -> Any:
        return getattr(trainer.run, name)

    def put(trainer: Any, value: Any) -> None:
        setattr(trainer.run, name, value)

    return property(get, put)
