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
"""`optimum-cli camcut score`."""

from __future__ import annotations

import argparse
import tempfile

from optimum.commands.base import CommandInfo

from ..reporting.tables import as_markdown, as_text
from ..utils.files import write_text
from .command import Command
from .job import check_job, make_job
from .options import DATA, MODEL, OUTPUT, SCORING_FIELDS, Option, pruning_config, pruning_options
from .output import check_output
from .saved_scores import SCORES_NAME, SUMMARY_NAME, Origin, SavedScores, scores_table


class ScoreCommand(Command):
    COMMAND = CommandInfo(name="score", help="Score heads, neurons, layers or weights, and write the scores.")
    DESCRIPTION = f"""
Scores what may be removed from a fine-tuned model, on training examples, and writes the scores into a folder:
{SCORES_NAME}, which `prune --scores` takes, and a summary, {SUMMARY_NAME}.
"""
    TOGETHER = True

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        names = (*SCORING_FIELDS, "sequence_length")  # which texts are cut into blocks of
        own = tuple(option for option in pruning_options() if option.name in names)
        return (*MODEL, *DATA, *own, *OUTPUT)

    def execute(self, arguments: argparse.Namespace) -> None:
        config = pruning_config(arguments, sparsity=0.5)  # which scores do not depend on
        output = check_output(arguments.output, arguments.overwrite, arguments.model)
        check_job(arguments, evaluates=False)
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(arguments, config, folder, evaluates=False)
            # Before the weights are sharded, if they are.
            origin = Origin.of(job, arguments) if job.trainer.is_world_process_zero() else None
            scores = job.trainer.score()
        if origin is not None:
            output.mkdir(parents=True, exist_ok=True)
            SavedScores(output / SCORES_NAME, scores, origin).save()
            lines = scores_table(scores)
            title = f"Scores by {config.method} of {arguments.model}; a higher score is kept longer.\n\n"
            write_text(output / SUMMARY_NAME, title + as_markdown(lines))
            print(as_text(lines))
            print(f"Written to {output}.")
