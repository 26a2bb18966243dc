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
"""Baselines that need forward passes alone: against numbers by hand, hidden states and what flows into projections."""

import functools

import pytest
import torch
from models import ARCHITECTURES, tiny_batch, tiny_model
from transformers.pytorch_utils import Conv1D
from types_of_models import batch_of, model_of

from optimum_camcut import PruningConfig, PruningPlan, apply_plan, find_groups, make_plan, score_groups
from optimum_camcut.scoring import get_scorer


UNITS = ("heads", "neurons")


def score(model, method, batches, granularity=UNITS, **changes):
    config = PruningConfig(method=method, sparsity=0.3, granularity=granularity, **changes)
    return score_groups(model, find_groups(model, granularity), batches, config, disable_tqdm=True)


blocks = functools.partial(score, method="block_influence", granularity=("layers",), layer_unit="block")


def test_wanda_sp_by_hand():
    """Unit 0: (|1| + |-2|) · 3 + (|0| + |4|) · 1 = 13; unit 1: (1 + 1) · 2 + 0 = 4."""
    weight = torch.tensor([[[1.0, -2.0], [0.0, 4.0]], [[1.0, 1.0], [0.0, 0.0]]])
    square = torch.tensor([[9.0, 1.0], [4.0, 100.0]])
    got = get_scorer("wanda_sp", UNITS).function(weight, torch.zeros(2, 2), square)
    torch.testing.assert_close(got, torch.tensor([13.0, 4.0]))


def test_flap_by_hand():
    """Neurons: variances 9 - 1 = 8, 4 - 4 = 0 and 1, times ‖W‖² of 1, 5 and 4: 8, 0, 4, with the mean 4 and the
    standard deviation 4, so 1, -1 and 0. Heads are squared first: 64, 0, 16 and 0 have the mean 20."""
    weight = torch.tensor([[[1.0, 0.0]], [[1.0, -2.0]], [[0.0, 2.0]]])
    mean, square = torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[9.0], [4.0], [1.0]])
    flap = get_scorer("flap", UNITS).function
    torch.testing.assert_close(flap(weight, mean, square), torch.tensor([2.0, torch.e**-1, 1.0]))
    heads = flap(torch.ones(2, 2, 1), torch.zeros(2, 2), torch.tensor([[8.0, 0.0], [4.0, 0.0]]))
    spread = torch.tensor([64.0, 0.0, 16.0, 0.0]).std()
    torch.testing.assert_close(heads, torch.stack([1 + 12 / spread, torch.exp(-12 / spread)]))


def test_flap_orders_layers_of_any_width_without_overflow():
    """The only unit of 40,000 that varies is 200 standard deviations above the mean: its exponential is infinite."""
    square = torch.zeros(40_000, 1)
    square[7] = 1.0
    found = get_scorer("flap", UNITS).function(torch.ones(40_000, 1, 1), torch.zeros(40_000, 1), square)
    assert found.isfinite().all() and int(found.argmax()) == 7 and (found > 0).all()


def inputs_of(model, group, batches):
    """What flows into the output projection at the real tokens, all batches one after another: `(tokens, inputs)`."""
    seen, module = [], model.get_submodule(group.output.module)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].flatten().bool()
            start = len(seen)
            model(**batch)
            for i in range(start, len(seen)):
                seen[i] = seen[i][mask]
    handle.remove()
    weight = module.weight if isinstance(module, Conv1D) else module.weight.T
    return torch.cat(seen).double(), weight.detach().double()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_what_flows_into_the_projections(architecture):
    model, batches = tiny_model(architecture), [tiny_batch(size, seed=size) for size in (4, 1, 3)]
    found = {method: score(model, method, batches) for method in ("wanda_sp", "flap")}
    for group in find_groups(model):
        x, weight = inputs_of(model, group, batches)
        width = group.output.width
        wanda = (weight.abs() * x.square().mean(0).sqrt()[:, None]).sum(1).view(-1, width).sum(1)
        torch.testing.assert_close(found["wanda_sp"][group.name], wanda.float(), rtol=1e-4, atol=0)
        fluctuation = x.var(0, correction=0) * weight.square().sum(1)
        fluctuation = fluctuation**2 if group.kind == "heads" else fluctuation
        z = ((fluctuation - fluctuation.mean()) / fluctuation.std()).view(-1, width).mean(1)
        got = found["flap"][group.name].double()
        torch.testing.assert_close(torch.where(got > 1, got - 1, got.log()), z, rtol=1e-3, atol=1e-3)


