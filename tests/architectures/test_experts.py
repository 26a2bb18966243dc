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
"""Experts, and the neurons inside of them: what is scored is what their removal changes, and plans keep what the
layout of the weights needs."""

import pytest
import torch
import transformers
from accelerate import cpu_offload
from datasets import Dataset
from marks import few
from models import mask_units, random_plan
from trainers import arguments, same, weights
from types_of_models import batch_of, config_of, model_of

from optimum_camcut import (
    CamCutTrainer,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    latency_table,
    load_pruned,
    make_plan,
    reconstruct,
    score_groups,
)
from optimum_camcut.architectures.groups import possible_kinds
from optimum_camcut.architectures.modeling_camcut import RECORD
from optimum_camcut.planning.measure import count_flops, count_parameters
from optimum_camcut.planning.twin import dense_twin
from optimum_camcut.reporting.numbers import compare_costs


TYPES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"]
pytestmark = pytest.mark.once  # transformers 4 has a module for each expert, and nothing of that is cut


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def loss(model, batch):
    return model(**batch).logits.square().mean()


def scores_of(model, kinds, method, batch, **changes):
    config = PruningConfig(method=method, granularity=kinds, sparsity=0.4, **changes)
    groups = find_groups(model, kinds)
    return groups, score_groups(model, groups, [batch], config, loss_function=loss, disable_tqdm=True)


def effect(model, batch, scale):
    """The derivative of the loss by a factor that `scale(factor)` puts somewhere, in wide steps: norms are float32."""
    values = []
    for factor in (1 + 1e-2, 1 - 1e-2):
        undo = scale(factor)
        with torch.no_grad():
            values.append(float(loss(model, batch)))
        undo()
    return (values[0] - values[1]) / 2e-2


def multiplied(values, factor):
    before = values.clone()
    values.mul_(factor)
    return lambda: values.copy_(before)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_scores_are_what_removal_changes_to_first_order(name):
    model = model_of(name).double().requires_grad_(False)
    model.set_experts_implementation("eager")  # the grouped product has no float64
    batch = {key: value[:1] for key, value in batch_of(model).items()}
    experts = model.model.layers[1].mlp.experts
    found = {kind: scores_of(model, (kind,), "taylor", batch)[1] for kind in ("experts", "neurons", "layers")}
    for expert in (0, 3):

        def scale(factor, expert=expert):
            undo = [multiplied(experts.down_proj[expert], factor)]
            bias = getattr(experts, "down_proj_bias", None)
            undo += [multiplied(bias[expert], factor)] if bias is not None else []
            return lambda: [each() for each in undo]

        expected = abs(effect(model, batch, scale))
        assert float(found["experts"]["layer.1.experts"][expert]) == pytest.approx(expected, rel=1e-2, abs=1e-6)
        weights = experts.down_proj[expert].select(0 if name == "gpt_oss" else 1, 5)
        expected = abs(effect(model, batch, lambda factor, weights=weights: multiplied(weights, factor)))
        score = float(found["neurons"]["layer.1.expert_neurons"][expert * 24 + 5])
        assert score == pytest.approx(expected, rel=1e-2, abs=1e-6)

    def scale_all(factor):
        first = (lambda result: (result[0] * factor, *result[1:])) if name == "gpt_oss" else lambda r: r * factor
        return model.model.layers[1].mlp.register_forward_hook(lambda _, args, result: first(result)).remove

    expected = abs(effect(model, batch, scale_all))
    assert float(found["layers"]["layer.1.feed_forward"][0]) == pytest.approx(expected, rel=1e-2)


