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
"""`optimum-cli camcut score | prune | report | benchmark | compare`.

Every call of `optimum-cli` imports this, so torch, transformers and the like are imported where a command runs.
Tables go to the standard output by `print`: they are what these commands are for. What users can put right ends in one
line on the standard error and exit code 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from ..config import CHOICES, PruningConfig
from ..files import read_json, replacing, write_json, write_text


if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ..scoring.loop import Scores
    from ..tasks import Task

logger = logging.getLogger(__name__)

SCORES_NAME, SUMMARY_NAME, RESULTS_NAME = "scores.safetensors", "scores.md", "pruning_results.json"
DENSE, PRUNED = "dense", "pruned"
SECTIONS = ("training",)  # of a config file, beside the flags
PROCESSES = """
Several processes on one machine, with GPUs or without (whatever the flag's name says):
  accelerate launch --multi_gpu --num_processes 2 --module optimum.commands.optimum_cli camcut {name} ...
"""


# --- flags ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag, which can stand in the file of `--config` too."""

    name: str
    help: str
    default: Any = None
    kind: type = str
    many: bool = False
    choices: tuple[str, ...] | None = None
    required: bool = False

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        keywords: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS}
        if self.kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords |= {"type": self.kind, "choices": self.choices, "nargs": "+" if self.many else None}
        default = self.default not in (None, False) and "Default:" not in self.help
        shown = " ".join(map(str, self.default)) if self.many and default else self.default
        text = self.help + (f" Default: {shown}." if default else "")
        parser.add_argument(f"--{self.name}", help=text.replace("%", "%%"), **keywords)
        if "_" in self.name:  # --dry-run is --dry_run
            parser.add_argument(f"--{self.name.replace('_', '-')}", help=argparse.SUPPRESS, **keywords)

    def tokens(self, value: Any) -> list[str]:
        """A value from a file, as it would stand on the command line."""
        if self.kind is bool and isinstance(value, bool):
            return [f"--{self.name}" if value else f"--no-{self.name}"]
        if self.many and isinstance(value, list):
            return [f"--{self.name}", *map(str, value)]
        if isinstance(value, list | dict | bool):
            raise ValueError(
                f"{self.name!r} should be {'a list' if self.many else f'one {self.kind.__name__}'}, got {value!r}"
            )
        return [f"--{self.name}={value}"]


@functools.cache
def pruning_options() -> tuple[Option, ...]:
    """The fields of `PruningConfig`."""
    hints, found = get_type_hints(PruningConfig), []
    for field in dataclasses.fields(PruningConfig):
        kind = next((each for each in get_args(hints[field.name]) if each is not type(None)), hints[field.name])
        many = field.name == "granularity"
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        choices = CHOICES.get(field.name)
        found.append(Option(field.name, field.metadata["help"], default, kind, many, choices))
    return tuple(found)


