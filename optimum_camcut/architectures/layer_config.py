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
"""Attention that asks the config of the whole model how many heads it has: each layer sees its own number.

Checkpoints of architectures with such layers carry this file too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from .modeling_camcut import BEFORE_CUT, at, blocks_of


class LayerConfig:
    """The config as one layer sees it: some values are its own."""

    def __init__(self, config: Any):
        vars(self)["config"] = config

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "config":
            raise AttributeError(name)
        return getattr(self.config, name)


def give_own_config(model: PreTrainedModel, kept: Mapping[str, Sequence[int]]) -> None:
    """Lets all layers have numbers of their own, those of now, before some are cut: the config may change then."""
    for block in blocks_of(model) if kept else ():
        for part in block.parts.values():
            for path in part.get("counts", ()):
                owner, _, name = path.rpartition(".config.")
                module = at(model, f"{block.path}.{owner}") if owner else None
                if module is not None and hasattr(module, "config"):
                    seen = module.config if isinstance(module.config, LayerConfig) else LayerConfig(module.config)
                    vars(seen).setdefault(name, getattr(seen, name))
                    module.config = seen


BEFORE_CUT.append(give_own_config)
