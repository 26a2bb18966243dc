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
"""Rebuilding: least squares on the output projections, without labels and without training."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce as reduce_across_processes
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_labels

from ..architectures.groups import PrunableGroup, check_bare, find_groups, possible_kinds
from ..architectures.modes import scoring_mode
from ..architectures.structure import list_blocks, list_groups, sublayer_of
from ..architectures.vocabulary import VOCABULARY
from ..planning.plan import PruningPlan, is_weight, without_removed
from ..scoring.batches import Batch, count_examples, limit
from ..utils.files import nearest
from ..utils.sharding import check_whole
from .device import blocks_on
from .streams import (
    Stream,
    factor_of,
    find_stages,
    run_dense,
    select_read_tokens,
    start_stream,
    warn_of_few,
    without_cache,
)
from .vocabulary import check_same_tokens
from .walk import Given, walk


logger = logging.getLogger(__name__)

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean squared activation


def reconstruct(
    model: PreTrainedModel,
    dense_model: PreTrainedModel,
    plan: PruningPlan,
    dataloader: Iterable[Batch],
    *,
    num_samples: int | None = None,
    device: torch.device | str | None = None,
    disable_tqdm: bool = False,
) -> PreTrainedModel:
    """Makes the output projections of a pruned model reproduce those of the dense one, in place.

    Layer by layer from the input, each output projection becomes the W' and, where it has one, the bias b' that
    minimize ||X W' + b' - Y||² + λ ||W' - W||², where X is what the pruned model, as rebuilt so far, feeds into it,
    and Y what must come out so that the residual stream is the dense model's again: the output of the dense
    projection, plus what the pruned stream lacks by then. Sums run over all real tokens; in the last block over those
    alone that the model's outputs are computed from (the first token, say, if a classifier reads that one). λ is one
    of `DAMPINGS` times the mean diagonal of XᵀX: the one that, fitted to seven of eight examples, has the least error
    on the eighths; the solution is then fitted to all. Normal equations are summed in float64. The activations of a
    layer are computed from those of the layer before, so the cost is that of a few forward passes whatever the depth.
    With several processes, give each the same batches. What experts give is not rebuilt; the projections behind them
    make up for it.

    Args:
        model (`PreTrainedModel`): after `apply_plan(model, plan)`.
        dense_model (`PreTrainedModel`): the model as it was before; not changed. What it has before the first cut is
            left alone, and where sub-layers were removed, the projections behind them make up for that.
        plan (`PruningPlan`): what was applied.
        dataloader (`Iterable[Batch]`): dicts of tensors as the model takes them; labels are not used. Give several
            times as many tokens as the widest projection has inputs. The hidden states of all batches are kept in
            memory, and what a block has computed when it comes to a projection, in all about `tokens * (8 * hidden
            size + inputs)` numbers, and with eager attention its maps (of ALBERT, `4 * tokens * hidden size` for every
            call of a block).
        num_samples (`int`, *optional*): read no more examples than this.
        device (*optional*): where to compute, for models in CPU memory that are too big for it: one block is there at
            a time, with one batch, the sums and the solution, `4 * inputs² + 4 * inputs * hidden size` numbers of 8
            bytes; hidden states stay in CPU memory. A block is then computed again for each of its projections.
            `dense_model` may also be offloaded, with this as its `execution_device`. Default: where the models are.
        disable_tqdm (`bool`): no progress bar.

    Returns:
        `PreTrainedModel`: the same object as `model`.

    Raises:
        `ValueError`: the models and the plan do not belong together, no batches, or activations that are not finite;
            the weights are then as before.
    """
    options: dict[str, Any] = {"num_samples": num_samples, "device": device, "disable_tqdm": disable_tqdm}
    reconstruct_all([model], dense_model, [plan], dataloader, **options)
    return model


@torch.no_grad()
def reconstruct_all(
    models: Sequence[PreTrainedModel],
    dense_model: PreTrainedModel,
    plans: Sequence[PruningPlan],
    dataloader: Iterable[Batch],
    *,
    num_samples: int | None = None,
    device: torch.device | str | None = None,
    disable_tqdm: bool = False,
) -> None:
    """`reconstruct` for several cuts of one dense model, which runs once for all of them.

    Args:
        models (`Sequence[PreTrainedModel]`): each after `apply_plan` with its plan.
        dense_model (`PreTrainedModel`): the model as it was before all of them.
        plans (`Sequence[PruningPlan]`): one for each model.
        dataloader, num_samples, device, disable_tqdm: as of `reconstruct`; each model more keeps
            `tokens * hidden size` numbers more.

    Raises:
        `ValueError`: as of `reconstruct`; the weights of all models are then as before.
    """
    if len(models) != len(plans):
        raise ValueError(f"expected a plan for each model, got {len(models)} models and {len(plans)} plans")
    for model in (dense_model, *models):
        check_bare(model, "reconstruct")
    check_whole(dense_model, "reconstruct")
    dense_groups = {group.name: group for group in find_groups(dense_model, possible_kinds(dense_model))}
    jobs = [_Job(model, _to_solve(model, plan, dense_model, dense_groups)) for model, plan in zip(models, plans)]
    experts = [group for group in dense_groups.values() if group.observed != "inputs"]
    idle = [plan for job, plan in zip(jobs, plans) if not job.groups]
    if any(len(plan.keep.get(group.name, group.units)) < group.size for plan in idle for group in experts):
        logger.warning("the output projections of experts are not rebuilt, and behind the first cut there is no other")
    jobs = [job for job in jobs if job.groups]
    if not jobs:
        return

    batches = _read_batches(dense_model, dataloader, num_samples)
    projections = [job.model.get_submodule(group.output.module) for job in jobs for group in job.groups.values()]
    disable = disable_tqdm or not PartialState().is_local_main_process
    with ExitStack() as stack:
        stack.enter_context(_all_or_none(projections))
        for model in (dense_model, *(job.model for job in jobs)):
            stack.enter_context(scoring_mode(model))
            stack.enter_context(without_cache(model))
            stack.enter_context(blocks_on(model, device))
        bar = stack.enter_context(
            tqdm(total=len(projections), desc="reconstruct", unit="projection", disable=disable, leave=False)
        )
        rebuilt = [group for name, group in dense_groups.items() if any(name in job.groups for job in jobs)]
        _rebuild(jobs, dense_model, rebuilt, batches, bar.update, wait=device is None)


def _read_batches(
    dense_model: PreTrainedModel, dataloader: Iterable[Batch], num_samples: int | None
) -> list[dict[str, Any]]:
    batches = list(limit(dataloader, num_samples, "reconstruct: reading", disable_tqdm=True))
    if not batches:
        raise ValueError("the dataloader gave no batches: there is nothing to reconstruct from")
    labels = find_labels(type(dense_model))  # no loss is asked for; of a test set they are -1, which gives none
    return [
        {name: value for name, value in _with_decoder_inputs(dense_model, batch).items() if name not in labels}
        for batch in batches
    ]


def _with_decoder_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """Of an encoder-decoder model that makes the decoder's inputs of the labels: with those."""
    wanted, config = batch.get("labels"), model.config
    if not config.is_encoder_decoder or not isinstance(wanted, Tensor) or "decoder_input_ids" in batch:
        return dict(batch)
    if wanted.dim() != 2 or wanted.is_floating_point():  # no words
        return dict(batch)
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:
        inputs = shift(labels=wanted.to(model.device)).to(wanted.device)
    else:  # as Whisper does inside
        inputs = wanted.roll(1, -1).masked_fill(wanted.roll(1, -1) < 0, config.pad_token_id)
        inputs[:, 0] = config.decoder_start_token_id
    return {"decoder_attention_mask": (wanted >= 0).long(), **batch, "decoder_input_ids": inputs}