PRUNING_FIELDS = tuple(field.name for field in dataclasses.fields(PruningConfig))
# What scores depend on.
SCORING_FIELDS = (
    "method",
    "granularity",
    "num_samples",
    "smooth_samples",
    "noise_std",
    "noise_scale",
    "dropout",
    "shift",
    "seed",
)
# What only a trainer does.
TRAINING_FIELDS = ("rounds", "rewind", "dense_epochs", "distill_weight", "distill_temperature")
MODEL = (
    Option("model", "Model to start from: a folder or a Hub id.", required=True),
    Option("revision", "Its branch, tag or commit on the Hub."),
    Option(
        "dtype",
        "Weights are loaded, worked with and saved in this.",
        "float32",
        choices=("float32", "bfloat16", "float16"),
    ),
)
DATA = (
    Option(
        "dataset",
        "Folder with files named by split (train.parquet, validation.csv, ...), or that save_to_disk of datasets "
        "wrote; or a Hub id, with its configuration after a colon (nyu-mll/glue:sst2).",
        required=True,
    ),
    Option("dataset_config", "Configuration of the data set on the Hub."),
    Option(
        "task",
        "text-classification (one text or two; classes, or numbers to predict), token-classification, "
        "question-answering, multiple-choice, fill-mask or text-generation.",
        required=True,
    ),
    Option("text_columns", "Columns to read, in order. Default: those of a usual name.", many=True),
    Option("label_column", "Column of the labels. Default: that of a usual name."),
    Option("train_split", "Split to score on, to rebuild on and to train on.", "train"),
    Option("max_length", "Longer inputs are cut to this number of tokens. Default: 128; 384 for answers.", kind=int),
    Option("max_train_samples", "Use the first rows of the training split only.", kind=int),
    Option("tokenizer", "Tokenizer, if it is not in the model's folder."),
    Option("batch_size", "Examples at once, on each device.", 32, int),
)
EVALUATION = (
    Option("eval_split", "Split to evaluate on. Default: validation, or one of a like name; else test."),
    Option("max_eval_samples", "Evaluate on its first rows only.", kind=int),
    Option(
        "metric",
        "What to compare by: a metric of the task, or one of evaluate, by name or path, with its configuration after "
        "a colon (glue:cola). Default: accuracy, Spearman's correlation or the F1 of answers.",
    ),
)
REPEATS = Option("repeats", "Timings of every model.", 10, int)
SCORES = Option("scores", "Scores that the command score wrote, in place of scoring: the file or its folder.")
OUTPUT = (
    Option("output", "Folder to write to.", required=True),
    Option("overwrite", "Write into it even if it is not empty.", False, bool),
)
COMMON = (
    Option(
        "config",
        "JSON or YAML file with any of these flags by name, a pruning_config.json, say; a flag on the command line "
        "beats it. Flags of the other commands may be in it, too.",
    ),
    Option("verbose", "Log what is done, and show where errors come from.", False, bool),
)


class Command(BaseOptimumCLICommand):
    """One of the commands: its flags, its file and its errors."""

    DESCRIPTION: ClassVar[str]
    TOGETHER: ClassVar[bool] = False  # several processes can share the work

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Its flags."""
        raise NotImplementedError

    @classmethod
    def parse_args(cls, parser: argparse.ArgumentParser) -> None:
        required = " ".join(f"--{option.name} {option.name.upper()}" for option in cls.options() if option.required)
        parser.usage = f"%(prog)s {required} [options]"
        parser.description = cls.DESCRIPTION
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        if cls.TOGETHER:
            parser.epilog = PROCESSES.format(name=parser.prog.rpartition(" ")[2])
        for option in (*cls.options(), *COMMON):
            option.add_to(parser)

    def run(self) -> None:
        """Runs the command. Errors that users can put right end it with a line and exit code 1."""
        try:
            arguments = self.read()
            verbose = arguments.verbose
            if getattr(arguments, "repeats", 1) < 1:
                raise ValueError(f"repeats should be at least 1, got {arguments.repeats}")
            if not self.TOGETHER and int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise ValueError("this command measures time, and runs in one process: start it without accelerate")
        except (OSError, ValueError) as error:
            raise self.failure(error) from error
        logging.basicConfig(
            format="[%(levelname)s|%(name)s] %(message)s", level=logging.INFO if verbose else logging.WARNING
        )
        try:
            self.execute(arguments)
        except (ImportError, OSError, TypeError, ValueError) as error:
            if verbose:
                raise
            raise self.failure(error) from error

    def failure(self, error: Exception) -> SystemExit:
        return SystemExit(f"{self.parser.prog}: error: {' '.join(str(error).split())}")

    def execute(self, arguments: argparse.Namespace) -> None:
        """Does what the command is for."""
        raise NotImplementedError

    def read(self) -> argparse.Namespace:
        """All flags: from the command line, else from the file, else by default. `given` names the former two."""
        options = {option.name: option for option in (*self.options(), *COMMON)}
        flags = {name: value for name, value in vars(self.args).items() if name in options}
        from_file, sections = {}, {name: {} for name in SECTIONS}
        if "config" in flags:
            from_file, sections = self._read_file(flags["config"], options)
        if "sparsity" in flags or "compression" in flags:  # one takes the place of the other
            from_file = {name: value for name, value in from_file.items() if name not in ("sparsity", "compression")}
        given = {**from_file, **flags}
        values = {**{name: option.default for name, option in options.items()}, **sections, **given}
        missing = [f"--{name}" for name, option in options.items() if option.required and values[name] is None]
        if missing:
            self.parser.error(f"the following arguments are required: {', '.join(missing)}")
        return argparse.Namespace(**values, given=given)

    def _read_file(self, path: str, options: Mapping[str, Option]) -> tuple[dict[str, Any], dict[str, Any]]:
        values = read_settings(path)
        known = set(options).union(*({option.name for option in each.options()} for each in COMMANDS), SECTIONS)
        unknown = sorted(set(map(str, values)) - known)
        if unknown:
            raise ValueError(f"{path} has unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        sections = {name: values.get(name) or {} for name in SECTIONS}
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise ValueError(f"{name!r} in {path} should be settings by name, got {section!r}")
        own = [(options[name], value) for name, value in values.items() if name in options and value is not None]
        tokens = [token for option, value in own for token in option.tokens(value)]
        parsed = vars(self.parser.parse_args(tokens))  # values of a wrong kind are told as on the command line
        return {name: parsed[name] for name in options if name in parsed}, sections


def read_settings(path: str) -> dict[str, Any]:
    """Reads a JSON or a YAML file of settings by name.

    Raises:
        `OSError`: it cannot be read.
        `ValueError`: it holds something else, or is of another kind.
    """
    kind = Path(path).suffix.lower()
    if kind == ".json":
        return read_json(path)
    if kind not in (".yaml", ".yml"):
        raise ValueError(f"the config {path} should be a .json, .yaml or .yml file")
    import yaml

    class Loader(yaml.SafeLoader):
        """Of YAML 1.2, where 1e-4 is a number."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold settings by name, such as sparsity: 0.5; it holds {values!r}")
    return values


