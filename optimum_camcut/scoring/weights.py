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

import torch
from accelerate import PartialState
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..architectures.groups import PrunableGroup
from ..config import PruningConfig
from ..methods.registry import Scorer
from .batches import Batch
from .gradients import summed_gradients
from .loss import SCORED, SKIPPED, CheckedLoss, loss_shares, tell_skipped
from .noise import GaussianNoise, smoothing
from .sums import RunningSums


CHUNK, CPU_CHUNK = 2**24, 2**17  # elements scored at a time: on a CPU, what its cache holds

EachBatch = Callable[[Callable[[list[Batch]], Callable[[], None]]], None]


def score_weights(
    model: PreTrainedModel,
    groups: Sequence[PrunableGroup],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> dict[str, Tensor]:
    """Scores every element of the groups' parameters on batches.

    Args:
        model (`PreTrainedModel`): with all parameters frozen.
        groups: the parameters to score.
        each_batch: calls a function with every batch, in pieces; see `for_each_batch`.
        sums (`RunningSums`): of the batches that went before.
        config (`PruningConfig`): `smooth_samples`, `noise_std`, `noise_scale` and `shift`.
        scorer (`Scorer`): of single weights, with the source `"gradient"` or `"input"`.
        loss_function (`CheckedLoss`): `(model, batch) -> scalar mean loss`.

    Returns:
        `dict[str, Tensor]`: parameter name -> scores in its shape, float32 on the CPU.

    Raises:
        `ValueError`: the loss does not depend on any of the parameters, or they are offloaded.
    """
    parameters = {group.name: model.get_parameter(group.name) for group in groups}
    if scorer.source == "input":
        return _score_by_inputs(model, parameters, each_batch, sums, scorer)
    offloaded = [name for name, parameter in parameters.items() if parameter.is_meta]
    if offloaded:
        raise ValueError(
            f"the weights of {offloaded[0]!r} and {len(offloaded) - 1} others are offloaded, where no "
            "gradients are kept: load the model whole, over several devices if need be, or score units"
        )
    return _score_by_gradients(model, parameters, each_batch, sums, config, scorer, loss_function)


def _score_by_gradients(
    model: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> dict[str, Tensor]:
    for name, parameter in parameters.items():
        # Memory is scarce where gradients stay from pass to pass, and time where there is but one pass.
        sums.reserve_rows(name, parameter, compact=scorer.smooth)
    passes, noisy = smoothing(model, config, GaussianNoise(config.seed)) if scorer.smooth else (1, nullcontext)

    def score(pieces: list[Batch]) -> Callable[[], None]:
        shares = loss_shares(model, pieces)
        _empty_gradients(parameters.values(), keep=scorer.smooth)
        outputs = _Means()
        for piece, share in zip(pieces, shares):
            watch = _watch(model, parameters, outputs.observe) if scorer.output else nullcontext()
            # If none of a piece's labels counts, its mean loss is NaN and its gradient 0; its outputs do count.
            with torch.set_grad_enabled(share > 0), watch, noisy():
                for _ in range(passes):
                    outputs.watching = True
                    if share == 0:
                        model(**piece)
                        continue
                    loss = loss_function(model, piece) * (share / passes)  # so that gradients add up to their mean
                    if not loss.requires_grad:
                        raise ValueError("the loss does not depend on any of the weights to be scored")
                    if loss_function.of_nothing:
                        return lambda: sums.add(SKIPPED, torch.ones(1))
                    outputs.watching = False  # gradient checkpointing runs blocks again in the backward pass
                    backward(loss)
        loss_function.check()
        return lambda: add(outputs)

    def add(outputs: _Means) -> None:
        sums.add(SCORED, torch.ones(1))
        for name, parameter in parameters.items():
            called = not scorer.output or _module_of(name) in outputs.sums
            if parameter.grad is None or not (called or parameter.grad.any()):
                continue  # the loss does not depend on it: its score stays 0
            output = None
            if scorer.output:
                output = _fit(model, name, config.shift + outputs.mean(_module_of(name)), "out")
            sums.add_rows(name, _scores(scorer, parameter.detach(), parameter.grad, output))
            if not scorer.smooth:
                parameter.grad = None

    with summed_gradients(model, parameters) as backward:
        each_batch(score)
    for name in (SCORED, SKIPPED):  # on every process
        sums.values.setdefault(name, torch.zeros(1, dtype=torch.float64))
    totals = sums.reduce_rows(PartialState().device)
    tell_skipped(totals)
    return {name: totals[name] for name in parameters}


def _empty_gradients(parameters: Iterable[nn.Parameter], keep: bool) -> None:
    """Before the passes of a batch: lets go of gradients, or makes zeros of them where they `keep` their memory."""
    for parameter in parameters:
        if not keep:
            parameter.grad = None
        elif parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        else:
            parameter.grad.zero_()


def _scores(scorer: Scorer, weight: Tensor, gradient: Tensor, output: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """One batch's scores of a parameter, a few rows at a time: what fits into the processor's cache is read from
    memory once, not once an operation."""
    chunk = CPU_CHUNK if weight.device.type == "cpu" else CHUNK
    rows = max(chunk * len(weight) // max(weight.numel(), 1), 1)
    by_row = output is not None and output.dim() == weight.dim() and len(output) == len(weight)
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        seen = output[part] if output is not None and by_row else output
        yield part, scorer.function(weight[part].float(), gradient[part].float(), seen)


def _score_by_inputs(
    model: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    each_batch: EachBatch,
    sums: RunningSums,
    scorer: Scorer,
) -> dict[str, Tensor]:
    for path in dict.fromkeys(map(_module_of, parameters)):  # a layer that is never called has inputs of norm 0
        module = model.get_submodule(path)
        features = module.nx if isinstance(module, Conv1D) else module.in_features
        sums.values.setdefault(f"{path}.squares", torch.zeros(features, dtype=torch.float64))
        sums.values.setdefault(f"{path}.tokens", torch.zeros((), dtype=torch.float64))

    def score(pieces: list[Batch]) -> Callable[[], None]:
        found = []

        def observe(path: str, inputs: Tensor, output: Tensor) -> None:
            squares = inputs.detach().float().square().flatten(0, -2)
            found.append((f"{path}.squares", squares.sum(0)))
            found.append((f"{path}.tokens", squares.new_full((), len(squares))))

        with torch.no_grad(), _watch(model, parameters, observe):
            for piece in pieces:
                model(**piece)

        def add() -> None:
            for name, value in found:
                sums.add(name, value)

        return add

    each_batch(score)
    totals = sums.reduce(PartialState().device)
    scores = {}
    for name in parameters:
        path = _module_of(name)
        bias = name.endswith(".bias")  # its input is always 1
        norm = totals[f"{path}.tokens" if bias else f"{path}.squares"].sqrt().float()
        norm = norm if bias else _fit(model, name, norm, "in")
        with align_module_device(model.get_submodule(path)):  # in memory, if it is offloaded
            scores[name] = scorer.function(model.get_parameter(name).detach().float().cpu(), norm)
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
        self.watching = True

    def observe(self, path: str, inputs: Tensor, output: Tensor) -> None:
        if not self.watching:
            return
        values = output.detach().flatten(0, -2)
        total = values.sum(0, dtype=torch.float32)
        self.sums[path] = self.sums[path] + total if path in self.sums else total
        count = total.new_full((), len(values))
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
