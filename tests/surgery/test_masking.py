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
"""Masked weights stay at exactly zero while everything else trains, under every optimizer, and in checkpoints."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import tiny_batch, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainers import Interrupt
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    TrainingArguments,
)
from workers import run_together

from optimum_camcut import (
    CamCutTrainer,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    mask_iou,
    score_groups,
)
from optimum_camcut.planning.units import IndexSet
from optimum_camcut.surgery.masking import hold_masks
from optimum_camcut.training import trainer as trainer_module


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
KEY = "bert.encoder.layer.0.attention.self.key.weight"


def examples(count=24, seed=0):
    batch = tiny_batch(count, seed=seed)
    return Dataset.from_dict({name: value.tolist() for name, value in batch.items()})


def model_of(seed=0, **changes):
    return tiny_model("bert", seed=seed, num_hidden_layers=2, **changes)


def still_model():
    return model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def pruning(**changes):
    amount = {} if "compression" in changes else {"sparsity": 0.6}
    return PruningConfig(
        **{"method": "magnitude", "granularity": ("weights",), "num_samples": 24, **amount, **changes}
    )


def make_trainer(folder, config=None, model=None, **changes):
    own = ("callbacks", "model_init", "optimizer_cls_and_kwargs")
    keywords = {name: changes.pop(name) for name in own if name in changes}
    if "model_init" not in keywords:
        keywords["model"] = model or model_of()
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 3,
    }
    arguments = TrainingArguments(**{**defaults, **changes})
    return CamCutTrainer(args=arguments, train_dataset=examples(), pruning_config=config, **keywords)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def removed(plan, name, shape):
    return torch.from_numpy(~plan.mask(name)).view(shape)


def random_masks(model, seed=0):
    """Keeps a random half of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    groups = find_groups(model, ("weights",))
    keep = {g.name: IndexSet((torch.rand(g.original_size, generator=generator) < 0.5).numpy()) for g in groups}
    return PruningPlan(keep, {group.name: group.original_size for group in groups})


def masked_values(model, plan):
    return torch.cat([v[removed(plan, n, v.shape)] for n, v in weights(model).items() if n in plan.keep])


class Watch(TrainerCallback):
    """What the masked and the other weights are before training and after every step, loop by loop."""

    def __init__(self):
        self.loops = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.loops.append([weights(model)])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.loops[-1].append(weights(model))


class AddOne(torch.optim.Optimizer):
    """Adds 1 to every parameter at each step, whatever the gradient."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1)


class Lion(torch.optim.Optimizer):
    """Steps by the sign of the momentum, and decays weights."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.randn_like(parameter))
                update = momentum.lerp(parameter.grad, 1 - group["betas"][0]).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - group["betas"][1])


# --- the trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.1},
        {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.1},
        {"optim": "adafactor"},
        {"optimizer_cls_and_kwargs": (Lion, {})},
        {"optimizer_cls_and_kwargs": (AddOne, {})},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"bf16": True, "gradient_checkpointing": True, "max_grad_norm": 1e-3, "optim": "adamw_torch_fused"},
    ],
    ids=["adamw", "sgd", "adafactor", "lion", "adversary", "accumulation", "bf16", "checkpointing", "together"],
)
def test_masked_weights_are_zero_after_every_step(changes, tmp_path):
    watch = Watch()
    trainer = make_trainer(tmp_path, pruning(), callbacks=[watch], **changes)
    trainer.train()
    plan, (steps,) = trainer.pruning_plan, watch.loops
    total = sum(group.original_size for group in find_groups(model_of(), ("weights",)))
    assert len(steps) == 4 and sum(len(plan.removed(name)) for name in plan.keep) == total - math.floor(
        0.4 * total + 0.5
    )
    for before, after in zip(steps, [*steps[1:], weights(trainer.model)]):
        for name, value in after.items():
            if name in plan.keep:
                gone = removed(plan, name, value.shape)
                assert not value[gone].any() and not before[name][gone].any()
    start, end = steps[0], weights(trainer.model)
    for name, value in end.items():
        kept = ~removed(plan, name, value.shape) if name in plan.keep else torch.ones_like(value, dtype=torch.bool)
        changed = value[kept] != start[name][kept]
        # An embedding trains where its token occurs, the bias of a key and a pooler at any rate not at all.
        assert changed.any() or "key.bias" in name or not kept.any()
        if "AddOne" in str(changes):
            assert changed.all()
            torch.testing.assert_close(value[kept], start[name][kept] + 3)
    for name in ("bert.embeddings.word_embeddings.weight", "classifier.weight", "bert.embeddings.LayerNorm.bias"):
        assert name not in plan.keep and not torch.equal(start[name], end[name])


