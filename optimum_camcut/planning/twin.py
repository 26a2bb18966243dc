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
"""The dense twin of a pruned model: its shapes before every cut."""

from __future__ import annotations

import copy

import psutil
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..architectures.modeling_camcut import RECORD
from ..architectures.structure import config_fields, label_of
from ..architectures.vocabulary import VOCABULARY, resize
from .plan import as_in_config


def dense_config(model: PreTrainedModel, tokens: bool = True) -> PretrainedConfig:
    """The config of a model before it was cut; with the vocabulary as it is if not `tokens`."""
    config, plan = copy.deepcopy(model.config), model.pruning_plan
    if tokens and plan is not None and VOCABULARY in plan.sizes:
        resize(config, len(plan.keep[VOCABULARY]), plan.sizes[VOCABULARY])
    setattr(config, RECORD, None)
    config.pruned_heads = {}
    for label, (field, *others) in config_fields(config).items():
        sizes = plan.sizes if plan is not None else {}
        before, size = next((sizes[n] for n in sizes if label_of(n) == label), None), getattr(config, field)
        before = None if before is None else as_in_config(config, label, before)
        if before is not None and size is not None and before != size:  # a plain checkpoint has its own size there
            for other in others:
                setattr(config, other, getattr(config, other) * before // size)
            setattr(config, field, before)
    return config


def dense_shapes(model: PreTrainedModel, tokens: bool = True) -> PreTrainedModel:
    """A model as the given one was before it was cut, without storage; see `dense_config`.

    Raises:
        `TypeError`: a class of the user's own that takes more than a config.
    """
    with torch.random.fork_rng([]), torch.device("meta"):
        return type(model)(dense_config(model, tokens))


@torch.no_grad()
def dense_twin(model: PreTrainedModel, tokens: bool = True) -> PreTrainedModel:
    """A model as the given one was before it was cut (see `dense_config`), on the same device and in the same dtypes,
    to time or to count: its weights are arbitrary. No random state is moved.

    Raises:
        `MemoryError`: it would take more than half of the memory that the CPU has left.
        `TypeError`: see `dense_shapes`.
        `ValueError`: the model is spread over several devices.
    """
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise ValueError("the model is spread over several devices, and a dense twin would be on one")
    twin, device = dense_shapes(model, tokens).eval().requires_grad_(False), model.device
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    generator = torch.Generator(device).manual_seed(0)
    needed = sum(parameter.numel() for parameter in twin.parameters()) * model.dtype.itemsize
    if device.type == "cpu" and needed > psutil.virtual_memory().available / 2:
        raise MemoryError(f"a dense twin would take {needed / 1e9:.1f} GB, more than half of the memory that is left")
    values = {}  # by the parameter that each replaces: what was tied stays tied
    for name, parameter in twin.named_parameters():
        value = torch.empty(parameter.shape, dtype=dtypes.get(name, model.dtype), device=device)
        value.normal_(std=0.02, generator=generator)  # zeros or tiny numbers could be faster or slower to multiply
        values[parameter] = nn.Parameter(value, requires_grad=False)
    buffers = dict(model.named_buffers())
    for prefix, module in twin.named_modules():
        module._parameters.update({n: values[p] for n, p in module._parameters.items() if p is not None})
        for name, buffer in module._buffers.items():
            found = buffers.get(f"{prefix}.{name}" if prefix else name)
            if buffer is not None and (found is None or found.shape != buffer.shape):  # it went with a sub-layer
                found = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
            module._buffers[name] = found
    return twin
