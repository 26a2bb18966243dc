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
"""The search for how much each layer keeps."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import find_labels

from ..architectures.groups import PrunableGroup, check_bare
from ..architectures.modes import scoring_mode
from ..config import PruningConfig
from ..methods import get_scorer
from ..planning.allocation import budget_of, make_plan
from ..planning.costs import Costs
from ..planning.exclusion import with_kept
from ..planning.plan import PruningPlan
from ..planning.ranking import best_sizes, order_of
from ..planning.times import LatencyTable
from ..scoring.batches import Batch, count_examples, limit, take, token_mask
from ..scoring.loop import Scores, check_scores, checksum
from ..scoring.sums import digest
from ..surgery.streams import without_cache
from ..utils.files import read_json, write_json
from ..utils.sharding import check_whole
from .divergence import distillation_loss, meanings_of
from .supernet import Supernet


logger = logging.getLogger(__name__)

WORK = 5e11  # parameters times tokens of one measurement, unless `num_measured` says how many examples
LEAST_TOKENS = 1024
STEP = 4.0  # by what factor a rate may change in a round
ROUNDS = 8
Counts = Mapping[str, int]


def search_plan(
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    scores: Scores,
    config: PruningConfig,
    dataloader: Iterable[Batch],
    *,
    latency: LatencyTable | None = None,
    num_measured: int | None = None,
    progress_file: str | Path | None = None,
    disable_tqdm: bool = False,
) -> PruningPlan:
    """Chooses how many heads and neurons each layer keeps by what the whole model gives.

    Scores say in which order the units of a layer go; how many go is searched for, so that the divergence of the
    model's outputs from those of the dense model is the least, within any budget. Nothing is cut on the way: from one
    pass over the examples and one Cholesky factor for each layer and kind come the error of its output projection at
    every size, and what it is rebuilt to (least squares from the dense model's inputs; with `recovery="none"` it stays
    as it is). Then, from coarse to fine:

    1. Each group alone is cut as evenly as the budget wants, and the divergence measured. It and the errors tell what
       each size of the group costs in divergence; dynamic programming gives the sizes with the least sum. The method
       `obs` tells what each size costs by itself.
    2. In up to 8 rounds, the gradient of the divergence tells the part that each group has in it, in the best plan so
       far: half of the sum, over the weights of its output projection, of gradient times change. Where the divergence
       D is quadratic in the changes c, as it is near the dense model, the parts add up to it: D = cᵀHc/2, and its
       gradient is Hc. They replace the first estimates, which change by a factor of 4 at most, or part of the way.
       Where no step makes it better, the search ends.

    The plans of the other allocations take part: the result is never behind them by this measure.

    Its cost is one pass over the examples, at most `groups + 20` measurements (20 with `obs`), each a forward pass of
    about 5·10¹¹ parameters times tokens (1,024 tokens at least), and at most 8 gradients, each three times as much.
    The Gram matrices take 8 bytes times the square of the inputs of each projection, all at once.

    Args:
        model (`PreTrainedModel`): whole and in memory; as it was after the call.
        groups (`Sequence[PrunableGroup]`): that were scored; those of `config.granularity` are cut.
        scores (`dict[str, Tensor]`): as of `make_plan`.
        config (`PruningConfig`): with `allocation="search"`; the budget and its limits are those of `make_plan`.
        dataloader (`Iterable[Batch]`): dicts of tensors as the model takes them; labels are not used. Up to
            `config.num_samples` examples are read. With several processes, give each the same batches: they share out
            the measurements, and the plan does not depend on how many they are.
        latency (`LatencyTable`, *optional*): for `budget="latency"`.
        num_measured (`int`, *optional*): examples to measure the divergence on, the first of those read.
        progress_file (*optional*): measurements are written here, and a call with the same model, scores, config and
            examples goes on from them, to the same plan.
        disable_tqdm (`bool`): no progress bar.

    Raises:
        `ValueError`: as of `make_plan`; groups other than heads and neurons; a model that is sharded; outputs whose
            divergence has no meaning.
    """
    if config.allocation != "search":
        raise ValueError(f"search_plan takes a config with allocation='search'; got {config.allocation!r}")
    _check_model(model)
    groups = [group for group in groups if group.kind in config.granularity]
    starts = [dataclasses.replace(config, allocation=each) for each in ("uniform", "per_kind", "global")]
    plans = [make_plan(scores, groups, each, latency=latency) for each in starts]  # raises what is wrong
    inside = [group.name for group in groups if group.observed != "inputs"]
    if inside:
        raise ValueError(
            f"allocation='search' is for heads and neurons outside of experts, which {inside[0]!r} is not"
        )
    check_scores({group.name: scores[group.name] for group in groups}, groups)
    scores = with_kept(scores, groups, config)
    costs, room = budget_of(scores, groups, config, latency)
    groups = [group for group in groups if group.size]  # the others are as they are
    orders = {group.name: order_of(scores[group.name], group) for group in groups}
    labels = find_labels(type(model))
    batches = [
        send_to_device({name: value for name, value in batch.items() if name not in labels}, model.device)
        for batch in limit(dataloader, config.num_samples, "search: reading", disable_tqdm=True)
    ]
    if not batches:
        raise ValueError("the dataloader gave no batches: there is nothing to search by")
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(scoring_mode(model))
        stack.enter_context(without_cache(model))
        supernet = stack.enter_context(Supernet(model, groups, orders, batches, config.recovery != "none"))
        disable = disable_tqdm or not PartialState().is_local_main_process
        by_scores = get_scorer(config.method, config.granularity).source == "curvature"
        total, unit = 4 + 3 * ROUNDS + (0 if by_scores else len(groups)), "measurement"
        bar = stack.enter_context(tqdm(total=total, desc="search", unit=unit, disable=disable, leave=False))
        examples = functools.reduce(lambda before, batch: digest(batch, before), batches, 0)
        sums = [checksum(each) for each in model.parameters()]
        identity = [config.to_dict(), orders, sums, examples, num_measured]
        measure = _Measure(supernet, batches, num_measured, progress_file, json.dumps(identity), bar)
        lost = {name: sizes.errors for name, sizes in supernet.sizes.items()}
        if by_scores:
            lost = {name: _sums(scores[name], order) for name, order in orders.items()}
        search = _Search(groups, lost, costs, room, measure)
        counts = search([_counts(plan, groups) for plan in plans], rated=by_scores)
    chosen = {group.name: sorted(group.units[i] for i in orders[group.name][: counts[group.name]]) for group in groups}
    return dataclasses.replace(
        plans[0],
        keep={name: tuple(chosen.get(name, units)) for name, units in plans[0].keep.items()},
        config=dataclasses.replace(config),
    )


def _check_model(model: PreTrainedModel) -> None:
    check_bare(model, "search_plan")
    check_whole(model, "search_plan")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("search_plan changes weights of the model, so none may be offloaded: load it whole")


def _counts(plan: PruningPlan, groups: Sequence[PrunableGroup]) -> dict[str, int]:
    return {group.name: len(plan.keep[group.name]) for group in groups}


def _sums(scores: Tensor, order: Sequence[int]) -> np.ndarray:
    """What is lost with 0 to all units, where each score is what its unit adds to that."""
    ranked = scores.masked_fill(torch.isposinf(scores), 0)[order]
    return np.append(ranked.double().flip(0).cumsum(0).flip(0).numpy(), 0.0)


class _Search:
    """Chooses sizes.

    Args:
        lost: group name -> what is lost with 0 to all units, in any unit: a rate, searched for, makes it divergence.
        costs, room: the budget.
        measure: gives the divergence at chosen sizes.
    """

    def __init__(
        self,
        groups: Sequence[PrunableGroup],
        lost: Mapping[str, np.ndarray],
        costs: Costs,
        room: float,
        measure: _Measure,
    ) -> None:
        self.groups, self.lost, self.costs, self.room, self.measure = groups, lost, costs, room, measure
        self.whole = {group.name: group.size for group in groups}

    def __call__(self, starts: Sequence[Counts], rated: bool) -> Counts:
        """Searches from the sizes of some plans, of which the first is even.

        Args:
            rated (`bool`): what is lost is comparable between groups as it is.
        """
        found = [(self.measure(counts), counts) for counts in starts]
        rate = dict.fromkeys(self.whole, 1.0) if rated else self._coarse(starts[0])
        found.append(self._best_plan(rate))
        best, counts = min(found, key=lambda each: each[0])
        way = 1.0
        for number in range(ROUNDS):
            cut = [name for name, count in counts.items() if count < self.whole[name]]
            parts = self.measure.parts(counts)
            # In the unit of the parts; no plan depends on a factor that all rates have.
            expected = sum(rate[name] * float(self.lost[name][counts[name]]) for name in cut)
            unit = sum(max(parts[name], 0.0) for name in cut) / max(expected, 1e-30) or 1.0
            rate = {name: each * unit for name, each in rate.items()}
            beside = dict(rate)
            for name in cut:
                # What costs nothing now, or much, may be otherwise when the others change.
                new_rate = self._rate(parts[name], name, counts[name])
                beside[name] = min(max(new_rate, rate[name] / STEP), rate[name] * STEP)
            # Part of the way, if all of it is too far: the part of a group changes with the others.
            tried = [{name: rate[name] ** (1 - far) * beside[name] ** far for name in rate} for far in (way, way / 2)]
            (value, new), chosen = min(((self._best_plan(each), each) for each in tried), key=lambda each: each[0][0])
            logger.info("search, round %d: divergence %.5g, before %.5g", number + 1, value, best)
            if value < best:
                best, counts, rate = value, new, chosen
            elif way < 1:
                break
            else:
                way /= 4
        return counts

    def _coarse(self, even: Counts) -> dict[str, float]:
        """Divergence for each group's unit of what is lost, where it alone is cut."""
        rate = {}
        for group in self.groups:
            count = min(even[group.name], group.size - 1)
            rate[group.name] = self._rate(self.measure({**self.whole, group.name: count}), group.name, count)
        return rate

    def _rate(self, divergence: float, name: str, count: int) -> float:
        return max(divergence, 1e-12) / max(float(self.lost[name][count]), 1e-30)

    def _best_plan(self, rate: Mapping[str, float]) -> tuple[float, dict[str, int]]:
        """The sizes with the least sum of what each loses, by these rates, and their divergence."""
        worth = {name: -each * self.lost[name] for name, each in rate.items()}
        price = self.costs.price
        counts = best_sizes(worth, self.groups, self.costs, self.room, within=True)
        left = self.room - sum(float(price[name][count]) for name, count in counts.items())
        while True:  # what rounding has left over
            steps = []
            for group in self.groups:
                count = counts[group.name]
                more = count + self.costs.multiple(group)
                if more <= group.size:
                    added = float(price[group.name][more] - price[group.name][count])
                    gain = float(worth[group.name][more] - worth[group.name][count])
                    if added <= left:
                        steps.append((gain / max(added, 1e-30), group.name, more, added))
            if not steps:
                return self.measure(counts), counts
            _, name, more, added = max(steps)
            counts[name], left = more, left - added


