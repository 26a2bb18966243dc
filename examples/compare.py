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
"""Compare methods and budgets on a GLUE task: a table and a figure of quality against measured latency.

    python examples/compare.py --model_name_or_path MODEL --task_name sst2 --output_dir outputs/compare

MODEL is fine-tuned on the task; `examples/run_glue.py` without a pruning flag makes one. `--dataset_path DIR` reads
`DIR/<task>/{train,validation}.parquet` in place of the Hub. With several `--seeds`, every one draws another sample to
score on, and the means are shown. The folder gets `comparison.json`, `comparison.md` and `comparison.png`.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from run_glue import TASKS, DataArguments, label_order, load_data, load_metric
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
)

from optimum_camcut import CamCutTrainer, Comparison, PruningConfig, compare
from optimum_camcut.comparison import METHODS, RECOVERIES
from optimum_camcut.config import CHOICES
from optimum_camcut.plots import plot_pareto


HEADLINE = {"cola": "matthews_correlation", "stsb": "spearmanr"}  # accuracy elsewhere


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--task_name", required=True, choices=sorted(TASKS))
    parser.add_argument("--dataset_path")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--recovery", default="reconstruct", choices=RECOVERIES)
    parser.add_argument("--budget", default="params", choices=CHOICES["budget"])
    parser.add_argument("--allocation", default="per_kind", choices=CHOICES["allocation"])
    parser.add_argument("--granularity", nargs="+", default=["heads", "neurons"])
    parser.add_argument("--multiple_of", type=int, default=1)
    parser.add_argument("--num_samples", type=int, default=2048, help="training examples to score and rebuild on")
    parser.add_argument("--max_eval_samples", type=int, help="evaluate on the first rows only")
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--latency_batch_size", type=int, default=8)
    parser.add_argument("--sequence_length", type=int, default=128, help="of the FLOPs and the latency")
    parser.add_argument("--repeats", type=int, default=10, help="timings of every model")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


def main() -> None:
    options = parse()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    task = TASKS[options.task_name]
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model_name_or_path, dtype=getattr(torch, options.dtype)
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    labels = label_order(task, model.config)
    model_class = [labels.index(label) for label in task.labels]  # of each class of the task, and the reverse
    task_class = np.array([task.labels.index(label) for label in labels], dtype=int)
    arguments = DataArguments(options.task_name, options.dataset_path)
    data, glue = load_data(arguments), load_metric(arguments)

    def prepare(rows: dict[str, list]) -> dict[str, list]:
        texts = [rows[column] for column in task.texts]
        features = dict(tokenizer(*texts, truncation=True, max_length=options.max_seq_length))
        features["labels"] = [model_class[label] for label in rows["label"]] if task.labels else rows["label"]
        return features

    def tokenize(split: str, limit: int | None = None):
        rows = data[split] if limit is None else data[split].select(range(min(limit, len(data[split]))))
        return rows.map(prepare, batched=True, remove_columns=rows.column_names, desc="Tokenizing")

    def metric(logits: np.ndarray, references: np.ndarray) -> float:
        """The task's headline metric, in percent."""
        if task.labels:
            predictions, references = task_class[logits.argmax(axis=1)], task_class[references]
        else:
            predictions = logits.squeeze(axis=1)
        found = glue.compute(predictions=predictions, references=references)
        return 100 * found[HEADLINE.get(options.task_name, "accuracy")]

    validation = next((split for split in task.evaluation_splits if split in data), "validation")
    collator, train = DataCollatorWithPadding(tokenizer), tokenize("train")
    evaluation = sorted(tokenize(validation, options.max_eval_samples), key=lambda row: len(row["input_ids"]))
    comparisons = []
    for seed in options.seeds:
        config = PruningConfig(
            sparsity=0.5,
            budget=options.budget,
            allocation=options.allocation,
            granularity=options.granularity,
            multiple_of=options.multiple_of,
            num_samples=options.num_samples,
            latency_batch_size=options.latency_batch_size,
            sequence_length=options.sequence_length,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            # The trainer draws the examples that it would score on, and moves the model to its device.
            trainer = CamCutTrainer(
                model=model,
                args=TrainingArguments(folder, per_device_train_batch_size=32, report_to="none"),
                train_dataset=train,
                data_collator=collator,
                pruning_config=config,
            )
            scoring = trainer.get_scoring_dataloader()
        found = compare(
            model,
            scoring,
            config=config,
            methods=options.methods,
            sparsities=options.sparsities,
            recovery=options.recovery,
            eval_dataloader=DataLoader(evaluation, batch_size=64, collate_fn=collator),
            metric=metric,
            repeats=options.repeats,
        )
        comparisons.append(found)
        result = Comparison.average(comparisons)
        name = f"{options.task_name}, {options.budget} budget, {options.recovery}"
        result.settings["seeds"] = options.seeds[: len(comparisons)]
        result.save(options.output_dir / "comparison.json")  # after every seed: a run that is stopped leaves some
        (options.output_dir / "comparison.md").write_text(result.to_markdown(), encoding="utf-8")
        plot_pareto(result, name).savefig(options.output_dir / "comparison.png", dpi=150)
    print(result)
    print(f"The table and the figure are in {options.output_dir}.")


if __name__ == "__main__":
    main()
