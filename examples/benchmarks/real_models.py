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
"""Real models cut to 70 and 50 % of their heads and neurons without training: cut only, and rebuilt by least squares.

    python examples/benchmarks/real_models.py speech --model tiny.en=openai/whisper-tiny.en --data SPEECH \
        --output O.json
    python examples/benchmarks/real_models.py text --model smollm2=HuggingFaceTB/SmolLM2-135M-Instruct --output O.json
    python examples/benchmarks/real_models.py images --model dinov2=facebook/dinov2-small --output O.json
    python examples/benchmarks/real_models.py sentences --model mpnet=sentence-transformers/all-mpnet-base-v2 \
        --output O.json

What is measured is in `real_tasks.py`. A model is `NAME=PATH`, PATH a folder or a Hub id. Every model, method and
sample is one run in the output file; what is there is not run again. `--tables` only prints the tables.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time

from real_tasks import TASKS, RealTask
from study import add, add_arguments, find, header, line, make_parser, matches, read
from transformers import PreTrainedModel

from optimum_camcut import (
    PrunableGroup,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    make_plan,
    reconstruct_all,
    score_groups,
    search_plan,
)
from optimum_camcut.measure import count_parameters
from optimum_camcut.scoring import scorers_of


KEY = ("task", "model", "method", "seed", "allocation")  # of a run; no allocation is the default one


class Scored:
    """A dense model with scores of its heads and neurons."""

    def __init__(self, task: RealTask, method: str, seed: int) -> None:
        start = time.perf_counter()
        self.task, self.method, self.seed = task, method, seed
        self.batches, self.all_groups = task.batches(seed), find_groups(task.model)
        # A model may share one key-value head among all queries: its neurons alone go, and more of them.
        kinds = {group.kind for group in self.all_groups if group.size > 1}
        self.groups = [group for group in self.all_groups if group.kind in kinds]
        to_score = task.to_score(self.batches)
        self.scores = score_groups(task.model, self.groups, to_score, self.config(0.5), loss_function=task.loss)
        self.seconds = time.perf_counter() - start

    def config(self, keep: float, **changes: str) -> PruningConfig:
        kinds = tuple(dict.fromkeys(group.kind for group in self.groups))
        sparsity = (1 - keep) * (parameters_of(self.all_groups) / parameters_of(self.groups))
        return PruningConfig(self.method, granularity=kinds, sparsity=sparsity, seed=self.seed, **changes)

    def plan(self, keep: float, allocation: str | None) -> PruningPlan:
        config = self.config(keep, **({"allocation": allocation} if allocation else {}))
        if allocation == "search":
            return search_plan(self.task.model, self.groups, self.scores, config, self.task.to_score(self.batches))
        return make_plan(self.scores, self.groups, config)


def run(scored: Scored, keep: list[float], allocation: str | None = None) -> dict:
    """Cuts the dense model to each fraction, rebuilds and measures."""
    task, start = scored.task, time.perf_counter()
    models = [apply_plan(copy.deepcopy(task.model), scored.plan(fraction, allocation)) for fraction in keep]
    planned = time.perf_counter()
    rows = [
        {
            "keep": fraction,
            "parameters": count_parameters(model),
            "of_layers": share_of(model, scored.all_groups),
            "cut": task.measure(model),
        }
        for fraction, model in zip(keep, models)
    ]
    cut = time.perf_counter()
    reconstruct_all(models, task.model, [model.pruning_plan for model in models], scored.batches)
    rebuilt = time.perf_counter()
    for row, model in zip(rows, models):
        row["rebuilt"] = task.measure(model)
    seconds = {"scoring_seconds": scored.seconds, "rebuilding_seconds": rebuilt - cut}
    seconds["planning_seconds"] = planned - start
    return {**{name: round(value, 1) for name, value in seconds.items()}, "results": rows}


def share_of(model: PreTrainedModel, groups: list[PrunableGroup]) -> float:
    """What is left of the parameters that go with these heads and neurons."""
    left = {group.name: group.size for group in find_groups(model)}
    return round(sum(left.get(group.name, 0) * group.unit_parameters for group in groups) / parameters_of(groups), 4)


def parameters_of(groups: list[PrunableGroup]) -> int:
    return sum(group.size * group.unit_parameters for group in groups)


def tables(runs: list[dict], peers: list[dict]) -> str:
    """Markdown, one a model and measure. Means and standard deviations are over the seeds.

    Args:
        peers: figures of others' code on the same work, which are put into the file by hand.
    """
    parts = []
    for task, model in dict.fromkeys((run["task"], run["model"]) for run in runs):
        own = [run for run in runs if (run["task"], run["model"]) == (task, model)]
        fractions = sorted({row["keep"] for run in own for row in run["results"]}, reverse=True)
        for measure, dense in own[0]["dense"].items():
            lines = [header(f"{model}: {measure}, dense {dense:.1f}", fractions)]
            for stage in ("rebuilt", "cut"):
                for method, allocation in dict.fromkeys((run["method"], run.get("allocation")) for run in own):
                    same = {"method": method, "allocation": allocation}
                    rows = [row for run in own if matches(run, same) for row in run["results"]]
                    cells = [[row[stage][measure] for row in rows if row["keep"] == keep] for keep in fractions]
                    name = f"`{method}`, `{allocation}`" if allocation else f"`{method}`"
                    lines.append(line(f"{name}, {'cut only' if stage == 'cut' else stage}", cells, 1))
            for peer in dict.fromkeys(row["peer"] for row in peers if row["model"] == model):
                rows = [row for row in peers if (row["peer"], row["model"]) == (peer, model)]
                cells = [[row[measure] for row in rows if row["keep"] == keep] for keep in fractions]
                lines.append(line(f"{peer}, its published code", cells, 1))
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def run_all(options: argparse.Namespace) -> None:
    for name, path in options.model:
        task = None
        for seed, method in itertools.product(options.seeds, options.methods):
            scored = None
            for allocation in options.allocations:
                key = dict(zip(KEY, (options.task, name, method, seed, allocation)))
                if found := find(read(options.output), **key):
                    if [row["keep"] for row in found["results"]] != options.keep:
                        raise SystemExit(f"{key} in {options.output} is of other --keep: choose another --output")
                    continue
                task = task or TASKS[options.task](path, options)
                scored = scored or Scored(task, method, seed)
                result = {**key, **task.settings(), "dense": task.dense, **run(scored, options.keep, allocation)}
                print(json.dumps(result), flush=True)
                add(options.output, result, KEY)


def named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, got {text!r}")
    return name, path


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("task", choices=list(TASKS))
    add_arguments(parser, model={"type": named_path, "nargs": "+", "metavar": "NAME=PATH", "help": "folder or Hub id"})
    parser.add_argument("--data", help="folder in place of the Hub: see the task's class")
    methods = list(scorers_of(("heads", "neurons")))
    add_arguments(parser, methods={"default": ["smooth_cut", "fisher", "magnitude"], "choices": methods})
    add_arguments(parser, keep=[0.7, 0.5], seeds=[1, 2])
    allocations = ["global", "uniform", "per_kind", "search"]
    parser.add_argument(
        "--allocations", nargs="+", default=[None], choices=allocations, help="default: that of PruningConfig"
    )
    add_arguments(parser, num_samples={"default": None, "help": "examples to score on"})
    parser.add_argument("--rebuild_samples", type=int, help="examples to rebuild from; the first are scored on")
    add_arguments(parser, examples={"help": "to measure on"})
    parser.add_argument("--window", type=int, default=256, help="of text: tokens of an example")
    add_arguments(parser, "tables", output={"required": True})
    options = parser.parse_args()
    if not options.tables:
        if not options.model:
            parser.error("--model is required")
        run_all(options)
    print(tables(read(options.output), read(options.output, "peers")))


if __name__ == "__main__":
    main()
