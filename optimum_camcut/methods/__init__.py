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
"""Scoring methods: from activations, gradients or weights to a score for each unit. A method is one function and one
registration."""

from . import cam_cut, smooth_cut, baselines, obs  # noqa: I001 - registers the methods, the project's own first
from .registry import (
    KIND_SCORERS,
    SCORERS,
    TOKENS,
    WEIGHT_SCORERS,
    Scorer,
    get_scorer,
    scorer,
    scorers_of,
    warn_without_rebuild,
    weight_scorer,
)


__all__ = [
    "KIND_SCORERS",
    "SCORERS",
    "TOKENS",
    "WEIGHT_SCORERS",
    "Scorer",
    "get_scorer",
    "scorer",
    "scorers_of",
    "warn_without_rebuild",
    "weight_scorer",
]
