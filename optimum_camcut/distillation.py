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


def distillation_loss(
    student: Any, teacher: Any, temperature: float, mask: Tensor | None = None, problem_type: str | None = None
) -> Tensor:
    """What is between the predictions of two models, and, if both give their hidden states, between those.

    Of predictions, the Kullback-Leibler divergence of the softened ones, times the squared temperature (Hinton et al.
    2015); that of every label by itself, and their mean, if an example may have several labels. Numbers (a regression)
    are matched by their squared error instead. Of hidden states, the squared error relative to the variance of the
    teacher's features at the token, mean over the layers behind the embeddings (layer by layer as in Romero et al.
    2015, with no map between them: a cut leaves the hidden size as it is).

    Args:
        student, teacher: model outputs with `logits` (`torch.Tensor` of shape `(batch, classes)` or
            `(batch, tokens, classes)`), or with several of another name that ends so, as `start_logits` and
            `end_logits` (`(batch, tokens)`), and perhaps `hidden_states` (a tuple of `(batch, tokens, hidden size)`).
        temperature (`float`): divides all logits.
        mask (`torch.Tensor` of shape `(batch, tokens)`, or `(examples, choices, tokens)` of a batch of choices): for
            logits and hidden states of tokens, 0 at padding, which does not count.
        problem_type (`str`, *optional*): that of the model's config: `"multi_label_classification"` and
            `"regression"` tell what logits mean; a single logit is a number whatever it says.

    Returns:
        `torch.Tensor`: scalar, the sum of both; each is a mean over examples or real tokens.

    Raises:
        `ValueError`: outputs without logits.
    """
    losses = []
    for name in [name for name in student if name.endswith("logits")]:
        s, t = (_real(outputs[name].float(), mask) for outputs in (student, teacher))
        s, t = s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
        if s.shape[-1] == 1 or problem_type == "regression":
            losses.append(functional.mse_loss(s, t))
            continue
        s, t = s / temperature, t / temperature
        if problem_type == "multi_label_classification":  # a label and its absence are two classes
            s, t = (torch.stack((x, -x), dim=-1).reshape(-1, 2) / 2 for x in (s, t))
        log_s, log_t = (functional.log_softmax(x, dim=-1) for x in (s, t))
        losses.append(functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2)
    if not losses:
        raise ValueError(
            f"distill_weight > 0 compares logits; the model gives {', '.join(student)}. Set distill_weight=0"
        )
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
