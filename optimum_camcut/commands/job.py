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
"""`Job`: a model and its data in a trainer, as the flags ask for."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PruningConfig
from .output import quiet


if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ..tasks import Task


def training_arguments(arguments: argparse.Namespace, folder: str | Path, config: PruningConfig) -> Any:
    """`TrainingArguments`: what suits a command line, the config file's `training` section, flags."""
    import torch
    from transformers import TrainingArguments

    from ..tasks.metrics import larger_is_better

    if not torch.accelerator.is_available():
        # Otherwise processes launched on such a machine do not find each other, and each works alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    section = arguments.training
    known = {field.name for field in dataclasses.fields(TrainingArguments)} - {"output_dir"}
    if set(section) - known:
        raise ValueError(
            f"the training section has unknown settings {', '.join(sorted(set(section) - known))}; it takes those of "
            "TrainingArguments, but for output_dir, which is --output"
        )
    values = {
        "per_device_train_batch_size": arguments.batch_size,
        "per_device_eval_batch_size": arguments.batch_size,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
        "seed": config.seed,
        **section,
    }
    for flag, names in {
        "batch_size": ("per_device_train_batch_size", "per_device_eval_batch_size"),
        "epochs": ("num_train_epochs",),
        "learning_rate": ("learning_rate",),
    }.items():
        values |= {name: arguments.given[flag] for name in names if flag in arguments.given}
    if values.get("metric_for_best_model"):
        values.setdefault("greater_is_better", larger_is_better(str(values["metric_for_best_model"])))
    return TrainingArguments(output_dir=str(folder), **values)


@dataclasses.dataclass
class Job:
    """A model and its data, in a trainer that has done nothing yet."""

    trainer: Trainer
    task: Task

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the model as it is, the one to compare by first."""
        from ..card import SPEED

        measured = self.trainer.evaluate()
        found = {name.removeprefix("eval_"): float(v) for name, v in measured.items() if not name.endswith(SPEED)}
        found["loss"] = found.pop("loss")  # last
        return {name: found[name] for name in dict.fromkeys((self.task.headline, *found))}


def make_job(
    arguments: argparse.Namespace,
    config: PruningConfig,
    folder: str | Path,
    *,
    evaluates: bool,
    callbacks: Sequence = (),
) -> Job:
    """Loads the model and the data, in all processes."""
    quiet(arguments.verbose)

    import torch
    from transformers import PrinterCallback, set_seed

    from ..tasks import get_task
    from ..tasks.data import EVALUATION_SPLITS, choose_split, load_data
    from ..tasks.models import load_model, load_tokenizer
    from ..trainer import CamCutTrainer

    task_class = get_task(arguments.task)  # before anything is loaded
    training = training_arguments(arguments, folder, config)
    # The other processes then find in the cache what the first has made.
    with training.main_process_first(desc="reading the data"):
        data = load_data(arguments.dataset, arguments.dataset_config)
    train = data[choose_split(data, arguments.train_split, (), "score")]
    task = task_class(train, arguments.text_columns, arguments.label_column)
    held_out = None
    if evaluates:
        held_out = data[choose_split(data, arguments.eval_split, EVALUATION_SPLITS, "evaluate")]
    set_seed(config.seed)  # a new head is the same in every process
    dtype = getattr(torch, arguments.dtype)
    model = load_model(arguments.model, task, dtype=dtype, revision=arguments.revision)
    revision = None if arguments.tokenizer else arguments.revision
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model, model, revision)
    task.fit_to(model, tokenizer, arguments.max_length)
    if evaluates and arguments.metric:
        task.use_metric(arguments.metric)
    with training.main_process_first(desc="tokenizing the data"):
        encoded = task.prepare(train, arguments.max_train_samples)
        eval_encoded = task.prepare(held_out, arguments.max_eval_samples) if evaluates else None
    trainer = CamCutTrainer(
        model=model,
        args=training,
        train_dataset=encoded,
        eval_dataset=eval_encoded,
        processing_class=tokenizer,
        data_collator=task.collator,
        compute_metrics=(lambda prediction: task.metrics(prediction, eval_encoded, held_out)) if evaluates else None,
        preprocess_logits_for_metrics=task.preprocess_logits,
        pruning_config=config,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # the standard output is for the table
    return Job(trainer, task)
