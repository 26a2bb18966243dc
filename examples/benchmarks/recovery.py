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
"""Quality after recovery by training, at a measured speed-up.

Models that are fine-tuned on GLUE tasks are cut to a fraction of their measured time (`budget="latency"`) and trained
on with the dense model as the teacher, in one `CamCutTrainer.train()`. Then dense and pruned model are timed in turn
and evaluated on the validation set. Every run is one in the output file. What is there is not run again, but for the
timing if `--time_again` is given: on a machine that has gone quiet, say.

    python examples/benchmarks/recovery.py --model 'MODEL-{task}' --output recovery.json --speedups 2 4 --seeds 1 2 3

The models are those of `quality.py`, which makes them with `--finetune BASE`. `--tables` only prints the table of what
is there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import tempfile
import time

import torch
from quality import GlueTask
from run_glue import TASKS
from study import add, add_arguments, find, make_parser, read
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments, set_seed

from optimum_camcut import CamCutTrainer, PruningConfig, PruningPlan, apply_plan, find_groups
from optimum_camcut.config import CHOICES
from optimum_camcut.measure import count_parameters, keeping_memory, random_inputs, time_forward


ROWS = {"sst2": 20_000}  # of the training set; all elsewhere
EPOCHS = {"sst2": 1, "mrpc": 3, "cola": 6, "stsb": 2}  # at four times the speed; in proportion at others
BATCHES_BY_LENGTH = (
    {"group_by_length": True}
    if "group_by_length" in inspect.signature(TrainingArguments).parameters
    else {"train_sampling_strategy": "group_by_length"}
)
KEY = ("task", "target", "recovery", "distill_weight", "rounds", "seed")  # of a run
SETTINGS = (  # that a run records, with the epochs
    "method",
    "num_samples",
    "allocation",
    "multiple_of",
    "latency_batch_size",
    "sequence_length",
    "recovery",
    "rounds",
    "distill_weight",
    "learning_rate",
    "bf16",
)


class Recovery(GlueTask):
    """One dense model on one task."""

    def __init__(self, task: str, options: argparse.Namespace) -> None:
        self.path, self.options = options.model.format(task=task), options
        super().__init__(task, options.dataset_path, self.path)
        if task in ROWS:
            self.train = self.train.shuffle(seed=0).select(range(min(ROWS[task], len(self.train))))

    def load(self) -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(self.path, dtype=torch.float32).eval()

    def run(self, speedup: float, seed: int) -> dict:
        """Cuts and trains once."""
        options = self.options
        set_seed(seed)
        config = PruningConfig(
            method=options.method,
            sparsity=1 - 1 / speedup,
            num_samples=options.num_samples,
            budget="latency",
            allocation=options.allocation,
            multiple_of=options.multiple_of,
            latency_batch_size=options.latency_batch_size,
            sequence_length=options.sequence_length,
            rounds=options.rounds,
            recovery=options.recovery,
            distill_weight=options.distill_weight,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=epochs_of(self.name, speedup, options) / options.rounds,
                learning_rate=options.learning_rate,
                warmup_steps=0.06,
                weight_decay=0.01,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                bf16=options.bf16,
                use_cpu=not torch.accelerator.is_available(),
                save_strategy="no",
                report_to="none",
                disable_tqdm=not options.progress,
                seed=seed,
                **BATCHES_BY_LENGTH,
            )
            trainer = CamCutTrainer(
                model=self.load(),
                args=arguments,
                train_dataset=self.train,
                data_collator=self.collator,
                pruning_config=config,
            )
            dense = self.headline(trainer.predict(self.validation))
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
            pruned = self.headline(trainer.predict(self.validation))
        kept = {group.name: group.size for group in find_groups(trainer.model)}
        return {
            "dense": dense,
            "pruned": pruned,
            "parameters": count_parameters(trainer.model) / count_parameters(self.load()),
            "kept": kept,
            **self.time(kept),
            "seconds": seconds,
        }

    def time(self, kept: dict[str, int]) -> dict:
        """Time of the dense model to that of a pruned one, in turn, after a round that does not count. New models: the
        trained one may still compute in bfloat16. Which units were kept makes no difference."""
        options = self.options
        device = "cuda" if torch.cuda.is_available() else "cpu"
        plan = PruningPlan({name: range(size) for name, size in kept.items()})
        models = [self.load().to(device), apply_plan(self.load(), plan).to(device)]
        inputs = random_inputs(models[0], options.latency_batch_size, options.sequence_length)
        clock = time.thread_time if options.cpu_time else time.perf_counter
        with keeping_memory():
            pairs = [[time_forward(m, inputs, clock) for m in models] for _ in range(options.latency_repeats + 1)]
        ratios = [before / after for before, after in pairs[1:]]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return {"speedup": median, "speedup_quartiles": [low, high]}


def epochs_of(task: str, speedup: float, options: argparse.Namespace) -> float:
    """Of all rounds together."""
    return options.epochs or EPOCHS.get(task, 5) * speedup / 4


def table(rows: list[dict]) -> str:
    """Markdown: by setting and task, the metric of the dense model and, mean and deviation over seeds, the pruned
    one's; then the mean of pruned / dense over the tasks, each capped at 1."""
    tasks = sorted({row["task"] for row in rows})
    lines = [
        f"| wanted | recovery | measured | {' | '.join(tasks)} | pruned / dense |",
        f"|---{'|---' * len(tasks)}|---|---|---|",
    ]
    dense = [next(row["dense"] for row in rows if row["task"] == task) for task in tasks]
    lines.append(f"| dense | | 1 | {' | '.join(f'{value:.1f}' for value in dense)} | 1 |")
    names = ("target", "recovery", "distill_weight", "rounds", "method", "allocation")
    for key in sorted({tuple(row[name] for name in names) for row in rows}):
        own = [row for row in rows if tuple(row[name] for name in names) == key]
        cells = [_cell([row["pruned"] for row in own if row["task"] == task], 1) for task in tasks]
        by_seed: dict[int, list[float]] = {}
        for row in own:
            by_seed.setdefault(row["seed"], []).append(min(row["pruned"] / row["dense"], 1.0))
        ratio = _cell([statistics.mean(values) for values in by_seed.values() if len(values) == len(tasks)], 3)
        speed = [row["speedup"] for row in own]
        target, recovery, weight, rounds, method, allocation = key
        extras = [recovery, *["distilled"] * bool(weight), *[f"{rounds} rounds"] * (rounds > 1)]
        label = ", ".join([f"`{method}`", allocation, *extras])
        measured = f"{statistics.median(speed):.2f}x ({min(speed):.2f} to {max(speed):.2f})"
        lines.append(f"| {target:g}x | {label} | {measured} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = make_parser(__doc__)
    add_arguments(parser, "model", "dataset_path", tasks={"choices": sorted(TASKS)})
    add_arguments(parser, method=PruningConfig(sparsity=0.5).method)
    add_arguments(parser, num_samples={"help": "training examples to score and rebuild on"})
    parser.add_argument("--speedups", nargs="+", type=float, default=[2, 4])
    parser.add_argument("--latency_batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=128)
    parser.add_argument("--latency_repeats", type=int, default=20)
    add_arguments(
        parser, cpu_time={"help": "processor time, where others use the machine too; with one thread"}, multiple_of=16
    )
    parser.add_argument("--time_again", action="store_true", help="what is in the output file")
    add_arguments(parser, allocation={"choices": CHOICES["allocation"]})
    parser.add_argument("--recovery", default="reconstruct+finetune")
    add_arguments(parser, rounds={"default": 1, "help": "of score, cut and recover; they share the epochs"})
    parser.add_argument("--distill_weight", type=float, default=0.9)
    add_arguments(parser, epochs={"help": f"default: at 4x {EPOCHS}, in proportion at others"}, learning_rate=1e-4)
    add_arguments(parser, seeds={"help": None}, bf16={"help": "train in mixed precision; timing is in float32"})
    parser.add_argument("--progress", action="store_true")
    add_arguments(parser, "tables", output={"required": True})
    options = parser.parse_args()
    if not options.tables:
        if not options.model:
            parser.error("--model is required")
        run(options)
    print(table(read(options.output)))


def run(options: argparse.Namespace) -> None:
    for task in options.tasks:
        benchmark = None
        for seed in options.seeds:
            for speedup in options.speedups:
                values = {name: getattr(options, name) for name in SETTINGS}
                values["epochs"] = epochs_of(task, speedup, options)
                report = {"task": task, "target": speedup, "seed": seed, **values}
                key = {name: report[name] for name in KEY}
                if found := find(read(options.output), **key):
                    if any(found.get(name) != value for name, value in values.items()):
                        name = "-".join(map(str, key.values()))
                        raise SystemExit(f"{name} in {options.output} is of other settings: choose another --output")
                    if not options.time_again:
                        continue
                    benchmark = benchmark or Recovery(task, options)
                    report = {**found, **benchmark.time(found["kept"])}
                else:
                    benchmark = benchmark or Recovery(task, options)
                    report |= benchmark.run(speedup, seed)
                print(json.dumps(report), flush=True)
                add(options.output, report, KEY)


if __name__ == "__main__":
    main()
