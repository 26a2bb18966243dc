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
"""Lets the classes of transformers, and so its auto classes and pipelines, load what was pruned.

Nothing here imports torch or transformers: it is read with the package.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def let_classes_load_pruned(modeling_utils: ModuleType) -> None:
    """Lets `from_pretrained` of every transformers class build a model to the sizes that its config records. Where
    there is no record, it does as before.

    Args:
        modeling_utils: `transformers.modeling_utils`.
    """
    base = modeling_utils.PreTrainedModel
    plain = base.from_pretrained.__func__

    @functools.wraps(plain)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not _loads_pruned(cls) and _is_pruned(pretrained_model_name_or_path, kwargs):
            if args:
                raise TypeError("a pruned model is loaded with keywords alone behind its name")
            from .checkpoint import load_pruned

            return load_pruned(pretrained_model_name_or_path, model_class=cls, **kwargs)
        return plain(cls, pretrained_model_name_or_path, *args, **kwargs)

    base.from_pretrained = classmethod(from_pretrained)


def _loads_pruned(model_class: Any) -> bool:
    """Whether a class does so by itself, be it from this package or from a checkpoint's own file."""
    return any(each.__name__ == "PrunedModel" for each in model_class.__mro__)


def _is_pruned(name_or_path: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether the config that a model will be built by holds a record. One that cannot be had or read holds none:
    transformers then tells what is wrong with it."""
    from transformers import PretrainedConfig
    from transformers.utils import CONFIG_NAME

    config = kwargs.get("config")
    if isinstance(config, PretrainedConfig):  # as the auto classes pass it
        return _holds_record(config.to_dict())
    if name_or_path is None or kwargs.get("gguf_file"):
        return False
    from ..architectures.modeling_camcut import HUB_ARGUMENTS
    from ..utils.files import read_json
    from .stored import find

    path = str(config or name_or_path)
    try:
        if not os.path.isfile(path):
            path = find(path, CONFIG_NAME, {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}) or ""
        return bool(path) and _holds_record(read_json(path))
    except (OSError, ValueError):
        return False


def _holds_record(found: Any) -> bool:
    """Whether `config.json`, or a part of it, does."""
    import transformers

    from ..architectures.modeling_camcut import RECORD

    if not isinstance(found, dict):
        return False
    heads = found.get("pruned_heads") and not transformers.__version__.startswith("4.")  # which builds those by itself
    return bool(found.get(RECORD) or heads) or any(map(_holds_record, found.values()))
