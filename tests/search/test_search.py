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
"""The search for how much each layer keeps."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate import PartialState
from models import outputs, tiny_batch, tiny_model
from torch.nn import functional
from tqdm.auto import tqdm
from trainers import make_trainer, pruning
from workers import last_line, together

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    compare,
    find_groups,
    make_plan,
    score_groups,
    search_plan,
)
from optimum_camcut.architectures.modes import scoring_mode
from optimum_camcut.planning.costs import remaining_budget, unit_cost
from optimum_camcut.scoring.batches import mask_for
from optimum_camcut.search import search
from optimum_camcut.search.supernet import DAMPING, Supernet


TASKS = [
    ("bert", "SequenceClassification"),
    ("gpt2", "CausalLM"),
    ("llama", "CausalLM"),
    ("distilbert", "QuestionAnswering"),
    ("roberta", ""),
]


def setting(architecture="bert", task="SequenceClassification", **changes):
    """A model with its groups, scores and batches, and a config."""
    model = tiny_model(architecture, task, num_labels=2)
    batches = [tiny_batch(8, labels=False, seed=seed) for seed in range(3)]
    config = PruningConfig(**{"method": "magnitude", "sparsity": 0.5, "allocation": "search", **changes})
    groups = find_groups(model)
    return model, groups, score_groups(model, groups, None, config), config, batches


def divergence(model, dense, batches):
    """Of the classes, from the dense model's, mean over the examples or the real tokens; written out once more."""
    total = count = 0
    for batch in batches:
        with torch.no_grad():
            found, wanted = (functional.log_softmax(each(**batch).logits, -1) for each in (model, dense))
        each = (wanted.exp() * (wanted - found)).sum(-1)
        mask = batch["attention_mask"].bool() if each.dim() == 2 else torch.ones_like(each).bool()
        total, count = total + each[mask].sum().item(), count + mask.sum().item()
    return total / count


@pytest.mark.parametrize(("architecture", "task"), TASKS)
def test_sizes_are_those_of_least_squares(architecture, task):
    model, groups, scores, _, batches = setting(architecture, task)
    orders = {group.name: scores[group.name].argsort(descending=True).tolist() for group in groups}
    for group in (groups[0], groups[-1]):
        seen = []
        module = model.get_submodule(group.output.module)
        hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        hook.remove()
        masks = [mask_for(batch, group.name, model, len(x), x.shape[1]).bool() for x, batch in zip(seen, batches)]
        x = torch.cat([each[mask] for each, mask in zip(seen, masks)]).double()
        conv = type(module).__name__ == "Conv1D"
        weight = (module.weight if conv else module.weight.T).detach().double()
        width, count = len(weight) // group.size, max(group.size // 2, 1)
        left = torch.tensor([unit * width + i for unit in orders[group.name][:count] for i in range(width)])
        gone = torch.tensor([i for i in range(len(weight)) if i not in left])
        with Supernet(model, groups, orders, batches, rebuilt=False) as net, torch.no_grad():
            lost = (x[:, gone] @ weight[gone]).square().sum()
            np.testing.assert_allclose(net.sizes[group.name].errors[count], lost.item(), rtol=1e-4)
            assert net.sizes[group.name].errors[group.size] == 0
        with Supernet(model, groups, orders, batches, rebuilt=True) as net, torch.no_grad():
            biased = module.bias is not None
            ones = torch.ones(len(x), int(biased)).double()
            damping = DAMPING * x.square().sum(0).mean()
            # Ridge regression, damped towards the weights, as rows below the inputs.
            rows = torch.cat(
                [torch.zeros(len(weight), int(biased)).double(), damping.sqrt() * torch.eye(len(weight))], 1
            )
            inputs = torch.cat([torch.cat([ones, x], 1), rows])
            whole = torch.cat([module.bias.detach().double()[None], weight]) if biased else weight
            wanted = inputs @ whole
            chosen = torch.cat([torch.arange(int(biased)), left + int(biased)])
            solved = torch.linalg.lstsq(inputs[:, chosen], wanted).solution
            lost = (inputs[:, chosen] @ solved - wanted).square().sum()
            np.testing.assert_allclose(net.sizes[group.name].errors[count], lost.item(), rtol=1e-3)
            net.set({group.name: count})
            now = (module.weight if conv else module.weight.T).detach().double()
            torch.testing.assert_close(now[left], solved[int(biased) :], rtol=1e-3, atol=1e-4)
            assert not now[gone].any()


