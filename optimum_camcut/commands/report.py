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
"""`optimum-cli camcut report`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimum.commands.base import CommandInfo

from ..config import PruningConfig
from ..utils.files import read_json
from .command import Command
from .job import check_model
from .options import MODEL, REPEATS, SCORES, Option
from .output import check_file, quiet
from .results import DENSE, PRUNED, RESULTS_NAME, measure_both
from .saved_scores import SavedScores


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..planning.plan import PruningPlan
    from ..scoring.loop import Scores


class ReportCommand(Command):
    COMMAND = CommandInfo(name="report", help="Write a report on a pruned model or a plan.")
    DESCRIPTION = f"""
Writes a report on a pruned checkpoint, or on a plan for a model. What `prune` has measured is taken from
{RESULTS_NAME} in the checkpoint; with --dense, both models are timed in turn where that is missing.

  optimum-cli camcut report --model CHECKPOINT --output report.html
  optimum-cli camcut report --model M --plan pruning_plan.json --output report.html
"""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        return (
            *MODEL,
            Option("plan", "Plan to apply to the model: pruning_plan.json or its folder."),
            Option("dense", "The model before it was pruned. Default: --model, where a --plan is given."),
            SCORES,
            Option("plans", "Other plans to compare with, as LABEL=FILE.", many=True),
            Option("latency_batch_size", "Examples at once.", 8, int, least=1),
            Option("sequence_length", "Tokens in each.", 128, int, least=1),
            REPEATS,
            Option("output", "File to write.", required=True),
            Option("overwrite", "Write it even if it is there.", False, bool),
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        output = Path(arguments.output)
        check_file(output / "report.html" if output.is_dir() else output, arguments.overwrite)
        check_model(arguments.model, arguments.revision)
        if arguments.dense:
            check_model(arguments.dense)
        quiet(arguments.verbose)

        import torch

        from ..planning.measure import LatencyResult, input_size
        from ..planning.plan import PruningPlan
        from ..reporting.report import write_report
        from ..surgery.cut import apply_plan
        from ..tasks.models import load_model

        plans = _plans(arguments.plans or ())
        dtype = getattr(torch, arguments.dtype)
        model = load_model(arguments.model, dtype=dtype, revision=arguments.revision)
        dense = load_model(arguments.dense, dtype=dtype) if arguments.dense else None
        if arguments.plan:
            from ..utils.copies import copy_model

            dense = dense or copy_model(model)
            apply_plan(model, PruningPlan.load(arguments.plan))
        elif getattr(model, "pruning_plan", None) is None:
            raise ValueError(f"{arguments.model} is not pruned; name a plan for it with --plan")
        results, stored = None, Path(arguments.model) / RESULTS_NAME
        if stored.exists() and not arguments.plan:
            results = read_json(stored)
        scores = _scores(arguments, model, dense, results) if arguments.scores else None
        if results is None and dense is not None:
            shape = {name: getattr(arguments, name) for name in ("latency_batch_size", "sequence_length")}
            results = measure_both(dense, model, PruningConfig(sparsity=0.5, **shape), arguments.repeats)
        metrics = latency = conditions = None
        if results is not None:
            conditions = f"{results['latency_batch_size']} x {input_size(model, results['sequence_length'])}"
            metrics = {name: results[name]["metrics"] for name in (DENSE, PRUNED)}
            latency = {name: LatencyResult(**results[name]["latency"]) for name in (DENSE, PRUNED)}
        written = write_report(
            output,
            model,
            dense_model=dense,
            scores=scores,
            metrics=metrics,
            latency=latency,
            latency_conditions=conditions,
            plans=plans or None,
        )
        print(f"Written to {written}.")


def _plans(given: Iterable[str]) -> dict[str, PruningPlan]:
    """The plans to compare with, by their labels."""
    from ..planning.plan import PruningPlan

    plans = {}
    for each in given:
        label, equals, path = each.partition("=")
        if not equals:
            raise ValueError(f"--plans takes LABEL=FILE, got {each!r}")
        plans[label] = PruningPlan.load(Path(path).expanduser())
    return plans


def _scores(
    arguments: argparse.Namespace,
    model: PreTrainedModel,
    dense: PreTrainedModel | None,
    results: Mapping[str, Any] | None,
) -> Scores:
    """Those of a file, of the units of the uncut model.

    Raises:
        `ValueError`: they are of another model, or of nothing that was cut.
    """
    from ..architectures.groups import find_groups
    from ..reporting.report import uncut_scores

    saved = SavedScores.load(arguments.scores)
    kinds = saved.origin.settings["granularity"]
    if not set(saved.values) & set(model.pruning_plan.keep):
        raise ValueError(f"the scores in {saved.path} are of {' and '.join(kinds)}, of which the plan cuts none")
    if dense is not None:
        if type(dense).__name__ == saved.origin.model["class"]:  # else it has another head than was scored
            saved.check_model(dense, arguments.dense or arguments.model)
        return uncut_scores(saved.values, find_groups(dense, kinds))
    if results is not None and results.get("identity") is not None:
        saved.check_identity(results["identity"])
    return saved.values
