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
"""The transformers model in what is wrapped around it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def transformers_models(module: nn.Module) -> dict[str, PreTrainedModel]:
    """Path -> transformers model, of those in a module that are not a part of another one; the module itself has the
    path `""`."""
    if isinstance(module, PreTrainedModel):
        return {"": module}
    found: dict[str, PreTrainedModel] = {}
    for path, part in module.named_modules():  # each module once, outer ones first
        if isinstance(part, PreTrainedModel) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = part
    return found


def inner_model(module: nn.Module, adapters: bool = True) -> PreTrainedModel:
    """The transformers model in a module: the module itself, or the only one inside of what is wrapped around it, be
    that DDP, `torch.compile`, PEFT or a module of one's own.

    Args:
        module (`nn.Module`): may be a transformers model.
        adapters (`bool`): whether it may carry adapters of PEFT.

    Raises:
        `TypeError`: it holds none, or several, or carries an adapter that it may not.
    """
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a transformers PreTrainedModel, got {name}")
    found = transformers_models(module)
    if not adapters and any(type(part).__module__.startswith("peft.") for part in module.modules()):
        raise TypeError(
            f"expected a transformers PreTrainedModel, got {name}; merge the adapter first: "
            "`model = model.merge_and_unload()`"
            if type(module).__module__.startswith("peft.")
            else f"this {name} carries an adapter of PEFT; merge it first (`merge_and_unload()` of the PEFT model)"
        )
    if len(found) != 1:
        parts = " and ".join(f"`{path}` ({type(part).__name__})" for path, part in found.items())
        held = f"which holds several: {parts}; pass the one you mean" if found else "which holds none"
        raise TypeError(f"expected a transformers PreTrainedModel, or a module that holds one; got {name}, {held}")
    return next(iter(found.values()))


def check_bare(module: nn.Module, action: str) -> None:
    """Raises `TypeError` unless this is a transformers model itself, with nothing around it."""
    if not isinstance(module, PreTrainedModel):
        found = transformers_models(module) if isinstance(module, nn.Module) else {}
        inside = " or ".join(f"`{path}` ({type(part).__name__})" for path, part in found.items())
        hint = f"; pass what is inside it: {inside}" if found else ""
        raise TypeError(f"{action} takes a transformers PreTrainedModel, got {type(module).__name__}{hint}")


def body_of(module: nn.Module) -> nn.Module:
    """`inner_model`, or the module itself if it holds no transformers model: groups may be made by hand."""
    return inner_model(module) if transformers_models(module) else module