def first_gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_masked_weights_count_in_no_gradient_norm(tmp_path):
    """One batch, no dropout: the norm that is logged, and clipped to, is that of what is trained."""
    model, plan = still_model(), random_masks(model_of())
    apply_plan(model, plan)
    batch = {name: torch.tensor(column) for name, column in examples().to_dict().items()}
    gradients = first_gradients(model, batch)
    whole = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    for name in plan.keep:
        gradients[name][removed(plan, name, gradients[name].shape)] = 0
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert norm < 0.9 * whole
    start = weights(model)
    model.zero_grad()
    changes = {"max_grad_norm": norm / 2, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    trainer = make_trainer(tmp_path, None, model, per_device_train_batch_size=24, **changes)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, gradient in gradients.items():  # clipped to half its length
        torch.testing.assert_close(
            model.get_parameter(name).detach(), start[name] - 0.05 * gradient, atol=1e-6, rtol=1e-4
        )


def test_one_call_plans_as_the_steps_apart(tmp_path):
    whole, steps = (make_trainer(tmp_path / name, pruning(method="cam_cut", shift=10.0)) for name in "ab")
    whole.train()
    scores = steps.score()
    assert {name: values.shape for name, values in scores.items()} == {
        name: steps.model.get_parameter(name).shape for name in scores
    }
    plan = steps.prune()
    assert plan == whole.pruning_plan
    assert not masked_values(steps.model, plan).any() and not masked_values(whole.model, plan).any()
    steps.train()
    assert not masked_values(steps.model, plan).any()


def test_masks_hold_in_a_model_that_model_init_makes(tmp_path):
    """Without a pruning_config, `Trainer.train` makes the model anew after the trainer was made."""
    plan = random_masks(model_of())

    def model_init():
        return apply_plan(model_of(), plan)

    trainer = make_trainer(tmp_path, model_init=model_init)
    trainer.train()
    assert trainer.state.global_step == 3 and not masked_values(trainer.model, plan).any()
    pruned = make_trainer(tmp_path, pruning(), model_init=lambda: model_of())
    pruned.train()
    assert not masked_values(pruned.model, pruned.pruning_plan).any()


def test_masking_further_in_a_second_trainer(tmp_path):
    first = make_trainer(tmp_path, pruning(sparsity=0.5))
    first.train()
    second = make_trainer(tmp_path, pruning(sparsity=0.5), first.model)
    second.train()
    assert not masked_values(second.model, second.pruning_plan).any()
    total = sum(first.pruning_plan.sizes.values())
    assert sum(map(len, second.pruning_plan.keep.values())) == pytest.approx(total / 4, abs=1)
    for name in first.pruning_plan.keep:
        assert not (second.pruning_plan.mask(name) & ~first.pruning_plan.mask(name)).any()


# --- a loop of one's own --------------------------------------------------------------------------------------------


def test_hold_masks_in_a_plain_loop():
    model, plan = still_model(), random_masks(model_of())
    apply_plan(model, plan)
    early = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    start = weights(model)
    with hold_masks(model):
        late = AddOne(model.bert.encoder.layer[1].parameters())
        for seed in range(3):
            for optimizer in (early, late):
                optimizer.zero_grad()
                model(**tiny_batch(seed=seed)).loss.backward()
                optimizer.step()
                assert not masked_values(model, plan).any()
    for name, parameter in model.named_parameters():
        if name in plan.keep:
            gone = removed(plan, name, parameter.shape)
            moments = early.state[parameter]
            assert not parameter.grad[gone].any() and not moments["exp_avg"][gone].any()
            assert not moments["exp_avg_sq"][gone].any()
            assert not torch.equal(parameter[~gone], start[name][~gone]) or "key.bias" in name
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_the_hold_goes_on_in_another_type():
    """`model.to(...)` inside the context, to go on in half precision or elsewhere."""
    model = apply_plan(model_of(), PruningPlan({QUERY: [0, 1]}))
    with hold_masks(model):
        model.to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    assert model.get_parameter(QUERY).count_nonzero() <= 2


@pytest.mark.parametrize("leave_by", ["end", "error"])
def test_the_hold_ends_with_the_context(leave_by):
    model, plan = model_of(), random_masks(model_of())
    apply_plan(model, plan)
    try:
        with hold_masks(model):
            if leave_by == "error":
                raise MemoryError
    except MemoryError:
        pass
    model(**tiny_batch()).loss.backward()
    assert model.get_parameter(QUERY).grad[removed(plan, QUERY, (32, 32))].any()
    AddOne(model.parameters()).step()
    assert (masked_values(model, plan) == 1).all()


def test_only_masked_parameters_of_this_model_are_held():
    """The hook on optimizers is global: other models, and parameters without masks, must not notice."""
    model, other = model_of(), model_of(seed=1)
    apply_plan(model, PruningPlan({QUERY: [0, 1]}))
    start, others = weights(model), weights(other)
    with hold_masks(model):
        AddOne([*model.parameters(), *other.parameters()]).step()
    assert same(weights(other), {name: value + 1 for name, value in others.items()})
    expected = {name: value + 1 for name, value in start.items()}
    expected[QUERY].view(-1)[2:] = 0
    assert same(weights(model), expected)


def test_lost_masks_are_said_and_saved_as_they_are(tmp_path, caplog):
    """`hold_masks` takes masks up again. To save changes no weight: the plan no longer masks those that are not zero,
    and the earlier plan masks them again."""
    model = apply_plan(model_of(), PruningPlan({QUERY: [0, 1], KEY: range(8)}))
    before = model.pruning_plan
    with torch.no_grad():
        model.get_parameter(QUERY).fill_(3)
    with hold_masks(model):
        assert model.get_parameter(QUERY).sum() == 6
    with torch.no_grad():
        model.get_parameter(QUERY).view(-1)[[7, 9]] = torch.tensor([2.0, -1.0])
        model.get_parameter(KEY).fill_(2)
    start = weights(model)
    model.save_pretrained(tmp_path)
    lost = 2 + model.get_parameter(KEY).numel() - 8
    assert f"{lost} masked weights are no longer zero: an adapter was merged, or the model was trained" in caplog.text
    again = load_pruned(tmp_path)
    assert same(weights(model), start) and same(weights(again), start)
    for plan in (model.pruning_plan, again.pruning_plan):
        assert list(plan.keep) == [QUERY] and plan.keep[QUERY] == [0, 1, 7, 9] and plan.config is None
    caplog.clear()
    model.save_pretrained(tmp_path)
    assert "masked weights" not in caplog.text
    apply_plan(again, before)
    assert again.get_parameter(QUERY).sum() == 6 and again.get_parameter(KEY).sum() == 16
    with pytest.raises(ValueError, match="this BertForSequenceClassification has no masks to hold; .*load_pruned"):
        with hold_masks(BertForSequenceClassification.from_pretrained(tmp_path)):
            pass


def test_a_model_with_no_mask_left_is_dense_again(tmp_path):
    """What adapters on all masked layers leave when they are merged: it may be cut, and loads."""
    model = apply_plan(model_of(), PruningPlan({QUERY: [0, 1]}))
    with torch.no_grad():
        model.get_parameter(QUERY).fill_(1)
    model.save_pretrained(tmp_path / "dense")
    assert "0 single weights" not in (tmp_path / "dense" / "README.md").read_text()
    again = load_pruned(tmp_path / "dense")
    assert not again.pruning_plan.keep and same(weights(again), weights(model))
    make_trainer(tmp_path, pruning(granularity=("neurons",)), again).train()
    assert find_groups(again, "neurons")[0].original_size > find_groups(again, "neurons")[0].size


# --- around the model -----------------------------------------------------------------------------------------------


class Inside(torch.nn.Module):
    """A module of the user's own, with a transformers model among others of its parts."""

    def __init__(self, model):
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.Linear(2, 2), model])


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile, Inside, lambda m: Inside(torch.compile(m))])
def test_masks_are_held_through_what_is_around_the_model(wrap):
    model, plan = model_of(), random_masks(model_of())
    around = wrap(apply_plan(model, plan))
    with hold_masks(around):
        AddOne(around.parameters()).step()
    assert not masked_values(model, plan).any()
    AddOne(around.parameters()).step()
    assert (masked_values(model, plan) == 1).all()
    with pytest.raises(ValueError, match="has no masks to hold"):
        with hold_masks(wrap(model_of())):
            pass


