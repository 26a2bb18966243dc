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
"""How much faster a pruned model runs, beside what its FLOPs promise.

The dense model and the pruned ones run in turn; BERT-base shape with random weights and magnitude scores, since the
time does not depend on values. FLOPs are those of the whole model's matrix products.

    python examples/benchmarks/speed.py --output speed.json
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, score_groups
from optimum_camcut.measure import count_flops, measure_latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.3])
    parser.add_argument("--allocation", default="per_kind", choices=["per_kind", "uniform"])
    parser.add_argument("--multiple_of", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if options.model_name_or_path:
        dense = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
    else:
        dense = BertForSequenceClassification(BertConfig())
    dense = dense.to(device, torch.bfloat16 if options.bf16 else torch.float32).eval()
    groups, models = find_groups(dense), {"dense": dense}
    for keep in options.keep:
        config = PruningConfig(
            method="magnitude",
            sparsity=1 - keep,
            budget="flops",
            allocation=options.allocation,
            multiple_of=options.multiple_of,
        )
        plan = make_plan(score_groups(dense, groups, None, config), groups, config)
        models[f"{keep:.0%}"] = apply_plan(copy.deepcopy(dense), plan)
    shape = (options.batch_size, options.tokens)
    flops = {name: count_flops(model, *shape) for name, model in models.items()}
    times = measure_latency(models, *shape, repeats=options.repeats)
    where = f"{device}, {torch.get_num_threads()} threads, batch {shape[0]} x {shape[1]} tokens"
    print(f"{where}, median of {options.repeats} runs in turn (quartiles), ms")
    results = {}
    for name, time in times.items():
        faster, promised = times["dense"].median / time.median, flops["dense"] / flops[name]
        results[name] = {"seconds": vars(time), "speed_up": faster, "flops_ratio": promised}
        spread = f"{1e3 * time.median:.0f} ({1e3 * time.low:.0f} - {1e3 * time.high:.0f})"
        print(f"{name:<6}{spread:>24}  {faster:.2f}x, by FLOPs {promised:.2f}x: {faster / promised:.2f} of it")
    if options.output:
        options.output.write_text(json.dumps({"device": device, **vars(options), "output": None, "results": results}))


if __name__ == "__main__":
    main()
