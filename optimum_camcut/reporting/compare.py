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
"""`compare`: how good and how fast a model is that several methods prune to several budgets."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import nested_concat

from ..architectures.groups import WEIGHTS, PrunableGroup, check_bare, find_groups
from ..architectures.modes import scoring_mode
from ..architectures.vocabulary import VOCABULARY
from ..config import PruningConfig
from ..methods import get_scorer, warn_without_rebuild
from ..planning.allocation import check_budget, make_plan
from ..planning.latency import latency_table
from ..planning.measure import LatencyResult, count_flops, count_parameters, input_size, measure_latency
from ..planning.plan import PruningPlan
from ..planning.times import LatencyTable
from ..scoring.batches import Batch, limit
from ..scoring.loop import Scores, score_groups
from ..scoring.loss import LossFunction
from ..search.search import search_plan
from ..surgery.cut import apply_plan
from ..surgery.rebuild import reconstruct_all
from ..utils.copies import copy_model
from ..utils.files import shown
from .comparison import DENSE, ComparedModel, Comparison


logger = logging.getLogger(__name__)

METHODS = ("cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher")
RECOVERIES = ("none", "reconstruct")


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
    loss_function: LossFunction | None = None,
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
        loss_function (`Callable`, *optional*): to score by, `(model, batch) -> scalar mean loss`. Default: the model's
            own.
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
    if VOCABULARY in config.granularity:
        raise ValueError(
            "compare evaluates all models on the same encoded data, and fewer tokens have other numbers: leave "
            "'vocabulary' out, and cut it by CamCutTrainer or `optimum-cli camcut prune`"
        )
    configs = _configs(config, methods, sparsities, recovery, repeats)
    quality = _evaluator(evaluate, eval_dataloader, metric)
    kinds = config.granularity
    for method in methods:
        warn_without_rebuild(method, kinds, recovery)
    reads = recovery == "reconstruct" or config.allocation == "search"
    reads = reads or any(get_scorer(method, kinds).source != "weights" for method in methods)
    if not reads:
        dataloader = None
    elif dataloader is None:
        raise ValueError("scoring and rebuilding read data: give a dataloader of batches with labels")
    if config.budget == "latency" and latency is None:
        latency = latency_table(model, config, disable_tqdm=disable_tqdm)
    check_bare(model, "compare")
    groups = find_groups(model, kinds)
    for each in configs[0][1]:
        check_budget(groups, each, latency)  # before hours of scoring
    batches = None
    if dataloader is not None:
        batches = list(limit(dataloader, config.num_samples, "compare: reading", disable_tqdm=True))

    flops = count_flops(model, 1, config.sequence_length)  # fails for more tokens than the model takes, before scoring
    found = []
    total = sum(len(each) for _, each in configs) + 1
    with tqdm(total=total, desc="compare", unit="model", disable=disable_tqdm, leave=False) as bar:
        whole = quality(model)
        if not math.isfinite(whole):
            raise ValueError(f"the quality of a model should be a finite number; the evaluation gave {whole}")
        bar.update()
        for method, of_method in configs:
            bar.set_postfix_str(method)
            for each, plan, pruned in _pruned(model, groups, batches, of_method, latency, loss_function):
                found.append(_measure(pruned, model, plan, each, quality, repeats))
                del pruned
                bar.update()
    settings = _settings(model, config, recovery, repeats)
    return Comparison(_rows(whole, count_parameters(model), flops, found), settings, larger_is_better)


def _settings(model: PreTrainedModel, config: PruningConfig, recovery: str, repeats: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "model": type(model).__name__,
        "recovery": recovery,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "input_size": input_size(model, config.sequence_length),
        "config": {name: v for name, v in config.to_dict().items() if name not in ("method", "sparsity", "recovery")},
    }


class _Trial(NamedTuple):
    """A pruned model, and what was measured of it."""

    config: PruningConfig
    plan: PruningPlan
    quality: float | None
    parameters: int
    flops: int
    time: LatencyResult
    dense_time: LatencyResult  # of the dense model in turn with it


def _pruned(
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    batches: list[Batch] | None,
    configs: Sequence[PruningConfig],
    latency: LatencyTable | None,
    loss_function: LossFunction | None,
) -> Iterator[tuple[PruningConfig, PruningPlan, PreTrainedModel]]:
    """Copies of a model that are pruned by one method to every budget."""
    scores = score_groups(model, groups, batches, configs[0], loss_function=loss_function, disable_tqdm=True)
    plans = [_plan(model, groups, scores, each, batches or (), latency) for each in configs]
    copies = (apply_plan(copy_model(model), plan) for plan in plans)
    if configs[0].recovery == "reconstruct":
        models = list(copies)
        reconstruct_all(models, model, plans, batches or (), disable_tqdm=True)
        copies = (models.pop(0) for _ in plans)
    for each, plan in zip(configs, plans):  # a zip of all three would keep a model until it gives the next
        yield each, plan, next(copies)


def _plan(
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    scores: Scores,
    config: PruningConfig,
    batches: Iterable[Batch],
    latency: LatencyTable | None,
) -> PruningPlan:
    if config.allocation == "search":
        return search_plan(model, groups, scores, config, batches, latency=latency, disable_tqdm=True)
    return make_plan(scores, groups, config, latency=latency)


def _measure(
    pruned: PreTrainedModel,
    dense: PreTrainedModel,
    plan: PruningPlan,
    config: PruningConfig,
    quality: Callable[[PreTrainedModel], float],
    repeats: int,
) -> _Trial:
    value = quality(pruned)
    known = math.isfinite(value)
    if not known:
        logger.warning("the quality by %s at a sparsity of %s is %s", config.method, config.sparsity, value)
    parameters, flops = count_parameters(pruned), count_flops(pruned, 1, config.sequence_length)
    models = {DENSE: dense, config.method: pruned}
    times = measure_latency(models, config.latency_batch_size, config.sequence_length, repeats=repeats)
    return _Trial(config, plan, value if known else None, parameters, flops, times[config.method], times[DENSE])


def _rows(quality: float, parameters: int, flops: int, found: Sequence[_Trial]) -> tuple[ComparedModel, ...]:
    """The dense model, then the pruned ones. The dense model was timed beside each of the others; all of them are told
    on the scale of its median.

    Args:
        quality, parameters, flops: of the dense model.
    """
    times = [each.dense_time for each in found]
    dense = LatencyResult(*(statistics.median(getattr(t, name) for t in times) for name in ("median", "low", "high")))
    ratio = 1.0 if quality else None
    rows = [ComparedModel(DENSE, 0.0, quality, ratio, parameters, flops, dense.median, dense.low, dense.high, 1.0)]
    for each in found:
        scale = dense.median / each.dense_time.median
        assert each.config.sparsity is not None, "models are compared by their sparsity"
        rows.append(
            ComparedModel(
                method=each.config.method,
                sparsity=each.config.sparsity,
                quality=each.quality,
                quality_ratio=each.quality / quality if quality and each.quality is not None else None,
                parameters=each.parameters,
                flops=each.flops,
                latency=each.time.median * scale,
                latency_low=each.time.low * scale,
                latency_high=each.time.high * scale,
                speedup=each.dense_time.median / each.time.median,
                plan=each.plan,
            )
        )
    return tuple(rows)


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
            if evaluate is not None:
                return float(evaluate(model))
            assert metric is not None and eval_dataloader is not None, "one without the other was refused"
            return float(metric(*_predict(model, eval_dataloader)))

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
