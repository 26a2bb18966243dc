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
"""`write_report`: one HTML file that says what pruning a model gave, and what it removed.

Needs jinja2 and matplotlib: `pip install optimum-camcut[report]`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup
from ..checkpoints.places import Place, first_with_plan, in_folder, on_hub
from ..checkpoints.saving import auto_map
from ..planning.measure import LatencyResult
from ..planning.overlap import pairwise_iou
from ..planning.plan import PLAN_NAME, PruningPlan, is_unit, is_weight, plan_of
from ..scoring.loop import check_scores
from ..surgery.masking import count_zeros
from ..utils.files import write_text
from .card import loading_code, name_of, recipe
from .numbers import SIZE, Metrics, Row, compare_costs, compare_metrics
from .plots import plot_head_importance, plot_kept, plot_overlap_matrix, plot_scores
from .plots.kept import kept_counts


if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_NAME = "report.html"
THIS = "this model"  # among the plans that it is compared with
LATENCY = "latency of a forward pass (ms)"
INK = "#123456"  # what figures are drawn with, to become the colour of the page's text, light or dark
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "svg.fonttype": "none",  # text stays text
}


class Picture(NamedTuple):
    """A figure of the report: a heading, SVG, and a sentence below."""

    title: str
    svg: str
    caption: str


Draw: TypeAlias = Callable[[PruningPlan, Mapping[str, Tensor], Mapping[str, PruningPlan]], Iterable[Picture]]


def write_report(
    path: str | Path,
    model: PreTrainedModel,
    *,
    dense_model: PreTrainedModel | None = None,
    scores: Mapping[str, Tensor] | None = None,
    metrics: Metrics | None = None,
    latency: Mapping[str, LatencyResult] | None = None,
    latency_conditions: str | None = None,
    plans: Mapping[str, PruningPlan] | None = None,
) -> Path:
    """Writes a page on a pruned model that needs nothing but itself: dense against pruned in numbers, which heads,
    neurons and sub-layers were removed (of single weights, how many), by which scores, and how to load it.

    Args:
        path: file to write, or a folder for `report.html`.
        model (`PreTrainedModel`): after `apply_plan(model, plan)` or from `load_pruned`.
        dense_model (`PreTrainedModel`, *optional*): before the cut. Default: what it cost is derived from the sizes
            that the plan and the config tell.
        scores (`Mapping[str, Tensor]`, *optional*): group name -> `torch.Tensor` of shape `(units,)`, for all units of
            the uncut model, with NaN where none is known; see `uncut_scores`. What needs them is left out without.
        metrics (`Mapping[str, Mapping[str, float]]`, *optional*): by their names, of the `"dense"` and of the
            `"pruned"` model.
        latency (`Mapping[str, LatencyResult]`, *optional*): of the same two, from `measure_latency`.
        latency_conditions (`str`, *optional*): what a forward pass was measured with, to show beside its time:
            `"8 x 128 tokens on an A100"`, say.
        plans (`Mapping[str, PruningPlan]`, *optional*): label -> another plan for the same uncut model (by another
            method, say), whose agreement with this one is shown.

    Returns:
        `Path`: of the file.

    Raises:
        `ImportError`: jinja2 or matplotlib is absent.
        `ValueError`: the model has no plan, the scores are of other sizes, or a plan is of another model.
        `WriteError`: the file could not be written.
    """
    path = Path(path)
    path = path / REPORT_NAME if path.is_dir() else path
    page = render_report(
        model,
        _place(path.resolve().parent, model),
        dense_model=dense_model,
        scores=scores,
        metrics=metrics,
        latency=latency,
        latency_conditions=latency_conditions,
        plans=plans,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def render_report(
    model: PreTrainedModel,
    place: Place | None,
    *,
    dense_model: PreTrainedModel | None = None,
    scores: Mapping[str, Tensor] | None = None,
    metrics: Metrics | None = None,
    latency: Mapping[str, LatencyResult] | None = None,
    latency_conditions: str | None = None,
    plans: Mapping[str, PruningPlan] | None = None,
    draw: Draw | None = None,
) -> str:
    """The page that `write_report` writes, as text.

    Args:
        place (`Place`): where the model is saved; None if it is not, and the page says so.
        model, dense_model, scores, metrics, latency, latency_conditions, plans: see `write_report`.
        draw: in place of `draw_pictures`, for who has them already.

    Returns:
        `str`: HTML that needs no other file.

    Raises:
        `ImportError`: jinja2 or matplotlib is absent.
        `ValueError`: the model has no plan, the scores are of other sizes, or a plan is of another model.
    """
    template = _template()
    plan = plan_of(model)
    if plan is None:
        raise ValueError(
            f"this {type(model).__name__} has no pruning plan, so there is nothing to report; cut it with apply_plan, "
            "or load a pruned checkpoint with load_pruned"
        )
    costs, results = _costs(model, plan, latency or {}, dense_model), compare_metrics(metrics or {})
    return template.render(
        title=f"Pruned {name_of(model)}",
        base=model.config._name_or_path,
        recipe=_as_html(recipe(plan, model)) if plan.config is not None else None,
        settings=json.dumps(plan.config.to_dict(), indent=2) if plan.config is not None else None,
        tiles=_tiles(costs, results),
        rows=costs + results,
        quartiles=_quartiles(latency or {}),
        latency_conditions=latency_conditions,
        dense_evaluated=not results or any(row.dense is not None for row in results),
        pictures=list((draw or draw_pictures)(plan, scores or {}, plans or {})),
        code="\n".join(loading_code(model, place.arguments, auto_map(model))) if place is not None else None,
        note=_as_html(place.note) if place is not None else None,
        kept=plan.table(),
        zeros=count_zeros(model),
    )


def uncut_scores(scores: Mapping[str, Tensor], groups: Sequence[PrunableGroup]) -> dict[str, Tensor]:
    """Scores of heads, neurons and sub-layers by their indices in the uncut model, for a report of what is cut next.

    Args:
        scores (`Mapping[str, Tensor]`): group name -> `torch.Tensor` of shape `(group.size,)`.
        groups (`Sequence[PrunableGroup]`): those that were scored.

    Returns:
        `dict[str, Tensor]`: group name -> float32 on the CPU of shape `(group.original_size,)`; NaN for units that
        were gone already, or that a score of infinity keeps.

    Raises:
        `TypeError`: the scores are no tensors.
        `ValueError`: the scores are of other groups, NaN, minus infinity, or all zero for a kind.
    """
    check_scores(dict(scores), groups)
    full = {}
    for group in groups:
        if is_unit(group.name):
            full[group.name] = torch.full((group.original_size,), torch.nan)
            known = scores[group.name].detach().float().cpu()
            full[group.name][list(group.units)] = known.masked_fill(known.isinf(), torch.nan)
    return full


def check_libraries() -> None:
    """Raises `ImportError` if a report cannot be made here."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a report needs jinja2 and matplotlib, and {error.name} is missing; install them with: "
            "pip install optimum-camcut[report]"
        ) from error


