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
"""Several processes that score together: all of them come to the end, or none does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import PartialState

from .errors import ScoringError


@contextmanager
def all_or_none() -> Iterator[None]:
    """What every process does in this context, all of them do or none: at its end each waits for the others, and fails
    if one of them failed. What is reduced next is there on all of them.

    Raises:
        `ScoringError`: another process failed or died; its own output has the reason.
    """
    state = PartialState()
    if state.num_processes == 1:
        yield
        return
    failed = torch.zeros(state.num_processes, device=state.device)
    try:
        yield
    except Exception:
        failed[state.process_index] = 1
        dist.all_reduce(failed, async_op=True)  # the others come to it later; this error is for now
        raise
    try:
        dist.all_reduce(failed)
    except RuntimeError as error:
        raise ScoringError(
            "another process died while scoring: see its output, and start all of them again"
        ) from error
    if failed.any():
        numbers = ", ".join(map(str, failed.nonzero().flatten().tolist()))
        raise ScoringError(f"scoring failed in another process (number {numbers}): see the error in its output")