@pytest.mark.parametrize(("architecture", "task"), TASKS[:3])
def test_parts_are_half_the_slopes_and_add_up(architecture, task):
    """Against differences of the divergence, as each projection changes a little more or less."""
    model, groups, scores, _, batches = setting(architecture, task)
    model = model.double()
    orders = {group.name: scores[group.name].argsort(descending=True).tolist() for group in groups}
    counts = {group.name: group.size - 1 for group in groups}
    modules = [model.get_submodule(group.output.module) for group in groups]
    parameters = [list(module.parameters()) for module in modules]
    dense = copy.deepcopy(model)

    def moved(number, step):
        with torch.no_grad():
            before = [value.clone() for value in parameters[number]]
            for value, whole in zip(
                parameters[number], dense.get_submodule(groups[number].output.module).parameters()
            ):
                value.add_(step * (value - whole))
            found = divergence(model, dense, batches)
            for value, own in zip(parameters[number], before):
                value.copy_(own)
        return found

    with scoring_mode(model), Supernet(model, groups, orders, batches, rebuilt=True) as net, tqdm(disable=True) as bar:
        with torch.no_grad():
            measure = search._Measure(net, batches, 24, None, "", bar)
            parts = measure.parts(counts)
        slopes = [(moved(number, 1e-3) - moved(number, -1e-3)) / 2e-3 for number in range(len(groups))]
        np.testing.assert_allclose(list(parts.values()), np.array(slopes) / 2, rtol=1e-2, atol=1e-10)
        assert sum(parts.values()) == pytest.approx(measure(counts), rel=0.3)
    assert all(value.requires_grad and value.grad is None for value in model.parameters())


def parts_of(model, groups, scores, batches, counts):
    orders = {group.name: scores[group.name].argsort(descending=True).tolist() for group in groups}
    with torch.no_grad(), scoring_mode(model), Supernet(model, groups, orders, batches, rebuilt=True) as net:
        with tqdm(disable=True) as bar:
            return search._Measure(net, batches, 24, None, "", bar).parts(counts)


def test_parts_in_half_precision_and_of_a_whole_model():
    model, groups, scores, _, batches = setting("llama", "CausalLM")
    counts = {group.name: group.size - (group.kind == "neurons") for group in groups}
    found = parts_of(model, groups, scores, batches, counts)
    halves = parts_of(copy.deepcopy(model).half(), groups, scores, batches, counts)
    for name, part in found.items():
        assert halves[name] == pytest.approx(part, rel=0.2, abs=1e-5), name
    assert not any(parts_of(model, groups, scores, batches, {group.name: group.size for group in groups}).values())


@pytest.mark.parametrize("budget", ["params", "flops"])
@pytest.mark.parametrize(("architecture", "task"), TASKS[:3])
def test_no_other_allocation_is_nearer_to_the_dense_model(architecture, task, budget):
    """Without a rebuild what is measured is what a cut gives, so it can be measured from outside."""
    model, groups, scores, config, batches = setting(architecture, task, recovery="none", budget=budget)
    before = copy.deepcopy(model.state_dict())
    plan = search_plan(model, groups, scores, config, batches, num_measured=24)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    cut = apply_plan(copy.deepcopy(model), plan)
    kept = remaining_budget(groups, find_groups(cut), config)
    costs = [unit_cost(group, config) for group in groups]  # a head may not fit into what is left
    largest = max(costs) / sum(cost * group.size for cost, group in zip(costs, groups))
    assert 0.5 - largest <= kept <= 0.5 + largest / 2
    found = divergence(cut, model, batches)
    for allocation in ("uniform", "per_kind", "global"):
        other = make_plan(scores, groups, PruningConfig(**{**config.to_dict(), "allocation": allocation}))
        assert found <= divergence(apply_plan(copy.deepcopy(model), other), model, batches) + 1e-7
    assert plan.config.allocation == "search"


@pytest.mark.parametrize("recovery", ["none", "reconstruct"])
def test_what_does_nothing_goes_first(recovery):
    """Neurons that are not read are of no use, whatever their scores say."""
    model, groups, _, config, batches = setting(recovery=recovery, sparsity=0.4)
    dead = model.bert.encoder.layer[1].output.dense
    torch.nn.init.zeros_(dead.weight)
    scores = {group.name: torch.ones(group.size) for group in groups}
    scores["layer.1.neurons"] *= 100
    plan = search_plan(model, groups, scores, config, batches)
    assert len(plan.keep["layer.1.neurons"]) == 1
    assert len(make_plan(scores, groups, pruning(sparsity=0.4)).keep["layer.1.neurons"]) == 37


def test_scores_of_obs_are_what_sizes_cost(tmp_path, monkeypatch):
    """They are not measured first, group by group."""
    monkeypatch.setattr(search, "ROUNDS", 0)
    model, groups, _, config, batches = setting()
    scores = {group.name: torch.full((group.size,), 1.0 / group.size) for group in groups}
    measured = []
    for method in ("fisher", "obs"):
        file = tmp_path / method
        changed = PruningConfig(**{**config.to_dict(), "method": method, "sparsity": 0.3})
        search_plan(model, groups, scores, changed, batches, progress_file=file)
        measured.append(len(json.loads(file.read_text())["measured"]))
    assert measured[0] > len(groups) and measured[1] <= 4
    lost = search._sums(torch.tensor([3.0, float("inf"), 1.0, 2.0]), [1, 0, 3, 2])
    assert lost.tolist() == [6, 6, 3, 1, 0]