def pruning_config(arguments: argparse.Namespace, **defaults: Any) -> PruningConfig:
    """The config that the flags ask for."""
    given = {name: value for name, value in arguments.given.items() if name in PRUNING_FIELDS}
    return PruningConfig(**{**defaults, **given})


# --- what the commands share ----------------------------------------------------------------------------------------


def check_output(path: str, overwrite: bool, model: str | None = None) -> Path:
    """Raises `ValueError` unless a folder can be written to without losing anything."""
    output = Path(path)
    if output.exists() and not output.is_dir():
        raise ValueError(f"the output {output} is a file; name a folder")
    if model is not None and output.is_dir() and Path(model).is_dir() and output.samefile(model):
        raise ValueError(f"the output {output} is the folder of the model, which would be lost; name another")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"the output folder {output} is not empty: choose another, or pass --overwrite")
    return output


def check_file(path: Path, overwrite: bool) -> None:
    """Raises `ValueError` if a file is there, and not to be lost."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: choose another name, or pass --overwrite")


def set_output(verbose: bool) -> None:
    """Silences what libraries tell, and their progress bars where nobody watches."""
    import datasets
    from transformers.utils import logging as transformers_logging

    if not verbose:
        transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()


def training_arguments(arguments: argparse.Namespace, folder: str | Path, config: PruningConfig) -> Any:
    """`TrainingArguments`: what suits a command line, the config file's `training` section, flags."""
    import torch
    from transformers import TrainingArguments

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
    import torch
    from transformers import PrinterCallback, set_seed

    from ..tasks import EVALUATION_SPLITS, choose_split, get_task, load_data, load_model, load_tokenizer
    from ..trainer import CamCutTrainer

    task_class = get_task(arguments.task)  # before anything is loaded
    training = training_arguments(arguments, folder, config)
    set_output(arguments.verbose)
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


def measured_length(model: PreTrainedModel, config: PruningConfig) -> int:
    """Tokens to measure with: what the config says, or as many as the model takes."""
    return min(
        config.sequence_length, getattr(model.config, "max_position_embeddings", None) or config.sequence_length
    )


def costs(model: PreTrainedModel, length: int) -> dict[str, float]:
    """Parameters, FLOPs of one sequence and bytes of the weights."""
    from ..measure import count_bytes, count_flops, count_parameters

    return {
        "parameters": count_parameters(model),
        "flops": count_flops(model, 1, length),
        "bytes": count_bytes(model),
    }


