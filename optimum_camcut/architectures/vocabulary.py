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
"""Where a model has something for each token: found by its own embeddings, so that no architecture needs an entry for
it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .slices import Slice


VOCABULARY = "vocabulary"  # the kind, and the name of its one group
# Fields of configs, and attributes of modules, that hold numbers of tokens; and those of lists that may lose some.
OF_TOKENS = re.compile(r"(^|_)token_(id|ids|index)$|^(bos|eos|pad|unk|mask|sep|cls)_index$|^(lang|task)_to_id$")
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
SIZE = "vocab_size"
CANNOT = "the vocabulary of {} cannot go"
OTHER_SIZES = ("type_vocab_size",)  # of what is no token


def vocabulary_slices(model: PreTrainedModel) -> tuple[tuple[Slice, ...], dict[str, float]]:
    """Every parameter and buffer that has something for each token, those of the input first, and the attributes of
    modules that count tokens, with 1 for each.

    Raises:
        `ValueError`: a model that is not made of plain tables, or that reads tokens in another way as well.
    """
    tables = _tables(model)
    rows = len(tables[0].weight)
    _check_others(model, rows)
    owned = {id(table.weight) for table in tables}
    # A model that was cut before was looked through then: now, numbers of tokens may be other sizes by chance.
    known = VOCABULARY in getattr(getattr(model, "pruning_plan", None), "keep", ())
    paths = [f"{path}." for path, module in model.named_modules() if any(module is table for table in tables)]
    slices: dict[str, Slice] = {}
    attributes: dict[str, float] = {}
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        weight = module._parameters.get("weight")
        table = isinstance(module, nn.Embedding | nn.Linear) and weight is not None
        if table and weight.shape[0] == rows and id(weight) not in owned and not known:
            raise ValueError(
                f"{path} of {type(model).__name__} has {rows} rows, one for each token, but is neither what "
                "get_input_embeddings nor what get_output_embeddings gives: it is not known whether it goes by tokens"
            )
        holds = any(each.startswith(start) for each in paths)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and (id(tensor) in owned or (holds and _is_bias(name, tensor, rows))):
                place = 0 if id(tensor) in owned else tensor.dim() - 1
                slices[f"{start}{name}"] = Slice(f"{start}{name}", place, 1)
        counts = ("num_embeddings", SIZE) if table and id(weight) in owned else (SIZE,)
        attributes |= {f"{start}{name}": 1 for name in counts if vars(module).get(name) == rows}
    first = next(path for path, module in model.named_modules() if module is tables[0])
    return tuple(sorted(slices.values(), key=lambda piece: piece.module != f"{first}.weight")), attributes


def _is_bias(name: str, tensor: Tensor, rows: int) -> bool:
    """Whether a tensor of a table, or of what a table is in, is added to the logits of all tokens."""
    return "bias" in name and tensor.dim() > 0 and tensor.shape[-1] == rows == tensor.numel()


def _tables(model: PreTrainedModel) -> list[nn.Embedding | nn.Linear]:
    """The input embeddings, then the output embeddings, of the model and of the models inside."""
    kind, found = type(model).__name__, list[Any]()
    inputs = _asked(model, "get_input_embeddings")
    if not isinstance(inputs, nn.Embedding):
        has = "none" if inputs is None else f"a {type(inputs).__name__}"
        raise ValueError(f"{CANNOT.format(kind)}: its input embeddings should be an Embedding, it has {has}")
    found = [inputs, _asked(model, "get_output_embeddings")]
    inside = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not model]
    others = [_asked(part, "get_input_embeddings") for part in inside]
    tied = {id(each.weight): each for each in others if isinstance(each, nn.Embedding)}  # of each table, one
    separate = [each for each in tied.values() if each.weight is not inputs.weight]
    if separate:
        sizes = " and ".join(str(each.num_embeddings) for each in (inputs, *separate))
        raise ValueError(f"{CANNOT.format(kind)}: it reads by several tables, of {sizes} tokens")
    found += [*tied.values(), *(_asked(part, "get_output_embeddings") for part in inside)]
    tables = [each for each in found if each is not None and hasattr(each, "weight")]
    for each in tables:
        plain = isinstance(each, nn.Embedding | nn.Linear) and type(each.weight) is nn.Parameter
        if not plain or not each.weight.dtype.is_floating_point:
            raise ValueError(
                f"{CANNOT.format(kind)}: {type(each).__name__} with a {type(each.weight).__name__} is no "
                "plain table. Merge adapters (`model = model.merge_and_unload()`) and undo quantization before pruning"
            )
        if len(each.weight) != len(inputs.weight) and isinstance(each, nn.Linear):
            raise ValueError(
                f"{CANNOT.format(kind)}: it reads {len(inputs.weight)} tokens and writes {len(each.weight)}"
            )
    return [each for each in tables if len(each.weight) == len(inputs.weight)]


def _asked(model: PreTrainedModel, name: str) -> Any:
    try:
        return getattr(model, name)()
    except (AttributeError, NotImplementedError):  # of a part that reads no tokens
        return None


def _check_others(model: PreTrainedModel, rows: int) -> None:
    """Raises `ValueError` if a model goes by tokens in another way than by rows of tables."""
    kind = type(model).__name__
    for module in model.modules():
        if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
            raise ValueError(f"{CANNOT.format(kind)}: its adaptive softmax has clusters of tokens by number")
    for config in all_configs(model.config):
        for name, value in vars(config).items():
            if SIZE in name and name not in OTHER_SIZES and isinstance(value, int) and value not in (0, rows):
                raise ValueError(
                    f"{CANNOT.format(kind)}: beside {rows} rows of embeddings, its config has "
                    f"{name}={value}, and it is not known what goes by that"
                )


def all_configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A config, and those inside of it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from all_configs(value)


def resize(config: PretrainedConfig, before: int, after: int) -> None:
    """Puts a number of tokens in the place of another, in a config and those inside of it."""
    for each in all_configs(config):
        for name in {*vars(each), *({SIZE} if hasattr(each, SIZE) else ())}:
            if SIZE in name and name not in OTHER_SIZES and getattr(each, name) == before:
                setattr(each, name, after)


def named_ids(model: PreTrainedModel) -> set[int]:
    """Numbers of tokens that the configs of a model name, those that are suppressed aside; and where positions count
    from the number of the padding (RoBERTa), those before it, so that it keeps its number."""
    found = set[int]()
    for values in _settings(model):
        for name, value in values.items():
            if OF_TOKENS.search(name):
                found |= set(_numbers(value))
    for path, module in model.named_modules():
        padding = vars(module).get("padding_idx") if "position" in path.rpartition(".")[2] else None
        found |= set(range(padding + 1)) if isinstance(padding, int) else set()
    return found


def _settings(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The fields of all configs of a model."""
    generation = getattr(model, "generation_config", None)
    return [*map(vars, all_configs(model.config)), *([vars(generation)] if generation is not None else [])]


def _numbers(value: Any) -> Iterator[int]:
    """All numbers in a value, in lists and by name, too."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        yield value
