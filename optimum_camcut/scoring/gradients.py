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

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


@contextmanager
def summed_gradients(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Lets frozen parameters of linear layers have gradients for a while; those they had before come back.

    Every call of a layer adds to `grad` by its matrix product itself. Autograd would first make a new matrix of each
    gradient, and then read and write both once more to add it: several percent of a pass. What uses a weight without
    calling its layer, or calls one that is not plain (its forward replaced, other dtypes, autocast), is left to
    autograd, which adds to the same `grad`.

    Args:
        model (`nn.Module`): that the parameters are of.
        parameters: by name.
    """
    layers = {name.rpartition(".")[0]: None for name in parameters}
    before = [(parameter, parameter.grad) for parameter in parameters.values()]
    with ExitStack() as stack:
        for parameter, _ in before:
            parameter.grad = None
            parameter.requires_grad_(True)
        for module in map(model.get_submodule, layers):
            if type(module) in (nn.Linear, Conv1D) and "forward" not in module.__dict__:
                module.forward = partial(_call, module)
                stack.callback(delattr, module, "forward")
        try:
            yield
        finally:
            for parameter, gradient in before:
                parameter.requires_grad_(False)
                parameter.grad = gradient


def _call(module: nn.Linear | Conv1D, values: Tensor) -> Tensor:
    plain = values.dtype == module.weight.dtype and not torch.is_autocast_enabled(values.device.type)
    if plain and torch.is_grad_enabled():
        return _Summing.apply(values, module.weight, module.bias, module)
    return type(module).forward(module, values)


class _Summing(torch.autograd.Function):
    """A linear layer whose backward pass adds to the gradients of its parameters, and so returns none for them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Linear | Conv1D) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(values, weight)
        matrix = weight if isinstance(module, Conv1D) else weight.T
        # Of this shape from the start: noise cannot be added to a view that was made in here.
        output = values.new_empty(*values.shape[:-1], matrix.shape[1])
        rows, out = values.reshape(-1, values.shape[-1]), output.view(-1, matrix.shape[1])
        torch.mm(rows, matrix, out=out) if bias is None else torch.addmm(bias, rows, matrix, out=out)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        (values, weight), module = ctx.saved_tensors, ctx.module
        rows, inputs = gradient.reshape(-1, gradient.shape[-1]), values.reshape(-1, values.shape[-1])
        transposed = isinstance(module, Conv1D)
        if module.weight.requires_grad:
            _add_product(module.weight, inputs if transposed else rows, rows if transposed else inputs)
        if module.bias is not None and module.bias.requires_grad:
            total = rows.sum(0)
            module.bias.grad = total if module.bias.grad is None else module.bias.grad.add_(total)
        back = gradient @ (weight.T if transposed else weight) if ctx.needs_input_grad[0] else None
        return back, None, None, None


def _add_product(parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
    """Adds leftᵀ right to the gradient."""
    if parameter.grad is None:
        parameter.grad = left.T @ right
    else:
        parameter.grad.addmm_(left.T, right)
