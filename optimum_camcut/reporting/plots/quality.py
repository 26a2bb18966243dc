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
"""What pruning costs, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .figure import new_figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Measured(Protocol):
    """Rows with `method`, `sparsity`, `latency`, `latency_low`, `latency_high` (in seconds), `quality` and
    `quality_deviation`, as a `Comparison` has them."""

    rows: Sequence[Any]
    dense: Any
    settings: Mapping[str, Any]
    quality_title: str

    def pareto(self) -> Sequence[Any]:
        """The rows that no other beats in both quality and latency."""


def plot_pareto(comparison: Measured, title: str | None = None) -> Figure:
    """Quality against measured latency: a line a method through its budgets, the dense model, and the Pareto front,
    the models that no other beats in both (see `Comparison.pareto`), with the sparsity of each.

    Args:
        comparison (`Comparison`): from `compare`.
        title (`str`, *optional*): stands above.

    Raises:
        `ImportError`: matplotlib is absent.
    """
    figure = new_figure((8, 5.2))
    axes = figure.add_subplot()
    dense, front = comparison.dense, comparison.pareto()
    for number, method in enumerate(dict.fromkeys(row.method for row in comparison.rows if row is not dense)):
        rows = [row for row in comparison.rows if row.method == method and row.quality is not None]
        rows.sort(key=lambda row: row.latency)
        axes.errorbar(
            [1e3 * row.latency for row in rows],
            [row.quality for row in rows],
            xerr=[
                [1e3 * max(row.latency - row.latency_low, 0.0) for row in rows],
                [1e3 * max(row.latency_high - row.latency, 0.0) for row in rows],
            ],
            yerr=[row.quality_deviation for row in rows] if any(row.quality_deviation for row in rows) else None,
            marker="osD^vP<>Xh"[number % 10],
            markersize=6,
            linewidth=1,
            elinewidth=0.8,
            alpha=0.85,
            label=method,
        )
    axes.plot(1e3 * dense.latency, dense.quality, "k*", markersize=13, linestyle="none", label=dense.method)
    axes.plot(
        [1e3 * row.latency for row in front],
        [row.quality for row in front],
        drawstyle="steps-post",
        color="0.35",
        linestyle="--",
        linewidth=1.2,
        zorder=0,
        label="Pareto front",
    )
    for row in front:
        if row is not dense:
            at = (1e3 * row.latency, row.quality)
            axes.annotate(f"{row.sparsity:.0%}", at, (4, 5), textcoords="offset points", fontsize=8)
    config = comparison.settings.get("config", {})
    batch, size = config.get("latency_batch_size", "?"), f"{config.get('sequence_length', '?')} tokens"
    size = comparison.settings.get("input_size", size)
    axes.set(
        title=title or "Quality against measured latency",
        xlabel=f"ms a forward pass, {batch} x {size}, {comparison.settings.get('device', '?')}",
        ylabel=comparison.quality_title,
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
