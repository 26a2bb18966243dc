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
"""Quality without training, at fractions of the encoder's multiply-accumulates: cut only, and cut and rebuilt.

Models that are fine-tuned on GLUE tasks are scored on training examples, cut to each fraction of heads and of neurons
(`allocation="per_kind"`) in one round or several, rebuilt by least squares, and evaluated on the validation set. Every
task, method and sample is one run in the output file; what is there is not run again.

    python examples/benchmarks/quality.py --model 'MODEL-{task}' --output quality.json --seeds 1 2 3

`{task}` in a model's path or Hub id stands for the task's name. `--finetune BASE` first fine-tunes BASE on each task
whose model is missing: `python examples/fetch_model.py` fetches one. `--dataset_path DIR` reads
`DIR/<task>/{train,validation}.parquet` in place of the Hub. `--tables` only prints the tables of what is there.

Seconds are those of the processor, of all threads together.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.trainer_utils import PredictionOutput

from optimum_camcut import (
    CamCutTrainer,
    PruningConfig,
    apply_plan,
    find_groups,
    make_plan,
    reconstruct_all,
    score_groups,
    search_plan,
)
from optimum_camcut.planning.allocation import removed_by
from optimum_camcut.planning.costs import remaining_budget
from optimum_camcut.scoring import scorers_of


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_glue import TASKS, DataArguments, load_data, load_metric
from study import add, add_arguments, find, header, line, make_parser, read


PAPER, BASELINES = ("cam_cut", "smooth_cut", "smooth_cam_cut"), ("taylor", "fisher")
HEADLINE = {"cola": "matthews_correlation", "stsb": "spearmanr"}  # accuracy elsewhere
SMOOTHING = ("smooth_samples", "smooth_examples")
KEY = ("task", "method", "rounds", "seed", *SMOOTHING)  # of a run
FINE_TUNING = {"sst2": (20_000, 2), "mrpc": (None, 4), "cola": (None, 3), "stsb": (None, 4)}  # rows and epochs


class GlueTask:
    """The tokenized examples of a task, and its headline metric."""

    def __init__(self, name: str, dataset_path: str | None, tokenizer: str) -> None:
        self.name, self.task = name, TASKS[name]
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.collator = DataCollatorWithPadding(self.tokenizer)
        arguments = DataArguments(name, dataset_path)
        data = load_data(arguments)
        self.train, self.validation = (self.tokenize(data[s]) for s in ("train", self.task.evaluation_splits[0]))
        by_length = np.argsort([len(ids) for ids in self.validation["input_ids"]], kind="stable")
        self.validation = self.validation.select(by_length)  # little padding
        self.metric = load_metric(arguments)

    def tokenize(self, rows: Dataset) -> Dataset:
        def features(batch: dict[str, list]) -> dict[str, list]:
            texts = [batch[column] for column in self.task.texts]
            return {**self.tokenizer(*texts, truncation=True, max_length=128), "labels": batch["label"]}

        return rows.map(features, batched=True, remove_columns=rows.column_names)

    def headline(self, prediction: PredictionOutput) -> float:
        """The task's headline metric, in percent."""
        logits = prediction.predictions
        predictions = logits.argmax(axis=1) if self.task.labels else logits.squeeze(axis=1)
        results = self.metric.compute(predictions=predictions, references=prediction.label_ids)
        return 100 * results[HEADLINE.get(self.name, "accuracy")]


