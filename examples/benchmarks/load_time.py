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
"""What a pruned checkpoint takes to load, beside the dense one: time, and size on disk.

Every round loads the dense model, then the pruned one in both ways, so that a busy machine slows all alike. The first
figure is until `from_pretrained` returns; transformers only maps the files then, and reads weights as they are used.
So the second is until the model has answered, one sequence of `--tokens`. The files are in the page cache.

    python examples/benchmarks/load_time.py --output load_time.json

Without `--model_name_or_path`, a BERT-base shape with random weights: neither cost depends on their values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, load_pruned, make_plan, score_groups


def save_both(name_or_path: str | None, sparsity: float, folder: Path) -> None:
    torch.manual_seed(0)
    if name_or_path:
        model = AutoModelForSequenceClassification.from_pretrained(name_or_path, dtype=torch.float32)
    else:
        model = BertForSequenceClassification(BertConfig())
    model.save_pretrained(folder / "dense")
    groups, config = find_groups(model), PruningConfig(method="magnitude", sparsity=sparsity)
    apply_plan(model, make_plan(score_groups(model, groups, None, config), groups, config))
    model.save_pretrained(folder / "pruned")


@torch.inference_mode()
def measure(load: Callable[[], PreTrainedModel], tokens: int) -> tuple[float, float]:
    """Seconds until the model is there, and until it has answered."""
    start = time.perf_counter()
    model = load()
    loaded = time.perf_counter()
    model(torch.full((1, tokens), 5))
    return loaded - start, time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "first_quartile": low, "third_quartile": high, "least": min(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_both(options.model_name_or_path, options.sparsity, folder)
        dense, pruned = folder / "dense", folder / "pruned"
        auto = AutoModelForSequenceClassification.from_pretrained
        ways = {
            "dense": lambda: auto(dense),
            "load_pruned": lambda: load_pruned(pruned),
            "trust_remote_code": lambda: auto(pruned, trust_remote_code=True),
        }
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way, load in ways.items():
                seconds = measure(load, options.tokens)
                if number:  # the first round imports, and warms up
                    times[way].append(seconds)
        for way in ways:
            loaded, answered = zip(*times[way])
            megabytes = sum(file.stat().st_size for file in (dense if way == "dense" else pruned).iterdir()) / 1e6
            results[way] = {"loaded": summary(loaded), "answered": summary(answered), "megabytes": megabytes}
            # Of each round, so that what else the machine does cancels.
            for moment, values in (("loaded", loaded), ("answered", answered)):
                ratios = [own[moment == "answered"] for own in times["dense"]]
                results[way][moment]["to_dense"] = statistics.median(v / d for v, d in zip(values, ratios))

    threads = torch.get_num_threads()
    print(f"{options.rounds} rounds, {threads} threads, medians (first to third quartile) in milliseconds")
    print(f"{'':<19}{'loaded':>22}{'/ dense':>9}{'answered':>24}{'/ dense':>9}{'MB':>8}")
    for way, result in results.items():
        cells = ""
        for moment, width in (("loaded", 22), ("answered", 24)):
            t = result[moment]
            low, middle, high = (1e3 * t[key] for key in ("first_quartile", "median", "third_quartile"))
            cells += f"{f'{middle:.0f} ({low:.0f} - {high:.0f})':>{width}}{t['to_dense']:>9.2f}"
        print(f"{way:<19}{cells}{result['megabytes']:>8.0f}")
    if options.output:
        figures = {"rounds": options.rounds, "threads": threads, "tokens": options.tokens, "results": results}
        options.output.write_text(json.dumps({"sparsity": options.sparsity, **figures}))


if __name__ == "__main__":
    main()
