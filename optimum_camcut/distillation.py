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

from typing import Any

from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Any, teacher: Any, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence between softened predictions, times the squared temperature (Hinton et al. 2015).

    A single logit (regression) is matched by its squared error instead.

    Args:
        student, teacher: model outputs with `logits` (`torch.Tensor` of shape `(batch, classes)` or
            `(batch, tokens, classes)`), or `start_logits` and `end_logits` (`(batch, tokens)`).
        temperature (`float`): divides all logits.
        mask (`torch.Tensor` of shape `(batch, tokens)`): for logits of tokens, 0 at padding, which does not count.

    Returns:
        `torch.Tensor`: scalar, the mean over examples or real tokens.
    """
    losses = []
    for name in [name for name in ("logits", "start_logits", "end_logits") if name in student]:
        s, t = student[name].float(), teacher[name].float()
        if s.dim() == 3 and mask is not None and mask.shape == s.shape[:2]:
            s, t = s[mask.bool()], t[mask.bool()]
        s, t = s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1])
        if s.shape[-1] == 1:
            losses.append(functional.mse_loss(s, t))
        else:
            log_s, log_t = (functional.log_softmax(x / temperature, dim=-1) for x in (s, t))
            losses.append(functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2)
    return sum(losses) / len(losses)
