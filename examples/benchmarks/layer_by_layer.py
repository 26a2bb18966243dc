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
"""Why methods differ: what each keeps in every layer, and how far the pruned model's hidden states are off behind it.

On models and data of `quality.py`. The distance behind a layer is ||H' - H||² / ||H - mean H||² over all real tokens
of the validation set, H of the dense model and H' of the pruned one, before (cut) and after least squares (rebuilt).
`minus_METHOD` scores by the loss with its sign changed.

    python examples/benchmarks/layer_by_layer.py --model 'MODEL-{task}' --output layer_by_layer.json \
        --methods cam_cut minus_cam_cut smooth_cut fisher
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile

import torch
from quality import TASKS, Benchmark
from study import add, add_arguments, make_parser, read
from torch import Tensor
from transformers import PreTrainedModel

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups
from optimum_camcut.scoring import SCORERS


MINUS = "minus_"
KEY = ("task", "method", "keep", "seed", "stage")  # of a run


def minus_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return -model(**batch).loss


def distances(benchmark: Benchmark, model: PreTrainedModel) -> list[float]:
    """One a layer."""
    off = total = squares = count = 0
    for start in range(0, len(benchmark.validation), 64):
        rows = benchmark.validation.select(range(start, min(start + 64, len(benchmark.validation))))
        batch = {name: value for name, value in benchmark.collator(list(rows)).items() if name != "labels"}
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            dense, pruned = (
                torch.stack(each(**batch, output_hidden_states=True).hidden_states[1:])[:, real].double()
                for each in (benchmark.model, model)
            )
        off += (pruned - dense).square().sum((1, 2))
        total, squares, count = total + dense.sum(1), squares + dense.square().sum((1, 2)), count + dense.shape[1]
    return (off / (squares - total.square().sum(1) / count)).tolist()


def compare(benchmark: Benchmark, name: str, keep: float, seed: int, num_samples: int) -> list[dict]:
    method = name.removeprefix(MINUS)
    config = PruningConfig(method=method, sparsity=1 - keep, num_samples=num_samples, seed=seed)
    batches = list(benchmark.trainer(config).get_scoring_dataloader())
    groups = find_groups(benchmark.model)
    scores = score_groups(
        benchmark.model, groups, batches, config, loss_function=minus_loss if name != method else None
    )
    model = copy.deepcopy(benchmark.model)
    apply_plan(model, make_plan(scores, groups, config))
    row = {"task": benchmark.name, "method": name, "keep": keep, "seed": seed, "dense": benchmark.dense}
    for kind in ("heads", "neurons"):
        row[kind] = [group.size for group in find_groups(model, [kind])]
    rows = []
    for stage in ("cut", "rebuilt"):
        if stage == "rebuilt":
            reconstruct(model, benchmark.model, model.pruning_plan, batches)
        rows.append({**row, "stage": stage, "metric": benchmark.evaluate(model), "off": distances(benchmark, model)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown; one line a task, fraction, method and stage. Means over the seeds."""
    lines = [
        "| task | keep | method | stage | metric | heads kept, by layer | neurons kept, by layer | off by % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault((row["task"], row["keep"], row["method"], row["stage"]), []).append(row)
    for (task, keep, method, stage), same in found.items():
        heads, neurons, off = (
            [statistics.mean(values) for values in zip(*(row[key] for row in same))]
            for key in ("heads", "neurons", "off")
        )
        metric = statistics.mean(row["metric"] for row in same)
        cells = [
            " ".join(f"{value:.{digits}f}" for value in values)
            for values, digits in ((heads, 0), (neurons, 0), ([100 * value for value in off], 1))
        ]
        lines.append(f"| {task} | {keep:.0%} | `{method}` | {stage} | {metric:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    methods = [*SCORERS, *(MINUS + name for name in SCORERS)]
    parser = make_parser(__doc__)
    add_arguments(parser, "finetune", "dataset_path", model={"required": True}, tasks={"choices": sorted(TASKS)})
    add_arguments(parser, methods={"default": ["cam_cut", "smooth_cut", "fisher"], "choices": methods})
    add_arguments(parser, "keep", "num_samples", seeds=[1], output={"required": True})
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            benchmark = Benchmark(task, options, folder)
            for name in options.methods:
                for keep in options.keep:
                    for seed in options.seeds:
                        for row in compare(benchmark, name, keep, seed, options.num_samples):
                            add(options.output, row, KEY)
    print(table(read(options.output)))


if __name__ == "__main__":
    main()
