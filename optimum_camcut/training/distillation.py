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
"""The recovery loss that follows the dense model, and how it gets into a trainer's loss, whoever computes that."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

WANTED = {"output_hidden_states": True, "return_dict": True}  # what the model is asked for besides

Call = tuple[tuple[Any, ...], dict[str, Any], Any]  # of a model: positional arguments, keywords, outputs


class Distillation:
    """The loss of a trainer that recovers, mixed with what its model and the dense model are apart.

    The trainer's `compute_loss` may be anybody's. It is called as it is; hooks on the model see what goes in and what
    comes out, and the dense model gets the same.

    Args:
        teacher (`PreTrainedModel`): the dense model, in evaluation mode.
        weight (`float`): of the distance, between 0 and 1; the loss has the rest.
        distance: from the outputs of both and the inputs by name to a scalar.

    Attributes:
        calls (`int`): how often a loss was mixed.
    """

    def __init__(
        self, teacher: PreTrainedModel, weight: float, distance: Callable[[Any, Any, dict[str, Any]], Tensor]
    ) -> None:
        self.teacher, self.weight, self.distance, self.calls = teacher, weight, distance, 0

    def mix(self, model: nn.Module, compute_loss: Callable[[], tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
        """Calls `compute_loss`, which gives the loss and the outputs of the model, and mixes the loss.

        Raises:
            `ValueError`: it does not call the model.
        """
        seen: list[Call] = []  # those with gradients, if the loss has any: others are no part of it
        with self._watching(model, seen, torch.is_grad_enabled()):
            loss, outputs = compute_loss()
        if not seen:
            raise ValueError(
                "distill_weight > 0 compares what the model gives with what the dense model gives, and this "
                "compute_loss does not call the model that it is handed: call that one, or set distill_weight=0"
            )
        distances = []
        names = list(inspect.signature(type(self.teacher).forward).parameters)[1:]
        for args, kwargs, given in seen:
            with torch.no_grad():
                taught = self.teacher(*args, **kwargs)
            if _has_logits(taught) and not _has_logits(given):  # trl asks for the chances of the labels alone
                if not self.calls:
                    logger.warning("the loss asks the model for no logits: it runs once more, to compare them")
                plain = {n: value for n, value in kwargs.items() if n in (*names, *WANTED) and n != "labels"}
                given = model(*args, **plain)
            distances.append(self.distance(given, taught, {**dict(zip(names, args)), **kwargs}))
        self.calls += 1
        return (1 - self.weight) * loss + self.weight * sum(distances) / len(distances), outputs

    @contextmanager
    def _watching(self, model: nn.Module, seen: list[Call], gradients: bool) -> Iterator[None]:
        """Asks for hidden states, and records inputs and outputs of every call of the model."""
        parameters = inspect.signature(type(self.teacher).forward).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        wanted = {name: value for name, value in WANTED.items() if anything or name in parameters}

        def ask(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, **wanted}

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            if torch.is_grad_enabled() == gradients:
                seen.append((args, kwargs, outputs))

        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(ask, with_kwargs=True).remove)
            stack.callback(model.register_forward_hook(record, with_kwargs=True).remove)
            yield


def _has_logits(outputs: Any) -> bool:
    return any(name.endswith("logits") for name in outputs) if isinstance(outputs, Mapping) else False
