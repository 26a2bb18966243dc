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
"""The classes of pruned models, which save and load them, and `load_pruned`."""

from __future__ import annotations

import copy
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, modeling_utils

from ..architectures import modeling_camcut
from ..architectures.entry import SUBLAYERS
from ..architectures.modeling_camcut import HUB_ARGUMENTS, RECORD, cut_configs, has_record, pruned_class
from ..architectures.structure import check_supported, sub_configs
from ..architectures.table import ARCHITECTURES, unsupported_architecture
from ..planning.plan import PLAN_NAME, PLANS_NAME
from .quantized import leaving_out
from .saving import SavesWhole
from .stored import (
    StoredWeights,
    check_complete,
    check_finite,
    find,
    load_config,
    load_plan,
    load_plans,
    plain_class,
    skeleton,
)


class Loading(NamedTuple):
    """What a model that is built now will be filled with."""

    weights: StoredWeights
    other_shapes: bool  # of what was not cut, which then starts at random
    quantize: bool  # on the way in; weights that were saved quantized can only be read by their quantizer


_loading: ContextVar[Loading | None] = ContextVar("_loading", default=None)


class PrunedCheckpoint(SavesWhole):
    """Mixed in before a transformers class: saves and loads what a pruned model needs beside its weights."""

    _unread: str | None = None  # where the weights are from, until all were looked at

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any):
        loading = _loading.get()
        _loading.set(None)  # this model alone is filled, not what it may build inside
        if loading and not loading.quantize and getattr(config, "quantization_config", None) is not None:
            loading = None
        if loading and has_record(config) and transformers.__version__.startswith("4."):
            loading.weights.check_groups(type(self), config)
        super().__init__(config, *args, **kwargs)
        if loading:
            loading.weights.check_fit(self, loading.other_shapes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Before the first answer, looks for NaN and infinity among the weights. Not while loading, which only maps
        the files: to read all of them takes as long as the rest, and the answer needs it anyway. Nor while the model
        is compiled or traced, which would make the look a part of it.

        Raises:
            `ValueError`: names the weight.
        """
        if self._unread is not None and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # type: ignore[attr-defined]  # torch does not list it
            check_finite(self._unread, self)
            self._unread = None
        return super().__call__(*args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Asked by transformers 5 before it renames weights of older checkpoints: these have the model's own names."""
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies go by the class below, since the pruned one is made on demand."""
        return _empty, (plain_class(type(self)),), self.__dict__

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """`PreTrainedModel.from_pretrained` for a pruned checkpoint; see `load_pruned`."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        with_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True  # other files are pickles
        quantize = kwargs.get("quantization_config") is not None
        if quantize:
            config = kwargs.get("config")
            if not isinstance(config, PretrainedConfig):
                config = load_config(config or pretrained_model_name_or_path, hub)
            quantize = getattr(config, "quantization_config", None) is None
            kwargs["quantization_config"] = leaving_out(cls, config, kwargs["quantization_config"])
        stored = StoredWeights(pretrained_model_name_or_path, cls.base_model_prefix, hub, kwargs.get("variant"))
        loading = _loading.set(Loading(stored, kwargs.get("ignore_mismatched_sizes", False), quantize))
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        finally:
            _loading.reset(loading)
        check_complete(pretrained_model_name_or_path, model, info["missing_keys"])
        model._unread = str(pretrained_model_name_or_path)
        model.pruning_plan = load_plan(pretrained_model_name_or_path, model, hub)
        for path, plan in load_plans(pretrained_model_name_or_path, model, hub).items():
            part = model.get_submodule(path)
            part.pruning_plan, part.__class__ = plan, checkpoint_class(type(part))
        return (model, info) if with_info else model


def checkpoint_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The pruned counterpart of a transformers class, under the same name. Idempotent."""
    if issubclass(base, PrunedCheckpoint):
        return base
    if base not in _made:
        plain: Any = base
        if base.__module__.rpartition(".")[2] == modeling_camcut.__name__.rpartition(".")[2]:
            plain = base.__mro__[2]  # loaded with trust_remote_code: the class below its copy of `PrunedModel`
        members = {"__module__": plain.__module__, "__doc__": plain.__doc__}  # optimum reads the library off it
        _made[base] = type(plain.__name__, (PrunedCheckpoint, pruned_class(plain)), members)
        _let_record(_made[base])
    return _made[base]


def _let_record(made: Any) -> None:
    """Lets models of a class give hidden states and attentions. transformers 5 notes which classes do when a model is
    built; one that was cut has got its class later."""
    registry = getattr(modeling_utils, "_CAN_RECORD_REGISTRY", None)
    if registry is not None:
        dict.__setitem__(registry, str(made), made._can_record_outputs)


_made: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}  # one for each class


def _empty(base: type[PreTrainedModel]) -> PreTrainedModel:
    return object.__new__(checkpoint_class(base))


def _saved_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The transformers class that a config says its model was saved from."""
    names = config.architectures if isinstance(config.architectures, list) else []
    name = names[0] if names else "missing"
    found = getattr(transformers, str(name), None)
    known = isinstance(found, type) and issubclass(found, PreTrainedModel)
    if found is None or not known or not isinstance(config, found.config_class or ()):
        raise ValueError(
            f"transformers has no class {name!r} for a {config.model_type!r} model; pass model_class= to say what to "
            "load it as"
        )
    return found


def _check_record(
    name_or_path: str | Path, config: PretrainedConfig, model_class: type[PreTrainedModel] | None, hub: dict[str, Any]
) -> None:
    """Raises `ValueError` if a composite model has no record, but weights that are smaller than its config says."""
    model_class = model_class or _saved_class(config)
    try:
        stored = StoredWeights(name_or_path, model_class.base_model_prefix, hub)
        stored.check_fit(skeleton(model_class, config))
    except ValueError as error:
        raise ValueError(
            f"{error}. If a part of the model was cut, config.json has lost the record of it. Where the part is still "
            "in memory or was saved on its own, cut the part of a whole model by its plan, "
            "`apply_plan(model.encoder, PruningPlan.load(...))`, load these weights into that, and save it anew"
        ) from error


def _derive(config: PretrainedConfig, model_class: type[PreTrainedModel] | None) -> None:
    """Adds an entry for a type that has none, found on a model as it was before it was cut.

    Raises:
        `ValueError`: none can be found, or the model is a part of another one.
    """
    if model_class is None:
        raise ValueError(unsupported_architecture(config.model_type))
    sizes = (getattr(config, RECORD, None) or {}).get("sizes", {})
    gone = [name for name, size in sizes.items() if size == 0 and name.rpartition(".")[2] in SUBLAYERS.values()]
    if gone:
        raise ValueError(
            f"{config.model_type!r} has no entry here, and the checkpoint lacks whole sub-layers ({gone[0]!r}), which "
            "no derived entry has: add the entry that it was cut by, ARCHITECTURES[...] = Architecture(...) with "
            "`bypass`, before load_pruned"
        )
    uncut = copy.deepcopy(config)
    setattr(uncut, RECORD, None)
    uncut.pruned_heads = {}
    check_supported(plain_class(model_class)(uncut))  # derives it, unless it has been for the same config


def load_pruned(
    name_or_path: str | Path, *, model_class: type[PreTrainedModel] | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Loads a pruned checkpoint as the transformers class it was saved from.

    Also loads checkpoints whose heads were pruned by transformers 4 itself, and the plain ones of models that were cut
    evenly or masked; loaded here they also have their plan, which training and further cuts go by.

    Args:
        name_or_path: a folder, or the id of a Hub repository.
        model_class: load as this class instead (another task head, or a class of your own).
        kwargs: passed to the class's `from_pretrained` (`dtype`, `device_map`, `revision`, `token`, ...).

    Returns:
        `PreTrainedModel`: in evaluation mode, with its `PruningPlan` as `model.pruning_plan`.

    Raises:
        `ValueError`: the checkpoint is not pruned, or its recorded sizes do not fit the architecture, the plan or the
            weights, or a file was altered or is not whole; the message names the group, or the file.
        `OSError`: a file is missing, or cannot be read; of weights, only safetensors are.
    """
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    config = kwargs.get("config")
    if not isinstance(config, PretrainedConfig):
        config = load_config(config or name_or_path, hub)
        if "config" in kwargs:  # the name of another one
            kwargs["config"] = config
    cut = cut_configs(config)
    planned = cut or any(find(name_or_path, name, hub) is not None for name in (PLAN_NAME, PLANS_NAME))
    if not planned:
        if sub_configs(config):
            _check_record(name_or_path, config, model_class, hub)
        raise ValueError(
            f"{name_or_path} is no pruned checkpoint: its config.json has neither {RECORD!r} nor 'pruned_heads', and "
            f"there is no {PLAN_NAME}. Load it with the from_pretrained of its transformers class."
        )
    model_class = model_class or _saved_class(config)
    for part in cut:
        if part.model_type not in ARCHITECTURES or part.model_type in ARCHITECTURES.derived:
            _derive(part, model_class if part is config else None)
    own = isinstance(config, model_class.config_class or ())
    if own and set(kwargs) <= {*HUB_ARGUMENTS, "dtype", "device_map"}:  # nothing that changes it
        kwargs["config"] = config
    return checkpoint_class(model_class).from_pretrained(name_or_path, **kwargs)
