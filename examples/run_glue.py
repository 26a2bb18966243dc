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
"""Fine-tune and prune a Transformer on a GLUE task, alone or under `accelerate launch`.

    accelerate launch examples/run_glue.py \
        --model_name_or_path google-bert/bert-base-uncased --task_name sst2 --output_dir outputs/sst2 \
        --method smooth_cut --sparsity 0.5 --dense_epochs 2 --recovery finetune --num_train_epochs 2

Every field of `PruningConfig` and of `TrainingArguments` is a flag; `--seed` serves both. Without a pruning flag this
is plain fine-tuning. Pruning is a part of `train()`, so a pruning flag implies `--do_train`; with neither `--do_train`
nor `--do_eval`, both are done. With `--dataset_path DIR`, data and metric are local; only the model may need the Hub.

Two processes on CPUs take `accelerate launch --multi_gpu --num_processes 2`, whatever the flag's name says: with
`--cpu`, accelerate starts one.
"""

import copy
import dataclasses
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import datasets
import evaluate
import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from optimum_camcut import CamCutTrainer, PruningConfig


logger = logging.getLogger(__name__)

LOCAL_METRIC = Path(__file__).resolve().parent / "glue_metric"


@dataclass(frozen=True)
class Task:
    """Text columns of a GLUE task and the names of its classes; no classes means regression."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    evaluation_splits: tuple[str, ...] = ("validation",)


TASKS = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable")),
    "mnli": Task(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("validation_matched", "validation_mismatched"),
    ),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "stsb": Task(("sentence1", "sentence2")),
    "wnli": Task(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Path or Hub id of the model to fine-tune."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the model's own code from its repository, as an already pruned model needs."},
    )


@dataclass
class DataArguments:
    task_name: str = field(metadata={"help": "GLUE task.", "choices": sorted(TASKS)})
    dataset_path: str | None = field(
        default=None,
        metadata={"help": "Folder with <task>/{train,validation}.parquet, in place of nyu-mll/glue from the Hub."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer inputs are cut to this number of tokens."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every example to max_seq_length, not each batch to its longest."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    overwrite: bool = field(default=False, metadata={"help": "Write into output_dir even if it is not empty."})


def one_type(annotation: Any) -> Any:
    """`HfArgumentParser` takes one type a flag: of several, the first."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if get_origin(annotation) in (Union, UnionType) and len(kinds) > 1 else annotation


# The flags of `PruningConfig`, less its seed, whose flag `TrainingArguments` has. Unlike `PruningConfig` itself, they
# may all be left out.
PruningArguments = dataclasses.make_dataclass(
    "PruningArguments",
    [
        (name, one_type(annotation), copy.copy(PruningConfig.__dataclass_fields__[name]))
        for name, annotation in get_type_hints(PruningConfig).items()
        if name not in ("seed", "method")
    ]
    # No default, so that naming a method without an amount is noticed.
    + [("method", str | None, field(default=None, metadata=PruningConfig.__dataclass_fields__["method"].metadata))],
)


def make_pruning_config(arguments: Any, seed: int) -> PruningConfig | None:
    """The pruning that `arguments`, a `PruningArguments`, asks for: none if no pruning flag was given."""
    if arguments == PruningArguments():
        return None
    return PruningConfig(**{name: value for name, value in vars(arguments).items() if value is not None}, seed=seed)


def load_data(arguments: DataArguments) -> datasets.DatasetDict:
    if arguments.dataset_path is None:
        return datasets.load_dataset("nyu-mll/glue", arguments.task_name)
    folder = Path(arguments.dataset_path) / arguments.task_name
    files = {file.stem: str(file) for file in sorted(folder.glob("*.parquet"))}
    if "train" not in files or not any(split.startswith("validation") for split in files):
        found = ", ".join(sorted(files)) or "nothing"
        raise FileNotFoundError(f"Expected train.parquet and validation.parquet in {folder}; found {found}.")
    return datasets.load_dataset("parquet", data_files=files)


def load_metric(arguments: DataArguments) -> evaluate.EvaluationModule:
    """The Hub's metric; the local one, with the same results, where the data are local or the Hub is out of reach."""
    if arguments.dataset_path is None:
        try:
            return evaluate.load("glue", arguments.task_name, keep_in_memory=True)
        except OSError as error:
            logger.warning(f"No metric from the Hub ({error}); {LOCAL_METRIC} takes its place.")
    return evaluate.load(str(LOCAL_METRIC), arguments.task_name, keep_in_memory=True)


def label_order(task: Task, config: transformers.PretrainedConfig) -> tuple[str, ...]:
    """Class names in the model's own order, if it was trained on these very classes; else in the task's order."""
    own = tuple(config.id2label[index].lower() for index in range(config.num_labels))
    if sorted(own) == sorted(task.labels):
        return own
    if task.labels and not all(name.startswith("label_") for name in own):
        told = ", ".join(task.labels)
        logger.warning(f"The model's classes are {', '.join(own)}; it now learns {told}, numbered in this order.")
    return task.labels


