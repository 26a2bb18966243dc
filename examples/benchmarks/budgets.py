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
"""How near pruned models come to their budgets: wanted, predicted by the plan and measured of the physical model.

Parameters and FLOPs are counted in the cut model; its time is measured in turn with the dense model's, pair by pair,
so that a busy machine slows both alike. `wanted` is 1 - sparsity: of the prunable parameters or FLOPs, and of the time
of the whole model.

    python examples/benchmarks/budgets.py --output budgets.json
    python examples/benchmarks/budgets.py --model_name_or_path google-bert/bert-base-uncased --budgets latency

A budget of latency that no plan can keep to, as of a model whose time hardly depends on its sizes, is told and left
out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from study import add, add_arguments, make_parser, settings_of
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from optimum_camcut import (
    LatencyTable,
    PrunableGroup,
    PruningConfig,
    apply_plan,
    find_groups,
    latency_table,
    make_plan,
    score_groups,
)
from optimum_camcut.measure import count_flops, count_parameters, keeping_memory, random_inputs, time_forward
from optimum_camcut.planning.costs import remaining_budget, unit_cost
from optimum_camcut.planning.latency import device_name


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def paired_ratios(dense: PreTrainedModel, pruned: PreTrainedModel, options: argparse.Namespace) -> list[float]:
    """Time of the pruned model to the dense one's, once a round, after a round that does not count."""
    inputs = random_inputs(dense, options.batch_size, options.tokens)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    with keeping_memory():
        pairs = [[time_forward(model, inputs, clock) for model in (dense, pruned)] for _ in range(options.rounds + 1)]
    return [after / before for before, after in pairs[1:]]


def measure(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    groups: list[PrunableGroup],
    config: PruningConfig,
    options: argparse.Namespace,
) -> dict[str, float]:
    """The fraction of the budget that is left in the cut model, with its quartiles where it is a time."""
    if config.budget == "latency":
        low, median, high = statistics.quantiles(paired_ratios(dense, pruned, options), n=4, method="inclusive")
        return {"measured": median, "low": low, "high": high}
    prunable = sum(group.size * unit_cost(group, config) for group in groups)
    if config.budget == "params":
        removed = count_parameters(dense) - count_parameters(pruned)
    else:
        removed = count_flops(dense, 1, options.tokens) - count_flops(pruned, 1, options.tokens)
        prunable *= options.tokens * dense.config.num_hidden_layers / groups[0].num_layers  # ALBERT repeats layers
    return {"measured": 1 - removed / prunable}


def run(dense: PreTrainedModel, options: argparse.Namespace) -> tuple[list[dict], LatencyTable | None, float]:
    groups, rows, table, seconds = find_groups(dense), [], None, 0.0
    scores = score_groups(dense, groups, None, PruningConfig(method=options.method, sparsity=0.5))
    for budget in options.budgets:
        for allocation in options.allocations:
            for sparsity in options.sparsities:
                config = PruningConfig(
                    method=options.method,
                    sparsity=sparsity,
                    budget=budget,
                    allocation=allocation,
                    multiple_of=options.multiple_of,
                    sequence_length=options.tokens,
                    latency_batch_size=options.batch_size,
                )
                if budget == "latency" and table is None:
                    start = time.perf_counter()
                    table = latency_table(dense, config, refresh=options.refresh)
                    seconds = time.perf_counter() - start
                    print(table)
                row = {"budget": budget, "allocation": allocation, "wanted": 1 - sparsity}
                try:
                    plan = make_plan(scores, groups, config, latency=table)
                except ValueError as error:
                    if budget != "latency":
                        raise
                    rows.append({**row, "result": f"no such plan: {error}"})
                    print(rows[-1]["result"], flush=True)
                    continue
                pruned = apply_plan(copy.deepcopy(dense), plan)
                row |= {
                    "predicted": remaining_budget(groups, find_groups(pruned), config, table),
                    **measure(dense, pruned, groups, config, options),
                }
                rows.append(row)
                spread = f" ({row['low']:.4f} to {row['high']:.4f})" if "low" in row else ""
                print(
                    f"{budget:<8} {allocation:<9} wanted {row['wanted']:.2f}  predicted {row['predicted']:.4f}  "
                    f"measured {row['measured']:.4f}{spread}  off by {row['measured'] / row['wanted'] - 1:+.1%}",
                    flush=True,
                )
    return rows, table, seconds


def main() -> None:
    parser = make_parser(__doc__)
    add_arguments(parser, "model_name_or_path")
    parser.add_argument("--budgets", nargs="+", default=["params", "flops", "latency"])
    parser.add_argument("--allocations", nargs="+", default=["per_kind", "global", "uniform"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    methods = {"default": "magnitude", "choices": ("magnitude", "random"), "help": "scores need no data"}
    add_arguments(parser, "multiple_of", method=methods, batch_size={"default": 8, "help": "of the latency"})
    add_arguments(parser, "tokens", "threads", "dtype", "quick", "output")
    add_arguments(parser, rounds={"default": 11, "help": "of dense and pruned in turn"})
    add_arguments(parser, cpu_time={"help": "processor time, where others use the machine too; with --threads 1"})
    parser.add_argument("--refresh", action="store_true", help="measure the latency table even if it is cached")
    if parser.parse_args().quick:
        parser.set_defaults(sparsities=[0.3], allocations=["per_kind"], rounds=3, batch_size=2, tokens=8, refresh=True)
    options = parser.parse_args()

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.model_name_or_path:
        model = AutoModelForSequenceClassification.from_pretrained(options.model_name_or_path)
    else:
        model = BertForSequenceClassification(BertConfig(**(TINY if options.quick else {})))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device, getattr(torch, options.dtype)).eval()
    rows, table, seconds = run(model, options)
    if table is not None:
        print(f"the latency table took {seconds:.1f} s, the dense model takes {table.total:.4f} s a forward pass")
    if options.output:
        where = {"benchmark": "budgets", "settings": settings_of(options), "device": device_name(device)}
        measured = {"table": table and table.to_dict(), "table_seconds": seconds, "rows": rows}
        add(options.output, {**where, **measured}, where)


if __name__ == "__main__":
    main()
