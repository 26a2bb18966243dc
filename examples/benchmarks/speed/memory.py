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
"""The memory that scoring, training and the whole job take at most, as a ratio to plain forward and backward passes
over the same batches, and to training steps with Adam.

Each in a process that does nothing else: what counts is the peak of that process, on CUDA what its allocator reports.

    python examples/benchmarks/speed/memory.py --output memory.json
    python examples/benchmarks/speed/memory.py --granularity weights --methods cam_cut smooth_cut
"""

from __future__ import annotations

import argparse

import torch
from common import alone, backward, build, cut, forward, parse, parser, peak_memory, random_batches, report
from job import job
from scoring_cost import METHODS, add_scoring, scoring
from transformers import PreTrainedModel

from optimum_camcut import PruningConfig


def train(model: PreTrainedModel, batches: list[dict]) -> None:
    """Training steps with Adam."""
    optimizer = torch.optim.AdamW(model.parameters())
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


PASSES = {"forward": forward, "plain": backward, "adam": train}


def memory(options: argparse.Namespace, task: str) -> float:
    """Peak memory of one task, in a process of its own."""
    name, _, half = task.partition(", ")
    model, batches = build(options), random_batches(options, options.batches)
    model = (cut(model, 0.5) if half else model).train(name != "forward")
    if name in PASSES:
        return peak_memory(options, lambda: PASSES[name](model, batches))
    if name == "job":
        return peak_memory(options, lambda: job(options, model, batches, PruningConfig("cam_cut", sparsity=0.5)))
    return peak_memory(options, scoring(name, options.granularity, model, batches)[0])


def main() -> None:
    made = parser(__doc__, rounds=None)
    add_scoring(made)
    options = parse(made, batch_size=2, tokens=8, batches=1, methods=["cam_cut"])
    tasks = [*PASSES, *(f"{name}, half kept" for name in PASSES)]
    tasks += options.methods or METHODS[options.granularity]
    tasks += ["job"] if options.granularity == "units" else []
    peaks = dict(zip(tasks, alone(options, memory, [(options, task) for task in tasks])))
    rows = [
        {"task": task, "peak_memory_mb": peak, "to_plain": peak / peaks["plain"], "to_adam": peak / peaks["adam"]}
        for task, peak in peaks.items()
    ]
    report(options, rows)


if __name__ == "__main__":
    main()
