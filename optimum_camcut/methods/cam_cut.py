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
"""Cam-Cut: Grad-CAM as a measure of importance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import scorer, weight_scorer


if TYPE_CHECKING:
    from torch import Tensor


@scorer("cam_cut")
def cam_cut(activation: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2) with tokens in place of pixels and a unit's features as channels.

    The weight of a channel is the token-mean of its gradient; a token's map is the weighted sum of the unit's
    channels, rectified; the score is the map's mean over the real tokens.
    """
    tokens = mask.sum(1)[:, None].clamp(min=1)
    weight = _token_sum(gradient, mask) / tokens[:, :, None]
    cam = weight[:, None] * activation
    cam = (cam.sum(3) if cam.shape[3] > 1 else cam.squeeze(3)).relu()  # summing over one feature is a slow copy
    return _token_sum(cam[..., None], mask)[..., 0] / tokens


@weight_scorer("cam_cut", output=True)
def cam_cut_weights(weight: Tensor, gradient: Tensor, output: Tensor) -> Tensor:
    """|W · ∂L/∂W · (shift + z̄)|, z̄ being the mean output of the weight's output feature (DeepCuts, Grover et al.
    2022)."""
    return gradient.mul_(weight).mul_(output).abs_()


def _token_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the real tokens: `(batch, tokens, units, width)` -> `(batch, units, width)`."""
    return (mask[:, None] @ values.flatten(2)).view(values.shape[0], *values.shape[2:])
