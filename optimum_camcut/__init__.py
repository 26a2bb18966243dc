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

from .checkpoints.auto import let_classes_load_pruned
from .utils.handed_in import hand_in
from .utils.imports import ShortNames, after_import, find
from .version import __version__


if TYPE_CHECKING:
    from .architectures.groups import PrunableGroup, find_groups
    from .checkpoints.check import check_architecture
    from .checkpoints.checkpoint import load_pruned
    from .config import PruningConfig
    from .planning.allocation import make_plan
    from .planning.latency import latency_table
    from .planning.overlap import MaskOverlap, mask_iou
    from .planning.plan import PruningPlan
    from .planning.times import LatencyTable
    from .reporting.compare import compare
    from .reporting.comparison import Comparison
    from .scoring.loop import score_groups
    from .search.divergence import distillation_loss
    from .search.search import search_plan
    from .surgery.cut import apply_plan, prune_heads
    from .surgery.masking import hold_masks
    from .surgery.rebuild import reconstruct, reconstruct_all
    from .training.seq2seq import CamCutSeq2SeqTrainer
    from .training.trainer import CamCutTrainer
    from .vocabulary.pieces import with_tokenizer
    from .vocabulary.trim import trim_tokenizer

# Public name -> the module that defines it, imported at first use (PEP 562): importing the package costs nothing.
_MODULES = {
    "CamCutSeq2SeqTrainer": "training.seq2seq",
    "CamCutTrainer": "training.trainer",
    "Comparison": "reporting.comparison",
    "LatencyTable": "planning.times",
    "MaskOverlap": "planning.overlap",
    "PrunableGroup": "architectures.groups",
    "PruningConfig": "config",
    "PruningPlan": "planning.plan",
    "apply_plan": "surgery.cut",
    "check_architecture": "checkpoints.check",
    "compare": "reporting.compare",
    "distillation_loss": "search.divergence",
    "find_groups": "architectures.groups",
    "hold_masks": "surgery.masking",
    "latency_table": "planning.latency",
    "load_pruned": "checkpoints.checkpoint",
    "make_plan": "planning.allocation",
    "mask_iou": "planning.overlap",
    "prune_heads": "surgery.cut",
    "reconstruct": "surgery.rebuild",
    "reconstruct_all": "surgery.rebuild",
    "score_groups": "scoring.loop",
    "search_plan": "search.search",
    "trim_tokenizer": "vocabulary.trim",
    "with_tokenizer": "vocabulary.pieces",
}

# Public modules by short names: `from optimum_camcut.plots import plot_kept`.
_SHORT = {
    "masking": "surgery.masking",
    "measure": "planning.measure",
    "modeling_camcut": "architectures.modeling_camcut",
    "plots": "reporting.plots",
    "report": "reporting.report",
    "sharding": "utils.sharding",
}

# Imports go one way, from the command line down. What a room calls in one above it is handed in here.
hand_in("checkpoint_class", f"{__name__}.checkpoints.checkpoint")
hand_in("derive_for", f"{__name__}.checkpoints.derive")
hand_in("write_card", f"{__name__}.reporting.card")

__all__ = [
    "__version__",
    "CamCutSeq2SeqTrainer",
    "CamCutTrainer",
    "Comparison",
    "LatencyTable",
    "MaskOverlap",
    "PrunableGroup",
    "PruningConfig",
    "PruningPlan",
    "apply_plan",
    "check_architecture",
    "compare",
    "distillation_loss",
    "find_groups",
    "hold_masks",
    "latency_table",
    "load_pruned",
    "make_plan",
    "mask_iou",
    "prune_heads",
    "reconstruct",
    "reconstruct_all",
    "score_groups",
    "search_plan",
    "trim_tokenizer",
    "with_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        nearest = importlib.import_module(".utils.files", __name__).nearest
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}{nearest(name, __all__)}"
        )
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


find(ShortNames(__name__, _SHORT))  # before a folder that an older version has left
after_import("transformers.modeling_utils", let_classes_load_pruned)
