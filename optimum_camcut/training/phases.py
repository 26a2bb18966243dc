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
"""The phases of a run: where each saves, how much each round removes, and the training arguments of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainingArguments, set_seed

from ..architectures.groups import PrunableGroup
from ..config import PruningConfig
from ..planning.allocation import removed_by
from ..planning.costs import parameters_of, remaining_budget
from ..planning.times import LatencyTable


# Folders in output_dir for the checkpoints of earlier phases. `Trainer.push_to_hub` leaves out what begins with "_".
DENSE, ROUND = "_dense", "_round-"


def phase_names(config: PruningConfig) -> list[str]:
    """The folder of every phase, in their order: the dense epochs, then the rounds."""
    return [*([DENSE] if config.dense_epochs else []), *_round_names(config)]


def _round_names(config: PruningConfig) -> list[str]:
    """The last round saves in `output_dir` itself."""
    return [*(f"{ROUND}{number}" for number in range(1, config.rounds)), ""]


def round_config(
    config: PruningConfig,
    phase: str,
    before: Sequence[PrunableGroup],
    now: Sequence[PrunableGroup],
    latency: LatencyTable | None = None,
) -> PruningConfig:
    """What a round removes of what is left, so that the last one arrives at the target.

    Args:
        config: of the whole run.
        phase: the round, one of `phase_names`.
        before, now: the groups before the first cut, and as they are.
        latency: for `budget="latency"`.
    """
    rounds = _round_names(config)
    if len(rounds) == 1:
        return config
    done = removed_by(rounds.index(phase) + 1, len(rounds))
    if config.sparsity is not None:
        left = remaining_budget(before, now, config, latency)
        sparsity = 1 - (1 - config.sparsity * done) / left
        return dataclasses.replace(config, sparsity=max(sparsity, 1e-9))  # rounding to layers may be ahead
    assert config.compression is not None, "a config has one of both"
    left = parameters_of(now) / parameters_of(before)
    compression = left / (1 - (1 - 1 / config.compression) * done)
    return dataclasses.replace(config, compression=max(compression, 1 + 1e-9))


@contextmanager
def phase_arguments(args: TrainingArguments, config: PruningConfig, phase: str) -> Iterator[None]:
    """Sets the arguments of a phase for as long as it runs."""
    before = {key: getattr(args, key) for key in ("output_dir", "num_train_epochs", "max_steps", "push_to_hub")}
    if phase:
        args.output_dir = str(Path(args.output_dir) / phase)
        args.push_to_hub = False  # only the final model is for others
    if phase == DENSE:
        args.num_train_epochs, args.max_steps = config.dense_epochs, -1
    set_seed(args.seed)  # whatever ran before, or was resumed, a phase draws the same numbers
    try:
        yield
    finally:
        for key, value in before.items():
            setattr(args, key, value)
