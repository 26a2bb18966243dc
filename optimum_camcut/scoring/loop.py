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

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.utils import gather as gather_across_processes
from accelerate.utils import reduce as reduce_across_processes
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config import PruningConfig
from ..groups import WEIGHTS, PrunableGroup, check_group
from ..sharding import compute_device, is_sharded, reshard, whole
from .capture import ActivationCapture
from .noise import GaussianNoise, linear_noise
from .registry import Scorer, get_scorer
from .sums import RunningSums
from .weights import score_weights


logger = logging.getLogger(__name__)

Scores = dict[str, Tensor]
Batch = Mapping[str, Any]
LossFunction = Callable[[PreTrainedModel, Batch], Tensor]


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
        model (`PreTrainedModel`): not wrapped for distributed training, but for `fully_shard` (FSDP2), which leaves it
            a transformers model.
        groups (`Sequence[PrunableGroup]`): from `find_groups(model)`; those of `config.granularity` are scored.
        dataloader (`Iterable[Batch]`): dicts of tensors as the model takes them, with labels where the method needs
            a loss. Read up to `config.num_samples` examples. `magnitude` and `random` need none: pass None.
        config (`PruningConfig`): `method`, `num_samples`, `smooth_samples`, `noise_std`, `noise_scale` and `seed`.
        loss_function: `(model, batch) -> scalar mean loss`; default `model(**batch).loss`.
        disable_tqdm (`bool`): no progress bar.
        progress_file (*optional*): the running sums are written here every minute (with several processes, beside it),
            and a call with the same model, groups and config goes on from them, to the same scores bit for bit.

    Returns:
        `dict[str, Tensor]`: group name -> `torch.Tensor` of shape `(units,)`, float32 on the CPU, larger = keep. Of
            single weights, in the shape of the parameter.

    Raises:
        `ValueError`: no groups, no batches, labels missing, scores that are NaN, infinite or all zero, or single
            weights of a sharded model.
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
    for group in groups:
        check_group(model, group)
    scorer = get_scorer(config.method, config.granularity)
    present = [group for group in groups if group.size * (1 if group.kind == WEIGHTS else group.output.width)]
    if scorer.source == "weights":
        generator = torch.Generator().manual_seed(config.seed)
        scores = {g.name: scorer.function(unit_weights(model, g).float().cpu(), generator) for g in present}
    else:
        if dataloader is None:
            raise ValueError(f"the method {scorer.name!r} needs batches to score on, and dataloader is None")
        score = score_weights if WEIGHTS in config.granularity else _score_units
        dropout = model.training and WEIGHTS in config.granularity if config.dropout is None else config.dropout
        sums = _running_sums(progress_file, model, present, config, dropout)
        batches = _own_batches(model, dataloader, config, dropout, sums, disable_tqdm)
        with scoring_mode(model, dropout), closing(batches):  # an error must not leave it in mid-batch
            loss = _checked(loss_function or _model_loss, sums)
            scores = score(model, present, batches, sums, config, scorer, loss)
    for group in groups:
        shape = model.get_parameter(group.name).shape if group.kind == WEIGHTS else (group.size,)
        scores.setdefault(group.name, torch.zeros(shape))
    check_scores(scores, groups)
    return scores


def check_scores(scores: Scores, groups: Sequence[PrunableGroup]) -> None:
    """Raises `ValueError` if scores are missing, of the wrong shape, NaN, infinite, or all zero for a kind."""
    for group in groups:
        if group.name not in scores:
            raise ValueError(f"no scores for the group {group.name!r}; there are scores for {list(scores)}")
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
        if not math.isfinite(scores[group.name].sum()) and not torch.isfinite(scores[group.name]).all():
            raise ValueError(
                f"the scores of {group.name!r} are NaN or infinite; look for a NaN loss or weights, or overflow in "
                "half precision"
            )
    unknown = set(scores) - {group.name for group in groups}
    if unknown:
        raise ValueError(f"scores for groups that are not there: {sorted(unknown)}")
    for kind in sorted({group.kind for group in groups}):
        values = [scores[group.name] for group in groups if group.kind == kind and group.size]
        if values and not any(value.any() for value in values):
            raise ValueError(
                f"all scores of kind {kind!r} are zero, so they rank nothing; look for a loss that does not depend on "
                "the model, or labels that are all ignored"
            )


def unit_weights(model: nn.Module, group: PrunableGroup) -> Tensor:
    """All weights and biases that go with each unit: `(units, weights of a unit)`; of single weights, the parameter
    in its own shape."""
    if group.kind == WEIGHTS:
        return model.get_parameter(group.name).detach()
    columns = []
    for piece in group.slices:
        module = model.get_submodule(piece.module)
        matrix = whole(module.weight.detach())
        matrix = matrix if (piece.axis == "in") == isinstance(module, Conv1D) else matrix.T  # cut axis first
        tensors = [matrix]
        if piece.axis == "out" and module.bias is not None:
            tensors.append(whole(module.bias.detach())[:, None])
        for tensor in tensors:
            by_unit = tensor.reshape(piece.blocks, group.size, piece.width, -1).transpose(0, 1)
            columns.append(by_unit.reshape(group.size, -1))
    return torch.cat(columns, dim=1)


