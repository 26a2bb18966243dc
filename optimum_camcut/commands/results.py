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
DENSE, PRUNED, QUANTIZED = "dense", "pruned", "quantized"


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
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    config: PruningConfig,
    repeats: int,
    quantized: PreTrainedModel | None = None,
) -> dict[str, Any]:
    """Costs and latency of both, measured in turn, as JSON types; and of the pruned one quantized, if it was."""
    from ..planning.measure import input_size, measure_latency

    length = measured_length(pruned, config)
    dense.to(pruned.device)
    models = {DENSE: dense, PRUNED: pruned, **({} if quantized is None else {QUANTIZED: quantized})}
    times = measure_latency(models, config.latency_batch_size, length, repeats)
    found: dict[str, Any] = {
        name: {
            **costs(pruned if name == QUANTIZED else model, length),
            "latency": dataclasses.asdict(times[name]),
            "metrics": {},
        }
        for name, model in models.items()
    }
    size = {"sequence_length": length, "input_size": input_size(pruned, length)}
    return {**found, "latency_batch_size": config.latency_batch_size, **size}


def results_table(results: Mapping[str, Any]) -> str:
    """Dense against pruned, and against that quantized, if it was."""
    size, batch = results["input_size"], results["latency_batch_size"]
    names = [DENSE, PRUNED, *([QUANTIZED] if QUANTIZED in results else [])]
    columns = [results[name] for name in names]
    rows = [
        ("parameters (M)", "parameters", 1e-6, ".2f"),
        (f"FLOPs, 1 x {size} (G)", "flops", 1e-9, ".3f"),
        ("weights on disk (MB)", "bytes", 1e-6, ".2f"),
    ]
    cells = [(label, [column[name] * scale for column in columns], style) for label, name, scale, style in rows]
    times = [1e3 * column["latency"]["median"] for column in columns]
    if "tokens" in results[PRUNED]:
        known = [("vocabulary", "vocabulary"), ("tokens of the evaluation text", "tokens")]
        cells += [(label, [column.get(name) for column in columns], ".0f") for label, name in known]
    cells.insert(2, (f"latency, {batch} x {size} (ms)", times, ".2f"))
    metrics = dict.fromkeys(name for column in reversed(columns) for name in column["metrics"])
    cells += [(name, [column["metrics"].get(name) for column in columns], ".4f") for name in metrics]
    titles = [results.get("quantize", name) if name == QUANTIZED else name for name in names]
    lines = [["", *titles, *(f"{title}/{DENSE}" for title in titles[1:])]]
    for label, values, style in cells:
        texts = ["-" if value is None else format(value, style) for value in values]
        ratios = [f"{v / values[0]:.3f}" if values[0] and v is not None else "-" for v in values[1:]]
        lines.append([label, *texts, *ratios])
    return as_text(lines)
