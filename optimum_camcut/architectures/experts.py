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
"""Layers with experts: where their units can be watched, and a router without some of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def by_expert(values: Tensor, index: Tensor, experts: int) -> Tensor:
    """What belongs to the experts that each token was sent to, with zeros for the others.

    Args:
        values: `(tokens, sent, ...)`.
        index: numbers of the experts, `(tokens, sent)`.

    Returns:
        `(tokens, experts, ...)`.
    """
    tokens = torch.arange(len(index), device=index.device)[:, None]
    found = values.new_zeros(len(index), experts, *values.shape[2:])
    return found.index_put((tokens, index), values, accumulate=True)


def output_norms(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The norm of what each expert gives for a token, times the router's weight of it: `(tokens, sent)`."""
    forward, ones = type(module).forward, torch.ones_like(weights[:, :1])
    with align_module_device(module):  # it may be offloaded
        norms = [forward(module, hidden, index[:, n : n + 1], ones).norm(dim=-1) for n in range(index.shape[1])]
    return torch.stack(norms, dim=1) * weights


@contextmanager
def watched_inside(module: Any, watch: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Runs stacked experts one by one, so that what flows into their output projections can be seen.

    Args:
        module: of a class with transformers' `use_experts_implementation`.
        watch: called with the values, `(tokens * sent, neurons)`, which the rest is computed from, and with the
            numbers of the experts, `(tokens, sent)`.
    """

    def maps(values: Tensor, name: str, expert: int) -> Tensor:
        weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
        return linear(values, weight.T if module.is_transposed else weight, None if bias is None else bias[expert])

    def forward(hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        chosen = index.flatten()
        order = chosen.argsort(stable=True)
        numbers, counts = chosen.unique(return_counts=True)
        parts = hidden[order // index.shape[1]].split(counts.tolist())
        found: list[Any] = [module._apply_gate(maps(x, "gate_up_proj", n)) for x, n in zip(parts, numbers.tolist())]
        inside = torch.cat(found)[order.argsort()]
        watch(inside, index)
        found = [maps(x, "down_proj", n) for x, n in zip(inside[order].split(counts.tolist()), numbers.tolist())]
        outputs = torch.cat(found)[order.argsort()] * weights.reshape(-1, 1)
        return outputs.view(*index.shape, -1).sum(1).to(hidden.dtype)

    if not hasattr(module, "_apply_gate"):
        raise ValueError(f"{type(module).__name__} does not say how its experts are gated; transformers 5 does")
    name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"  # accelerate's calls it where the weights are
    before = vars(module).get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        delattr(module, name)
        if before is not None:
            setattr(module, name, before)


class WithoutExperts(TorchFunctionMode):
    """Inside of it, routers send no token to some of their experts, as if these had no row."""

    def __init__(self, gone: Collection[tuple[nn.Module, Collection[int]]]) -> None:
        super().__init__()
        self.gone = [(router.weight, sorted(experts)) for router, experts in gone]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is linear:
            for weight, experts in self.gone:
                if len(args) > 1 and args[1] is weight:
                    result = result.index_fill(
                        -1, torch.tensor(experts, dtype=torch.int64, device=result.device), -torch.inf
                    )
        return result