def weights_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def measure_both(
    dense: PreTrainedModel, pruned: PreTrainedModel, config: PruningConfig, repeats: int
) -> dict[str, Any]:
    """Costs and latency of both, measured in turn, as JSON types."""
    from ..measure import measure_latency

    length = measured_length(pruned, config)
    dense.to(pruned.device)
    models = {DENSE: dense, PRUNED: pruned}
    times = measure_latency(models, config.latency_batch_size, length, repeats)
    found: dict[str, Any] = {
        name: {**costs(model, length), "latency": dataclasses.asdict(times[name]), "metrics": {}}
        for name, model in models.items()
    }
    return {**found, "latency_batch_size": config.latency_batch_size, "sequence_length": length}


def results_table(results: Mapping[str, Any]) -> str:
    """Dense against pruned."""
    length, batch = results["sequence_length"], results["latency_batch_size"]
    dense, pruned = results[DENSE], results[PRUNED]
    rows = [
        ("parameters (M)", "parameters", 1e-6, ".2f"),
        (f"FLOPs, 1 x {length} tokens (G)", "flops", 1e-9, ".3f"),
        ("weights on disk (MB)", "bytes", 1e-6, ".2f"),
    ]
    cells = [(label, dense[name] * scale, pruned[name] * scale, style) for label, name, scale, style in rows]
    times = [1e3 * results[name]["latency"]["median"] for name in (DENSE, PRUNED)]
    cells.insert(2, (f"latency, {batch} x {length} tokens (ms)", *times, ".2f"))
    names = dict.fromkeys([*pruned["metrics"], *dense["metrics"]])
    cells += [(name, dense["metrics"].get(name), pruned["metrics"].get(name), ".4f") for name in names]
    lines = [["", DENSE, PRUNED, "pruned/dense"]]
    for label, before, after, style in cells:
        texts = ["-" if value is None else format(value, style) for value in (before, after)]
        ratio = f"{after / before:.3f}" if before and after is not None else "-"
        lines.append([label, *texts, ratio])
    return table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Cells as text in columns, the first to the left, with a rule below the titles."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


# --- score ----------------------------------------------------------------------------------------------------------


def save_scores(path: Path, scores: Scores, config: PruningConfig, model: str) -> None:
    """One tensor a group, and what they were made with."""
    from safetensors.torch import save_file

    settings = {name: value for name, value in config.to_dict().items() if name in SCORING_FIELDS}
    metadata = {"config": json.dumps(settings), "model": model}
    with replacing(path) as partial:
        save_file({name: values.contiguous() for name, values in scores.items()}, partial, metadata)


def load_scores(path: str) -> tuple[Scores, dict[str, Any]]:
    """What `save_scores` wrote: the scores, and the fields of `PruningConfig` that they depend on.

    Raises:
        `ValueError`: the file holds something else.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path) / SCORES_NAME if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"there are no scores in {file}; optimum-cli camcut score writes some")
    try:
        with safe_open(file, "pt") as stored:
            scores = {name: stored.get_tensor(name) for name in stored.keys()}
            settings = json.loads((stored.metadata() or {})["config"])
    except (KeyError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} holds no scores of optimum-cli camcut score: {error!r}") from error
    return scores, settings


def scores_table(scores: Scores) -> list[list[str]]:
    """Of every group, its units, its scores and the units that would go first."""
    lines = [["group", "units", "lowest", "median", "highest", "lowest first"]]
    for name, values in scores.items():
        flat = values.flatten().float()
        first = flat.argsort()[:6].tolist()
        numbers = [flat.min(), flat.median(), flat.max()] if flat.numel() else []
        cells = [f"{number:.3g}" for number in map(float, numbers)] or ["-"] * 3
        lines.append(
            [name, str(flat.numel()), *cells, " ".join(map(str, first)) + (" ..." if flat.numel() > 6 else "")]
        )
    return lines


class ScoreCommand(Command):
    COMMAND = CommandInfo(name="score", help="Score heads, neurons, layers or weights, and write the scores.")
    DESCRIPTION = f"""