@contextmanager
def _all_or_none(projections: Iterable[nn.Module]) -> Iterator[None]:
    """After an error the parameters are as they were."""
    parameters = [parameter for projection in projections for parameter in projection.parameters()]
    before = [parameter.clone() for parameter in parameters]
    try:
        yield
    except BaseException:
        for parameter, value in zip(parameters, before):
            parameter.copy_(value)
        raise


def _rebuild(
    jobs: Sequence[_Job],
    dense_model: PreTrainedModel,
    rebuilt: Sequence[PrunableGroup],
    batches: Sequence[Batch],
    tell: Callable[[], object],
    wait: bool,
) -> None:
    """Goes through the stages of all models side by side, and solves the projections of each on the way.

    Args:
        rebuilt: the dense model's groups of which a projection is to be solved in any of the others.
        tell: called after every projection.
        wait: see `walk`.
    """
    state = PartialState()
    stacks = find_stages(dense_model, batches[0], rebuilt)
    first = np.cumsum([0, *map(count_examples, batches)]).tolist()  # numbers of the examples
    own = list(zip(first, batches))[state.process_index :: state.num_processes]
    for stages in stacks:
        dense = [start_stream(dense_model, stages, batch, number) for number, batch in own]
        warn_of_few(dense, [job.model for job in jobs], stages)
        for job in jobs:
            job.streams = [start_stream(job.model, stages, batch, number) for number, batch in own]
        for number, stage in enumerate(stages):
            targets = [run_dense(dense_model, stage, stream) for stream in dense]
            if stage.blocks == list_blocks(dense_model)[-1:]:
                select_read_tokens(dense_model, stage, [batch for _, batch in own], dense)
            for job in jobs:
                solved = [job.groups[group.name] for group in stage.groups if group.name in job.groups]
                calls = max((len(found) for target in targets for found in target.values()), default=1)
                once, to_end = wait and calls == 1, number + 1 < len(stages)
                for group, given in walk(job.model, stage, solved, job.streams, calls, once, to_end):
                    _solve(job.model, group, given, dense, [target[group.name] for target in targets])
                    tell()


