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
"""Tables and figures from what `run.py` has found, finished or not.

    python examples/benchmarks/deepcuts/report.py results
    python examples/benchmarks/deepcuts/report.py examples/benchmarks/results/deepcuts.json --output_dir report

writes `results/report.md` and `results/figures/*.png`, or those of `--output_dir`.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from optimum_camcut import MaskOverlap
from optimum_camcut.plots import plot_overlap, plot_totals
from optimum_camcut.utils.files import write_text


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from study import add_arguments, load, make_parser, read


STUDY, OVERLAPS = "deepcuts.json", "overlaps.json"
PAPER = ("cam_cut", "cam_cut+shift", "smooth_cut", "smooth_cam_cut", "smooth_cam_cut+shift")
STANDARD = ("magnitude", "gradient", "snip")  # what the paper compares them with
ORDER = (*STANDARD, "wanda", "random", *PAPER)
METRICS = {"cola": "Matthews correlation", "stsb": "Spearman correlation"}  # accuracy elsewhere
RECIPES = {"none": "masked, not trained again", "rewind": "rewound, masked and trained again"}

Row = dict[str, Any]


def groups(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows by the values of some keys, sorted."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row)
    return dict(sorted(found.items()))


def settings(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by allocation and dropout. A method that looks at the weights alone goes with dropout on and off."""
    dropouts = {row["dropout"] for row in rows} - {"any"} or {"any"}
    found = {}
    for allocation in sorted({row["allocation"] for row in rows}):
        for dropout in sorted(dropouts):
            chosen = [r for r in rows if r["allocation"] == allocation and r["dropout"] in (dropout, "any")]
            found[allocation, dropout] = chosen
    return found


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def describe(allocation: str, dropout: str) -> str:
    return f"allocation {allocation}" + ("" if dropout == "any" else f", scored with dropout {dropout}")


# --- tables ---------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def by_method(rows: list[Row], value: Callable[[Row], float]) -> dict[tuple[str, float], list[float]]:
    """(method, kept fraction) -> values, methods in the usual order and the largest fraction first."""
    found = groups(rows, "method", "keep")
    order = sorted(found, key=lambda key: (ORDER.index(key[0]), -key[1]))
    return {key: [value(row) for row in found[key]] for key in order}


def dense_metrics(dense: list[Row], recipe: str) -> list[float]:
    """What the recipe gives with nothing masked."""
    return [row["metric" if recipe == "none" else "trained_metric"] for row in dense]


def results_table(rows: list[Row], dense: list[float]) -> str:
    """A row a method, a column a kept fraction; the best mean of a column in bold."""
    cells = by_method(rows, lambda row: row["metric"])
    methods = list(dict.fromkeys(method for method, _ in cells))
    fractions = sorted({keep for _, keep in cells}, reverse=True)
    best = {
        keep: max(statistics.mean(cells[method, keep]) for method in methods if (method, keep) in cells)
        for keep in fractions
    }
    compression = {keep: statistics.mean(r["compression"] for r in rows if r["keep"] == keep) for keep in fractions}

    def cell(method: str, keep: float) -> str:
        if (method, keep) not in cells:
            return ""
        text = spread(cells[method, keep])
        return f"**{text}**" if statistics.mean(cells[method, keep]) == best[keep] else text

    header = ["kept (compression)", *(f"{keep:.0%} ({compression[keep]:.2f}x)" for keep in fractions)]
    whole = spread(dense)
    lines = [["dense", *([whole] * len(fractions))]]
    lines += [[f"`{method}`", *(cell(method, keep) for keep in fractions)] for method in methods]
    return markdown(header, lines)


def differences_table(rows: list[Row]) -> str:
    """What each of the paper's methods gains over each standard one, paired by task and seed."""
    metrics = {(r["method"], r["keep"], r["task"], r["seed"]): r["metric"] for r in rows}
    pairs = sorted({(r["task"], r["seed"]) for r in rows})
    fractions = sorted({r["keep"] for r in rows}, reverse=True)
    lines = []
    for method in PAPER:
        for standard in STANDARD:
            cells = []
            for keep in fractions:
                both = [((method, keep, *pair), (standard, keep, *pair)) for pair in pairs]
                gains = [metrics[a] - metrics[b] for a, b in both if a in metrics and b in metrics]
                cells.append(f"{spread(gains, '+')} (n={len(gains)})" if gains else "")
            if any(cells):
                lines.append([f"`{method}` - `{standard}`", *cells])
    return markdown(["kept", *(f"{keep:.0%}" for keep in fractions)], lines) if lines else ""


