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
"""What scoring and the rebuild need beyond the weights of a decoder, and that an offloaded one never is in memory as a
whole.

A llama of the given shape with random bfloat16 weights is scored in memory and offloaded to disk, with and without
gradient checkpointing; and cut to a half and rebuilt, with the whole one in memory and on disk. Each runs in a process
of its own.

    python examples/benchmarks/big_model.py --output big_model.json
    python examples/benchmarks/big_model.py --in_memory --hidden_size 2048 --intermediate_size 5632  # nothing on disk
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import disk_offload
from study import add, add_arguments, make_parser, settings_of
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups
from optimum_camcut.planning.latency import device_name
from optimum_camcut.scoring.batches import Batch


sys.path.insert(0, str(Path(__file__).resolve().parent / "speed"))
from tables import as_text


VOCABULARY = 32000
WHERE = ("in memory", "on disk")


def memory() -> int:
    """Bytes that this process has to itself: files it has mapped can be dropped at any time."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def random_llama(options: argparse.Namespace) -> tuple[LlamaForCausalLM, list[Batch]]:
    """Of the given shape, and examples; in CPU memory, but on the device where nothing is to be offloaded."""
    torch.manual_seed(0)
    shape = {name: getattr(options, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = options.hidden_size // 64
    config = LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=VOCABULARY)
    with device() if options.in_memory else torch.device("cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(0, VOCABULARY, (options.examples, options.tokens))
    return model, [{"input_ids": i, "labels": i} for i in ids.split(options.batch_size)]


def watched(task: Callable[[], object]) -> dict[str, float]:
    """Runs a task: the most memory that it took, and its time."""
    peak, done = [memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], memory())

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        task()
    finally:
        done.set()
        watcher.join()
    return {"peak": peak[0], "seconds": time.perf_counter() - start}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(options: argparse.Namespace, offloaded: bool, checkpointing: bool) -> dict[str, float]:
    """Scores one model; what it took."""
    model, batches = random_llama(options)
    weights, groups = size_of(model), find_groups(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    with tempfile.TemporaryDirectory() as folder:
        model = disk_offload(model, folder, execution_device=device()) if offloaded else model.to(device())
        config = PruningConfig("cam_cut", sparsity=0.5)
        return {"weights": weights, **watched(lambda: score_groups(model, groups, batches, config, disable_tqdm=True))}


def measure_rebuild(options: argparse.Namespace, offloaded: bool) -> dict[str, float]:
    """Rebuilds a half of one model from all of it: both where they compute, or one block at a time, and the whole one
    on disk."""
    dense, batches = random_llama(options)
    groups, config = find_groups(dense), PruningConfig("random", sparsity=0.5)
    plan = make_plan(score_groups(dense, groups, None, config), groups, config)
    model, weights = apply_plan(copy.deepcopy(dense), plan), size_of(dense)
    weights += size_of(model)
    with tempfile.TemporaryDirectory() as folder:
        if offloaded:
            dense = disk_offload(dense, folder, execution_device=device())
        else:
            dense, model = dense.to(device()), model.to(device())
        settings = {"device": device() if offloaded else None, "disable_tqdm": True}
        return {"weights": weights, **watched(lambda: reconstruct(model, dense, plan, batches, **settings))}


def size_of(model: LlamaForCausalLM) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def on_paper(options: argparse.Namespace, checkpointing: bool) -> float:
    """What `docs/scale.md` says that `cam_cut` needs beyond the weights, in bytes."""
    hidden, inner, blocks = options.hidden_size, options.intermediate_size, options.num_hidden_layers
    watched, saved = 2 * (hidden + inner), 2 * (13 * hidden + 3.5 * inner)
    of_blocks = blocks * (watched + 2 * hidden) + saved if checkpointing else blocks * saved
    return options.batch_size * options.tokens * (of_blocks + 10 * VOCABULARY)


def idle(options: argparse.Namespace) -> int:
    """What a process has to itself that only imports and scores a toy."""
    toy = argparse.Namespace(**{**vars(options), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1})
    return measure(toy, False, False)["peak"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--intermediate_size", type=int, default=2816)
    parser.add_argument("--num_hidden_layers", type=int, default=24)
    parser.add_argument("--in_memory", action="store_true", help="leave out the cases with weights on disk")
    add_arguments(parser, "quick", "output", examples=4, batch_size=2, tokens=256)
    if parser.parse_args().quick:
        parser.set_defaults(hidden_size=128, intermediate_size=256, num_hidden_layers=2, tokens=16)
    options = parser.parse_args()
    places = (False,) if options.in_memory else (False, True)
    cases = [(offloaded, checkpointing) for offloaded in places for checkpointing in (False, True)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        # What a GPU's allocator holds is the model's alone.
        base = 0 if device().type == "cuda" else pool.apply(idle, (options,))
        results = [pool.apply(measure, (options, *case)) for case in cases]
        rebuilt = [pool.apply(measure_rebuild, (options, offloaded)) for offloaded in places]
    mb, rows = 2**20, []
    for (offloaded, checkpointing), r in zip(cases, results):
        row = {"task": "scoring", "weights": WHERE[offloaded], "checkpointing": "on" if checkpointing else "off"}
        row |= {"weights_mb": r["weights"] / mb, "peak_mb": (r["peak"] - base) / mb}
        if not offloaded:
            row["peak_on_paper_mb"] = (r["weights"] + on_paper(options, checkpointing)) / mb
        rows.append({**row, "seconds_a_batch": r["seconds"] * options.batch_size / options.examples})
    for offloaded, r in zip(places, rebuilt):
        row = {"task": "rebuild", "weights": WHERE[offloaded], "weights_mb": r["weights"] / mb}
        rows.append({**row, "peak_mb": (r["peak"] - base) / mb, "seconds": r["seconds"]})
    where = {"benchmark": "big_model", "settings": settings_of(options), "device": device_name(device())}
    run = {**where, "idle_mb": base / mb, "rows": rows}
    print(as_text(run))
    if options.output:
        add(options.output, run, where)


if __name__ == "__main__":
    main()
