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
"""Elimination of units one after another, with the others solved for anew each time."""

from __future__ import annotations

import torch
from torch import Tensor


DAMPINGS = (1e-2, 1e-1, 1.0)  # of the mean squared input: the first with which rounding does no harm
STEPS = 64  # in which the units of a group go


def eliminate(weight: Tensor, inputs: Tensor, gradients: Tensor, units: int) -> Tensor:
    """What each unit adds to ½ tr(G Dᵀ A D) when it goes in its turn; see `obs`."""
    if not (torch.isfinite(inputs).all() and torch.isfinite(gradients).all()):
        return weight.new_full((units,), float("nan"))
    width, damped, seen = len(weight) // units, _damped(inputs), weight @ _root(gradients)
    gone = _order(damped, seen, units)
    places = _places(gone.flip(0), width)
    factor = torch.linalg.cholesky(damped[places][:, places])
    rows = (factor.T @ seen[places]).square().sum(1)
    lost = rows.view(units, width).sum(1).flip(0) / 2
    return torch.empty_like(lost).scatter_(0, gone, lost.cummax(0).values)


def _damped(matrix: Tensor) -> Tensor:
    """With more on the diagonal, so that it has a Cholesky factor."""
    for damping in DAMPINGS:
        damped = matrix.clone()
        diagonal = damped.diagonal()
        diagonal += damping * (diagonal.mean() or 1.0)
        if not torch.linalg.cholesky_ex(damped).info:
            return damped
    raise ValueError("the inputs' second moments are not positive, but for rounding: score in float32")


def _places(units: Tensor, width: int) -> Tensor:
    """Of the inputs of some units."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def _root(matrix: Tensor) -> Tensor:
    """R with RRᵀ = `matrix`, which is positive but for rounding."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()


def _order(hessian: Tensor, weight: Tensor, units: int) -> Tensor:
    """Units in the order in which they go, `(units,)`; `weight` is `(inputs, outputs)`, in the outputs' metric."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    width, left, gone = len(weight) // units, torch.arange(units, device=weight.device), []
    while len(left):
        blocks = inverse.view(len(left), width, len(left), width).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        rows = weight.view(len(left), width, -1)
        ranked = (rows * torch.linalg.solve(blocks, rows)).sum((1, 2)).argsort(stable=True)
        count = -(-units // STEPS)
        gone.append(left[ranked[:count]])
        stay = ranked[count:].sort().values
        out, kept = _places(ranked[:count], width), _places(stay, width)
        shift = torch.linalg.solve(inverse[out][:, out], inverse[out][:, kept])
        weight = weight[kept] - shift.T @ weight[out]
        inverse = inverse[kept][:, kept] - inverse[kept][:, out] @ shift
        left = left[stay]
    return torch.cat(gone)
