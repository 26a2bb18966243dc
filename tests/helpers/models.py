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
"""Tiny models of every supported architecture, with random weights, and inputs for them."""

import re
from collections.abc import Sequence

import pytest
import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from optimum_camcut import PruningPlan, apply_plan, find_groups
from optimum_camcut.architectures.entry import STACKED
from optimum_camcut.architectures.experts import WithoutExperts
from optimum_camcut.architectures.groups import possible_kinds


VOCABULARY, TOKENS = 99, 9
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "num_labels": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SMALL_EMBEDDINGS = {**_BERT, "embedding_size": 16}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 37, "n_positions": 64}
_COMMON = ("vocab_size", "num_labels", "pad_token_id", "bos_token_id", "eos_token_id")
CONFIGS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _SMALL_EMBEDDINGS,
    "distilbert": {
        **{name: _BERT[name] for name in _COMMON},
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 37,
        "max_position_embeddings": 64,
    },
    "albert": {**_SMALL_EMBEDDINGS, "num_hidden_groups": 1, "inner_group_num": 2, "classifier_dropout_prob": 0.1},
    "mpnet": _BERT,
    "gpt2": {**{name: _BERT[name] for name in _COMMON}, **_GPT2},
    "llama": {**_BERT, "num_attention_heads": 8, "num_key_value_heads": 4},
}
ARCHITECTURES = tuple(CONFIGS)


def tiny_config(architecture: str, **changes) -> PretrainedConfig:
    return AutoConfig.for_model(architecture, **{**CONFIGS.get(architecture, {}), **changes})


def tiny_model(architecture: str, task: str = "SequenceClassification", seed: int = 0, **changes) -> PreTrainedModel:
    """A model in evaluation mode whose weights and biases are all random and large enough to matter."""
    torch.manual_seed(seed)
    attention = changes.pop("attn_implementation", None)
    auto_class = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    keywords = {"attn_implementation": attention} if attention else {}
    model = auto_class.from_config(tiny_config(architecture, **changes), **keywords).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def tiny_batch(batch_size: int = 4, labels: bool = True, seed: int = 0, padding: bool = True) -> dict:
    """Token ids with a mask that leaves out the end of every second sequence, and class labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch_size, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        mask[::2, TOKENS - 3 :] = 0
        ids[mask == 0] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels:
        batch["labels"] = torch.randint(0, 3, (batch_size,), generator=generator)
    return batch


def random_plan(model: PreTrainedModel, seed: int, least: int = 1, kinds: Sequence[str] | None = None) -> PruningPlan:
    """Keeps a random number of random units of every group, uneven across layers; of stacked experts, as many each."""
    generator = torch.Generator().manual_seed(seed)
    keep, sizes = {}, {}
    for group in find_groups(model, kinds):
        experts = group.experts or 1
        each = group.size // experts
        step = STACKED if group.experts else 1
        count = step * int(torch.randint(max(least, group.fewest), each // step + 1, (), generator=generator))
        keep[group.name] = [
            expert * each + unit
            for expert in range(experts)
            for unit in torch.randperm(each, generator=generator)[:count].tolist()
        ]
        sizes[group.name] = group.size
    return PruningPlan(keep, sizes, model.config.model_type)


@torch.no_grad()
def mask_units(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """Zeroes the weights that lead out of every unit the plan does not keep, and hides the experts from their routers:
    the same function, at full size."""
    for group in find_groups(model, [kind for kind in possible_kinds(model) if kind != "layers"]):
        gone = sorted(set(range(group.size)) - set(plan.keep.get(group.name, range(group.size))))
        if group.observed == "routing":
            _hide(model.get_submodule(group.output.module), gone)
            continue
        if group.observed == "inside":
            weight = model.get_parameter(group.output.module)
            each = group.size // len(weight)
            for unit in gone:
                weight[unit // each].select(group.output.axis - 1, unit % each).zero_()
            continue
        module = model.get_submodule(group.slices[-1].module)
        transposed = type(module).__name__ == "Conv1D"
        weight = module.weight if transposed else module.weight.T  # (inputs, outputs)
        width = weight.shape[0] // group.size
        for unit in gone:
            weight[unit * width : (unit + 1) * width] = 0
    return model


def _hide(router, experts):
    forward, hidden = router.forward, WithoutExperts([(router, experts)])

    def without(*args):
        with hidden:
            return forward(*args)

    router.forward = without


def outputs(model, batch):
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def task_classes():
    for architecture in ARCHITECTURES:
        config = tiny_config(architecture)
        for name, auto_class in vars(modeling_auto).items():
            mapping = getattr(auto_class, "_model_mapping", None) if name.startswith("AutoModel") else None
            if mapping is not None and type(config) in mapping:
                target = mapping[type(config)]
                for cls in target if isinstance(target, tuple) else (target,):
                    yield architecture, cls.__name__


def check_refused(model, plan, message, error=ValueError):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kind, config = type(model), model.config.to_dict()
    with pytest.raises(error, match=re.escape(message)):
        plan(model) if callable(plan) else apply_plan(model, plan)
    assert type(model) is kind and model.config.to_dict() == config
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def even_plan(model, seed=0, **sizes):
    """Keeps the same number of random units in all layers: by kind, `neurons=20`."""
    generator = torch.Generator().manual_seed(seed)
    groups = find_groups(model, tuple(sizes))
    chosen = {g.name: torch.randperm(g.size, generator=generator)[: sizes[g.kind]].tolist() for g in groups}
    return PruningPlan({g.name: [g.units[position] for position in chosen[g.name]] for g in groups})


def kinds_of(architecture):
    return {"heads": 2, "neurons": 20} if architecture == "llama" else {"neurons": 20}
