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
"""Optimal brain surgeon: what is lost by a unit when the units that stay make up for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import scorer


if TYPE_CHECKING:
    from torch import Tensor


@scorer("obs", source="curvature", quadratic=True)
def obs(weight: Tensor, inputs: Tensor, gradients: Tensor, units: int) -> Tensor:
    """What the loss rises by when a unit goes after all that matter less, and the weights of those that stay in the
    output projection are solved for anew each time.

    A change D of the projection's weights adds about ½ tr(G Dᵀ A D) to the loss: the Fisher information of the weights
    as the product of the inputs' second moments A and the gradients' G (K-FAC, Martens & Grosse 2015, eq. 18). The
    unit that adds least goes first (optimal brain surgeon, Hassibi & Stork 1992, eq. 5; for rows of matrices, and with
    this product, LLM Surgeon, van der Ouderaa et al. 2024, eq. 9 and 10), some units at a time. With A = LLᵀ in the
    order in which units stay, the sum of the squares of a unit's rows in LᵀW G^½ is twice what it adds. No unit scores
    less than one that goes before it.
    """
    from .elimination import eliminate  # it needs torch, which to know the methods by name should not

    return eliminate(weight, inputs, gradients, units)
