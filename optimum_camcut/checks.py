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
"""What a trainer refuses, before there is anything to lose."""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel, Trainer

from .config import PruningConfig
from .groups import WEIGHTS, check_bare, find_groups
from .masking import list_masks
from .sharding import check_can_gather, check_fsdp, check_whole, shard_by_block


logger = logging.getLogger(__name__)


def check_trainer(trainer: Trainer) -> None:
    """Raises `ValueError` if a trainer is set up in a way that it cannot prune in."""
    if trainer.optimizer is not None:
        raise ValueError(
            "optimizers= holds on to parameters that the cut replaces; pass optimizer_cls_and_kwargs= instead"
        )
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed keeps parameters of its own, which a cut does not reach. Prune under DDP or FSDP2 "
            "(`accelerate launch --use_fsdp --fsdp_version 2`); or prune with recovery='none' and without "
            "DeepSpeed, and then train `load_pruned(...)` with DeepSpeed and a plain `Trainer`"
        )
    check_fsdp(trainer.accelerator, asked=bool(trainer.args.fsdp))


def check_model(trainer: Trainer, model: PreTrainedModel, config: PruningConfig) -> None:
    """Raises `ValueError` if a model cannot be pruned as the config says, for reasons that show at once. Under FSDP,
    also lets accelerate shard it block by block.

    Args:
        model: that of the trainer, without what accelerate wrapped around it.
    """
    find_groups(model, config.granularity)
    for asked, setting in (
        (trainer.is_fsdp_enabled, "FSDP"),
        (config.rebuilds, f"recovery={config.recovery!r}"),
        (config.distill_weight > 0, "distill_weight"),
        (config.budget == "latency", "budget='latency'"),
    ):
        if asked:
            check_bare(model, setting)
    if WEIGHTS not in config.granularity and list_masks(model):
        raise ValueError("this model has masked weights, so nothing more can be cut in it: cut first, then mask")
    if not trainer.is_fsdp_enabled:
        check_whole(model, "pruning without FSDP")
        return
    if WEIGHTS in config.granularity:
        raise ValueError(
            "single weights cannot be scored and masked under FSDP, which averages gradients over the "
            "processes' batches and trains other parameters than the model's; use DDP"
        )
    check_can_gather(model)
    shard_by_block(trainer.accelerator, model)


def check_masks(trainer: Trainer, model: PreTrainedModel) -> None:
    """Raises `ValueError` if a model with masked weights is about to be trained where these cannot be held."""
    if list_masks(model) and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "the masked weights of this model cannot be held at zero under FSDP or DeepSpeed, which train other "
            "parameters than its own; train it under DDP"
        )


def warn_of_float16(model: PreTrainedModel) -> None:
    """transformers 5 loads weights in the dtype they were saved in, also when they are to be trained."""
    if any(p.dtype == torch.float16 and p.requires_grad for p in model.parameters()):
        logger.warning(
            "the model's float16 weights will be trained as they are, in which small updates are lost and large "
            "values overflow; load it with dtype=torch.float32, and for speed set fp16=True or bf16=True in the "
            "training arguments"
        )
