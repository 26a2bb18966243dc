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
"""Sums over the scoring batches, which outlive the process that computes them."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import reduce as reduce_across_processes
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..utils.files import replacing


logger = logging.getLogger(__name__)

SMALL = 2**22  # numbers that the processes add up in one go
LOST = ".lost"  # after the name of a sum: what rounding has lost of it


def widest(device: torch.device) -> torch.dtype:
    """What to sum in, so that the order of the additions hardly matters: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class RunningSums:
    """Sums by name, written to a file now and then, from which an interrupted run goes on.

    The order of the additions is the same with and without an interruption, and so is every bit of the result.

    Args:
        path: the file of this process. None keeps the sums in memory only.
        identity (`str`): what the sums are of; a file with another identity is not read.
        seconds (`float`): between two writes.
    """

    def __init__(self, path: Path | None = None, identity: str = "", seconds: float = 60.0) -> None:
        self.path, self.identity, self.seconds = path, identity, seconds
        self.values: dict[str, Tensor] = {}
        self._reserved: dict[str, Tensor] = {}  # memory for sums to come
        self.batches = 0
        self.seen = self._checked = 0  # what stands for the batches that are in the sums, and for those looked at
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def on(self, name: str, like: Tensor) -> Tensor:
        """The sum of a name, to be added to in place: in the shape and on the device of a tensor, zeros at first."""
        before = self.values.get(name)
        if before is None:
            before = torch.zeros(like.shape, device=like.device, dtype=widest(like.device))
        self.values[name] = before = before.to(like.device, widest(like.device))
        return before

    def add(self, name: str, value: Tensor) -> None:
        self.on(name, value).add_(value)

    def reserve_rows(self, name: str, like: Tensor, compact: bool) -> None:
        """Takes the memory for a sum that is as large as a parameter; before all else, so that it leaves no gaps.

        Args:
            like: the parameter; the sum has its shape and device.
            compact (`bool`): in 6 bytes an element in place of 8: float32, and in bfloat16 what rounding has lost
                (two-sum, Knuth, TAOCP 4.2.2). Twice the work, and as good as 27 bits.
        """
        dtypes = {name: torch.float32, name + LOST: torch.bfloat16} if compact else {name: widest(like.device)}
        for key, dtype in dtypes.items():
            if key in self.values:
                self.values[key] = self.values[key].to(like.device)
            else:
                self._reserved[key] = torch.empty(like.shape, device=like.device, dtype=dtype)

    def add_rows(self, name: str, parts: Iterable[tuple[slice, Tensor]]) -> None:
        """Adds to a reserved sum.

        Args:
            parts: all its rows, some at a time, and what to add to them, which is overwritten.
        """
        first = name in self._reserved  # nothing to read yet, and to write zeros would take longer than to add
        for key in (name, name + LOST):
            if key in self._reserved:
                self.values[key] = self._reserved.pop(key)
        total, lost = self.values[name], self.values.get(name + LOST)
        if first and lost is not None:
            lost.zero_()
        for rows, value in parts:
            if first:
                total[rows].copy_(value)
            elif lost is None:
                total[rows].add_(value)
            else:
                before = total[rows]
                after = before + value
                rest = after - before
                lost[rows].add_(before.sub_(after - rest).add_(value.sub_(rest)))
                before.copy_(after)

    def reduce_rows(self, device: torch.device) -> dict[str, Tensor]:
        """As `reduce`, one sum at a time and in float32; the sums are used up."""
        device = device if widest(device) == torch.float64 else torch.device("cpu")
        self.values |= {name: total.zero_() for name, total in self._reserved.items()}  # nothing came for them
        self._reserved = {}
        totals = {}
        for name in sorted(name for name in self.values if not name.endswith(LOST)):
            total = self.values.pop(name).to(device, torch.float64)
            if name + LOST in self.values:
                total = total + self.values.pop(name + LOST).to(device)
            if PartialState().num_processes > 1:
                dist.all_reduce(total)
            totals[name] = total.float().cpu()
        return totals

    def reduce(self, device: torch.device) -> dict[str, Tensor]:
        """The sums over all processes, on the CPU, by name; every process should call it, once.

        Args:
            device: on which the processes exchange tensors.
        """
        if PartialState().num_processes == 1:
            return {name: value.cpu() for name, value in self.values.items()}
        names = sorted(self.values)
        values = [self.values[name].to(device, widest(device)).flatten() for name in names]
        sizes = [len(value) for value in values]
        if sum(sizes) <= SMALL:
            values = reduce_across_processes(torch.cat(values), "sum").split(sizes)
        else:
            for value in values:  # in place: together they would need their memory twice
                dist.all_reduce(value)
        return {name: value.reshape(self.values[name].shape).cpu() for name, value in zip(names, values)}

    def end_batch(self, batch: Mapping[str, Any]) -> None:
        """Says that all of a batch is in the sums."""
        self.batches += 1
        self.seen = digest(batch, self.seen) if self.path is not None else 0
        if self.path is not None and time.monotonic() - self._saved >= self.seconds:
            self.save()

    def check(self, batch: Mapping[str, Any] | None, number: int) -> None:
        """Looks at a batch that is in the sums already, the first of which has the number 0; None: there is no more.

        Raises:
            `ValueError`: after the last of them, if they are not those that were added.
        """
        if batch is not None:
            self._checked = digest(batch, self._checked)
        missing = batch is None and number < self.batches
        if missing or (number + 1 == self.batches and self._checked != self.seen):
            raise ValueError(
                f"{self.path} holds scores of {self.batches} other batches than those that come now: give the same "
                "data in batches of the same size, or remove the file to start over"
            )

    def save(self) -> None:
        if self.path is None:
            return
        metadata = {"identity": self.identity, "batches": str(self.batches), "seen": str(self.seen)}
        values = {name: value.detach().cpu().contiguous() for name, value in self.values.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial:
                save_file(values, partial, metadata=metadata)
        except OSError as error:  # no reason to lose hours of scoring
            logger.warning("scoring goes on, but would not go on from here after an interruption: %s", error)
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != self.identity:
                    logger.warning("%s is of another model or config: scoring starts from the beginning", path)
                    return
                batches, seen = int(metadata["batches"]), int(metadata["seen"])
                values = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("%s cannot be read (%r): scoring starts from the beginning", path, error)
            return
        self.values, self.batches, self.seen = values, batches, seen
        logger.info("scoring goes on after %d batches, from %s", self.batches, path)


def digest(tensors: Mapping[str, Any], before: int = 0) -> int:
    """A number for the tensors by name of a batch, say, and of those before it."""
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            values = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            before = zlib.crc32(values.numpy().data, zlib.crc32(f"{name}{tuple(value.shape)}".encode(), before))
    return before