def _template() -> Any:
    check_libraries()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _place(folder: Path, model: PreTrainedModel) -> Place | None:
    """Where the model is saved: in the folder of the report, or else where it came from, if its plan is there."""
    name = str(model.config._name_or_path)
    places: list[tuple[Path | None, Place]] = [(folder / PLAN_NAME, in_folder(folder.name))]
    if name:
        local = Path(name).is_dir()
        places += [(Path(name) / PLAN_NAME, in_folder(name)) if local else (_cached(name), on_hub(name))]
    plan = plan_of(model)
    return first_with_plan(plan, places) if plan is not None else None


def _cached(repo_id: str) -> Path | None:
    """The plan of a repository on the Hub, if it was fetched from there."""
    try:
        found = try_to_load_from_cache(repo_id, PLAN_NAME)
    except ValueError:  # not the id of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _costs(
    model: PreTrainedModel,
    plan: PruningPlan,
    latency: Mapping[str, LatencyResult],
    dense_model: PreTrainedModel | None,
) -> list[Row]:
    """What the model costs, dense against pruned: with the weights that are masked and the time it takes."""
    rows = compare_costs(model, dense_model)
    masked = sum(plan.sizes[name] - len(units) for name, units in plan.keep.items() if is_weight(name))
    if masked:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        rows.append(Row("parameters not masked", parameters, parameters - masked, "{:,}"))
    if latency:
        times = [1e3 * latency[which].median if which in latency else None for which in ("dense", "pruned")]
        rows.append(Row(LATENCY, times[0], times[1], "{:,.1f}"))
    return rows