def _to_solve(
    model: PreTrainedModel,
    plan: PruningPlan,
    dense_model: PreTrainedModel,
    dense_groups: dict[str, PrunableGroup],
) -> dict[str, PrunableGroup]:
    """The groups of a pruned model whose projections are to be solved, by name."""
    check_whole(model, "reconstruct")
    present = {group.name: group for group in find_groups(model, possible_kinds(model))}
    _check(model, dense_model, present, dense_groups, plan)
    names = list(dense_groups)
    cut = [i for i, n in enumerate(names) if n not in present or present[n].size < dense_groups[n].size]
    # All before the first cut is exact already. Sub-layers have the projections of their heads and neurons.
    solved = [present[name] for name in names[cut[0] :] if name in present] if cut else []
    return {group.name: group for group in solved if group.kind != "layers" and group.observed == "inputs"}


def _check(
    model: PreTrainedModel,
    dense_model: PreTrainedModel,
    present: dict[str, PrunableGroup],
    dense_groups: dict[str, PrunableGroup],
    plan: PruningPlan,
) -> None:
    if any(map(is_weight, plan.keep)):
        raise ValueError("reconstruct rebuilds what was cut; this plan masks single weights: train the model instead")
    if model is dense_model:
        raise ValueError("dense_model is the pruned model itself; pass a copy made before apply_plan")
    kinds = [f"{type(m).__name__} with {len(list_blocks(m))} layers" for m in (model, dense_model)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"the models do not belong together: {kinds[0]}, and dense_model is a {kinds[1]}")
    check_same_tokens(model, dense_model)
    removed = {group.name for group in list_groups(model)} - set(present)
    for name, units in without_removed(plan.keep).items():
        if name == VOCABULARY or (sublayer_of(name) in removed and not units):
            continue
        if name not in present:
            raise ValueError(
                f"the plan names the group {name!r}, which the model lacks; it has {', '.join(present)}"
                f"{nearest(name, present)}"
            )
        if present[name].units != units:
            raise ValueError(f"{name!r} has {present[name].size} units, not those of the plan: call apply_plan first")
    for name, group in present.items():
        dense = dense_groups.get(name)
        if dense is None:
            raise ValueError(f"dense_model lacks {name!r}, which the pruned model has")
        if group.kind == "layers":
            continue
        if (dense.original_size, dense.output.width) != (group.original_size, group.output.width) or not set(
            group.units
        ) <= set(dense.units):
            raise ValueError(f"{name!r} of dense_model lacks units that the pruned model has")


@dataclass
class _Job:
    """One pruned model."""

    model: PreTrainedModel
    groups: dict[str, PrunableGroup]  # whose projections are to be solved, by name
    streams: list[Stream] = field(default_factory=list)


