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
"""What a plan keeps and removes, and the scores that it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ...architectures.entry import SUBLAYERS
from ...architectures.groups import WEIGHTS
from ...architectures.structure import label_of, sublayer_of
from ...planning.plan import PruningPlan, is_unit, is_weight, layer_of
from .figure import new_figure


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT, REMOVED, ABSENT = "#3d7ebf", "#dd7f3c", "#8884"  # readable on white and on black
BINS = 40  # of a histogram
TAIL, DECADES = 0.005, 8  # a logarithmic scale leaves out this fraction of the scores at its low end, and lower ones


def plot_head_importance(scores: Mapping[str, Tensor] | None, plan: PruningPlan, title: str | None = None) -> Figure:
    """Heat map of the heads: a row a layer, a column a head, coloured by score; those removed are marked `x`.

    Args:
        scores (`Mapping[str, Tensor]`, *optional*): group name -> `torch.Tensor` of shape `(units,)`, for all units of
            the uncut model; NaN for what no score is known of, which is left grey. Without scores, colours say what is
            kept.
        plan (`PruningPlan`): what was kept, with the sizes of its groups, such as `model.pruning_plan`.
        title (`str`, *optional*): stands above.

    Raises:
        `ImportError`: matplotlib is absent.
        `ValueError`: the plan names no heads, or does not know the size of a group; or scores of another size.
    """
    kept = kept_units(plan).get("heads")
    if not kept:
        raise ValueError("the plan names no heads, so there is no map of them to draw; plot_kept shows other plans")
    values = _values(scores or {}, kept, "heads")
    shape = len(kept), max(map(len, kept.values()))
    grid = np.full(shape, np.nan)
    crosses: list[tuple[int, int]] = []
    for row, (block, mask) in enumerate(kept.items()):
        grid[row, : len(mask)] = values[block] if scores else mask
        crosses += [(row, head) for head in np.flatnonzero(~mask).tolist()]

    figure = new_figure((2.2 + 0.34 * max(shape[1], 8) + 0.9 * bool(scores), 1.5 + 0.29 * shape[0]))
    axes = figure.add_subplot()
    shown = np.ma.masked_invalid(grid)
    image = axes.imshow(shown, aspect="auto", interpolation="none", **_colours(grid, scores))
    colours = image.to_rgba(shown)

    def ink_on(row: int, head: int) -> str:
        if np.isnan(grid[row, head]):  # the page shines through
            return axes.title.get_color()
        return "white" if colours[row, head, :3] @ (0.3, 0.6, 0.1) < 0.5 else "black"

    for ink in dict.fromkeys(("white", "black", axes.title.get_color())):
        marked = [cell for cell in crosses if ink_on(*cell) == ink]
        axes.scatter([head for _, head in marked], [row for row, _ in marked], 26, ink, marker="x", linewidths=1.3)
    count, total = sum(map(np.count_nonzero, kept.values())), sum(map(len, kept.values()))
    _label_rows(axes, kept)
    axes.set_xticks(range(0, shape[1], 1 + shape[1] // 24))
    axes.set(title=title or f"{count} of {total} heads kept", xlabel="head  (\N{MULTIPLICATION SIGN} removed)")
    for axis, cells in ((axes.xaxis, shape[1]), (axes.yaxis, shape[0])):  # lines between the cells
        axis.set_ticks(np.arange(1, cells) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if scores:
        figure.colorbar(image, label="importance", pad=0.02)
    return figure


def plot_kept(plan: PruningPlan, title: str | None = None) -> Figure:
    """Bars of the units that every layer keeps, before the lighter bars of those it had: a panel a kind.

    Of single weights, a bar is for all parameters of a layer. A sub-layer that was removed has no bar of its own where
    its heads or neurons have one.

    Args:
        plan (`PruningPlan`): with the sizes of its groups, such as `model.pruning_plan`.
        title (`str`, *optional*): stands above.

    Raises:
        `ImportError`: matplotlib is absent.
        `ValueError`: the plan names nothing, or does not know the size of a group.
    """
    counts = kept_counts(plan)
    if not counts:
        raise ValueError("the plan names no group, so there is nothing to draw")
    blocks = list(dict.fromkeys(block for of_kind in counts.values() for block in of_kind))
    figure = new_figure((1.2 + 3.1 * len(counts), 1.3 + 0.27 * len(blocks)))
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (kind, of_kind) in zip(panels, counts.items()):
        rows = [blocks.index(block) for block in of_kind]
        kept, sizes = zip(*of_kind.values())
        axes.barh(rows, sizes, 0.74, color=ABSENT)
        axes.barh(rows, kept, 0.74, color=KEPT)
        for row, number, size in zip(rows, kept, sizes):
            text = f"{number / size:.0%}" if kind == WEIGHTS and size else f"{number:,}"
            inside = number > 0.25 * max(
                sizes
            )  # of its bar; beside a long one it would lie across the end of the other
            place = (
                {"xytext": (-4, 0), "ha": "right", "color": "white"} if inside else {"xytext": (3, 0), "ha": "left"}
            )
            axes.annotate(text, (number, row), textcoords="offset points", va="center", fontsize=8, **place)
        axes.set(title=f"{kind.replace('_', '-')}: {sum(kept):,} of {sum(sizes):,}", xlabel="kept")
        axes.set_xlim(0, 1.02 * max(*sizes, 1))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.title.set_fontsize(10)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _label_rows(panels[0], blocks)
    panels[0].invert_yaxis()
    figure.suptitle(title or "")
    return figure


def plot_scores(scores: Mapping[str, Tensor], plan: PruningPlan, title: str | None = None) -> Figure:
    """Distributions of the scores of what is kept and of what is removed, a panel a kind, with the cut: a line where
    one score parts them, else a band over the scores that are on both sides, as of cuts layer by layer.

    Args:
        scores (`Mapping[str, Tensor]`): group name -> `torch.Tensor` of shape `(units,)`, for all units of the uncut
            model, or of the parameter's shape; those that are NaN do not count. Where none is negative, the axis is
            logarithmic, and the few lowest count in its first bar.
        plan (`PruningPlan`): what was kept, with the sizes of its groups, such as `model.pruning_plan`.
        title (`str`, *optional*): stands above.

    Raises:
        `ImportError`: matplotlib is absent.
        `ValueError`: no scores of a group of the plan, or of another size.
    """
    panels = {}
    for kind, kept in kept_units(plan, list(scores)).items():
        values = _values(scores, kept, kind)
        flat, mask = (np.concatenate([part[block] for block in kept]) for part in (values, kept))
        known = ~np.isnan(flat)
        if known.any():
            panels[kind] = flat[known & mask], flat[known & ~mask]
    if not panels:
        raise ValueError(
            f"there are no scores of the plan's groups: the scores are of {', '.join(scores) or 'nothing'}, the plan "
            f"of {', '.join(plan.keep) or 'nothing'}"
        )
    figure = new_figure((0.6 + 3.8 * len(panels), 2.9))
    for number, (kind, parts) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        low, high = _range(np.concatenate(parts))
        bins: int | list[float] = BINS
        axes.locator_params(axis="y", integer=True)
        if low > 0:
            axes.set_xscale("log")
            _label_few(axes, high / low)
            parts, bins = (parts[0].clip(low), parts[1].clip(low)), np.geomspace(low, high, BINS + 1).tolist()
        axes.hist(parts, bins, stacked=True, color=[KEPT, REMOVED], label=["kept", "removed"])
        kept, removed = parts
        if len(kept) and len(removed):
            left, right = removed.max(), kept.min()
            if left <= right:
                axes.axvline(np.sqrt(left * right) if low > 0 else (left + right) / 2, **_CUT)
            else:
                axes.axvspan(right, left, **_BAND)
        axes.set(title=kind.replace("_", "-"), xlabel="score", ylabel="weights" if kind == WEIGHTS else "units")
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title or "")
    return figure


_CUT: dict[str, Any] = {"color": "0.5", "linestyle": "--", "linewidth": 1.3, "label": "cut"}
_BAND: dict[str, Any] = {"color": "0.5", "alpha": 0.18, "linewidth": 0, "label": "cut, layer by layer"}


def kept_units(plan: PruningPlan, names: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Kind -> layer or parameter -> bool of shape `(units,)`: True at the units that are kept.

    All layers are there: what the plan does not name of them is whole, or went as a sub-layer.

    Args:
        names: groups to give, as far as the plan tells of them. Default: those of heads, neurons and sub-layers.

    Raises:
        `ValueError`: the plan does not know the size of a group.
    """
    for name in plan.keep:
        if name not in plan.sizes:
            raise ValueError(
                f"the plan does not know the size of {name!r}, so what it removes is unknown; take "
                "`model.pruning_plan` after apply_plan, or give `sizes`, the units of each group in the uncut model"
            )
    structure = [name for name in plan.keep if is_unit(name)]
    sizes = {label_of(name): plan.sizes[name] for name in structure}  # all layers of a stack are alike
    kinds = {label.rpartition(".")[2]: None for label in sizes}
    blocks = list(dict.fromkeys(name.rpartition(".")[0] for name in structure))
    every = [f"layer.{number}" for number in range(plan.num_layers or 0)]
    blocks = [*every, *(block for block in blocks if block not in every)] if set(blocks) & set(every) else blocks
    units: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in sorted(kinds, key=[*_ORDER, *kinds].index)}
    for kind in units:
        for block in blocks:
            name = f"{block}.{kind}"
            if name in plan.keep:
                units[kind][block] = plan.mask(name)
            elif label_of(name) in sizes:  # not of another stack alone
                there = len(plan.keep.get(sublayer_of(name), (0,))) > 0
                units[kind][block] = np.full(sizes[label_of(name)], there)
    weights = {name: plan.mask(name) for name in names or () if is_weight(name) and name in plan.keep}
    return {**units, WEIGHTS: weights} if weights else units


