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
"""`compare`: methods and budgets on one model and its data, as a table of quality against measured latency."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import nested_concat

from ..architectures.groups import WEIGHTS, check_bare, find_groups
from ..architectures.modes import scoring_mode
from ..config import PruningConfig
from ..methods import get_scorer
from ..planning.allocation import check_budget, make_plan
from ..planning.latency import latency_table
from ..planning.measure import LatencyResult, count_flops, count_parameters, measure_latency
from ..planning.plan import PruningPlan
from ..planning.times import LatencyTable
from ..scoring.batches import Batch, limit
from ..scoring.loop import score_groups
from ..surgery.cut import apply_plan
from ..surgery.rebuild import reconstruct_all
from ..utils.fields import check_fields
from ..utils.files import read_json, shown, write_json
from .tables import as_markdown, as_text


logger = logging.getLogger(__name__)

DENSE = "dense"
METHODS = ("cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher")
RECOVERIES = ("none", "reconstruct")


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
        rows = [row for row in self.rows if row.quality is not None]
        front: list[ComparedModel] = []
        for row in sorted(rows, key=lambda row: (-sign * row.quality, row.latency)):
            beaten = (  # those of the front are at least as good
                other.latency < row.latency or (other.quality != row.quality and other.latency <= row.latency_high)
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
            qualities = [row.quality for row in same]
            means = {
                name: statistics.fmean(getattr(row, name) * scale for row, scale in zip(same, scales))
                for name in ("latency", "latency_low", "latency_high")
            }
            known = None not in qualities
            means["quality"] = statistics.fmean(qualities) if known else None
            means["speedup"] = statistics.fmean(dense) / means["latency"]
            counts = {
                name: round(statistics.fmean(getattr(row, name) for row in same)) for name in ("parameters", "flops")
            }
            ratios = [row.quality_ratio for row in same]
            means["quality_ratio"] = None if None in ratios else statistics.fmean(ratios)
            deviation = statistics.stdev(qualities) if known and len(qualities) > 1 else 0.0
            rows.append(dataclasses.replace(same[0], **means, **counts, quality_deviation=deviation))
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


def compare(
    model: PreTrainedModel,
    dataloader: Iterable[Batch] | None,
    evaluate: Callable[[PreTrainedModel], float] | None = None,
    config: PruningConfig | None = None,
    *,
    methods: Sequence[str] = METHODS,
    sparsities: Sequence[float] = (0.3, 0.5, 0.7),
    recovery: str = "reconstruct",
    eval_dataloader: Iterable[Batch] | None = None,
    metric: Callable[[np.ndarray, np.ndarray], float] | None = None,
    larger_is_better: bool = True,
    latency: LatencyTable | None = None,
    repeats: int = 10,
    disable_tqdm: bool = False,
) -> Comparison:
    """Prunes copies of a model by every method to every budget, and measures how good and how fast each is.

    A method scores once for all its budgets, and their models are rebuilt together: beside the dense one, those of
    one method are in memory then, and their hidden states (see `reconstruct_all`); without a rebuild, one at a time.
    The time of each is measured in turn with the dense one's, at `config.latency_batch_size` and
    `config.sequence_length`.

    Args:
        model (`PreTrainedModel`): fine-tuned, of a supported architecture; it is left as it was.
        dataloader (`Iterable[Batch]`, *optional*): batches with labels to score and rebuild on, `config.num_samples`
            examples at most. Not needed by methods that read no data (`magnitude`) without a rebuild.
        evaluate (`Callable`): gives the quality of a model. Or else `eval_dataloader` and `metric`.
        config (`PruningConfig`, *optional*): all but the method, the sparsity and the recovery: `budget`,
            `allocation`, `granularity`, `num_samples`, ... Default: `PruningConfig`'s own.
        methods (`Sequence[str]`): what to score by.
        sparsities (`Sequence[float]`): fractions of the budget to remove.
        recovery (`str`): `"none"`, or `"reconstruct"` for least squares after the cut. Nothing is trained.
        eval_dataloader (`Iterable[Batch]`, *optional*): batches with `"labels"`, read once for every model.
        metric (`Callable`, *optional*): of the logits `(examples, ...)` and the labels `(examples, ...)` of all its
            batches, the quality. Where batches differ in length, both are padded with -100, as `Trainer` does.
        larger_is_better (`bool`): False for a loss, an error or a perplexity.
        latency (`LatencyTable`, *optional*): for `budget="latency"`; measured if it is not given.
        repeats (`int`): timings of every model.
        disable_tqdm (`bool`): no progress bar.

    Returns:
        `Comparison`: `print` it, `save` it, or draw it with `optimum_camcut.plots.plot_pareto`. The plan of a row
            cuts; with `recovery="reconstruct"`, call `reconstruct` after `apply_plan` to get what was measured.

    Raises:
        `ValueError`: no way to evaluate, or two; no or unknown methods; a budget that cannot be met; more tokens than
            the model takes; no data; a dense model whose quality is not a finite number.
        `TypeError`: an `evaluate` or `metric` that is no function.
    """
    config = config or PruningConfig(sparsity=0.5)
    configs = _configs(config, methods, sparsities, recovery, repeats)
    quality = _evaluator(evaluate, eval_dataloader, metric)
    kinds = config.granularity
    reads = recovery == "reconstruct" or any(get_scorer(method, kinds).source != "weights" for method in methods)
    if reads and dataloader is None:
        raise ValueError("scoring and rebuilding read data: give a dataloader of batches with labels")
    if config.budget == "latency" and latency is None:
        latency = latency_table(model, config, disable_tqdm=disable_tqdm)
    check_bare(model, "compare")
    groups = find_groups(model, kinds)
    for each in configs[0][1]:
        check_budget(groups, each, latency)  # before hours of scoring
    batches = list(limit(dataloader, config.num_samples, "compare: reading", disable_tqdm=True)) if reads else None

    shape = (config.latency_batch_size, config.sequence_length)
    flops = count_flops(model, 1, shape[1])  # fails for more tokens than the model takes, before hours of scoring
    total = sum(len(each) for _, each in configs) + 1
    with tqdm(total=total, desc="compare", unit="model", disable=disable_tqdm, leave=False) as bar:
        whole = (quality(model), count_parameters(model), flops)
        if not math.isfinite(whole[0]):
            raise ValueError(f"the quality of a model should be a finite number; the evaluation gave {whole[0]}")
        bar.update()
        found: list[tuple[PruningConfig, tuple[float | None, int, int], dict[str, LatencyResult], PruningPlan]] = []
        for method, of_method in configs:
            bar.set_postfix_str(method)
            scores = score_groups(model, groups, batches, of_method[0], disable_tqdm=True)
            plans = [make_plan(scores, groups, each, latency=latency) for each in of_method]
            copies = (apply_plan(copy.deepcopy(model), plan) for plan in plans)
            if recovery == "reconstruct":
                models = list(copies)
                reconstruct_all(models, model, plans, batches, disable_tqdm=True)
                copies = (models.pop(0) for _ in plans)
            for each, plan, pruned in zip(of_method, plans, copies):
                value = quality(pruned)
                if not math.isfinite(value):
                    logger.warning("the quality by %s at a sparsity of %s is %s", method, each.sparsity, value)
                    value = None
                facts = (value, count_parameters(pruned), count_flops(pruned, 1, shape[1]))
                times = measure_latency({DENSE: model, method: pruned}, *shape, repeats=repeats)
                found.append((each, facts, times, plan))
                del pruned
                bar.update()
    # The dense model was timed beside each of the others; all of them are told on the scale of its median.
    dense = statistics.median(times[DENSE].median for _, _, times, _ in found)
    low, high = (
        statistics.median(getattr(times[DENSE], name) for _, _, times, _ in found) for name in ("low", "high")
    )
    ratio = 1.0 if whole[0] else None
    rows = [ComparedModel(DENSE, 0.0, whole[0], ratio, whole[1], whole[2], dense, low, high, 1.0)]
    for each, (value, parameters, flops), times, plan in found:
        timed, scale = times[each.method], dense / times[DENSE].median
        rows.append(
            ComparedModel(
                method=each.method,
                sparsity=each.sparsity,
                quality=value,
                quality_ratio=value / whole[0] if whole[0] and value is not None else None,
                parameters=parameters,
                flops=flops,
                latency=timed.median * scale,
                latency_low=timed.low * scale,
                latency_high=timed.high * scale,
                speedup=times[DENSE].median / timed.median,
                plan=plan,
            )
        )
    settings = {
        "model": type(model).__name__,
        "recovery": recovery,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "config": {name: v for name, v in config.to_dict().items() if name not in ("method", "sparsity", "recovery")},
    }
    return Comparison(tuple(rows), settings, larger_is_better)


def _configs(
    config: PruningConfig, methods: Sequence[str], sparsities: Sequence[float], recovery: str, repeats: int
) -> list[tuple[str, list[PruningConfig]]]:
    """What to do: for every method, a config for every sparsity."""
    if recovery not in RECOVERIES:
        raise ValueError(
            f"recovery should be {' or '.join(map(repr, RECOVERIES))}, got {recovery!r}; nothing is trained here"
        )
    if recovery == "reconstruct" and WEIGHTS in config.granularity:
        raise ValueError("recovery='reconstruct' is for units; compare methods on single weights with 'none'")
    if repeats < 1:
        raise ValueError(f"repeats should be at least 1, got {repeats}")
    for name, values in (("methods", methods), ("sparsities", sparsities)):
        if isinstance(values, str) or not list(values) or len(set(values)) != len(list(values)):
            raise ValueError(f"{name} should be a list of one or more, each once; got {values!r}")
    base = {**config.to_dict(), "compression": None, "recovery": recovery, "distill_weight": 0.0}
    return [
        (method, [PruningConfig(**{**base, "method": method, "sparsity": sparsity}) for sparsity in sparsities])
        for method in methods
    ]


def _evaluator(
    evaluate: Callable[[PreTrainedModel], float] | None,
    eval_dataloader: Iterable[Batch] | None,
    metric: Callable[[np.ndarray, np.ndarray], float] | None,
) -> Callable[[PreTrainedModel], float]:
    """What gives the quality of a model."""
    if (evaluate is None) == (eval_dataloader is None) or (eval_dataloader is None) != (metric is None):
        raise ValueError("give a function evaluate(model), or else eval_dataloader and metric(logits, labels)")

    function = evaluate if metric is None else metric
    if not callable(function):
        raise TypeError(f"evaluate and metric are functions (see compare); got {shown(function)}")

    def quality(model: PreTrainedModel) -> float:
        with scoring_mode(model):
            return float(evaluate(model) if evaluate is not None else metric(*_predict(model, eval_dataloader)))

    return quality


def _predict(model: PreTrainedModel, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of all examples."""
    found = None
    with torch.inference_mode():
        for batch in batches:
            outputs = model(**send_to_device(dict(batch), model.device))
            if not hasattr(outputs, "logits") or "labels" not in batch:
                raise ValueError(
                    "metric is given the logits of the model and the labels of the batches; the model gives a "
                    f"{type(outputs).__name__}, the batches have {', '.join(batch)}: give evaluate=... instead"
                )
            new = outputs.logits.float().cpu(), batch["labels"].cpu()
            found = new if found is None else nested_concat(found, new)
    if found is None:
        raise ValueError(
            "eval_dataloader gave no batches; it is read once for every model, so it cannot be a generator"
        )
    logits, labels = found
    return logits.numpy(), labels.numpy()
