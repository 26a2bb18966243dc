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
"""What the whole training-free job costs (score, plan, cut, rebuild), as a ratio to one plain forward and backward
pass over the same examples.

Every round times the plain pass, a plain forward pass, and the job with each method, in turn. BERT-base shape with
random weights: the cost does not depend on their values. Solving for the weights takes the same time however many
examples there are, so with more of them the ratio falls.

    python examples/benchmarks/job_cost.py --output job_cost.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from scoring_cost import build, plain, seconds
from transformers import PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups


@torch.inference_mode()
def forward(model: PreTrainedModel, batches: list[dict]) -> None:
    for batch in batches:
        model(**batch)


def job(dense: PreTrainedModel, batches: list[dict], config: PruningConfig, parts: dict[str, list[float]]) -> None:
    """Scores, plans, cuts and rebuilds; notes the seconds of scoring and of rebuilding."""
    model = copy.deepcopy(dense)
    groups = find_groups(model)
    scores: dict[str, torch.Tensor] = {}
    parts["score"].append(
        seconds(lambda: scores.update(score_groups(model, groups, batches, config, disable_tqdm=True)))
    )
    plan = make_plan(scores, groups, config)
    apply_plan(model, plan)
    parts["rebuild"].append(seconds(lambda: reconstruct(model, dense, plan, batches, disable_tqdm=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["cam_cut", "smooth_cut"])
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, batches = build(device, options.batch_size, options.tokens, options.examples // options.batch_size)
    model.eval()
    parts = {name: {"score": [], "rebuild": []} for name in options.methods}
    tasks: dict[str, Callable[[], None]] = {
        "plain": lambda: plain(model, batches),
        "forward": lambda: forward(model, batches),
    }
    for name in options.methods:
        config = PruningConfig(method=name, sparsity=1 - options.keep)
        tasks[name] = lambda config=config, name=name: job(model, batches, config, parts[name])
    plain(model, batches[:1])  # warms up
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        for name, function in tasks.items():
            times[name].append(seconds(function))

    results = {}
    print(
        f"{device}, BERT-base shape, {options.examples} x {options.tokens} tokens, {options.rounds} rounds, by plain"
    )
    for name in options.methods:
        ratios = [own / whole for own, whole in zip(times[name], times["plain"])]
        passes = [own / whole for own, whole in zip(parts[name]["rebuild"], times["forward"])]
        scoring = [own / whole for own, whole in zip(parts[name]["score"], times["plain"])]
        results[name] = {
            "job": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
            "scoring": statistics.median(scoring),
            "rebuild_in_forward_passes": statistics.median(passes),
        }
        r, shares = results[name]["job"], (statistics.median(scoring), statistics.median(passes))
        print(
            f"{name:<16}{r['median']:.2f} ({r['low']:.2f} - {r['high']:.2f}), scoring {shares[0]:.2f}, "
            f"rebuild {shares[1]:.2f} plain forward passes"
        )
    if options.output:
        options.output.write_text(json.dumps({"device": device, **vars(options), "output": None, "results": results}))


if __name__ == "__main__":
    main()
