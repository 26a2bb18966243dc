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
"""Gaussian noise on the output of every linear layer, as Smooth-Cut asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.groups import body_of
from ..config import PruningConfig


BLOCK = 2**20  # numbers drawn at a time, and places where a window may begin


class GaussianNoise:
    """A pool of Gaussian numbers, read from random places.

    Drawing each number anew would cost more than the arithmetic of a whole forward pass through small layers; a
    fresh window of the pool for each layer and pass costs one read. Where the windows are is drawn from torch's own
    generator on the CPU, so that gradient checkpointing, which sets it back, sees the same noise twice.

    Args:
        seed (`int`): fixes the pool.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[torch.device, Tensor] = {}

    def like(self, tensor: Tensor) -> Tensor:
        """Standard normal noise in the shape, dtype and device of a tensor; only to be read."""
        size, device = tensor.numel(), tensor.device
        pool = self._pools.get(device, torch.empty(0, device=device))
        if len(pool) < size + BLOCK:  # the blocks and the places do not depend on what was asked for before
            pool = torch.cat([pool, *(self._block(i, device) for i in range(len(pool) // BLOCK, size // BLOCK + 2))])
            self._pools[device] = pool
        offset = int(torch.randint(BLOCK, (), device="cpu"))
        return pool[offset : offset + size].view(tensor.shape).to(tensor.dtype)

    def _block(self, number: int, device: torch.device) -> Tensor:
        generator = torch.Generator(device).manual_seed(self._seed * 1_000_003 + number)
        return torch.empty(BLOCK, device=device).normal_(generator=generator)


@contextmanager
def linear_noise(model: nn.Module, std: float, relative: bool, noise: GaussianNoise) -> Iterator[None]:
    """Adds noise to the output of every linear layer while the context lasts.

    Args:
        model (`nn.Module`): its `nn.Linear` and `Conv1D` modules are hooked; give the body, without a task
            head whose output may be as wide as a vocabulary.
        std (`float`): standard deviation of the noise.
        relative (`bool`): in units of the standard deviation of the output it is added to.
        noise (`GaussianNoise`): where it comes from.
    """

    def add_noise(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # Unseen by autograd, whose gradient is the same: the output is a view, and it would copy it on its way back.
        values = output.detach()
        if relative:
            values.addcmul_(noise.like(values), _deviation(values), value=std)
        else:
            values.add_(noise.like(values), alpha=std)

    handles = [m.register_forward_hook(add_noise) for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def smoothing(
    model: nn.Module, config: PruningConfig, noise: GaussianNoise
) -> tuple[int, Callable[[], AbstractContextManager[None]]]:
    """How many noisy passes a config asks for, and the context to run them in."""
    body = body_of(model)
    body = body.base_model if isinstance(body, PreTrainedModel) else body
    assert config.smooth_samples is not None and config.noise_std is not None  # a config puts defaults there
    relative = config.noise_scale == "relative"
    return config.smooth_samples, partial(linear_noise, body, config.noise_std, relative, noise)


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation of all values, from their sums: several times as fast as `torch.std` on the CPU."""
    square = torch.linalg.vector_norm(values, dtype=torch.float32).square() / values.numel()
    return (square - values.mean(dtype=torch.float32).square()).clamp(min=0).sqrt().to(values.dtype)