def influence(states, mask):
    """Of each block, from all hidden states."""
    pairs = zip(states, states[1:])
    return [float((1 - torch.cosine_similarity(x[mask], y[mask], dim=-1)).mean()) for x, y in pairs]


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "albert"])
def test_block_influence_agrees_with_the_hidden_states(architecture):
    model = tiny_model(architecture)
    batches = [tiny_batch(size, seed=size) for size in (3, 3)]
    batch = {name: torch.cat([each[name] for each in batches]) for name in batches[0]}
    body = model.base_model
    final = next((body.get_submodule(name) for name in ("ln_f", "norm") if hasattr(body, name)), None)
    if final is not None:  # the last hidden state is behind it
        final.forward = lambda x: x
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    expected = influence(states, batch["attention_mask"].bool())
    got = blocks(model, batches=batches)
    assert all(torch.equal(got[f"layer.{i}.attention"], got[f"layer.{i}.feed_forward"]) for i in range(len(got) // 2))
    halves = torch.tensor([float(got[f"layer.{i}.attention"]) for i in range(len(got) // 2)])
    if architecture == "albert":  # the same two blocks three times
        expected = [sum(expected[i::2]) / 3 for i in range(2)]
    torch.testing.assert_close(2 * halves, torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "swin", "whisper", "mixtral", "clip", "wav2vec2"])
def test_blocks_of_every_shape_are_scored(name):
    model = model_of(name)
    found = blocks(model, batches=[batch_of(model)])
    values = torch.cat(list(found.values()))
    assert len(found) == len(find_groups(model, ("layers",))) and (values > 0).all() and (values < 2).all()


def test_the_least_influential_block_goes_whole():
    model, batches = tiny_model("bert"), [tiny_batch()]
    dense = model.bert.encoder.layer[1]
    with torch.no_grad():  # it adds little
        for module in (dense.attention.output.dense, dense.output.dense):
            module.weight.mul_(1e-3)
            module.bias.zero_()
    config = PruningConfig(method="block_influence", granularity=("layers",), layer_unit="block", sparsity=0.3)
    groups = find_groups(model, ("layers",))
    plan = make_plan(score_groups(model, groups, batches, config, disable_tqdm=True), groups, config)
    assert [name for name, kept in plan.keep.items() if not kept] == ["layer.1.attention", "layer.1.feed_forward"]
    again = apply_plan(model, plan)
    assert "layer.1.attention" not in blocks(again, batches=batches)


@pytest.mark.parametrize("method", ["wanda_sp", "flap"])
def test_labels_do_not_matter_and_a_layer_without_units_is_scored_around(method):
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.neurons": []}))
    found = score(model, method, [tiny_batch()])
    assert found["layer.1.neurons"].shape == (0,) and found["layer.2.neurons"].any()
    without = score(model, method, [tiny_batch(labels=False)])
    assert all(torch.equal(values, without[name]) for name, values in found.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "flap", "granularity": ["layers"]}, "'flap' scores heads and neurons alone: use it with granular"),
        ({"method": "wanda_sp", "granularity": ["heads", "layers"]}, "'wanda_sp' scores heads and neurons alone"),
        ({"method": "wanda_sp", "granularity": ["experts"]}, "'wanda_sp' scores heads and neurons alone"),
        ({"method": "flap", "granularity": ["weights"]}, "'flap' scores heads and neurons alone"),
        ({"method": "block_influence"}, r"scores layers alone: use it with granularity \['layers'\]; got \['heads', "),
        ({"method": "block_influence", "granularity": ["layers"]}, "scores whole blocks: set layer_unit='block'"),
        ({"method": "flip"}, "unknown method 'flip' for heads and neurons; .*did you mean 'flap'"),
    ],
)
def test_what_they_do_not_score_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(sparsity=0.5, **changes)


def test_neurons_inside_of_experts_are_refused():
    model = model_of("mixtral")
    with pytest.raises(ValueError, match="'flap' scores no units of experts, such as 'layer.0.expert_neurons'"):
        score(model, "flap", [batch_of(model)], ("neurons",))
