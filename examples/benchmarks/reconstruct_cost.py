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
"""What rebuilding costs, as a ratio to one plain forward pass over the same examples.

    python examples/benchmarks/reconstruct_cost.py --output reconstruct_cost.json

Without `--model_name_or_path`, a MiniLM-L6-H384 shape with random weights: the cost does not depend on their values.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
from scoring_cost import seconds
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups


@torch.inference_mode()
def forward(model: PreTrainedModel, batches: list[dict]) -> None:
    for batch in batches:
        model(**batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.3])
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if options.model_name_or_path:
        dense = AutoModel.from_pretrained(options.model_name_or_path, dtype=torch.float32)
    else:
        shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        dense = BertModel(BertConfig(**shape))
    dense.to(device).eval()
    shape = (options.batch_size, options.tokens)
    batches = [
        {"input_ids": torch.randint(dense.config.vocab_size, shape, device=device)}
        for _ in range(options.examples // options.batch_size)
    ]
    groups = find_groups(dense)
    results = {}
    for keep in options.keep:
        config = PruningConfig(method="magnitude", sparsity=1 - keep)
        plan = make_plan(score_groups(dense, groups, None, config), groups, config)
        cut = apply_plan(copy.deepcopy(dense), plan)
        ratios = []
        for number in range(options.rounds + 1):
            model = copy.deepcopy(cut)
            plain = seconds(lambda: forward(dense, batches))
            rebuild = seconds(
                lambda model=model, plan=plan: reconstruct(model, dense, plan, batches, disable_tqdm=True)
            )
            if number:  # the first round warms up
                ratios.append(rebuild / plain)
        results[keep] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        r = results[keep]
        print(
            f"keep {keep:.0%}: {r['median']:.2f} forward passes ({r['low']:.2f} - {r['high']:.2f}), {device}",
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps({"device": device, "projections": len(groups), "results": results}))


if __name__ == "__main__":
    main()
