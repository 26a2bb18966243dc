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
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from optimum.commands.base import CommandInfo

from ..config import PruningConfig
from ..utils.fields import differences
from ..utils.files import read_json, write_json
from .command import Command
from .job import Job, check_job, dataset_name, make_job
from .options import DATA, EVALUATION, MODEL, OUTPUT, REPEATS, SCORES, Option, pruning_config, pruning_options
from .output import check_output
from .quantize import KINDS, check_quantize, evaluate, quantize
from .results import DENSE, PRUNED, QUANTIZED, RESULTS_NAME, measure_both, results_table, weights_on_disk
from .saved_scores import SavedScores, identify


logger = logging.getLogger(__name__)

RUN_NAME = "_run.json"  # a run that has not ended: its flags, and the dense model's metrics
NOT_OF_THE_RUN = ("given", "config", "output", "overwrite", "resume", "dry_run", "verbose", "repeats", "quantize")


class PruneCommand(Command):
    COMMAND = CommandInfo(name="prune", help="Score, prune, recover, evaluate and save a model.")
    DESCRIPTION = """
Does the whole job: scores a fine-tuned model, removes what matters least, recovers by least squares (or by
fine-tuning, or both), evaluates dense and pruned, times both in turn, saves the pruned model and its tokenizer (or
processor), and prints a table.

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
    output: Path | None = None  # once something is written

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        training = (
            Option("epochs", "Epochs of fine-tuning, where the recovery has any. Default: 3.", kind=float),
            Option("learning_rate", "Of fine-tuning. Default: 5e-5.", kind=float),
        )
        default = "Default: reconstruct, which takes seconds (in Python finetune); none for weights, or tokens alone."
        pruning = [
            dataclasses.replace(option, help=f"{option.help} {default}") if option.name == "recovery" else option
            for option in pruning_options()
        ]
        bits = Option(
            "quantize",
            "Also write the pruned model with its weights in so many bits, by torchao, into a folder of that name in "
            "--output, and measure it beside the others.",
            choices=KINDS,
        )
        dry = Option("dry_run", "Print the plan and what it would save; cut and write nothing.", False, bool)
        resume = Option(
            "resume",
            "Go on with the run that was interrupted in --output, with the same flags: with its scores so far, and "
            "from its last checkpoint if the section `training` of the file has, say, save_strategy: epoch.",
            False,
            bool,
        )
        return (*MODEL, *DATA, *EVALUATION, *pruning, *training, SCORES, REPEATS, bits, dry, resume, *OUTPUT)

    def read(self) -> argparse.Namespace:
        arguments = super().read()
        if not {"sparsity", "compression", "min_frequency"} & set(arguments.given):
            self.parser.error(
                "one of the arguments --sparsity and --compression is required, or of a vocabulary --min_frequency"
            )
        return arguments

    def execute(self, arguments: argparse.Namespace) -> None:
        scores = SavedScores.load(arguments.scores) if arguments.scores else None
        if scores is not None:
            scores.check_settings(arguments.given)
            if scores.origin.batch_size is not None:  # by default; --batch_size and the section `training` beat it
                arguments.batch_size = arguments.given.get("batch_size", scores.origin.batch_size)
            if length := scores.origin.data.get("sequence_length"):
                arguments.sequence_length = arguments.given.setdefault("sequence_length", length)
        settings = scores.origin.settings if scores is not None else {}
        kinds = arguments.given.get("granularity", settings.get("granularity", ()))
        nothing = list(kinds) in (["weights"], ["vocabulary"])  # of which is rebuilt
        config = pruning_config(arguments, **{"recovery": "none" if nothing else "reconstruct", **settings})
        if scores is not None and (config.rounds > 1 or config.dense_epochs > 0):
            raise ValueError("rounds and dense_epochs score the model as it then is, so they take no --scores")
        before = interrupted_run(arguments) if arguments.resume else None
        overwrite = arguments.overwrite or before is not None
        output = check_output(arguments.output, overwrite, arguments.model, RUN_NAME)
        if arguments.resume and before is None:
            logger.warning("no run was interrupted in %s: starting from the beginning", output)
        check_job(arguments, evaluates=True)
        if arguments.quantize and arguments.dry_run:
            raise ValueError("--dry_run writes nothing, and so quantizes nothing: leave --quantize out")
        check_quantize(arguments.quantize, int(os.environ.get("WORLD_SIZE", "1")))
        with tempfile.TemporaryDirectory() if arguments.dry_run else nullcontext(output) as folder:
            job = make_job(arguments, config, folder, evaluates=True)
            if scores is not None:
                if job.trainer.is_world_process_zero():  # the weights of the others may not be there yet
                    scores.check(job, arguments)
                job.trainer.scores = scores.values
            if arguments.dry_run:
                self._dry_run(arguments, config, job)
            else:
                self._prune(arguments, config, job, output, before)

    def _dry_run(self, arguments: argparse.Namespace, config: PruningConfig, job: Job) -> None:
        from ..planning.plan import PruningPlan
        from ..training.steps import prepare
        from ..utils.copies import copy_model

        prepare(job.trainer)  # as training does at first
        if config.dense_epochs or config.rounds > 1:
            logger.warning(
                "the plan is for one cut of the model as it is; the run itself would cut it in %d rounds%s",
                config.rounds,
                " after its dense epochs" if config.dense_epochs else "",
            )
        job.trainer.pruning_config = dataclasses.replace(
            config,
            recovery="none",
            rounds=1,
            dense_epochs=0.0,
            rewind=False,
            distill_weight=0.0,
            distill_top_k=None,
            lora_rank=None,
        )
        dense = copy_model(job.model)
        before = getattr(dense, "pruning_plan", None) or PruningPlan({})
        plan = job.trainer.prune()
        if job.trainer.is_world_process_zero():
            results = measure_both(dense, job.model, config, arguments.repeats)
            print("What would be kept" + (", of the model before it was first pruned:" if before.keep else ":"))
            print(plan)
            print(f"\n{results_table(results)}")
            print("Nothing was written (dry run).")

    def _prune(
        self,
        arguments: argparse.Namespace,
        config: PruningConfig,
        job: Job,
        output: Path,
        before: Mapping[str, Any] | None,
    ) -> None:
        from ..planning.plan import plan_of
        from ..tasks.models import load_model
        from ..training.records import record

        is_main = job.trainer.is_world_process_zero()
        measured: dict[str, dict[str, float]] = {}
        identity = None  # of the model that is scored; after dense epochs it is not the one that was given
        if is_main and not config.dense_epochs:
            identity = identify(job.model, arguments.model)
        if is_main and before is None:
            begin_run(arguments, output)
        self.output = output
        if before is not None and before.get(DENSE):
            measured[DENSE], job.task.warned = before[DENSE], True
            record(job.trainer, {f"eval_{name}": value for name, value in measured[DENSE].items()})
        with dense_measured_after_training(job, measured, output) if config.dense_epochs else nullcontext():
            if not config.dense_epochs and not measured:
                measured[DENSE] = job.evaluate()
                keep_dense_metrics(job, measured, output)
            # The command times the uncut model, for its table.
            job.trainer.run.report.times = plan_of(job.model) is not None
            job.trainer.train(resume_from_checkpoint=True if before is not None else None)
        measured[PRUNED] = job.evaluate()
        if is_main:
            (output / RESULTS_NAME).unlink(missing_ok=True)  # those of a model that is overwritten
            for kind in KINDS:  # and that in fewer bits
                shutil.rmtree(output / kind, ignore_errors=True)
        job.trainer.save_model()
        if not is_main:
            return
        pruned = job.model
        dense = load_model(arguments.model, job.task, dtype=pruned.dtype, revision=arguments.revision)
        quantized = None
        if arguments.quantize:
            quantized, folder = quantize(job, output, arguments.quantize)
            measured[QUANTIZED] = evaluate(job, quantized)
        results = measure_both(dense, pruned, config, arguments.repeats, quantized)
        results[PRUNED]["bytes"] = weights_on_disk(output)
        _tell_times(job, results)
        for name, counts in job.tokens.items():
            results[name] |= counts
        if quantized is not None:
            results[QUANTIZED]["bytes"] = weights_on_disk(folder)
            results |= {"quantize": arguments.quantize}
        for name in {DENSE, PRUNED, *measured}:
            results[name]["metrics"] = measured.get(name, {})
        told = {"model": arguments.model, "dataset": dataset_name(arguments), "identity": identity}
        write_json(output / RESULTS_NAME, {**told, **results})
        (output / RUN_NAME).unlink(missing_ok=True)
        print(pruned.pruning_plan)
        print(f"\n{results_table(results)}")
        print(f"Saved in {output}.")

    def interrupted(self) -> str:
        begun = self.output is not None and (self.output / RUN_NAME).exists()
        return "interrupted; go on with --resume" if begun else "interrupted before anything was written"


def _tell_times(job: Job, results: Mapping[str, Any]) -> None:
    """The trainer's report shows the times of the table, where it would show any and has taken none itself."""
    weights = "weights" in job.trainer.pruning_config.granularity
    if job.trainer.run.report.times or weights or job.trainer.is_fsdp_enabled:
        return
    from ..planning.measure import LatencyResult
    from ..training.records import to_report

    report, shape = job.trainer.run.report, (results["latency_batch_size"], results["sequence_length"])
    latency = {name: LatencyResult(**results[name]["latency"]) for name in (DENSE, PRUNED)}
    report.take_times(latency, job.model, shape)
    report.update(partial(to_report, job.trainer))


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides how a run goes."""
    return {name: value for name, value in vars(arguments).items() if name not in NOT_OF_THE_RUN}


def interrupted_run(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What a run that was interrupted has left in the output folder; None if there is nothing to go on from.

    Raises:
        `ValueError`: it had other flags; or the folder holds something else.
    """
    path = Path(arguments.output) / RUN_NAME
    if not path.exists():
        return None
    found = read_json(path)
    different = differences(found.get("flags") or {}, json.loads(json.dumps(_flags(arguments))))
    if different:
        raise ValueError(
            f"the run that was interrupted in {arguments.output} had other flags: {different}. Resume it with the "
            "same, or start anew with --overwrite and without --resume"
        )
    return found


