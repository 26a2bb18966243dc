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

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce as reduce_across_processes
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.groups import PrunableGroup
from ..architectures.structure import blocks_of, list_blocks
from ..scoring.batches import Batch, count_examples, mask_for, take
from ..utils.sharding import compute_device


logger = logging.getLogger(__name__)

HELD_OUT = 8  # one example of so many is held out


@dataclass
class Stream:
    """One batch on its way through a model: what goes into the next block."""

    hidden: Tensor  # (batch, tokens, hidden size)
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]  # block -> its other arguments, which may differ
    mask: Tensor  # (batch, tokens), true at the real tokens; in the last block, at those that are read
    held_out: Tensor  # (batch, tokens), true in the examples that choose the damping


@dataclass
class Stage:
    """Blocks that run one after another and whose projections are solved together with all their calls: one block
    called once, but in ALBERT one block called many times."""

    blocks: list[str]
    groups: list[PrunableGroup]
    lengths: Mapping[str, int]  # of the tuple that a block returns, hidden states first; 0 if it returns them alone


class Stop(Exception):
    """Ends a forward pass early."""


def hook_on(module: nn.Module, function: Callable[..., Any], pre: bool = False) -> Any:
    if pre:
        return module.register_forward_pre_hook(function, with_kwargs=True)
    return module.register_forward_hook(function)


@contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Decoders make no key-value cache, which would outlive its batch. Stacks may have a config of their own."""
    held = [vars(module).get("config") for module in model.modules()]
    configs = {id(config): config for config in (model.config, *held) if isinstance(config, PretrainedConfig)}
    before = {number: vars(config).get("use_cache") for number, config in configs.items()}
    had = {number for number, config in configs.items() if "use_cache" in vars(config)}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for number, config in configs.items():
            config.use_cache = before[number]
            if number not in had:
                del config.use_cache


def forward_to_stop(model: PreTrainedModel, batch: Batch) -> None:
    """Runs a model until something in it raises `Stop`, if it does."""
    try:
        model(**send_to_device(dict(batch), compute_device(model)))
    except Stop:
        pass


def find_stages(model: PreTrainedModel, batch: Batch, groups: Sequence[PrunableGroup]) -> list[list[Stage]]:
    """The order in which blocks run, cut where no block runs both before and after; one list for each stack, up to the
    last stage that has a group.

    Raises:
        `ValueError`: something else than a block changes what goes from one to the next."""
    calls: list[str] = []
    handed_on: dict[str, tuple[Any, ...]] = {}  # stack -> what its last block gave
    lengths: dict[str, int] = {}
    stack_of = {block.path: block.name.partition("layer.")[0] for block in blocks_of(model)}
    called: dict[str, None] = {}  # projections, in order
    with ExitStack() as stack:
        for path in dict.fromkeys(group.output.module for group in groups if group.observed == "inputs"):
            note = lambda module, args, output, path=path: called.setdefault(path)  # noqa: E731
            stack.callback(hook_on(model.get_submodule(path), note).remove)
        for path in stack_of:

            def record(module: nn.Module, args: Any, keywords: Any, output: Any, path: str = path) -> None:
                calls.append(path)
                lengths[path] = len(output) if isinstance(output, tuple | list) else 0
                gives = tuple(output) if lengths[path] else (output,)
                gets = (*args, *keywords.values())
                _check_handed_on(path, handed_on.get(stack_of[path]), gets)
                new = [each if not any(each is other for other in gets) else None for each in gives[1:]]
                later = stack_of[path] in handed_on  # what the first block makes for all is taken note of
                handed_on[stack_of[path]] = (gives[0], *(new if later else ()))

            stack.callback(model.get_submodule(path).register_forward_hook(record, with_kwargs=True).remove)
        forward_to_stop(model, take(batch, 1))
    stages, start = dict[str, list[Stage]](), 0
    order = {path: number for number, path in enumerate(called)}
    for end in range(1, len(calls) + 1):
        if not set(calls[start:end]) & set(calls[end:]):
            blocks = calls[start:end]
            of_blocks = [g for path in dict.fromkeys(blocks) for g in groups if g.output.module.startswith(f"{path}.")]
            inside = sorted(of_blocks, key=lambda group: order.get(group.output.module, len(order)))
            stages.setdefault(stack_of[blocks[0]], []).append(Stage(blocks, inside, lengths))
            start = end
    for of_stack in stages.values():
        while of_stack and not of_stack[-1].groups:
            of_stack.pop()
    return [of_stack for of_stack in stages.values() if of_stack]


def _check_handed_on(path: str, gave: tuple[Any, ...] | None, gets: tuple[Any, ...]) -> None:
    """Raises `ValueError` unless a block gets the hidden states that the last one gave, and nothing else of it."""
    if gave is None:
        return
    same = gets[0] is gave[0] or (isinstance(gave[0], Tensor) and torch.equal(gets[0], gave[0]))
    # No maps by head.
    streams = [each for each in gave[1:] if isinstance(each, Tensor) and each.dim() == gets[0].dim()]
    more = any(each is other for each in streams for other in gets)
    if not same or more:
        what = "a second stream goes from block to block" if more else "hidden states are changed between blocks"
        raise ValueError(
            f"{what}, before {path}: reconstruct goes block by block, so it cannot rebuild this model; leave it out"
        )


def start_stream(model: PreTrainedModel, stages: Sequence[Stage], batch: Batch, number: int) -> Stream:
    """Runs a model up to its first block, and through that if it hands on more than hidden states; the others tell
    what arguments they get, and compute nothing.

    Args:
        stages: those of the stack that the block begins.
        number: of the batch's first example among all.
    """
    first = stages[0].blocks[0]
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hidden: list[Tensor] = []
    left = {path for stage in stages for path in stage.blocks}
    modules = {path: model.get_submodule(path) for path in left}
    before = {path: module.__dict__.get("forward") for path, module in modules.items()}
    output: list[Any] = []

    def take_note(path: str, *arguments: Any, **keywords: Any) -> Any:
        state = keywords.pop("hidden_states") if not arguments else arguments[0]
        given.setdefault(path, (arguments[1:], keywords))
        left.discard(path)
        if path == first and not output:
            hidden.append(state)
        if not left:
            raise Stop
        if not output:
            whole = before[path] or partial(type(modules[path]).forward, modules[path])
            output.append(whole(state, *arguments[1:], **keywords) if stages[0].lengths[first] > 1 else state)
        return output[0]

    try:
        for path, module in modules.items():
            module.forward = partial(take_note, path)
        forward_to_stop(model, batch)
    finally:
        for path, module in modules.items():
            del module.forward
            if before[path] is not None:
                module.forward = before[path]
    state = hidden[0]
    mask = mask_for(batch, stages[0].groups[0].name if stages[0].groups else "", model, *state.shape[:2])
    rows, examples = state.shape[0], count_examples(batch)  # choices of an example are rows of their own
    numbers = number + torch.arange(examples, device=state.device).repeat_interleave(rows // examples)
    held_out = (numbers % HELD_OUT == HELD_OUT - 1)[:, None].expand(state.shape[:2])
    return Stream(state, given, mask.to(state.device).bool(), held_out)


def run_stage(model: PreTrainedModel, stage: Stage, stream: Stream) -> Tensor:
    """The hidden states behind a stage."""
    hidden = stream.hidden
    for path in stage.blocks:
        arguments, keywords = stream.given[path]
        output = model.get_submodule(path)(hidden, *arguments, **keywords)
        hidden = output[0] if isinstance(output, tuple | list) else output
    return hidden


@contextmanager
def _residuals(model: PreTrainedModel, groups: Sequence[PrunableGroup]) -> Iterator[dict[str, list[Tensor]]]:
    """Collects the residual stream that each projection's output is added to: group name -> one tensor a call; none
    where no module reads that stream."""
    streams: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    with ExitStack() as stack:
        for group in groups:

            def keep(module: nn.Module, args: tuple[Tensor, ...], keywords: Any, name: str = group.name) -> None:
                streams[name].append(args[0])

            if group.residual is None:
                continue
            stack.callback(hook_on(model.get_submodule(group.residual), keep, pre=True).remove)
        yield streams


def run_dense(dense_model: PreTrainedModel, stage: Stage, stream: Stream) -> dict[str, list[Tensor]]:
    """Moves a stream behind a stage; returns what should come out behind each projection: group name -> one tensor a
    call. That is the residual stream, or what the projection gives where no module reads that stream."""
    outputs: dict[str, list[Tensor]] = {group.name: [] for group in stage.groups}
    with ExitStack() as stack:
        residuals = stack.enter_context(_residuals(dense_model, stage.groups))
        for group in stage.groups:
            keep = lambda module, args, output, name=group.name: outputs[name].append(output)  # noqa: E731
            stack.callback(hook_on(dense_model.get_submodule(group.output.module), keep).remove)
        rows = len(stream.hidden)
        stream.hidden = run_stage(dense_model, stage, stream)
    found = {}
    for group in stage.groups:
        calls, before = by_row(outputs[group.name], rows), by_row(residuals[group.name], rows)
        factor = factor_of(dense_model, group)
        wanted = [r.float() + factor * y.float() for r, y in zip(before, calls)] if before else calls
        found[group.name] = [each.to(stream.hidden.device) for each in wanted]
    return found


def factor_of(model: nn.Module, group: PrunableGroup) -> Tensor | float:
    """What the output of a projection is multiplied by before it is added to the residual stream."""
    if group.residual is None or group.factor is None:
        return 1.0
    owner, _, name = group.factor.rpartition(".")
    factor = getattr(model.get_submodule(owner), name)
    return factor.float() if isinstance(factor, Tensor) else 1.0 if factor is None else factor


def by_row(calls: Sequence[Tensor], rows: int) -> list[Tensor]:
    """`(rows, tokens, features)`: some modules see all tokens in one row, or an image in windows."""
    return [call.reshape(rows, math.prod(call.shape[:-1]) // rows, call.shape[-1]) for call in calls]


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
    """The blocks of the last stack give these hidden states, those of others what they get; none computes anything."""
    last = [path for path in list_blocks(model) if path.rpartition(".")[0] == stage.blocks[0].rpartition(".")[0]]
    modules = {path: model.get_submodule(path) for path in list_blocks(model)}
    before = {path: module.__dict__.get("forward") for path, module in modules.items()}

    def give(path: str, *arguments: Any, **keywords: Any) -> Any:
        own = arguments[0] if arguments else keywords["hidden_states"]
        more = [None] * (stage.lengths.get(path, 0) - 1)
        given = hidden if path in last else own
        return (given, *more) if stage.lengths.get(path, 0) else given

    try:
        for path, module in modules.items():
            module.forward = partial(give, path)
        yield
    finally:
        for path, module in modules.items():
            del module.forward
            if before[path] is not None:
                module.forward = before[path]


def inputs_of(
    model: PreTrainedModel, stage: Stage, group: PrunableGroup, stream: Stream, calls: int
) -> tuple[Tensor, Tensor]:
    """What a stage feeds into a projection, `(batch, calls * tokens, inputs)`, and the residual stream beside it,
    `(batch, calls * tokens, hidden size)`, or 0 where no module reads that; calls stand side by side."""
    seen: list[Tensor] = []

    def catch(module: nn.Module, arguments: tuple[Tensor, ...], keywords: Any) -> None:
        seen.append(arguments[0])
        if len(seen) == calls:
            raise Stop

    handle = hook_on(model.get_submodule(group.output.module), catch, pre=True)
    with _residuals(model, [group]) as residuals:
        try:
            run_stage(model, stage, stream)
        except Stop:
            pass
        finally:
            handle.remove()
    rows, found = len(stream.hidden), residuals[group.name]
    zero = torch.zeros((), device=seen[0].device)
    return torch.cat(by_row(seen, rows), dim=1), torch.cat(by_row(found, rows), dim=1) if found else zero


def warn_of_few(streams: Sequence[Stream], models: Sequence[PreTrainedModel], stages: Sequence[Stage]) -> None:
    """Says so where a projection of some stages has more inputs than there are tokens to fit it to.

    Args:
        streams: of this process, which has a share of all.
    """
    tokens = torch.tensor(sum(int(stream.mask.sum()) for stream in streams))
    if PartialState().num_processes > 1:
        tokens = reduce_across_processes(tokens.to(PartialState().device), "sum")
    paths = [group.output.module for stage in stages for group in stage.groups if group.observed == "inputs"]
    found = [
        modules[path]
        for modules in (dict(model.named_modules()) for model in models)
        for path in paths
        if path in modules
    ]
    widest = max((int(module.weight.shape[not isinstance(module, Conv1D)]) for module in found), default=0)
    if tokens < widest and PartialState().is_main_process:
        logger.warning(
            "a rebuild from %d tokens, fewer than the %d inputs of the widest projection, fits these tokens alone: "
            "give several times as many",
            tokens,
            widest,
        )
