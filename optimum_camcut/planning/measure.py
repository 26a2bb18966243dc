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
"""What a model costs: parameters, FLOPs, and the time it takes on this device."""

from __future__ import annotations

import ctypes
import inspect
import platform
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from ..architectures.modes import scoring_mode


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)


@dataclass(frozen=True)
class LatencyResult:
    """Seconds of one forward pass: the median of all repeats, and the first and third quartile."""

    median: float
    low: float
    high: float


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters of a model; shared ones count once, and masked ones too.

    Args:
        model (`PreTrainedModel`): on any device.

    Returns:
        `int`: their number.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: PreTrainedModel, batch_size: int = 1, sequence_length: int = 128) -> int:
    """FLOPs of one forward pass (a multiplication and an addition are two), matrix products only.

    Args:
        model (`PreTrainedModel`): run once, in evaluation mode.
        batch_size (`int`): sequences at once.
        sequence_length (`int`): tokens in each.

    Returns:
        `int`: of the whole batch.
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter knows no fused attention on the CPU, nor a grouped product
    with plain, _one_by_one(model), scoring_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**random_inputs(model, batch_size, sequence_length))
    return counter.get_total_flops()


@contextmanager
def _one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Inside, experts compute one after another."""
    before = getattr(model.config, "_experts_implementation", None)
    if before in (None, "eager"):
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def count_bytes(model: PreTrainedModel) -> int:
    """What the parameters and the buffers of a model take in memory; shared ones count once.

    Args:
        model (`PreTrainedModel`): on any device.

    Returns:
        `int`: bytes.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_memory(model: PreTrainedModel, batch_size: int = 8, sequence_length: int = 128) -> int:
    """Bytes of the weights and of the most activations that are there at once in a forward pass. On the CPU, and on
    accelerators whose allocator keeps no record of its peak (Apple's), the results of all operations count, not the
    scratch space inside of one.

    Args:
        model (`PreTrainedModel`): run once, in evaluation mode, on the device that it is on.
        batch_size (`int`): sequences at once.
        sequence_length (`int`): tokens in each.

    Returns:
        `int`: bytes.
    """
    inputs = random_inputs(model, batch_size, sequence_length)
    with scoring_mode(model), torch.no_grad():
        device: Any = None if model.device.type == "cpu" else torch.get_device_module(model.device)
        if hasattr(device, "reset_peak_memory_stats"):
            device.reset_peak_memory_stats(model.device)
            before = device.memory_allocated(model.device)
            model(**inputs)
            return count_bytes(model) + device.max_memory_allocated(model.device) - before
        known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        with _LiveBytes(known) as live:
            model(**inputs)
        return count_bytes(model) + live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make, except of the known ones."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.peak = known, 0, 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage not in self.seen and storage.data_ptr() not in self.known:
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes())
        return results

    def _free(self, size: int) -> None:
        self.now -= size


def measure_latency(
    models: Mapping[str, PreTrainedModel], batch_size: int = 8, sequence_length: int = 128, repeats: int = 20
) -> dict[str, LatencyResult]:
    """Times one forward pass of each model, in turn, so that whatever else the machine does slows all alike. On one
    thread of a CPU it is processor time, as of `time_forward`.

    Args:
        models (`Mapping[str, PreTrainedModel]`): name -> model.
        batch_size (`int`): sequences at once.
        sequence_length (`int`): tokens in each.
        repeats (`int`): how often each model runs, after one run that does not count.

    Returns:
        `dict[str, LatencyResult]`: name -> seconds of a forward pass of the whole batch.

    Raises:
        `ValueError`: no repeats, or more tokens than a model has learned positions for.
    """
    if repeats < 1:
        raise ValueError(f"repeats should be at least 1, got {repeats}")
    times: dict[str, list[float]] = {name: [] for name in models}
    inputs = {name: random_inputs(model, batch_size, sequence_length) for name, model in models.items()}
    with keeping_memory():
        for _ in range(repeats + 1):
            for name, model in models.items():
                times[name].append(time_forward(model, inputs[name]))
    results = {}
    for name, values in times.items():
        results[name] = LatencyResult(*(float(np.quantile(values[1:], part)) for part in (0.5, 0.25, 0.75)))
    return results


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Inside, the GNU C library keeps the memory that it frees, as allocators of accelerators do.

    Else it may hand the largest activations back after every layer and get them again page by page: up to a sixth of
    the time of a forward pass, more or less of it as other models have run before in the same process."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, 2**16)  # its default
        # Once set, the others no longer adapt: the most that the first, and more than the second, would have come to.
        mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**28)


def time_forward(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], clock: Callable[[], float] | None = None
) -> float:
    """Times one forward pass, in evaluation mode.

    Args:
        model (`PreTrainedModel`): on any device, which is waited for.
        inputs (`Mapping[str, Tensor]`): its keywords, on that device.
        clock: gives the time in seconds. Default: the thread's processor time on a CPU with one thread, which is the
            time it takes less what other processes take of it; the wall clock elsewhere.

    Returns:
        `float`: seconds.
    """
    if clock is None:
        alone = model.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.thread_time if alone else time.perf_counter
    with scoring_mode(model), torch.inference_mode():
        _synchronize(model)
        start = clock()
        model(**inputs)
        _synchronize(model)
        return clock() - start


def random_inputs(model: PreTrainedModel, batch_size: int, sequence_length: int) -> dict[str, torch.Tensor]:
    """Inputs to measure with, always the same: token ids, none of them padding, or images or sound where the model
    takes those.

    Args:
        model (`PreTrainedModel`): whose vocabulary and device they are for.
        batch_size (`int`): sequences at once.
        sequence_length (`int`): tokens in each, or frames of sound; a model of images, or of sound of one length, says
            itself how large those are.

    Returns:
        `dict[str, Tensor]`: `input_ids` and a mask of ones, `attention_mask`, each of shape
            `(batch_size, sequence_length)`; of models for multiple choice, `(batch_size, 1, sequence_length)`. Or
            `pixel_values` of shape `(batch_size, channels, height, width)`, of videos with the frames before the
            channels, or `input_features` of shape `(batch_size, bins, frames)`, or `input_values` of shape
            `(batch_size, samples)` or `(batch_size, frames, bins)`.

    Raises:
        `ValueError`: more tokens than the model has learned positions for, or inputs of a kind that is not known here.
    """
    generator, name = torch.Generator().manual_seed(0), getattr(model, "main_input_name", "input_ids")
    target = _decoder_inputs(model, batch_size, sequence_length, generator)
    if name != "input_ids":
        shape = _input_shape(model, name, sequence_length)
        return {name: torch.rand(batch_size, *shape, generator=generator).to(model.device, model.dtype), **target}
    longest = longest_input(model, sequence_length)
    if sequence_length > longest and learns_positions(model):
        raise ValueError(
            f"sequence_length is {sequence_length}, but {type(model).__name__} takes {longest} tokens at most"
        )
    table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    weight = getattr(table, "weight", None)  # what the model has, whatever its config says
    if weight is not None and weight.dim() == 2:
        vocabulary = weight.shape[0]
    else:
        vocabulary = getattr(model.config, "vocab_size", None)
    if vocabulary is None:
        raise ValueError(f"{type(model).__name__} has no table of input embeddings to make token ids for")
    padding = getattr(model.config, "pad_token_id", None)
    tokens = torch.randint(vocabulary, (batch_size, sequence_length), generator=generator)
    if padding is not None:
        tokens[tokens == padding] = (padding + 1) % vocabulary
    if type(model).__name__.endswith("ForMultipleChoice"):
        tokens = tokens[:, None]
    return {"input_ids": tokens.to(model.device), "attention_mask": torch.ones_like(tokens).to(model.device), **target}


def _decoder_inputs(
    model: PreTrainedModel, batch_size: int, sequence_length: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """What the decoder of an encoder-decoder model reads: as many tokens, or as many as it has positions for."""
    config = model.config
    takes = "decoder_input_ids" in inspect.signature(model.forward).parameters
    if not getattr(config, "is_encoder_decoder", False) or not takes:
        return {}
    length = min(sequence_length, getattr(config, "max_target_positions", None) or sequence_length)
    words = config.get_text_config(decoder=True).vocab_size
    tokens = torch.randint(words, (batch_size, length), generator=generator.clone_state())
    return {"decoder_input_ids": tokens.to(model.device)}


def input_size(model: PreTrainedModel, sequence_length: int) -> str:
    """The size of one of the `random_inputs`, to be told of: `"128 tokens"`, `"224 x 224 pixels"`, `"3000 frames"`.

    Args:
        model (`PreTrainedModel`): whose inputs they are.
        sequence_length (`int`): tokens; of sound, the frames that samples become.

    Raises:
        `ValueError`: inputs of a kind that is not known here.
    """
    name = getattr(model, "main_input_name", "input_ids")
    if name == "input_ids":
        return f"{sequence_length} tokens"
    shape = _input_shape(model, name, sequence_length)
    if name == "pixel_values":
        return f"{f'{shape[0]} frames of ' if len(shape) == 4 else ''}{shape[-2]} x {shape[-1]} pixels"
    return f"{shape[0]} samples" if len(shape) == 1 else f"{max(shape)} frames"


def _input_shape(model: PreTrainedModel, name: str, frames: int) -> tuple[int, ...]:
    """Of one image, video or recording, as the config tells; of sound as such, as many samples as make so many
    frames."""
    config = model.config
    images = getattr(config, "vision_config", config)  # of a model with two towers
    if name == "pixel_values" and getattr(images, "image_size", None):
        size, times = images.image_size, getattr(images, "num_frames", None)
        shape = (getattr(images, "num_channels", 3), *(size if isinstance(size, list | tuple) else (size, size)))
        return (times, *shape) if times else shape
    if name == "input_values" and getattr(config, "conv_stride", None):
        for stride, kernel in zip(config.conv_stride[::-1], config.conv_kernel[::-1]):
            frames = (frames - 1) * stride + kernel
        return (frames,)
    if name == "input_values" and getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None):
        return config.max_length, config.num_mel_bins  # as in the audio spectrogram transformer
    if name == "input_features" and getattr(config, "num_mel_bins", None):
        positions = getattr(config, "max_source_positions", None)
        if positions:
            return config.num_mel_bins, 2 * positions  # as in Whisper, which halves them
    raise ValueError(
        f"{type(model).__name__} takes {name!r}, and its config does not say of what shape: its latency cannot be "
        "measured here; take another budget than 'latency', or time it by inputs of your own with "
        "optimum_camcut.measure.time_forward"
    )


def longest_input(model: PreTrainedModel, tokens: int) -> int:
    """So many tokens, or as many as the model has positions for: some count theirs from behind the padding's."""
    positions = getattr(model.config, "max_position_embeddings", None)
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    taken = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return min(tokens, positions - max(taken, default=0)) if positions and positions > 0 else tokens


def learns_positions(model: PreTrainedModel) -> bool:
    """Whether it has none for more tokens; others compute positions."""
    return any(name.endswith(("position_embeddings", "wpe")) for name, _ in model.named_modules())


def _synchronize(model: PreTrainedModel) -> None:
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