Scores what may be removed from a fine-tuned model, on training examples, and writes the scores into a folder:
{SCORES_NAME}, which `prune --scores` takes, and a summary, {SUMMARY_NAME}.
"""
    TOGETHER = True

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        own = tuple(option for option in pruning_options() if option.name in SCORING_FIELDS)
        return (*MODEL, *DATA, *own, *OUTPUT)

    def execute(self, arguments: argparse.Namespace) -> None:
        config = pruning_config(arguments, sparsity=0.5)  # which scores do not depend on
        output = check_output(arguments.output, arguments.overwrite, arguments.model)
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(arguments, config, folder, evaluates=False)
            scores = job.trainer.score()
        if job.trainer.is_world_process_zero():
            output.mkdir(parents=True, exist_ok=True)
            save_scores(output / SCORES_NAME, scores, config, arguments.model)
            lines = scores_table(scores)
            rules = ["---", *["---:"] * (len(lines[0]) - 2), "---"]
            markdown = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rules, *lines[1:]))
            title = f"Scores by {config.method} of {arguments.model}; a higher score is kept longer.\n\n"
            write_text(output / SUMMARY_NAME, f"{title}{markdown}\n")
            print(table(lines))
            print(f"Written to {output}.")


# --- prune ----------------------------------------------------------------------------------------------------------


class PruneCommand(Command):
    COMMAND = CommandInfo(name="prune", help="Score, prune, recover, evaluate and save a model.")
    DESCRIPTION = """
Does the whole job: scores a fine-tuned model, removes what matters least, recovers by least squares (or by
fine-tuning, or both), evaluates dense and pruned, times both in turn, saves the pruned model and its tokenizer, and
prints a table.

  optimum-cli camcut prune --model M --dataset D --task text-classification --sparsity 0.5 --output O

Every field of PruningConfig is a flag. A config file holds flags by name and a section `training`, of
TrainingArguments, for the recovery by fine-tuning:

  sparsity: 0.5
  recovery: reconstruct+finetune
  training:
    num_train_epochs: 2
    learning_rate: 3e-5
