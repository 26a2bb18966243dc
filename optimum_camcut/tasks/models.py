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
"""Models and tokenizers, loaded for a task."""

from __future__ import annotations

import logging
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.structure import is_cut
from ..checkpoints.checkpoint import load_pruned
from ..checkpoints.stored import find, load_config
from ..planning.plan import PLAN_NAME
from .task import Task


logger = logging.getLogger(__name__)

PROCESSOR_NAMES = (
    "preprocessor_config.json",
    "processor_config.json",
)


def load_model(
    name: str, task: Task | None = None, *, dtype: torch.dtype | str = torch.float32, revision: str | None = None
) -> PreTrainedModel:
    """Loads a dense or a pruned model.

    Args:
        name: a folder or a Hub id.
        task: what it is for. Default: what it was saved as.
        dtype: of the weights; `"auto"` as they were saved.
        revision: branch, tag or commit on the Hub.

    Raises:
        `ValueError`: the architecture has no class for the task, or its head tells other classes apart than the data.
    """
    hub = {"revision": revision} if revision else {}
    config = load_config(name, hub)
    saved = (config.architectures or [None])[0]
    if task is None:
        model_class = getattr(transformers, str(saved), None)
        if model_class is None:
            raise ValueError(f"the config of {name} names no class of transformers to load it as, but {saved!r}")
    else:
        names = [f"AutoModelFor{head}" if head else "AutoModel" for head in (task.head, *task.other_heads)]
        fitting = [each for each in (getattr(transformers, n) for n in names) if type(config) in each._model_mapping]
        if not fitting:
            raise ValueError(f"{config.model_type!r} models have no head for {task.name} ({', '.join(names)})")
        auto_class = fitting[0]
        model_class = auto_class._model_mapping[type(config)]
        if model_class.__name__ == saved:
            task.check_head(config)
        elif not task.embeds:  # what does has no head
            task.set_head(config)
            logger.warning(
                "%s was saved as %s: its head for %s starts at random, so train it (dense_epochs) before it is scored",
                name,
                saved,
                task.name,
            )
    if is_cut(config) or find(name, PLAN_NAME, hub) is not None:
        return load_pruned(name, model_class=model_class, config=config, dtype=dtype, **hub)
    return model_class.from_pretrained(name, config=config, dtype=dtype, **hub).eval()


def load_processor(name: str, task: Task, model: PreTrainedModel, revision: str | None = None) -> Any:
    """What makes inputs of rows for a model: a tokenizer, or what else the task takes.

    Raises:
        `ValueError`: there is none. transformers 5 would make one with the settings of another model.
    """
    if task.processor == "AutoTokenizer":
        return load_tokenizer(name, model, revision)
    hub = {"revision": revision} if revision else {}
    if all(find(name, file, hub) is None for file in PROCESSOR_NAMES):
        raise ValueError(
            f"{name} has no {' or '.join(PROCESSOR_NAMES)}, which say how {task.reads}s become inputs; name the model "
            "that it was made from by --tokenizer"
        )
    return getattr(transformers, task.processor).from_pretrained(name, **hub)


def load_tokenizer(name: str, model: PreTrainedModel, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a token to pad with.

    Raises:
        `ValueError`: there is none. transformers 5 would make an empty one.
    """
    return checked_tokenizer(
        AutoTokenizer.from_pretrained(name, **({"revision": revision} if revision else {})), name, model
    )


def checked_tokenizer(
    tokenizer: PreTrainedTokenizerBase, name: str, model: PreTrainedModel
) -> PreTrainedTokenizerBase:
    """A tokenizer that was loaded, with a token to pad with.

    Raises:
        `ValueError`: it is empty, or has no token to pad with.
    """
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"there is no tokenizer in {name}; name that of the model it was made from by --tokenizer")
    if tokenizer.pad_token is None:  # decoders are trained without one
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {name} has no token to pad with, nor one for the end of a text to take for it: set its "
            "pad_token, and save it"
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer
