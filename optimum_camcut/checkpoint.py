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
"""Checkpoints: writing them so that they load anywhere, and `load_pruned`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from . import modeling_camcut
from .card import CARD_NAME, write_card
from .files import read_json, sync, write_errors, write_text
from .hub import fetch, make_repo, push
from .masking import masked_weights, zero_weights
from .modeling_camcut import (
    ARCHITECTURES,
    RECORD,
    Group,
    PrunedModel,
    cut_groups,
    kept_heads,
    list_blocks,
    list_groups,
    pruned_class,
    recorded_sizes,
    sublayer_of,
)
from .plan import PLAN_NAME, PruningPlan, is_weight
from .scoring import scorers_of
from .units import mask_of


try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4
    from transformers.modeling_utils import no_init_weights

logger = logging.getLogger(__name__)

MODELING_NAME = "modeling_camcut.py"
SAVING = "_saving-"  # a folder for what is being written, by machine and process; hubs do not get it
SHIPPED_ARCHITECTURES = frozenset(ARCHITECTURES)
KINDS_OF_CHECKPOINT = {
    False: "a plain checkpoint, which from_pretrained loads with no extra code",
    True: "a pruned checkpoint, whose layers are smaller than its config's own fields can say; load it with "
    "load_pruned, or with trust_remote_code=True",
}
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class PrunedCheckpoint:
    """Mixed in before a transformers class: saves and loads what a pruned model needs beside its weights."""

    pruning_plan: PruningPlan | None = None

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """`PreTrainedModel.save_pretrained`, which also writes `pruning_plan.json`, `pruning_config.json`, a model
        card, and `modeling_camcut.py` unless the config's own fields describe the model. The weights are those of the
        pruned model.

        Args:
            save_directory: folder to write to, made if need be.
            is_main_process: False on all processes but one; those write nothing.
            push_to_hub: also upload the folder's files, but not its subfolders, in one commit to `repo_id` or a
                repository named like the folder.
            kwargs: passed on to transformers; with `push_to_hub`, also `repo_id`, `token`, `private`,
                `commit_message`, `revision` and `create_pr`.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError(
                "safe_serialization=False (save_safetensors=False of the training arguments) would write pickles; "
                "pruned models are written and read as safetensors only, so leave it out"
            )
        hub = {}
        if push_to_hub:
            names = ("repo_id", "commit_message", "private", "revision", "create_pr")
            hub = {name: kwargs.pop(name) for name in names if name in kwargs} | {"token": kwargs.get("token")}
        changed = zero_weights(self, masked_weights(self))
        if changed:
            logger.warning(
                "%d masked weights were not zero, and are again: the model was trained without its masks; train it "
                "with CamCutTrainer or inside hold_masks",
                changed,
            )
        cut = is_cut(self.config)
        if cut:
            self.config.auto_map = auto_map(self.config)
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, **kwargs)
            return
        save_directory = Path(save_directory)
        with _replacing_checkpoint(save_directory, kwargs.get("variant")) as folder:
            super().save_pretrained(folder, **kwargs)
            if cut:
                write_text(folder / MODELING_NAME, modeling_source(self.config.model_type))
            logger.info("writing %s: %s", save_directory, KINDS_OF_CHECKPOINT[cut])
            if self.pruning_plan is not None:
                self.pruning_plan.save(folder / PLAN_NAME)
                if self.pruning_plan.config is not None:
                    self.pruning_plan.config.save_pretrained(folder)
            if (save_directory / CARD_NAME).exists():
                shutil.copyfile(save_directory / CARD_NAME, folder / CARD_NAME)
            write_card(folder, self, location=save_directory.name)
        if not cut:
            (save_directory / MODELING_NAME).unlink(missing_ok=True)  # of an earlier save, which needed it
        if push_to_hub:
            _upload(self, save_directory, kwargs.get("variant"), **({"repo_id": save_directory.name} | hub))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> str:
        """Uploads everything that `save_pretrained` writes, in one commit, and returns the commit's address. The part
        on pruning is added to the card that the repository has.

        Args:
            repo_id: `"user/name"`; made if need be.
            revision: branch to push to; made if need be.
            kwargs: passed to `save_pretrained` (`max_shard_size`, ...).
        """
        repo_id = make_repo(repo_id, private, token, revision, create_pr)
        with tempfile.TemporaryDirectory() as folder:
            fetch(Path(folder), CARD_NAME, repo_id, token, None if create_pr else revision)
            self.save_pretrained(folder, **kwargs)
            return _upload(
                self, folder, kwargs.get("variant"), repo_id, commit_message, private, token, revision, create_pr
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies go by the class below, since the pruned one is made on demand."""
        mixins = type(self).__mro__
        return _empty, (mixins[mixins.index(PrunedModel) + 1],), self.__dict__

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """`PreTrainedModel.from_pretrained` for a pruned checkpoint; see `load_pruned`."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        with_info = kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True  # other files are pickles
        model, info = super().from_pretrained(name_or_path, *args, output_loading_info=True, **kwargs)
        _check_loaded(name_or_path, model, info["missing_keys"])
        model.pruning_plan = _load_plan(name_or_path, model, hub)
        return (model, info) if with_info else model


@functools.cache
def checkpoint_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The pruned counterpart of a transformers class, under the same name. Idempotent."""
    if issubclass(base, PrunedCheckpoint):
        return base
    if base.__module__.rpartition(".")[2] == modeling_camcut.__name__.rpartition(".")[2]:
        base = base.__mro__[2]  # loaded with trust_remote_code: the class below its copy of `PrunedModel`
    members = {"__module__": __name__, "__doc__": base.__doc__}
    return type(base.__name__, (PrunedCheckpoint, pruned_class(base)), members)


def _empty(base: type[PreTrainedModel]) -> PreTrainedModel:
    cls = checkpoint_class(base)
    return cls.__new__(cls)


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
    config = kwargs.get("config") or _load_config(name_or_path, hub)
    cut = is_cut(config)
    plan = None if cut else _find(name_or_path, PLAN_NAME, hub)
    if not cut and plan is None:
        raise ValueError(
            f"{name_or_path} is no pruned checkpoint: its config.json has neither {RECORD!r} nor 'pruned_heads', and "
            f"there is no {PLAN_NAME}. Load it with the from_pretrained of its transformers class."
        )
    if cut and config.model_type not in ARCHITECTURES:
        raise modeling_camcut.unsupported_architecture(config.model_type)
    if model_class is None:
        names = config.architectures if isinstance(config.architectures, list) else []
        name = names[0] if names else "missing"
        model_class = getattr(transformers, str(name), None)
        known = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
        if not known or not isinstance(config, model_class.config_class or ()):
            raise ValueError(
                f"transformers has no class {name!r} for a {config.model_type!r} model; pass model_class= to say what "
                "to load it as"
            )
    other_shapes = kwargs.get("ignore_mismatched_sizes", False)
    _check_weights(name_or_path, model_class, config, hub, kwargs.get("variant"), other_shapes)
    return checkpoint_class(model_class).from_pretrained(name_or_path, **kwargs)


def is_cut(config: PretrainedConfig) -> bool:
    """Whether the config is of a model that is physically smaller than its class builds it."""
    return getattr(config, RECORD, None) is not None or bool(getattr(config, "pruned_heads", None))


def plain_shape(config: PretrainedConfig, plan: PruningPlan) -> dict[str, int] | None:
    """Units of each kind that all layers have after a cut, if fields of the config can say so: else None.

    Args:
        config: of the model; its fields may be those of before or of after the cut.
        plan: with sizes, and the number of layers.
    """
    fields, shape = ARCHITECTURES[config.model_type].config_fields, {}
    cut = {n: len(units) for n, units in plan.keep.items() if not is_weight(n) and len(units) < plan.sizes[n]}
    for kind in {name.rpartition(".")[2] for name in cut}:
        sizes = {cut.get(f"layer.{layer}.{kind}") for layer in range(plan.num_layers or 0)}
        shape[kind] = sizes.pop() if len(sizes) == 1 and kind in fields else None
        if not shape[kind]:
            return None
    if "heads" in shape:  # the head size has a field of its own, and transformers 5 wants whole fractions all the same
        heads = shape["heads"] * config.num_attention_heads // getattr(config, fields["heads"][0])
        if not getattr(config, "head_dim", None) or config.hidden_size % heads:
            return None
    return shape


def _is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def auto_map(config: PretrainedConfig) -> dict[str, str]:
    """For every `AutoModel...` that knows this kind of config: its class in the stand-alone modeling file."""
    classes = {}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None) if name.startswith("Auto") else None
        if mapping is not None and type(config) in mapping:
            target = mapping[type(config)]
            target = target[0] if isinstance(target, tuple) else target
            classes[name] = f"{MODELING_NAME.removesuffix('.py')}.{target.__name__}"
    return classes


def modeling_source(model_type: str) -> str:
    """The stand-alone modeling file, with the architecture's entry added if it was registered by the user."""
    source = Path(modeling_camcut.__file__).read_text(encoding="utf-8")
    if model_type not in SHIPPED_ARCHITECTURES:
        source += f"\n\nARCHITECTURES[{model_type!r}] = {ARCHITECTURES[model_type]!r}\n"
    return source


def _weights_files(variant: str | None) -> re.Pattern:
    """Names of the files that hold weights, and of their index."""
    suffix = re.escape(f".{variant}") if variant else ""
    return re.compile(rf"model{suffix}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{suffix}\.json")


@contextmanager
def _replacing_checkpoint(folder: Path, variant: str | None) -> Iterator[Path]:
    """Gives a temporary folder in `folder`, whose files move there when all of them are written, each by one renaming.
    Weights of an earlier save that are not replaced go.

    At no moment does `folder` load as a mixture of two sets of weights: shards are replaced by others of the same
    name only while no index lists them, and a save that is killed just then leaves weights that do not load.
    """
    weights = _weights_files(variant)
    index = _add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
    temporary = folder / f"{SAVING}{socket.gethostname()}-{os.getpid()}"
    with write_errors(folder):
        try:
            _remove_killed(folder)
            temporary.mkdir(parents=True)
            yield temporary
            files = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()]
            files.sort(key=lambda name: (name == index, bool(weights.fullmatch(name))))
            for name in files:
                sync(temporary / name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    with write_errors(folder, f"Make room and save again; what was saved in part is in {temporary.name}."):
        before = {name for name in os.listdir(folder) if weights.fullmatch(name)}
        replaced = before.intersection(files)
        if index in replaced and len(replaced) > 1:
            (folder / index).unlink()
        for name in files:
            os.replace(temporary / name, folder / name)
        for name in before.difference(files):
            (folder / name).unlink()
    shutil.rmtree(temporary, ignore_errors=True)


def _remove_killed(folder: Path) -> None:
    """Removes what saves left in a folder that were killed on this machine."""
    for path in folder.glob(f"{SAVING}{socket.gethostname()}-*"):
        with suppress(ValueError, PermissionError):  # not ours
            number = int(path.name.rpartition("-")[2])
            try:
                os.kill(number, 0)
                alive = number != os.getpid()
            except ProcessLookupError:
                alive = False
            if not alive:
                shutil.rmtree(path, ignore_errors=True)


def _add_variant(name: str, variant: str | None) -> str:
    stem, _, extension = name.rpartition(".")
    return f"{stem}.{variant}.{extension}" if variant else name


def _upload(
    model: PreTrainedModel,
    folder: str | Path,
    variant: str | None,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    repo_id = make_repo(repo_id, private, token, revision, create_pr)
    write_card(folder, model, location=repo_id, revision=None if create_pr else revision)
    message = commit_message or "Upload pruned model"
    return push(folder, repo_id, message, token, revision, create_pr, replaced=_weights_files(variant))


def _find(name_or_path: str | Path, filename: str, hub: Mapping[str, Any]) -> str | None:
    return cached_file(
        str(name_or_path),
        filename,
        **hub,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _load_config(name_or_path: str | Path, hub: Mapping[str, Any]) -> PretrainedConfig:
    """Whatever transformers stumbles over in `config.json` is told as a fault of that file."""
    try:
        return AutoConfig.from_pretrained(name_or_path, **hub)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"transformers cannot read config.json of {name_or_path}: {type(error).__name__}: {error!s:.500}; restore "
            "the file from where the model was saved"
        ) from error


def _load_plan(name_or_path: str | Path, model: PreTrainedModel, hub: Mapping[str, Any]) -> PruningPlan | None:
    path = _find(name_or_path, PLAN_NAME, hub)
    if path is not None:
        values = read_json(path)
        config = values.get("config") if isinstance(values.get("config"), dict) else {}
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
        units_of = {name: units for name, units in plan.keep.items() if not is_weight(name)}
        # A quantizer replaces linear maps; the groups are then those of the model as it was before.
        listed = _skeleton(type(model), model.config) if _is_quantized(model) else model
        groups = {g.name: g for g in list_groups(listed)} if units_of or is_cut(model.config) else {}
        cut = {name for name, units in units_of.items() if len(units) < plan.sizes.get(name, -1)}
        recorded = set(recorded_sizes(model.config, list(groups.values()))) if is_cut(model.config) else set()
        sized = not set(plan.keep) - set(plan.sizes)
        plain = sized and groups and not is_cut(model.config) and plain_shape(model.config, plan) is not None
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
        for name, kept in kept_heads(model.config, len(list_blocks(model))).items() if is_cut(model.config) else ():
            if name in cut and list(plan.keep[name]) != kept:
                raise ValueError(
                    f"{PLAN_NAME} of {name_or_path} keeps the heads {list(plan.keep[name])} of {name!r}, but "
                    f"config.json records {kept}; the two files do not belong together"
                )
        return plan
    return plan_of(model)


def plan_of(model: PreTrainedModel) -> PruningPlan | None:
    """What was cut or masked in a model: its plan, or what transformers 4 itself has cut. None if that is nothing, or
    if the plan was lost."""
    plan, config = getattr(model, "pruning_plan", None), model.config
    if plan is not None or getattr(config, RECORD, None) is not None or not getattr(config, "pruned_heads", None):
        return plan
    keep = kept_heads(config, len(list_blocks(model)))
    return PruningPlan(keep, dict.fromkeys(keep, config.num_attention_heads), config.model_type)


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


def _check_weights(
    name_or_path: str | Path,
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    hub: Mapping[str, Any],
    variant: str | None,
    other_shapes: bool,
) -> None:
    """Compares the recorded sizes with the weights before any memory is taken, to name what is wrong. Not of weights
    that were saved quantized, which only their quantizer can read."""
    if getattr(config, "quantization_config", None) is not None:
        return
    model = _skeleton(model_class, config)
    prefix = f"{model.base_model_prefix}."
    stored = {key.removeprefix(prefix): tensor for key, *tensor in _stored_tensors(name_or_path, hub, variant)}
    if is_cut(config):
        groups = list_groups(model)
        sizes = recorded_sizes(config, groups)
        _check_groups(name_or_path, model, groups, sizes, {key: shape for key, (_, shape, _) in stored.items()})
        cut_groups(model, [(group, range(sizes[group.name])) for group in groups if group.name in sizes])
    for key, tensor in {} if other_shapes else model.state_dict().items():
        file, shape, dtype = stored.get(key.removeprefix(prefix), (None, list(tensor.shape), "F32"))
        if shape != list(tensor.shape) or (tensor.is_floating_point() and "F" not in dtype):
            raise ValueError(
                f"{file} holds {key!r} as {dtype} of shape {shape}, but config.json asks for {tensor.dtype} of shape "
                f"{list(tensor.shape)}: the two do not belong together, or one was altered; take both anew"
            )


def _skeleton(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """The model without storage, and uncut unless the class cuts."""
    uncut = copy.deepcopy(config)
    uncut.pruned_heads = {}  # transformers 4 would cut by itself, which fails without storage
    with torch.device("meta"), no_init_weights():
        return model_class(uncut)


def _check_groups(
    name_or_path: str | Path,
    model: PreTrainedModel,
    groups: Iterable[Group],
    sizes: Mapping[str, int],
    shapes: Mapping[str, list[int]],
) -> None:
    """Compares the recorded sizes with what flows into the stored output projections."""
    prefix = f"{model.base_model_prefix}."
    for group in groups:
        first, output = (f"{group.slices[i].module}.weight".removeprefix(prefix) for i in (0, -1))
        if output not in shapes:
            continue
        expected = sizes.get(group.name, group.size)
        if group.kind == "layers":
            stored = int(first in shapes)  # of a removed sub-layer the output projection alone is left, with no inputs
        elif sizes.get(sublayer_of(group.name)) == 0:
            continue
        else:
            axis = modeling_camcut._dimension(model.get_submodule(group.output.module), "in")
            stored = (*shapes[output], 0, 0)[axis] / group.output.width
        if stored != expected:
            raise ValueError(
                f"the checkpoint {name_or_path} records {expected} units for {group.name!r}, but its weights hold "
                f"{stored:g}: config.json and the weights do not belong together"
            )


def _stored_tensors(
    name_or_path: str | Path, hub: Mapping[str, Any], variant: str | None
) -> Iterator[tuple[str, str, list[int], str]]:
    """Name, file, shape and dtype of all tensors of a safetensors checkpoint, from the files' headers."""
    whole, listing = _add_variant(SAFE_WEIGHTS_NAME, variant), _add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
    files = {whole: _find(name_or_path, whole, hub)}
    if files[whole] is None:
        index = _find(name_or_path, listing, hub)
        names = read_json(index).get("weight_map") if index else {}
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index} should hold 'weight_map', tensor name -> file; take the file anew")
        files = {name: _find(name_or_path, name, hub) for name in sorted(set(names.values()))}
    for name, file in files.items():
        if file is None:
            raise ValueError(f"{name} of {name_or_path} is missing, which holds a part of the weights; add the file")
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    tensor = tensors.get_slice(key)
                    yield key, file, tensor.get_shape(), tensor.get_dtype()
        except SafetensorError as error:
            raise ValueError(f"{file} is cut short or was altered, take it anew: {error}") from error


def _check_loaded(name_or_path: str | Path, model: PreTrainedModel, missing: Iterable[str]) -> None:
    """Raises `ValueError` if weights that should be in the files are not, or are no numbers.

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
    quantized = _is_quantized(model)
    for name, parameter in model.named_parameters():
        if (
            parameter.is_meta
            or not parameter.is_floating_point()
            or (quantized and type(parameter) is not nn.Parameter)
        ):
            continue  # offloaded, or quantized on the way in
        # A sum is finite only if all are, and takes a tenth of the time; a narrow dtype may overflow.
        if not parameter.sum().isfinite() and not parameter.isfinite().all():
            raise ValueError(
                f"{name!r} of {name_or_path} holds NaN or infinity as {parameter.dtype}: the file was altered, the "
                "training diverged, or the dtype is too narrow"
            )
