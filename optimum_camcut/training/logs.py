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
"""What a run logs: the time of every phase, every cut as numbers, and where TensorBoard shows them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from ..architectures.groups import PrunableGroup
from ..config import PruningConfig
from ..planning.costs import parameters_of, remaining_budget
from ..planning.plan import PruningPlan
from ..planning.times import LatencyTable
from ..reporting.numbers import SPEED
from ..utils.files import read_json


logger = logging.getLogger(__name__)


class AtEpochBegin(TrainerCallback):
    """Calls a function when training has begun for all callbacks, so that loggers are set up."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.function()


class AtEveryStep(TrainerCallback):
    """Calls a function after every batch, also where batches are accumulated."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.function()

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.function()


@contextmanager
def timed(what: str, is_main_process: bool) -> Iterator[None]:
    """Says, on the main process, how long something took."""
    start = time.perf_counter()
    yield
    if is_main_process:
        logger.info("%s took %.2f s", what, time.perf_counter() - start)


def cut_figures(
    plan: PruningPlan,
    before: Sequence[PrunableGroup],
    now: Sequence[PrunableGroup],
    config: PruningConfig,
    latency: LatencyTable | None,
    dense_metrics: Mapping[str, float],
) -> dict[str, float]:
    """What cuts have come to, as numbers to log.

    Args:
        plan: of all cuts so far.
        before, now: the groups before the first cut, and as they are.
        config, latency: see `remaining_budget`.
        dense_metrics: what was measured before.
    """
    figures = {
        "parameters_before": parameters_of(before),
        "parameters": parameters_of(now),
        "sparsity": 1 - remaining_budget(before, now, config, latency),
        **plan.counts(),
        **{f"dense_{name}": value for name, value in dense_metrics.items() if not name.endswith(SPEED)},
    }
    return {f"pruning/{name}": value for name, value in figures.items()}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The `TrainerState` in a checkpoint, as JSON; empty if there is none."""
    path = checkpoint / TRAINER_STATE_NAME
    return read_json(path) if path.exists() else {}


def logged_dense_metrics(checkpoint: Path) -> dict[str, float]:
    """What `cut_figures` told of the dense model, from the history in a checkpoint."""
    figures = [figure for entry in read_state(checkpoint).get("log_history", []) for figure in entry.items()]
    before = "pruning/dense_"
    return {name.removeprefix(before): value for name, value in figures if name.startswith(before)}


def place_tensorboard(trainer: Trainer) -> list[Any]:
    """What says where TensorBoard's files go: the arguments in transformers 4, in 5 its callback, to which that is
    told here if nobody has. What is logged before any training would go to the current folder."""
    if getattr(trainer.args, "logging_dir", None) is not None:
        return [trainer.args]
    places = [board for board in _boards(trainer) if hasattr(board, "logging_dir")]
    for board in places:
        if board.logging_dir is None:
            board.logging_dir = str(Path(trainer.args.output_dir) / "runs" / time.strftime("%b%d_%H-%M-%S"))
    return places


@contextmanager
def tensorboard_run(trainer: Trainer, name: str) -> Iterator[None]:
    """Lets TensorBoard show what is logged inside as a run of its own below the main one, since steps count from zero
    in every phase. Without a name it is the main one."""
    places = [(place, place.logging_dir) for place in place_tensorboard(trainer)]
    if not name:
        yield
        return
    _close_files(trainer)
    for place, folder in places:
        place.logging_dir = str(Path(folder) / name)
    try:
        yield
    finally:
        _close_files(trainer)
        for place, folder in places:
            place.logging_dir = folder


def show_in_tensorboard(trainer: Trainer, tag: str, table: object) -> None:
    """Shows a table as text."""
    for board in _boards(trainer):
        board.on_log(trainer.args, trainer.state, trainer.control, logs={tag: f"```\n{table}\n```"})


def _close_files(trainer: Trainer) -> None:
    """What is logged next opens files where the callback is told to by then. Training ends with this, too."""
    for board in _boards(trainer):
        board.on_train_end(trainer.args, trainer.state, trainer.control)


def _boards(trainer: Trainer) -> list[TensorBoardCallback]:
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, TensorBoardCallback)]