"""
    TOGETHER = True

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        training = (
            Option("epochs", "Epochs of fine-tuning, where the recovery has any. Default: 3.", kind=float),
            Option("learning_rate", "Of fine-tuning. Default: 5e-5.", kind=float),
        )
        pruning = [
            dataclasses.replace(option, help=f"{option.help} Default: reconstruct; none for single weights.")
            if option.name == "recovery"
            else option
            for option in pruning_options()
        ]
        dry = Option("dry_run", "Print the plan and what it would save; cut and write nothing.", False, bool)
        return (*MODEL, *DATA, *EVALUATION, *pruning, *training, SCORES, REPEATS, dry, *OUTPUT)

    def read(self) -> argparse.Namespace:
        arguments = super().read()
        if "sparsity" not in arguments.given and "compression" not in arguments.given:
            self.parser.error("one of the arguments --sparsity and --compression is required")
        return arguments

    def execute(self, arguments: argparse.Namespace) -> None:
        scores, settings = load_scores(arguments.scores) if arguments.scores else (None, {})
        for name in ("method", "granularity"):
            if name in arguments.given and settings and arguments.given[name] != settings[name]:
                raise ValueError(f"the scores are by {name} {settings[name]}, not {arguments.given[name]}")
        weights = "weights" in arguments.given.get("granularity", settings.get("granularity", ()))
        config = pruning_config(arguments, **{"recovery": "none" if weights else "reconstruct", **settings})
        if scores is not None and (config.rounds > 1 or config.dense_epochs > 0):
            raise ValueError("rounds and dense_epochs score the model as it then is, so they take no --scores")
        output = check_output(arguments.output, arguments.overwrite or arguments.dry_run, arguments.model)
        if arguments.dry_run:
            with tempfile.TemporaryDirectory() as folder:
                self._dry_run(arguments, config, scores, folder)
        else:
            self._prune(arguments, config, scores, output)

    def _dry_run(
        self, arguments: argparse.Namespace, config: PruningConfig, scores: Scores | None, folder: str
    ) -> None:
        import copy

        from ..plan import PruningPlan

        config = dataclasses.replace(
            config, recovery="none", rounds=1, dense_epochs=0.0, rewind=False, distill_weight=0.0
        )
        job = make_job(arguments, config, folder, evaluates=False)
        dense = copy.deepcopy(job.model)
        job.trainer.scores = scores
        before = getattr(dense, "pruning_plan", None) or PruningPlan({})
        plan = job.trainer.prune()
        if job.trainer.is_world_process_zero():
            results = measure_both(dense, job.model, config, arguments.repeats)
            print("What would be kept" + (", of the model before it was first pruned:" if before.keep else ":"))
            print(plan)
            print(f"\n{results_table(results)}")
            print("Nothing was written (dry run).")

    def _prune(
        self, arguments: argparse.Namespace, config: PruningConfig, scores: Scores | None, output: Path
    ) -> None:
        from ..tasks import load_model

        measured: dict[str, dict[str, float]] = {}
        job = make_job(arguments, config, output, evaluates=True)
        with dense_measured_after_training(job, measured) if config.dense_epochs else nullcontext():
            if not config.dense_epochs:
                measured[DENSE] = job.evaluate()
            if scores is None:
                job.trainer.train()
            else:
                self._from_scores(job, config, scores)
        measured[PRUNED] = job.evaluate()
        if job.trainer.is_world_process_zero():
            (output / RESULTS_NAME).unlink(missing_ok=True)  # those of a model that is overwritten
        job.trainer.save_model()
        if not job.trainer.is_world_process_zero():
            return
        pruned = job.model
        dense = load_model(arguments.model, job.task, dtype=pruned.dtype, revision=arguments.revision)
        results = measure_both(dense, pruned, config, arguments.repeats)
        results[PRUNED]["bytes"] = weights_on_disk(output)
        for name in (DENSE, PRUNED):
            results[name]["metrics"] = measured.get(name, {})
        write_json(output / RESULTS_NAME, {"model": arguments.model, "dataset": arguments.dataset, **results})
        print(pruned.pruning_plan)
        print(f"\n{results_table(results)}")
        print(f"Saved in {output}.")

    @staticmethod
    def _from_scores(job: Job, config: PruningConfig, scores: Scores) -> None:
        """What `train` does, from the scores on."""
        import copy

        from ..rebuild import reconstruct

        trainer = job.trainer
        dense = copy.deepcopy(job.model) if config.rebuilds else None
        trainer.scores = scores
        plan = trainer.prune()
        if dense is not None:
            loader = trainer.get_scoring_dataloader()
            reconstruct(job.model, dense, plan, loader, disable_tqdm=trainer.args.disable_tqdm)
        if config.finetunes:
            trainer.train()


@contextmanager
def dense_measured_after_training(job: Job, measured: dict[str, dict[str, float]]) -> Iterator[None]:
    """The dense model counts as it is after its epochs, just before the cut."""
    from transformers import TrainerCallback

    class Measure(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if job.trainer.pruning_plan is None:
                measured[DENSE] = job.evaluate()

    callback = Measure()
    job.trainer.add_callback(callback)
    try:
        yield
    finally:
        job.trainer.remove_callback(callback)


# --- report ---------------------------------------------------------------------------------------------------------


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
            Option("latency_batch_size", "Examples at once.", 8, int),
            Option("sequence_length", "Tokens in each.", 128, int),
            REPEATS,
            Option("output", "File to write.", required=True),
            Option("overwrite", "Write it even if it is there.", False, bool),
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        import copy

        import torch

        from ..groups import find_groups
        from ..measure import LatencyResult
        from ..plan import PruningPlan
        from ..report import uncut_scores, write_report
        from ..surgery import apply_plan
        from ..tasks import load_model

        output = Path(arguments.output)
        check_file(output / "report.html" if output.is_dir() else output, arguments.overwrite)
        plans = {}
        for each in arguments.plans or ():
            label, equals, path = each.partition("=")
            if not equals:
                raise ValueError(f"--plans takes LABEL=FILE, got {each!r}")
            plans[label] = PruningPlan.load(path)
        set_output(arguments.verbose)
        dtype = getattr(torch, arguments.dtype)
        model = load_model(arguments.model, dtype=dtype, revision=arguments.revision)
        dense = load_model(arguments.dense, dtype=dtype) if arguments.dense else None
        if arguments.plan:
            dense = dense or copy.deepcopy(model)
            apply_plan(model, PruningPlan.load(arguments.plan))
        elif getattr(model, "pruning_plan", None) is None:
            raise ValueError(f"{arguments.model} is not pruned; name a plan for it with --plan")
        scores = None
        if arguments.scores:
            scores, settings = load_scores(arguments.scores)
            if dense is not None:
                scores = uncut_scores(scores, find_groups(dense, settings["granularity"]))
        stored, results = Path(arguments.model) / RESULTS_NAME, None
        if stored.exists() and not arguments.plan:
            results = read_json(stored)
        elif dense is not None:
            shape = {name: getattr(arguments, name) for name in ("latency_batch_size", "sequence_length")}
            results = measure_both(dense, model, PruningConfig(sparsity=0.5, **shape), arguments.repeats)
        metrics = latency = None
        if results is not None:
            metrics = {name: results[name]["metrics"] for name in (DENSE, PRUNED)}
            latency = {name: LatencyResult(**results[name]["latency"]) for name in (DENSE, PRUNED)}
        written = write_report(
            output, model, dense_model=dense, scores=scores, metrics=metrics, latency=latency, plans=plans or None
        )
        print(f"Written to {written}.")


# --- benchmark ------------------------------------------------------------------------------------------------------


class BenchmarkCommand(Command):
    COMMAND = CommandInfo(name="benchmark", help="Time pruned models in turn with the dense one.")
    DESCRIPTION = """
