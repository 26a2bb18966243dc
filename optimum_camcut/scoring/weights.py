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
"""Scores of single weights, from the gradients of whole batches: the setting of the DeepCuts paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce as reduce_across_processes
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config import PruningConfig
from ..groups import PrunableGroup
from .noise import GaussianNoise, linear_noise
from .registry import Scorer
from .sums import RunningSums


CHUNK = 2**18  # elements scored at a time

LossFunction = Callable[[PreTrainedModel, Mapping[str, Any]], Tensor]


def score_weights(
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    batches: Iterable[tuple[Mapping[str, Any], int]],
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: LossFunction,
) -> dict[str, Tensor]:
    """Scores every element of the groups' parameters on batches.

    Args:
        model (`PreTrainedModel`): with all parameters frozen.
        groups: the parameters to score.
        batches: this process's share of the batches, each with the seed of its noise.
        sums (`RunningSums`): of the batches that went before.
        config (`PruningConfig`): `smooth_samples`, `noise_std`, `noise_scale` and `shift`.
        scorer (`Scorer`): of single weights, with the source `"gradient"` or `"input"`.
        loss_function: `(model, batch) -> scalar mean loss`.

    Returns:
        `dict[str, Tensor]`: parameter name -> scores in its shape, float32 on the CPU.

    Raises:
        `ValueError`: the loss does not depend on any of the parameters.
    """
    parameters = {group.name: model.get_parameter(group.name) for group in groups}
    if scorer.source == "input":
        return _score_by_inputs(model, parameters, batches, sums, scorer)
    passes = config.smooth_samples if scorer.smooth else 1
    with _gradients_of(parameters.values()):
        for batch, seed in batches:
            outputs, noise, watch = _Means(), nullcontext(), nullcontext()
            if scorer.smooth:
                relative = config.noise_scale == "relative"
                noise = linear_noise(model.base_model, config.noise_std, relative, GaussianNoise(seed))
            if scorer.output:
                watch = _watch(model, parameters, lambda path, x, y, outputs=outputs: outputs.add(path, y))
            with torch.enable_grad(), watch, noise:
                for _ in range(passes):
                    loss = loss_function(model, batch) / passes  # gradients add up to their mean over the passes
                    if not loss.requires_grad:
                        raise ValueError("the loss does not depend on any of the weights to be scored")
                    loss.backward()
            for name, parameter in parameters.items():
                if parameter.grad is not None:  # None if the loss does not depend on it: its score stays 0
                    output = None
                    if scorer.output:
                        output = _fit(model, name, config.shift + outputs.mean(_module_of(name)), "out")
                    _add_score(sums, name, scorer, parameter.detach(), parameter.grad, output)
                    parameter.grad = None
    totals = {name: sums.values.get(name, torch.zeros_like(p, dtype=torch.float32)) for name, p in parameters.items()}
    if PartialState().num_processes > 1:
        totals = reduce_across_processes(totals, "sum")
    return {name: total.cpu() for name, total in totals.items()}


def _add_score(
    sums: RunningSums, name: str, scorer: Scorer, weight: Tensor, gradient: Tensor, output: Tensor | None
) -> None:
    """Adds one batch's scores of a parameter, a few rows at a time: what fits into the processor's cache is read from
    memory once, not once an operation."""
    gradient, total = gradient.float(), sums.values.get(name)
    if total is None:  # the first scores stay in the gradient's memory
        sums.values[name] = gradient
    else:
        sums.values[name] = total = total.to(gradient.device)
    rows = max(CHUNK * len(weight) // max(weight.numel(), 1), 1)
    by_row = output is not None and output.dim() == weight.dim() and len(output) == len(weight)
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        score = scorer.function(weight[part].float(), gradient[part], output[part] if by_row else output)
        if total is not None:
            total[part].add_(score)
        elif score.data_ptr() != gradient[part].data_ptr():
            gradient[part].copy_(score)


def _score_by_inputs(
    model: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[tuple[Mapping[str, Any], int]],
    sums: RunningSums,
    scorer: Scorer,
) -> dict[str, Tensor]:
    paths = list(dict.fromkeys(map(_module_of, parameters)))
    for path in paths:  # a layer that is never called has inputs of norm 0
        module = model.get_submodule(path)
        features = module.nx if isinstance(module, Conv1D) else module.in_features
        sums.values.setdefault(f"{path}.squares", torch.zeros(features))
        sums.values.setdefault(f"{path}.tokens", torch.zeros(()))

    def observe(path: str, inputs: Tensor, output: Tensor) -> None:
        squares = inputs.detach().float().square().reshape(-1, inputs.shape[-1])
        sums.add(f"{path}.squares", squares.sum(0))
        sums.add(f"{path}.tokens", torch.tensor(float(len(squares)), device=squares.device))

    with torch.no_grad(), _watch(model, parameters, observe):
        for batch, _ in batches:
            model(**batch)
    totals = {name: value.to(next(iter(parameters.values())).device) for name, value in sums.values.items()}
    if PartialState().num_processes > 1:
        totals = reduce_across_processes(totals, "sum")
    scores = {}
    for name, parameter in parameters.items():
        path = _module_of(name)
        bias = name.endswith(".bias")  # its input is always 1
        norm = totals[f"{path}.tokens"].sqrt() if bias else _fit(model, name, totals[f"{path}.squares"].sqrt(), "in")
        scores[name] = scorer.function(parameter.detach().float(), norm).cpu()
    return scores


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _fit(model: nn.Module, name: str, features: Tensor, axis: str) -> Tensor:
    """One value an output (or input) feature, made to broadcast over a parameter of the layer."""
    if name.endswith(".bias"):
        return features
    transposed = isinstance(model.get_submodule(_module_of(name)), Conv1D)
    return features if (axis == "in") != transposed else features[:, None]


class _Means:
    """Running sums over tokens: layer -> one value a feature."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, path: str, values: Tensor) -> None:
        values = values.detach().reshape(-1, values.shape[-1])
        total = values.sum(0, dtype=torch.float32)
        self.sums[path] = self.sums[path] + total if path in self.sums else total
        count = torch.tensor(float(len(values)), device=total.device)
        self.counts[path] = self.counts[path] + count if path in self.counts else count

    def mean(self, path: str) -> Tensor:
        if path not in self.sums:
            raise ValueError(
                f"the weight of {path!r} is used, but the layer is never called: it has no output to score"
            )
        return self.sums[path] / self.counts[path].clamp(min=1)  # an expert that no token went to


@contextmanager
def _watch(
    model: nn.Module, parameters: Iterable[str], observe: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """Hands input and output of every layer that has one of the parameters to `observe`."""
    with ExitStack() as stack:
        for path in dict.fromkeys(map(_module_of, parameters)):
            hook = lambda module, args, output, path=path: observe(path, args[0], output)  # noqa: E731
            stack.callback(model.get_submodule(path).register_forward_hook(hook).remove)
        yield


@contextmanager
def _gradients_of(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets frozen parameters have gradients for a while; those they had before come back."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.grad = None
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.requires_grad_(False)
            parameter.grad = gradient
