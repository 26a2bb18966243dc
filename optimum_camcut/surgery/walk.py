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
"""Goes through a stage with all batches, and stops in front of each projection until it is solved.

A batch that has come to a projection waits there, in the middle of its forward pass, as a greenlet: behind the solved
projection it goes on from where it was, so that a stage is computed once, whatever stands in it. Without the library
of that name each stop is a pass of its own, which gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup
from .streams import Stage, Stream, by_row, hook_on, inputs_of, run_stage


try:
    from greenlet import getcurrent, greenlet
except ImportError:
    getcurrent, greenlet = None, object

Given = Iterable[tuple[Tensor, Tensor]]  # of each batch, what flows into a projection, and the stream beside it


def walk(
    model: PreTrainedModel,
    stage: Stage,
    groups: Sequence[PrunableGroup],
    streams: Sequence[Stream],
    calls: int,
    once: bool,
    to_end: bool,
) -> Iterator[tuple[PrunableGroup, Given]]:
    """Moves streams behind a stage; on the way, gives each group with what flows into its projection, as `inputs_of`.
    What comes behind is computed with the weights that the projection has when the next one is asked for.

    Args:
        groups: whose projections to stop at, in the order in which they are called.
        calls: of each projection in one pass.
        once (`bool`): batches wait at a projection, which is called once. Else each stop is a pass of its own, and no
            more is kept than the hidden states.
        to_end (`bool`): whether to go on behind the last of them.
    """
    if once and groups and getcurrent is not None:
        yield from _walk_once(model, stage, groups, streams, to_end)
        return
    for group in groups:
        yield group, (inputs_of(model, stage, group, stream, calls) for stream in streams)
    for stream in streams if to_end else ():
        stream.hidden = run_stage(model, stage, stream)


class _Walk(greenlet):
    """One batch on its way."""

    def __init__(self, model: PreTrainedModel, stage: Stage, stream: Stream) -> None:
        super().__init__(lambda: run_stage(model, stage, stream))
        self.beside: dict[str, Tensor] = {}  # the residual stream of a group, as soon as it has been read

    def end(self) -> None:
        """Leaves the pass where it is: the frames of a greenlet that waits would keep the model for ever."""
        if not self.dead:
            self.throw()


def _walk_once(
    model: PreTrainedModel, stage: Stage, groups: Sequence[PrunableGroup], streams: Sequence[Stream], to_end: bool
) -> Iterator[tuple[PrunableGroup, Given]]:
    with ExitStack() as stack:
        for group in groups:

            def read(module: nn.Module, args: Sequence[Any], keywords: Any, name: str = group.name) -> None:
                here = getcurrent()
                if isinstance(here, _Walk):
                    here.beside[name] = args[0]

            def stop(module: nn.Module, args: Sequence[Any], keywords: Any, name: str = group.name) -> None:
                here = getcurrent()
                if isinstance(here, _Walk):  # to solve a projection calls it too
                    here.parent.switch((name, args[0]))

            if group.residual is not None:
                stack.callback(hook_on(model.get_submodule(group.residual), read, pre=True).remove)
            stack.callback(hook_on(model.get_submodule(group.output.module), stop, pre=True).remove)
        walks = [_Walk(model, stage, stream) for stream in streams]
        for walk in walks:
            stack.callback(walk.end)
        for group in groups:
            yield group, [_come_to(group, walk, stream) for walk, stream in zip(walks, streams)]
        for walk, stream in zip(walks, streams) if to_end else ():
            stream.hidden = walk.switch()


def _come_to(group: PrunableGroup, walk: _Walk, stream: Stream) -> tuple[Tensor, Tensor]:
    stopped = walk.switch()
    if not isinstance(stopped, tuple) or stopped[0] != group.name:
        raise RuntimeError(f"{group.output.module} was not called, or not once and in its turn: please report this")
    rows, values, beside = len(stream.hidden), stopped[1], walk.beside.pop(group.name, None)
    zero = torch.zeros((), device=values.device)
    return by_row([values], rows)[0], zero if beside is None else by_row([beside], rows)[0]
