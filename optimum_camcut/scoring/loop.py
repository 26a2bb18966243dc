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
"""`score_groups`: runs a scoring method over batches, on one process or many."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.groups import WEIGHTS, PrunableGroup, below, body_of, check_group
from ..architectures.modeling_camcut import places_of
from ..architectures.modes import scoring_mode
from ..architectures.vocabulary import VOCABULARY
from ..config import NOISE, PruningConfig
from ..methods.registry import Scorer, get_scorer
from ..utils.files import nearest
from ..utils.sharding import is_sharded, reshard, whole
from .batches import Batch, count_examples, for_each_batch, limit, mask_for
from .capture import ActivationCapture
from .curvature import score_curvature
from .forward import score_blocks, score_inputs
from .loss import EXAMPLES, SCORED, SKIPPED, CheckedLoss, LossFunction, each_loss, model_loss, tell_skipped
from .noise import GaussianNoise, smoothing
from .sums import RunningSums, widest
from .tokens import score_tokens
from .weights import EachBatch, score_weights


Scores = dict[str, Tensor]
SPECIAL = {"input": score_inputs, "curvature": score_curvature, "stream": score_blocks, "tokens": score_tokens}


def score_groups(
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    dataloader: Iterable[Batch] | None,
    config: PruningConfig,
    *,
    loss_function: LossFunction | None = None,
    disable_tqdm: bool = False,
    progress_file: str | Path | None = None,
) -> Scores:
    """Scores every unit of every group by how much it matters on the given batches.

    The model is left as it was: parameters are frozen and dropout is off (see `PruningConfig.dropout` for single
    weights) only while scoring. With several processes,
    give each the same batches: they share them out among themselves, and the result does not depend on how many they
    are.

    Args:
        model (`PreTrainedModel` or `nn.Module`): not wrapped for distributed training, except by `fully_shard`
            (FSDP2), which leaves it a transformers model. A module around a transformers model computes the loss, and
            the groups are those of the model inside.
        groups (`Sequence[PrunableGroup]`): from `find_groups(model)`; those of `config.granularity` are scored.
        dataloader (`Iterable[Batch]`): dicts of tensors as the model takes them, with labels where the method needs
            a loss. Read up to `config.num_samples` examples; tokens are counted in all of them, up to the end that
            there has to be, and need no labels. With other units, they are read a second time for that.
            `magnitude` and `random` need none: pass None.
        config (`PruningConfig`): `method`, `granularity`, `num_samples`, `smooth_samples`, `smooth_examples` (of those
            read, spread evenly; the first ones of an iterator, which has no length), `noise_std`, `noise_scale`
            and `seed`; of single weights also `shift` and `dropout`.
        loss_function: `(model, batch) -> scalar mean loss`; default `model(**batch).loss`.
        disable_tqdm (`bool`): no progress bar.
        progress_file (*optional*): the running sums are written here every minute (with several processes, beside it),
            and a call with the same model, groups and config goes on from them, to the same scores bit for bit.

    Returns:
        `dict[str, Tensor]`: group name -> `torch.Tensor` of shape `(units,)`, float32 on the CPU, larger = keep. Of
            single weights, in the shape of the parameter.

    Raises:
        `ScoringError`: a single example does not fit into memory, or another process failed or died.
        `TypeError`: scores by a method of your own that are no tensors; an iterator where batches are read twice.
        `ValueError`: no groups, no batches, labels missing, scores that are NaN, infinite or all zero, or single
            weights of a sharded or offloaded model.
    """
    groups = [group for group in groups if group.kind in config.granularity]
    if not groups:
        raise ValueError(
            f"no groups of {' or '.join(config.granularity)} to score; find_groups(model, {config.granularity}) gives "
            "them"
        )
    if is_sharded(model):
        if WEIGHTS in config.granularity:
            raise ValueError(
                "single weights cannot be scored under FSDP, which averages their gradients over the processes' "
                "batches; score them under DDP"
            )
        reshard(model)
    body = body_of(model)
    for group in groups:
        check_group(body, group)
    parts = scoring_parts(groups, config)
    if len(parts) > 1:
        _check_read_twice(dataloader)
        keywords: dict[str, Any] = {"loss_function": loss_function, "disable_tqdm": disable_tqdm}
        (units, of_units), (tokens, of_tokens) = parts
        scores = score_groups(model, units, dataloader, of_units, **keywords, progress_file=progress_file)
        return scores | score_groups(model, tokens, dataloader, of_tokens, **keywords)
    path = next(path for path, part in model.named_modules() if part is body)
    listed, groups = groups, below(groups, path) if path else groups
    scorer = get_scorer(config.method, config.granularity)
    present = [group for group in groups if group.size * (1 if group.kind == WEIGHTS else group.output.width)]
    if scorer.source == "weights":
        generator = torch.Generator().manual_seed(config.seed)
        scores = {g.name: scorer.function(unit_weights(model, g), generator) for g in present}
    else:
        if dataloader is None:
            raise ValueError(f"the method {scorer.name!r} needs batches to score on, and dataloader is None")
        dropout = model.training and WEIGHTS in config.granularity if config.dropout is None else config.dropout
        sums = _running_sums(progress_file, model, present, config, dropout)
        examples = None if scorer.source == "tokens" else config.num_samples
        chosen = config.smooth_examples if scorer.smooth else None
        batches = limit(dataloader, examples, scorer.name, disable_tqdm, chosen)
        each_batch = partial(for_each_batch, model, batches, config.seed, sums)
        score = score_weights if WEIGHTS in config.granularity else SPECIAL.get(scorer.source, _score_units)
        # A compiled model would not see the hooks that watch it, or keep the noise of the first pass for all.
        with torch.compiler.set_stance("force_eager"), scoring_mode(model, dropout):
            loss = CheckedLoss(loss_function or model_loss, sums)
            scores = score(model, present, each_batch, sums, config, scorer, loss)
    for group in groups:
        shape = model.get_parameter(group.name).shape if group.kind == WEIGHTS else (group.size,)
        scores.setdefault(group.name, torch.zeros(shape))
    scores = {before.name: scores[group.name] for before, group in zip(listed, groups)} if path else scores
    check_scores(scores, listed, computed=True)
    return scores


def _check_read_twice(dataloader: Iterable[Batch] | None) -> None:
    if isinstance(dataloader, Iterator):
        raise TypeError(
            f"units and tokens are scored one after the other, so the batches are read twice, and this "
            f"{type(dataloader).__name__} gives them once: give a DataLoader or a list"
        )


def scoring_parts(
    groups: Sequence[PrunableGroup], config: PruningConfig
) -> list[tuple[list[PrunableGroup], PruningConfig]]:
    """What is scored by one method, and by which batches: the units of blocks, then the tokens, which are counted in
    all there are."""
    tokens = [group for group in groups if group.kind == VOCABULARY]
    units = [group for group in groups if group.kind != VOCABULARY]
    if not tokens or not units:
        return [([*groups], config)]
    kinds = [kind for kind in config.granularity if kind != VOCABULARY]
    return [
        (units, dataclasses.replace(config, granularity=kinds, min_frequency=None)),
        (tokens, PruningConfig(granularity=[VOCABULARY], sparsity=0.5, seed=config.seed)),  # which counts do not go by
    ]


def check_scores(scores: Scores, groups: Sequence[PrunableGroup], computed: bool = False) -> None:
    """Finds scores that no plan can be made of.

    Args:
        computed: a method gave them, where infinity is an overflow; in others it says "keep".

    Raises:
        `TypeError`: they are no tensors.
        `ValueError`: they are missing, of the wrong shape, of other groups, NaN, minus infinity (or infinity, if they
            were computed), or all zero for a kind.
    """
    for group in groups:
        if group.name not in scores:
            raise ValueError(
                f"no scores for the group {group.name!r}; there are scores for {list(scores)}"
                f"{nearest(group.name, set(scores) - {each.name for each in groups})}"
            )
        if not isinstance(scores[group.name], Tensor):
            raise TypeError(
                f"the scores of {group.name!r} should be a tensor, got {type(scores[group.name]).__name__}"
            )
        shape = tuple(scores[group.name].shape)
        if group.kind == WEIGHTS and math.prod(shape) != group.original_size:
            raise ValueError(
                f"the scores of {group.name!r} have shape {shape}; expected that of the parameter, with "
                f"{group.original_size} elements"
            )
        if group.kind != WEIGHTS and shape != (group.size,):
            raise ValueError(f"the scores of {group.name!r} have shape {shape}; expected ({group.size},), one a unit")
        # A sum is finite only if all is, unless it overflows; it takes one look at the memory.
        values = scores[group.name]
        if not math.isfinite(values.sum()) and not (torch.isfinite(values) if computed else values > -math.inf).all():
            raise ValueError(
                f"the scores of {group.name!r} are NaN or infinite; look for a NaN loss or weights, or overflow in "
                "half precision"
            )
    unknown = set(scores) - {group.name for group in groups}
    if unknown:
        raise ValueError(
            f"scores for groups that are not there: {sorted(unknown)}"
            f"{nearest(min(unknown), [group.name for group in groups])}"
        )
    for kind in sorted({group.kind for group in groups}):
        of_kind = [scores[group.name] for group in groups if group.kind == kind and group.size]
        if of_kind and not any(values.any() for values in of_kind):
            raise ValueError(
                f"all scores of kind {kind!r} are zero, so they rank nothing; look for a loss that does not depend on "
                "the model, or labels that are all ignored"
            )


def unit_weights(model: nn.Module, group: PrunableGroup) -> Tensor:
    """All weights and biases that go with each unit: `(units, weights of a unit)`; of single weights, the parameter
    in its own shape; float32, on the CPU."""
    if group.kind == WEIGHTS:
        with align_module_device(model.get_submodule(group.name.rpartition(".")[0])):
            return model.get_parameter(group.name).detach().float().cpu()
    columns = []
    for piece in group.slices:
        for module, name, place in places_of(model, piece.module, piece.axis):
            with align_module_device(module):  # in memory, if it is offloaded
                tensor = whole(getattr(module, name).detach()).movedim(place, 0)
                columns.append(piece.by_unit(tensor, group.size).float().cpu())
    return torch.cat(columns, dim=1)


DIVISOR = ".divisor"  # after the name of a sum: what a method gave to divide it by, in place of the examples


def _running_sums(
    path: str | Path | None,
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    config: PruningConfig,
    dropout: bool,
) -> RunningSums:
    if path is None:
        return RunningSums()
    state, names = (
        PartialState(),
        ("method", "num_samples", *NOISE, "shift", "seed"),
    )
    identity = {
        **{name: getattr(config, name) for name in names},
        "dropout": dropout,
        "groups": [(group.name, group.size) for group in groups],
        "weights": [checksum(parameter) for parameter in model.parameters()],
        "process": (state.process_index, state.num_processes),
    }
    path = Path(path)
    path = path if state.num_processes == 1 else path.with_name(f"{path.name}.{state.process_index}")
    return RunningSums(path, json.dumps(identity))


def checksum(parameter: Tensor) -> int:
    """A number for the bits of a parameter, of this process's share if it is sharded; 0 if it is offloaded."""
    if parameter.is_meta:
        return 0
    values = getattr(parameter, "_local_tensor", parameter).detach().contiguous()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return int(values.view(integers).sum(dtype=torch.int64))