def llama_with_masks(folder):
    model = tiny_model("llama", "CausalLM", num_hidden_layers=2)
    plan = apply_plan(model, random_masks(model)).pruning_plan
    model.save_pretrained(folder)
    return load_pruned(folder), plan


def test_lora_on_a_sparse_model(tmp_path, caplog):
    """Trained, merged, saved and loaded it gives the logits that it had. The base stays sparse until then; what the
    adapter is merged into does not, and that is said before the training and when it is saved."""
    peft = pytest.importorskip("peft")
    model, plan = llama_with_masks(tmp_path / "sparse")
    targets = ["q_proj", "down_proj"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))
    base = {n: p.detach().clone() for n, p in tuned.named_parameters() if "lora" not in n}
    rows = [{"input_ids": [5 + i, 6, 7, 8], "labels": [5 + i, 6, 7, 8]} for i in range(16)]
    arguments = TrainingArguments(
        str(tmp_path / "run"), use_cpu=True, max_steps=4, learning_rate=0.1, report_to="none", disable_tqdm=True
    )
    trainer = CamCutTrainer(tuned, arguments, train_dataset=rows)
    trainer.train()
    assert f"4 of the {len(plan.keep)} parameters with masked weights carry an adapter" in caplog.text
    assert caplog.text.count("carry an adapter") == 1 and "no plan holds" not in caplog.text
    assert all(torch.equal(tuned.get_parameter(name), value) for name, value in base.items())
    trainer.save_model()  # of the adapter
    tuned.eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad():
        expected = tuned(**batch).logits
        assert (expected - model_logits(load_pruned(tmp_path / "sparse"), batch)).abs().max() > 0.01
        merged = tuned.merge_and_unload()
        before, kept = merged(**batch).logits, weights(merged)
        torch.testing.assert_close(before, expected)
        with hold_masks(copy.deepcopy(merged)):
            assert "masked weights were not zero and are now: an adapter was merged" in caplog.text
        caplog.clear()
        merged.save_pretrained(tmp_path / "merged")
        assert torch.equal(merged(**batch).logits, before) and same(weights(merged), kept)
    again = load_pruned(tmp_path / "merged")
    assert torch.equal(model_logits(again, batch), before)
    assert "an adapter was merged" in caplog.text
    sparse = [name for name in plan.keep if not any(target in name for target in targets)]
    for name in sparse:
        assert again.pruning_plan.keep[name] == plan.keep[name]
    adapted = set(plan.keep) - set(sparse)
    assert len(adapted) == 4 and all(len(again.pruning_plan.keep.get(n, range(10**9))) > 900 for n in adapted)
    apply_plan(again, PruningPlan.load(tmp_path / "sparse"))
    assert not masked_values(again, plan).any()


