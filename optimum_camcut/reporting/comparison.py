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
"""`Comparison`: what was measured of a dense model and of pruned ones, as a table, as JSON, and the best of them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..planning.plan import PruningPlan
from ..utils.fields import check_fields
from ..utils.files import read_json, shown, write_json
from .tables import as_markdown, as_text


DENSE = "dense"


@dataclass(frozen=True)
class ComparedModel:
    """One row: the dense model, or it pruned by one method to one budget.

    Args:
        method (`str`): `"dense"` or a scoring method.
        sparsity (`float`): the fraction of the budget that was removed.
        quality (`float`, *optional*): what the evaluation gave. None where that is NaN or infinite, as the correlation
            of predictions that are all alike is.
        quality_ratio (`float`, *optional*): that over the dense model's, unless that is 0.
        parameters (`int`): of the whole model.
        flops (`int`): of one forward pass of one sequence.
        latency (`float`): seconds of one forward pass of the batch; the median.
        latency_low, latency_high (`float`): its first and third quartile.
        speedup (`float`): latency of the dense model over it, both measured in turn.
        quality_deviation (`float`): standard deviation of the quality where several comparisons were averaged.
        plan (`PruningPlan`, *optional*): what was kept; not written to JSON.
    """

    method: str
    sparsity: float
    quality: float | None
    quality_ratio: float | None
    parameters: int
    flops: int
    latency: float
    latency_low: float
    latency_high: float
    speedup: float
    quality_deviation: float = 0.0
    plan: PruningPlan | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: prints as a table, and `plots.plot_pareto` draws it.

    Args:
        rows (`tuple[ComparedModel, ...]`): the dense model, then every method with every sparsity.
        settings (`Mapping[str, Any]`): what all of them share: the model, the recovery, the budget, the batch size of
            the latency, ...
        larger_is_better (`bool`): which way the quality ranks.
    """

    rows: tuple[ComparedModel, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    larger_is_better: bool = True

    @property
    def dense(self) -> ComparedModel:
        """The row of the dense model."""
        return self.rows[0]

    def pareto(self) -> tuple[ComparedModel, ...]:
        """The rows that no other beats. One that is better beats those that are not faster by more than they vary: if
        it takes no longer than their third quartile. Of equally good ones, the faster beats. Fastest first; those
        without a quality are not among them."""

        sign = 1 if self.larger_is_better else -1
        known = [(row.quality, row) for row in self.rows if row.quality is not None]
        front: list[ComparedModel] = []
        for quality, row in sorted(known, key=lambda each: (-sign * each[0], each[1].latency)):
            beaten = (  # those of the front are at least as good
                other.latency < row.latency or (other.quality != quality and other.latency <= row.latency_high)
                for other in front
            )
            if not any(beaten):
                front.append(row)
        return tuple(sorted(front, key=lambda row: row.latency))

    def to_dict(self) -> dict[str, Any]:
        """The settings and the rows as JSON types, without the plans."""
        names = [f.name for f in dataclasses.fields(ComparedModel) if f.name != "plan"]
        rows = [{name: getattr(row, name) for name in names} for row in self.rows]
        return {"settings": dict(self.settings), "larger_is_better": self.larger_is_better, "rows": rows}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """From what `to_dict` gives.

        Raises:
            `ValueError`: unknown keys, no rows, or a direction that is not true or false.
        """
        check_fields(cls, values)
        rows = values.get("rows")
        if not isinstance(rows, list) or not rows:
            raise ValueError("a comparison should hold 'rows', a list that begins with the dense model")
        for row in rows:
            check_fields(ComparedModel, row)
        better = values.get("larger_is_better", True)
        if not isinstance(better, bool):
            raise ValueError(f"larger_is_better of a comparison should be true or false, got {shown(better)}")
        return cls(tuple(ComparedModel(**row) for row in rows), dict(values.get("settings") or {}), better)

    def save(self, path: str | Path) -> None:
        """Writes a JSON file."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Reads what `save` wrote."""
        return cls.from_dict(read_json(path))

    @classmethod
    def average(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """The means of comparisons with the same methods and sparsities, of several scoring samples, say. Latencies
        are told on the scale of the dense models' mean: a machine that was busy for one of them changes no order. A
        row has no quality if it has none in one of them.

        Raises:
            `ValueError`: none, or their rows differ.
        """
        keys = [[(row.method, row.sparsity) for row in each.rows] for each in comparisons]
        if not keys or any(key != keys[0] for key in keys):
            raise ValueError("expected one comparison or more, of the same methods and sparsities")
        rows, dense = [], [each.dense.latency for each in comparisons]
        scales = [statistics.fmean(dense) / each for each in dense]
        for same in zip(*(each.rows for each in comparisons)):
            times = {
                name: statistics.fmean(getattr(row, name) * scale for row, scale in zip(same, scales))
                for name in ("latency", "latency_low", "latency_high")
            }
            counts = {
                name: round(statistics.fmean(getattr(row, name) for row in same)) for name in ("parameters", "flops")
            }
            qualities = [row.quality for row in same if row.quality is not None]
            ratios = [row.quality_ratio for row in same if row.quality_ratio is not None]
            known = len(qualities) == len(same)
            rows.append(
                dataclasses.replace(
                    same[0],
                    quality=statistics.fmean(qualities) if known else None,
                    quality_ratio=statistics.fmean(ratios) if len(ratios) == len(same) else None,
                    quality_deviation=statistics.stdev(qualities) if known and len(qualities) > 1 else 0.0,
                    speedup=statistics.fmean(dense) / times["latency"],
                    **times,
                    **counts,
                )
            )
        settings = {**comparisons[0].settings, "comparisons": len(comparisons)}
        return dataclasses.replace(comparisons[0], rows=tuple(rows), settings=settings)

    @property
    def quality_title(self) -> str:
        """What tables and figures call the quality."""
        return "quality" if self.larger_is_better else "quality, less is better"

    def cells(self) -> list[list[str]]:
        """The table as text, its titles first. The last column marks the rows of `pareto`."""
        best, spread = self.pareto(), any(row.quality_deviation for row in self.rows)
        titles = ["method", "sparsity", self.quality_title, "/ dense", "params (M)", "FLOPs (G)", "ms", "quartiles"]
        lines = [[*titles, "speed-up", "Pareto"]]
        for row in self.rows:
            deviation = f" ± {row.quality_deviation:.2g}" if spread else ""
            lines.append(
                [
                    row.method,
                    "" if row.method == DENSE else f"{row.sparsity:.0%}",
                    "-" if row.quality is None else f"{row.quality:.4g}{deviation}",
                    "-" if row.quality_ratio is None else f"{row.quality_ratio:.3f}",
                    f"{row.parameters / 1e6:.2f}",
                    f"{row.flops / 1e9:.2f}",
                    f"{1e3 * row.latency:.1f}",
                    f"{1e3 * row.latency_low:.1f} to {1e3 * row.latency_high:.1f}",
                    f"{row.speedup:.2f}x",
                    "*" if row in best else "",
                ]
            )
        return lines

    def __str__(self) -> str:
        return as_text(self.cells())

    def to_markdown(self) -> str:
        """The table for a README or a model card."""
        return as_markdown(self.cells())
