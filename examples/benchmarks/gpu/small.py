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
"""What the checks of a GPU share: their list, tiny models, data, and how near is near enough."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from optimum_camcut import PruningConfig, PruningPlan, apply_plan, find_groups, score_groups


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
UNITS = ("heads", "neurons")
COMMON = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 101}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("SequenceClassification", {**COMMON, **BERT, "num_labels": 3}),
    "gpt2": ("CausalLM", {**COMMON, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_inner": 101}),
    "llama": ("CausalLM", {**COMMON, **BERT, "num_attention_heads": 8, "num_key_value_heads": 4}),
    "t5": (
        "Seq2SeqLM",
        {
            **COMMON,
            "d_model": 64,
            "d_kv": 16,
            "num_heads": 4,
            "d_ff": 101,
            "num_layers": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "vit": ("ImageClassification", {**BERT, "image_size": 32, "patch_size": 8, "num_labels": 3}),
}
Check = Callable[[], str]
CHECKS: dict[str, Check] = {}


class Skipped(Exception):
    """What a check needs is not there."""


def check(function: Check) -> Check:
    """Registers a check. It returns what was seen, in a few words."""
    CHECKS[function.__name__] = function
    return function


def rehearsed(seen: str) -> str:
    """On a CPU there is no second device to agree with: nothing was shown, but that it runs."""
    if not ON_GPU:
        raise Skipped(f"no GPU (rehearsed on the CPU: {seen})")
    return seen


# --- models, data, comparisons --------------------------------------------------------------------------------------


def build(name: str = "bert", attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """A tiny model on the CPU, whose weights are all random and large enough to matter."""
    torch.manual_seed(0)
    task, shape = SHAPES[name]
    config = AutoConfig.for_model(name, **{**shape, **changes})
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batches_of(name: str = "bert", count: int = 4, size: int = 8, tokens: int = 16) -> list[dict[str, Tensor]]:
    """On the CPU; of texts, every second sequence ends in padding."""
    generator = torch.Generator().manual_seed(0)
    task = SHAPES[name][0] if name in SHAPES else "CausalLM"
    found = []
    for _ in range(count):
        classes = torch.randint(0, 3, (size,), generator=generator)
        if name == "vit":
            found.append({"pixel_values": torch.randn(size, 3, 32, 32, generator=generator), "labels": classes})
            continue
        ids = torch.randint(3, 99, (size, tokens), generator=generator)
        mask = torch.ones_like(ids)
        mask[::2, tokens - 3 :] = 0
        labels = classes if task == "SequenceClassification" else ids.masked_fill(mask == 0, -100)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Of a batch, in float32 on the CPU; of padding nothing."""
    found = model(**{name: value.to(model.device) for name, value in batch.items()}).logits.float().cpu()
    return found[batch["attention_mask"] > 0] if found.dim() == 3 else found


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def near(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> float:
    off = distance(found, wanted)
    if not off <= tolerance:  # NaN is far, too
        raise AssertionError(f"{what}: off by {off:.2g} of the largest number; expected at most {tolerance:g}")
    return off


def scores_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str) -> float:
    assert list(found) == list(wanted), f"{what}: other groups"
    return max(near(found[name], wanted[name], tolerance, f"{what}, {name}") for name in wanted if len(wanted[name]))


def correlation(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Of the ranks within a group, the mean over the groups: two of four heads that change places are no fault."""
    ranks = ([torch.argsort(torch.argsort(each[name])).float() for name in wanted] for each in (found, wanted))
    return statistics.fmean(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*ranks))


def score(model: PreTrainedModel, batches: Sequence[dict], method: str = "cam_cut", **changes: Any) -> dict:
    config = PruningConfig(**{"method": method, "sparsity": 0.5, "granularity": UNITS, **changes})
    groups = find_groups(model, config.granularity)
    return score_groups(model, groups, list(batches), config, disable_tqdm=True)


def uneven(model: PreTrainedModel, empty: bool = False) -> PruningPlan:
    """Keeps other numbers of units in every layer; `empty`: none at all in the second one."""
    generator, keep = torch.Generator().manual_seed(0), {}
    for number, group in enumerate(find_groups(model, UNITS)):
        count = 0 if empty and ".1." in group.name else max(group.size * (number % 3 + 1) // 4, 1)
        keep[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    return PruningPlan(keep)


@torch.no_grad()
def masked(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """The same function at full size: a copy with zeros in the weights that lead out of what the plan removes."""
    model = copy.deepcopy(model)
    for group in find_groups(model, UNITS):
        module = model.get_submodule(group.output.module)
        weight = module.weight if isinstance(module, Conv1D) else module.weight.T
        for unit in set(range(group.size)) - set(plan.keep[group.name]):
            weight[unit * group.output.width : (unit + 1) * group.output.width] = 0
    return model


def cut(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    return apply_plan(copy.deepcopy(model), plan)
