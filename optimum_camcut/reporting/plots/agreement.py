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
"""How much pruning plans agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...planning.overlap import MaskOverlap, pairwise_iou
from ...planning.plan import PruningPlan, layer_of
from .figure import new_figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all"  # the column for a layer as a whole


def plot_overlap(overlap: MaskOverlap, title: str | None = None) -> Figure:
    """Heat map of the overlap of two plans: a row a layer, a column a group within the layers, `"all"` for the layer.

    Of single weights, the columns show the weight matrices; the few biases count in the last column alone. A group
    that belongs to no layer (a pooler, say) is a row with only that column.

    Args:
        overlap (`MaskOverlap`): from `mask_iou`.
        title (`str`, *optional*): e.g. the two methods. The IoU over the whole model stands below.

    Raises:
        `ImportError`: matplotlib is absent.
    """
    groups = {name: iou for name, iou in overlap.groups.items() if not name.endswith(".bias")}
    rows = list(dict.fromkeys(layer_of(name) for name in groups))
    cells = {(layer_of(name), _place(name)): iou for name, iou in groups.items() if _place(name)}
    columns = [*dict.fromkeys(place for _, place in cells), ALL]
    cells |= {(layer, ALL): overlap.layers[layer] for layer in rows}
    values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows])
    labels = [row.partition(".")[2] or row for row in rows]  # "bert.pooler.dense" is "pooler.dense"
    heading = f"{title or 'What two plans remove'}\nIoU over the whole model: {overlap.total:.2f}"
    return _heat_map(values, labels, columns, heading, ylabel="layer")


def plot_overlap_matrix(plans: Mapping[str, PruningPlan], title: str | None = None) -> Figure:
    """Matrix of the IoU over the whole model of every two plans, by their labels (the methods, say).

    Args:
        plans (`Mapping[str, PruningPlan]`): for the same model, with the sizes of their groups.
        title (`str`, *optional*): stands above.

    Raises:
        `ImportError`: matplotlib is absent.
        `ValueError`: no plans; see also `mask_iou`.
    """
    overlaps = pairwise_iou(plans)
    return plot_totals(list(plans), {pair: overlap.total for pair, overlap in overlaps.items()}, title)


def plot_totals(labels: Sequence[str], totals: Mapping[tuple[str, str], float], title: str | None = None) -> Figure:
    """The figure of `plot_overlap_matrix`, from IoUs computed before.

    Args:
        labels (`Sequence[str]`): the rows and columns.
        totals (`Mapping[tuple[str, str], float]`): IoU of every two labels, in either order.
        title (`str`, *optional*): stands above.

    Raises:
        `ImportError`: matplotlib is absent.
        `ValueError`: no labels.
    """
    if not labels:
        raise ValueError("expected one plan or more to compare, got none")
    values = np.eye(len(labels))
    for i, first in enumerate(labels):
        for j, second in enumerate(labels[:i]):
            pair = (second, first) if (second, first) in totals else (first, second)
            values[i, j] = values[j, i] = totals[pair]
    return _heat_map(values, labels, labels, title or "IoU of what every two plans remove")


def _place(name: str) -> str:
    """What a group is within its layer: `"heads"`, or the module of a weight, such as `"attention.self.query"`; empty
    if it is in no layer."""
    number = layer_of(name).rpartition(".")[2]
    if not number.isdigit():
        return ""
    return name.partition(f".{number}.")[2].removesuffix(".weight")


def _heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, ylabel: str | None = None
) -> Figure:
    """An annotated heat map of IoUs; NaN cells stay blank."""
    figure = new_figure((2.8 + 0.72 * len(columns), 2.6 + 0.42 * len(rows)))
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(title=title, ylabel=ylabel)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("none")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < 0.43 else "black"  # the better contrast on viridis
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, label="intersection over union")
    return figure
