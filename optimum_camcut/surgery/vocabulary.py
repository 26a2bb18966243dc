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
"""What a model and its configs say of tokens by their numbers, after a cut of the vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup
from ..architectures.vocabulary import OF_TOKENS, SUPPRESSED, VOCABULARY, all_configs, resize
from ..planning.plan import PruningPlan


# Lists of sequences of tokens: one with a token that is gone is gone itself. What forces tokens would change the text.
SEQUENCES = ("bad_words_ids",)
REFUSED = ("force_words_ids", "forced_decoder_ids", "sequence_bias")


def check_tokens(model: PreTrainedModel, group: PrunableGroup, keep: Sequence[int], owned: bool) -> None:
    """Raises `ValueError` if a config names a token that goes, or one where it is not numbered anew.

    Args:
        keep: units that stay.
        owned: whether another transformers model holds this one as a part.
    """
    if owned:
        raise ValueError(
            f"the vocabulary of this {type(model).__name__} is that of the model around it, too, which numbers tokens "
            "in its own config: apply the plan to the whole model"
        )
    kept = set(keep)
    gone = [number for number in group.needed if group.units[number] not in kept]
    if gone:
        raise ValueError(
            f"the plan removes the token {gone[0]}, which the config of this {type(model).__name__} or its generation "
            "config names: keep it"
        )
    if not kept:
        raise ValueError("the plan keeps no token at all")
    check_generation(model)


def check_generation(model: PreTrainedModel) -> None:
    """Raises `ValueError` if a generation config names tokens where they are not numbered anew."""
    generation = vars(model.generation_config) if getattr(model, "generation_config", None) is not None else {}
    for name in REFUSED:
        if generation.get(name) or getattr(model.config, name, None):
            raise ValueError(f"{name} of the generation config names tokens in its own way: set it to None first")


def check_count(place: str, model: PreTrainedModel, plan: PruningPlan) -> None:
    """Raises `ValueError` if a plan that is read from a place keeps another number of tokens than the model has."""
    rows = len(model.get_input_embeddings().weight) if VOCABULARY in plan.keep else 0
    if VOCABULARY in plan.keep and len(plan.keep[VOCABULARY]) != rows:
        raise ValueError(
            f"{place} keeps {len(plan.keep[VOCABULARY])} tokens, but the model has {rows}: embeddings were added or "
            "removed since, or the two files do not belong together"
        )


def check_same_tokens(model: PreTrainedModel, dense_model: PreTrainedModel) -> None:
    """Raises `ValueError` if two models do not read the same tokens."""
    read, dense = (getattr(each.config.get_text_config(), "vocab_size", None) for each in (model, dense_model))
    if read != dense:
        raise ValueError(
            f"the model reads {read} tokens, dense_model {dense}: cut the vocabulary first, by a plan of it alone, "
            "then copy the model for dense_model, and cut the rest"
        )


def renumber(model: PreTrainedModel, positions: Sequence[int], rows: int) -> None:
    """Makes all that a cut model says of tokens true, in place. Its config is its own by now.

    Args:
        positions: of the tokens that stay, among those from before.
        rows: how many these were.
    """
    new = {old: number for number, old in enumerate(positions)}
    resize(model.config, rows, len(new))
    for config in all_configs(model.config):
        _renumber_fields(config, new)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(model.generation_config)
        _renumber_fields(model.generation_config, new)
    for module in model.modules():
        held = vars(module)
        for name, value in [*held.items()]:
            if name == "padding_idx" and isinstance(value, int) and _has_tokens(module, len(new)):
                module.padding_idx = new.get(value)
            elif OF_TOKENS.search(name) and not isinstance(value, bool):
                setattr(module, name, _renumbered(value, new))


def _has_tokens(module: Any, rows: int) -> bool:
    """Whether the padding of a module is that of a table of tokens, or of what holds one."""
    return vars(module).get("num_embeddings", rows) == rows


def _renumber_fields(config: Any, new: Mapping[int, int]) -> None:
    for name, value in [*vars(config).items()]:
        if OF_TOKENS.search(name):
            setattr(config, name, _renumbered(value, new))
        elif name in SUPPRESSED and value is not None:
            setattr(config, name, [new[number] for number in value if number in new])
        elif name in SEQUENCES and value is not None:
            kept = [words for words in value if all(number in new for number in words)]
            setattr(config, name, [[new[number] for number in words] for words in kept] or None)


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """A number, or all in lists and by name, as it is now. Of what stands for no token, as it was."""
    if isinstance(value, Mapping):
        return {name: _renumbered(each, new) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_renumbered(each, new) for each in value)
    return new.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value
