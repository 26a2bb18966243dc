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
"""What a user writes, for the type checker: `make style` reads it, nothing runs it."""

from pathlib import Path

from transformers import PreTrainedModel

from optimum_camcut import (
    CamCutTrainer,
    Comparison,
    LatencyTable,
    MaskOverlap,
    PrunableGroup,
    PruningConfig,
    PruningPlan,
    apply_plan,
    compare,
    find_groups,
    latency_table,
    load_pruned,
    make_plan,
    mask_iou,
    prune_heads,
    score_groups,
)


def configs() -> list[PruningConfig]:
    return [
        PruningConfig(sparsity=0.5),
        PruningConfig(sparsity=0.5, granularity="weights"),
        PruningConfig(sparsity=0.5, granularity=("neurons",), exclude=[0, "*.heads"]),
        PruningConfig(compression=2, granularity=["heads", "neurons"], min_units={"heads": 1, "neurons": 64}),
    ]


def prune(model: PreTrainedModel, batches: list[dict[str, object]], config: PruningConfig) -> PreTrainedModel:
    groups: list[PrunableGroup] = find_groups(model, config.granularity)
    table: LatencyTable = latency_table(model, config)
    plan: PruningPlan = make_plan(score_groups(model, groups, batches, config), groups, config, latency=table)
    overlap: MaskOverlap = mask_iou(plan, plan)
    table_of_all: Comparison = compare(model, batches, lambda pruned: 1.0, config)
    print(overlap, table_of_all)
    return prune_heads(apply_plan(model, plan), {0: [1]})


def train(folder: Path) -> PruningPlan | None:
    trainer = CamCutTrainer(model=load_pruned(folder), pruning_config=PruningConfig(sparsity=0.5))
    trainer.train()
    return trainer.pruning_plan
