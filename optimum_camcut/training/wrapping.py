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
"""What accelerate wraps around a trainer's model, taken off and put on again."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, Trainer

from ..architectures.structure import list_blocks
from ..utils.sharding import gather, is_sharded


def bare_model(trainer: Trainer) -> PreTrainedModel:
    """The model without what accelerate wrapped around it: its mixed-precision forward would follow the model's
    copies and still call the original."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if "_original_forward" in model.__dict__:
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        del model.__dict__["forward"]  # now bound to the model, as the class's own is
        model.__dict__.pop("_is_accelerate_prepared", None)  # or the next phase would train without it
    return model


def shard_model(trainer: Trainer) -> None:
    """Under FSDP, shards the model if it is whole, as `Trainer` does when it starts to train."""
    if trainer.is_fsdp_enabled and not is_sharded(trainer.model):
        # accelerate shards a model only together with an optimizer; `Trainer` drops this one when it trains.
        stand_in = torch.optim.SGD(trainer.model.parameters())
        trainer.model, _ = trainer.accelerator.prepare(trainer.model, stand_in)
        trainer.model_wrapped = trainer.model


def gather_model(trainer: Trainer) -> None:
    """Makes the model whole again if FSDP has sharded it."""
    if is_sharded(trainer.model):
        free_training_state(trainer)
        trainer.model = trainer.model_wrapped = gather(bare_model(trainer))
        # Every process has the weights now. To spread those of the first once more fails in accelerate for saved
        # buffers, which stand-ins for removed layers have.
        trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False


def place_model(trainer: Trainer, model: PreTrainedModel) -> None:
    """Under FSDP, moves a whole model to where it will compute; elsewhere it is there."""
    if trainer.is_fsdp_enabled:
        trainer._move_model_to_device(model, trainer.args.device)


def free_training_state(trainer: Trainer) -> None:
    """Lets go of the optimizer, the scheduler and any DDP wrapper, which hold parameters that are on their way out."""
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()


def shard_by_block(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Lets accelerate shard a model block by block, unless told which layers to take. What it would go by, the
    `_no_split_modules` of transformers, are not there for some architectures, and in BERT's `fully_shard` fails for
    word embeddings inside of embeddings."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None and not is_sharded(model):
        blocks = {type(model.get_submodule(path)).__name__ for path in list_blocks(model)}
        plugin.transformer_cls_names_to_wrap = sorted(blocks)