def main() -> None:
    if not torch.accelerator.is_available():
        # Otherwise processes launched on such a machine do not find each other, and each trains alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    parser = HfArgumentParser((ModelArguments, DataArguments, PruningArguments, TrainingArguments))
    model_args, data_args, pruning_args, training_args = parser.parse_args_into_dataclasses()
    pruning_config = make_pruning_config(pruning_args, training_args.seed)
    if pruning_config is not None or not training_args.do_eval:
        training_args.do_eval = training_args.do_eval or not training_args.do_train
        training_args.do_train = True
    if training_args.do_predict:
        raise ValueError("--do_predict: the labels of GLUE's test splits are not public; use --do_eval.")
    output_dir = Path(training_args.output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not data_args.overwrite and training_args.resume_from_checkpoint is None:
            raise ValueError(
                f"The output folder {output_dir} is not empty. Choose another, or pass --overwrite, or continue with "
                "--resume_from_checkpoint."
            )

    logging.basicConfig(format="[%(levelname)s|%(name)s] %(message)s", level=training_args.get_process_log_level())
    if training_args.should_log:
        transformers.utils.logging.set_verbosity_info()
    set_seed(training_args.seed)

    task = TASKS[data_args.task_name]
    hub = {"revision": model_args.revision, "trust_remote_code": model_args.trust_remote_code}
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, **hub)
    labels = label_order(task, config)
    if task.labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    else:
        config.num_labels = 1
        config.problem_type = "regression"
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, **hub)
    if tokenizer.pad_token is None:  # decoders are trained without one
        tokenizer.pad_token = tokenizer.eos_token
        config.pad_token_id = tokenizer.pad_token_id
    # A checkpoint in half precision is trained in full; mixed precision is a training argument.
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path, config=config, dtype=torch.float32, **hub
    )
    # Its loss is a mean over examples. Trainer would take it for a sum over tokens, and multiply it by the numbers of
    # processes and of accumulation steps.
    model.accepts_loss_kwargs = False

    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    model_class = [labels.index(label) for label in task.labels]  # of each class of the task, and the reverse
    task_class = np.array([task.labels.index(label) for label in labels])

    def prepare(rows: dict[str, list]) -> dict[str, list]:
        texts = [rows[column] for column in task.texts]
        padding = "max_length" if data_args.pad_to_max_length else False
        features = dict(tokenizer(*texts, padding=padding, max_length=max_length, truncation=True))
        features["labels"] = [model_class[label] for label in rows["label"]] if task.labels else rows["label"]
        return features

    def tokenize(rows: datasets.Dataset, limit: int | None) -> datasets.Dataset:
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        return rows.map(prepare, batched=True, remove_columns=rows.column_names, desc="Tokenizing")

    # The other processes then find the tokenized data in the cache.
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        data = load_data(data_args)
        train_dataset = tokenize(data["train"], data_args.max_train_samples)
        splits = [split for split in task.evaluation_splits if split in data] or ["validation"]
        eval_datasets = {split: tokenize(data[split], data_args.max_eval_samples) for split in splits}
        metric = load_metric(data_args)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        if task.labels:
            predictions, references = task_class[logits.argmax(axis=1)], task_class[prediction.label_ids]
        else:
            predictions, references = logits.squeeze(axis=1), prediction.label_ids
        results = metric.compute(predictions=predictions, references=references)
        if len(results) > 1:
            results["combined_score"] = float(np.mean(list(results.values())))
        return results

    trainer = CamCutTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_datasets[splits[0]],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        pruning_config=pruning_config,
    )
    if training_args.do_train:
        resume = training_args.resume_from_checkpoint
        resume = True if str(resume).lower() == "true" else resume  # from the newest checkpoint there is
        metrics = trainer.train(resume_from_checkpoint=resume).metrics
        metrics["train_samples"] = len(train_dataset)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
        if trainer.pruning_plan is not None:
            logger.info(f"What is kept:\n{trainer.pruning_plan}")
    if training_args.do_eval:
        metrics = {}
        for split, dataset in eval_datasets.items():
            suffix = "_mm" if split == "validation_mismatched" else ""
            results = trainer.evaluate(dataset) | {"eval_samples": len(dataset)}
            metrics |= {name + suffix: value for name, value in results.items()}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if training_args.push_to_hub:
        trainer.push_to_hub(
            language="en",
            tasks="text-classification",
            dataset=f"GLUE {data_args.task_name.upper()}",
            dataset_tags="nyu-mll/glue",
            dataset_args=data_args.task_name,
        )


if __name__ == "__main__":
    main()
