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
"""Smooth-Cut: importance from gradients that are averaged over noisy passes (SmoothGrad, Smilkov et al. 2017)."""

from __future__ import annotations

from .baselines import fisher, snip
from .cam_cut import cam_cut, cam_cut_weights
from .registry import scorer, weight_scorer


# Smoothing happens before the score, in `loop`: it composes with any method that reads gradients.
scorer("smooth_cut", smooth=True, quadratic=True)(fisher)
scorer("smooth_cam_cut", smooth=True)(cam_cut)
weight_scorer("smooth_cut", smooth=True)(snip)
weight_scorer("smooth_cam_cut", smooth=True, output=True)(cam_cut_weights)