def model_logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_what_an_adapter_trains_beside_itself_is_held(tmp_path):
    """Biases of the base, and copies of whole layers."""
    peft = pytest.importorskip("peft")
    model, plan = apply_plan(model_of(), random_masks(model_of())), random_masks(model_of())
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["pooler.dense"], bias="all")
    tuned = peft.get_peft_model(model, config)
    with hold_masks(tuned):
        AddOne([p for p in tuned.parameters() if p.requires_grad]).step()
        copied = tuned.base_model.model.bert.pooler.dense.modules_to_save["default"]
        assert not copied.weight[removed(plan, "bert.pooler.dense.weight", (32, 32))].any()
    assert not masked_values(
        tuned.merge_and_unload(),
        PruningPlan({n: plan.keep[n] for n in plan.keep if "query.weight" not in n}, plan.sizes),
    ).any()


# --- zeros that something else has made -----------------------------------------------------------------------------


@torch.no_grad()
def pruned_elsewhere(fraction=0.5):
    """The smallest half of every weight matrix of the encoder is zero, and no plan says so."""
    model = model_of()
    for parameter in model.bert.encoder.parameters():
        if parameter.dim() > 1:
            smallest = parameter.abs().flatten().argsort()[: int(parameter.numel() * fraction)]
            parameter.view(-1)[smallest] = 0
    return model


def zeros_of(model):
    return sum(int((p == 0).sum()) for p in model.bert.encoder.parameters() if p.dim() > 1)


def test_zeros_that_nothing_holds_are_said_once_and_can_be_held(tmp_path, caplog):
    model = pruned_elsewhere()
    count = zeros_of(model)
    total = sum(p.numel() for n, p in model.named_parameters() if "weight" in n and p.dim() > 1 and "embed" not in n)
    total -= model.classifier.weight.numel()
    trainer = make_trainer(tmp_path, None, model)
    trainer.train()
    trainer.train()
    (text,) = [r.getMessage() for r in caplog.records if "no plan holds" in r.getMessage()]
    assert f"{count} of the {total} weights of linear layers" in text and "PruningPlan.from_zeros(model)" in text
    assert zeros_of(model) < 0.01 * count
    caplog.clear()

    model = pruned_elsewhere()
    start = weights(model)
    apply_plan(model, PruningPlan.from_zeros(model))
    assert same(weights(model), start)
    trainer = make_trainer(tmp_path, None, model, optimizer_cls_and_kwargs=(AddOne, {}))
    trainer.train()
    assert zeros_of(model) == count and "no plan holds" not in caplog.text
    for name, value in weights(model).items():
        torch.testing.assert_close(
            value, start[name] + 3 * ~((start[name] == 0) & torch.tensor("encoder" in name and value.dim() > 1))
        )
    trainer.save_model()
    assert load_pruned(tmp_path).pruning_plan.keep == model.pruning_plan.keep