class _Measure:
    """Measures how far the outputs are from the dense model's, and the part of each group in it. What was measured
    before is known."""

    def __init__(
        self,
        supernet: Supernet,
        batches: Sequence[dict[str, Any]],
        examples: int | None,
        progress_file: str | Path | None,
        identity: str,
        bar: Any,
    ) -> None:
        self.supernet, self.bar, self.state = supernet, bar, PartialState()
        self.batches = list(enumerate(_first(supernet.model, batches, examples)))
        self.own = self.batches[self.state.process_index :: self.state.num_processes]
        self.dense = {number: supernet.model(**batch) for number, batch in self.own}
        self.path, self.identity = Path(progress_file) if progress_file else None, identity
        self.known: dict[str, list[float]] = {}
        if self.path:
            stored = read_json(self.path) if self.state.is_main_process and self.path.is_file() else {}
            known = stored.get("measured", {}) if stored.get("identity") == identity else {}
            self.known = broadcast_object_list([known])[0] if self.state.num_processes > 1 else known

    def __call__(self, counts: Counts) -> float:
        """The divergence at these sizes."""
        return self._measured("", counts)[0]

    def parts(self, counts: Counts) -> dict[str, float]:
        """The part of each group in the divergence at these sizes."""
        return dict(zip(self.supernet.groups, self._measured("parts ", counts)))

    def _measured(self, what: str, counts: Counts) -> list[float]:
        key = what + ",".join(str(counts[name]) for name in self.supernet.groups)
        if key not in self.known:
            self.supernet.set(counts)
            measure = self._parts_of_batch if what else self._value_of_batch
            found = [(number, *measure(number, batch)) for number, batch in self.own]
            if self.state.num_processes > 1:
                found = gather_object(found)
            found.sort()  # the same sum for any number of processes
            total = sum(weight for _, _, weight in found)
            sums = [sum(column) for column in zip(*([v * weight for v in values] for _, values, weight in found))]
            self.known[key] = [value / total for value in sums]
            if self.path and self.state.is_main_process:
                write_json(self.path, {"identity": self.identity, "measured": self.known})
        self.bar.update()
        return self.known[key]

    def _value_of_batch(self, number: int, batch: Batch) -> tuple[list[float], float]:
        value, weight = self._of_batch(number, batch)
        return [float(value)], weight

    def _parts_of_batch(self, number: int, batch: Batch) -> tuple[list[float], float]:
        with self.supernet.differentiable(), torch.enable_grad():
            value, weight = self._of_batch(number, batch)
            # Of a sum over tokens: gradients of a mean would vanish in float16.
            return [part / weight for part in self.supernet.parts(value * weight)], weight

    def _of_batch(self, number: int, batch: Batch) -> tuple[Tensor, float]:
        """The divergence, and what it weighs: tokens where there are predictions for each, else examples."""
        dense, found, mask = self.dense[number], self.supernet.model(**batch), token_mask(batch)
        if any(name.endswith("logits") for name in found):
            try:
                meanings = meanings_of(self.supernet.model, found)
            except ValueError as error:
                told = str(error).partition("Override compute")[0].replace("distill_weight > 0", "allocation='search'")
                raise ValueError(f"{told}choose another allocation") from error
            value = distillation_loss(_logits(found), _logits(dense), 1.0, mask, meanings)
            of_tokens = any(found[name].dim() == 3 for name in found if name.endswith("logits"))
            return value, float(mask.sum()) if of_tokens and mask is not None else float(count_examples(batch))
        states, wanted = (each[0].float() for each in (found, dense))
        chosen = mask.bool() if mask is not None and mask.shape == states.shape[:2] else ...
        states, wanted = states[chosen], wanted[chosen]
        return (states - wanted).square().sum() / wanted.square().sum(), float(count_examples(batch))


def _logits(outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if name.endswith("logits")}


def _first(model: PreTrainedModel, batches: Sequence[dict[str, Any]], examples: int | None) -> list[dict[str, Any]]:
    """As many of the examples as a measurement reads."""
    inputs = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    table = getattr(inputs, "weight", None)
    parameters = sum(p.numel() for p in model.parameters()) - (table.numel() if table is not None else 0)
    tokens = max(LEAST_TOKENS, WORK / max(parameters, 1))
    found: list[dict[str, Any]] = []
    left = examples
    for batch in batches:
        size, mask = count_examples(batch), token_mask(batch)
        each = mask.numel() / size if mask is not None else _positions(batch, size)
        if examples is None:
            left = max(int(tokens // each), 1 - len(found))
        if not left or left < 1:
            break
        part = take(batch, min(left, size))
        found.append(part)
        tokens -= count_examples(part) * each
        left -= count_examples(part)
    return found


def _positions(batch: Batch, size: int) -> float:
    """Of images and sound, about: as many as 16 by 16 pixels, or 320 samples, make."""
    values = max(value.numel() for value in batch.values() if isinstance(value, Tensor))
    return max(values / size / 768, 1.0)