def test_a_layer_without_neurons_is_searched_around():
    model, batches = tiny_model("bert"), [tiny_batch(8, labels=False)]
    model = apply_plan(model, PruningPlan({"layer.1.neurons": []}))
    groups = find_groups(model)
    config = PruningConfig(method="magnitude", sparsity=0.3, allocation="search", min_units=0)
    keep = search_plan(model, groups, score_groups(model, groups, None, config), config, batches).keep
    assert list(keep) == [group.name for group in groups] and keep["layer.1.neurons"] == ()
    assert outputs(apply_plan(model, PruningPlan(keep)), batches[0]).isfinite().all()


def test_rates_are_in_the_unit_of_what_is_measured():
    """Scores that are all too small by one factor give the same plan."""
    model, groups, _, config, batches = setting()
    config = PruningConfig(**{**config.to_dict(), "method": "obs"})
    draw = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in groups}
    small = {name: values / 4096 for name, values in scores.items()}
    plans = [search_plan(model, groups, each, config, batches).keep for each in (scores, small)]
    assert plans[0] == plans[1]


def test_limits_are_kept():
    limits = {"min_units": {"heads": 2, "neurons": 8}, "multiple_of": 4, "exclude": ["layer.0.neurons"]}
    model, groups, scores, config, batches = setting(sparsity=0.4, **limits)
    keep = search_plan(model, groups, scores, config, batches).keep
    assert len(keep["layer.0.neurons"]) == 37
    for name, units in keep.items():
        assert len(units) >= (2 if name.endswith("heads") else 8)
        assert name.endswith("heads") or len(units) % 4 == 0 or len(units) == 37


def test_a_search_that_was_stopped_goes_on(tmp_path, monkeypatch):
    model, groups, scores, config, batches = setting()
    expected = search_plan(model, groups, scores, config, batches)
    file, calls, real = tmp_path / "search", [], search._Measure._of_batch

    def counted(self, *given):
        calls.append(1)
        if len(calls) == 31:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(search._Measure, "_of_batch", counted)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        search_plan(model, groups, scores, config, batches, progress_file=file)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    known = len(json.loads(file.read_text())["measured"])
    assert known == 10  # of three batches each
    calls[:] = [1] * 31
    assert search_plan(model, groups, scores, config, batches, progress_file=file).keep == expected.keep
    whole = len(json.loads(file.read_text())["measured"])
    assert len(calls) - 31 == 3 * (whole - known)
    # Of other examples or another model, nothing is known.
    calls[:] = [1] * 31
    search_plan(model, groups, scores, config, [tiny_batch(8, labels=False, seed=9), *batches[1:]], progress_file=file)
    assert len(calls) - 31 >= 3 * 10
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    calls[:] = [1] * 31
    search_plan(model, groups, scores, config, batches, progress_file=file)
    assert len(calls) - 31 >= 3 * 10


def search_in_process():
    PartialState(cpu=True)
    model, groups, scores, config, batches = setting("gpt2", "CausalLM")
    plan = search_plan(model, groups, scores, config, batches, disable_tqdm=True)
    print(json.dumps({name: list(units) for name, units in plan.keep.items()}))


def test_any_number_of_processes_finds_the_same_plan():
    ended = [worker.end() for number in (1, 3) for worker in together(number, search_in_process)]
    assert [code for code, _ in ended] == [0] * 4, ended
    assert len({last_line(output) for _, output in ended}) == 1 and last_line(ended[0][1]).startswith("{")


def test_a_trainer_searches_and_resumes_nothing_that_is_done(tmp_path):
    trainer = make_trainer(tmp_path, pruning(allocation="search", sparsity=0.5, recovery="reconstruct"))
    trainer.train()
    assert trainer.pruning_plan.config.allocation == "search"
    assert not list(tmp_path.glob("*.search"))


def test_compare_searches():
    model, _, _, config, batches = setting(num_samples=16, sequence_length=9, latency_batch_size=2)
    batches = [{**batch, "labels": torch.zeros(8, dtype=torch.long)} for batch in batches]
    found = compare(
        model,
        batches,
        lambda each: -divergence(each, model, batches),
        config,
        methods=("magnitude",),
        sparsities=(0.5,),
        recovery="none",
        repeats=1,
    )
    assert found.rows[-1].plan.config.allocation == "search"


def test_what_cannot_be_searched_is_refused():
    model, groups, scores, config, batches = setting()
    with pytest.raises(ValueError, match="allocation='search' goes by what the model gives.*: call search_plan"):
        make_plan(scores, groups, config)
    with pytest.raises(ValueError, match="takes a config with allocation='search'; got 'per_kind'"):
        search_plan(model, groups, scores, pruning(), batches)
    with pytest.raises(
        ValueError, match=r"allocation='search' is for heads and neurons; got granularity \['layers'\]"
    ):
        PruningConfig(sparsity=0.5, allocation="search", granularity="layers")
    with pytest.raises(ValueError, match="the dataloader gave no batches: there is nothing to search by"):
        search_plan(model, groups, scores, config, [])
    with pytest.raises(ValueError, match="none may be offloaded: load it whole"):
        search_plan(model.to("meta"), groups, scores, config, batches)
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="sparsity=0.9999 cannot be reached"):
        search_plan(model, groups, scores, PruningConfig(sparsity=0.9999, allocation="search"), batches)