def _model_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    loss = model(**batch).loss
    if loss is None:
        raise ValueError(
            f"the model gave no loss for a batch with {sorted(batch)}; this scoring method needs the labels in the "
            "batch (or use activation, wanda, magnitude or random, which need none)"
        )
    return loss


def _checked(loss_function: LossFunction, sums: RunningSums) -> LossFunction:
    """The loss function, refusing a loss that would spoil all scores."""

    def checked(model: PreTrainedModel, batch: Batch) -> Tensor:
        loss = loss_function(model, batch)
        if not torch.isfinite(loss).all():
            number = sums.batches * PartialState().num_processes + PartialState().process_index
            raise ValueError(
                f"the loss of scoring batch {number} is {loss.tolist()}, with which all scores are NaN or infinite; "
                "look for a NaN loss or weights, or overflow in half precision"
            )
        return loss

    return checked


def _own_batches(
    model: PreTrainedModel,
    dataloader: Iterable[Batch],
    config: PruningConfig,
    dropout: bool,
    sums: RunningSums,
    disable_tqdm: bool,
) -> Iterator[tuple[Batch, int]]:
    """This process's share of the batches, on the model's device, each with a seed.

    Seeds go by what is scored, not by who scores it: any number of processes draws the same noise and dropout.

    A pass through a sharded model is a joint one. Then a process also gets batches that others still have to score
    when it has none left or has scored that one before; what comes of these is not counted.
    """
    state, device, index, done = PartialState(), compute_device(model), -1, sums.batches
    together, first = is_sharded(model) and state.num_processes > 1, done
    if together:
        first = int(gather_across_processes(torch.tensor([done], device=device)).min())
    for index, batch in enumerate(limit(dataloader, config.num_samples, config.method, disable_tqdm)):
        turn = index // state.num_processes
        if index % state.num_processes == state.process_index and turn >= first:
            seed = config.seed * 1_000_003 + index
            with (
                _random_state(device, seed) if dropout else nullcontext(),
                _unchanged(sums) if turn < done else nullcontext(),
            ):
                yield send_to_device(dict(batch), device), seed
            if turn >= done:
                sums.end_batch()
    if index < 0:
        raise ValueError("the dataloader gave no batches: there is nothing to score on")
    if together and turn >= first and index % state.num_processes < state.process_index:
        with _random_state(device, 0), _unchanged(sums):
            yield send_to_device(dict(batch), device), 0
    sums.save()


@contextmanager
def _unchanged(sums: RunningSums) -> Iterator[None]:
    """Forgets what is added to the sums inside."""
    values = {name: value.clone() for name, value in sums.values.items()}
    yield
    sums.values = values


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
        ("method", "num_samples", "smooth_samples", "noise_std", "noise_scale", "shift", "seed"),
    )
    identity = {
        **{name: getattr(config, name) for name in names},
        "dropout": dropout,
        "groups": [(group.name, group.size) for group in groups],
        "weights": sum(float(whole(p.detach().double().sum())) for p in model.parameters()),
        "process": (state.process_index, state.num_processes),
    }
    path = Path(path)
    path = path if state.num_processes == 1 else path.with_name(f"{path.name}.{state.process_index}")
    return RunningSums(path, json.dumps(identity))


