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
"""Dense against pruned, measured and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import PruningConfig
from ..reporting.tables import as_text


if TYPE_CHECKING:
    from transformers import PreTrainedModel


RESULTS_NAME = "pruning_results.json"
DENSE, PRUNED = "dense", "pruned"


def measured_length(model: PreTrainedModel, config: PruningConfig) -> int:
    """Tokens to measure with: what the config says, or as many as the model takes."""
    from ..planning.measure import longest_input

    return longest_input(model, config.sequence_length)


def costs(model: PreTrainedModel, length: int) -> dict[str, float]:
    """Parameters, FLOPs of one sequence and bytes of the weights."""
    from ..planning.measure import count_bytes, count_flops, count_parameters

    return {
        "parameters": count_parameters(model),
        "flops": count_flops(model, 1, length),
        "bytes": count_bytes(model),
    }


def weights_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def measure_both(
    dense: PreTrainedModel, pruned: PreTrainedModel, config: PruningConfig, repeats: int
) -> dict[str, Any]:
    """Costs and latency of both, measured in turn, as JSON types."""
    from ..planning.measure import input_size, measure_latency

    length = measured_length(pruned, config)
    dense.to(pruned.device)
    models = {DENSE: dense, PRUNED: pruned}
    times = measure_latency(models, config.latency_batch_size, length, repeats)
    found: dict[str, Any] = {
        name: {**costs(model, length), "latency": dataclasses.asdict(times[name]), "metrics": {}}
        for name, model in models.items()
    }
    size = {"sequence_length": length, "input_size": input_size(pruned, length)}
    return {**found, "latency_batch_size": config.latency_batch_size, **size}


def results_table(results: Mapping[str, Any]) -> str:
    """Dense against pruned."""
    size, batch = results["input_size"], results["latency_batch_size"]
    dense, pruned = results[DENSE], results[PRUNED]
    rows = [
        ("parameters (M)", "parameters", 1e-6, ".2f"),
        (f"FLOPs, 1 x {size} (G)", "flops", 1e-9, ".3f"),
        ("weights on disk (MB)", "bytes", 1e-6, ".2f"),
    ]
    cells = [(label, dense[name] * scale, pruned[name] * scale, style) for label, name, scale, style in rows]
    times = [1e3 * results[name]["latency"]["median"] for name in (DENSE, PRUNED)]
    cells.insert(2, (f"latency, {batch} x {size} (ms)", *times, ".2f"))
    names = dict.fromkeys([*pruned["metrics"], *dense["metrics"]])
    cells += [(name, dense["metrics"].get(name), pruned["metrics"].get(name), ".4f") for name in names]
    lines = [["", DENSE, PRUNED, "pruned/dense"]]
    for label, before, after, style in cells:
        texts = ["-" if value is None else format(value, style) for value in (before, after)]
        ratio = f"{after / before:.3f}" if before and after is not None else "-"
        lines.append([label, *texts, ratio])
    return as_text(lines)
