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
"""Optimal brain surgeon: against brute force, moments by autograd, and what least squares can make up for."""

import itertools

import pytest
import torch
from models import tiny_batch, tiny_model
from trainers import make_trainer
from types_of_models import batch_of, model_of

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    score_groups,
)
from optimum_camcut.methods import get_scorer, registry, scorer
from optimum_camcut.methods.elimination import DAMPINGS
from optimum_camcut.scoring.batches import mask_for


UNITS = ("heads", "neurons")
obs = get_scorer("obs", UNITS).function


def moments(size, seed):
    draws = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draws.T @ draws / len(draws)


def least_loss(weight, inputs, gradients, left):
    """½ min tr(G Dᵀ A D) over changes D that leave only the inputs `left`, by solving for them."""
    inputs = inputs + DAMPINGS[0] * inputs.diagonal().mean() * torch.eye(len(inputs))
    solved = torch.zeros_like(weight)
    if left:
        solved[left] = torch.linalg.solve(inputs[left][:, left], inputs[left] @ weight)
    change = weight - solved
    return float(torch.trace(gradients @ change.T @ inputs @ change)) / 2


@pytest.mark.parametrize("width", [1, 2])
def test_scores_are_what_brute_force_finds_to_be_lost(width):
    """The unit that costs least goes, then of the others again; a score is what it adds, and no less than those
    before."""
    units, outputs = 5, 3
    inputs, gradients = moments(units * width, 1), moments(outputs, 2)
    weight = torch.randn(units * width, outputs, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = obs(weight, inputs, gradients, units)
    left, before, wanted = set(range(units)), 0.0, {}

    def lost(kept):
        rows = [unit * width + place for unit in sorted(kept) for place in range(width)]
        return least_loss(weight, inputs, gradients, rows)

    while left:
        unit = min(left, key=lambda each: lost(left - {each}))
        left.remove(unit)
        wanted[unit], before = lost(left) - before, lost(left)
    highest = list(itertools.accumulate(wanted.values(), max))
    torch.testing.assert_close(got[list(wanted)], torch.tensor(highest, dtype=torch.float64))


@pytest.fixture
def moments_of(monkeypatch):
    """What the method is given, of each group."""
    monkeypatch.setattr(registry, "KIND_SCORERS", dict(registry.KIND_SCORERS))
    found = []

    @scorer("spy", source="curvature")
    def spy(weight, inputs, gradients, units):
        found.append((inputs, gradients))
        return torch.ones(units)

    def run(model, groups, batches):
        found.clear()
        score_groups(model, groups, batches, PruningConfig(method="spy", sparsity=0.5), disable_tqdm=True)
        return list(found)

    return run


def test_moments_are_those_of_real_tokens_that_are_read(moments_of):
    """Against autograd: the mean of xxᵀ, centred where there is a bias, and the mean over examples of the sum of ggᵀ;
    in the last block, of the first token alone, which the classifier reads."""
    model, batch = tiny_model("bert"), tiny_batch()
    groups = find_groups(model, UNITS)
    found = moments_of(model, groups, [batch])
    seen, size = {}, len(batch["labels"])
    for group in groups:
        keep = lambda module, args, output, name=group.name: seen.update({name: (args[0], output)})  # noqa: E731
        model.get_submodule(group.output.module).register_forward_hook(keep)
    loss = model(**batch).loss * size
    for group, (inputs, gradients) in zip(groups, found, strict=True):
        values, output = seen[group.name]
        gradient = torch.autograd.grad(loss, output, retain_graph=True)[0]
        read = gradient.abs().sum(-1) > 0
        if group.name == f"layer.{group.num_layers - 1}.neurons":
            assert read.sum() == size
        read &= mask_for(batch, group.name, model, *values.shape[:2]) > 0
        x, g = values[read].double(), gradient[read].double()
        x = x - x.mean(0)
        torch.testing.assert_close(inputs, x.T @ x / len(x), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(gradients, g.T @ g / size, rtol=1e-3, atol=1e-9)


def test_a_mean_that_is_large_leaves_no_rounding(moments_of):
    """Where the bias of a projection makes up for what is always there, what varies is all that counts."""
    model, batch = tiny_model("bert"), tiny_batch(8)
    groups = [group for group in find_groups(model) if group.name == "layer.1.neurons"]
    layer, seen = model.bert.encoder.layer[1], []
    with torch.no_grad():
        layer.intermediate.dense.bias += 100
    layer.output.dense.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    ((inputs, _),) = moments_of(model, groups, [batch])
    x = seen[0][batch["attention_mask"] > 0].double()
    x = x - x.mean(0)
    wanted = x.T @ x / len(x)
    torch.testing.assert_close(inputs, wanted, rtol=1e-4, atol=1e-5 * float(wanted.max()))
    assert score_groups(model, groups, [batch], PruningConfig(method="obs", sparsity=0.5))["layer.1.neurons"].any()


def test_what_another_unit_can_make_up_for_costs_little():
    """Of two neurons that always do the same, one costs next to nothing; the diagonal of the Fisher information holds
    that against neither."""
    model = tiny_model("bert")
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        for parameter in layer.intermediate.dense.parameters():
            parameter[5] = parameter[3]
        layer.output.dense.weight[:, 5] = layer.output.dense.weight[:, 3]
    batches = [tiny_batch(16, seed=seed) for seed in range(4)]
    groups = [group for group in find_groups(model) if group.name == "layer.1.neurons"]
    found = {}
    for method in ("obs", "fisher"):
        config = PruningConfig(method=method, granularity=["neurons"], sparsity=0.5)
        found[method] = score_groups(model, groups, batches, config, disable_tqdm=True)["layer.1.neurons"][[3, 5]]
    torch.testing.assert_close(found["fisher"][0], found["fisher"][1])
    assert 0 < found["obs"].min() < 0.05 * found["obs"].max()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "albert"])