Times a dense model and pruned ones in turn, over batch sizes and sequence lengths, on the device that there is; with
the throughput, the memory of the weights and activations, and the speed-up over the dense model.

  optimum-cli camcut benchmark --dense M --pruned O1 O2 --batch_sizes 1 8 --sequence_lengths 64 128
"""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        return (
            Option("dense", "The model to compare with: a folder or a Hub id.", required=True),
            Option("pruned", "The others.", many=True, required=True),
            MODEL[-1],
            Option("batch_sizes", "Examples at once.", [1, 8], int, many=True),
            Option("sequence_lengths", "Tokens in each.", [128], int, many=True),
            REPEATS,
            Option("output", "JSON file to write the measurements to."),
            Option("overwrite", "Write it even if it is there.", False, bool),
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        import torch

        from ..measure import count_flops, count_parameters, measure_latency, peak_memory
        from ..tasks import load_model

        output = Path(arguments.output) if arguments.output else None
        if output is not None:
            check_file(output, arguments.overwrite)
        set_output(arguments.verbose)
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        names = list(dict.fromkeys([arguments.dense, *arguments.pruned]))
        models = {name: load_model(name, dtype=getattr(torch, arguments.dtype)).to(device) for name in names}
        rows = []
        for length in arguments.sequence_lengths:
            for name, model in models.items():
                positions = getattr(model.config, "max_position_embeddings", None)
                if positions and length > positions:
                    raise ValueError(f"{name} takes {positions} tokens at most, not {length} (--sequence_lengths)")
            for batch in arguments.batch_sizes:
                times = measure_latency(models, batch, length, arguments.repeats)
                for name, model in models.items():
                    found = times[name]
                    rows.append(
                        {
                            "model": name,
                            "batch_size": batch,
                            "sequence_length": length,
                            "parameters": count_parameters(model),
                            "flops": count_flops(model, batch, length),
                            "memory": peak_memory(model, batch, length),
                            "latency": found.median,
                            "latency_low": found.low,
                            "latency_high": found.high,
                            "throughput": batch / found.median,
                            "speedup": times[arguments.dense].median / found.median,
                        }
                    )
        lines = [["model", "batch", "tokens", "params (M)", "FLOPs (G)", "MB", "ms", "quartiles", "1/s", "speed-up"]]
        for row in rows:
            lines.append(
                [
                    row["model"],
                    str(row["batch_size"]),
                    str(row["sequence_length"]),
                    f"{row['parameters'] / 1e6:.2f}",
                    f"{row['flops'] / 1e9:.3f}",
                    f"{row['memory'] / 1e6:.1f}",
                    f"{1e3 * row['latency']:.2f}",
                    f"{1e3 * row['latency_low']:.2f} to {1e3 * row['latency_high']:.2f}",
                    f"{row['throughput']:.1f}",
                    f"{row['speedup']:.2f}x",
                ]
            )
        if output is not None:
            conditions = {"device": str(device), "dtype": arguments.dtype, "threads": torch.get_num_threads()}
            write_json(output, {**conditions, "torch": torch.__version__, "repeats": arguments.repeats, "rows": rows})
        print(table(lines))


# --- compare --------------------------------------------------------------------------------------------------------


class CompareCommand(Command):
    COMMAND = CommandInfo(name="compare", help="Compare methods and budgets by quality and latency.")
    DESCRIPTION = """
