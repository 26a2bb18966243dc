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
"""LoRA adapters after the cut, and distillation from the likeliest tokens."""

import sys

import peft
import pytest
import torch
from accelerate import PartialState
from models import tiny_batch, tiny_model
from trainers import Interrupt, arguments, make_trainer, pruning, same, weights
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D
from workers import together

from optimum_camcut import CamCutTrainer, PruningConfig, find_groups, load_pruned
from optimum_camcut.search.divergence import distillation_loss
from optimum_camcut.training import adapters
from optimum_camcut.training.adapters import ADAPTERS_NAME, BASE_NAME, adapters_of


def lora(**changes):
    return pruning(**{"recovery": "reconstruct+finetune", "lora_rank": 2, **changes})


class Before(CamCutTrainer):
    """Keeps the weights that the adapters are put on."""

    def _inner_training_loop(self, *args, **kwargs):
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
        state = weights(self.model)
        self.before = {name.replace(".base_layer", ""): v for name, v in state.items() if ".lora_" not in name}
        return super()._inner_training_loop(*args, **kwargs)


def train(folder, architecture="bert", config=None, **changes):
    trainer = make_trainer(folder, config or lora(), tiny_model(architecture), **{"learning_rate": 1e-2, **changes})
    trainer.__class__ = Before
    trainer.train()
    return trainer


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "albert"])
def test_matrices_of_the_rank_are_added_to_linear_layers_and_nothing_else_changes(architecture, tmp_path):
    trainer = train(tmp_path, architecture)
    model = trainer.model
    assert not any(type(module).__module__.startswith("peft.") for module in model.modules())
    assert not hasattr(model, "peft_config") and all(p.requires_grad for p in model.parameters())
    after, changed = weights(model), []
    assert list(after) == list(trainer.before)
    for name, value in after.items():
        delta = (value - trainer.before[name]).double()
        if not delta.any():
            continue
        changed.append(name)
        assert value.dim() == 2 and torch.linalg.matrix_rank(delta, rtol=1e-4) <= 2
    kinds = (torch.nn.Linear, Conv1D)
    linear = [f"{path}.weight" for path, module in model.named_modules() if isinstance(module, kinds)]
    blocks = [name for name in linear if any(part.isdigit() for part in name.split("."))]
    assert sorted(changed) == sorted(blocks)
    trainer.save_model()
    batch = tiny_batch()
    torch.testing.assert_close(load_pruned(tmp_path)(**batch).logits, model.eval()(**batch).logits)


def test_a_checkpoint_is_the_merged_model(tmp_path):
    trainer = train(tmp_path, save_strategy="steps", save_steps=3)
    last = tmp_path / "checkpoint-6"
    assert (last / ADAPTERS_NAME).exists() and (tmp_path / BASE_NAME).exists()
    found = weights(load_pruned(last))
    assert same(found, weights(trainer.model))
    earlier = weights(load_pruned(tmp_path / "checkpoint-3"))
    assert list(earlier) == list(found) and not same(earlier, found)


@pytest.mark.parametrize("rounds", [1, 2])
def test_resuming_gives_the_same_as_never_stopping(rounds, tmp_path):
    def make(name, **changes):
        steps = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
        return make_trainer(tmp_path / name, lora(rounds=rounds), **steps, **changes)

    undisturbed = make("a")
    undisturbed.train()
    with pytest.raises(KeyboardInterrupt):
        make("b", callbacks=[Interrupt(rounds, 5)]).train()
    resumed = make("b")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed.model), weights(undisturbed.model))
    (tmp_path / "b" / BASE_NAME).unlink()
    with pytest.raises(ValueError, match="needs the weights below them, and .*_base.safetensors is missing"):
        make("b").train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))


def test_the_best_checkpoint_is_loaded(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = train(tmp_path, load_best_model_at_end=True, learning_rate=0.3, **changes)
    best = trainer.state.best_model_checkpoint
    assert best and same(weights(trainer.model), weights(load_pruned(best)))


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"bf16": True}, {"max_grad_norm": 0.1}])
def test_it_trains_in_every_mode(changes, tmp_path):
    trainer = train(tmp_path, **changes)
    assert not same(weights(trainer.model), trainer.before)


def test_training_after_prune_uses_adapters_too(tmp_path):
    trainer = make_trainer(tmp_path, lora(recovery="finetune"))
    trainer.prune()
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert same({"x": before["classifier.weight"]}, {"x": after["classifier.weight"]}) and not same(before, after)
    assert len(find_groups(trainer.model)) == 6


def test_training_again_trains_again(tmp_path):
    trainer = train(tmp_path)
    once = weights(trainer.model)
    trainer.train()
    twice = weights(trainer.model)
    assert same(once, trainer.before) and not same(once, twice)


def test_adapters_of_a_half_precision_model_are_trained_in_full(tmp_path):
    trainer = make_trainer(tmp_path, lora(recovery="finetune"), tiny_model("bert").bfloat16(), learning_rate=1e-5)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append({name: p.detach().clone() for name, p in adapters_of(model).items()})
            assert {p.dtype for p in seen[-1].values()} == {torch.float32}

    trainer.add_callback(Watch())
    trainer.train()
    assert all((seen[0][name] != seen[-1][name]).float().mean() > 0.9 for name in seen[0])
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}


def test_saving_on_the_way_saves_the_merged_model(tmp_path):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.save_model(tmp_path / f"step-{state.global_step}")

    trainer = make_trainer(tmp_path, lora(), callbacks=[Save()], learning_rate=1e-2)
    trainer.train()
    assert same(weights(load_pruned(tmp_path / "step-6")), weights(trainer.model))