def test_what_from_zeros_takes_for_pruned():
    """Hand-made zeros: single ones, a row, a whole matrix, a bias, the padding of an embedding, the task head."""
    model = model_of()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.attention.self.query.weight.view(-1)[[3, 5]] = 0
        layer.attention.self.key.weight[4] = -0.0
        layer.attention.self.value.weight.zero_()
        layer.intermediate.dense.bias.zero_()
        layer.output.dense.bias[:3] = 0
        model.bert.embeddings.word_embeddings.weight[0] = 0
        model.classifier.weight[0] = 0
    for cast in (model, model.to(torch.bfloat16)):
        plan = PruningPlan.from_zeros(cast)
        assert {name: list(plan.removed(name)) for name in plan.keep} == {QUERY: [3, 5], KEY: [*range(128, 160)]}
    assert (plan.model_type, plan.num_layers) == ("bert", 2)
    with pytest.raises(ValueError, match="no linear layer of this BertForSequenceClassification is zero in part"):
        PruningPlan.from_zeros(model_of())
    with pytest.raises(ValueError, match="are not in memory; load the model whole"):
        PruningPlan.from_zeros(model_of().to("meta"))


@pytest.mark.parametrize("case", ["few", "frozen", "adapter"])
def test_zeros_that_are_no_news(case, tmp_path, caplog):
    """As few as chance makes, or in weights that do not train."""
    model = pruned_elsewhere(0.02 if case == "few" else 0.5)
    if case == "frozen":
        model.bert.requires_grad_(False)
    if case == "adapter":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    make_trainer(tmp_path, None, model, max_steps=1).train()
    assert "no plan holds" not in caplog.text


# --- a loop of one's own, again -------------------------------------------------------------------------------------


def test_a_frozen_parameter_is_held_too():
    model, plan = model_of(), random_masks(model_of())
    apply_plan(model, plan)
    model.get_parameter(QUERY).requires_grad_(False)
    with hold_masks(model):
        AddOne(model.parameters()).step()
        model.get_parameter(QUERY).requires_grad_(True)  # unfrozen later: held all the same
        model(**tiny_batch()).loss.backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not masked_values(model, plan).any()


def test_heads_first_then_weights_in_training(tmp_path):
    model = model_of()
    apply_plan(model, PruningPlan({"layer.0.heads": [1, 3], "layer.1.neurons": range(11)}))
    trainer = make_trainer(tmp_path, pruning(method="snip"), model)
    trainer.train()
    assert not masked_values(trainer.model, trainer.pruning_plan).any()
    trainer.save_model()
    again = load_pruned(tmp_path)
    assert same(weights(again), weights(trainer.model)) and again.pruning_plan == trainer.model.pruning_plan
    assert again.pruning_plan.keep["layer.0.heads"] == (1, 3) and QUERY in again.pruning_plan.keep


# --- checkpoints ----------------------------------------------------------------------------------------------------


