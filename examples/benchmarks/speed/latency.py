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
"""How fast dense and pruned models of a shape are, in turn, over batch sizes and sequence lengths: time, tokens a
second they read, and the memory that a process takes which runs one of them.

Magnitude scores: the time does not depend on values. FLOPs are those of the whole model's matrix products. With
`--compile`, each model also runs as `torch.compile` makes it, in turn with the others. What has been measured is
written after each cell of the grid; `--seconds` lets no other begin after so many.

    python examples/benchmarks/speed/latency.py --output latency.json
    python examples/benchmarks/speed/latency.py --dtype bfloat16 --attention sdpa eager --multiple_of 1 8 64
    python examples/benchmarks/speed/latency.py --dtype bfloat16 --compile reduce-overhead --tokens 128
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from common import (
    MEGABYTE,
    Row,
    add_arguments,
    alone,
    build,
    cut,
    forward,
    in_turn,
    parse,
    parser,
    peak_memory,
    report,
    spread,
)
from transformers import PreTrainedModel

from optimum_camcut import measure


Shape = tuple[int, int]
WARM_UP = 3  # calls before all rounds: a CUDA graph is recorded in the second


def kept(options: argparse.Namespace) -> dict[str, tuple[float, int]]:
    """Name of each model -> the fraction that is kept, and what its neurons are a multiple of."""
    several = len(options.multiple_of) > 1
    cases = itertools.product(options.keep, options.multiple_of)
    names = {f"{keep:.0%}{f' by {multiple}' if several else ''}": (keep, multiple) for keep, multiple in cases}
    return {"dense": (1.0, 1), **names}


def pruned(dense: PreTrainedModel, keep: float, multiple_of: int, options: argparse.Namespace) -> PreTrainedModel:
    settings = {"budget": "flops", "allocation": options.allocation, "multiple_of": multiple_of}
    return dense if keep == 1 else cut(dense, keep, **settings)


def memory(options: argparse.Namespace, keep: float, multiple_of: int) -> list[float]:
    """Peak memory of one model in each cell of the grid, in a process of its own."""
    model = pruned(build(options), keep, multiple_of, options)
    model.set_attn_implementation(options.attention[0])
    inputs = [measure.random_inputs(model, *shape) for shape in grid(options)]
    return [peak_memory(options, lambda each=each: forward(model, [each])) for each in inputs]


def peaks(options: argparse.Namespace, models: dict[str, PreTrainedModel]) -> dict[str, list[float]]:
    """Megabytes that each model takes in each cell of the grid, with the first kind of attention."""
    if options.device == "cpu":
        return dict(zip(models, alone(options, memory, [(options, *case) for case in kept(options).values()])))
    for model in models.values():
        model.set_attn_implementation(options.attention[0])
    return {
        name: [measure.peak_memory(model, *shape) / MEGABYTE for shape in grid(options)]
        for name, model in models.items()
    }


def grid(options: argparse.Namespace) -> list[Shape]:
    return list(itertools.product(options.batch_sizes, options.tokens))


def cell(
    options: argparse.Namespace, models: dict[str, PreTrainedModel], shape: Shape, attention: str
) -> dict[str, Row]:
    """Times all models at one shape: name -> row."""
    runs: dict[str, Callable] = dict(models)
    if options.compile:
        torch.compiler.reset()  # it stops to compile after a few shapes
        for name, model in models.items():
            runs[f"{name} compiled"] = torch.compile(model, dynamic=False, mode=options.compile)
    inputs = measure.random_inputs(models["dense"], *shape)
    tasks = {name: lambda run=run: forward(run, [inputs]) for name, run in runs.items()}
    for task in tasks.values() if options.compile or options.device == "cuda" else ():
        for _ in range(WARM_UP):
            task()
    with measure.keeping_memory():
        times = in_turn(options, tasks)
    flops = {name: measure.count_flops(model, *shape) for name, model in models.items()}
    return {
        name: {
            "batch_size": shape[0],
            "tokens": shape[1],
            "attention": attention,
            "model": name,
            "milliseconds": spread(times[name], scale=1e3),
            "speed_up": spread(times["dense"], times[name]),
            "speed_up_by_flops": flops["dense"] / flops[name.removesuffix(" compiled")],
            "tokens_per_second": shape[0] * shape[1] / spread(times[name])["median"],
        }
        for name in runs
    }


def main() -> None:
    made = parser(__doc__, rounds=10, batch_size=None)
    add_arguments(made, keep=[0.5, 0.3], allocation={"choices": ["per_kind", "uniform"]})
    add_arguments(made, multiple_of={"nargs": "+", "default": [1]})
    made.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32])
    add_arguments(made, tokens={"nargs": "+", "default": [32, 128, 512]})
    made.add_argument("--attention", nargs="+", default=["sdpa"], help="implementations, one after the other")
    made.add_argument("--compile", nargs="?", const="default", help="also by torch.compile, in this mode")
    made.add_argument("--seconds", type=float, help="after which no other cell begins")
    options = parse(made, keep=[0.5], batch_sizes=[1, 2], tokens=[8])

    start, dense = time.monotonic(), build(options)
    models = {name: pruned(dense, *case, options) for name, case in kept(options).items()}
    taken, rows = peaks(options, models), []
    for attention, (number, shape) in itertools.product(options.attention, enumerate(grid(options))):
        if options.seconds is not None and time.monotonic() - start > options.seconds:
            print(f"left out: {shape[0]} x {shape[1]} tokens, {attention}", flush=True)
            continue
        for model in models.values():
            model.set_attn_implementation(attention)
        for name, row in cell(options, models, shape, attention).items():
            if name in taken and attention == options.attention[0]:
                row["peak_memory_mb"] = taken[name][number]
            rows.append(row)
        report(options, rows)


if __name__ == "__main__":
    main()
