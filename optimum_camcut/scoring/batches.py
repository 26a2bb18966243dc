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
"""The batches to score on: how many, shared out among the processes, in pieces that fit into memory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.data_loader import DataLoaderStateMixin
from accelerate.utils import find_executable_batch_size, gather, send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler
from tqdm.auto import tqdm

from ..architectures.groups import body_of
from ..utils.errors import ScoringError
from ..utils.processes import all_or_none
from ..utils.sharding import is_sharded
from .sums import RunningSums


logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]

TOGETHER = 32  # examples of a batch that are worth a pass, where not all are taken


@dataclass
class MappedBatches:
    """The batches of a loader, each changed by a function."""

    batches: Iterable[Batch]
    function: Callable[[Batch], Batch]

    def __iter__(self) -> Iterator[Batch]:
        return map(self.function, self.batches)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # if the loader has one


def for_each_batch(
    model: nn.Module,
    batches: Iterable[Batch],
    seed: int,
    sums: RunningSums,
    score: Callable[[list[Batch]], Callable[[], None]],
) -> None:
    """Scores this process's share of the batches, from where the sums stopped.

    Random numbers go by what is scored, not by who scores it: any number of processes draws the same noise and
    dropout. A batch that does not fit into memory is scored again in pieces of half the size, and so are later ones.

    A pass through a sharded model is a joint one. Then a process also gets batches that others still have to score
    when it has none left or has scored that one before; what comes of these is not counted.

    Args:
        model: whose random state to set, on all devices it is on.
        batches: the same on every process.
        seed (`int`): torch draws by this and the number of the batch while it is scored.
        sums (`RunningSums`): is told when a batch is done.
        score: from the pieces of a batch to what adds the scores to the sums; it may be called again.

    Raises:
        `ScoringError`: a single example does not fit into memory, or another process failed.
        `ValueError`: there are no batches, or not those that the sums are of.
    """
    joint = is_sharded(model)
    devices = [PartialState().device] if joint else list(dict.fromkeys(p.device for p in model.parameters()))
    # Accelerate's hooks move what goes into a model that it has spread over several devices, or offloaded.
    target = devices[0] if len(devices) == 1 and devices[0].type != "meta" else None
    seeded = [device for device in devices if device.type not in ("cpu", "meta")]
    size, current, own = sys.maxsize, 0, _share(batches, sums, joint and PartialState().num_processes > 1)

    def halve() -> int:
        nonlocal size
        size = min(size, current) // 2
        if joint:
            raise ScoringError("out of memory while scoring a model that is sharded by FSDP: give smaller batches")
        if size == 0:
            raise ScoringError(
                "a single example does not fit into memory while scoring: give shorter ones, turn gradient "
                "checkpointing on, or load the model with a device_map that offloads it"
            )
        logger.warning("out of memory while scoring: trying again with %d examples at once", size)
        return size

    def attempt(batch_size: int, number: int, batch: Batch) -> Callable[[], None]:
        pieces = [send_to_device(piece, target) if target else piece for piece in split(batch, batch_size)]
        with random_state(seeded, seed * 1_000_003 + number):
            return score(pieces)

    # An error must not leave the progress bar. In joint passes the others notice by themselves that one is missing.
    with nullcontext() if joint else all_or_none(), closing(own):
        for number, batch, counts in own:
            add: Callable[[], None] | None = None  # lets go of what the batch before takes
            failed, current = False, count_examples(batch)
            try:
                add = attempt(size, number, batch)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                failed = True
                if min(size, current) == 1 or joint:
                    halve()  # raises, with this error as the reason
            if failed:  # out of the handler, which holds on to the memory
                add = find_executable_batch_size(attempt, halve(), halve)(number, batch)
            if counts and add:
                add()
                sums.end_batch(batch)
        sums.save()


def _share(
    batches: Iterable[Batch], sums: RunningSums, together: bool
) -> Generator[tuple[int, Batch, bool], None, None]:
    """The batches of this process that are not in the sums, with their numbers and whether they count. `together`, all
    processes get as many."""
    state, done, number = PartialState(), sums.batches, -1
    first = int(gather(torch.tensor([done], device=state.device)).min()) if together else done
    for number, batch in enumerate(batches):
        turn, owner = divmod(number, state.num_processes)
        if owner == state.process_index and turn < done:
            sums.check(batch, turn)
        if owner == state.process_index and turn >= first:
            yield number, batch, turn >= done
    if number < 0:
        raise ValueError("the dataloader gave no batches: there is nothing to score on")
    sums.check(None, turn + (owner >= state.process_index))
    if together and turn >= first and owner < state.process_index:
        yield number, batch, False


@contextmanager
def random_state(devices: Iterable[torch.device], seed: int) -> Iterator[None]:
    """Torch draws by this seed; afterwards it goes on as before."""
    devices = list(devices)
    with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cpu"):
        torch.manual_seed(seed)
        yield


def limit(
    dataloader: Iterable[Batch],
    num_samples: int | None,
    description: str,
    disable_tqdm: bool,
    chosen: int | None = None,
) -> Iterator[Batch]:
    """Yields batches until `num_samples` examples have gone by, with a progress bar on the main process.

    Args:
        chosen: yield so many of these examples, spread evenly over them: batches may be sorted by length. The first
            ones, where it is not known how many will come.

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
    there = _examples_in(dataloader)
    total = num_samples if there is None else min(there, num_samples or there)
    if chosen is not None and there is None:
        total = num_samples = min(chosen, num_samples or chosen)
    with tqdm(total=total, desc=description, unit="example", disable=disable, leave=False) as bar:
        count, yielded, skipped = 0, 0, None
        for batch in dataloader:
            size = count_examples(batch)
            if size == 0:
                continue
            if num_samples is not None and size > num_samples - count:
                size = num_samples - count
                batch = take(batch, size)
            count += size
            due = size if chosen is None or total is None else chosen * min(count, total) // total - yielded
            skipped = batch if due < min(size, TOGETHER) else None
            if skipped is None:
                yielded += min(due, size)
                yield batch if due >= size else take(batch, due)
            bar.update(size)
            if num_samples is not None and count >= num_samples:
                break
        if chosen is not None and skipped is not None and yielded < min(chosen, count):
            yield take(skipped, min(chosen, count) - yielded)


