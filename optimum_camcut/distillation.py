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
"""The recovery loss that follows the dense model's predictions."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def distillation_loss(student: Any, teacher: Any, temperature: float, mask: Tensor | None = None) -> Tensor:
    """What is between the predictions of two models, and, if both give their hidden states, between those.

    Of predictions, the Kullback-Leibler divergence of the softened ones, times the squared temperature (Hinton et al.
    2015); a single logit (regression) is matched by its squared error instead. Of hidden states, the squared error
    relative to the variance of the teacher's features at the token, mean over the layers behind the embeddings (layer
    by layer as in Romero et al. 2015, with no map between them: a cut leaves the hidden size as it is).

    Args:
        student, teacher: model outputs with `logits` (`torch.Tensor` of shape `(batch, classes)` or
            `(batch, tokens, classes)`), or `start_logits` and `end_logits` (`(batch, tokens)`), and perhaps
            `hidden_states` (a tuple of `(batch, tokens, hidden size)`).
        temperature (`float`): divides all logits.
        mask (`torch.Tensor` of shape `(batch, tokens)`, or `(examples, choices, tokens)` of a batch of choices): for
            logits and hidden states of tokens, 0 at padding, which does not count.

    Returns:
        `torch.Tensor`: scalar, the sum of both; each is a mean over examples or real tokens.
    """
    losses = []
    for name in [name for name in ("logits", "start_logits", "end_logits") if name in student]:
        s, t = (_real(outputs[name].float(), mask) for outputs in (student, teacher))
        s, t = s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
        if s.shape[-1] == 1:
            losses.append(functional.mse_loss(s, t))
        else:
            log_s, log_t = (functional.log_softmax(x / temperature, dim=-1) for x in (s, t))
            losses.append(functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2)
    predictions = sum(losses) / len(losses)
    if not (student.get("hidden_states") and teacher.get("hidden_states")):
        return predictions
    states = zip(student["hidden_states"][1:], teacher["hidden_states"][1:])
    return predictions + torch.stack([_relative_error(s.float(), t.float(), mask) for s, t in states]).mean()


def asking_for_states(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs, with what makes a model give its hidden states, as far as its forward takes that: a class of the
    user's own may know none of these keywords."""
    parameters = inspect.signature(type(model).forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    wanted = {"output_hidden_states": True, "return_dict": True}
    return {**inputs, **{name: value for name, value in wanted.items() if anything or name in parameters}}


def _real(values: Tensor, mask: Tensor | None) -> Tensor:
    """Those of the real tokens, if there is one for each token."""
    mask = None if mask is None else mask.flatten(end_dim=-2)  # choices of an example are rows of their own
    return values[mask.bool()] if values.dim() == 3 and mask is not None and mask.shape == values.shape[:2] else values


def _relative_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over examples, and within each over real tokens, so that it does not matter how examples are shared out."""
    spread = teacher.var(dim=-1, correction=0).clamp(min=torch.finfo(teacher.dtype).tiny)
    errors = (student - teacher).square().mean(dim=-1) / spread
    real = torch.ones_like(errors)
    if mask is not None and mask.flatten(end_dim=-2).shape == errors.shape:
        real = mask.flatten(end_dim=-2).to(errors.dtype)
    return ((errors * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)).mean()