def _quartiles(latency: Mapping[str, LatencyResult]) -> str:
    return " and ".join(f"{1e3 * r.low:,.1f} to {1e3 * r.high:,.1f} ms ({which})" for which, r in latency.items())


def _tiles(costs: Sequence[Row], results: Sequence[Row]) -> list[tuple[str, str]]:
    """The few numbers to see first, and what each is of."""
    tiles = []
    for row in costs:
        if not row.dense or not row.pruned or row.name == SIZE:
            continue
        if row.name == LATENCY:
            tiles.append((f"{row.dense / row.pruned:.2f}\N{MULTIPLICATION SIGN}", "as fast"))
        else:
            name = f"of the {row.name.partition(' ')[0]}"
            tiles.append((f"{row.pruned / row.dense:.0%}", name + ", others masked" * row.name.endswith("masked")))
    for row in [row for row in results if row.pruned is not None and not row.name.endswith("loss")][:1]:
        dense, pruned, _ = row.cells()
        tiles.append((pruned, f"{row.name}, dense {dense}" if dense else row.name))
    return tiles


def draw_pictures(
    plan: PruningPlan, scores: Mapping[str, Tensor], plans: Mapping[str, PruningPlan]
) -> Iterator[Picture]:
    """Those of the report that can be drawn of what is known. They take most of its time."""
    counts = kept_counts(plan)
    if "heads" in counts:
        scored = any(name.endswith(".heads") for name in scores)
        size = max(size for _, size in counts["heads"].values())
        yield _picture(
            "Heads",
            lambda: plot_head_importance(scores, plan),
            f"Heat map of {len(counts['heads'])} layers by {size} heads. {_told(counts['heads'], 'heads')}",
            "Every cell is a head, "
            + ("coloured by its importance; " if scored else "")
            + "a cross marks those that were removed."
            + (" Grey: removed before the last scoring." if any(s.isnan().any() for s in scores.values()) else ""),
        )
    if counts:
        yield _picture(
            "What every layer keeps",
            lambda: plot_kept(plan),
            f"Bars of what is kept. {' '.join(_told(of_kind, kind) for kind, of_kind in counts.items())}",
            "Blue is kept, of what the dense model has in grey.",
        )
    shown = {name: values for name, values in scores.items() if name in plan.keep or is_unit(name)}
    if shown:
        yield _picture(
            "Scores and the cut",
            lambda: plot_scores(shown, plan),
            "Histograms of the scores of what is kept and of what is removed, a panel a kind.",
            "How many units have a score, on a logarithmic scale where none is negative.",
        )
    if plans:
        compared = {THIS: plan, **plans}
        totals = pairwise_iou(compared)
        compared = {label.replace("$", r"\$"): each for label, each in compared.items()}  # no mathematics
        yield _picture(
            "Agreement",
            lambda: plot_overlap_matrix(compared),
            "Matrix. " + " ".join(f"{a} and {b}: {overlap.total:.2f}." for (a, b), overlap in totals.items()),
            "Intersection over union of what every two plans remove: 1 where they remove the same, 0 where they share "
            "nothing." + (" The row random shows what chance gives." if "random" in plans else ""),
        )


def _picture(title: str, draw: Callable[[], Figure], alternative: str, caption: str) -> Picture:
    """SVG to stand inside of a page, in the colours of its text, with words for those who do not see it."""
    import matplotlib

    stream = StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):  # names inside differ from those of other figures
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        draw().savefig(stream, format="svg", transparent=True, metadata=metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    label = html.escape(alternative)
    return Picture(title, svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1), caption)


def _told(counts: Mapping[str, tuple[int, int]], kind: str) -> str:
    """Counts in a sentence."""
    layers = ", ".join(f"{kept:,}" for kept, _ in counts.values())
    sizes = {size for _, size in counts.values()}
    of = f" of {sizes.pop():,}" if len(sizes) == 1 else ""
    return f"{kind.replace('_', '-').capitalize()} kept, layer by layer: {layers}{of}."


def _as_html(markdown: str) -> str:
    """A sentence with code in it."""
    return re.sub(r"`(.*?)`", r"<code>\1</code>", html.escape(markdown, quote=False))