def begin_run(arguments: argparse.Namespace, output: Path) -> None:
    """Marks a folder as that of a run that has not ended. Checkpoints of earlier ones would be taken for its own."""
    output.mkdir(parents=True, exist_ok=True)
    for state in (*output.glob("checkpoint-*/trainer_state.json"), *output.glob("_*/checkpoint-*/trainer_state.json")):
        logger.warning("removing the checkpoint %s of an earlier run", state.parent)
        shutil.rmtree(state.parent)
    write_json(output / RUN_NAME, {"flags": _flags(arguments), DENSE: {}})


def keep_dense_metrics(job: Job, measured: Mapping[str, dict[str, float]], output: Path) -> None:
    """For a run that is resumed when there is no dense model any more."""
    if job.trainer.is_world_process_zero():
        write_json(output / RUN_NAME, {**read_json(output / RUN_NAME), DENSE: measured[DENSE]})


@contextmanager
def dense_measured_after_training(job: Job, measured: dict[str, dict[str, float]], output: Path) -> Iterator[None]:
    """The dense model counts as it is after its epochs, just before the cut."""
    from transformers import TrainerCallback

    class Measure(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if job.trainer.pruning_plan is None:
                measured[DENSE] = job.evaluate()
                keep_dense_metrics(job, measured, output)

    callback = Measure()
    job.trainer.add_callback(callback)
    try:
        yield
    finally:
        job.trainer.remove_callback(callback)
