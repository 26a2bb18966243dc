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
"""How fast pruned models are beside the dense one, over a grid of batch sizes and sequence lengths, how many tokens a
second they read, and the memory that a process takes which runs one of them.

Magnitude scores: the time does not depend on values. FLOPs are those of the whole model's matrix products. With
`--compile`, each model also runs as `torch.compile` makes it, in turn with the others.

    python examples/benchmarks/speed/latency.py --output latency.json
    python examples/benchmarks/speed/latency.py --dtype bfloat16 --compile --batch_sizes 1 32 --tokens 128
"""

from __future__ import annotations

import argparse
import itertools

import torch
from common import add_arguments, alone, build, cut, forward, in_turn, parse, parser, peak_memory, report, spread
from transformers import PreTrainedModel

from optimum_camcut.measure import count_flops, keeping_memory, random_inputs


def pruned(dense: PreTrainedModel, keep: float, options: argparse.Namespace) -> PreTrainedModel:
    settings = {"budget": "flops", "allocation": options.allocation, "multiple_of": options.multiple_of}
    return dense if keep == 1 else cut(dense, keep, **settings)


def memory(options: argparse.Namespace, keep: float) -> list[float]:
    """Peak memory of one model in each cell of the grid, in a process of its own."""
    model = pruned(build(options), keep, options)
    inputs = [random_inputs(model, *shape) for shape in grid(options)]
    return [peak_memory(options, lambda each=each: forward(model, [each])) for each in inputs]


def grid(options: argparse.Namespace) -> list[tuple[int, int]]:
    return list(itertools.product(options.batch_sizes, options.tokens))


def main() -> None:
    made = parser(__doc__, rounds=10, batch_size=None)
    add_arguments(made, "multiple_of", keep=[0.5, 0.3], allocation={"choices": ["per_kind", "uniform"]})
    made.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32])
    add_arguments(made, tokens={"nargs": "+", "default": [32, 128, 512]})
    made.add_argument("--compile", action="store_true", help="also by torch.compile")
    options = parse(made, keep=[0.5], batch_sizes=[1, 2], tokens=[8])

    dense, keeps = build(options), {"dense": 1.0, **{f"{keep:.0%}": keep for keep in options.keep}}
    models = {name: pruned(dense, keep, options) for name, keep in keeps.items()}
    peaks = dict(zip(keeps, alone(options, memory, [(options, keep) for keep in keeps.values()])))
    rows = []
    for number, shape in enumerate(grid(options)):
        runs = dict(models)
        if options.compile:
            torch.compiler.reset()  # it stops to compile after a few shapes
            runs |= {f"{name} compiled": torch.compile(model, dynamic=False) for name, model in models.items()}
        inputs = random_inputs(dense, *shape)
        tasks = {name: lambda run=run, inputs=inputs: forward(run, [inputs]) for name, run in runs.items()}
        with keeping_memory():
            times = in_turn(options, tasks)
        flops = {name: count_flops(model, *shape) for name, model in models.items()}
        for name in runs:
            base = name.removesuffix(" compiled")
            row = {
                "batch_size": shape[0],
                "tokens": shape[1],
                "model": name,
                "milliseconds": spread(times[name], scale=1e3),
                "speed_up": spread(times["dense"], times[name]),
                "speed_up_by_flops": flops["dense"] / flops[base],
                "tokens_per_second": shape[0] * shape[1] / spread(times[name])["median"],
            }
            if name in peaks:
                row["peak_memory_mb"] = peaks[name][number]
            rows.append(row)
    report(options, rows)


if __name__ == "__main__":
    main()
