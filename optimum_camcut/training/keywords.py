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
"""The keywords of `Trainer`, for editors and `help` to complete."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import DataCollator, EvalPrediction, PreTrainedModel, TrainerCallback, TrainingArguments


class TrainerKeywords(TypedDict, total=False):
    """The keywords of `Trainer`, for editors to complete; its own documentation says what they are."""

    model: PreTrainedModel | nn.Module | None
    args: TrainingArguments | None
    data_collator: DataCollator | None
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    model_init: Callable[..., PreTrainedModel] | None
    compute_loss_func: Callable[..., Tensor] | None
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[Optimizer | None, LRScheduler | None]
    optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None


def with_pruning_config(signature: inspect.Signature) -> inspect.Signature:
    """What `help` and notebooks complete: the arguments of `Trainer`, as they are in this transformers, and ours."""
    ours = inspect.Parameter(
        "pruning_config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="PruningConfig | None"
    )
    return signature.replace(parameters=[*signature.parameters.values(), ours])
