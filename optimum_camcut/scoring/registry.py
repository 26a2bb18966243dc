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
"""The registry of scoring methods: a dict and a decorator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


if TYPE_CHECKING:
    from torch import Tensor

Source = Literal["gradient", "activation", "weights"]


@dataclass(frozen=True)
class Scorer:
    """One scoring method.

    Args:
        name (`str`): the `method` of `PruningConfig`.
        function: for the sources `"gradient"` and `"activation"`, from `activation`, `gradient` (each
            `torch.Tensor` of shape `(batch, tokens, units, width)`; no gradient for `"activation"`) and `mask`
            (`(batch, tokens)`, 1 at real tokens) to `(batch, units)`: the score of each unit for each example, whose
            mean is the result. For `"weights"`, from `weights` (`(units, weights of a unit)`) and a seeded
            `torch.Generator` to `(units,)`.
        source: what the method observes.
        smooth (`bool`): average the gradients over noisy passes first.
        quadratic (`bool`): the score grows with the square of the gradient and so estimates a change of the loss,
            comparable between kinds of units.
    """

    name: str
    function: Callable[..., Tensor]
    source: Source = "gradient"
    smooth: bool = False
    quadratic: bool = False


SCORERS: dict[str, Scorer] = {}


def scorer(
    name: str, source: Source = "gradient", smooth: bool = False, quadratic: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Registers a function as a scoring method; see `Scorer` for its arguments.

    Raises:
        `ValueError`: the name is taken.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name in SCORERS:
            raise ValueError(f"a scoring method named {name!r} is registered already")
        SCORERS[name] = Scorer(name, function, source, smooth, quadratic)
        return function

    return register


def get_scorer(name: str) -> Scorer:
    """Raises `ValueError`, listing the known methods, if there is none of this name."""
    if name not in SCORERS:
        raise ValueError(f"unknown method {name!r}; known methods: {', '.join(SCORERS)}")
    return SCORERS[name]
