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
"""Blocks that compute on another device than where the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from ..architectures.structure import list_blocks


@contextmanager
def blocks_on(model: PreTrainedModel, device: torch.device | str | None) -> Iterator[None]:
    """One block at a time computes on a device: it goes there when it is called, and back when another one is. What it
    is given goes there, what it gives comes back.

    Args:
        model (`PreTrainedModel`): in CPU memory; or offloaded, with hooks that move the weights.
        device: None changes nothing.

    Raises:
        `ValueError`: the device cannot compute, or hooks move the weights to another one.
    """
    if device is None:
        yield
        return
    for module in model.modules():
        runs_on = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if runs_on is not None and torch.device(runs_on).type != torch.device(device).type:
            raise ValueError(
                f"device={str(device)!r}, but the offloaded model computes on {str(runs_on)!r}: offload it with "
                f"execution_device={str(device)!r}, as in accelerate.disk_offload(model, folder, execution_device)"
            )
    try:
        torch.zeros((), device=device).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # not compiled in; meta; unknown or absent
        raise ValueError(
            f"device={str(device)!r} cannot compute here: {(str(error).splitlines() or [repr(error)])[0]}"
        ) from error
    home = torch.device("cpu") if model.device.type == "meta" else model.device
    there: list[nn.Module] = []

    def send_home() -> None:
        if there:
            there.pop().to(home)

    def compute(block: nn.Module, forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        if there != [block]:
            send_home()
            if not any(parameter.is_meta for parameter in block.parameters()):
                there.append(block.to(device))
        args, keywords = send_to_device((args, keywords), device)
        return send_to_device(forward(*args, **keywords), home)

    blocks = [model.get_submodule(path) for path in list_blocks(model)]
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, own in zip(blocks, before):  # not by hooks: they would also move a block that is passed over
            block.forward = partial(compute, block, own or partial(type(block).forward, block))
        yield
    finally:
        send_home()
        for block, own in zip(blocks, before):
            del block.forward
            if own is not None:
                block.forward = own