@contextmanager
def _random_state(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def _score_units(
    model: PreTrainedModel,
    groups: list[PrunableGroup],
    batches: Iterable[tuple[Batch, int]],
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: LossFunction,
) -> Scores:
    device = compute_device(model)
    for name, size in [*((group.name, group.size) for group in groups), ("examples", 1)]:
        sums.values.setdefault(name, torch.zeros(size, dtype=torch.float64))
    with ActivationCapture(model, groups) as capture:
        for batch, seed in batches:
            size = count_examples(batch)
            sums.add("examples", torch.full((1,), size, dtype=torch.float64, device=device))
            for name, score in _score_batch(model, capture, batch, size, config, scorer, loss_function, seed):
                sums.add(name, score.double().sum(0))
    total = torch.cat([sums.values[name].to(device) for name in [*(group.name for group in groups), "examples"]])
    if PartialState().num_processes > 1:
        total = reduce_across_processes(total, "sum")
    parts = (total[:-1] / total[-1]).float().cpu().split([group.size for group in groups])
    return {group.name: part.clone() for group, part in zip(groups, parts)}


def _score_batch(
    model: PreTrainedModel,
    capture: ActivationCapture,
    batch: Batch,
    size: int,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: LossFunction,
    seed: int,
) -> Iterator[tuple[str, Tensor]]:
    """Yields group names with the scores of one batch: `(batch, units)`."""
    mask = token_mask(batch, compute_device(model))
    scores: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}

    def score(group: PrunableGroup, activation: Tensor, gradient: Tensor | None) -> None:
        gradient = means.pop(group.name, gradient)
        tokens = activation.new_ones(activation.shape[:2])
        if mask is not None:
            tokens = mask.repeat(1, tokens.numel() // mask.numel()).reshape(size, -1)
        result = scorer.function(activation, gradient, tokens)
        if tuple(result.shape) != (size, group.size):
            raise ValueError(
                f"the method {scorer.name!r} gave scores of shape {tuple(result.shape)}; expected (batch, units) = "
                f"{(size, group.size)}"
            )
        scores[group.name] = result

    def average(group: PrunableGroup, activation: None, gradient: Tensor) -> None:
        means[group.name] = means.get(group.name, 0) + gradient / config.smooth_samples

    def loss() -> Tensor:
        return loss_function(model, batch) * size  # the sum over examples: each keeps its own gradient

    if scorer.source == "gradient" and not scorer.smooth:
        capture.gradients(loss, size, score)
    else:
        if scorer.smooth:
            noise = GaussianNoise(seed)
            body = model.base_model if isinstance(model, PreTrainedModel) else model
            with linear_noise(body, config.noise_std, config.noise_scale == "relative", noise):
                for _ in range(config.smooth_samples):
                    capture.gradients(loss, size, average, activations=False)
        # The score itself is taken at the activations without noise.
        capture.activations(lambda: model(**batch), size, score)
    yield from scores.items()


def limit(
    dataloader: Iterable[Batch], num_samples: int | None, description: str, disable_tqdm: bool
) -> Iterator[Batch]:
    """Yields batches until `num_samples` examples have gone by, with a progress bar on the main process.

    Raises:
        `TypeError`: a batch is not a dict of tensors.
        `ValueError`: the loader is prepared by accelerate for several processes.
    """
    shared_out = isinstance(dataloader, DataLoaderStateMixin) or isinstance(
        getattr(dataloader, "sampler", None), DistributedSampler
    )
    if PartialState().num_processes > 1 and shared_out:
        raise ValueError(
            "give every process all batches, as before `accelerator.prepare` and without a DistributedSampler: the "
            "processes share them out themselves"
        )
    disable = disable_tqdm or not PartialState().is_local_main_process
    total = num_samples
    if isinstance(dataloader, DataLoader) and isinstance(dataloader.dataset, Sized):
        total = min(len(dataloader.dataset), num_samples or len(dataloader.dataset))
    elif isinstance(dataloader, list):
        examples = sum(count_examples(batch) for batch in dataloader)
        total = min(examples, num_samples or examples)
    with tqdm(total=total, desc=description, unit="example", disable=disable, leave=False) as bar:
        count = 0
        for batch in dataloader:
            size = count_examples(batch)
            if size == 0:
                continue
            if num_samples is not None and size > num_samples - count:
                size = num_samples - count
                batch = take(batch, size)
            yield batch
            count += size
            bar.update(size)
            if num_samples is not None and count >= num_samples:
                return


def count_examples(batch: Batch) -> int:
    """Length of the first dimension of a batch's tensors.

    Raises:
        `TypeError`: not a dict of tensors.
    """
    tensors = [v for v in batch.values() if isinstance(v, Tensor) and v.dim()] if isinstance(batch, Mapping) else []
    if not tensors:
        raise TypeError(f"expected batches that are dicts of tensors, got {type(batch).__name__}: {str(batch)[:80]}")
    return tensors[0].shape[0]


def take(batch: Batch, number: int) -> dict[str, Any]:
    """The first examples of a batch."""
    return {name: v[:number] if isinstance(v, Tensor) and v.dim() else v for name, v in batch.items()}


def token_mask(batch: Batch, device: torch.device) -> Tensor | None:
    """1.0 at real tokens, 0.0 at padding: `(sequences, tokens)`, each choice of an example a sequence. None if the
    batch has neither a mask nor the usual inputs: then every token is real."""
    mask = batch.get("attention_mask")
    if mask is None and batch.get("input_ids") is not None:
        mask = torch.ones_like(batch["input_ids"])
    if mask is None and batch.get("inputs_embeds") is not None:
        mask = torch.ones_like(batch["inputs_embeds"][..., 0])
    return None if mask is None else mask.to(device).reshape(-1, mask.shape[-1]).float()


@contextmanager
def scoring_mode(model: nn.Module, dropout: bool = False) -> Iterator[None]:
    """Evaluation mode (training mode with `dropout`) with all parameters frozen and without gradient checkpointing,
    which would draw other noise when it runs layers again; afterwards every module and parameter is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train(dropout)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # its statistics are not dropout
    for module in checkpointing:
        module.gradient_checkpointing = False
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in checkpointing:
            module.gradient_checkpointing = True
        for module, mode in modes:
            module.training = mode