def test_reap_by_hand():
    model = model_of("mixtral")
    batch = batch_of(model)
    batch["attention_mask"][0, -3:] = 0
    moe, seen = model.model.layers[0].mlp, []
    handle = moe.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, batch)
    handle.remove()
    tokens, real = seen[0].flatten(0, 1), batch["attention_mask"].flatten().bool()
    chances = torch.softmax(tokens @ moe.gate.weight.T, -1)
    best = chances.topk(2, dim=-1)
    expected = []
    for expert in range(5):
        gate, up = (tokens @ moe.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        norm = ((torch.nn.functional.silu(gate) * up) @ moe.experts.down_proj[expert].T).norm(dim=-1)
        sent = (best.indices == expert).any(-1) & real
        share = chances[:, expert] / best.values.sum(-1)
        expected.append(float((share * norm)[sent].mean()))
    _, scores = scores_of(model, ("experts",), "reap", batch)
    torch.testing.assert_close(scores["layer.0.experts"], torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_experts_go_with_their_rows_of_the_router(name, tmp_path):
    kinds = [kind for kind in possible_kinds(model_of(name)) if kind in ("heads", "experts")]
    keep = random_plan(model_of(name), 1, kinds=kinds).keep
    plan = PruningPlan({**keep, "layer.0.experts": [0, 2, 3]})
    cut, batch = apply_plan(model_of(name), plan), batch_of(model_of(name))
    torch.testing.assert_close(logits(cut, batch), logits(mask_units(model_of(name), plan), batch))
    mlp = cut.model.layers[0].mlp
    router = mlp.router if name == "gpt_oss" else mlp.gate
    assert len(router.weight) == len(mlp.experts.down_proj) == mlp.experts.num_experts == 3
    cut.save_pretrained(tmp_path)
    assert torch.equal(logits(load_pruned(tmp_path), batch), logits(cut, batch))
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(auto.eval(), batch), logits(cut, batch))


@pytest.mark.parametrize(("name", "field"), [("mixtral", "num_local_experts"), ("qwen2_moe", "num_experts")])
def test_as_many_experts_in_every_layer_are_an_ordinary_checkpoint(name, field, tmp_path):
    model = model_of(name)
    batch = batch_of(model)
    cut = apply_plan(model, PruningPlan({f"layer.{layer}.experts": [0, 2, 3] for layer in range(3)}))
    assert getattr(cut.config, RECORD, None) is None and getattr(cut.config, field) == 3
    cut.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain, batch), logits(cut, batch))
    neurons = {f"layer.{layer}.expert_neurons": [u for u in range(120) if u % 24 < 8] for layer in range(3)}
    cut = apply_plan(model_of(name), PruningPlan(neurons))
    assert getattr(cut.config, RECORD, None) is None
    cut.save_pretrained(tmp_path / "neurons")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "neurons").eval()
    assert torch.equal(logits(plain, batch), logits(cut, batch))


def test_a_plan_keeps_as_many_neurons_of_each_expert_and_the_best_of_each():
    model = model_of("mixtral")
    groups, scores = scores_of(model, ("neurons",), "magnitude", None)
    plan = make_plan(scores, groups, PruningConfig(method="magnitude", granularity=("neurons",), sparsity=0.4))
    sizes = set()
    for name, units in plan.keep.items():
        by_expert = scores[name].view(5, 24)
        kept = torch.zeros(120, dtype=torch.bool)
        kept[list(units)] = True
        counts = kept.view(5, 24).sum(1)
        sizes.add(int(counts[0]))
        assert len(counts.unique()) == 1 and counts[0] % 8 == 0
        for expert, mask in enumerate(kept.view(5, 24)):
            assert by_expert[expert][mask].min() >= by_expert[expert][~mask].max() or mask.all()
    assert len(sizes) > 1 or sizes == {16}
    cut = apply_plan(model, plan)
    assert sum(group.size for group in find_groups(cut, ("neurons",))) == sum(map(len, plan.keep.values()))


def test_every_token_finds_as_many_experts_as_before():
    model = model_of("mixtral")
    config = PruningConfig(method="magnitude", granularity=("experts",), sparsity=0.6, allocation="global")
    groups = find_groups(model, ("experts",))
    scores = {group.name: torch.rand(group.size) + 10.0 * number for number, group in enumerate(groups)}
    plan = make_plan(scores, groups, config)
    assert {name: len(units) for name, units in plan.keep.items()} == {f"layer.{n}.experts": 2 for n in range(3)}
    with pytest.raises(ValueError, match="the highest possible sparsity here is 0.6"):
        make_plan(scores, groups, PruningConfig(method="magnitude", granularity=("experts",), sparsity=0.7))
    with pytest.raises(ValueError, match="keeps 1 experts of 'layer.0.experts', and each token is sent to 2"):
        apply_plan(model, PruningPlan({"layer.0.experts": [3]}))