def keys(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def test_checkpoints_are_plain_ones(tmp_path):
    trainer = make_trainer(tmp_path, pruning(), save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    model_of().save_pretrained(tmp_path / "dense")
    plan = trainer.pruning_plan
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert keys(folder) == keys(tmp_path / "dense")
        stored = load_file(folder / "model.safetensors")
        for name in plan.keep:
            assert not stored[name][removed(plan, name, stored[name].shape)].any()
        assert PruningPlan.load(folder) == plan
        assert not (folder / "modeling_camcut.py").exists()
        config = json.loads((folder / "config.json").read_text())
        assert "auto_map" not in config and "camcut_pruning" not in config
    plain = BertForSequenceClassification.from_pretrained(tmp_path)
    assert type(plain) is BertForSequenceClassification
    assert same(weights(plain), weights(trainer.model))
    again = load_pruned(tmp_path)
    assert same(weights(again), weights(trainer.model)) and again.pruning_plan == plan
    assert isinstance(again, BertForSequenceClassification) and PruningConfig.from_pretrained(tmp_path) == pruning()


def test_a_loaded_model_keeps_its_masks_in_training(tmp_path):
    plan = random_masks(model_of())
    apply_plan(model_of(), plan).save_pretrained(tmp_path / "saved")
    model = load_pruned(tmp_path / "saved")
    assert model.pruning_plan.keep == plan.keep
    trainer = make_trainer(tmp_path, None, model, optimizer_cls_and_kwargs=(AddOne, {}))
    trainer.train()
    assert not masked_values(model, plan).any()
    trainer.save_model()
    assert load_pruned(tmp_path).pruning_plan.keep == plan.keep
    plain = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    make_trainer(tmp_path / "plain", None, plain, optimizer_cls_and_kwargs=(AddOne, {})).train()
    assert masked_values(plain, plan).all()  # without the plan nothing is known of masks


def test_tampered_checkpoints_are_refused(tmp_path):
    plan = random_masks(model_of())
    apply_plan(model_of(), plan).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    changed = stored[QUERY].clone()
    index = int(plan.removed(QUERY)[5])
    changed.view(-1)[index] = 1e-30
    save_file({**stored, QUERY: changed}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of '{QUERY}' that pruning_plan.json of .* masks are not zero"):
        load_pruned(tmp_path)
    save_file(stored, file, metadata={"format": "pt"})
    load_pruned(tmp_path)
    values = json.loads((tmp_path / "pruning_plan.json").read_text())
    for change, message in (
        ({"keep": {QUERY: [0]}, "sizes": {QUERY: 1023}}, f"masks '{QUERY}' of 1023 weights, but the model has 1024"),
        ({"keep": {"no.such.weight": [0]}, "sizes": {"no.such.weight": 4}}, "but the model has no such parameter"),
        ({"keep": {QUERY: {"size": 1024, "bits": "AAAA"}}}, "expected 'size' and 'bits'"),
    ):
        (tmp_path / "pruning_plan.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=message):
            load_pruned(tmp_path)
    (tmp_path / "pruning_plan.json").unlink()
    with pytest.raises(ValueError, match="is no pruned checkpoint: .* and there is no pruning_plan.json"):
        load_pruned(tmp_path)


def test_the_card_counts_zeros(tmp_path):
    trainer = make_trainer(tmp_path, pruning())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    stored = load_file(tmp_path / "model.safetensors")
    zeros, sizes = {}, {}
    for name, value in stored.items():
        if name in trainer.pruning_plan.keep:
            layer = name.split(".")[3] if "layer" in name else "bert.pooler.dense"
            zeros[layer] = zeros.get(layer, 0) + int((value == 0).sum())
            sizes[layer] = sizes.get(layer, 0) + value.numel()
    total, masked = sum(value.numel() for value in stored.values()), sum(zeros.values())
    assert len(zeros) == 3 and masked == sum(map(len, map(trainer.pruning_plan.removed, trainer.pruning_plan.keep)))
    for layer, count in zeros.items():
        assert f"| {layer} | {sizes[layer] - count} / {sizes[layer]} | {count} |" in text
    assert f"{masked:,} single weights" in text and f"Of {total:,} parameters {total - masked:,} are kept" in text
    assert f"a compression of {total / (total - masked):.2f}." in text
    assert "`magnitude`" in text and "`sparsity=0.6`, `allocation=" in text and "plain transformers checkpoint" in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize(("loop", "changes"), [(1, {"dense_epochs": 1}), (2, {"rounds": 2})])
def test_resuming_gives_the_same_as_never_stopping(loop, changes, tmp_path):
    """Stopped in the dense epoch, and in the last round; the same bits in the end."""

    def make(folder, callbacks=()):
        config = pruning(method="snip", **changes)
        return make_trainer(tmp_path / folder, config, callbacks=[*callbacks], save_strategy="steps", save_steps=2)

    undisturbed = make("a")
    undisturbed.train()
    with pytest.raises(KeyboardInterrupt):
        make("b", [Interrupt(loop, 3)]).train()
    watch = Watch()
    resumed = make("b", [watch])
    resumed.train(resume_from_checkpoint=True)
    assert resumed.pruning_plan == undisturbed.pruning_plan
    assert same(weights(resumed.model), weights(undisturbed.model))
    for step in watch.loops[-1]:
        assert not any(
            step[n][removed(resumed.pruning_plan, n, step[n].shape)].any() for n in resumed.pruning_plan.keep
        )


# --- the lottery ticket ---------------------------------------------------------------------------------------------


def largest_magnitudes(values, names, count):
    """Masks of the `count` largest weights of all, by numpy."""
    together = np.concatenate([values[name].abs().flatten().numpy() for name in names])
    kept = np.zeros(len(together), dtype=bool)
    kept[np.argsort(-together, kind="stable")[:count]] = True
    return dict(zip(names, np.split(kept, np.cumsum([values[name].numel() for name in names])[:-1])))


def test_rewind_masks_the_initial_weights_by_the_trained_ones(tmp_path):
    watch = Watch()
    config = pruning(rewind=True, dense_epochs=2)
    trainer = make_trainer(tmp_path, config, callbacks=[watch], learning_rate=2e-2)
    trainer.train()
    initial, plan = weights(model_of()), trainer.pruning_plan
    dense, recovery = watch.loops
    assert len(dense) == 7 and len(recovery) == 4 and same(dense[0], initial)
    names = list(plan.keep)
    count = sum(map(len, plan.keep.values()))
    trained_masks = largest_magnitudes(dense[-1], names, count)
    initial_masks = largest_magnitudes(initial, names, count)
    assert all(np.array_equal(plan.mask(name), trained_masks[name]) for name in names)
    assert any(not np.array_equal(plan.mask(name), initial_masks[name]) for name in names)
    for name, value in recovery[0].items():
        kept = ~removed(plan, name, value.shape) if name in plan.keep else torch.tensor(True)
        assert torch.equal(value, initial[name] * kept)
    assert not masked_values(trainer.model, plan).any() and not same(weights(trainer.model), recovery[0])


@pytest.mark.parametrize(("rewind", "amount"), [(True, {"sparsity": 0.75}), (False, {"compression": 1.7})])
def test_rounds_shrink_the_masks_to_the_target(amount, rewind, tmp_path):
    plans, starts = [], []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            if hasattr(model, "pruning_plan"):
                plans.append(model.pruning_plan)
                starts.append(weights(model))

    config = pruning(rounds=2, rewind=rewind, dense_epochs=1, **amount)
    trainer = make_trainer(tmp_path, config, callbacks=[Look()])
    trainer.train()
    first, second = plans
    assert second == trainer.model.pruning_plan and second.config == config
    total, size = sum(p.numel() for p in trainer.model.parameters()), sum(second.sizes.values())
    kept = [sum(map(len, plan.keep.values())) for plan in plans]
    if "sparsity" in amount:
        assert abs(kept[1] - 0.25 * size) <= 0.5 and abs(kept[0] - (1 - 0.75 * 0.875) * size) <= 0.5
    else:
        gone = total * (1 - 1 / 1.7) * np.array([0.875, 1])
        assert abs(size - kept[0] - gone[0]) <= 1 and abs(size - kept[1] - gone[1]) <= 1
    initial = weights(model_of())
    for name in first.keep:
        assert not (second.mask(name) & ~first.mask(name)).any()
    for plan, start in zip(plans, starts):
        assert not any(start[name][removed(plan, name, start[name].shape)].any() for name in plan.keep)
        masked = {n: v * ~removed(plan, n, v.shape) if n in plan.keep else v for n, v in initial.items()}
        assert same(start, masked) == rewind


def test_recovery_none_only_masks(tmp_path):
    trainer = make_trainer(tmp_path, pruning(recovery="none"))
    assert trainer.train().global_step == 0
    expected = weights(model_of())
    for name in trainer.pruning_plan.keep:
        expected[name][removed(trainer.pruning_plan, name, expected[name].shape)] = 0
    assert same(weights(trainer.model), expected)


# --- two processes --------------------------------------------------------------------------------------------------

PROCESS = """
import sys
import torch
from accelerate import PartialState
from test_masking import AddOne, Watch, make_trainer, pruning, removed, weights

folder = sys.argv[1]
rank = PartialState(cpu=True).process_index
assert PartialState().num_processes == 2 and PartialState().backend == "gloo"
scores = {}
for method in ("cam_cut", "smooth_cut", "wanda"):
    trainer = make_trainer(folder, pruning(method=method, noise_std=0.05, smooth_samples=2))
    scores[method] = trainer.score()
plan = trainer.prune()
results = {"scores": scores, "plan": plan.to_dict()}
optimizers = {"adamw": {"weight_decay": 0.1}, "adversary": {"optimizer_cls_and_kwargs": (AddOne, {})}}
for name, keywords in optimizers.items():
    watch = Watch()
    dense = int(name == "adamw")  # scored after the model was wrapped and trained
    config = pruning(method="snip", dense_epochs=dense)
    trainer = make_trainer(folder, config, per_device_train_batch_size=4, callbacks=[watch], **keywords)
    trainer.train()
    assert trainer.model_wrapped is not trainer.model and len(watch.loops) == dense + 1 and len(watch.loops[-1]) == 4
    plan = trainer.pruning_plan
    for step in [*watch.loops[-1], weights(trainer.model)]:
        for parameter in plan.keep:
            assert not step[parameter][removed(plan, parameter, step[parameter].shape)].any()
    assert not torch.equal(watch.loops[-1][0]["classifier.weight"], watch.loops[-1][-1]["classifier.weight"])
    results[name] = {"weights": weights(trainer.model), "plan": plan.to_dict()}
torch.save(results, f"{folder}/{rank}.pt")
"""


@pytest.mark.long
def test_two_processes(tmp_path):
    """Exact zeros and the same weights on both, and the scores and plan of a single process."""
    one, two = run_together(2, PROCESS, tmp_path)
    for name in ("adamw", "adversary"):
        assert same(one[name]["weights"], two[name]["weights"]) and one[name]["plan"] == two[name]["plan"]
    for method, scores in one["scores"].items():
        trainer = make_trainer(tmp_path, pruning(method=method, noise_std=0.05, smooth_samples=2))
        expected = trainer.score()
        assert same(scores, two["scores"][method]) and list(scores) == list(expected)
        for name in scores:
            scale = expected[name].max().item()
            torch.testing.assert_close(scores[name], expected[name], rtol=1e-5, atol=1e-6 * scale)
    assert PruningPlan.from_dict(one["plan"]) == PruningPlan.from_dict(two["plan"]) == trainer.prune()


# --- what is easily lost between phases -----------------------------------------------------------------------------


class Precision(TrainerCallback):
    """The type that a linear layer computes in, phase by phase."""

    def __init__(self):
        self.phases = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        seen = set()
        self.phases.append(seen)
        layer = model.bert.encoder.layer[0].intermediate.dense
        self.handle = layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))

    def on_train_end(self, args, state, control, **kwargs):
        self.handle.remove()


@pytest.mark.parametrize("granularity", ["weights", "neurons"])
def test_every_phase_trains_in_mixed_precision(granularity, tmp_path):
    watch = Precision()
    config = pruning(granularity=granularity, dense_epochs=1, rounds=2)
    trainer = make_trainer(tmp_path, config, bf16=True, callbacks=[watch])
    trainer.train()
    trainer.train()
    assert watch.phases == [{torch.bfloat16}] * 4


def test_an_impossible_ratio_is_refused_before_the_dense_epochs(tmp_path):
    watch = Watch()
    trainer = make_trainer(tmp_path, pruning(compression=50.0, dense_epochs=1, rounds=3), callbacks=[watch])
    with pytest.raises(
        ValueError, match=r"compression=50.0 cannot be reached: the highest .* \(granularity \['weights"
    ):
        trainer.train()
    assert watch.loops == []
    units = PruningConfig(method="magnitude", sparsity=0.99, dense_epochs=1)
    with pytest.raises(ValueError, match="sparsity=0.99 cannot be reached"):
        make_trainer(tmp_path, units, callbacks=[watch]).train()
    assert watch.loops == []


def test_scores_never_follow_the_teacher(tmp_path, monkeypatch):
    """Scoring with dropout on is no training: in the second round too, the loss is the task's."""
    calls, distillation_loss = [], trainer_module.distillation_loss

    def watch(*args):
        calls.append(trainer.run.progress_file is not None)  # while it scores
        return distillation_loss(*args)

    monkeypatch.setattr(trainer_module, "distillation_loss", watch)
    trainer = make_trainer(tmp_path, pruning(method="snip", rounds=2, distill_weight=0.5))
    trainer.train()
    assert calls and not any(calls)


def test_masks_in_half_precision_and_under_another_head(tmp_path):
    model = apply_plan(model_of().to(torch.bfloat16), random_masks(model_of()))
    model.save_pretrained(tmp_path / "half")
    loaded = load_pruned(tmp_path / "half")
    assert loaded.dtype == torch.bfloat16 and same(weights(loaded), weights(model))
    body = load_pruned(tmp_path / "half", model_class=BertModel)
    assert body.pruning_plan.keep == {n.removeprefix("bert."): u for n, u in model.pruning_plan.keep.items()}
    assert not masked_values(body, body.pruning_plan).any()
    body.save_pretrained(tmp_path / "body")
    whole = load_pruned(tmp_path / "body", model_class=BertForSequenceClassification)
    assert whole.pruning_plan.keep == model.pruning_plan.keep


def test_statistics_are_not_dropout():
    """Batch norms have a training mode too, but scoring leaves them as they are."""
    model = model_of().train()
    model.bert.encoder.layer[0].output.LayerNorm = torch.nn.Sequential(
        torch.nn.Flatten(0, 1), torch.nn.BatchNorm1d(32), torch.nn.Unflatten(0, (4, 9))
    )
    before = weights(model)
    groups = find_groups(model, ("weights",))
    score_groups(model, groups, [tiny_batch()], pruning(method="snip", dropout=True), disable_tqdm=True)
    assert same(weights(model), before) and model.training


def test_a_model_without_linear_layers_is_refused():
    model = ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2))
    with pytest.raises(ValueError, match="ResNetForImageClassification has no linear layers below its task head"):
        find_groups(model, ("weights",))


def test_the_decoder_has_layers_of_its_own():
    model = BartForSequenceClassification(
        BartConfig(
            vocab_size=9,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
        )
    )
    plan = apply_plan(model, random_masks(model)).pruning_plan
    assert list(dict.fromkeys(layer for layer, _, _ in plan.table())) == ["0", "decoder.0"]
    assert set(mask_iou(plan, random_masks(model, seed=1)).layers) == {"0", "decoder.0"}
