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
"""What scoring needs beyond the weights of a decoder, and that an offloaded one never is in memory as a whole.

A llama of the given shape with random bfloat16 weights is scored in memory and offloaded to disk, with and without
gradient checkpointing, each in a process of its own.

    python examples/benchmarks/big_model.py --output big_model.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import torch
from accelerate import disk_offload
from study import add, add_arguments, make_parser, settings_of
from transformers import LlamaConfig, LlamaForCausalLM

from optimum_camcut import PruningConfig, find_groups, score_groups


def memory() -> int:
    """Bytes that this process has to itself: files it has mapped can be dropped at any time."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure(options: argparse.Namespace, offloaded: bool, checkpointing: bool) -> dict[str, float]:
    """Scores one model; what it took."""
    torch.manual_seed(0)
    shape = {name: getattr(options, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = options.hidden_size // 64
    config = LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=32000)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    groups = find_groups(model)
    ids = torch.randint(0, 32000, (options.examples, options.tokens))
    batches = [{"input_ids": i, "labels": i} for i in ids.split(options.batch_size)]
    if checkpointing:
        model.gradient_checkpointing_enable()
    with tempfile.TemporaryDirectory() as folder:
        model = disk_offload(model, folder, execution_device=device) if offloaded else model.to(device)
        peak, done = [memory()], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                peak[0] = max(peak[0], memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        try:
            score_groups(model, groups, batches, PruningConfig("cam_cut", sparsity=0.5), disable_tqdm=True)
        finally:
            done.set()
            watcher.join()
        seconds = time.perf_counter() - start
    return {"weights": weights, "peak": peak[0], "seconds": seconds}


def idle(options: argparse.Namespace) -> int:
    """What a process has to itself that only imports and scores a toy."""
    toy = argparse.Namespace(**{**vars(options), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1})
    return measure(toy, False, False)["peak"]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--intermediate_size", type=int, default=2816)
    parser.add_argument("--num_hidden_layers", type=int, default=24)
    add_arguments(parser, "output", examples=4, batch_size=2, tokens=256)
    options = parser.parse_args()
    cases = [(offloaded, checkpointing) for offloaded in (False, True) for checkpointing in (False, True)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        base = pool.apply(idle, (options,))
        results = [pool.apply(measure, (options, *case)) for case in cases]
    mb, tokens = 2**20, options.batch_size * options.tokens
    print(f"weights {results[0]['weights'] / mb:.0f} MB; {tokens} tokens a batch; a process takes {base / mb:.0f} MB")
    print(f"{'weights':<10}{'checkpointing':>14}{'beyond the process, MB':>25}{'seconds a batch':>17}")
    for (offloaded, checkpointing), r in zip(cases, results):
        row = f"{'on disk' if offloaded else 'in memory':<10}{'on' if checkpointing else 'off':>14}"
        seconds = r["seconds"] * options.batch_size / options.examples
        print(f"{row}{(r['peak'] - base) / mb:>25.0f}{seconds:>17.1f}")
    if options.output:
        named = [{"offloaded": o, "checkpointing": c, **r} for (o, c), r in zip(cases, results)]
        run = {"settings": settings_of(options), "idle": base, "results": named}
        add(options.output, run, ["settings"])


if __name__ == "__main__":
    main()
