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
"""How long a pruned checkpoint takes to load, beside the dense one.

transformers only maps the files when `from_pretrained` runs, and reads weights as they are used. So there are two
figures: until it has returned, and until the model has answered, one sequence of `--tokens`. The files are in the page
cache.

    python examples/benchmarks/speed/load_time.py --output load_time.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from common import MEGABYTE, add_arguments, build, clock, cut, forward, in_turn, parse, parser, report, spread
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from optimum_camcut import load_pruned


def answer(load: Callable[[], PreTrainedModel], options: argparse.Namespace) -> dict[str, float]:
    """Loads a model and calls it; returns the seconds until it was there."""
    start = clock(options)
    model = load().to(options.device)
    loaded = clock(options) - start
    forward(model, [{"input_ids": torch.full((1, options.tokens), 5, device=options.device)}])
    return {"loaded": loaded}


def main() -> None:
    made = parser(__doc__, rounds=20, batch_size=1, tokens=128)
    add_arguments(made, "sparsity")
    options = parse(made, tokens=8)

    transformers.utils.logging.disable_progress_bar()
    auto = AutoModelForSequenceClassification.from_pretrained
    with tempfile.TemporaryDirectory() as name:
        dense, pruned = Path(name) / "dense", Path(name) / "pruned"
        model = build(options)
        model.save_pretrained(dense)
        cut(model, 1 - options.sparsity).save_pretrained(pruned)
        ways = {
            "dense": lambda: auto(dense),
            "load_pruned": lambda: load_pruned(pruned),
            "trust_remote_code": lambda: auto(pruned, trust_remote_code=True),
        }
        times = in_turn(options, {way: lambda load=load: answer(load, options) for way, load in ways.items()})
        sizes = {f: sum(file.stat().st_size for file in f.iterdir()) / MEGABYTE for f in (dense, pruned)}
    rows = [
        {
            "way": way,
            "loaded_milliseconds": spread(times[f"{way}/loaded"], scale=1e3),
            "loaded_to_dense": spread(times[f"{way}/loaded"], times["dense/loaded"]),
            "answered_milliseconds": spread(times[way], scale=1e3),
            "answered_to_dense": spread(times[way], times["dense"]),
            "megabytes": sizes[dense if way == "dense" else pruned],
        }
        for way in ways
    ]
    report(options, rows)


if __name__ == "__main__":
    main()
