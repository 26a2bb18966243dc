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
"""Stored checkpoints: finding their files, reading them, and checking that they are whole and belong together."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..architectures.modeling_camcut import (
    DrawsNothing,
    PrunedModel,
    cut_configs,
    dimension,
    has_record,
    parts_of,
    recorded_sizes,
)
from ..architectures.recipes import stacks_of
from ..architectures.structure import kept_heads, list_blocks, list_groups, sublayer_of
from ..architectures.table import ARCHITECTURES
from ..methods import scorers_of
from ..planning.plan import PLAN_NAME, PLANS_NAME, PruningPlan, is_unit, is_weight, plain_shape, plan_of
from ..planning.units import mask_of
from ..surgery.vocabulary import check_count
from ..utils.files import read_json


logger = logging.getLogger(__name__)

ADAPTER_NAME = "adapter_config.json"  # of PEFT


def add_variant(name: str, variant: str | None) -> str:
    stem, _, extension = name.rpartition(".")
    return f"{stem}.{variant}.{extension}" if variant else name


def plain_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The transformers class that a pruned one is made from."""
    mixins = model_class.__mro__
    return mixins[mixins.index(PrunedModel) + 1] if PrunedModel in mixins else model_class


def find(name_or_path: str | Path, filename: str, hub: Mapping[str, Any]) -> str | None:
    """The path of a file of a checkpoint, downloaded if need be; None if the checkpoint has no such file."""
    return cached_file(
        str(name_or_path),
        filename,
        **hub,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def load_config(name_or_path: str | Path, hub: Mapping[str, Any]) -> PretrainedConfig:
    """Whatever transformers stumbles over in `config.json` is told as a fault of that file."""
    path = os.fspath(name_or_path)
    if not os.path.exists(path) and (os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"there is no folder {path} to load from (it cannot be the id of a Hub repository)")
    try:
        return AutoConfig.from_pretrained(name_or_path, **hub)
    except Exception as error:
        if find(name_or_path, CONFIG_NAME, hub) is None and find(name_or_path, ADAPTER_NAME, hub) is not None:
            raise ValueError(
                f"{name_or_path} holds a PEFT adapter, not a model: load the pruned model that it was trained on, and "
                f"put it on that, `PeftModel.from_pretrained(load_pruned(...), {path!r})`"
            ) from error
        if find(name_or_path, CONFIG_NAME, hub) is None and find(name_or_path, PLAN_NAME, hub) is not None:
            raise ValueError(
                f"{name_or_path} holds a plan and no config.json, as a module of your own is saved: build the module, "
                f"apply_plan(module, PruningPlan.load({path!r})), and load the weights into that"
            ) from error
        if isinstance(error, OSError):
            if path in str(error):
                raise
            raise OSError(f"{path} is no folder, and cannot be fetched from the Hub: {error}") from error
        unknown = re.search("model type `(.+?)` but Transformers does not recognize", str(error))
        if unknown:
            raise ValueError(
                f"{name_or_path} is a model of the type {unknown[1]!r}, which this transformers does not know: if its "
                f"classes are your own, import them and call `AutoConfig.register({unknown[1]!r}, YourConfig)` and "
                "`AutoModel.register(YourConfig, YourModel)` before; else take a newer transformers"
            ) from error
        raise ValueError(
            f"transformers cannot read config.json of {name_or_path}: {type(error).__name__}: {error!s:.500}; restore "
            "the file from where the model was saved"
        ) from error


# --- weights --------------------------------------------------------------------------------------------------------


class StoredWeights:
    """The tensors of a safetensors checkpoint, as the headers of its files tell; their names without the prefix that
    a model with a head adds to those of its body.

    Args:
        name_or_path: a folder, or the id of a Hub repository. Without files of weights there is nothing to check.
        prefix: `base_model_prefix` of the model's class.
        hub: where to find it, as keywords of transformers.
        variant: part of the files' names.

    Raises:
        `ValueError`: a file is missing, cut short or altered.
    """

    def __init__(
        self, name_or_path: str | Path, prefix: str, hub: Mapping[str, Any] | None = None, variant: str | None = None
    ):
        self.name_or_path, self.prefix = name_or_path, f"{prefix}."
        whole, listing = add_variant(SAFE_WEIGHTS_NAME, variant), add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
        files = {whole: find(name_or_path, whole, hub or {})}
        if files[whole] is None:
            index = find(name_or_path, listing, hub or {})
            names = read_json(index).get("weight_map") if index else {}
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise ValueError(f"{index} should hold 'weight_map', tensor name -> file; take the file anew")
            files = {name: find(name_or_path, name, hub or {}) for name in sorted(set(names.values()))}
        self.files: list[str] = []
        self.tensors: dict[str, tuple[str, list[int], str]] = {}  # file, shape and dtype
        for name, file in files.items():
            if file is None:
                raise ValueError(
                    f"{name} of {name_or_path} is missing, which holds a part of the weights; add the file"
                )
            self.files.append(file)
            try:
                with safe_open(file, framework="pt") as tensors:
                    for key in tensors.keys():
                        tensor = tensors.get_slice(key)
                        self.tensors[self._short(key)] = file, tensor.get_shape(), tensor.get_dtype()
            except SafetensorError as error:
                raise ValueError(f"{file} is cut short or was altered, take it anew: {error}") from error

    def _short(self, key: str) -> str:
        return key.removeprefix(self.prefix)

    def check_fit(self, model: PreTrainedModel, other_shapes: bool = False) -> None:
        """Compares a model that was just built with what is stored for it, before it is read.

        Args:
            other_shapes: what was not cut may have other shapes; it then starts at random.

        Raises:
            `ValueError`: names the group whose recorded size is not that of the weights, or the tensor.
        """
        blocks = tuple(f"{block}." for block in list_blocks(model)) if has_record(model.config) else ()
        wrong, suspect = None, other_shapes
        for key, tensor in model.state_dict().items():
            if self._short(key) not in self.tensors:
                suspect |= key.startswith(blocks)
                continue
            file, shape, dtype = self.tensors[self._short(key)]
            if shape != list(tensor.shape) or (tensor.is_floating_point() and "F" not in dtype):
                wrong = wrong or (
                    f"{file} holds {key!r} as {dtype} of shape {shape}, but config.json asks for {tensor.dtype} of "
                    f"shape {list(tensor.shape)}: the two do not belong together, or one was altered; take both anew"
                )
        if blocks and (wrong or suspect):
            self.check_groups(type(model), model.config)
        if wrong and not other_shapes:
            raise ValueError(wrong)

    def check_groups(self, model_class: type[PreTrainedModel], config: PretrainedConfig) -> None:
        """Compares the recorded sizes with what flows into the stored output projections.

        Raises:
            `ValueError`: names the group.
        """
        uncut = skeleton(plain_class(model_class), config)
        groups = list_groups(uncut)
        _check_any(self.name_or_path, config)
        sizes = recorded_sizes(config, {group.name: group.size for group in groups})
        for group in groups:
            first, output = (self._short(f"{group.slices[i].module}.weight") for i in (0, -1))
            if output not in self.tensors or group.observed != "inputs":  # experts are stored by other names
                continue
            expected = sizes.get(group.name, group.size)
            if group.kind == "layers":  # of a removed one the output projection alone is left, with no inputs
                stored: float = int(first in self.tensors)
            elif sizes.get(sublayer_of(group.name)) == 0:
                continue
            else:
                axis = dimension(uncut.get_submodule(group.output.module), "in")
                stored = (*self.tensors[output][1], 0, 0)[axis] / group.output.width
            if stored != expected:
                raise ValueError(
                    f"the checkpoint {self.name_or_path} records {expected} units for {group.name!r}, but its weights "
                    f"hold {stored:g}: config.json and the weights do not belong together"
                )


def skeleton(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """The model without storage, and uncut unless the class cuts."""
    uncut = copy.deepcopy(config)
    for each in (uncut, *cut_configs(uncut)):
        each.pruned_heads = {}  # transformers 4 would cut by itself, which fails without storage
    with torch.device("meta"), DrawsNothing():
        return model_class(uncut)


def check_complete(name_or_path: str | Path, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raises `ValueError` if weights that should be in the files are not.

    A head, or a pooler, that a model of another class lacks starts at random, as with any `from_pretrained`.
    """
    if type(model).__name__ not in (model.config.architectures or ()):
        blocks = tuple(f"{block}." for block in list_blocks(model)) if model.config.model_type in ARCHITECTURES else ()
        missing = [name for name in missing if name.startswith(blocks)]
    if missing:
        raise ValueError(
            f"the weights of {name_or_path} lack {', '.join(sorted(missing)[:5])}, which would start at random; take "
            "the files anew from where the model was saved"
        )


@torch.no_grad()
def check_finite(name_or_path: str | Path, model: PreTrainedModel) -> None:
    """Raises `ValueError` if weights that were loaded are no numbers. Of sharded ones, each process looks at its
    own."""
    for name, parameter in model.named_parameters():
        values = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if type(values) not in (torch.Tensor, nn.Parameter) or values.is_meta or not values.is_floating_point():
            continue  # quantized, or offloaded
        if values.element_size() == 1:
            continue  # quantized too: floats of 8 bits have no sum
        # A sum is finite only if all are, and takes a tenth of the time; a narrow dtype may overflow.
        if not values.sum().isfinite() and not values.isfinite().all():
            raise ValueError(
                f"{name!r} of {name_or_path} holds NaN or infinity as {parameter.dtype}: the file was altered, the "
                "training diverged, or the dtype is too narrow"
            )


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


# --- the plan -------------------------------------------------------------------------------------------------------


def load_plan(name_or_path: str | Path, model: PreTrainedModel, hub: Mapping[str, Any]) -> PruningPlan | None:
    path = find(name_or_path, PLAN_NAME, hub)
    return plan_of(model) if path is None else read_plan(name_or_path, model, read_json(path))


def load_plans(name_or_path: str | Path, model: PreTrainedModel, hub: Mapping[str, Any]) -> dict[str, PruningPlan]:
    """Path -> plan, of the parts of a composite model.

    Raises:
        `ValueError`: the file names a part that the model lacks, or its plan does not fit.
    """
    path, parts = find(name_or_path, PLANS_NAME, hub), parts_of(model)
    plans = {} if path is None else read_json(path)
    for name, values in plans.items():
        if name not in parts or not isinstance(values, dict):
            raise ValueError(
                f"{PLANS_NAME} of {name_or_path} holds no plan of a part of the model: {name!r}; its parts are "
                f"{', '.join(parts)}"
            )
    return {name: read_plan(name_or_path, parts[name], values) for name, values in plans.items()}


def read_plan(name_or_path: str | Path, model: PreTrainedModel, values: dict[str, Any]) -> PruningPlan:
    """The plan in a file, if it is of this model.

    Raises:
        `ValueError`: it does not fit the model, its config or its weights.
    """
    config = values.get("config")
    config = config if isinstance(config, dict) else {}
    method, kinds = config.get("method"), config.get("granularity")
    if isinstance(method, str) and method not in scorers_of(kinds if isinstance(kinds, list) else ()):
        logger.warning("the method %r is not registered here; the plan loads without it", method)
        values["config"] = None
    try:
        plan = PruningPlan.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{PLAN_NAME} of {name_or_path} holds no plan: {error}") from error
    if plan.model_type not in (None, model.config.model_type):
        raise ValueError(
            f"{PLAN_NAME} of {name_or_path} is for a {plan.model_type!r} model, but config.json is of a "
            f"{model.config.model_type!r}; the two files do not belong together"
        )
    plan = _rename_masks(plan, model)
    _check_masks(name_or_path, model, plan)
    check_count(f"{PLAN_NAME} of {name_or_path}", model, plan)
    units_of = {name: units for name, units in plan.keep.items() if is_unit(name)}
    # A quantizer replaces linear maps; the groups are then those of the model as it was before.
    listed = skeleton(type(model), model.config) if is_quantized(model) else model
    groups = {g.name: g for g in list_groups(listed)} if units_of or has_record(model.config) else {}
    if units_of:
        _check_any(name_or_path, model.config)
    cut = {name for name, units in units_of.items() if len(units) < plan.sizes.get(name, -1)}
    recorded = (
        set(recorded_sizes(model.config, {name: group.size for name, group in groups.items()}))
        if has_record(model.config)
        else set()
    )
    sized = not set(plan.keep) - set(plan.sizes)
    plain = sized and groups and not has_record(model.config) and plain_shape(model, plan) is not None
    if not sized or not (plain or cut == recorded):
        raise ValueError(
            f"{PLAN_NAME} of {name_or_path} cuts the groups {sorted(cut)}, but config.json records "
            f"{sorted(recorded)}; the two files do not belong together"
        )
    for name, units in units_of.items():
        if name not in groups or groups[name].size != len(units):
            size = groups[name].size if name in groups else "no such group"
            raise ValueError(
                f"{PLAN_NAME} of {name_or_path} keeps {len(units)} units of {name!r}, but the model has {size}"
            )
    for name, kept in kept_heads(model.config, len(list_blocks(model))).items() if has_record(model.config) else ():
        if name in cut and list(plan.keep[name]) != kept:
            raise ValueError(
                f"{PLAN_NAME} of {name_or_path} keeps the heads {list(plan.keep[name])} of {name!r}, but "
                f"config.json records {kept}; the two files do not belong together"
            )
    return plan


def _check_any(name_or_path: str | Path, config: PretrainedConfig) -> None:
    """Raises `ValueError` if of such a model nothing can be cut in this version of transformers."""
    entries = stacks_of(config).values()
    if all(
        entry.bypass is None and {part.kind for part in entry.sublayers} <= set(entry.refused) for entry in entries
    ):
        reason = next(reason for entry in entries for reason in entry.refused.values())
        raise ValueError(
            f"{name_or_path} is of a {config.model_type!r} model that was cut, and this is transformers "
            f"{transformers.__version__}: {reason}"
        )


def _rename_masks(plan: PruningPlan, model: PreTrainedModel) -> PruningPlan:
    """The plan with the parameter names of this model: a body is a part of models with a head, and the reverse. What
    another class lacks is left out."""
    if not any(map(is_weight, plan.keep)):
        return plan
    names, prefix = {name for name, _ in model.named_parameters(remove_duplicate=False)}, f"{model.base_model_prefix}."
    same_class = type(model).__name__ in (model.config.architectures or ())
    renamed = {}
    for name in plan.keep:
        known = [n for n in (name, prefix + name, name.removeprefix(prefix)) if n in names]
        if not is_weight(name) or known or same_class:
            renamed[name] = known[0] if is_weight(name) and known else name
    keep = {new: plan.keep[old] for old, new in renamed.items()}
    sizes = {new: plan.sizes[old] for old, new in renamed.items() if old in plan.sizes}
    return dataclasses.replace(plan, keep=keep, sizes=sizes)


def _check_masks(name_or_path: str | Path, model: PreTrainedModel, plan: PruningPlan) -> None:
    """Raises `ValueError` unless the weights that a plan masks are there, and zero."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, units in plan.keep.items():
        if not is_weight(name):
            continue
        size = parameters[name].numel() if name in parameters else "no such parameter"
        if size != plan.sizes.get(name):
            raise ValueError(
                f"{PLAN_NAME} of {name_or_path} masks {name!r} of {plan.sizes.get(name)} weights, but the model has "
                f"{size}"
            )
        if parameters[name].is_meta:  # offloaded: not here to be looked at
            continue
        nonzero = (parameters[name].detach().flatten() != 0).cpu().numpy()
        if (nonzero & ~mask_of(units, size)).any():
            raise ValueError(
                f"weights of {name!r} that {PLAN_NAME} of {name_or_path} masks are not zero: the two files do not "
                "belong together, or the model was trained without its masks (see hold_masks)"
            )
