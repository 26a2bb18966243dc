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
"""`optimum-cli camcut compare`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from ..config import PruningConfig
from ..utils.files import write_text
from .command import Command
from .job import Job, check_job, dataset_name, make_job
from .options import (
    DATA,
    EVALUATION,
    MODEL,
    OUTPUT,
    PRUNING_FIELDS,
    REPEATS,
    TRAINING_FIELDS,
    Option,
    pruning_options,
)
from .output import check_output, quiet


if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class CompareCommand(Command):
    COMMAND = CommandInfo(name="compare", help="Compare methods and budgets by quality and latency.")
    DESCRIPTION = """
Prunes copies of a fine-tuned model by several methods to several budgets, evaluates them and times each in turn with
the dense model. With several --seeds, every one draws another sample to score on, and the means are shown. The folder
gets comparison.json, comparison.md and, with matplotlib, comparison.png.

  optimum-cli camcut compare --model M --dataset D --task T --methods cam_cut taylor --sparsities 0.3 0.5 --output O
"""
    FIXED = ("method", "sparsity", "compression", "recovery", "seed")  # compared, or not of use here

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        own = [option for option in pruning_options() if option.name not in (*cls.FIXED, *TRAINING_FIELDS)]
        return (
            *MODEL,
            *DATA,
            *EVALUATION,
            Option(
                "methods",
                "What to score by.",
                ["cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher"],
                many=True,
            ),
            Option("sparsities", "Fractions of the budget to remove.", [0.3, 0.5, 0.7], float, many=True),
            Option("seeds", "Draw the scoring samples. Default: a config file's seed, else 0.", [0], int, many=True),
            Option(
                "recovery",
                "What follows the cut; nothing is trained here. Default: reconstruct; none for single weights.",
                choices=("reconstruct", "none"),
            ),
            *own,
            REPEATS,
            *OUTPUT,
        )

    def adapt(self, settings: dict[str, Any]) -> dict[str, Any]:
        """A `seed` is the default of `--seeds`, and of a recovery the part counts that trains nothing."""
        if settings.get("seed") is not None:
            settings = {"seeds": [settings["seed"]], **settings}
        recovery = str(settings.get("recovery")).split("+")
        if "finetune" in recovery:
            settings = {**settings, "recovery": "reconstruct" if "reconstruct" in recovery else None}
            logger.info("of the recovery %s in the file, nothing is trained to compare", "+".join(recovery))
        return settings

    def execute(self, arguments: argparse.Namespace) -> None:
        output = check_output(arguments.output, arguments.overwrite)
        names = [name for name in PRUNING_FIELDS if name not in (*self.FIXED, *TRAINING_FIELDS)]
        settings = {name: arguments.given[name] for name in names if name in arguments.given}
        if "vocabulary" in settings.get("granularity", ()):
            raise ValueError("compare evaluates all models on data encoded once: leave out --granularity vocabulary")
        configs = [PruningConfig(**settings, sparsity=0.5, recovery="none", seed=seed) for seed in arguments.seeds]
        for method in arguments.methods:
            for sparsity in arguments.sparsities:
                dataclasses.replace(configs[0], method=method, sparsity=sparsity)  # fails at what is unknown
        weights = "weights" in configs[0].granularity
        recovery = arguments.recovery or ("none" if weights else "reconstruct")
        dataclasses.replace(configs[0], recovery=recovery)
        check_job(arguments, evaluates=True)
        quiet(arguments.verbose)

        from ..reporting.compare import compare
        from ..reporting.comparison import Comparison
        from ..training.losses import scoring_loss

        comparisons = []
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(arguments, configs[0], folder, evaluates=True)
            for config in configs:
                job.trainer.pruning_config = config
                found = compare(
                    job.model,
                    job.trainer.get_scoring_dataloader(),
                    functools.partial(self._quality, job),
                    config,
                    methods=arguments.methods,
                    sparsities=arguments.sparsities,
                    recovery=recovery,
                    loss_function=functools.partial(scoring_loss, job.trainer) if job.task.embeds else None,
                    repeats=arguments.repeats,
                    disable_tqdm=job.trainer.args.disable_tqdm,
                )
                comparisons.append(found)
                better = job.task.larger_is_better  # known once a metric of evaluate has been measured
                mean = Comparison.average(comparisons)
                settings = {
                    **mean.settings,
                    "model": arguments.model,
                    "dataset": dataset_name(arguments),
                    "metric": job.task.headline,
                    "seeds": arguments.seeds[: len(comparisons)],
                }
                result = dataclasses.replace(mean, settings=settings, larger_is_better=better)
                self._write(result, output)  # after every seed: a run that is stopped leaves some
        print(result)
        print(f"Written to {output}.")

    @staticmethod
    def _quality(job: Job, model: PreTrainedModel) -> float:
        """The task's metric of a model."""
        from transformers import PrinterCallback

        own = job.trainer
        trainer = job.make_trainer(
            model,
            own.args,
            data_collator=own.data_collator,
            eval_dataset=own.eval_dataset,
            processing_class=own.processing_class,
            compute_metrics=own.compute_metrics,
            preprocess_logits_for_metrics=own.preprocess_logits_for_metrics,
        )
        trainer.remove_callback(PrinterCallback)
        return next(iter(Job(trainer, job.task, job.make_trainer).evaluate().values()))

    @staticmethod
    def _write(result: Any, output: Path) -> None:
        output.mkdir(parents=True, exist_ok=True)
        result.save(output / "comparison.json")
        write_text(output / "comparison.md", result.to_markdown())
        try:
            from ..reporting.plots import plot_pareto

            title = f"{result.settings['metric']} on {result.settings['dataset']}"
            plot_pareto(result, title).savefig(output / "comparison.png", dpi=150)
        except ImportError as error:
            logger.warning("no figure: %s", error)
