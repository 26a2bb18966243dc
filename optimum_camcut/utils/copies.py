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
"""Copies of models that compute by their own weights."""

from __future__ import annotations

import copy
import functools
import logging
import types
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn


logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


def copy_model(model: Module) -> Module:
    """A deep copy, whose `forward` is its own.

    Other libraries replace the `forward` of a model, some by a function that holds on to that very model: the copy's
    would run the original. There the copy goes by the `forward` of its class.
    """
    copied = copy.deepcopy(model)
    modules = set(map(id, model.modules()))
    for before, module in zip(model.modules(), copied.modules()):
        if "forward" in vars(module) and any(id(each) in modules for each in _held(vars(module)["forward"])):
            logger.warning(
                "the copy of a %s goes by the forward of its class: the one it was given holds on to the original",
                type(before).__name__,
            )
            del module.forward
    return copied


def _held(function: Any) -> Iterator[Any]:
    """What a function holds on to: its object, its arguments and defaults, what is in its closure, the globals that it
    names, and theirs."""
    seen: set[int] = set()
    left = [function]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, functools.partial):
            left += [each.func, *each.args, *each.keywords.values()]
        if isinstance(each, list | tuple | set):
            left += each
        elif isinstance(each, dict):
            left += each.values()
        elif isinstance(each, nn.Module | type | types.ModuleType | str | bytes) or not callable(each):
            continue
        names = ("__self__", "__func__", "__wrapped__", "__defaults__", "__kwdefaults__")
        left += [getattr(each, name) for name in names if getattr(each, name, None) is not None]
        if not isinstance(each, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            left += vars(each).values() if hasattr(each, "__dict__") else ()
        if isinstance(each, types.FunctionType):
            left += [each.__globals__[name] for name in each.__code__.co_names if name in each.__globals__]
        for cell in getattr(each, "__closure__", None) or ():
            try:
                left.append(cell.cell_contents)
            except ValueError:  # it is empty
                continue