def cost_table(timings: list[Row]) -> str:
    """Seconds of scoring, a row a method, a column a task."""
    cells = groups(timings, "method", "task")
    tasks = sorted({row["task"] for row in timings})
    lines = []
    for method in sorted({row["method"] for row in timings}, key=ORDER.index):
        values = ([row["score_seconds"] for row in cells.get((method, task), [])] for task in tasks)
        lines.append([f"`{method}`", *(spread(value) if value else "" for value in values)])
    return markdown(["seconds", *tasks], lines)


# --- figures --------------------------------------------------------------------------------------------------------


def plot_metric(rows: list[Row], dense: list[Row], title: str, metric: str) -> Figure:
    """Metric against kept fraction: a panel a recipe, a line a method, bars of one standard deviation."""
    recipes = [recipe for recipe in RECIPES if any(row["recipe"] == recipe for row in rows)]
    figure = Figure(figsize=(2.4 + 5 * len(recipes), 4.6), layout="constrained")
    panels = figure.subplots(1, len(recipes), sharey=True, squeeze=False)[0]
    fractions = sorted({row["keep"] for row in rows}, reverse=True)
    for axes, recipe in zip(panels, recipes):
        cells = by_method([row for row in rows if row["recipe"] == recipe], lambda row: row["metric"])
        methods = list(dict.fromkeys(method for method, _ in cells))
        for index, method in enumerate(methods):
            values = {keep: cells[method, keep] for keep in fractions if (method, keep) in cells}
            # Side by side, so that the bars of different methods can be told apart.
            places = [fractions.index(keep) + 0.04 * (index - (len(methods) - 1) / 2) for keep in values]
            axes.errorbar(
                places,
                [statistics.mean(v) for v in values.values()],
                [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values.values()],
                label=method,
                color=f"C{ORDER.index(method)}",
                linestyle="-" if method in PAPER else "--",
                marker="osD^v<>PX*"[ORDER.index(method)],
                markersize=5,
                linewidth=1.3,
                elinewidth=0.8,
            )
        axes.axhline(statistics.mean(dense_metrics(dense, recipe)), color="grey", linestyle=":", label="dense")
        axes.set_xticks(range(len(fractions)), [f"{keep:.0%}" for keep in fractions])
        axes.set(title=RECIPES[recipe], xlabel="linear weights kept")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{metric} (%)")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    order = [name for name in (*ORDER, "dense") if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure


def mean_overlaps(rows: list[Row]) -> dict[tuple[str, str], MaskOverlap]:
    """The IoU of every two methods, averaged over seeds."""
    found = defaultdict(list)
    for row in rows:
        for pair in row["pairs"]:
            found[pair["first"], pair["second"]].append(pair)

    def mean(pairs: list[Row], part: str) -> dict[str, float]:
        return {name: statistics.mean(pair[part][name] for pair in pairs) for name in pairs[0][part]}

    return {
        names: MaskOverlap(mean(pairs, "groups"), mean(pairs, "layers"), statistics.mean(p["total"] for p in pairs))
        for names, pairs in found.items()
    }


def overlap_figures(overlaps: list[Row]) -> Iterable[tuple[str, Figure]]:
    """A matrix of all methods for every kept fraction; for the largest, where chance explains least, also a heat map
    of every two."""
    largest = max((row["keep"] for row in overlaps), default=None)
    for (task, allocation, dropout, keep), rows in groups(overlaps, "task", "allocation", "dropout", "keep").items():
        where = f"{task}, {keep:.0%} kept\n{describe(allocation, dropout)}"
        name = f"{task}-{allocation}-{dropout}-{keep:g}"
        means = mean_overlaps(rows)
        methods = sorted({method for pair in means for method in pair}, key=ORDER.index)
        if methods:
            totals = {pair: overlap.total for pair, overlap in means.items()}
            yield f"iou-{name}", plot_totals(methods, totals, f"IoU of the removed weights\n{where}")
        for (first, second), overlap in means.items():
            if keep == largest:
                yield f"iou-{name}-{first}-{second}", plot_overlap(overlap, f"{first} and {second}\n{where}")


