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
"""Modules of the user's own around a transformers model: what is inside is pruned, by the loss of the whole."""

import copy

import pytest
import torch
from models import tiny_batch, tiny_model
from safetensors.torch import load_file
from torch import nn
from trainers import Interrupt
from transformers import TrainingArguments

from optimum_camcut import (
    CamCutTrainer,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    score_groups,
)


class Around(nn.Module):
    """What BertForSequenceClassification computes, in a module of the user's own."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.head = model.bert, model.classifier

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        logits = self.head(self.encoder(input_ids, attention_mask=attention_mask).pooler_output)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("method", ["cam_cut", "smooth_cut", "magnitude", "snip", "wanda", "random"])
def test_a_module_around_the_model_is_scored_and_cut_as_the_model(method):
    weights = method in ("snip", "wanda", "random")
    config = PruningConfig(
        method=method, sparsity=0.5, smooth_samples=2, granularity=("weights",) if weights else ("heads", "neurons")
    )
    model = tiny_model("bert")
    around, found, plans = Around(copy.deepcopy(model)).eval(), [], []
    for each in (model, around):
        groups = find_groups(each, config.granularity)
        found.append(score_groups(each, groups, [tiny_batch()], config, disable_tqdm=True))
        plans.append(make_plan(found[-1], groups, config))
    prefix = "bert." if weights else ""
    if method != "random":
        for name, values in found[1].items():
            torch.testing.assert_close(values, found[0][prefix + name])
    assert [prefix + name for name in found[1]] == list(found[0])
    plan = PruningPlan({name: plans[0].keep[prefix + name] for name in plans[1].keep})
    assert apply_plan(around, plan) is around
    apply_plan(model, plans[0])
    expected, got = model(**tiny_batch()), around(**tiny_batch())
    torch.testing.assert_close(got["logits"], expected.logits)
    assert around.encoder.pruning_plan.keep == plan.keep


def test_a_trainer_cuts_what_is_inside_a_module(tmp_path):
    """In rounds, stopped and resumed; what is saved loads as docs/steps.md says."""

    def make(folder, callbacks=()):
        arguments = TrainingArguments(
            str(tmp_path / folder), use_cpu=True, max_steps=3, save_steps=1, report_to="none", disable_tqdm=True
        )
        config = PruningConfig(method="taylor", sparsity=0.5, rounds=2, num_samples=8)
        rows = [{name: value[0] for name, value in tiny_batch(1, seed=seed).items()} for seed in range(16)]
        module = Around(tiny_model("bert"))
        return CamCutTrainer(module, arguments, train_dataset=rows, pruning_config=config, callbacks=[*callbacks])

    undisturbed = make("a")
    undisturbed.train()
    undisturbed.save_model(str(tmp_path / "saved"))
    with pytest.raises(KeyboardInterrupt):
        make("b", [Interrupt(2, 2)]).train()
    resumed = make("b")
    resumed.train(resume_from_checkpoint=True)
    module = Around(tiny_model("bert"))
    apply_plan(module, PruningPlan.load(tmp_path / "saved"))
    module.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    for other in (resumed.model, module):
        assert all(torch.equal(v, other.state_dict()[n]) for n, v in undisturbed.model.state_dict().items())
    assert sum(group.size for group in find_groups(module, "heads")) == 6
    module.encoder.save_pretrained(tmp_path / "encoder")
    assert load_pruned(tmp_path / "encoder").pruning_plan.keep == undisturbed.pruning_plan.keep


def test_what_a_module_around_the_model_cannot_have_is_refused(tmp_path):
    module, arguments = Around(tiny_model("bert")), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    for changes in ({"recovery": "reconstruct"}, {"distill_weight": 0.5}, {"budget": "latency"}):
        with pytest.raises(TypeError, match=r"Around; pass what is inside it: `encoder` \(BertModel\)"):
            CamCutTrainer(module, arguments, pruning_config=PruningConfig(sparsity=0.5, **changes))
    two = nn.ModuleDict({"student": tiny_model("bert"), "teacher": tiny_model("bert")})
    with pytest.raises(TypeError, match=r"`student` \(Bert.*\) and `teacher` \(Bert.*\); pass the one you mean"):
        CamCutTrainer(two, arguments, pruning_config=PruningConfig(sparsity=0.5))
