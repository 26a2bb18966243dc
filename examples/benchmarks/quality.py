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
"""Quality of every method without retraining: cut only, and cut and rebuilt by least squares.

A model that is fine-tuned on a GLUE task is scored on training examples, cut to each fraction of heads and of neurons
(`allocation="per_kind"`), and evaluated on the validation set.

    python examples/benchmarks/quality.py --model_name_or_path MODEL --task_name sst2 --output quality.json

MODEL is a path or Hub id; `examples/run_glue.py` without pruning flags makes one. `--dataset_path DIR` reads
`DIR/<task>/{train,validation}.parquet` in place of the Hub. `--table quality.json` prints the table of an earlier run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

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

from optimum_camcut import CamCutTrainer, PruningConfig, apply_plan, find_groups, make_plan, reconstruct
from optimum_camcut.scoring import SCORERS


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_glue import TASKS, DataArguments, load_data, load_metric


HEADLINE = {"cola": "matthews_correlation", "stsb": "spearmanr"}  # accuracy elsewhere


class GlueTask:
    """The tokenized examples of a task, and its headline metric."""

    def __init__(self, name: str, dataset_path: str | None, tokenizer: str) -> None:
        self.name, self.task = name, TASKS[name]
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.collator = DataCollatorWithPadding(self.tokenizer)
        arguments = DataArguments(name, dataset_path)
        data = load_data(arguments)
        self.train, self.validation = (self.tokenize(data[s]) for s in ("train", self.task.evaluation_splits[0]))
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

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        super().__init__(options.task_name, options.dataset_path, options.model_name_or_path)
        self.options, self.folder = options, folder
        self.model = AutoModelForSequenceClassification.from_pretrained(
            options.model_name_or_path, dtype=torch.float32
        ).eval()

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

    def evaluate(self, trainer: CamCutTrainer, model: PreTrainedModel) -> float:
        """The task's headline metric, in percent."""
        trainer.model = trainer.model_wrapped = model
        return self.headline(trainer.predict(self.validation))

    def run(self, method: str, seed: int) -> list[dict]:
        """Scores once; cuts, rebuilds and evaluates at each fraction."""
        results = []
        config = PruningConfig(method=method, sparsity=0.5, num_samples=self.options.num_samples, seed=seed)
        trainer = self.trainer(config)
        start = time.perf_counter()
        scores, groups = trainer.score(), find_groups(self.model)
        scoring_seconds = time.perf_counter() - start
        for keep in self.options.keep:
            plan = make_plan(scores, groups, PruningConfig(method=method, sparsity=1 - keep))
            model = apply_plan(copy.deepcopy(self.model), plan)
            row = {"method": method, "seed": seed, "keep": keep, "scoring_seconds": scoring_seconds}
            row["cut"] = self.evaluate(trainer, model)
            start = time.perf_counter()
            reconstruct(model, self.model, plan, trainer.get_scoring_dataloader())
            row["rebuild_seconds"] = time.perf_counter() - start
            row["rebuilt"] = self.evaluate(trainer, model)
            trainer.model = trainer.model_wrapped = self.model
            results.append(row)
            print(json.dumps(row), flush=True)
        return results


def table(report: dict) -> str:
    """Markdown: a row a method, mean over the seeds and their standard deviation."""
    rows = report["results"]
    fractions = sorted({row["keep"] for row in rows}, reverse=True)
    columns = [(keep, stage) for stage in ("cut", "rebuilt") for keep in fractions]
    titles = [f"{keep:.0%}{' + rebuild' if stage == 'rebuilt' else ''}" for keep, stage in columns]
    lines = [
        f"| {report['task']}, dense {report['dense']:.1f} | {' | '.join(titles)} |",
        "|---" * (len(titles) + 1) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for keep, stage in columns:
            values = [row[stage] for row in rows if row["method"] == method and row["keep"] == keep]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--task_name", default="sst2", choices=sorted(TASKS))
    parser.add_argument("--dataset_path")
    parser.add_argument("--methods", nargs="+", default=list(SCORERS), choices=list(SCORERS))
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.3], help="fractions of heads and of neurons")
    parser.add_argument("--num_samples", type=int, default=2048)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each draws another scoring sample")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--table", type=Path, help="only print the table of this JSON file")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    if not options.model_name_or_path:
        parser.error("--model_name_or_path is required")
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, folder)
        trainer = benchmark.trainer(PruningConfig(sparsity=0.5))
        report = {
            "model": options.model_name_or_path,
            "task": options.task_name,
            "num_samples": options.num_samples,
            "dense": benchmark.evaluate(trainer, benchmark.model),
            "results": [],
        }
        for seed in options.seeds:
            for method in options.methods:
                report["results"] += benchmark.run(method, seed)
                if options.output:
                    options.output.write_text(json.dumps(report, indent=2))
    print(table(report))


if __name__ == "__main__":
    main()
