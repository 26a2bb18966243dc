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
"""Hidden states on their way through a model, block by block.

Every batch is a `Stream`. Blocks that run one after another and share nothing with those behind them are a `Stage`:
what leaves one goes into the next, so that going through all stages costs one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup
from ..architectures.modeling_camcut import list_blocks
from ..scoring.batches import Batch, count_examples, take, token_mask


HELD_OUT = 8  # one example of so many is held out


@dataclass
class Stream:
    """One batch on its way through a model: what goes into the next block."""

    hidden: Tensor  # (batch, tokens, hidden size)
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    mask: Tensor  # (batch, tokens), true at the real tokens; in the last block, at those that are read
    held_out: Tensor  # (batch, tokens), true in the examples that choose the damping


@dataclass
class Stage:
    """Blocks that run one after another and whose projections are solved together with all their calls: one block
    called once, but in ALBERT one block called many times."""

    blocks: list[str]
    groups: list[PrunableGroup]
    returned: int  # the length of the tuple that a block returns, hidden states first; 0 if it returns them alone


class _Stop(Exception):
    """Ends a forward pass early."""


def _hook(module: nn.Module, function: Callable[..., Any], pre: bool = False) -> Any:
    if pre:
        return module.register_forward_pre_hook(function, with_kwargs=True)
    return module.register_forward_hook(function)


@contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Decoders make no key-value cache, which would outlive its batch."""
    had, before = hasattr(model.config, "use_cache"), getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before
        if not had:
            del model.config.use_cache


def _forward_to_stop(model: PreTrainedModel, batch: Batch) -> None:
    device = next(model.parameters()).device
    try:
        model(**send_to_device(dict(batch), device))
    except _Stop:
        pass


