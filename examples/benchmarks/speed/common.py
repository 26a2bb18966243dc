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
"""What the benchmarks of speed share: arguments, models, timing in turn, memory, and what comes out."""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tables import as_text
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, score_groups
from optimum_camcut.planning.latency import device_name


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from study import add, add_arguments, make_parser, settings_of


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MEGABYTE = 1e6

Row = dict[str, Any]


# --- arguments ------------------------------------------------------------------------------------------------------


def parser(
    description: str, rounds: int | None = 5, batch_size: int | None = 16, tokens: int = 64
) -> argparse.ArgumentParser:
    """With the arguments that all have; without rounds, or without the size of batches, where that is None."""
    made = make_parser(description)
    add_arguments(made, "model_name_or_path", **({} if rounds is None else {"rounds": rounds}))
    if batch_size is not None:
        add_arguments(made, batch_size=batch_size, tokens=tokens)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add_arguments(made, "cpu_time", "quick", "output", dtype={"choices": ("float32", "bfloat16")})
    return made


def parse(made: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The arguments; with `--quick`, other defaults."""
    if made.parse_args().quick:
        made.set_defaults(**({"rounds": 2} if made.get_default("rounds") else {}), **quick)
    torch.manual_seed(0)
    return made.parse_args()


# --- what is measured -----------------------------------------------------------------------------------------------


def build(options: argparse.Namespace, **shape: int) -> PreTrainedModel:
    """A classifier in evaluation mode. Shape: of a BERT, where no model is named; default: BERT-base."""
    torch.manual_seed(0)
    if options.model_name_or_path:
        model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
    else:
        model = BertForSequenceClassification(BertConfig(**(TINY if options.quick else shape)))
    return model.to(options.device, getattr(torch, options.dtype)).eval()


def random_batches(options: argparse.Namespace, count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences without padding, with labels: of shape `(batch_size, tokens)`."""
    shape = (options.batch_size, options.tokens)
    batches = [
        {
            "input_ids": torch.randint(1000, 30000, shape),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "labels": torch.randint(0, 2, shape[:1]),
        }
        for _ in range(count)
    ]
    return [{name: tensor.to(options.device) for name, tensor in batch.items()} for batch in batches]


def cut(dense: PreTrainedModel, keep: float, **settings: Any) -> PreTrainedModel:
    """A pruned copy. By magnitude: the time it takes does not depend on which units are left."""
    groups, config = find_groups(dense), PruningConfig(method="magnitude", sparsity=1 - keep, **settings)
    return apply_plan(copy.deepcopy(dense), make_plan(score_groups(dense, groups, None, config), groups, config))


@torch.inference_mode()
def forward(model: PreTrainedModel, batches: Iterable[dict]) -> None:
    for batch in batches:
        model(**batch)


def backward(model: PreTrainedModel, batches: Iterable[dict]) -> None:
    """Forward and backward passes with gradients for all weights, as training without the optimizer."""
    for batch in batches:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)


# --- how it is measured ---------------------------------------------------------------------------------------------


def clock(options: argparse.Namespace) -> float:
    """Seconds, once the device has done what it was given."""
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if options.cpu_time else time.perf_counter()


def in_turn(options: argparse.Namespace, tasks: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of every task, once a round, so that a busy machine slows all alike; every second round in the opposite
    order, and after one round that does not count. Where a task returns a dict, these are seconds of its parts, which
    are noted as `"task/part"`."""
    times: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        for name in list(tasks) if number % 2 else reversed(tasks):
            start = clock(options)
            parts = tasks[name]()
            seconds = {name: clock(options) - start}
            if isinstance(parts, dict):
                seconds |= {f"{name}/{part}": value for part, value in parts.items()}
            for key, value in seconds.items() if number else ():
                times.setdefault(key, []).append(value)
    return times


def spread(values: Sequence[float], over: Sequence[float] | None = None, scale: float = 1.0) -> dict[str, float]:
    """Median, lowest and highest of what each round gave; of its ratios, so that what else the machine does cancels,
    where there is something to divide by."""
    each = [scale * value / other for value, other in zip(values, over or [1.0] * len(values))]
    return {"median": statistics.median(each), "low": min(each), "high": max(each)}


def peak_memory(options: argparse.Namespace, task: Callable[[], Any]) -> float:
    """Megabytes that the GPU's allocator held at most while a task ran; on a CPU, the process."""
    if options.device == "cuda":
        gc.collect()  # of what ran before in this process
        torch.cuda.reset_peak_memory_stats()
        task()
        return torch.cuda.max_memory_allocated() / MEGABYTE
    # Not getrusage: its maximum survives the exec of a spawned process, and cannot be set back.
    Path("/proc/self/clear_refs").write_text("5")
    task()
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / MEGABYTE


def alone(options: argparse.Namespace, function: Callable, cases: Sequence[tuple]) -> list[Any]:
    """What a function returns for each case, each in a process that does nothing else. One for all with `--quick`, and
    on a GPU, whose allocator tells what is in use."""
    # Large tensors go back to the system as soon as they are freed: what is counted is in use, as on CUDA.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    tasks = None if options.quick or options.device == "cuda" else 1
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=tasks) as pool:
        return pool.starmap(function, cases, chunksize=1)


# --- what comes out -------------------------------------------------------------------------------------------------


def report(options: argparse.Namespace, rows: list[Row]) -> None:
    """Prints the rows as a table, and adds them to `--output` with the device and the arguments."""
    result = {
        "benchmark": Path(sys.argv[0]).stem,
        "device": device_name(torch.device(options.device)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "settings": settings_of(options),
        "rows": rows,
    }
    print(as_text(result), flush=True)
    if options.output:
        add(options.output, result, ("benchmark", "device", "settings"))
