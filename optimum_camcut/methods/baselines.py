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
"""The baselines that importance from interpretability is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import scorer, weight_scorer


if TYPE_CHECKING:
    from torch import Generator, Tensor


def removal_effect(activation: Tensor, gradient: Tensor) -> Tensor:
    """First-order effect on the loss of removing each unit, up to its sign: `(batch, units)`."""
    return (activation * gradient).sum((1, 3))


@scorer("taylor")
def taylor(activation: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
    """|effect of removal| (Michel et al. 2019, eq. 3)."""
    return removal_effect(activation, gradient).abs()


@scorer("fisher", quadratic=True)
def fisher(activation: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
    """Diagonal Fisher information of a mask variable on the unit (Kwon et al. 2022, eq. 8)."""
    return removal_effect(activation, gradient).square()


@scorer("activation", source="activation")
def activation(activation: Tensor, gradient: None, mask: Tensor) -> Tensor:
    """Mean |a| over the real tokens and the unit's features."""
    tokens = mask.sum(1, keepdim=True).clamp(min=1)
    return (activation.abs() * mask[:, :, None, None]).sum((1, 3)) / (tokens * activation.shape[3])


@scorer("reap", source="norms")
def reap(activation: Tensor, gradient: None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of experts, the mean of the router's weight times the norm of what the expert gives, over the tokens that are
    sent to it (REAP, Lasby et al. 2025)."""
    norms = activation[..., 0] * mask[:, :, None]
    return norms.sum(1), (norms != 0).sum(1)


@scorer("wanda_sp", source="input")
def wanda_sp(weight: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """Sum of |W| · ‖x‖₂ over the weights of the output projection that read the unit (Wanda-sp: An et al. 2024, after
    Sun et al. 2024, eq. 1)."""
    return (weight.abs().sum(2) * square.sqrt()).sum(1)


@scorer("flap", source="input")
def flap(weight: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """Fluctuation of the unit's features, variance of x times ‖W‖² of the weights that read x, standardized over the
    layer (An et al. 2024, eq. 4 and 5). As in their code, that of heads is squared first, and then the mean over the
    features of a head. Below 0 it is the exponential, above 0 it is one more: positive, in the same order."""
    found = (square - mean.square()).clamp(min=0) * weight.square().sum(2)
    found = found.square() if found.shape[1] > 1 else found
    spread = found.std() if found.numel() > 1 else found.new_zeros(())
    score = ((found - found.mean()) / spread.clamp(min=1e-30)).mean(1)
    return score.clamp(max=0).exp() + score.clamp(min=0)


@scorer("block_influence", source="stream")
def block_influence(before: Tensor, after: Tensor) -> Tensor:
    """How far a block turns the residual stream: 1 less the cosine (ShortGPT: Men et al. 2024, eq. 1)."""
    return 1 - (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1)).clamp(min=1e-30)


@scorer("frequency", source="tokens")
def frequency(tokens: Tensor, units: int) -> Tensor:
    """How often each token is there."""
    return tokens.bincount(minlength=units)


@scorer("magnitude", source="weights")
def magnitude(weights: Tensor, generator: Generator) -> Tensor:
    """L1 norm of all weights and biases that go with the unit."""
    return weights.abs().sum(1)


@scorer("random", source="weights")
def random(weights: Tensor, generator: Generator) -> Tensor:
    """Uniform in [0, 1)."""
    return weights.new_empty(weights.shape[0]).uniform_(generator=generator)


# ------------------------------------------------------------------------------------------------- single weights


@weight_scorer("magnitude", source="weights")
def weight_magnitude(weight: Tensor, generator: Generator) -> Tensor:
    """|W| (Han et al. 2015)."""
    return weight.abs()


@weight_scorer("gradient")
def gradient(weight: Tensor, gradient: Tensor, output: None) -> Tensor:
    """|∂L/∂W|."""
    return gradient.abs_()


@weight_scorer("snip")
def snip(weight: Tensor, gradient: Tensor, output: None) -> Tensor:
    """|W · ∂L/∂W|, the first-order effect of removing the weight (Lee et al. 2019, eq. 5)."""
    return gradient.mul_(weight).abs_()


@weight_scorer("wanda", source="input")
def wanda(weight: Tensor, norm: Tensor) -> Tensor:
    """|W| · ‖x‖₂ of the weight's input feature (Sun et al. 2024, eq. 1)."""
    return weight.abs() * norm


@weight_scorer("random", source="weights")
def random_weights(weight: Tensor, generator: Generator) -> Tensor:
    """Uniform in [0, 1)."""
    return weight.new_empty(weight.shape).uniform_(generator=generator)
