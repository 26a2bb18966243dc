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

"""How far what two models give is apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING_NAMES

from ..utils.files import nearest


MEANINGS = {
    "classes": "one of the classes on the last axis",
    "labels": "any number of labels, each logit by itself",
    "numbers": "numbers to predict",
    "positions": "one of the tokens on the last axis",
    "tokens": "yes or no for every token on the last axis",
}
BY_NAME = {"start_logits": "positions", "end_logits": "positions"}


def distillation_loss(
    student: Any,
    teacher: Any,
    temperature: float,
    mask: Tensor | None = None,
    meanings: str | Mapping[str, str] | None = None,
    top_k: int | None = None,
) -> Tensor:
    """How far the predictions of two models are apart, and, if both give their hidden states, how far those are.

    Of predictions, the Kullback-Leibler divergence of the softened ones, times the squared temperature (Hinton et al.
    2015): over the classes or positions on the last axis, or of every label or token by itself, and then their mean.
    Numbers are matched by their squared error. Of hidden states, the squared error relative to the variance of the
    teacher's features at the token, mean over the layers behind the embeddings (layer by layer as in Romero et al.
    2015, with no map between them: a cut leaves the hidden size as it is).

    Args:
        student, teacher: model outputs with `logits` (`torch.Tensor` of shape `(batch, classes)`,
            `(batch, tokens, classes)` or `(batch, tokens)`), or with several of another name that ends so, as
            `start_logits` and `end_logits` (`(batch, tokens)`), and perhaps `hidden_states` (a tuple of
            `(batch, tokens, hidden size)`).
        temperature (`float`): divides all logits.
        mask (`torch.Tensor` of shape `(batch, tokens)`, or `(examples, choices, tokens)` of a batch of choices): for
            logits and hidden states of tokens, 0 at padding, which does not count.
        meanings (`str` or `Mapping[str, str]`): what the logits stand for, as one of `MEANINGS`, for all of them or by
            their names; `meanings_of(model, outputs)` takes it from a model. `start_logits` and `end_logits` are
            positions unless this says otherwise; all others must be told, since their shape does not tell it:
            `(batch, 3)` may be three classes or three tokens.
        top_k (`int`, *optional*): of classes, compare so many of the teacher's likeliest, and the others as one. What
            is then kept of the vocabulary for every token is one number for the teacher.

    Returns:
        `torch.Tensor`: scalar, the sum of both; each is a mean over examples or real tokens.

    Raises:
        `ValueError`: outputs without logits, or logits whose meaning is not told or unknown.
    """
    names = _logits(student)
    given = dict.fromkeys(names, meanings) if isinstance(meanings, str) else {**BY_NAME, **(meanings or {})}
    losses = []
    for name in names:
        meaning = given.get(name)
        if meaning is None:
            raise ValueError(
                f"the meaning of {name} of shape {tuple(student[name].shape)} is not told: pass "
                f"meanings={{{name!r}: ...}}, with one of {_known()}"
            )
        if meaning not in MEANINGS:
            raise ValueError(f"unknown meaning {meaning!r} of {name}; known: {_known()}{nearest(meaning, MEANINGS)}")
        losses.append(_divergence(student[name], teacher[name], temperature, mask, meaning, top_k))
    if not losses:
        raise ValueError(
            f"distill_weight > 0 compares logits; the model gives {', '.join(student)}. Set distill_weight=0"
        )
    predictions = sum(losses[1:], losses[0]) / len(losses)
    if not (student.get("hidden_states") and teacher.get("hidden_states")):
        return predictions
    states = zip(student["hidden_states"][1:], teacher["hidden_states"][1:])
    return predictions + torch.stack([_relative_error(s.float(), t.float(), mask) for s, t in states]).mean()


def meanings_of(model: PreTrainedModel, outputs: Mapping[str, Any]) -> dict[str, str]:
    """What a model's logits stand for, by their names.

    The model's class, `config.problem_type` and the sizes that its config names tell it: `num_labels`, and the
    vocabulary of its language-model head.

    Args:
        model (`PreTrainedModel`): with any task head.
        outputs: what it gave.

    Raises:
        `ValueError`: they do not tell it.
    """
    config, head = model.config, model.get_output_embeddings()
    classes = {getattr(config, "num_labels", None), getattr(config, "vocab_size", None)}
    classes |= {len(head.weight)} if getattr(head, "weight", None) is not None else set()
    for_pretraining = set(MODEL_FOR_PRETRAINING_MAPPING_NAMES.values())
    of_choices = type(model).__name__.endswith("ForMultipleChoice")
    problem, found = getattr(config, "problem_type", None), {}
    for name in _logits(outputs):
        size = outputs[name].shape[-1]
        if name in BY_NAME:
            found[name] = BY_NAME[name]
        elif problem == "multi_label_classification":
            found[name] = "labels"
        elif problem == "regression":
            found[name] = "numbers"
        elif name == "logits" and outputs[name].dim() == 2 and type(model).__name__ in for_pretraining:
            found[name] = "tokens"  # whether each was replaced (ELECTRA)
        elif size == 1:
            found[name] = "numbers"
        elif of_choices or name == "seq_relationship_logits" or size in classes:
            found[name] = "classes"
        else:
            raise ValueError(
                f"distill_weight > 0 compares logits, and what {name} of shape {tuple(outputs[name].shape)} of "
                f"{type(model).__name__} stand for cannot be told from its config (num_labels, vocab_size and "
                "problem_type). Override compute_distillation_loss in a subclass of CamCutTrainer: "
                f"`return distillation_loss(outputs, taught, temperature, mask, {{{name!r}: ...}})`, with one of "
                f"{_known()}; or set distill_weight=0"
            )
    return found


def _logits(outputs: Mapping[str, Any]) -> list[str]:
    return [name for name in outputs if name.endswith("logits")]


def _known() -> str:
    return ", ".join(f"{name!r} ({meaning})" for name, meaning in MEANINGS.items())


def _divergence(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None, meaning: str, top_k: int | None
) -> Tensor:
    mask = None if mask is None else mask.flatten(end_dim=-2).bool()  # choices of an example are rows of their own
    few = meaning == "classes" and top_k is not None and top_k < student.shape[-1]
    if few:
        chosen = teacher.topk(top_k or 1, dim=-1).indices
        student, teacher = (_likeliest(x, chosen, temperature) for x in (student, teacher))
    elif meaning != "numbers":
        student, teacher = student.float() / temperature, teacher.float() / temperature
    else:
        student, teacher = student.float(), teacher.float()
    if mask is not None and mask.shape == student.shape[:2]:
        if meaning == "positions":  # padding is no answer
            student, teacher = (x.masked_fill(~mask, torch.finfo(x.dtype).min) for x in (student, teacher))
        elif meaning == "tokens" or student.dim() == 3:
            student, teacher = student[mask], teacher[mask]
    if meaning == "numbers":
        return functional.mse_loss(student, teacher)
    if meaning in ("labels", "tokens"):  # yes and no are two classes
        student, teacher = (torch.stack((x, -x), dim=-1) / 2 for x in (student, teacher))
    log_s, log_t = (functional.log_softmax(x, dim=-1).flatten(end_dim=-2) for x in (student, teacher))
    return functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2


def _likeliest(logits: Tensor, chosen: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of some classes, and of all others together."""
    total = torch.logsumexp(logits.float() / temperature, dim=-1, keepdim=True)
    logs = logits.gather(-1, chosen).float() / temperature - total
    rest = 1 - logs.exp().sum(-1, keepdim=True)
    return torch.cat([logs, rest.clamp(min=torch.finfo(torch.float32).eps).log()], dim=-1)


def _relative_error(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over examples, and within each over real tokens, so that it does not matter how examples are shared out."""
    spread = teacher.var(dim=-1, correction=0).clamp(min=torch.finfo(teacher.dtype).tiny)
    errors = (student - teacher).square().mean(dim=-1) / spread
    real = torch.ones_like(errors)
    if mask is not None and mask.flatten(end_dim=-2).shape == errors.shape:
        real = mask.flatten(end_dim=-2).to(errors.dtype)
    return ((errors * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)).mean()