class Benchmark(GlueTask):
    """One dense model on one task."""

    def __init__(self, task: str, options: argparse.Namespace, folder: str) -> None:
        self.path = options.model.format(task=task)
        if options.finetune and not Path(self.path).exists():
            fine_tune(task, options)
        super().__init__(task, options.dataset_path, self.path)
        self.options, self.folder = options, folder
        self.model = AutoModelForSequenceClassification.from_pretrained(self.path, dtype=torch.float32).eval()
        self._predictor = self.trainer(PruningConfig(sparsity=0.5))
        self.dense = self.evaluate(self.model)

    def trainer(self, config: PruningConfig) -> CamCutTrainer:
        arguments = TrainingArguments(
            self.folder, per_device_train_batch_size=32, per_device_eval_batch_size=64, report_to="none"
        )
        return CamCutTrainer(
            model=self.model,
            args=arguments,
            train_dataset=self.train,
            data_collator=self.collator,
            pruning_config=config,
        )

    def precision(self) -> torch.autocast:
        """What scoring and rebuilding run in; evaluation is in float32."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.options.bf16)

    def evaluate(self, model: PreTrainedModel) -> float:
        """The task's headline metric, in percent."""
        self._predictor.model = self._predictor.model_wrapped = model
        return self.headline(self._predictor.predict(self.validation))

    def run(self, method: str, seed: int) -> list[dict]:
        """Scores the dense model once; then cuts, rebuilds and evaluates at each fraction."""
        options, rounds = self.options, self.options.rounds
        settings = {"method": method, "num_samples": options.num_samples, "seed": seed, **smoothing_of(options)}
        batches = list(self.trainer(PruningConfig(sparsity=0.5, **settings)).get_scoring_dataloader())
        everything, counted = find_groups(self.model), PruningConfig(sparsity=0.5, budget="flops")
        rows = [{"keep": keep} for keep in options.keep]
        models = [copy.deepcopy(self.model) for _ in rows]
        seconds = {"scoring_seconds": 0.0, "rebuilding_seconds": 0.0, "searching_seconds": 0.0}

        def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
            start = time.process_time()
            with self.precision():
                result = function(*arguments)
            seconds[name] += time.process_time() - start
            return result

        scores = timed(
            "scoring_seconds", score_groups, self.model, everything, batches, PruningConfig(sparsity=0.5, **settings)
        )
        for number in range(1, rounds + 1):
            for row, model in zip(rows, models):
                groups = find_groups(model)
                left = remaining_budget(everything, groups, counted)
                config = PruningConfig(
                    sparsity=1 - (1 - (1 - row["keep"]) * removed_by(number, rounds)) / left,
                    allocation=options.allocation,
                    budget="flops" if options.allocation == "search" else "params",  # as it is counted here
                    sequence_length=counted.sequence_length,
                    **settings,
                )
                if number > 1:
                    scores = timed("scoring_seconds", score_groups, model, groups, batches, config)
                if options.allocation == "search":
                    plan = timed("searching_seconds", search_plan, model, groups, scores, config, batches)
                else:
                    plan = make_plan(scores, groups, config)
                apply_plan(model, plan)
                if rounds == 1:
                    row["cut"] = self.evaluate(model)
            plans = [model.pruning_plan for model in models]
            timed("rebuilding_seconds", reconstruct_all, models, self.model, plans, batches)
        for row, model in zip(rows, models):
            row["rebuilt"] = self.evaluate(model)
            row["macs"] = remaining_budget(everything, find_groups(model), counted)
            row.update(seconds)  # of all fractions
            print(self.name, method, seed, json.dumps(row), flush=True)
        return rows


def smoothing_of(options: argparse.Namespace) -> dict[str, int]:
    """What was asked of the smooth methods; the rest is as in `PruningConfig`."""
    return {name: getattr(options, name) for name in SMOOTHING if getattr(options, name) is not None}


def fine_tune(task: str, options: argparse.Namespace) -> None:
    """Fine-tunes the base model on a task and saves it where the benchmark looks for it."""
    data = GlueTask(task, options.dataset_path, options.finetune)
    labels = {} if data.task.labels else {"problem_type": "regression"}
    model = AutoModelForSequenceClassification.from_pretrained(
        options.finetune, num_labels=len(data.task.labels) or 1, **labels
    )
    rows, epochs = FINE_TUNING.get(task, (None, 3))
    train = data.train if rows is None else data.train.shuffle(seed=0).select(range(min(rows, len(data.train))))
    target = options.model.format(task=task)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=5e-5,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to="none",
            seed=0,
        )
        trainer = CamCutTrainer(model=model, args=arguments, train_dataset=train, data_collator=data.collator)
        trainer.train()
        trainer.save_model(target)
    data.tokenizer.save_pretrained(target)


def rows_of(runs: list[dict]) -> list[dict]:
    """Every fraction of every run: task, dense metric, method, seed, and what `Benchmark.run` gives."""
    own = [{**{k: v for k, v in run.items() if k != "results"}, "method": _named(run)} for run in runs]
    return [{**run, **row} for run, given in zip(own, runs) for row in given["results"]]


def _named(run: dict) -> str:
    """The method, with what was asked of its smoothing."""
    passes, examples = (run.get(name) for name in SMOOTHING)
    said = [f"{passes} passes"] * (passes is not None) + [f"{examples} examples"] * (examples is not None)
    return ", ".join([run["method"], *said])


def _base(named: str) -> str:
    """The method alone."""
    return named.partition(",")[0]


