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
"""The targets for one GPU of the H200's class (compute capability 9.0 or more), BERT-base in bfloat16, 2,048 examples
of 128 tokens: scoring within 1.5 s by `cam_cut` and within 6 s by `smooth_cut` with 10 passes, and the whole
training-free job (score by the latter, plan, cut, rebuild) within 8 s.

The median of the rounds counts; where one is missed, the script ends with an error. On any other device, and at other
sizes, times are shown and nothing is judged.

    python examples/benchmarks/speed/h200.py --output h200.json
"""

from __future__ import annotations

import torch
from common import add_arguments, build, in_turn, parse, parser, random_batches, report, spread
from job import job

from optimum_camcut import PruningConfig, find_groups, score_groups


EXAMPLES, TOKENS, PASSES = 2048, 128, 10
LIMITS = {"scoring by cam_cut": 1.5, "scoring by smooth_cut, 10 passes": 6.0, "the whole job": 8.0}  # seconds


def main() -> None:
    made = parser(__doc__, rounds=3, batch_size=128, tokens=TOKENS)
    made.set_defaults(dtype="bfloat16")
    add_arguments(made, examples=EXAMPLES)
    options = parse(made, batch_size=4, tokens=16, examples=16)
    asked = (options.examples, options.tokens, options.dtype) == (EXAMPLES, TOKENS, "bfloat16")
    judged = asked and options.device == "cuda" and torch.cuda.get_device_capability() >= (9, 0)
    judged = judged and not options.quick and not options.model_name_or_path and not options.cpu_time

    model, batches = build(options), random_batches(options, options.examples // options.batch_size)
    groups, cam_cut = find_groups(model), PruningConfig("cam_cut", sparsity=0.5)
    smooth_cut = PruningConfig("smooth_cut", sparsity=0.5, smooth_samples=PASSES)

    def score(config: PruningConfig) -> None:
        score_groups(model, groups, batches, config, disable_tqdm=True)

    tasks = [lambda: score(cam_cut), lambda: score(smooth_cut), lambda: job(options, model, batches, smooth_cut)]
    times = in_turn(options, dict(zip(LIMITS, tasks)))
    rows = [{"target": name, "limit_seconds": limit, "seconds": spread(times[name])} for name, limit in LIMITS.items()]
    for row in rows:
        met = row["seconds"]["median"] <= row["limit_seconds"]
        row["result"] = ("pass" if met else "fail") if judged else "not judged"
    report(options, rows)
    missed = [row["target"] for row in rows if row["result"] == "fail"]
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