def test_what_the_layout_cannot_hold_is_refused(tmp_path):
    model = model_of("mixtral")
    uneven = [*range(16), *range(24, 120)]
    with pytest.raises(ValueError, match="between 16 and 24 neurons of the experts in 'layer.0.expert_neurons'"):
        apply_plan(model, PruningPlan({"layer.0.expert_neurons": uneven}))
    with pytest.raises(ValueError, match="keeps 5 neurons of each expert.*keep a multiple of 8"):
        apply_plan(model, PruningPlan({"layer.0.expert_neurons": [u for u in range(120) if u % 24 < 5]}))
    some = [u for u in range(120) if u % 24 < 8]
    with pytest.raises(ValueError, match="cuts experts and 'layer.0.expert_neurons'"):
        apply_plan(model, PruningPlan({"layer.0.expert_neurons": some, "layer.0.experts": [0, 1]}))
    cut = apply_plan(model_of("mixtral"), PruningPlan({"layer.0.experts": [0, 1]}))
    assert "layer.0.expert_neurons" not in {group.name for group in find_groups(cut)}
    assert "layer.1.expert_neurons" in {group.name for group in find_groups(cut)}
    with pytest.raises(ValueError, match="the time of layers with experts depends"):
        latency_table(model, PruningConfig(sparsity=0.5, budget="latency"))
    with pytest.raises(ValueError, match="the time of layers with experts depends"):  # before anything is scored
        make_trainer(tmp_path, "mixtral", ("heads",), budget="latency").score()


def make_trainer(folder, name, kinds=("experts",), model=None, **changes):
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 90, (8,), generator=draw).tolist() for _ in range(16)]
    settings = {
        "allocation": "global",
        **{key: changes.pop(key) for key in ("allocation", "budget") if key in changes},
    }
    return CamCutTrainer(
        model=model or model_of(name),
        args=arguments(folder, per_device_train_batch_size=4, **changes),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]),
        eval_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in rows[:4]]),
        pruning_config=PruningConfig(method="magnitude", granularity=kinds, sparsity=0.4, **settings),
    )


@pytest.mark.parametrize("name", few(TYPES))
def test_a_run_goes_on_and_ends_with_its_best(name, tmp_path):
    """Checkpoints of a run hold the weights by the names that they have in the model, and what is saved for others by
    those that transformers gives them."""
    run = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = make_trainer(tmp_path / "whole", name, **run)
    whole.train()
    resumed = make_trainer(tmp_path / "whole", name, **run)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(resumed.model), weights(whole.model))
    best = make_trainer(
        tmp_path / "best",
        name,
        **run,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        greater_is_better=True,  # of the loss, which falls: the first, not what is in memory
    )
    best.train()
    assert best.state.best_model_checkpoint == str(tmp_path / "best" / "checkpoint-2")
    first = load_pruned(tmp_path / "best" / "checkpoint-2")
    assert same(weights(best.model), weights(first))
    best.save_model(str(tmp_path / "given"))
    assert same(weights(load_pruned(tmp_path / "given")), weights(first))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """`Trainer` warns, and trains on with what the model happens to hold."""
    model = model_of("mixtral")
    trainer = make_trainer(tmp_path, "mixtral", model=model, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.model.config.auto_map = None
    torch_weights = transformers.MixtralForCausalLM.save_pretrained
    torch_weights(trainer.model, tmp_path / "checkpoint-2")  # each expert by a name of its own
    again = make_trainer(tmp_path, "mixtral", save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match=r"the checkpoint lacks 9 weights of the model, .*experts.*not whole"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("name", few(TYPES))
def test_costs_of_experts_and_of_the_dense_twin(name):
    model, batch = model_of(name), {"batch_size": 1, "sequence_length": 8}
    dense = {"flops": count_flops(model, **batch), "parameters": count_parameters(model)}
    rows = {
        row.name.partition(",")[0]: row
        for row in compare_costs(apply_plan(model, PruningPlan({"layer.0.experts": [0, 2]})))
    }
    assert count_flops(model, **batch) == dense["flops"] - 2 * 8 * 3 * 32  # each token is sent to as many
    assert rows["FLOPs of the layers"].pruned == pytest.approx(rows["FLOPs of the layers"].dense, rel=0.02)
    assert count_parameters(dense_twin(model)) == dense["parameters"] == rows["parameters"].dense
    with_experts = [group.name for group in find_groups(model_of(name)) if group.experts]
    neurons = {group: [u for u in range(120) if u % 24 < 8] for group in with_experts}
    for plan in (neurons, {"layer.2.expert_neurons": neurons["layer.2.expert_neurons"]}):
        model = apply_plan(model_of(name), PruningPlan(plan))
        assert count_parameters(dense_twin(model)) == dense["parameters"]
        assert dense["flops"] - count_flops(model, **batch) == 2 * 8 * 2 * 3 * 16 * 32 * len(plan)
        shown = next(row for row in compare_costs(model) if row.name.startswith("FLOPs"))
        assert (shown.dense - shown.pruned) * 1e9 == pytest.approx(2 * 64 * 2 * 3 * 16 * 32 * len(plan))


def test_a_plan_may_name_what_it_leaves_whole(tmp_path):
    """Neurons inside of experts are numbered by all of a layer's experts, whose number a cut changes."""
    model = model_of("mixtral")
    groups = {group.name: group for group in find_groups(model, ("heads", "neurons"))}
    cut = apply_plan(model, PruningPlan({name: group.units for name, group in groups.items()}))
    cut = apply_plan(cut, PruningPlan({"layer.0.experts": [0, 2, 3], "layer.0.expert_neurons": range(120)}))
    cut.save_pretrained(tmp_path)
    loaded = load_pruned(tmp_path)
    assert torch.equal(logits(loaded, batch_of(loaded)), logits(cut, batch_of(cut)))
    cut = apply_plan(cut, PruningPlan({f"layer.{layer}.experts": [0, 2] for layer in range(3)}))
    with pytest.raises(ValueError, match="no more neurons can go: a layer loses experts or neurons"):
        find_groups(cut, ("neurons",))


def test_every_expert_keeps_neurons():
    config = PruningConfig(
        method="magnitude", granularity=("neurons",), sparsity=0.6, min_units=0, allocation="global"
    )
    model = model_of("mixtral")
    groups = find_groups(model, ("neurons",))
    scores = {group.name: torch.rand(group.size) + 10.0 * number for number, group in enumerate(groups)}
    cut = apply_plan(model, make_plan(scores, groups, config))
    assert [group.size for group in find_groups(cut, ("neurons",))][0] == 5 * 8


def test_layers_without_experts_leave_an_ordinary_checkpoint(tmp_path):
    config = config_of("qwen3_moe")
    config.mlp_only_layers = [1]
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    cut = apply_plan(model, PruningPlan({f"layer.{layer}.experts": [0, 2, 3] for layer in (0, 2)}))
    assert getattr(cut.config, RECORD, None) is None and cut.config.num_experts == 3
    cut.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain, batch_of(model)), logits(cut, batch_of(model)))
    assert load_pruned(tmp_path).pruning_plan.keep == cut.pruning_plan.keep


