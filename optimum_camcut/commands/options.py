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
"""Flags: those of `PruningConfig`, and those that several commands have."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..config import CHOICES, PruningConfig
from ..utils.files import nearest


UNIONS = (Union, types.UnionType)


class _ByName(argparse.Action):
    """One value, or several by name: `2`, or `heads=2 neurons=64`, or the same with a comma between."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        kind, parts = str(self.metavar).lower(), [part for value in values or () for part in value.split(",")]
        pairs = [part.partition("=") for part in parts]
        convert = int if kind == "int" else float if kind == "float" else str
        try:
            if len(pairs) == 1 and not pairs[0][1]:
                found: Any = convert(parts[0])
            elif all(equals for _, equals, _ in pairs):
                found = {name: convert(value) for name, _, value in pairs}
            else:
                raise ValueError
        except ValueError:
            told = f"expected one {kind}, or NAME={kind.upper()} for each of several names; got {' '.join(parts)}"
            raise argparse.ArgumentError(self, told) from None
        setattr(namespace, self.dest, found)


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag, which can stand in the file of `--config` too."""

    name: str
    help: str
    default: Any = None
    kind: type = str
    many: bool = False
    choices: tuple[str, ...] = ()
    required: bool = False
    unless: str = ""  # an option that can stand in for a required one
    least: int | None = None  # of a number
    by_name: bool = False  # one value, or one for each of several names

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        keywords: dict[str, Any] = {"dest": self.name, "default": argparse.SUPPRESS}
        if self.kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif self.by_name:
            keywords |= {"action": _ByName, "nargs": "+", "metavar": self.kind.__name__.upper()}
        else:
            keywords |= {"type": self._choice if self.choices else self.kind, "nargs": "+" if self.many else None}
            if self.choices:
                keywords["metavar"] = f"{{{','.join(self.choices)}}}"
        default = self.default not in (None, False, [], {}) and "Default:" not in self.help
        shown = " ".join(map(str, self.default)) if self.many and default else self.default
        text = self.help + (f" Default: {shown}." if default else "")
        parser.add_argument(f"--{self.name}", help=text.replace("%", "%%"), **keywords)
        if "_" in self.name:  # --dry-run is --dry_run
            parser.add_argument(f"--{self.name.replace('_', '-')}", help=argparse.SUPPRESS, **keywords)

    def _choice(self, value: str) -> str:
        """One of the choices; argparse would not suggest any."""
        if value not in self.choices:
            known = ", ".join(self.choices)
            raise argparse.ArgumentTypeError(f"unknown {value!r}; known: {known}{nearest(value, self.choices)}")
        return value

    def tokens(self, value: Any) -> list[str]:
        """A value from a file, as it would stand on the command line."""
        if self.kind is bool and isinstance(value, bool):
            return [f"--{self.name}" if value else f"--no-{self.name}"]
        if self.many and isinstance(value, list):
            return [f"--{self.name}", *map(str, value)] if value else []
        if self.by_name and isinstance(value, dict):
            return [f"--{self.name}", *(f"{name}={each}" for name, each in value.items())] if value else []
        if isinstance(value, list | dict | bool):
            raise ValueError(
                f"{self.name!r} should be {'a list' if self.many else f'one {self.kind.__name__}'}, got {value!r}"
            )
        return [f"--{self.name}={value}"]

    def check(self, value: Any) -> None:
        """Raises `ValueError` if a number is too small."""
        for number in value if isinstance(value, list) else [value]:
            if self.least is not None and number is not None and number < self.least:
                raise ValueError(f"{self.name} should be at least {self.least}, got {number}")


@functools.cache
def pruning_options() -> tuple[Option, ...]:
    """The fields of `PruningConfig`."""
    return options_of(PruningConfig)


def options_of(cls: type) -> tuple[Option, ...]:
    """The fields of a dataclass of values, of lists and tuples of them, and of values by name."""
    hints, found = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        # `X | None` and `X | list[X]` are unions, `list[X]` is not.
        kinds = [each for each in get_args(hint) if each is not type(None)] if get_origin(hint) in UNIONS else [hint]
        origins = {each: get_origin(each) or each for each in kinds}
        containers = [each for each in kinds if issubclass(origins[each], Collection) and origins[each] is not str]
        by_name = any(issubclass(origins[each], Mapping) for each in containers)
        plain = next((each for each in kinds if each not in containers), None)
        if plain is None:
            plain = next((each for each in reversed(get_args(containers[0])) if each is not ...), str)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        many, choices = bool(containers) and not by_name, CHOICES.get(field.name, ())
        found.append(Option(field.name, field.metadata["help"], default, plain, many, choices, by_name=by_name))
    return tuple(found)


PRUNING_FIELDS = tuple(field.name for field in dataclasses.fields(PruningConfig))
# What scores depend on.
SCORING_FIELDS = (
    "method",
    "granularity",
    "num_samples",
    "smooth_samples",
    "smooth_examples",
    "noise_std",
    "noise_scale",
    "dropout",
    "shift",
    "seed",
    "layer_unit",  # of methods that score whole blocks
)
# What only a trainer does.
TRAINING_FIELDS = (
    "rounds",
    "rewind",
    "dense_epochs",
    "distill_weight",
    "distill_temperature",
    "distill_top_k",
    "lora_rank",
)
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
        "Folder with files named by split (train.parquet, validation.csv, test.txt, ...), or of images or recordings "
        "(train/cat/1.png, ...), or that save_to_disk of datasets wrote; one file of rows, to train on; or a Hub id, "
        "with its configuration after a colon (nyu-mll/glue:sst2). Where there is nothing to evaluate on, a tenth of "
        "the training rows is held out for that.",
        required=True,
        unless="train_file",
    ),
    Option("train_file", "File to train on (.parquet, .csv, .json, .jsonl or .txt), in place of --dataset."),
    Option("validation_file", "Another of its kind, to evaluate on."),
    Option("dataset_config", "Configuration of the data set on the Hub."),
    Option(
        "streaming",
        "Read the first --max_train_samples and --max_eval_samples rows as they come, and download no others.",
        False,
        bool,
    ),
    Option(
        "task",
        "text-classification (one text or two; classes, or numbers to predict), token-classification, "
        "question-answering, multiple-choice, fill-mask, text-generation, summarization, translation, "
        "feature-extraction (two texts and how alike they are, for sentence embeddings), "
        "image-classification, audio-classification or automatic-speech-recognition (or speech-recognition).",
        required=True,
    ),
    Option("text_columns", "Columns to read, in order. Default: those of a usual name.", many=True),
    Option("label_column", "Column of the labels. Default: that of a usual name."),
    Option(
        "label_names",
        "The classes of the data (numbers, if these are all there is) in the order of the model's numbers. Default: "
        "by the model's own names for them.",
        many=True,
    ),
    Option("train_split", "Split to score on, to rebuild on and to train on.", "train"),
    Option(
        "max_length",
        "Longer inputs are cut to this number of tokens, recordings to this number of seconds; recordings with a text "
        "are refused. For text-generation, the texts one after the other are cut into blocks of this length. Default: "
        "128; --sequence_length for text-generation; 384 for answers; 512 for texts to summarize or translate; what "
        "the model says for feature-extraction; 20 seconds for audio-classification, 30 for "
        "automatic-speech-recognition.",
        kind=int,
        least=1,
    ),
    Option("max_train_samples", "Use the first rows of the training split only.", kind=int, least=1),
    Option(
        "tokenizer",
        "Tokenizer, or what else makes inputs (an image processor, say), if it is not in the model's folder.",
    ),
    Option(
        "language",
        "The language that is spoken (en, say), for models of automatic-speech-recognition that know many. Default: "
        "what the model's folder says.",
    ),
    Option("batch_size", "Examples at once, on each device.", 32, int, least=1),
)
EVALUATION = (
    Option("eval_split", "Split to evaluate on. Default: validation, or one of a like name; else test."),
    Option("max_eval_samples", "Evaluate on its first rows only.", kind=int, least=1),
    Option(
        "metric",
        "What to compare by: a metric of the task, or one of evaluate, by name or path, with its configuration after "
        "a colon (glue:cola); or loss. Less is better of mse, mae, rmse, perplexity and whatever ends with loss or "
        "error; of any other, more is taken to be better. Default: the first that the task measures: accuracy, "
        "Spearman's correlation, the F1 of answers, rougeL, chrf or wer.",
    ),
)
REPEATS = Option("repeats", "Timings of every model.", 10, int, least=1)
SCORES = Option(
    "scores", "Scores that the command score wrote of this very model, in place of scoring: the file or its folder."
)
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


def pruning_config(arguments: argparse.Namespace, **defaults: Any) -> PruningConfig:
    """The config that the flags ask for."""
    given = {name: value for name, value in arguments.given.items() if name in PRUNING_FIELDS}
    return PruningConfig(**{**defaults, **given})
