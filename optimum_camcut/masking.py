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
"""Single weights: set to zero by `apply_plan`, and held there while the model trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from transformers import PreTrainedModel

from .plan import is_weight, layer_of
from .units import mask_of


@torch.no_grad()
def zero_weights(model: nn.Module, keep: Mapping[str, Sequence[int]]) -> None:
    """Sets to zero, in place, every element that is not kept.

    Args:
        model: not wrapped.
        keep: parameter name -> kept elements, in row-major order.
    """
    for name, units in keep.items():
        parameter = model.get_parameter(name)
        parameter.masked_fill_(_removed(units, parameter), 0)


@contextmanager
def hold_masks(model: PreTrainedModel) -> Iterator[None]:
    """Keeps the single weights that a plan removed at exactly zero while the context lasts, whatever trains them.

    Their gradients are zero, so that they count in no norm and no moment, and after every step of any
    `torch.optim.Optimizer` that holds them they are set to zero again. `CamCutTrainer.train` does this by itself.
    Parameters keep their names, and checkpoints are plain ones.

    Args:
        model (`PreTrainedModel`): after `apply_plan(model, plan)`; one without masks is left alone. May be wrapped for
            distributed training inside the context.
    """
    plan = getattr(model, "pruning_plan", None)
    keep = {name: units for name, units in plan.keep.items() if is_weight(name)} if plan is not None else {}
    masks = {}  # ones and zeros in the parameter's type: multiplying is several times faster than filling
    with ExitStack() as stack:
        for name, units in keep.items():
            parameter = model.get_parameter(name)
            masks[id(parameter)] = (~_removed(units, parameter)).to(parameter.dtype)
            if parameter.requires_grad:
                mask = lambda gradient, ones=masks[id(parameter)]: gradient * ones  # noqa: E731
                stack.callback(parameter.register_hook(mask).remove)

        @torch.no_grad()
        def zero(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) in masks:
                        parameter.mul_(masks[id(parameter)])

        if masks:
            stack.callback(register_optimizer_step_post_hook(zero).remove)
        yield


def count_zeros(model: PreTrainedModel) -> dict[str, int]:
    """Weights that are exactly zero, of those that a plan masks some of: layer -> number."""
    counts: dict[str, int] = {}
    plan = getattr(model, "pruning_plan", None)
    for name in filter(is_weight, plan.keep if plan is not None else ()):
        zeros = int((model.get_parameter(name) == 0).sum())
        counts[layer_of(name)] = counts.get(layer_of(name), 0) + zeros
    return counts


def _removed(units: Sequence[int], parameter: Tensor) -> Tensor:
    """Bool in the shape of a parameter: True at the elements that are not kept."""
    return ~torch.from_numpy(mask_of(units, parameter.numel())).view(parameter.shape).to(parameter.device)