@pytest.mark.parametrize("name", few(TYPES))
def test_the_loss_that_balances_the_router(name, tmp_path):
    model = model_of(name)
    model.config.output_router_logits = True
    with pytest.raises(
        ValueError, match="takes as many experts in every layer: set model.config.output_router_logits"
    ):
        make_trainer(tmp_path, name, model=model).train()
    trainer = make_trainer(tmp_path, name, model=model, allocation="uniform")
    trainer.train()
    batch = {**batch_of(model), "labels": batch_of(model)["input_ids"]}
    trainer.model.eval()
    trainer.save_model()
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()(**batch)
        torch.testing.assert_close(trainer.model(**batch).aux_loss, expected.aux_loss)


@pytest.mark.parametrize("name", few(["mixtral", "gpt_oss"]))
def test_offloaded_experts_are_scored_as_those_in_memory(name, tmp_path):
    model = model_of(name)
    batch = batch_of(model)
    for kind, method in (("experts", "reap"), ("neurons", "activation")):
        _, expected = scores_of(model, (kind,), method, batch)
        offloaded = cpu_offload(model_of(name), execution_device=torch.device("cpu"))
        for _ in range(2):  # also after it was watched once
            _, found = scores_of(offloaded, (kind,), method, batch)
            for group, values in expected.items():
                torch.testing.assert_close(found[group], values)
        torch.testing.assert_close(logits(offloaded, batch), logits(model, batch))


def test_nothing_is_said_of_a_rebuild_where_nothing_was_cut(caplog):
    model = model_of("mixtral")
    reconstruct(model_of("mixtral"), model, PruningPlan({}), [batch_of(model)], disable_tqdm=True)
    assert "not rebuilt" not in caplog.text
    plan = PruningPlan({"layer.2.experts": [0, 2, 3]})
    reconstruct(apply_plan(model_of("mixtral"), plan), model, plan, [batch_of(model)], disable_tqdm=True)
    assert "the output projections of experts are not rebuilt" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": ("experts", "neurons")}, "take one of the two"),
        ({"granularity": ("experts",), "budget": "flops"}, "fewer experts save no flops"),
        ({"granularity": ("heads",), "method": "reap"}, "method 'reap' scores experts alone"),
    ],
)
def test_configs_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(sparsity=0.5, **changes)