def _score_units(
    model: PreTrainedModel,
    groups: list[PrunableGroup],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> Scores:
    divisors = [DIVISOR] * (scorer.source == "norms")
    sizes = {group.name + end: group.size for group in groups for end in ("", *divisors)}
    sizes |= {EXAMPLES: 1, SCORED: 1, SKIPPED: 1}
    for name, size in sizes.items():
        sums.values.setdefault(name, torch.zeros(size, dtype=torch.float64))

    noise, all_run = GaussianNoise(config.seed), scorer.source != "gradient" or is_sharded(model)

    def score(pieces: list[Batch]) -> Callable[[], None]:
        examples = sum(map(count_examples, pieces))
        found = [
            (SCORED, torch.ones(1, dtype=torch.float64)),
            (EXAMPLES, torch.tensor([float(examples)], dtype=torch.float64)),
        ]
        for piece, loss in each_loss(model, pieces, loss_function, all_run):
            for name, scores in _score_batch(model, capture, piece, config, scorer, loss, noise):
                found.append((name, scores.to(widest(scores.device)).sum(0)))
        if scorer.source == "gradient" and loss_function.of_nothing:
            found = [(SKIPPED, torch.ones(1, dtype=torch.float64))]

        def add() -> None:
            for name, value in found:
                sums.add(name, value)

        return add

    with ActivationCapture(model, groups, norms=scorer.source == "norms") as capture:
        each_batch(score)
    totals = sums.reduce(PartialState().device)
    tell_skipped(totals)
    by = {g.name: totals[g.name + DIVISOR].clamp(min=1) if divisors else totals[EXAMPLES] for g in groups}
    return {name: (totals[name] / divisor).float() for name, divisor in by.items()}


def _score_batch(
    model: PreTrainedModel,
    capture: ActivationCapture,
    batch: Batch,
    config: PruningConfig,
    scorer: Scorer,
    loss: Callable[[], Tensor],
    noise: GaussianNoise,
) -> Iterator[tuple[str, Tensor]]:
    """Yields the names of sums with the scores of one batch: `(batch, units)`."""
    size = count_examples(batch)
    scores: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}

    def score(group: PrunableGroup, activation: Tensor, gradient: Tensor | None) -> None:
        gradient = means.pop(group.name, gradient)
        tokens = mask_for(batch, group.name, model, size, activation.shape[1])
        found = scorer.function(activation, gradient, tokens.to(activation.device))
        names = (group.name, group.name + DIVISOR) if scorer.source == "norms" else (group.name,)
        for name, result in zip(names, found if scorer.source == "norms" else (found,)):
            if tuple(result.shape) != (size, group.size):
                raise ValueError(
                    f"the method {scorer.name!r} gave scores of shape {tuple(result.shape)}; expected (batch, units) "
                    f"= {(size, group.size)}"
                )
            scores[name] = result

    def average(group: PrunableGroup, activation: None, gradient: Tensor) -> None:
        means[group.name] = means.get(group.name, 0) + gradient / passes

    if scorer.source == "gradient" and not scorer.smooth:
        capture.gradients(loss, size, score)
    else:
        if scorer.smooth:
            passes, noisy = smoothing(model, config, noise)
            with noisy():
                for _ in range(passes):
                    capture.gradients(loss, size, average, activations=False)
        # The score itself is taken at the activations without noise. A module of one's own may take no keywords.
        capture.activations(loss if scorer.smooth else lambda: model(**batch), size, score)
    yield from scores.items()
