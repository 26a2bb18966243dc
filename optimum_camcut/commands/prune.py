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
"""`optimum-cli camcut prune`."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from optimum.commands.base import CommandInfo

from ..config import PruningConfig
from ..files import write_json
from .command import Command
from .job import Job, make_job
from .options import DATA, EVALUATION, MODEL, OUTPUT, REPEATS, SCORES, Option, pruning_config, pruning_options
from .output import check_output
from .results import DENSE, PRUNED, RESULTS_NAME, measure_both, results_table, weights_on_disk
from .saved_scores import SavedScores, identify


class PruneCommand(Command):
    COMMAND = CommandInfo(name="prune", help="Score, prune, recover, evaluate and save a model.")
    DESCRIPTION = """
Does the whole job: scores a fine-tuned model, removes what matters least, recovers by least squares (or by
fine-tuning, or both), evaluates dense and pruned, times both in turn, saves the pruned model and its tokenizer, and
prints a table.

  optimum-cli camcut prune --model M --dataset D --task text-classification --sparsity 0.5 --output O

Every field of PruningConfig is a flag. A config file holds flags by name and a section `training`, of
TrainingArguments, for the recovery by fine-tuning:

  sparsity: 0.5
  recovery: reconstruct+finetune
  training:
    num_train_epochs: 2
    learning_rate: 3e-5
"""
    TOGETHER = True

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        training = (
            Option("epochs", "Epochs of fine-tuning, where the recovery has any. Default: 3.", kind=float),
            Option("learning_rate", "Of fine-tuning. Default: 5e-5.", kind=float),
        )
        pruning = [
            dataclasses.replace(option, help=f"{option.help} Default: reconstruct; none for single weights.")
            if option.name == "recovery"
            else option
            for option in pruning_options()
        ]
        dry = Option("dry_run", "Print the plan and what it would save; cut and write nothing.", False, bool)
        return (*MODEL, *DATA, *EVALUATION, *pruning, *training, SCORES, REPEATS, dry, *OUTPUT)

    def read(self) -> argparse.Namespace:
        arguments = super().read()
        if "sparsity" not in arguments.given and "compression" not in arguments.given:
            self.parser.error("one of the arguments --sparsity and --compression is required")
        return arguments

    def execute(self, arguments: argparse.Namespace) -> None:
        scores = SavedScores.load(arguments.scores) if arguments.scores else None
        if scores is not None:
            scores.check_settings(arguments.given)
            if scores.origin.batch_size is not None:  # by default; --batch_size and the section `training` beat it
                arguments.batch_size = arguments.given.get("batch_size", scores.origin.batch_size)
        settings = scores.origin.settings if scores is not None else {}
        weights = "weights" in arguments.given.get("granularity", settings.get("granularity", ()))
        config = pruning_config(arguments, **{"recovery": "none" if weights else "reconstruct", **settings})
        if scores is not None and (config.rounds > 1 or config.dense_epochs > 0):
            raise ValueError("rounds and dense_epochs score the model as it then is, so they take no --scores")
        output = check_output(arguments.output, arguments.overwrite or arguments.dry_run, arguments.model)
        if arguments.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                self._dry_run(arguments, config, scores, folder)
        else:
            self._prune(arguments, config, scores, output)

    def _dry_run(
        self, arguments: argparse.Namespace, config: PruningConfig, scores: SavedScores | None, folder: str
    ) -> None:
        import copy

        from ..plan import PruningPlan

        config = dataclasses.replace(
            config, recovery="none", rounds=1, dense_epochs=0.0, rewind=False, distill_weight=0.0
        )
        job = make_job(arguments, config, folder, evaluates=False)
        dense = copy.deepcopy(job.model)
        self._use(scores, job, arguments)
        before = getattr(dense, "pruning_plan", None) or PruningPlan({})
        plan = job.trainer.prune()
        if job.trainer.is_world_process_zero():
            results = measure_both(dense, job.model, config, arguments.repeats)
            print("What would be kept" + (", of the model before it was first pruned:" if before.keep else ":"))
            print(plan)
            print(f"\n{results_table(results)}")
            print("Nothing was written (dry run).")

    def _prune(
        self, arguments: argparse.Namespace, config: PruningConfig, scores: SavedScores | None, output: Path
    ) -> None:
        from ..tasks.models import load_model

        measured: dict[str, dict[str, float]] = {}
        job = make_job(arguments, config, output, evaluates=True)
        self._use(scores, job, arguments)
        identity = None  # of the model that is scored; after dense epochs it is not the one that was given
        if job.trainer.is_world_process_zero() and not config.dense_epochs:
            identity = identify(job.model, arguments.model)
        with dense_measured_after_training(job, measured) if config.dense_epochs else nullcontext():
            if not config.dense_epochs:
                measured[DENSE] = job.evaluate()
            job.trainer.train()
        measured[PRUNED] = job.evaluate()
        if job.trainer.is_world_process_zero():
            (output / RESULTS_NAME).unlink(missing_ok=True)  # those of a model that is overwritten
        job.trainer.save_model()
        if not job.trainer.is_world_process_zero():
            return
        pruned = job.model
        dense = load_model(arguments.model, job.task, dtype=pruned.dtype, revision=arguments.revision)
        results = measure_both(dense, pruned, config, arguments.repeats)
        results[PRUNED]["bytes"] = weights_on_disk(output)
        for name in (DENSE, PRUNED):
            results[name]["metrics"] = measured.get(name, {})
        told = {"model": arguments.model, "dataset": arguments.dataset, "identity": identity}
        write_json(output / RESULTS_NAME, {**told, **results})
        print(pruned.pruning_plan)
        print(f"\n{results_table(results)}")
        print(f"Saved in {output}.")

    @staticmethod
    def _use(scores: SavedScores | None, job: Job, arguments: argparse.Namespace) -> None:
        """Hands over scores from a file, if they are those that the job would compute."""
        if scores is None:
            return
        if job.trainer.is_world_process_zero():  # the weights of the others may not be there yet
            scores.check(job, arguments)
        job.trainer.scores = scores.values


@contextmanager
def dense_measured_after_training(job: Job, measured: dict[str, dict[str, float]]) -> Iterator[None]:
    """The dense model counts as it is after its epochs, just before the cut."""
    from transformers import TrainerCallback

    class Measure(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if job.trainer.pruning_plan is None:
                measured[DENSE] = job.evaluate()

    callback = Measure()
    job.trainer.add_callback(callback)
    try:
        yield
    finally:
        job.trainer.remove_callback(callback)
