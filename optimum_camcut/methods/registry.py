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
"""The registry of scoring methods: a dict and a decorator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..utils.files import nearest


logger = logging.getLogger(__name__)


Source = Literal["gradient", "activation", "norms", "input", "curvature", "stream", "tokens", "weights"]
OF_KINDS = {  # sources of some kinds alone
    "norms": ("experts",),
    "input": ("heads", "neurons"),
    "curvature": ("heads", "neurons"),
    "stream": ("layers",),
    "tokens": ("vocabulary",),
}


@dataclass(frozen=True)
class Scorer:
    """One scoring method.

    Args:
        name (`str`): the `method` of `PruningConfig`.
        function: for the sources `"gradient"` and `"activation"`, from `activation`, `gradient` (each
            `torch.Tensor` of shape `(batch, tokens, units, width)`; no gradient for `"activation"`) and `mask`
            (`(batch, tokens)`, 1 at real tokens) to `(batch, units)`: the score of each unit for each example, whose
            mean is the result. For `"norms"`, of experts alone, as for `"activation"`: the activation is the router's
            weight times the norm of what the expert gives, 0 for tokens that are not sent to it; the function returns
            a sum and what it is to be divided by, each summed over all examples first. For `"input"`, of heads and
            neurons alone, from `weight` (`(units, width, outputs)`, of the output projection), `mean` and `square`
            (`(units, width)`, of what flows into it: the mean over all real tokens, and the mean square) to
            `(units,)`. For `"curvature"`, of the same kinds, from `weight` (`(inputs, outputs)`), `inputs` (`(inputs,
            inputs)`, the mean of xxᵀ over tokens, less that of what a bias takes over), `gradients` (`(outputs,
            outputs)`, of each example the sum of ggᵀ over tokens, g the loss gradient behind the projection, and the
            mean of that over examples) and the number of units to `(units,)`. For `"stream"`, of whole blocks alone,
            from the residual stream before and after a block (`(tokens, hidden size)` each, real tokens) to
            `(tokens,)`, whose mean is the result. For `"tokens"`, of the vocabulary alone, from the numbers of the
            tokens that are read or written (int64 of shape `(tokens,)`) and how many there are to `(units,)`; the sum
            over the batches is the result. For `"weights"`, from `weights` (`(units, weights of a unit)`) and a
            seeded `torch.Generator` to `(units,)`.
            Methods for single weights: see `weight_scorer`.
        source: what the method observes.
        smooth (`bool`): average the gradients over noisy passes first.
        output (`bool`): of single weights: needs the mean outputs of the layers.
        quadratic (`bool`): the score grows with the square of the gradient and so estimates a change of the loss,
            comparable between kinds of units.
    """

    name: str
    function: Callable[..., Any]
    source: Source = "gradient"
    smooth: bool = False
    quadratic: bool = False
    output: bool = False


SCORERS: dict[str, Scorer] = {}  # of units: heads, neurons, experts and layers
KIND_SCORERS: dict[str, Scorer] = {}  # of some of these kinds alone, see `OF_KINDS`
WEIGHT_SCORERS: dict[str, Scorer] = {}  # of single weights
TOKENS = "frequency"  # the method of the vocabulary, unless it is alone and another one is chosen


def scorer(
    name: str, source: Source = "gradient", smooth: bool = False, quadratic: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as a scoring method; see `Scorer` for its arguments.

    Raises:
        `ValueError`: the name is taken.
    """
    return _register(
        KIND_SCORERS if source in OF_KINDS else SCORERS, name, source=source, smooth=smooth, quadratic=quadratic
    )


def weight_scorer(
    name: str, source: Source = "gradient", smooth: bool = False, output: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as a scoring method of single weights.

    The function returns scores in the shape of `weight`, a weight or bias of a linear layer:

    - source `"gradient"`: from `weight`, `gradient` (of the batch's mean loss; with `smooth`, its mean over the noisy
      passes) and `output` (with `output=True`, `shift` plus the layer's mean output over the batch and the tokens,
      broadcastable to `weight`; else None) to the score for one batch; the sum over the batches is the result. It is
      called with some rows at a time, and may overwrite `gradient`;
    - source `"input"`: from `weight` and `norm` (L2 norm of each input feature over all tokens of all batches,
      broadcastable to `weight`; for a bias, whose input is 1, the root of the number of tokens);
    - source `"weights"`: from `weight` and a seeded `torch.Generator`.

    Raises:
        `ValueError`: the name is taken.
    """
    return _register(WEIGHT_SCORERS, name, source=source, smooth=smooth, output=output)


def _register(
    scorers: dict[str, Scorer], name: str, **facts: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in scorers:
            raise ValueError(f"a scoring method named {name!r} is registered already")
        scorers[name] = Scorer(name, function, **facts)
        return function

    return register


def scorers_of(granularity: Iterable[str]) -> dict[str, Scorer]:
    """The methods that score these kinds.

    Args:
        granularity (`Iterable[str]`): `PruningConfig.granularity`: with `"weights"`, the methods of single weights;
            else, and if empty, those of units, and with them those that score these kinds alone. The vocabulary goes
            by those that look at tokens or at weights, and beside other kinds by `TOKENS`, whatever these go by.
    """
    kinds = set(granularity)
    if "weights" in kinds:
        return WEIGHT_SCORERS
    if kinds == {"vocabulary"}:
        return {name: s for name, s in (SCORERS | KIND_SCORERS).items() if s.source in ("tokens", "weights")}
    kinds.discard("vocabulary")
    own = {name: each for name, each in KIND_SCORERS.items() if kinds and kinds <= set(OF_KINDS[each.source])}
    return SCORERS | own


def warn_without_rebuild(name: str, granularity: Iterable[str], recovery: str) -> None:
    """Says so where a method counts on a rebuild that a recovery leaves out."""
    if get_scorer(name, granularity).source == "curvature" and "reconstruct" not in recovery:
        logger.warning(
            "method %r counts on a rebuild, which recovery=%r leaves out: take recovery='reconstruct' or "
            "'reconstruct+finetune', or another method",
            name,
            recovery,
        )


def get_scorer(name: str, granularity: Iterable[str] = ()) -> Scorer:
    """The method of a name.

    Args:
        name (`str`): as it was registered.
        granularity (`Iterable[str]`): see `scorers_of`.

    Raises:
        `ValueError`: there is none of this name for these kinds; the message lists the known.
    """
    scorers = scorers_of(granularity)
    if name not in scorers:
        if name in KIND_SCORERS:
            wanted = OF_KINDS[KIND_SCORERS[name].source]
            raise ValueError(
                f"method {name!r} scores {' and '.join(wanted)} alone: use it with granularity {list(wanted)}; got "
                f"{list(granularity) or 'none'}"
            )
        kinds = f" for {' and '.join(granularity)}" if granularity else ""
        raise ValueError(
            f"unknown method {name!r}{kinds}; known methods{kinds}: {', '.join(scorers)}{nearest(name, scorers)}"
        )
    return scorers[name]
