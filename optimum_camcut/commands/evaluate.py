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
"""`optimum-cli camcut evaluate`."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimum.commands.base import CommandInfo

from ..reporting.tables import as_text
from ..utils.files import nearest, write_json
from .command import Command
from .job import check_model
from .options import MODEL, Option
from .output import check_file, quiet


logger = logging.getLogger(__name__)


class EvaluateCommand(Command):
    COMMAND = CommandInfo(name="evaluate", help="Measure language models by lm-evaluation-harness.")
    DESCRIPTION = """
Measures a language model, pruned or not, by lm-evaluation-harness: perplexity of texts, and any of its tasks, without
examples in the prompt unless --num_fewshot says so. With --dense, also the model it came from, side by side.

  optimum-cli camcut evaluate --model O --dense M --tasks wikitext hellaswag arc_easy
  optimum-cli camcut evaluate --model O --dense M --text test.txt --max_length 2048

It needs an extra: pip install "optimum-camcut[evaluate]".
"""

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        return (
            Option("model", "The model to measure: a folder or a Hub id.", required=True),
            Option("dense", "Another, to compare it with."),
            MODEL[-1],
            Option("tasks", "Names of tasks of lm-evaluation-harness.", many=True, required=True, unless="text"),
            Option("task_folder", "Folder with tasks of your own, as YAML files."),
            Option("text", "Files of plain text, each measured whole: perplexity by word and by byte.", many=True),
            Option("num_fewshot", "Examples in each prompt. Default: what the task says.", kind=int, least=0),
            Option("limit", "Measure on so many examples of each task only.", kind=int, least=1),
            Option("max_length", "Tokens in a window. Default: what the model takes.", kind=int, least=2),
            Option("batch_size", "Examples at once.", 8, int, least=1),
            Option("output", "JSON file to write the results to."),
            Option("overwrite", "Write it even if it is there.", False, bool),
        )

    def execute(self, arguments: argparse.Namespace) -> None:
        output = Path(arguments.output) if arguments.output else None
        if output is not None:
            check_file(output, arguments.overwrite)
        for path in arguments.text or ():
            _check_text(Path(path))
        names = list(dict.fromkeys([*([arguments.dense] if arguments.dense else []), arguments.model]))
        for name in names:
            check_model(name)
        quiet(arguments.verbose)
        tasks, manager = _tasks(arguments)
        results = {name: _measure(name, tasks, manager, arguments) for name in names}
        print(as_text(_table(results)))
        if output is not None:
            settings = {name: getattr(arguments, name) for name in ("dtype", "num_fewshot", "limit", "max_length")}
            write_json(output, {**settings, "results": results})


def _check_text(path: Path) -> None:
    """Raises an error unless a file holds text."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} to read (--text)")
    try:
        if not path.read_text(encoding="utf-8").strip():
            raise ValueError(f"{path} holds no text (--text)")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (--text): {error}") from error


def _tasks(arguments: argparse.Namespace) -> tuple[list[Any], Any]:
    """What is to be measured, and the manager that knows the tasks by name.

    Raises:
        `ImportError`: without the extra.
        `ValueError`: unknown tasks.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of every fork
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            f'evaluate needs lm-evaluation-harness: pip install "optimum-camcut[evaluate]" ({error})'
        ) from error

    folder = arguments.task_folder
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder} (--task_folder)")
    tasks: list[Any] = list(arguments.tasks or ())
    manager = TaskManager(include_path=folder, include_defaults=bool(tasks))  # to read them all takes seconds
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"lm-evaluation-harness has no task {', '.join(unknown)} (`lm_eval ls tasks` lists them)"
            f"{nearest(unknown[0], manager.all_tasks)}"
        )
    return [*tasks, *map(_of_text, arguments.text or ())], manager


def _of_text(path: str) -> dict[str, Any]:
    """The task of telling a whole text, token by token."""
    return {
        "task": path,
        "num_fewshot": 0,
        "dataset_path": "text",
        "dataset_kwargs": {"data_files": {"test": str(Path(path).absolute())}, "sample_by": "document"},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }


def _measure(name: str, tasks: list[Any], manager: Any, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Task -> metric -> value; beside it, where there is one, its standard error."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from ..planning.measure import learns_positions, longest_input
    from ..tasks.models import load_model

    device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    model = load_model(name, dtype=getattr(torch, arguments.dtype))
    if not model.can_generate():
        raise ValueError(f"{name} is a {type(model).__name__}, and evaluate is for models that write text")
    longest = longest_input(model, sys.maxsize)
    if arguments.max_length and arguments.max_length > longest:
        told = f"{name} was made for {longest} tokens at most, not {arguments.max_length} (--max_length)"
        if learns_positions(model):
            raise ValueError(told)
        logger.warning(told)
    measured = HFLM(
        pretrained=model.to(device),
        tokenizer=AutoTokenizer.from_pretrained(name),
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        device=device,
    )
    found = lm_eval.simple_evaluate(
        measured,
        tasks=tasks,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        task_manager=manager,
        bootstrap_iters=100,  # of the standard errors of what is no mean
        log_samples=False,
        verbosity=None if arguments.verbose else "ERROR",
    )
    assert found is not None, "only the first of several processes gets the results"
    return {
        task: {
            metric.removesuffix(",none"): float(value)
            for metric, value in values.items()
            if isinstance(value, int | float) and metric.partition(",")[0] not in ("alias", "sample_len")
        }
        for task, values in found["results"].items()
    }


def _table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """What was measured as text, with titles."""
    lines = [["task", "metric", *results]]
    for task, metrics in next(iter(results.values())).items():
        for metric in metrics:
            if "_stderr" not in metric:
                error = metric.replace(",", "_stderr,", 1) if "," in metric else f"{metric}_stderr"
                cells = []
                for values in results.values():
                    spread = values[task].get(error)
                    known = spread and math.isfinite(spread)
                    cells.append(f"{values[task][metric]:.4g}" + (f" ± {spread:.2g}" if known else ""))
                lines.append([task, metric, *cells])
    return lines
