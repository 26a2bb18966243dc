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
"""Models whose parameters FSDP2 has spread over the processes: telling them, reading them, making them whole."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded the model or a part of it. Its class is then a subclass that torch made on the fly,
    its parameters are `DTensor`s of the full shape, and every forward pass is a joint one of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def check_fsdp(accelerator: Accelerator, asked: bool) -> None:
    """Raises `ValueError` if FSDP was asked for in a way that a model cannot be pruned under.

    Args:
        accelerator: of the trainer.
        asked (`bool`): whether the training arguments ask for FSDP; `accelerate launch` is looked at here.
    """
    plugin = accelerator.state.fsdp_plugin if accelerator.distributed_type == DistributedType.FSDP else None
    if plugin is None:
        asked = asked or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if asked and accelerator.num_processes > 1:
            raise ValueError(
                f"FSDP was asked for, but on {accelerator.device.type} accelerate does not start it "
                "(`accelerate.state.AcceleratorState` knows it for GPUs and the like only) and would train under "
                f"{accelerator.distributed_type.value} without a word; leave FSDP out, or use GPUs"
            )
    elif getattr(plugin, "fsdp_version", 1) != 2:  # accelerate before 1.6 does not know it
        raise ValueError(
            "FSDP 1 flattens the parameters, so that there are no heads or neurons to see; use FSDP2: "
            '`accelerate launch --use_fsdp --fsdp_version 2`, or fsdp_config={"version": 2} in the training arguments'
        )
    elif plugin.activation_checkpointing:
        raise ValueError(
            "FSDP's activation_checkpointing runs layers twice while they are scored; turn it off and use "
            "gradient_checkpointing=True of the training arguments"
        )


def check_whole(model: nn.Module, action: str) -> None:
    """Raises `ValueError` if the model is sharded."""
    if is_sharded(model):
        raise ValueError(
            f"{action} needs the whole model, and this one is sharded by FSDP; pass what "
            "`optimum_camcut.sharding.gather(model)` returns on every process"
        )


def compute_device(model: nn.Module) -> torch.device:
    """Where the model computes: its parameters may be offloaded to the CPU in between. Of parameters that a
    `device_map` has offloaded nothing is known; if all are, the CPU, from where hooks take what goes in."""
    if is_sharded(model):
        return PartialState().device
    return next((each.device for each in model.parameters() if not each.is_meta), torch.device("cpu"))


def whole(tensor: Tensor) -> Tensor:
    """The values of a tensor that may be sharded. To be called on every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    moved = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(moved, DTensor)  # as what was moved
    return moved.full_tensor()


def reshard(model: nn.Module) -> None:
    """Makes all parameters shards again: after a forward pass some are whole, and in the type that it computes in."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def gather(model: PreTrainedModel) -> PreTrainedModel:
    """A whole copy of a sharded model, on the CPU of every process. To be called on every process.

    It is built from the config, as `from_pretrained` builds a model, and gets the parameters one at a time, the
    buffers, the plan of an earlier cut and the generation config. Hooks and other attributes stay behind.

    Args:
        model (`PreTrainedModel`): see `is_sharded`.

    Returns:
        `PreTrainedModel`: of the class that the model had before it was sharded.

    Raises:
        `ValueError`: the config does not describe the model.
    """
    reshard(model)
    copied = _skeleton(model)
    values = {}  # by the parameter that each replaces: what was tied stays tied
    for name, parameter in copied.named_parameters():
        source = model.get_parameter(name)
        value = whole(source.detach()).to("cpu", copy=True)
        values[parameter] = nn.Parameter(value, requires_grad=source.requires_grad)
    for module in copied.modules():
        module._parameters.update({n: values[p] for n, p in module._parameters.items() if p is not None})
    for name, buffer in model.named_buffers():
        path, _, attribute = name.rpartition(".")
        copied.get_submodule(path)._buffers[attribute] = buffer.detach().to("cpu", copy=True)
    plan = getattr(model, "pruning_plan", None)
    if plan is not None:
        copied.pruning_plan = plan
    if model.can_generate():
        copied.generation_config = copy.deepcopy(model.generation_config)
    return copied.train(model.training)


def check_can_gather(model: PreTrainedModel) -> None:
    """Raises `ValueError` unless `gather` will be able to build the model from its config."""
    _skeleton(model)


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class, config and shapes, its values still to come."""
    from torch.distributed.fsdp import FSDPModule

    plain: type[PreTrainedModel] = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    # transformers 4 cuts heads by itself as it builds, which fails without storage.
    native = transformers.__version__.startswith("4.") and getattr(model.config, "pruned_heads", None)
    try:
        with torch.random.fork_rng([]), torch.device("cpu" if native else "meta"):
            built = plain(model.config)
    except TypeError as error:
        raise ValueError(
            f"FSDP: a {plain.__name__} cannot be built from its config alone, which the cut needs to make a sharded "
            "model whole; train it under DDP, or give its class an `__init__` that takes only the config"
        ) from error
    shapes, expected = (
        {name: tuple(tensor.shape) for name, tensor in [*m.named_parameters(), *m.named_buffers()]}
        for m in (built, model)
    )
    differences = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
    if differences:
        raise ValueError(
            f"FSDP: this {plain.__name__} is not what its config describes, and the cut builds it anew from that to "
            f"make a sharded model whole. They differ in {', '.join(differences[:5])}. Put the change into the config "
            "or the class, or train under DDP."
        )
    return built


@contextmanager
def whole_checkpoints(accelerator: Accelerator) -> Iterator[None]:
    """`Trainer.save_model` saves the whole model, also where FSDP saves shards to resume from; that alone, it would
    save nothing."""
    from torch.distributed.fsdp import StateDictType

    plugin = accelerator.state.fsdp_plugin
    before, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = before
