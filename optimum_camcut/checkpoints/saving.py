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
"""Saving: what is written so that a pruned model loads anywhere, and never a mixture of two saves."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..architectures.modeling_camcut import cut_configs, parts_of, write_hint
from ..architectures.standalone import modeling_source
from ..architectures.structure import is_cut
from ..planning.plan import PLAN_NAME, PLANS_NAME, PruningPlan
from ..surgery.masking import make_plans_true
from ..utils.files import sync, write_errors, write_json, write_text
from ..utils.handed_in import handed_in
from ..utils.hub import fetch, make_repo, push
from .stored import add_variant


if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Mixed  # which comes behind what is mixed in
else:
    _Mixed = object

logger = logging.getLogger(__name__)

MODELING_NAME = "modeling_camcut.py"
CARD_NAME = "README.md"
SAVING = "_saving-"  # a folder for what is being written, by machine and process; hubs do not get it
KINDS_OF_CHECKPOINT = {
    False: "a plain checkpoint, which from_pretrained loads with no extra code",
    True: "a pruned checkpoint, whose layers are smaller than its config's own fields can say; load it with "
    "load_pruned, or with trust_remote_code=True",
}


class SavesWhole(_Mixed):
    """Mixed in before a transformers class: saves, beside the weights, all that loading them takes."""

    pruning_plan: PruningPlan | None = None

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """`PreTrainedModel.save_pretrained`, which also writes `pruning_plan.json`, `pruning_config.json`, a model
        card, and `modeling_camcut.py` unless the config's own fields describe the model. The weights are those of the
        model as it is: where masked ones are no longer zero, its plan no longer masks them, with a warning.

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
        hub: dict[str, Any] = {}
        if push_to_hub:
            names = ("repo_id", "commit_message", "private", "revision", "create_pr")
            hub = {name: kwargs.pop(name) for name in names if name in kwargs} | {"token": kwargs.get("token")}
        changed = make_plans_true(self, kwargs.get("state_dict"))
        if changed:
            logger.warning(
                "%d masked weights are no longer zero: an adapter was merged, or the model was trained without its "
                "masks. They are saved as they are, and the plan no longer masks them. To keep them at zero, train "
                "with CamCutTrainer or inside hold_masks; apply_plan(model, plan) with the plan from before sets them "
                "to zero again, which changes what the model computes",
                changed,
            )
        cut = is_cut(self.config)
        plans = {path: part.pruning_plan.to_dict() for path, part in planned_parts(self).items()}
        if cut:
            self.config.auto_map = auto_map(self)
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, **kwargs)
            return
        save_directory = Path(save_directory)
        with _replacing_checkpoint(save_directory, kwargs.get("variant")) as folder:
            super().save_pretrained(folder, **kwargs)
            if cut:
                configs = {config.model_type: config for config in cut_configs(self.config)}
                write_text(folder / MODELING_NAME, modeling_source(*configs.values()))
                write_hint(self.config, folder)
            logger.info("writing %s: %s", save_directory, KINDS_OF_CHECKPOINT[cut])
            if self.pruning_plan is not None:
                self.pruning_plan.save(folder / PLAN_NAME)
                if self.pruning_plan.config is not None:
                    self.pruning_plan.config.save_pretrained(folder)
            if plans:
                write_json(folder / PLANS_NAME, plans)
            if (save_directory / CARD_NAME).exists():
                shutil.copyfile(save_directory / CARD_NAME, folder / CARD_NAME)
            handed_in("write_card")(folder, self, location=save_directory.name)
        if not cut:
            (save_directory / MODELING_NAME).unlink(missing_ok=True)  # of an earlier save, which needed it
        if not plans:
            (save_directory / PLANS_NAME).unlink(missing_ok=True)
        if push_to_hub:
            _upload(self, save_directory, kwargs.get("variant"), **{"repo_id": save_directory.name, **hub})

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


def auto_map(model: PreTrainedModel) -> dict[str, str]:
    """For every `AutoModel...` that knows the model's kind of config: its class in the stand-alone modeling file,
    which refuses weights that it would not find, of a class of the user's own."""
    config, classes = model.config, {}
    for name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None) if name.startswith("Auto") else None
        if mapping is not None and type(config) in mapping:
            target = mapping[type(config)]
            target = target[0] if isinstance(target, tuple) else target
            if not target.__module__.startswith("transformers."):
                continue  # of the user's own: `load_pruned(folder, model_class=...)` alone finds it
            classes[name] = f"{MODELING_NAME.removesuffix('.py')}.{target.__name__}"
    return classes


def planned_parts(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Path -> part of a composite model that has a plan."""
    parts = parts_of(model).items()
    return {path: part for path, part in parts if getattr(part, "pruning_plan", None) is not None}


def _weights_files(variant: str | None) -> re.Pattern[str]:
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
    index = add_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
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
    handed_in("write_card")(folder, model, location=repo_id, revision=None if create_pr else revision)
    message = commit_message or "Upload pruned model"
    return push(folder, repo_id, message, token, revision, create_pr, replaced=_weights_files(variant))
