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
from .sharding import check_whole
from .units import mask_of


def masked_weights(model: nn.Module) -> dict[str, Sequence[int]]:
    """Parameter name -> kept elements, of the parameters that the model's plan masks."""
    plan = getattr(model, "pruning_plan", None)
    return {name: units for name, units in plan.keep.items() if is_weight(name)} if plan is not None else {}


@torch.no_grad()
def zero_weights(model: nn.Module, keep: Mapping[str, Sequence[int]]) -> int:
    """Sets to zero, in place, every element that is not kept.

    Args:
        model: not wrapped.
        keep: parameter name -> kept elements, in row-major order.

    Returns:
        `int`: how many were not zero.
    """
    changed = 0
    for name, units in keep.items():
        parameter = model.get_parameter(name)
        removed = _removed(units, parameter)
        changed += int(torch.count_nonzero(parameter[removed]))
        parameter.masked_fill_(removed, 0)
    return changed


@contextmanager
def hold_masks(model: PreTrainedModel) -> Iterator[None]:
    """Keeps the single weights that a plan removed at exactly zero while the context lasts, whatever trains them.

    They are set to zero at the start. Their gradients are zero, so that they count in no norm and no moment, and after
    every step of any `torch.optim.Optimizer` that holds them they are set to zero again. `CamCutTrainer.train` does
    this by itself. Parameters keep their names, and checkpoints are plain ones.

    Args:
        model (`PreTrainedModel`): after `apply_plan(model, plan)` or from `load_pruned`. May be wrapped for
            DDP inside the context.

    Raises:
        `ValueError`: the model has no masks, or is sharded.
    """
    check_whole(model, "hold_masks")
    keep = masked_weights(model)
    if not keep:
        raise ValueError(
            f"this {type(model).__name__} has no masks to hold; mask it with apply_plan, or load a masked checkpoint "
            "with load_pruned, since from_pretrained does not read its masks"
        )
    zero_weights(model, keep)
    masks = {}  # ones and zeros in the parameter's type: multiplying is several times faster than filling
    with ExitStack() as stack:
        for name, units in keep.items():
            parameter = model.get_parameter(name)
            kept = masks[id(parameter)] = (~_removed(units, parameter)).to(parameter.dtype)
            if parameter.requires_grad:
                stack.callback(parameter.register_hook(lambda gradient, kept=kept: gradient * kept).remove)

        @torch.no_grad()
        def zero(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) in masks:
                        parameter.mul_(masks[id(parameter)])

        stack.callback(register_optimizer_step_post_hook(zero).remove)
        yield


def count_zeros(model: PreTrainedModel) -> dict[str, int]:
    """Weights that are exactly zero, of those that a plan masks some of: layer -> number."""
    counts: dict[str, int] = {}
    for name in masked_weights(model):
        zeros = int((model.get_parameter(name) == 0).sum())
        counts[layer_of(name)] = counts.get(layer_of(name), 0) + zeros
    return counts


def _removed(units: Sequence[int], parameter: Tensor) -> Tensor:
    """Bool in the shape of a parameter: True at the elements that are not kept."""
    return ~torch.from_numpy(mask_of(units, parameter.numel())).view(parameter.shape).to(parameter.device)
