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
"""What an interrupted run leaves behind, and where the next one takes it up."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import CONFIG_NAME, PruningConfig
from ..planning.plan import PLAN_NAME
from ..utils.fields import differences
from ..utils.files import read_json
from .phases import DENSE
from .progress import has_scores


logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"  # a file in the folder of a checkpoint for as long as it is written


@contextmanager
def marked_unfinished(checkpoint: Path, is_main_process: bool, wait: Callable[[], Any]) -> Iterator[None]:
    """A checkpoint that is written inside this context counts as one only after it. After an error its files go.

    Args:
        checkpoint: its folder, made if need be.
        is_main_process: whether this process sets and removes the mark.
        wait: a barrier of all processes.
    """
    mark = checkpoint / UNFINISHED
    if is_main_process:
        checkpoint.mkdir(parents=True, exist_ok=True)
        try:
            mark.touch()
        except OSError:
            with suppress(OSError):
                checkpoint.rmdir()  # only if there is nothing in it
            raise
    wait()
    try:
        yield
    except BaseException:
        if is_main_process:  # the mark stays: other processes may still be writing there
            for path in checkpoint.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path != mark:
                    with suppress(OSError):
                        path.unlink()
        raise
    wait()
    if is_main_process:
        mark.unlink()


@contextmanager
def names_in_memory(model: nn.Module) -> Iterator[None]:
    """Inside, a model saves its weights by the names that they have in it, since `Trainer` reads what a run has saved
    straight into it. Else transformers 5 writes some in the layout that they were loaded from: each expert apart."""
    saved: Any = model
    before = vars(saved).get("_weight_conversions")
    saved._weight_conversions = []
    try:
        yield
    finally:
        del saved._weight_conversions
        if before is not None:
            saved._weight_conversions = before


def check_all_read(model: nn.Module, missing: Sequence[str]) -> None:
    """Raises `ValueError` if a checkpoint that was just read into a model lacks weights of it.

    Args:
        missing: names that it lacks; those of weights that are tied to others are passed over.
    """
    weights = model.state_dict(keep_vars=True)
    there = {id(value) for name, value in weights.items() if name not in missing}
    there |= {id(weights.get(name)) for name in getattr(model, "_keys_to_ignore_on_save", None) or ()}
    lacking = [name for name in missing if name in weights and id(weights[name]) not in there]
    if lacking:
        raise ValueError(
            f"the checkpoint lacks {len(lacking)} weights of the model, {', '.join(lacking[:3])}"
            f"{', ...' if lacking[3:] else ''}, which would stay as they are: it is of another model, or not whole"
        )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that were written to their end, the oldest first."""
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if path.is_dir() and number.isdigit() and not (path / UNFINISHED).exists():
            found[int(number)] = path
    return [found[number] for number in sorted(found)]


def remove_unfinished_checkpoints(folder: Path) -> None:
    """Removes what saves that did not come to their end have left."""
    for mark in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{UNFINISHED}"):
        _remove(mark.parent)


def remove_old_checkpoints(folder: Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints until `limit` are left; the newest and the best stay."""
    found = checkpoints(folder)
    if limit is None or limit <= 0 or not found:
        return
    protected = {found[-1].resolve()} | ({Path(best).resolve()} if best is not None else set())
    old = [path for path in found if path.resolve() not in protected]
    for path in old[: max(len(found) - max(limit, len(protected)), 0)]:
        _remove(path)


def _remove(checkpoint: Path) -> None:
    """Renames it first: one that is half removed should not look like a checkpoint."""
    removed = checkpoint.with_name(f"_removed-{checkpoint.name}")
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        checkpoint.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def check_same_config(folder: Path, config: PruningConfig) -> None:
    """Raises `ValueError`, with the difference, if the run in a folder was started with another pruning config."""
    path = folder / CONFIG_NAME
    if not path.exists():
        return
    different = differences(read_json(path), config.to_dict())
    if different:
        raise ValueError(
            f"the run in {folder} was started with another pruning config: {different}. Resume it with the same, or "
            "choose another output_dir."
        )


def phase_to_resume(
    resume: str | bool | None, phases: Sequence[str], root: Path, config: PruningConfig, pruned_before: bool
) -> tuple[str, str | None]:
    """The phase to start with, and the checkpoint to start it from.

    Args:
        resume: `resume_from_checkpoint` of `Trainer.train`.
        phases: all of the run, in their order.
        root: `output_dir` of the run.
        config: of the run.
        pruned_before: whether the model was cut before the run.

    Raises:
        `ValueError`: another config than the run was started with, or a checkpoint that is none or of another phase.
    """
    if not resume:
        return phases[0], None
    check_same_config(root, config)
    if resume is True:
        for phase in reversed(phases):
            found = checkpoints(root / phase)
            if found:
                logger.info("going on from %s", found[-1])
                return phase, str(found[-1])
        if phases[0] != DENSE and has_scores(root, phases[0]):
            logger.info("%s has no checkpoint yet, and scores that were begun", root)
        else:
            logger.warning(
                "no checkpoint to resume from in %s: the first phase begins, with the weights that the model has now",
                root,
            )
        return phases[0], None
    path = Path(resume)
    if not path.is_dir():
        raise ValueError(f"resume_from_checkpoint={str(path)!r} is no folder")
    if (path / UNFINISHED).exists():
        raise ValueError(f"{path} was not written to its end; resume from an earlier one")
    phase = next((phase for phase in phases if (root / phase).resolve() == path.resolve().parent), "")
    if (phase != DENSE or pruned_before) != (path / PLAN_NAME).exists():
        raise ValueError(
            f"{path} {'is' if phase == DENSE else 'is not'} a pruned checkpoint, which does not fit its folder; "
            f"checkpoints of the dense epochs are in {root / DENSE}"
        )
    return phase, str(path)