def _examples_in(dataloader: Iterable[Batch]) -> int | None:
    """How many examples will come; None where only reading tells."""
    if isinstance(dataloader, MappedBatches):
        return _examples_in(dataloader.batches)
    if isinstance(dataloader, list):
        return sum(count_examples(batch) for batch in dataloader)
    if not isinstance(dataloader, DataLoader) or not isinstance(dataloader.dataset, Sized):
        return None
    if dataloader.batch_size is None:  # a batch sampler of one's own
        return len(dataloader.dataset)
    drawn = len(dataloader.sampler) if isinstance(dataloader.sampler, Sized) else len(dataloader.dataset)
    return drawn - (drawn % dataloader.batch_size if dataloader.drop_last else 0)


def count_examples(batch: Batch) -> int:
    """Length of the first dimension of a batch's tensors.

    Raises:
        `TypeError`: not a dict of tensors.
    """
    tensors = [v for v in batch.values() if isinstance(v, Tensor) and v.dim()] if isinstance(batch, Mapping) else []
    if not tensors:
        raise TypeError(f"expected batches that are dicts of tensors, got {type(batch).__name__}: {str(batch)[:80]}")
    return tensors[0].shape[0]


def take(batch: Batch, number: int, start: int = 0) -> dict[str, Any]:
    """So many examples of a batch."""
    size = count_examples(batch)
    of_examples = {n for n, v in batch.items() if isinstance(v, Tensor) and v.dim() and len(v) == size}
    return {n: v[start : start + number] if n in of_examples else v for n, v in batch.items()}


def split(batch: Batch, size: int) -> list[dict[str, Any]]:
    """A batch in pieces of at most `size` examples."""
    return [take(batch, size, start) for start in range(0, count_examples(batch), size)]


def token_mask(batch: Batch, of_decoder: bool = False) -> Tensor | None:
    """1.0 at real tokens, 0.0 at padding: `(sequences, tokens)`, each choice of an example a sequence. None if the
    batch has neither a mask nor the usual inputs: then every token is real.

    Args:
        of_decoder: the tokens that the decoder of an encoder-decoder model reads; without a mask for them, those with
            labels.
    """
    start = "decoder_" if of_decoder else ""
    mask, labels = batch.get(f"{start}attention_mask"), batch.get("labels")
    if mask is None and of_decoder and isinstance(labels, Tensor) and labels.dim() == 2:
        mask = labels >= 0
    if mask is None and batch.get(f"{start}input_ids") is not None:
        mask = torch.ones_like(batch[f"{start}input_ids"])
    if mask is None and batch.get(f"{start}inputs_embeds") is not None:
        mask = torch.ones_like(batch[f"{start}inputs_embeds"][..., 0])
    return None if mask is None else mask.reshape(-1, mask.shape[-1]).float()


def mask_for(batch: Batch, group_name: str, model: nn.Module, rows: int, tokens: int) -> Tensor:
    """`token_mask` for the activations of a group: `(rows, tokens)`, on the CPU or where the batch is. Choices and
    calls of a block lie side by side. Of sound, the mask says which samples are real: each frame takes what it says of
    its middle."""
    config = getattr(body_of(model), "config", None)
    of_decoder = group_name.startswith("decoder.") and bool(getattr(config, "is_encoder_decoder", False))
    mask = token_mask(batch, of_decoder)
    if mask is None or mask.numel() == 0:
        return torch.ones(rows, tokens)
    if rows * tokens % mask.numel() == 0:
        return mask.repeat(1, rows * tokens // mask.numel()).reshape(rows, tokens)
    if mask.shape[1] <= tokens:  # of other tokens than these, such as the patches of an image
        return torch.ones(rows, tokens)
    middles = ((torch.arange(tokens) + 0.5) * mask.shape[1] / tokens).long()
    return mask[:, middles.to(mask.device)]
