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
"""Pruned models as ordinary checkpoints: smaller layers are filled up with zeros to the size of the largest one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architectures.modeling_camcut import RECORD
from ..architectures.structure import config_fields, label_of, list_groups, sublayer_of
from ..checkpoints.stored import plain_class
from ..planning.measure import count_parameters, random_inputs
from ..planning.plan import PruningPlan, is_unit, plain_shape, plan_of
from ..planning.twin import dense_twin
from ..surgery.cut import apply_plan


logger = logging.getLogger(__name__)

TOKENS = 16  # of the random inputs that both models must answer alike
NEAR = 1e-3  # share of the answers' spread


@torch.no_grad()
def fill_up(model: PreTrainedModel, multiple_of: int = 1, all_heads: bool = False) -> PreTrainedModel:
    """A plain model that computes what a pruned one does, for engines that know one size for all layers.

    Each kind of unit gets, in all layers, as many as the largest layer has kept, if the config has a field for it,
    else as many as before the cut. What is filled up has zero weights. Sub-layers that are gone come back as zeros.

    Args:
        model: pruned; it stays as it is.
        multiple_of: neurons are filled up to a multiple of it.
        all_heads: heads are filled up to those before the cut, for what divides the hidden size by their number to
            know how wide they are: `ORTModelForCausalLM` of optimum-onnx 0.1 does.

    Returns:
        `PreTrainedModel`: saved by `save_pretrained` as an ordinary checkpoint.

    Raises:
        `ValueError`: the model is not pruned, lost its plan, lacks experts, or filled up would compute something else:
            where a norm stands behind the sub-layers that are gone, or spans several heads.
    """
    plan = plan_of(model)
    if plan is None:
        raise ValueError("the model is not pruned, so it is a plain checkpoint already; or its plan was lost")
    units = {name: kept for name, kept in plan.keep.items() if is_unit(name)}
    experts = sorted(name for name in units if "expert" in name and len(units[name]) < plan.sizes[name])
    if experts:
        raise ValueError(
            f"experts are gone from {experts[0]!r}, and a router would choose ones of zeros in their place"
        )
    filled = _uncut(model, PruningPlan(units, {name: plan.sizes[name] for name in units}, plan.model_type))
    apply_plan(filled, _even(filled, units, multiple_of, all_heads))
    for name in (RECORD, "auto_map", "pruned_heads"):  # an ordinary checkpoint has none
        vars(filled.config).pop(name, None)
    filled.__class__, filled.pruning_plan = plain_class(type(model)), None
    _check_same(model, filled)
    before, after = count_parameters(model), count_parameters(filled)
    logger.info("filled up with zeros: %s parameters in place of %s", f"{after:,}", f"{before:,}")
    return filled


def _uncut(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """The model before its cut, with zeros where units are gone: every value where it was."""
    dense, places = dense_twin(model, tokens=False), dense_twin(model, tokens=False)
    for each in places.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                kind = torch.float32 if parameter.numel() < 2**24 else torch.float64  # which counts so far
                count = torch.arange(parameter.numel(), dtype=kind).view(parameter.shape)
                each._parameters[name] = nn.Parameter(count, requires_grad=False)
    apply_plan(places, plan)
    where = dict(places.named_parameters())
    for parameter in dense.parameters():
        parameter.zero_()
    targets = dict(dense.named_parameters())
    for name, value in model.named_parameters():
        if name in targets:
            targets[name].view(-1)[where[name].long().view(-1)] = value.reshape(-1).to(targets[name].dtype)
    return dense


def _even(
    model: PreTrainedModel, units: Mapping[str, Sequence[int]], multiple_of: int, all_heads: bool
) -> PruningPlan:
    """What to keep of the uncut model: in every layer the units that were kept, and as many of zeros as it takes."""
    groups = [group for group in list_groups(model) if group.kind != "layers"]
    gone = {name for name, left in units.items() if not left}
    every = {group.name: () if sublayer_of(group.name) in gone else range(group.size) for group in groups}
    kept = {name: list(units.get(name, units_of)) for name, units_of in every.items()}
    fields, keep, sizes = config_fields(model.config), dict[str, tuple[int, ...]](), dict[str, int]()
    for label in dict.fromkeys(label_of(group.name) for group in groups):
        same = [group for group in groups if label_of(group.name) == label]
        size = same[0].size
        wanted = max(1, *(len(kept[group.name]) for group in same), 0)
        if label.endswith("neurons"):
            wanted = math.ceil(wanted / multiple_of) * multiple_of
        if label not in fields or (all_heads and label.endswith("heads")):
            continue
        for number in range(wanted, size):
            chosen = {group.name: _with(kept[group.name], number, group.size) for group in same}
            found = PruningPlan(chosen, {group.name: group.size for group in same}, model.config.model_type)
            if plain_shape(model, found) is not None:
                keep |= chosen
                sizes |= found.sizes
                break
    return PruningPlan(keep, sizes, model.config.model_type)


def _with(kept: list[int], number: int, size: int) -> tuple[int, ...]:
    others = (unit for unit in range(size) if unit not in set(kept))
    return tuple(sorted([*kept, *(unit for unit, _ in zip(others, range(number - len(kept))))]))


def _check_same(model: PreTrainedModel, filled: PreTrainedModel) -> None:
    inputs = random_inputs(model, 2, TOKENS)
    first, second = (_answers(each, inputs) for each in (model, filled))
    spread = (first.max() - first.min()).clamp_min(1e-12)
    off = float((first - second).abs().max() / spread)
    if not off < NEAR:
        raise ValueError(
            f"filled up with zeros, the model would compute something else (off by {off:.1%} of its answers' spread): "
            f"a {model.config.model_type!r} has a norm behind its sub-layers, or one that spans several heads"
        )


def _answers(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    training = model.training
    found = model.eval()(**inputs)[0].float()
    model.train(training)
    return found
