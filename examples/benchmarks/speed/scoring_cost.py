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

python examples/benchmarks/speed/scoring_cost.py --output scoring_cost.json
python examples/benchmarks/speed/scoring_cost.py --granularity weights --output scoring_cost_weights.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from common import add_arguments, backward, build, in_turn, parse, parser, random_batches, report, spread
from transformers import PreTrainedModel

from optimum_camcut import PruningConfig, find_groups, score_groups


METHODS = {
    "units": ("cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher", "activation"),
    "weights": ("cam_cut", "smooth_cut", "smooth_cam_cut", "gradient", "snip", "wanda"),
}
KINDS = {"units": ("heads", "neurons"), "weights": ("weights",)}


def add_scoring(made: argparse.ArgumentParser) -> None:
    made.add_argument("--batches", type=int, default=2, help="batches in one timing")
    add_arguments(made, granularity={"choices": METHODS, "help": "heads and neurons, or weights"})
    add_arguments(made, methods={"help": "default: all that read data"})


def scoring(
    name: str, granularity: str, model: PreTrainedModel, batches: list[dict]
) -> tuple[Callable[[], None], int]:
    """What scores by a method, and how many passes over the batches it makes."""
    config = PruningConfig(method=name, granularity=KINDS[granularity], sparsity=0.5)
    groups = find_groups(model, config.granularity)

    def score() -> None:
        score_groups(model, groups, batches, config, disable_tqdm=True)

    return score, config.smooth_samples if name.startswith("smooth") else 1


def main() -> None:
    made = parser(__doc__, rounds=7)
    add_scoring(made)
    options = parse(made, batch_size=2, tokens=8, batches=1)
    model, batches = build(options).train(), random_batches(options, options.batches)
    tasks = {"plain": (lambda: backward(model, batches), 1)}
    for name in options.methods or METHODS[options.granularity]:
        tasks[name] = scoring(name, options.granularity, model, batches)
    times = in_turn(options, {name: task for name, (task, _) in tasks.items()})
    examples = options.batches * options.batch_size
    rows = [
        {
            "method": name,
            "passes": passes,
            "pass_to_plain": spread(times[name], times["plain"], 1 / passes),
            "milliseconds_per_example": spread(times[name], scale=1e3 / examples),
        }
        for name, (_, passes) in tasks.items()
    ]
    report(options, rows)


if __name__ == "__main__":
    main()
