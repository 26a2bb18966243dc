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
"""LoRA adapters (Hu et al. 2021): what trains after the cut in place of all weights, merged at the end."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.structure import list_blocks
from ..utils.files import replacing
from ..utils.sharding import reshard
from .wrapping import bare_model, free_training_state, gather_model


if TYPE_CHECKING:
    from transformers import Trainer as CamCutTrainer  # the one of this package, which imports this module

BASE_NAME, ADAPTERS_NAME = "_base.safetensors", "adapters.safetensors"


def check_adapters(trainer: CamCutTrainer) -> None:
    """Finds out before there is anything to lose whether adapters can be trained.

    Raises:
        `ImportError`: PEFT is missing.
        `ValueError`: checkpoints under FSDP.
    """
    if trainer.pruning_config.lora_rank is None:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError(f'lora_rank needs PEFT: pip install "optimum-camcut[lora]" ({error})') from error
    if trainer.is_fsdp_enabled and trainer.args.save_strategy != "no":
        raise ValueError(
            "under FSDP, adapters (lora_rank) are trained without checkpoints: set save_strategy='no'; the merged "
            "model is saved by save_model() at the end"
        )


@contextmanager
def adapted(trainer: CamCutTrainer, folder: str | Path, checkpoint: str | bool | None) -> Iterator[None]:
    """While a pruned model is trained, freezes it and trains adapters of all its linear layers; then merges them.

    A checkpoint holds the merged model, and the adapters beside it, which a run that is resumed goes on from; the
    weights below them are in the output folder, once.

    Args:
        folder: that checkpoints are in.
        checkpoint: what the training is resumed from, if it is.
    """
    config = trainer.pruning_config
    if config is None or config.lora_rank is None or trainer.pruning_plan is None:
        yield
        return
    model = _start_afresh(trainer)
    base = Path(folder) / BASE_NAME
    if checkpoint:
        if not base.exists():
            raise ValueError(f"resuming the training of adapters needs the weights below them, and {base} is missing")
        load_model(model, str(base))
    elif trainer.args.save_strategy != "no" and trainer.is_world_process_zero():
        base.parent.mkdir(parents=True, exist_ok=True)
        with replacing(base) as partial:
            save_model(model, str(partial))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inject(model, config.lora_rank, full_precision=not trainer.is_fsdp_enabled)
    if trainer.args.gradient_checkpointing:
        model.enable_input_require_grads()  # else nothing below the first adapter would need a gradient
    names = ("_load_from_checkpoint", "_load_best_model")
    own: dict[str, Any] = {name: getattr(trainer, name) for name in names}

    def load_from_checkpoint(folder: str, *arguments: Any, **keywords: Any) -> None:
        stored, present = load_file(Path(folder) / ADAPTERS_NAME), adapters_of(bare_model(trainer))
        shapes = [{name: value.shape for name, value in each.items()} for each in (stored, present)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the adapters in {folder} are of another model, or of another lora_rank")
        for name, value in present.items():
            value.copy_(stored[name])

    def load_best_model() -> None:
        take_off(bare_model(trainer))  # the checkpoint's weights are merged
        own["_load_best_model"]()

    trainer._load_from_checkpoint, trainer._load_best_model = load_from_checkpoint, load_best_model
    try:
        yield
        reshard(trainer.model)
        merge(bare_model(trainer))
        _start_afresh(trainer)
    finally:
        for name in names:
            vars(trainer).pop(name, None)
        model = bare_model(trainer)
        take_off(model)
        free_training_state(trainer)  # the optimizer of a run that failed knows the adapters
        if trainer.args.gradient_checkpointing and hasattr(model, "_require_grads_hook"):
            model.disable_input_require_grads()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)


def _start_afresh(trainer: CamCutTrainer) -> PreTrainedModel:
    """The bare model, whole, without an optimizer or a wrapper that knows other parameters than it has."""
    gather_model(trainer)
    free_training_state(trainer)
    trainer.model = trainer.model_wrapped = bare_model(trainer)
    return trainer.model


def has_adapters(trainer: CamCutTrainer) -> bool:
    """Whether the model has adapters of its recovery. Those of a user's own model are none: it is saved as it is."""
    config = trainer.pruning_config
    return config is not None and config.lora_rank is not None and bool(adapters_of(bare_model(trainer)))


def save_adapters(trainer: CamCutTrainer, checkpoint: Path) -> None:
    """Writes the adapters into a checkpoint, if the model has any."""
    if has_adapters(trainer) and trainer.args.should_save:
        found = adapters_of(bare_model(trainer))
        with replacing(checkpoint / ADAPTERS_NAME) as partial:
            save_file(found, str(partial))


def inject(model: PreTrainedModel, rank: int, full_precision: bool = True) -> None:
    """Puts an adapter on every linear layer inside of the blocks that is not frozen, scaled by 2; all else is frozen.

    Args:
        full_precision: adapters are float32 whatever the model is, as steps of training are small. FSDP shards what is
            of one type only.
    """
    from peft import LoraConfig, inject_adapter_in_model

    blocks = tuple(f"{path}." for path in list_blocks(model))
    targets = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and path.startswith(blocks)
        and 0 not in module.weight.shape
        and module.weight.requires_grad
    ]
    if not targets:
        raise ValueError(
            "this model has no linear layers, or none that are not frozen, that adapters (lora_rank) could go on"
        )
    fan_in = isinstance(model.get_submodule(targets[0]), Conv1D)
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=fan_in), model
    )
    names = adapters_of(model)
    for name, parameter in model.named_parameters() if full_precision else ():
        if name in names:
            parameter.data = parameter.data.float()


def adapters_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the adapters, by their names."""
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def merge(model: nn.Module) -> None:
    """Adds what adapters have learned to the weights below, and takes them off."""
    for module in _layers(model).values():
        base = module.get_base_layer()
        with torch.no_grad():
            base.weight.copy_(_sum(base.weight, module.get_delta_weight("default")))
    take_off(model)


def take_off(model: nn.Module) -> None:
    """Leaves the layers that adapters were put on, as they are."""
    for path, module in _layers(model).items():
        _put(model, path, module.get_base_layer())
    vars(model).pop("peft_config", None)


@contextmanager
def merged_for_now(trainer: CamCutTrainer) -> Iterator[None]:
    """The model as it would be with the adapters merged, if it has any."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    layers = _layers(model) if has_adapters(trainer) else {}
    try:
        for path, module in layers.items():
            base = module.get_base_layer()
            plain = copy.copy(base)
            plain._parameters = {**base._parameters}
            weight = _sum(base.weight, module.get_delta_weight("default"))
            plain._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
            _put(model, path, plain)
        yield
    finally:
        for path, module in layers.items():
            _put(model, path, module)


def _sum(weight: Tensor, delta: Tensor) -> Tensor:
    return (weight.detach().float() + delta.detach().float()).to(weight.dtype)


def _layers(model: nn.Module) -> dict[str, Any]:
    """Path -> layer with an adapter."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "get_base_layer")}


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
