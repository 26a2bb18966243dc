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
"""Gradients of single weights, summed over passes where they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


Layer: TypeAlias = nn.Linear | Conv1D


@contextmanager
def summed_gradients(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[Callable[[Tensor], None]]:
    """Lets frozen parameters of linear layers have gradients for a while; those they had before come back.

    Gives what to call in place of `loss.backward()`. In it, every call of a layer adds to `grad` by its matrix product
    itself. Autograd would first make a new matrix of each gradient, and then read and write both once more to add it:
    several percent of a pass. What uses a weight without calling its layer, calls one that is not plain (its forward
    replaced, other dtypes, autocast), or takes gradients inside of the loss, is left to autograd, which adds to the
    same `grad`.

    Args:
        model (`nn.Module`): that the parameters are of.
        parameters: by name.
    """
    layers = {name.rpartition(".")[0]: None for name in parameters}
    before = [(parameter, parameter.grad) for parameter in parameters.values()]
    final = _FinalPass()
    with ExitStack() as stack:
        for parameter, _ in before:
            parameter.grad = None
            parameter.requires_grad_(True)
        for module in map(model.get_submodule, layers):
            if type(module) in (nn.Linear, Conv1D) and "forward" not in module.__dict__:
                module.forward = partial(_call, module, final)
                stack.callback(delattr, module, "forward")
        try:
            yield final.backward
        finally:
            for parameter, gradient in before:
                parameter.requires_grad_(False)
                parameter.grad = gradient


class _FinalPass:
    """The backward pass whose gradients are wanted, not one inside of a loss."""

    def __init__(self) -> None:
        self.runs = False

    def backward(self, loss: Tensor) -> None:
        self.runs = True
        try:
            loss.backward()
        finally:
            self.runs = False


def _call(module: Layer, final: _FinalPass, values: Tensor) -> Tensor:
    plain = values.dtype == module.weight.dtype and not torch.is_autocast_enabled(values.device.type)
    if plain and torch.is_grad_enabled():
        return _Summing.apply(values, module.weight, module.bias, module, final)
    return type(module).forward(module, values)


class _Summing(torch.autograd.Function):
    """A linear layer that in the final pass adds to the gradients of its parameters, and so returns none for them."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, module: Layer, final: _FinalPass
    ) -> Tensor:
        ctx.module, ctx.final = module, final
        ctx.save_for_backward(values, weight)
        matrix = weight if isinstance(module, Conv1D) else weight.T
        # Of this shape from the start: noise cannot be added to a view that was made in here.
        output = values.new_empty(*values.shape[:-1], matrix.shape[1])
        rows, out = _rows(values), _rows(output)
        torch.mm(rows, matrix, out=out) if bias is None else torch.addmm(bias, rows, matrix, out=out)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (values, weight), transposed = ctx.saved_tensors, isinstance(ctx.module, Conv1D)
        of_values, of_weight, of_bias = ctx.needs_input_grad[:3]
        back = gradient @ (weight.T if transposed else weight) if of_values else None
        left, right = (_rows(values), _rows(gradient)) if transposed else (_rows(gradient), _rows(values))
        if not ctx.final.runs:
            of_bias = _rows(gradient).sum(0) if of_bias else None
            return back, left.T @ right if of_weight else None, of_bias, None, None
        if of_weight:
            _add_product(ctx.module.weight, left, right)
        if of_bias:
            total, bias = _rows(gradient).sum(0), ctx.module.bias
            bias.grad = total if bias.grad is None else bias.grad.add_(total)
        return back, None, None, None, None


def _rows(values: Tensor) -> Tensor:
    """As a matrix, also with no features, of which `reshape` could not tell how many rows there are."""
    return values.reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _add_product(parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
    """Adds leftᵀ right to the gradient."""
    if parameter.grad is None:
        parameter.grad = left.T @ right
    else:
        parameter.grad.addmm_(left.T, right)
