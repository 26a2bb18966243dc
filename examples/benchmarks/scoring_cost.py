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
"""What scoring costs, as a ratio to one plain forward and backward pass over the same batches.

Every round times the plain pass and each method once, in turn, so that a busy machine slows all alike. Peak memory is
that of a process which does nothing else (on CUDA, what the allocator reports); it is also given as a ratio to that of
training steps with Adam.

    python examples/benchmarks/scoring_cost.py --output scoring_cost.json
    python examples/benchmarks/scoring_cost.py --granularity weights --output scoring_cost_weights.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from optimum_camcut import PruningConfig, find_groups, score_groups


METHODS = {
    "units": ("cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher", "activation"),
    "weights": ("cam_cut", "smooth_cut", "smooth_cam_cut", "gradient", "snip", "wanda"),
}
KINDS = {"units": ("heads", "neurons"), "weights": ("weights",)}


def build(device: str, batch_size: int, tokens: int, batches: int) -> tuple[PreTrainedModel, list[dict]]:
    """A BERT-base-shaped classifier and random batches."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).to(device)
    data = [
        {
            "input_ids": torch.randint(1000, 30000, (batch_size, tokens)),
            "attention_mask": torch.ones(batch_size, tokens, dtype=torch.long),
            "labels": torch.randint(0, 2, (batch_size,)),
        }
        for _ in range(batches)
    ]
    return model, [{name: tensor.to(device) for name, tensor in batch.items()} for batch in data]


def plain(model: PreTrainedModel, batches: list[dict]) -> None:
    """One forward and backward pass with gradients for all weights, as one step of training without the optimizer."""
    for batch in batches:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)


def train(model: PreTrainedModel, batches: list[dict]) -> None:
    """Training steps with Adam."""
    optimizer = torch.optim.AdamW(model.parameters())
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def task(name: str, granularity: str, model: PreTrainedModel, batches: list[dict]) -> tuple[Callable[[], object], int]:
    """What to run under a name, and how many passes over the batches it makes."""
    if name in ("plain", "adam"):
        return lambda: (plain if name == "plain" else train)(model, batches), 1
    config = PruningConfig(method=name, granularity=KINDS[granularity], sparsity=0.5)
    passes = config.smooth_samples if name.startswith("smooth") else 1
    groups = find_groups(model, config.granularity)
    return lambda: score_groups(model, groups, batches, config, disable_tqdm=True), passes


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(name: str, granularity: str, arguments: tuple) -> int:
    """Peak bytes of a process (or of its GPU) that runs one task only."""
    model, batches = build(*arguments)
    model.train()
    task(name, granularity, model, batches)[0]()
    if arguments[0] == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage: its maximum survives the exec of a spawned process, and so would show the parent's.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=2, help="batches in one timing")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--granularity", default="units", choices=METHODS, help="heads and neurons, or weights")
    parser.add_argument("--methods", nargs="+", help="default: all that read data")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = (device, options.batch_size, options.tokens, options.batches)
    model, batches = build(*arguments)
    model.train()
    methods = options.methods or METHODS[options.granularity]
    tasks = {name: task(name, options.granularity, model, batches) for name in ("plain", *methods)}
    for function, _ in tasks.values():
        function()
    ratios: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        times = {name: seconds(function) for name, (function, _) in tasks.items()}
        for name, (_, passes) in tasks.items():
            ratios[name].append(times[name] / passes / times["plain"])
    # Large tensors go back to the system as soon as they are freed: what is counted is in use, as on CUDA.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak_memory, (name, options.granularity, arguments)) for name in (*tasks, "adam")}

    results = {
        name: {
            "passes": passes,
            "time_per_pass": statistics.median(ratios[name]),
            "time_low": min(ratios[name]),
            "time_high": max(ratios[name]),
            "peak_memory": memory[name] / memory["plain"],
            "peak_memory_to_adam": memory[name] / memory["adam"],
        }
        for name, (_, passes) in tasks.items()
    }
    print(f"{device}, BERT-base shape, batch {options.batch_size} x {options.tokens} tokens, {options.rounds} rounds")
    titles = f"{'time a pass / plain':>22}{'(low - high)':>16}{'peak memory / plain':>22}{'/ Adam step':>13}"
    print(f"{'method':<16}{'passes':>7}{titles}")
    for name, r in results.items():
        spread = f"({r['time_low']:.2f} - {r['time_high']:.2f})"
        print(
            f"{name:<16}{r['passes']:>7}{r['time_per_pass']:>22.2f}{spread:>16}{r['peak_memory']:>22.2f}{r['peak_memory_to_adam']:>13.2f}"
        )
    if options.output:
        options.output.write_text(json.dumps({"device": device, **vars(options), "output": None, "results": results}))


if __name__ == "__main__":
    main()