# --- all of it ------------------------------------------------------------------------------------------------------


def write_report(results: Path, folder: Path | None = None) -> Path:
    """Writes `report.md` and `figures/*.png`, and returns the path of the former.

    Args:
        results: a study's file, or the folder it is in.
        folder: where to write; by default beside that file.

    Raises:
        `FileNotFoundError`: there are no runs.
    """
    path = results if results.suffix == ".json" else results / STUDY
    folder, study = folder or path.parent, load(path)
    rows, dense, scoring = (sorted(study.get(name, []), key=_order) for name in ("runs", "dense", "scoring"))
    overlaps = sorted(read(path.with_name(OVERLAPS)), key=_order)
    if not rows:
        raise FileNotFoundError(f"expected runs in {path}, found none; run.py makes them")
    dense_of = {task: dense_rows for (task,), dense_rows in groups(dense, "task").items()}
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    parts = [f"# DeepCuts on {', '.join(dense_of)}", description(rows, study)]
    for task, dense_rows in dense_of.items():
        metric = METRICS.get(task, "accuracy")
        parts.append(f"## {task}: {metric}, in percent")
        of_task = [row for row in rows if row["task"] == task]
        for (allocation, dropout), chosen in settings(of_task).items():
            for recipe in RECIPES:
                if of_recipe := [row for row in chosen if row["recipe"] == recipe]:
                    parts.append(f"**{RECIPES[recipe].capitalize()}** ({describe(allocation, dropout)})")
                    parts.append(results_table(of_recipe, dense_metrics(dense_rows, recipe)))
            name = f"metric-{task}-{allocation}-{dropout}.png"
            title = f"{task} ({describe(allocation, dropout)})"
            plot_metric(chosen, dense_rows, title, metric).savefig(figures / name, dpi=150)
            parts.append(f"![{title}](figures/{name})")
    parts.append("## The paper's methods against standard ones: differences in points, paired by task and seed")
    for (allocation, dropout), chosen in settings(rows).items():
        for recipe in RECIPES:
            if table := differences_table([row for row in chosen if row["recipe"] == recipe]):
                parts += [f"**{RECIPES[recipe].capitalize()}** ({describe(allocation, dropout)})", table]
    if scoring:
        parts += ["## Seconds of scoring", cost_table(scoring)]
    if overlaps:
        fractions = sorted({row["keep"] for row in rows}, reverse=True)
        chance = (f"{(1 - keep) / (1 + keep):.2f} at {keep:.0%}" for keep in fractions)
        parts += [
            "## How much the masks agree",
            f"Intersection over union of the removed weights. Masks that have nothing in common but the number of "
            f"weights they keep come to (1 - kept) / (1 + kept): {', '.join(chance)}.",
        ]
    for name, figure in overlap_figures(overlaps):
        figure.savefig(figures / f"{name}.png", dpi=120)
        parts.append(f"![{name}](figures/{name}.png)")
    path = folder / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _order(row: Row) -> tuple:
    """Not that in which the runs ended."""
    keys = ("task", "seed", "recipe", "method", "allocation", "dropout", "keep")
    return tuple(row[key] for key in keys if key in row)


def description(rows: list[Row], study: Row) -> str:
    """What the numbers were measured with."""
    lists = {
        "seeds": sorted({row["seed"] for row in rows}),
        "devices": sorted({row["device"] for row in rows}),
        "versions": sorted({f"{name} {version}" for each in study["versions"] for name, version in each.items()}),
        **{name: [value] for name, value in study["settings"].items()},
    }
    return "Mean ± standard deviation over seeds. " + "; ".join(
        f"{name}: {', '.join(map(str, values))}" for name, values in lists.items()
    )


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path, help="deepcuts.json, or the folder it is in")
    add_arguments(parser, output_dir={"required": False, "help": "default: the folder of the results"})
    options = parser.parse_args()
    print(write_report(options.results, options.output_dir))