Prunes copies of a fine-tuned model by several methods to several budgets, evaluates them and times each in turn with
the dense model. With several --seeds, every one draws another sample to score on, and the means are shown. The folder
gets comparison.json, comparison.md and, with matplotlib, comparison.png.

  optimum-cli camcut compare --model M --dataset D --task T --methods cam_cut taylor --sparsities 0.3 0.5 --output O
"""
    FIXED = ("method", "sparsity", "compression", "recovery", "seed")  # compared, or not of use here

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        own = [option for option in pruning_options() if option.name not in (*cls.FIXED, *TRAINING_FIELDS)]
        return (
            *MODEL,
            *DATA,
            *EVALUATION,
            Option(
                "methods",
                "What to score by.",
                ["cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher"],
                many=True,
            ),
            Option("sparsities", "Fractions of the budget to remove.", [0.3, 0.5, 0.7], float, many=True),
            Option("seeds", "Draw the scoring samples.", [0], int, many=True),
            Option("rebuild", "Rebuild by least squares after a cut of units; nothing is trained.", True, bool),
            *own,
            REPEATS,
            *OUTPUT,
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        from ..comparison import Comparison, compare

        output = check_output(arguments.output, arguments.overwrite)
        names = [name for name in PRUNING_FIELDS if name not in (*self.FIXED, *TRAINING_FIELDS)]
        settings = {name: arguments.given[name] for name in names if name in arguments.given}
        configs = [PruningConfig(**settings, sparsity=0.5, recovery="none", seed=seed) for seed in arguments.seeds]
        rebuild = arguments.rebuild and "weights" not in configs[0].granularity
        comparisons = []
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(arguments, configs[0], folder, evaluates=True)
            for config in configs:
                job.trainer.pruning_config = config
                found = compare(
                    job.model,
                    job.trainer.get_scoring_dataloader(),
                    functools.partial(self._quality, job),
                    config,
                    methods=arguments.methods,
                    sparsities=arguments.sparsities,
                    recovery="reconstruct" if rebuild else "none",
                    repeats=arguments.repeats,
                    disable_tqdm=job.trainer.args.disable_tqdm,
                )
                comparisons.append(found)
                result = Comparison.average(comparisons)
                result.settings.update(
                    model=arguments.model,
                    dataset=arguments.dataset,
                    metric=job.task.headline,
                    seeds=arguments.seeds[: len(comparisons)],
                )
                self._write(result, output)  # after every seed: a run that is stopped leaves some
        print(result)
        print(f"Written to {output}.")

    @staticmethod
    def _quality(job: Job, model: PreTrainedModel) -> float:
        """The task's metric of a model."""
        from transformers import PrinterCallback, Trainer

        own = job.trainer
        trainer = Trainer(
            model,
            own.args,
            data_collator=own.data_collator,
            eval_dataset=own.eval_dataset,
            processing_class=own.processing_class,
            compute_metrics=own.compute_metrics,
            preprocess_logits_for_metrics=own.preprocess_logits_for_metrics,
        )
        trainer.remove_callback(PrinterCallback)
        return next(iter(Job(trainer, job.task).evaluate().values()))

    @staticmethod
    def _write(result: Any, output: Path) -> None:
        output.mkdir(parents=True, exist_ok=True)
        result.save(output / "comparison.json")
        write_text(output / "comparison.md", result.to_markdown())
        try:
            from ..plots import plot_pareto

            title = f"{result.settings['metric']} on {result.settings['dataset']}"
            plot_pareto(result, title).savefig(output / "comparison.png", dpi=150)
        except ImportError as error:
            logger.warning("no figure: %s", error)


COMMANDS: tuple[type[Command], ...] = (ScoreCommand, PruneCommand, ReportCommand, BenchmarkCommand, CompareCommand)


class CamCutCommand(BaseOptimumCLICommand):
    """`optimum-cli camcut`."""

    COMMAND = CommandInfo(name="camcut", help="Prune Transformers by interpretability (Cam-Cut, Smooth-Cut).")
    SUBCOMMANDS = tuple(
        CommandInfo(name=command.COMMAND.name, help=command.COMMAND.help, subcommand_class=command)
        for command in COMMANDS
    )
