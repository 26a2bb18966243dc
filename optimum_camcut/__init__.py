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
"""optimum-camcut: makes fine-tuned Transformers physically smaller, guided by interpretability."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__


if TYPE_CHECKING:
    from .planning.allocation import make_plan
    from .checkpoints.checkpoint import load_pruned
    from .reporting.comparison import Comparison, compare
    from .config import PruningConfig
    from .training.distillation import distillation_loss
    from .checkpoints.check import check_architecture
    from .architectures.groups import PrunableGroup, find_groups
    from .planning.latency import LatencyTable, latency_table
    from .surgery.masking import hold_masks
    from .planning.overlap import MaskOverlap, mask_iou
    from .planning.plan import PruningPlan
    from .surgery.rebuild import reconstruct, reconstruct_all
    from .scoring.loop import score_groups
    from .surgery.cut import apply_plan, prune_heads
    from .training.trainer import CamCutTrainer

# Public name -> the module that defines it, imported at first use (PEP 562): importing the package costs nothing.
_MODULES = {
    "CamCutTrainer": "trainer",
    "Comparison": "comparison",
    "LatencyTable": "latency",
    "MaskOverlap": "overlap",
    "PrunableGroup": "groups",
    "PruningConfig": "config",
    "PruningPlan": "plan",
    "apply_plan": "surgery",
    "check_architecture": "entries",
    "compare": "comparison",
    "distillation_loss": "distillation",
    "find_groups": "groups",
    "hold_masks": "masking",
    "latency_table": "latency",
    "load_pruned": "checkpoint",
    "make_plan": "allocation",
    "mask_iou": "overlap",
    "prune_heads": "surgery",
    "reconstruct": "rebuild",
    "reconstruct_all": "rebuild",
    "score_groups": "scoring.loop",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        nearest = importlib.import_module(".files", __name__).nearest
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}{nearest(name, __all__)}"
        )
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
