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
"""Optimizers from before a cut: they would go on to train parameters that are no longer the model's."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


REPLACED = "_camcut_replaced_in"  # on a parameter that a cut has replaced: the class of its model

_checked: WeakKeyDictionary[Optimizer, tuple[int, int]] = WeakKeyDictionary()  # at how many cuts and parameter groups
_cuts = 0


def refuse_steps_of(parameters: Iterable[nn.Parameter], model: nn.Module) -> None:
    """From now on, an optimizer that is about to step with one of these parameters raises `ValueError`; except with
    those that the model still has, or another one that shared them.

    The mark is on the parameters themselves, and goes when they do. Copies of them have none.
    """
    global _cuts
    present = {id(parameter) for parameter in model.parameters()}
    gone = [parameter for parameter in parameters if id(parameter) not in present]
    for parameter in gone:
        setattr(parameter, REPLACED, type(model).__name__)
    if gone:
        if not _cuts:
            register_optimizer_step_pre_hook(_check)
        _cuts += 1


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Before every step of every optimizer: looks at its parameters once, and again after a cut."""
    state = (_cuts, len(optimizer.param_groups))
    if _checked.get(optimizer) == state:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    replaced = [parameter for parameter in parameters if hasattr(parameter, REPLACED)]
    held = _held_by_modules() if replaced else set()
    gone = [getattr(parameter, REPLACED) for parameter in replaced if id(parameter) not in held]
    if gone:
        raise ValueError(
            f"{len(gone)} of the {len(parameters)} parameters of this {type(optimizer).__name__} are no longer "
            f"those of the {gone[0]}: a cut has replaced them, and to train them would change nothing. Make the "
            "optimizer after apply_plan or prune_heads, and call accelerator.prepare then, if you use accelerate"
        )
    _checked[optimizer] = state


def _held_by_modules() -> set[int]:
    """Ids of the parameters of all modules that live: another model may share what a cut has replaced in one."""
    gc.collect()  # what a cut has taken out may live in a circle of references
    is_module: Callable[[type], bool] = functools.cache(lambda kind: issubclass(kind, nn.Module))
    live = [each for each in gc.get_objects() if is_module(type(each)) and "_parameters" in vars(each)]
    return {id(parameter) for module in live for parameter in vars(module)["_parameters"].values()}