def tables(rows: list[dict]) -> str:
    """Markdown: the mean over the tasks of metric / dense metric, each capped at 1; by how much the best of the
    paper's methods leads the best baseline in it; then the metrics of every task. Means and standard deviations are
    over the seeds."""
    fractions = sorted({row["keep"] for row in rows}, reverse=True)
    found: dict[tuple, dict[float, dict[int, dict[str, float]]]] = {}
    for row in rows:
        for stage in ("rebuilt", "cut"):
            if stage in row:
                key = (row["method"], row["rounds"], stage)
                ratio = min(row[stage] / row["dense"], 1.0)
                found.setdefault(key, {}).setdefault(row["keep"], {}).setdefault(row["seed"], {})[row["task"]] = ratio
    tasks, scoring = sorted({row["task"] for row in rows}), dict[str, dict[tuple, float]]()
    for row in rows:
        scoring.setdefault(row["method"], {})[row["task"], row["rounds"], row["seed"]] = row["scoring_seconds"]
    lines = [header(f"mean ratio, {', '.join(tasks)}", fractions)]
    means: dict[tuple, dict[float, dict[int, float]]] = {}  # setting -> fraction -> seed -> mean over all tasks
    for key, by_keep in sorted(found.items(), key=lambda item: (item[0][2], item[0][1], item[0][0])):
        means[key] = {
            k: {seed: statistics.mean(of.values()) for seed, of in seeds.items() if len(of) == len(tasks)}
            for k, seeds in by_keep.items()
        }
        lines.append(line(_label(*key), [list(means[key].get(k, {}).values()) for k in fractions], 3))
    lines += ["", header("best of the paper's methods less best of `taylor` and `fisher`, points", fractions)]
    for rounds, stage in sorted({key[1:] for key in means}):
        cells = [_lead(means, rounds, stage, keep) for keep in fractions]
        lines.append(f"| {_stage(rounds, stage)} | {' | '.join(cells)} |")
    for task in tasks:
        own = [row for row in rows if row["task"] == task]
        lines += ["", header(f"{task}, dense {own[0]['dense']:.1f}", fractions)]
        for key in sorted({(row["method"], row["rounds"]) for row in own}, key=lambda key: (key[1], key[0])):
            cells = [
                [r["rebuilt"] for r in own if (r["method"], r["rounds"], r["keep"]) == (*key, keep)]
                for keep in fractions
            ]
            lines.append(line(_label(*key, "rebuilt"), cells, 1))
    lines += ["", "| method | seconds of scoring, mean of all tasks and samples |", "|---|---|"]
    lines += [f"| `{method}` | {statistics.mean(times.values()):.1f} |" for method, times in scoring.items()]
    return "\n".join(lines)


def _lead(means: dict[tuple, dict[float, dict[int, float]]], rounds: int, stage: str, keep: float) -> str:
    """Between the two that are best in the mean over the seeds that all methods have."""
    found = {
        method: by_keep[keep]
        for (method, *setting), by_keep in means.items()
        if setting == [rounds, stage] and _base(method) in (*PAPER, *BASELINES) and by_keep.get(keep)
    }
    seeds = set.intersection(*map(set, found.values())) if found else set()
    groups = [[method for method in found if _base(method) in methods] for methods in (PAPER, BASELINES)]
    if not seeds or not all(groups):
        return "-"
    ours, theirs = (max(group, key=lambda m: statistics.mean(found[m][seed] for seed in seeds)) for group in groups)
    leads = [100 * (found[ours][seed] - found[theirs][seed]) for seed in seeds]
    spread = f" ± {statistics.stdev(leads):.1f}" if len(leads) > 1 else ""
    return f"{statistics.mean(leads):+.1f}{spread} (`{ours}`, `{theirs}`)"


def _label(method: str, rounds: int, stage: str) -> str:
    return f"`{method}`, {_stage(rounds, stage)}"


def _stage(rounds: int, stage: str) -> str:
    return "cut only" if stage == "cut" else f"rebuilt, {rounds} round" + "s" * (rounds > 1)


def main() -> None:
    parser = make_parser(__doc__)
    add_arguments(parser, "model", "finetune", "dataset_path", tasks={"choices": sorted(TASKS)})
    methods = list(scorers_of(("heads", "neurons")))
    add_arguments(parser, methods={"default": [PruningConfig(sparsity=0.5).method], "choices": methods})
    add_arguments(parser, "seeds", keep=[0.6, 0.5, 0.4, 0.3, 0.2], num_samples=2048)
    add_arguments(parser, rounds={"default": 1, "help": "of score, cut and rebuild"})
    parser.add_argument("--allocation", default="per_kind", choices=["per_kind", "global", "uniform", "search"])
    parser.add_argument("--smooth_samples", type=int, help="noisy passes; default: as in PruningConfig")
    parser.add_argument("--smooth_examples", type=int, help="of those to score on, for the smooth methods; the same")
    add_arguments(parser, bf16={"help": "score and rebuild under autocast; not evaluate"})
    add_arguments(parser, "tables", output={"required": True})
    options = parser.parse_args()
    if not options.tables:
        if not options.model:
            parser.error("--model is required")
        run(options)
    print(tables(rows_of(read(options.output))))


def run(options: argparse.Namespace) -> None:
    for task in options.tasks:
        benchmark = None
        for seed in options.seeds:
            for method in options.methods:
                smoothing = [smoothing_of(options).get(name) for name in SMOOTHING]
                key = dict(zip(KEY, (task, method, options.rounds, seed, *smoothing)))
                asked = {"num_samples": options.num_samples, "bf16": options.bf16, "allocation": options.allocation}
                if found := find(read(options.output), **key):
                    kept = [row["keep"] for row in found["results"]]
                    if kept != options.keep or any(
                        found.get(name, "per_kind") != value for name, value in asked.items()
                    ):
                        name = "-".join(map(str, key.values()))
                        raise SystemExit(
                            f"{name} in {options.output} is of other --num_samples, --keep, --allocation or --bf16: "
                            "choose another --output"
                        )
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    benchmark = benchmark or Benchmark(task, options, folder)
                    results = benchmark.run(method, seed)
                add(options.output, {**key, **asked, "dense": benchmark.dense, "results": results}, KEY)


if __name__ == "__main__":
    main()
