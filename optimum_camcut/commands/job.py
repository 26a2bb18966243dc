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
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import PruningConfig
from ..utils.files import nearest
from .output import quiet


if TYPE_CHECKING:
    from transformers import (
        EvalPrediction,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from ..tasks import Task

logger = logging.getLogger(__name__)


def training_arguments(
    arguments: argparse.Namespace, folder: str | Path, config: PruningConfig, task: type[Task] | None = None
) -> TrainingArguments:
    """`TrainingArguments`: what suits a command line, the config file's `training` section, flags. Those of
    sequence-to-sequence models for tasks that write text."""
    import torch
    import transformers

    from ..tasks.metrics import larger_is_better

    if not torch.accelerator.is_available():
        # Otherwise processes launched on such a machine do not find each other, and each works alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    section, generates = arguments.training, task is not None and task.generates
    cls = transformers.Seq2SeqTrainingArguments if generates else transformers.TrainingArguments
    known = {field.name for field in dataclasses.fields(cls)} - {"output_dir", "predict_with_generate"}
    if set(section) - known:
        unknown = sorted(set(section) - known)
        raise ValueError(
            f"the training section has unknown settings {', '.join(unknown)}; it takes those of {cls.__name__}, "
            f"except output_dir, which is --output{nearest(unknown[0], known)}"
        )
    values = {
        "per_device_train_batch_size": arguments.batch_size,
        "per_device_eval_batch_size": arguments.batch_size,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "disable_tqdm": not sys.stderr.isatty(),
        "seed": config.seed,
        **({"predict_with_generate": True, "generation_max_length": task.max_target} if task and generates else {}),
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
    return cls(output_dir=str(folder), **values)


@dataclasses.dataclass
class Job:
    """A model and its data, in a trainer that has done nothing yet.

    Args:
        make_trainer (`Callable[..., Trainer]`): makes others of its kind.
        encode: gives the rows to train on and those to evaluate on, as the task's tokenizer encodes them.
        tokens: where the vocabulary was cut, how many tokens the dense and the pruned model know, and how many the
            text to evaluate on takes.
    """

    trainer: Trainer
    task: Task
    make_trainer: Callable[..., Trainer]
    encode: Callable[[], tuple[Any, Any]] = lambda: (None, None)
    tokens: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> PreTrainedModel:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def tokenize_again(self, before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> bool:
        """`CamCutTrainer.tokenize_again`: the rows are read anew."""
        trainer, dense = self.trainer, self._count(before)
        self.task.tokenizer = after
        if self.task.embeds:
            trainer.embedder.use(after)
        with trainer.args.main_process_first(desc="encoding the data"):
            trainer.train_dataset, trainer.eval_dataset = self.encode()
        trainer.data_collator = self.task.collator
        self.tokens = {"dense": self.tokens.get("dense", dense), "pruned": self._count(after)}
        return True

    def _count(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        rows = self.trainer.eval_dataset
        return {"vocabulary": len(tokenizer), "tokens": 0 if rows is None else count_numbers(rows["input_ids"])}

    def evaluate(self, rows: Any = None) -> dict[str, float]:
        """Metrics of the model as it is, the one to compare by first.

        Args:
            rows: to measure on. Of the job's own, the trainer keeps what it finds.
        """
        from ..reporting.numbers import SPEED

        measured = self.trainer.evaluate(rows)
        found = {name.removeprefix("eval_"): float(v) for name, v in measured.items() if not name.endswith(SPEED)}
        found["loss"] = found.pop("loss")  # last
        if not self.task.warned:  # of the dense model, which comes first
            self.task.warn_of_constants(found)
        return {name: found[name] for name in dict.fromkeys((self.task.headline, *found))}


def check_model(name: str, revision: str | None = None) -> None:
    """Finds out whether there is a model, before libraries are imported that take seconds.

    Raises:
        `OSError`: there is no such folder, and nothing of the name on the Hub.
        `ValueError`: the folder holds no model.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / "adapter_config.json").exists():
            found = ", ".join(sorted(each.name for each in path.iterdir())[:20]) or "nothing"
            raise ValueError(f"the folder {name} holds no model, which has a config.json; it holds {found}")
    elif path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {name} to load from (it cannot be the id of a Hub repository)")
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            hf_hub_download(name, "config.json", revision=revision)
        except (OSError, ValueError) as error:
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return  # what it holds in its place is told later
            raise OSError(f"{name} is no folder, and cannot be fetched from the Hub: {error}") from error


def dataset_name(arguments: argparse.Namespace) -> str:
    """What to call the data."""
    return arguments.dataset or arguments.train_file


def data_files(arguments: argparse.Namespace) -> tuple[str | None, str | None, str | None]:
    """The name of a data set, or the files to train on and to evaluate on."""
    return arguments.dataset, arguments.train_file, arguments.validation_file


def check_job(arguments: argparse.Namespace, *, evaluates: bool) -> None:
    """Finds out what is wrong with the flags that name the task, the data and the model, before libraries are imported
    that take seconds; before `make_job`, which finds out the rest.

    Raises:
        `ValueError`, `OSError`: see `make_job`.
        `ImportError`: a library that the task needs is missing.
    """
    from ..tasks import get_task
    from ..tasks.data import choose_split, evaluation_split, splits_and_columns

    task = get_task(arguments.task)
    task.check_libraries()
    if arguments.language and not task.takes_language:
        raise ValueError(f"--language is for automatic-speech-recognition; {task.name} takes none")
    if arguments.dataset is not None and arguments.train_file is not None:
        raise ValueError("give the data by --dataset, or by --train_file (and --validation_file), not by both")
    if arguments.validation_file is not None and arguments.train_file is None:
        raise ValueError("--validation_file goes with --train_file; --dataset has all splits")
    splits = splits_and_columns(*data_files(arguments))
    if splits:
        train = choose_split(splits, arguments.train_split, (), "score")
        own = [train]
        if evaluates:
            own.append(evaluation_split(splits, arguments.eval_split, train) or train)
        for split in own:
            if splits[split] is not None:
                task.choose_columns(splits[split], arguments.text_columns, arguments.label_column)
    check_model(arguments.model, arguments.revision)


def count_numbers(values: Any) -> int:
    """How many numbers there are in lists of lists."""
    return sum(count_numbers(each) if isinstance(each, list) else 1 for each in values)


class Data(NamedTuple):
    """Rows to train on, and those to evaluate on."""

    train: Any
    held_out: Any
    train_split: str
    eval_split: str | None  # None where a part of the former is held out
    ordered: bool = False  # the last part, as rows go on in one another


def _read_data(arguments: argparse.Namespace, evaluates: bool) -> Data:
    from ..tasks.data import choose_split, evaluation_split, first_rows, has_lines, hold_out, load_data

    name, train_file, validation_file = data_files(arguments)
    data = load_data(name, arguments.dataset_config, train_file, validation_file, arguments.streaming)
    train_split = choose_split(data, arguments.train_split, (), "score")
    eval_split = evaluation_split(data, getattr(arguments, "eval_split", None), train_split)
    if arguments.streaming:
        limits = [(train_split, arguments.max_train_samples)]
        if evaluates and eval_split is not None:
            limits.append((eval_split, arguments.max_eval_samples))
        if None in dict(limits).values():
            flags = "--max_train_samples" + (" and --max_eval_samples" if len(limits) > 1 else "")
            raise ValueError(f"--streaming reads the first rows alone: say how many by {flags}")
        data = {s: first_rows(data[s], max(count for split, count in limits if split == s)) for s, _ in limits}
    if eval_split is not None:
        return Data(data[train_split], data[eval_split] if evaluates else None, train_split, eval_split)
    # Of what is held out nothing is scored either, so that scores from a file are by the same rows.
    ordered = has_lines(name, train_file)
    return Data(*hold_out(data[train_split], ordered), train_split, None, ordered)


def _told(data: Data, task: Task, evaluates: bool, arguments: argparse.Namespace) -> str:
    """What is taken for what."""
    from ..tasks.data import HELD_OUT, SEED

    columns = [*task.text_columns, *([task.label_column] if task.label_column else [])]
    told = (
        f"reading {', '.join(columns)} of {data.train_split} ({_rows(data.train, arguments.max_train_samples)} rows)"
    )
    rows = 0 if data.held_out is None else _rows(data.held_out, arguments.max_eval_samples if evaluates else None)
    if data.eval_split is None:
        which = "the last" if data.ordered else f"drawn by seed {SEED}"
        others = f"{rows} others of its rows ({HELD_OUT:.0%}, {which}: there is no other split)"
        told += f"; {'evaluating on' if evaluates else 'left out, to evaluate on:'} {others}"
    elif evaluates:
        told += f"; evaluating on {data.eval_split} ({rows} rows)"
    if evaluates:
        told += f"; comparing by {task.headline} ({'more' if task.larger_is_better else 'less'} is better)"
    return told


def _rows(data: Any, limit: int | None) -> int:
    return len(data) if limit is None else min(len(data), limit)


def _load_rest(
    arguments: argparse.Namespace, task: Task, model: PreTrainedModel
) -> tuple[Callable[..., Trainer], Any]:
    """What makes a trainer of the kind that the task takes, and what makes inputs for the model."""
    from ..tasks.models import checked_tokenizer, load_processor
    from ..training.seq2seq import CamCutSeq2SeqTrainer
    from ..training.trainer import CamCutTrainer

    make_trainer: Callable[..., Trainer] = CamCutSeq2SeqTrainer if type(task).generates else CamCutTrainer
    if task.embeds:
        from ..tasks.embedder import load_embedder
        from ..training.embeddings import CamCutEmbeddingTrainer

        embedder = load_embedder(arguments.model, model, arguments.revision)
        make_trainer, task.prompt = partial(CamCutEmbeddingTrainer, embedder=embedder), embedder.prompt
        if not arguments.tokenizer:
            return make_trainer, checked_tokenizer(embedder.tokenizer, arguments.model, model)
    revision = None if arguments.tokenizer else arguments.revision
    return make_trainer, load_processor(arguments.tokenizer or arguments.model, task, model, revision)


def _encode(task: Task, data: Data, arguments: argparse.Namespace, evaluates: bool) -> tuple[Any, Any]:
    """The rows to train on and those to evaluate on, by the task's tokenizer."""
    rows = task.prepare(data.train, arguments.max_train_samples)
    return rows, task.prepare(data.held_out, arguments.max_eval_samples) if evaluates else None


def make_job(
    arguments: argparse.Namespace,
    config: PruningConfig,
    folder: str | Path,
    *,
    evaluates: bool,
    callbacks: Sequence[TrainerCallback] = (),
) -> Job:
    """Loads the model and the data, in all processes, and says what it takes for what.

    Raises:
        `ValueError`: the flags, the data and the model do not fit each other.
        `OSError`: the data or the model are not there.
    """
    quiet(arguments.verbose)

    import torch
    from transformers import PrinterCallback, set_seed

    from ..tasks import get_task
    from ..tasks.data import folder_of
    from ..tasks.models import load_model

    task_class = get_task(arguments.task)
    training = training_arguments(arguments, folder, config, task_class)
    # The other processes then find in the cache what the first has made.
    with training.main_process_first(desc="reading the data"):
        data = _read_data(arguments, evaluates)
    task = task_class(data.train, arguments.text_columns, arguments.label_column, arguments.label_names)
    set_seed(config.seed)  # a new head is the same in every process
    dtype = getattr(torch, arguments.dtype)
    if evaluates and arguments.metric:
        task.use_metric(arguments.metric)
    model = load_model(arguments.model, task, dtype=dtype, revision=arguments.revision)
    make_trainer, processor = _load_rest(arguments, task, model)
    task.folder, task.language = folder_of(arguments.dataset, arguments.train_file), arguments.language
    if task.generates:
        task.target_length = training.generation_max_length
    task.fit_to(model, processor, arguments.max_length or (arguments.sequence_length if task.packs else None))
    if task_class.generates:
        training.predict_with_generate, training.generation_max_length = task.generates, task.target_length
    logger.info(_told(data, task, evaluates, arguments))

    encode = partial(_encode, task, data, arguments, evaluates)
    with training.main_process_first(desc="encoding the data"):
        encoded, eval_encoded = encode()

    def measure(prediction: EvalPrediction) -> dict[str, float]:
        return task.compute_metrics(prediction, trainer.eval_dataset, data.held_out)

    trainer = make_trainer(
        model=model,
        args=training,
        train_dataset=encoded,
        eval_dataset=eval_encoded,
        processing_class=processor,
        data_collator=task.collator,
        compute_metrics=measure if evaluates else None,
        preprocess_logits_for_metrics=task.preprocess_logits,
        pruning_config=config,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # the standard output is for the table
    job = Job(trainer, task, make_trainer, encode)
    trainer.tokenize_again = job.tokenize_again
    return job