def _solve(
    model: PreTrainedModel,
    group: PrunableGroup,
    inputs_given: Given,
    dense: Sequence[Stream],
    targets: Sequence[list[Tensor]],
) -> None:
    """Solves one projection of a pruned model: `targets` are the residual streams after it, of each batch one a call;
    the masks are those of the dense streams."""
    given_by_batch = iter(inputs_given)
    first = list(itertools.islice(given_by_batch, 1))  # this may move the block, and its weights with it
    projection = model.get_submodule(group.output.module)
    weight, bias = projection.weight if isinstance(projection, Conv1D) else projection.weight.T, projection.bias
    inputs, outputs = weight.shape
    # The bias is the weight of a first input that is 1: first, because to eliminate the others before it leaves little
    # but rounding where there are fewer tokens than inputs.
    biased = int(bias is not None)
    rows = biased + inputs
    # Of the examples to fit, and of those held out.
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # Apple's GPUs have no float64
    gram = torch.zeros(2, rows, rows, dtype=torch.float64, device=device)
    cross = torch.zeros(2, rows, outputs, dtype=torch.float64, device=device)
    waiting: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])

    def add(part: int, least: int) -> None:
        """Adds the tokens that wait, if they are so many: to add up two sums takes longer than the products of few."""
        if sum(len(given) for given, _ in waiting[part]) >= max(least, 1):
            given, missing = map(torch.cat, zip(*waiting[part]))
            waiting[part].clear()
            with torch.autocast(given.device.type, enabled=False):  # the models may run in half precision, not this
                gram[part] += (given.T @ given).to(device)
                cross[part] += (given.T @ missing).to(device)

    for masks, (x, residual), wanted in zip(dense, itertools.chain(first, given_by_batch), targets):
        y = (torch.cat(wanted, dim=1).to(x.device) - residual.float()) / factor_of(model, group)
        real, held_out = (
            each.repeat(1, x.shape[1] // each.shape[1]).to(x.device) for each in (masks.mask, masks.held_out)
        )
        for part, chosen in enumerate((real & ~held_out, real & held_out)):
            tokens = chosen.flatten().nonzero().squeeze(1)  # one wait for the device, not two
            given = x.flatten(0, 1)[tokens]
            missing = y.flatten(0, 1)[tokens] - projection(given).float()
            given = torch.cat([given.new_ones(len(given), biased, dtype=torch.float32), given.float()], dim=1)
            waiting[part].append((given, missing))
            add(part, least=rows)
    for part in range(2):
        add(part, least=1)
    if PartialState().num_processes > 1:
        gram, cross = reduce_across_processes((gram, cross), "sum")
    if not (torch.isfinite(gram).all() and torch.isfinite(cross).all()):
        raise ValueError(f"the activations at {group.name!r} are NaN or infinite; the model is as it was before")
    least = _choose_damping(gram, cross, biased)
    gram[0] += gram[1]  # in place: of wide projections they are the most of what this needs
    cross[0] += cross[1]
    updates = (_ridge(gram[0], cross[0], biased, damping) for damping in DAMPINGS if damping >= least)
    update = next((update for update in updates if update is not None), None)
    if update is None:
        raise ValueError(f"no weights fit the activations at {group.name!r}: is there a token that is not masked?")
    update = update.to(weight.device, weight.dtype)
    weight.add_(update[biased:])
    if biased:
        bias.add_(update[0])


def _choose_damping(gram: Tensor, cross: Tensor, biased: int) -> float:
    """The damping whose solution for the first part, `gram[0]` and `cross[0]`, has the least error in the second."""
    if not all(part.diagonal().any() for part in gram):
        return DAMPINGS[len(DAMPINGS) // 2]  # too few examples to choose by

    def error(damping: float) -> float:
        update = _ridge(gram[0], cross[0], biased, damping)
        if update is None:
            return float("inf")
        return float((gram[1] @ update).sub_(cross[1], alpha=2).mul_(update).sum())

    return min(DAMPINGS, key=error)


def _ridge(gram: Tensor, cross: Tensor, biased: int, damping: float) -> Tensor | None:
    """Solves for the weights, `(inputs, outputs)`, and above them the bias, if there is one, which is not damped. None
    if the rounding of XᵀX outweighs the damping, as it may where inputs are all alike."""
    matrix = gram.clone()
    diagonal = matrix.diagonal()[biased:]
    if len(diagonal):
        diagonal += damping * (diagonal.mean() or 1.0)  # inputs that are all zero get no weights
    failed = torch.zeros((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    return None if failed else torch.cholesky_solve(cross, matrix)