_ORDER = (*SUBLAYERS, *SUBLAYERS.values())


def kept_counts(plan: PruningPlan) -> dict[str, dict[str, tuple[int, int]]]:
    """Kind -> layer -> how many units are kept, and of how many; without the sub-layers whose heads or neurons are
    counted.

    Raises:
        `ValueError`: the plan does not know the size of a group.
    """
    units = kept_units(plan)
    counts = {
        kind: {block: (int(np.count_nonzero(mask)), len(mask)) for block, mask in of_kind.items()}
        for kind, of_kind in units.items()
        if not any(kind == part and unit in units for unit, part in SUBLAYERS.items())
    }
    weights: dict[str, tuple[int, int]] = {}
    for name in filter(is_weight, plan.keep):
        kept, size = weights.get(layer_of(name), (0, 0))
        weights[layer_of(name)] = kept + len(plan.keep[name]), size + plan.sizes[name]
    return {**counts, WEIGHTS: weights} if weights else counts


def _values(scores: Mapping[str, Tensor], kept: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Layer or parameter -> float32 of shape `(units,)`: the scores, NaN where there are none."""
    values = {}
    for block, mask in kept.items():
        name = block if kind == WEIGHTS else f"{block}.{kind}"
        found = scores.get(name)
        values[block] = np.full(len(mask), np.nan, np.float32)
        if found is not None:
            if found.numel() != len(mask):
                raise ValueError(
                    f"expected scores of the {len(mask)} units that {name!r} has in the uncut model, got "
                    f"{found.numel()}; give those from before the first cut, or fill up with NaN what was gone"
                )
            values[block][:] = found.detach().cpu().float().flatten().numpy()
    return values


def _range(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest score to show; the lowest is 0 where a logarithmic scale does not fit."""
    low, high = float(values.min()), float(values.max())
    if low < 0 or high <= 0:
        return min(low, 0.0), high
    low = max(float(np.quantile(values[values > 0], TAIL, method="lower")), high * 10.0**-DECADES)
    return (low, high) if low < high else (0.0, high)


def _colours(grid: np.ndarray, scores: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """Keywords for `imshow`: a logarithmic scale where the scores allow it; grey where there is none."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    known = grid[~np.isnan(grid)]
    if not scores:
        return {"cmap": ListedColormap([REMOVED, KEPT]), "vmin": 0, "vmax": 1}
    low, high = _range(known) if len(known) else (0.0, 1.0)
    colours = colormaps["viridis"].with_extremes(bad=ABSENT)
    if low > 0:
        return {"cmap": colours, "norm": LogNorm(low, high, clip=True)}
    return {"cmap": colours, "vmin": low, "vmax": high}


def _label_few(axes: Axes, ratio: float) -> None:
    """Labels of a logarithmic axis that do not overlap: powers of ten, or 1, 2 and 5 where there are few of these."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if ratio < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_rows(axes: Axes, blocks: Mapping[str, object] | list[str]) -> None:
    """Layer numbers; of a parameter outside of the layers, the end of its module's name."""
    labels = [layer_of(f"{block}.unit") for block in blocks]
    axes.set_yticks(range(len(labels)), [label if len(label) < 12 else label.rpartition(".")[2] for label in labels])
    axes.set_ylabel("layer")