def test_a_model_with_adapters_of_the_users_own_is_saved_as_it_is(tmp_path):
    model = peft.get_peft_model(tiny_model("bert"), peft.LoraConfig(r=2, target_modules=["query"]))
    trainer = make_trainer(tmp_path, None, model, save_strategy="steps", save_steps=3, learning_rate=1e-2)
    trainer.train()
    own = adapters_of(model)
    for folder in (tmp_path, tmp_path / "checkpoint-6"):
        if folder == tmp_path:
            trainer.save_model()
        again = adapters_of(peft.PeftModel.from_pretrained(tiny_model("bert"), folder))
        assert own and same(again, own) and not (folder / ADAPTERS_NAME).exists()


def test_what_is_frozen_stays_so(tmp_path):
    model = tiny_model("bert")
    model.bert.encoder.layer[0].requires_grad_(False)
    trainer = make_trainer(tmp_path, lora(recovery="finetune"), model, learning_rate=1e-2)
    trainer.prune()
    before = weights(trainer.model)
    trainer.train()
    changed = [name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])]
    assert changed and not any(name.startswith("bert.encoder.layer.0.") for name in changed)
    assert not any(p.requires_grad for p in trainer.model.bert.encoder.layer[0].parameters())


def test_a_checkpoint_counts_once_its_adapters_are_there(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, lora(), save_strategy="steps", save_steps=2, save_total_limit=1)
    original, calls = adapters.save_file, []
    monkeypatch.setattr(adapters, "save_file", lambda *args: fail() if calls else calls.append(original(*args)))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / ADAPTERS_NAME).exists()  # not removed before the next one is whole
    monkeypatch.undo()
    resumed = make_trainer(tmp_path, lora(), save_strategy="steps", save_steps=2)
    assert resumed.train(resume_from_checkpoint=True).global_step == 6


def test_a_run_that_fails_leaves_a_plain_model(tmp_path):
    trainer = make_trainer(tmp_path, lora(), callbacks=[Interrupt(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert find_groups(trainer.model) and all(p.requires_grad for p in trainer.model.parameters())


def train_in_a_process(folder):
    fsdp = folder.endswith("fsdp")
    mode = {"save_strategy": "no", "per_device_train_batch_size": 8 // PartialState(cpu=True).num_processes}
    if fsdp:
        from test_fsdp import start_fsdp_on_the_cpu

        start_fsdp_on_the_cpu()
        mode |= {"fsdp": True, "fsdp_config": {"version": 2}}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    trainer = CamCutTrainer(
        tiny_model("bert", **still),
        arguments(folder, average_tokens_across_devices=False, **mode),
        train_dataset=make_trainer(folder).train_dataset,
        pruning_config=lora(),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.05}),
    )
    trainer.train()
    trainer.save_model(f"{folder}/saved")


@pytest.mark.once
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(mode, tmp_path):
    for number, folder in ((1, tmp_path / "one"), (2, tmp_path / mode)):
        for worker in together(number, train_in_a_process, str(folder)):
            code, output = worker.end(200)
            assert code == 0, output
    one, two = (weights(load_pruned(tmp_path / name / "saved")) for name in ("one", mode))
    assert list(one) == list(two)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recovery": "reconstruct"}, "lora_rank applies to recovery='finetune' and 'reconstruct"),
        ({"granularity": ["weights"]}, "lora_rank adds to weights that stay: not to single weights"),
        ({"rewind": True, "dense_epochs": 1, "recovery": "finetune"}, "or to rewind"),
        ({"lora_rank": 0}, "lora_rank should be an integer of at least 1, or None; got 0"),
        ({"lora_rank": None, "distill_top_k": 5}, "distill_top_k would have no effect: set distill_weight"),
    ],
)
def test_configs_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**{"sparsity": 0.5, "lora_rank": 4, **changes})


def test_without_peft_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'lora_rank needs PEFT: pip install "optimum-camcut\[lora\]"'):
        make_trainer(tmp_path, lora())
    make_trainer(tmp_path, pruning())


# --- the likeliest tokens -------------------------------------------------------------------------------------------


def test_the_likeliest_and_the_rest_by_hand():
    """Chances of the teacher 0.5, 0.3, 0.1 and 0.1: the first two count, and the rest is 0.2."""
    teacher = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    student = torch.tensor([[0.25, 0.5, 0.125, 0.125]]).log()
    got = distillation_loss({"logits": student}, {"logits": teacher}, 1.0, meanings="classes", top_k=2)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.125, 0.625])
    torch.testing.assert_close(got, (p * (p / q).log()).sum())
    for k in (4, 9, None):  # all of them
        everything = distillation_loss({"logits": student}, {"logits": teacher}, 1.0, meanings="classes", top_k=k)
        torch.testing.assert_close(everything, (teacher.exp() * (teacher - student)).sum())


def test_of_many_the_likeliest_are_nearly_all():
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 3, 5, 1000).mul(3).unbind()
    student.requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    found = [
        distillation_loss({"logits": student}, {"logits": teacher}, 2.0, mask, "classes", top_k=k) for k in (900, None)
    ]
    torch.testing.assert_close(*found, rtol=2e-2, atol=0)
    gradients = [torch.autograd.grad(each, student)[0] for each in found]
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99
    assert not gradients[0][:, 3:].any()


def test_the_trainer_compares_so_many(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "optimum_camcut.training.trainer.distillation_loss", lambda *args: seen.append(args[5]) or args[0].logits.sum()
    )
    make_trainer(tmp_path, pruning(distill_weight=0.5, distill_top_k=2), max_steps=2).train()
    assert seen == [2, 2]
