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
from types import CodeType

import torch
from transformers import PreTrainedModel, Trainer

from ..architectures.groups import WEIGHTS, check_bare, find_groups
from ..architectures.vocabulary import VOCABULARY
from ..config import PruningConfig
from ..methods import get_scorer
from ..planning.latency import check_measurable
from ..scoring.forward import check_inputs
from ..surgery.masking import list_masks
from ..utils.sharding import check_can_gather, check_fsdp, check_whole
from .tokens import check_tokenizer
from .wrapping import shard_by_block


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


def require_config(trainer: Trainer) -> PruningConfig:
    """Raises `ValueError` if a trainer has no pruning config."""
    if trainer.pruning_config is None:
        raise ValueError("this trainer has no pruning_config; pass one to CamCutTrainer")
    return trainer.pruning_config


def overrides(trainer: Trainer, base: type[Trainer], name: str) -> bool:
    """Whether a trainer has a method of its own in place of the one of its base class."""
    return name in vars(trainer) or getattr(type(trainer), name) is not getattr(base, name)


def check_overrides(trainer: Trainer, base: type[Trainer]) -> None:
    """Looks at the hooks of `Trainer` that a subclass overrides, and that an option of the pruning config depends on.

    Args:
        trainer: with a `pruning_config`.
        base: `CamCutTrainer`.

    Raises:
        `ValueError`: an option would have no effect.
    """
    config, name = trainer.pruning_config, type(trainer).__name__
    if config.distill_weight > 0 and overrides(trainer, base, "training_step"):
        used = _names_in(getattr(trainer.training_step, "__code__", None))
        if "backward" in used and not used & {"compute_loss", "training_step"}:
            raise ValueError(
                f"distill_weight={config.distill_weight} would have no effect: training_step of {name} gets its loss "
                "without self.compute_loss. Call that (or super().training_step) in it, or set distill_weight=0"
            )
    reads = config.rebuilds or get_scorer(config.method, config.granularity).source != "weights"
    if reads and overrides(trainer, base, "get_train_dataloader"):
        if overrides(trainer, base, "get_scoring_dataloader"):
            return
        advice = "override get_scoring_dataloader too, with batches that are the same on every process"
        if trainer.train_dataset is None:
            raise ValueError(
                f"{name} makes its training batches in get_train_dataloader and has no train_dataset, which the "
                f"examples to score and rebuild on are drawn from: {advice}"
            )
        logger.warning(
            "the examples to score and rebuild on are drawn from train_dataset and batched by data_collator, not by "
            "get_train_dataloader of %s; where that matters, %s",
            name,
            advice,
        )


def _names_in(code: CodeType | None) -> set[str]:
    """Names of attributes and globals that a function uses, in functions inside it, too."""
    if code is None:
        return set()
    inner = (_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def check_model(trainer: Trainer, model: PreTrainedModel, config: PruningConfig) -> None:
    """Raises `ValueError` if a model cannot be pruned as the config says, for reasons that show at once. Under FSDP,
    also lets accelerate shard it block by block.

    Args:
        model: that of the trainer, without what accelerate wrapped around it.
    """
    scorer = get_scorer(config.method, config.granularity)
    if VOCABULARY in config.granularity:
        check_tokenizer(trainer, model)
    check_inputs(find_groups(model, config.granularity), scorer)
    for asked, setting in (
        (trainer.is_fsdp_enabled, "FSDP"),
        (config.rebuilds, f"recovery={config.recovery!r}"),
        (config.distill_weight > 0, "distill_weight"),
        (config.budget == "latency", "budget='latency'"),
        (config.allocation == "search", "allocation='search'"),
        (bool(config.lora_rank), "lora_rank"),
    ):
        if asked:
            check_bare(model, setting)
    if config.budget == "latency":
        check_measurable(model)
    if config.allocation == "search" and trainer.is_fsdp_enabled:
        raise ValueError("allocation='search' runs the whole model in every process; under FSDP use another one")
    even = config.allocation == "uniform" and not config.exclude
    if "experts" in config.granularity and getattr(model.config, "output_router_logits", False) and not even:
        raise ValueError(
            "the loss that balances the router takes as many experts in every layer: set "
            "model.config.output_router_logits = False, or allocation='uniform' and no exclude"
        )
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