def test_batches_and_checkpointing_do_not_matter(architecture, moments_of):
    model, batch = tiny_model(architecture), tiny_batch(8)
    groups = find_groups(model, UNITS)
    halves = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 4), slice(4, 8))]
    wanted = moments_of(model, groups, [batch])
    ways = [halves]
    if architecture != "albert":
        model.gradient_checkpointing_enable()
        ways.append([batch])
    for batches in ways:
        for one, other in zip(wanted, moments_of(model, groups, batches), strict=True):
            for values, same in zip(one, other):
                torch.testing.assert_close(same, values, rtol=1e-3, atol=1e-4 * float(values.abs().max()))


def test_a_layer_without_units_is_scored_around():
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.neurons": []}))
    found = score_groups(model, find_groups(model), [tiny_batch()], PruningConfig(method="obs", sparsity=0.5))
    assert found["layer.1.neurons"].shape == (0,) and found["layer.2.neurons"].any()


def test_neurons_inside_of_experts_are_refused():
    model = model_of("mixtral")
    config = PruningConfig(method="obs", sparsity=0.5)
    with pytest.raises(ValueError, match="'obs' scores no units of experts"):
        score_groups(model, find_groups(model), [batch_of(model)], config)


@pytest.mark.parametrize("granularity", [["layers"], ["experts"], ["weights"]])
def test_other_kinds_are_refused(granularity):
    with pytest.raises(ValueError, match="'obs' scores heads and neurons alone"):
        PruningConfig(method="obs", granularity=granularity, sparsity=0.5)


@pytest.mark.parametrize("recovery", ["finetune", "reconstruct+finetune"])
def test_a_trainer_says_that_it_counts_on_the_rebuild(recovery, tmp_path, caplog):
    config = PruningConfig(method="obs", sparsity=0.5, recovery=recovery)
    trainer = make_trainer(tmp_path, config, max_steps=2)
    trainer.score()
    assert "counts on a rebuild" not in caplog.text  # of scores alone there is nothing to say
    trainer.train()
    assert caplog.text.count("method 'obs' counts on a rebuild") == (recovery == "finetune")


def test_autocast_is_left_out_of_the_sums(moments_of):
    model, batch = tiny_model("bert"), tiny_batch(8)
    groups = find_groups(model, UNITS)
    wanted = moments_of(model, groups, [batch])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = moments_of(model, groups, [batch])
    for (inputs, _), (same, _) in zip(wanted, found, strict=True):
        torch.testing.assert_close(same, inputs, rtol=0.05, atol=0.05 * float(inputs.abs().max()))
        assert torch.linalg.eigvalsh(same).min() > -1e-4 * same.diagonal().mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_groups(model, groups, [batch], PruningConfig(method="obs", sparsity=0.5), disable_tqdm=True)
    assert all(values.isfinite().all() for values in scores.values())
