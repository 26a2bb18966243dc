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

Random weights: the cost does not depend on their values. Solving for the weights takes the same time however many
examples there are, so with more of them the ratio falls.

    python examples/benchmarks/speed/job.py --output job.json
    python examples/benchmarks/speed/job.py --dtype bfloat16 --examples 2048 --batch_size 128 --smooth_samples 10 \
        --smooth_examples 2048
"""

from __future__ import annotations

import argparse
import copy

from common import (
    add_arguments,
    backward,
    build,
    clock,
    forward,
    in_turn,
    parse,
    parser,
    random_batches,
    report,
    spread,
)
from transformers import PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups


SMOOTHING = {"smooth_samples": "noisy passes", "smooth_examples": "examples"}


def job(
    options: argparse.Namespace, dense: PreTrainedModel, batches: list[dict], config: PruningConfig
) -> dict[str, float]:
    """Scores, plans, cuts and rebuilds; returns the seconds of scoring and of rebuilding."""
    model = copy.deepcopy(dense)
    groups, moments = find_groups(model), [clock(options)]
    scores = score_groups(model, groups, batches, config, disable_tqdm=True)
    moments.append(clock(options))
    plan = make_plan(scores, groups, config)
    apply_plan(model, plan)
    moments.append(clock(options))
    reconstruct(model, dense, plan, batches, disable_tqdm=True)
    moments.append(clock(options))
    return {"scoring": moments[1] - moments[0], "rebuild": moments[3] - moments[2]}


def main() -> None:
    made = parser(__doc__, rounds=3, tokens=128)
    add_arguments(made, methods=["cam_cut", "smooth_cut"], keep={"nargs": None, "default": 0.5}, examples=128)
    for name, what in SMOOTHING.items():
        made.add_argument(f"--{name}", type=int, help=f"{what} of the smooth methods; default: the package's")
    options = parse(made, batch_size=4, tokens=16, examples=16)

    model, batches = build(options), random_batches(options, options.examples // options.batch_size)
    tasks = {"plain": lambda: backward(model, batches), "forward": lambda: forward(model, batches)}
    for name in options.methods:
        given = {each: getattr(options, each) for each in SMOOTHING} if name.startswith("smooth") else {}
        config = PruningConfig(method=name, sparsity=1 - options.keep, **given)
        tasks[name] = lambda config=config: job(options, model, batches, config)
    times = in_turn(options, tasks)
    rows = [
        {
            "method": name,
            "seconds": spread(times[name]),
            "scoring_seconds": spread(times[f"{name}/scoring"]),
            "rebuild_seconds": spread(times[f"{name}/rebuild"]),
            "job_to_plain": spread(times[name], times["plain"]),
            "scoring_to_plain": spread(times[f"{name}/scoring"], times["plain"]),
            "rebuild_to_plain_forward": spread(times[f"{name}/rebuild"], times["forward"]),
        }
        for name in options.methods
    ]
    report(options, rows)


if __name__ == "__main__":
    main()