def find_stages(model: PreTrainedModel, batch: Batch, groups: Sequence[PrunableGroup]) -> list[Stage]:
    """The order in which blocks run, cut where no block runs both before and after."""
    calls: list[str] = []
    lengths: dict[str, int] = {}
    with ExitStack() as stack:
        for path in list_blocks(model):

            def record(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
                calls.append(path)
                lengths[path] = len(output) if isinstance(output, tuple) else 0

            stack.callback(_hook(model.get_submodule(path), record).remove)
        _forward_to_stop(model, take(batch, 1))
    stages, start = [], 0
    for end in range(1, len(calls) + 1):
        if not set(calls[start:end]) & set(calls[end:]):
            blocks = calls[start:end]
            inside = [g for path in dict.fromkeys(blocks) for g in groups if g.output.module.startswith(f"{path}.")]
            stages.append(Stage(blocks, inside, lengths[blocks[0]]))
            start = end
    while not stages[-1].groups:
        stages.pop()
    return stages


def start_stream(model: PreTrainedModel, batch: Batch, number: int) -> Stream:
    """Runs a model up to its first block. `number` is that of the batch's first example among all."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        caught.append((arguments, dict(keywords)))
        raise _Stop

    handle = _hook(model.get_submodule(list_blocks(model)[0]), catch, pre=True)
    try:
        _forward_to_stop(model, batch)
    finally:
        handle.remove()
    arguments, keywords = caught[0]
    hidden, arguments = (keywords.pop("hidden_states"), ()) if not arguments else (arguments[0], arguments[1:])
    mask = token_mask(batch)
    mask = torch.ones(hidden.shape[:2]) if mask is None else mask.reshape(hidden.shape[:2])
    rows, examples = hidden.shape[0], count_examples(batch)  # choices of an example are rows of their own
    numbers = number + torch.arange(examples, device=hidden.device).repeat_interleave(rows // examples)
    held_out = (numbers % HELD_OUT == HELD_OUT - 1)[:, None].expand(hidden.shape[:2])
    return Stream(hidden, arguments, keywords, mask.to(hidden.device).bool(), held_out)


def run_stage(model: PreTrainedModel, stage: Stage, stream: Stream) -> Tensor:
    """The hidden states behind a stage."""
    hidden = stream.hidden
    for path in stage.blocks:
        output = model.get_submodule(path)(hidden, *stream.arguments, **stream.keywords)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def _residuals(model: PreTrainedModel, groups: Sequence[PrunableGroup]) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the residual stream that each projection's output is added to: group name -> one tensor a call."""
    streams: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    with ExitStack() as stack:
        for group in groups:

            def keep(module: nn.Module, args: tuple[Tensor, ...], keywords: Any, name: str = group.name) -> None:
                streams[name].append(args[0])

            assert group.residual is not None  # `find_groups` names it
            stack.callback(_hook(model.get_submodule(group.residual), keep, pre=True).remove)
        yield streams


def run_dense(dense_model: PreTrainedModel, stage: Stage, stream: Stream) -> dict[str, list[Tensor]]:
    """Moves a stream behind a stage; returns the residual stream after each projection: group name -> one tensor a
    call."""
    outputs: dict[str, list[Tensor]] = {group.name: [] for group in stage.groups}
    with ExitStack() as stack:
        residuals = stack.enter_context(_residuals(dense_model, stage.groups))
        for group in stage.groups:
            keep = lambda module, args, output, name=group.name: outputs[name].append(output)  # noqa: E731
            stack.callback(_hook(dense_model.get_submodule(group.output.module), keep).remove)
        stream.hidden = run_stage(dense_model, stage, stream)
    return {name: [r.float() + y.float() for r, y in zip(residuals[name], calls)] for name, calls in outputs.items()}


def select_read_tokens(
    model: PreTrainedModel,
    stage: Stage,
    batches: Sequence[Batch],
    streams: Sequence[Stream],
) -> None:
    """Leaves in the masks of streams only the tokens whose last hidden states reach the model's outputs."""
    for batch, stream in zip(batches, streams):
        hidden = stream.hidden.detach().requires_grad_()
        with torch.enable_grad(), _blocks_give(model, stage, hidden):
            outputs = model(**send_to_device(dict(batch), hidden.device))
            outputs = outputs if isinstance(outputs, tuple) else outputs.values()
            values = [v for v in outputs if isinstance(v, Tensor) and v.requires_grad and v.dim()]
            # At random, so that nothing cancels (the sum of what leaves a norm is constant).
            generator = torch.Generator("cpu").manual_seed(0)
            draws = [torch.rand(v.shape[-1], generator=generator, device="cpu").to(v) for v in values]
            sums = [(v @ draw).sum() for v, draw in zip(values, draws)]
            read = torch.autograd.grad(sums, hidden)[0].abs().sum(-1) > 0 if values else stream.mask
        real = read & stream.mask
        if torch.equal(real, stream.mask) and (real.sum(1) > 1).any():
            return  # all are read, and so it is in the other batches
        if real.any():
            stream.mask = real


@contextmanager
def _blocks_give(model: PreTrainedModel, stage: Stage, hidden: Tensor) -> Iterator[None]:
    """All blocks give these hidden states, and compute nothing."""
    given = (hidden, *[None] * (stage.returned - 1)) if stage.returned else hidden
    modules = [model.get_submodule(path) for path in list_blocks(model)]
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = lambda *_, **__: given
        yield
    finally:
        for module, forward in zip(modules, before):
            del module.forward
            if forward is not None:
                module.forward = forward


def inputs_of(
    model: PreTrainedModel, stage: Stage, group: PrunableGroup, stream: Stream, calls: int
) -> tuple[Tensor, Tensor]:
    """What a stage feeds into a projection, `(batch, calls * tokens, inputs)`, and the residual stream beside it,
    `(batch, calls * tokens, hidden size)`; calls stand side by side."""
    seen: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...], keywords: Any) -> None:
        seen.append(arguments[0])
        if len(seen) == calls:
            raise _Stop

    handle = _hook(model.get_submodule(group.output.module), catch, pre=True)
    with _residuals(model, [group]) as residuals:
        try:
            run_stage(model, stage, stream)
        except _Stop:
            pass
        finally:
            handle.remove()
    return torch.cat(seen, dim=1), torch.cat(residuals[group.name], dim=1)
