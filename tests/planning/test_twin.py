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
"""The dense twin of a pruned model."""

import pytest
import torch
from models import ARCHITECTURES, random_plan, tiny_model

from optimum_camcut import PruningPlan, apply_plan, load_pruned
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.planning.measure import longest_input, random_inputs
from optimum_camcut.planning.twin import dense_twin


def shapes(model):
    return {name: (tensor.shape, tensor.dtype) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_as_the_model_was(architecture, reloaded, tmp_path):
    dense = tiny_model(architecture)
    model = apply_plan(tiny_model(architecture), random_plan(dense, 1))
    if reloaded:
        model.save_pretrained(tmp_path)
        model = load_pruned(tmp_path)
    state = torch.get_rng_state()
    twin = dense_twin(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert shapes(twin) == shapes(dense) != shapes(model)
    assert not twin.training and twin.config._attn_implementation == dense.config._attn_implementation
    with torch.no_grad():
        logits = twin(**random_inputs(twin, 2, longest_input(twin, 512))).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if TABLE[name].bypass is not None])
def test_of_a_model_without_some_sub_layers(architecture):
    dense = tiny_model(architecture)
    names = [name for name in random_plan(dense, 1).keep if name.endswith(".heads")]
    removed = {names[0].replace("heads", "attention"): (), names[-1].replace("heads", "feed_forward"): ()}
    model = apply_plan(tiny_model(architecture), PruningPlan(removed))
    twin = dense_twin(model)
    assert shapes(twin) == shapes(dense) != shapes(model)
    with torch.no_grad():
        assert torch.isfinite(twin(**random_inputs(twin, 2, 9)).logits).all()


def test_dtypes_and_ties_are_those_of_the_model():
    model = apply_plan(tiny_model("gpt2", "CausalLM").to(torch.bfloat16), PruningPlan({"layer.0.heads": [1]}))
    twin = dense_twin(model)
    assert twin.lm_head.weight is twin.transformer.wte.weight and twin.dtype == torch.bfloat16
    assert shapes(twin) == shapes(tiny_model("gpt2", "CausalLM").to(torch.bfloat16))


def test_it_takes_no_more_memory_than_there_is(monkeypatch):
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.0.heads": [1]}))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(MemoryError, match=r"a dense twin would take 0.0 GB, more than half of the memory"):
        dense_twin(model)
