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
"""Figures: what was removed and why, how much plans agree, and what they cost.

Needs matplotlib: `pip install optimum-camcut[plots]`. Every function returns a `matplotlib.figure.Figure`, which a
notebook shows and `figure.savefig(path)` writes.
"""

from __future__ import annotations

from .agreement import plot_overlap, plot_overlap_matrix, plot_totals
from .kept import plot_head_importance, plot_kept, plot_scores
from .quality import plot_pareto


__all__ = [
    "plot_head_importance",
    "plot_kept",
    "plot_overlap",
    "plot_overlap_matrix",
    "plot_pareto",
    "plot_scores",
    "plot_totals",
]
