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
"""The state that a model is scored, measured and rebuilt in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from .table import ARCHITECTURES


@contextmanager
def scoring_mode(model: nn.Module, dropout: bool = False) -> Iterator[None]:
    """Evaluation mode (training mode with `dropout`) with all parameters frozen; afterwards every module and parameter
    is as it was.

    Gradient checkpointing that is on stays on, which in evaluation mode means to set a block's own `training` flag.
    That is done for supported architectures, whose blocks leave dropout to the modules inside of them."""
    modes = [(module, module.training) for module in model.modules()]
    checkpointing: list[Any] = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True
    ]
    known = getattr(getattr(model, "config", None), "model_type", None) in ARCHITECTURES
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train(dropout)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # its statistics are not dropout
    functions = [module.__dict__.get("_gradient_checkpointing_func") for module in checkpointing]
    # The reentrant kind would need an input that requires a gradient.
    functional = [partial(function or checkpoint, use_reentrant=False) for function in functions]
    for module, function in zip(checkpointing, functional):
        module.training = dropout or known
        module._gradient_checkpointing_func = function
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        # A block that is run again runs to its end, where hooks offload its weights.
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, before in zip(checkpointing, functions):
            module._gradient_checkpointing_func = before
        for module, mode in modes:
            module.training = mode
