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
"""`CamCutTrainer`: one call, the steps apart, every way to recover, and resuming."""

import copy
import re
from contextlib import nullcontext

import pytest
import torch
import transformers.trainer
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects
from marks import few
from models import tiny_batch, tiny_model
from torch.utils.data import IterableDataset
from trainers import Interrupt, Minimal, arguments, examples, make_trainer, pruning, same, sizes, weights
from transformers import Trainer, TrainerCallback, set_seed

from optimum_camcut import (
    CamCutTrainer,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    reconstruct,
    score_groups,
)
from optimum_camcut.planning.measure import count_parameters
from optimum_camcut.search.divergence import distillation_loss
from optimum_camcut.training.losses import distilling


def test_without_a_pruning_config_it_is_a_trainer(tmp_path):
    plain = Trainer(model=tiny_model("bert"), args=arguments(tmp_path / "a"), train_dataset=examples())
    ours = make_trainer(tmp_path / "b")
    losses = []
    for trainer in (plain, ours):
        set_seed(1)
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1] and same(weights(plain.model), weights(ours.model)) and ours.pruning_plan is None
    for call in (ours.score, ours.prune):
        with pytest.raises(ValueError, match="this trainer has no pruning_config"):
            call()


@pytest.mark.parametrize(
    "method", few(["smooth_cut", "activation", "cam_cut", "smooth_cam_cut", "taylor", "fisher"], 2)
)
def test_one_call_does_everything(method, tmp_path):
    trainer = make_trainer(tmp_path, pruning(method=method, dense_epochs=1), num_train_epochs=2, save_strategy="epoch")
    parameters = count_parameters(trainer.model)
    output = trainer.train()
    assert output.global_step == 12  # two epochs of six steps after the cut; the dense one counted apart
    heads, neurons = ([g.size for g in find_groups(trainer.model, (kind,))] for kind in ("heads", "neurons"))
    assert sum(heads) == 6 and sum(neurons) == round(3 * 37 / 2)
    assert count_parameters(trainer.model) < parameters
    assert (tmp_path / "_dense" / "checkpoint-6" / "model.safetensors").exists()
    before = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    reloaded = load_pruned(tmp_path)
    assert same(weights(reloaded), weights(trainer.model)) and reloaded.pruning_plan == trainer.pruning_plan
    assert PruningConfig.from_pretrained(tmp_path) == trainer.pruning_config
    again = Trainer(model=reloaded, args=arguments(tmp_path / "again"), eval_dataset=examples(24, seed=1))
    assert again.evaluate()["eval_loss"] == before
    assert (tmp_path / "checkpoint-12" / "pruning_plan.json").exists()


def test_the_steps_apart_give_the_same_as_one_call(tmp_path):
    whole, steps = (make_trainer(tmp_path / name, pruning()) for name in "ab")
    whole.train()
    scores = steps.score()
    assert scores is steps.scores and set(scores) == set(sizes(steps.model))
    assert sizes(steps.model) == sizes(tiny_model("bert"))  # scoring cuts nothing
    plan = steps.prune()
    assert isinstance(plan, PruningPlan) and plan.keep == whole.pruning_plan.keep
    set_seed(steps.args.seed)  # as one call does before each phase
    steps.train()
    assert same(weights(steps.model), weights(whole.model))


def test_scores_are_those_of_the_function(tmp_path):
    trainer = make_trainer(tmp_path, pruning(num_samples=1000))
    model, config = trainer.model, trainer.pruning_config
    expected = score_groups(model, find_groups(model), list(trainer.get_scoring_dataloader()), config)
    rows = [example for batch in trainer.get_scoring_dataloader() for example in batch["labels"]]
    assert len(rows) == 48
    got = trainer.score()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_scoring_sample_is_drawn_by_the_seed(tmp_path):
    def sample(seed):
        trainer = make_trainer(tmp_path, pruning(seed=seed, num_samples=10))
        return torch.cat([batch["input_ids"] for batch in trainer.get_scoring_dataloader()])

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    assert len(sample(1)) == 10


def test_datasets_without_a_length(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(examples())

    trainer = make_trainer(tmp_path, pruning(), train_dataset=Stream(), max_steps=3)
    assert trainer.train().global_step == 3 and sum(sizes(trainer.model).values()) == 6 + 56


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"bf16": True, "gradient_checkpointing": True, "gradient_accumulation_steps": 3},
        {"label_smoothing_factor": 0.1},
        {"optim": "sgd", "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("recovery", ["finetune", "reconstruct"])
def test_training_arguments_apply(changes, recovery, tmp_path):
    trainer = make_trainer(tmp_path, pruning(dense_epochs=1, recovery=recovery), **changes)
    cut = sum(sizes(trainer.model).values())
    trainer.train()
    assert sum(sizes(trainer.model).values()) < cut
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    assert trainer.model.bert.encoder.layer[0].intermediate.dense.weight.dtype == torch.float32


def test_best_model_and_callbacks_and_metrics(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append(("begin", count_parameters(model)))

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen.append(("evaluate", metrics["eval_accuracy"]))

    trainer = make_trainer(
        tmp_path,
        pruning(dense_epochs=1),
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        callbacks=[Watch()],
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    begins = [value for name, value in seen if name == "begin"]
    assert len(begins) == 2 and begins[1] == count_parameters(trainer.model) < begins[0]
    recovery = [value for name, value in seen if name == "evaluate"][1:]
    assert len(recovery) == 3 and trainer.evaluate()["eval_accuracy"] == max(recovery)
    assert trainer.state.best_model_checkpoint.startswith(str(tmp_path / "checkpoint-"))
    assert any("loss" in entry for entry in trainer.state.log_history)


@pytest.mark.once
@pytest.mark.parametrize("apart", few([False, True]))
@pytest.mark.parametrize(
    ("dtype", "changes", "warned"),
    [
        (torch.float16, {}, True),
        (torch.float16, {"recovery": "none", "dense_epochs": 1}, True),
        (torch.float16, {"recovery": "none"}, False),  # nothing trains
        (torch.bfloat16, {}, False),
        (torch.float32, {}, False),
    ],
)
def test_float16_weights_are_not_trained_without_a_word(dtype, changes, warned, apart, tmp_path, caplog):
    """Said once, whatever phases there are; also where `train` follows a `prune`, which may have been all there was
    to do."""
    config = pruning(method="magnitude", **changes)
    trainer = make_trainer(tmp_path, config, tiny_model("bert").to(dtype), max_steps=1, learning_rate=1e-9)
    if apart:
        trainer.prune()
    assert "float16 weights" not in caplog.text
    trainer.train()
    said = [record.getMessage() for record in caplog.records if "float16 weights" in record.getMessage()]
    assert len(said) == (warned or (apart and dtype == torch.float16))
    assert all("dtype=torch.float32" in text and "fp16=True or bf16=True" in text for text in said)


@pytest.mark.once
def test_what_was_cut_in_part_does_not_train_on_as_if_it_were_done(tmp_path, monkeypatch):
    config = pruning(method="magnitude", rounds=2)
    broken = make_trainer(tmp_path, config, callbacks=[Interrupt(1, 4)], save_strategy="steps", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    cut = sizes(broken.model)
    for resume in (None, True):
        with pytest.raises(ValueError, match="stopped between its first cut and its last.* Make a new trainer"):
            broken.train(resume_from_checkpoint=resume)
    assert sizes(broken.model) == cut
    resumed = make_trainer(tmp_path, config)
    resumed.train(resume_from_checkpoint=True)
    assert sum(sizes(resumed.model).values()) < sum(cut.values())

    def stop(*_, **__):
        raise KeyboardInterrupt

    rebuilt = make_trainer(tmp_path / "rebuild", pruning(method="magnitude", recovery="reconstruct"))
    with monkeypatch.context() as patch:
        patch.setattr("optimum_camcut.training.steps.reconstruct", stop)
        with pytest.raises(KeyboardInterrupt):
            rebuilt.train()
    with pytest.raises(ValueError, match="Make a new trainer"):
        rebuilt.train()


@pytest.mark.once
def test_an_interrupted_last_training_goes_on(tmp_path):
    """All is cut then: with the same trainer, as with `Trainer`."""
    run = {"save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", pruning(method="magnitude", rounds=2), **run)
    whole.train()
    broken = make_trainer(
        tmp_path / "broken", pruning(method="magnitude", rounds=2), callbacks=[Interrupt(2, 4)], **run
    )
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    broken.train(resume_from_checkpoint=True)
    assert broken.state.global_step == 6 and same(weights(broken.model), weights(whole.model))


@pytest.mark.once
@pytest.mark.parametrize("finished", [False, True])
def test_what_goes_on_from_its_last_checkpoint_takes_no_step(finished, tmp_path):
    """Also in the midst of an epoch, where `Trainer` takes one."""

    class Stop(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    run = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    first = make_trainer(tmp_path, pruning(method="magnitude"), callbacks=[] if finished else [Stop()], **run)
    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        first.train()
    again = make_trainer(tmp_path, pruning(method="magnitude"), **run)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    assert same(weights(again.model), weights(first.model))


def test_recovery_none_leaves_the_weights_that_were_kept(tmp_path):
    model = tiny_model("bert")
    trainer = make_trainer(tmp_path, pruning(recovery="none"), model=copy.deepcopy(model))
    output = trainer.train()
    assert output.global_step == 0
    kept = list(trainer.pruning_plan.keep["layer.1.neurons"])
    expected = model.bert.encoder.layer[1].intermediate.dense.weight[kept]
    assert torch.equal(trainer.model.bert.encoder.layer[1].intermediate.dense.weight, expected)


@pytest.mark.once
def test_recovery_by_reconstruction_comes_closer_to_the_dense_model(tmp_path):
    batch, dense = tiny_batch(64, labels=False, seed=9), tiny_model("bert")

    def distance(recovery):
        trainer = make_trainer(
            tmp_path, pruning(recovery=recovery), train_dataset=examples(512), model=tiny_model("bert")
        )
        trainer.pruning_config.num_samples = 512
        trainer.train()
        with torch.no_grad():
            return (trainer.model.eval()(**batch).logits - dense(**batch).logits).square().mean()

    assert distance("reconstruct") < 0.5 * distance("none")


@pytest.mark.once
@pytest.mark.parametrize("rounds", few([2, 1]))
def test_training_starts_from_the_rebuilt_model(rounds, tmp_path):
    """Each round rebuilds by the model that it began with, not by one from before the training in between."""
    began = []

    class Rounds(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            began.append(copy.deepcopy(model))

        def on_train_end(self, args, state, control, model, **kwargs):
            ended.append(copy.deepcopy(model))

    config = pruning(recovery="reconstruct+finetune", rounds=rounds, num_samples=512)
    trainer = make_trainer(tmp_path, config, train_dataset=examples(512), max_steps=3, callbacks=[Rounds()])
    ended = [copy.deepcopy(trainer.model)]
    trainer.train()
    assert len(began) == rounds and trainer.state.global_step == 3 and trainer.dense_model is None
    for before, after in zip(ended, began):
        cut = apply_plan(copy.deepcopy(before), PruningPlan(after.pruning_plan.keep))
        reconstruct(cut, before, cut.pruning_plan, trainer.get_scoring_dataloader())
        for name, value in weights(cut).items():
            torch.testing.assert_close(weights(after)[name], value, rtol=1e-5, atol=1e-6)
        assert not same(
            weights(after), weights(apply_plan(copy.deepcopy(before), PruningPlan(after.pruning_plan.keep)))
        )


def test_a_dense_copy_is_a_model_of_its_own_after_mixed_precision(tmp_path):
    """accelerate's forward for bf16 is bound to the model it was made for; a copy of the model would call that one."""
    trainer = make_trainer(tmp_path, pruning(dense_epochs=1, recovery="reconstruct"), bf16=True)
    trainer.train()
    calls = []
    trainer.model.register_forward_hook(lambda *_: calls.append("pruned"))
    trainer.dense_model(**tiny_batch())
    assert calls == [] and sizes(trainer.dense_model) == sizes(tiny_model("bert"))


@pytest.mark.once
@pytest.mark.parametrize("amount", [{"sparsity": 0.75}, {"sparsity": None, "compression": 2.0}])
def test_rounds_arrive_at_the_target(amount, tmp_path):
    once, twice = (make_trainer(tmp_path / str(n), pruning(rounds=n, **amount), save_strategy="epoch") for n in (1, 2))
    once.train()
    twice.train()
    assert count_parameters(twice.model) == pytest.approx(count_parameters(once.model), rel=0.02)
    first = load_pruned(tmp_path / "2" / "_round-1" / "checkpoint-6")
    dense, cut = count_parameters(tiny_model("bert")), count_parameters(once.model)
    assert count_parameters(first) == pytest.approx(dense - 0.875 * (dense - cut), rel=0.02) and cut < 0.9 * (
        count_parameters(first)
    )
    for name, units in twice.pruning_plan.keep.items():
        assert set(units) <= set(first.pruning_plan.keep[name])
    assert twice.model.pruning_plan.config == twice.pruning_config


@pytest.mark.once
def test_rewind_returns_to_the_initial_weights(tmp_path):
    model = tiny_model("bert")
    trainer = make_trainer(tmp_path, pruning(rewind=True, dense_epochs=2, recovery="none"), model=copy.deepcopy(model))
    trainer.train()
    trained = make_trainer(tmp_path, pruning(recovery="none", dense_epochs=2), model=copy.deepcopy(model))
    trained.train()
    assert trainer.pruning_plan.keep == trained.pruning_plan.keep  # scored after training
    kept = list(trainer.pruning_plan.keep["layer.2.neurons"])
    initial = model.bert.encoder.layer[2].intermediate.dense.weight[kept]
    assert torch.equal(trainer.model.bert.encoder.layer[2].intermediate.dense.weight, initial)
    assert not torch.equal(trained.model.bert.encoder.layer[2].intermediate.dense.weight, initial)


def test_distillation_loss_by_hand():
    student, teacher = {"logits": torch.tensor([[2.0, 0.0]])}, {"logits": torch.tensor([[0.0, 0.0]])}
    p = torch.sigmoid(torch.tensor(1.0))  # softmax of [1, 0] at temperature 2
    expected = 4 * (0.5 * (0.5 / p).log() + 0.5 * (0.5 / (1 - p)).log())
    assert distillation_loss(student, teacher, 2.0, meanings="classes") == pytest.approx(float(expected), abs=1e-6)
    one, other = {"logits": torch.tensor([[1.0], [3.0]])}, {"logits": torch.tensor([[0.0], [1.0]])}
    assert distillation_loss(one, other, 2.0, meanings="numbers") == pytest.approx(2.5)
    tokens = torch.tensor([[[2.0, 0.0], [9.0, -9.0]]])
    masked = distillation_loss({"logits": tokens}, {"logits": tokens * 0}, 2.0, torch.tensor([[1, 0]]), "classes")
    assert masked == pytest.approx(float(expected), abs=1e-6)
    # Two layers behind the embeddings, of features 0 and 4, of variance 4. The second is right. The first is off by 2
    # in both features of the one real token of an example, and of one of the two of the other.
    right = torch.tensor([0.0, 4.0]).expand(2, 2, 2)
    off = torch.tensor([[[2.0, 2.0], [50.0, 50.0]], [[2.0, 2.0], [0.0, 0.0]]])
    student["hidden_states"], teacher["hidden_states"] = (right + 9, right + off, right), (right, right, right)
    masked = distillation_loss(student, teacher, 2.0, torch.tensor([[1, 0], [1, 1]]), "classes")
    assert masked == pytest.approx(float(expected) + (1 + 1 / 2) / 2 / 2, abs=1e-6)


def test_distilled_numbers_and_labels_by_hand():
    """Of several numbers, the squared error; of several labels, what a softmax over label and absence would give."""
    student, teacher = {"logits": torch.tensor([[2.0, 5.0]])}, {"logits": torch.tensor([[0.0, 4.0]])}
    assert distillation_loss(student, teacher, 2.0, None, "numbers") == pytest.approx((4 + 1) / 2)
    p, q = torch.sigmoid(torch.tensor([1.0, 2.5])), torch.sigmoid(torch.tensor([0.0, 2.0]))  # at temperature 2
    expected = 4 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    got = distillation_loss(student, teacher, 2.0, None, "labels")
    assert got == pytest.approx(float(expected), abs=1e-6)


def test_distillation_of_several_logits_or_none():
    """Whatever ends in `logits`; the mean over them."""
    outputs = {"prediction_logits": torch.tensor([[[2.0, 0.0]]]), "seq_relationship_logits": torch.tensor([[3.0]])}
    taught = {name: torch.zeros_like(value) for name, value in outputs.items()}
    alone = distillation_loss(
        {"logits": torch.tensor([[2.0, 0.0]])}, {"logits": torch.zeros(1, 2)}, 2.0, None, "classes"
    )
    meanings = {"prediction_logits": "classes", "seq_relationship_logits": "numbers"}
    assert distillation_loss(outputs, taught, 2.0, meanings=meanings) == pytest.approx((float(alone) + 9) / 2)
    with pytest.raises(ValueError, match="compares logits; the model gives last_hidden_state, pooler_output"):
        distillation_loss(*2 * [{"last_hidden_state": torch.zeros(1, 2, 3), "pooler_output": torch.zeros(1, 3)}], 2.0)


def test_several_labels_are_distilled_each_by_itself(tmp_path):
    rows = [{**row, "labels": [float(row["labels"] == i) for i in range(3)]} for row in examples()]
    trainer = make_trainer(tmp_path, pruning(distill_weight=1.0), train_dataset=Dataset.from_list(rows))
    trainer.prune()
    batch = {**tiny_batch(), "labels": torch.zeros(4, 3)}
    with torch.no_grad():
        with distilling(trainer):
            before = trainer.compute_loss(trainer.model.train(), batch)
            trainer.model.classifier.bias += 4.0  # of all logits alike, to which a softmax is blind
            assert trainer.compute_loss(trainer.model, batch) > before + 0.3


def mean_loss(outputs, labels, num_items_in_batch):
    return torch.nn.functional.cross_entropy(outputs.logits, labels)


def sum_loss(outputs, labels, num_items_in_batch):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("own_loss", [mean_loss, sum_loss])
def test_scores_by_a_loss_function_of_the_users_own(own_loss, tmp_path):
    """It is told how many items a batch has; here it gives what the model gives by itself."""
    trainers = [make_trainer(tmp_path, pruning()) for _ in range(2)]
    trainers[0].compute_loss_func = own_loss
    got, expected = (trainer.score() for trainer in trainers)
    assert trainers[0].compute_loss_func is own_loss
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=0)


@pytest.mark.once
@pytest.mark.parametrize("own_loss", few([None, mean_loss, sum_loss]))
def test_a_distilled_step_is_the_same_in_smaller_batches(own_loss, tmp_path):
    """Both losses are means over the step's examples, whether or not the model or a loss function of the user's own
    divides by their number."""
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    losses, models = [], []
    for steps in (1, 4):
        trainer = make_trainer(
            tmp_path,
            pruning(distill_weight=0.5),
            tiny_model("bert", **without_dropout),
            train_dataset=examples(16),
            per_device_train_batch_size=16 // steps,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
            logging_steps=1,
        )
        trainer.compute_loss_func = own_loss
        losses.append(trainer.train().training_loss)
        assert trainer.state.global_step == 1
        models.append(weights(trainer.model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    start = make_trainer(tmp_path, pruning(), tiny_model("bert", **without_dropout), train_dataset=examples(16))
    start.prune()
    assert not same(models[0], weights(start.model))
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("steps", [1, 2])
def test_distillation_mixes_in_the_dense_predictions(steps, tmp_path):
    """The weight changes training, evaluation stays the plain loss, and accumulation does not change the scale."""
    trainer = make_trainer(tmp_path, pruning(distill_weight=0.25), gradient_accumulation_steps=steps)
    trainer.score()
    trainer.prune()
    trainer.current_gradient_accumulation_steps = steps
    model, batch = trainer.model, tiny_batch()
    model.train()
    torch.manual_seed(1)
    with distilling(trainer):
        got = trainer.compute_loss(model, batch, num_items_in_batch=None)
    torch.manual_seed(1)
    outputs, taught = (
        model(**batch, output_hidden_states=True),
        trainer.dense_model(**batch, output_hidden_states=True),
    )
    temperature = trainer.pruning_config.distill_temperature
    distilled = distillation_loss(outputs, taught, temperature, batch["attention_mask"], "classes")
    torch.testing.assert_close(got, 0.75 * outputs.loss + 0.25 * distilled)
    assert distilled > distillation_loss(trainer.dense_model(**batch), taught, temperature, None, "classes") + 0.01
    model.eval()
    with distilling(trainer):
        torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss)
    assert trainer.train().global_step == 6 / steps


def test_distilled_hidden_states_of_choices_by_hand():
    """Each choice of an example is a row; their padding does not count."""
    torch.manual_seed(0)
    taught, off = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]]])
    logits = torch.zeros(2, 2)
    student = {"logits": logits, "hidden_states": (taught, taught + off)}
    real = mask.view(4, 3).bool()
    error = off.square().mean(-1) / taught.var(-1, correction=0)
    expected = sum(each[tokens].mean() for each, tokens in zip(error, real)) / 4
    loss = distillation_loss(student, {"logits": logits, "hidden_states": (taught, taught)}, 2.0, mask, "classes")
    torch.testing.assert_close(loss, expected)


def test_distillation_of_a_model_that_gives_no_hidden_states(tmp_path):
    trainer = make_trainer(tmp_path, pruning(distill_weight=0.25), model=Minimal(tiny_model("bert").config))
    trainer.prune()
    model, batch = trainer.model.eval(), tiny_batch()
    with torch.no_grad():
        outputs, taught = model(**batch), trainer.dense_model(**batch)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.eval()
    expected = 0.75 * outputs.loss + 0.25 * distillation_loss(outputs, taught, 2.0, None, "classes")
    with distilling(trainer):
        torch.testing.assert_close(trainer.compute_loss(model, batch), expected)
    assert trainer.train().global_step == 6


def test_distillation_of_models_that_return_tuples(tmp_path):
    losses = []
    for returned in (True, False):
        model = tiny_model("bert")
        model.config.return_dict = returned
        trainer = make_trainer(tmp_path, pruning(distill_weight=0.25), model=model)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1])


def test_a_checkpoint_has_the_arguments_that_were_given(tmp_path):
    trainer = make_trainer(
        tmp_path, pruning(method="magnitude"), save_strategy="steps", save_steps=2, save_total_limit=2
    )
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    for folder in (tmp_path / "checkpoint-4", tmp_path / "checkpoint-6"):
        assert torch.load(folder / "training_args.bin", weights_only=False).save_total_limit == 2


def test_model_init(tmp_path):
    calls = []

    def model_init():
        calls.append(1)
        return tiny_model("bert")

    trainer = make_trainer(tmp_path, pruning(dense_epochs=1), model_init=model_init)
    made = len(calls)
    trainer.train()
    assert len(calls) == made + 1 and sum(sizes(trainer.model).values()) == 6 + 56
    assert trainer.model_init is model_init


@pytest.mark.parametrize(("loop", "step"), few([(2, 5), (1, 3)], rows=True))
def test_resuming_gives_the_same_as_never_stopping(loop, step, tmp_path):
    """Stopped in the dense epochs and in the recovery; the same bits in the end."""

    def make(folder, **changes):
        return make_trainer(
            tmp_path / folder,
            pruning(dense_epochs=1),
            save_strategy="steps",
            save_steps=2,
            num_train_epochs=1,
            **changes,
        )

    undisturbed = make("a")
    undisturbed.train()
    with pytest.raises(KeyboardInterrupt):
        make("b", callbacks=[Interrupt(loop, step)]).train()
    resumed = make("b")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.pruning_plan.keep == undisturbed.pruning_plan.keep
    assert same(weights(resumed.model), weights(undisturbed.model))
    by_path = make("b")
    folder = "b/_dense" if loop == 1 else "b"
    by_path.train(resume_from_checkpoint=str(tmp_path / folder / f"checkpoint-{step - 1}"))
    assert same(weights(by_path.model), weights(undisturbed.model))


def test_resuming_from_what_does_not_fit(tmp_path):
    trainer = make_trainer(tmp_path, pruning())
    with pytest.raises(ValueError, match="is no folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nothing"))
    Trainer(model=tiny_model("bert"), args=arguments(tmp_path, max_steps=1, save_strategy="epoch")).save_model()
    with pytest.raises(ValueError, match="is not a pruned checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    assert sizes(trainer.model) == sizes(tiny_model("bert"))


def test_the_card_of_the_trainer_tells_both_stories(tmp_path):
    trainer = make_trainer(tmp_path, pruning())
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert "Training hyperparameters" in card.text and "load_pruned(" in card.text
    assert {"optimum-camcut", "pruned"} <= set(card.data.tags)


def test_bad_input_is_refused_before_anything_happens(tmp_path):
    model = tiny_model("bert")
    with pytest.raises(TypeError, match="pruning_config should be a PruningConfig, got dict"):
        CamCutTrainer(model=model, args=arguments(tmp_path), pruning_config={"sparsity": 0.5})
    with pytest.raises(ValueError, match="pass optimizer_cls_and_kwargs= instead"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        CamCutTrainer(model=model, args=arguments(tmp_path), pruning_config=pruning(), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="train_dataset is None"):
        CamCutTrainer(model=model, args=arguments(tmp_path), pruning_config=pruning()).train()
    before = weights(model)
    for data, message in (
        (examples().select([]), "gave no batches"),
        (examples().remove_columns("labels"), "did not return a loss"),
    ):
        trainer = make_trainer(tmp_path, pruning(), model=model, train_dataset=data)
        with pytest.raises(ValueError, match=re.escape(message)):
            trainer.train()
        assert same(before, weights(model)) and type(model).__module__.startswith("transformers")
    with pytest.raises(ValueError, match="sparsity=0.99 cannot be reached: the highest possible sparsity here is"):
        make_trainer(tmp_path, pruning(sparsity=0.99), model=model).train()
    with pytest.raises(ValueError, match="exclude names '3', which matches nothing"):
        make_trainer(tmp_path, pruning(exclude=[3], dense_epochs=1), model=model).train()
    assert same(before, weights(model))


def test_all_rounds_leave_what_is_excluded_whole(tmp_path):
    """And arrive at the same target."""
    groups = find_groups(tiny_model("bert"))
    config = pruning(method="magnitude", rounds=3, exclude=[1, "layer.2.heads"], sparsity=0.3, recovery="none")
    trainer = make_trainer(tmp_path, config)
    trainer.train()
    kept = {g.name: len(trainer.pruning_plan.keep[g.name]) for g in groups}
    assert [name for name in kept if kept[name] == {"heads": 4, "neurons": 37}[name[8:]]] == [
        "layer.1.heads",
        "layer.1.neurons",
        "layer.2.heads",
    ]
    left = sum(kept[g.name] * g.unit_parameters for g in groups) / sum(g.size * g.unit_parameters for g in groups)
    assert left == pytest.approx(0.7, abs=0.03)
    assert PruningConfig.from_pretrained(tmp_path) == config


@pytest.mark.once
@pytest.mark.parametrize("rounds", few([2, 1]))
def test_scores_that_are_there_are_not_computed_again(rounds, tmp_path, monkeypatch):
    """By `score`, or set: the same as `train` alone. A later round scores what is left."""
    calls = []

    def count(*args, **kwargs):
        calls.append(args)
        return score_groups(*args, **kwargs)

    monkeypatch.setattr("optimum_camcut.training.steps.score_groups", count)
    config = pruning(recovery="reconstruct+finetune", rounds=rounds)
    alone, scored, given = (make_trainer(tmp_path / name, config) for name in "abc")
    alone.train()
    assert len(calls) == rounds
    scores = {name: value.clone() for name, value in scored.score().items()}
    scored.train()
    assert len(calls) == 2 * rounds and scored.scores is None
    given.scores = scores
    given.train()
    assert len(calls) == 3 * rounds - 1
    for each in (scored, given):
        assert each.pruning_plan == alone.pruning_plan and same(weights(each.model), weights(alone.model))


@pytest.mark.once
@pytest.mark.parametrize("changes", [{"dense_epochs": 1}, {}], ids=["dense epochs", "model_init"])
def test_scores_of_another_model_than_is_cut_are_computed_again(changes, tmp_path):
    model = {} if changes else {"model_init": lambda: tiny_model("bert")}
    config = pruning(recovery="none", **changes)
    plain, scored = (make_trainer(tmp_path / name, config, **model) for name in "ab")
    plain.train()
    scored.scores = {name: -value for name, value in scored.score().items()}
    scored.train()
    assert scored.pruning_plan == plain.pruning_plan


def test_a_plan_of_ones_own(tmp_path):
    """Scores and plans made by hand go through the same functions as the trainer's."""
    trainer = make_trainer(tmp_path, pruning())
    scores = trainer.score()
    plan = make_plan(scores, find_groups(trainer.model), trainer.pruning_config)
    assert plan == trainer.prune()


def test_the_hub_gets_the_final_model_only(tmp_path):
    """Checkpoints of earlier phases lie in folders that the upload of `Trainer` leaves out."""
    trainer = make_trainer(tmp_path, pruning(dense_epochs=1, rounds=2), save_strategy="epoch")
    trainer.train()
    trainer.save_model()
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sum("optimizer.pt" in file for file in files) == 3
    uploaded = set(filter_repo_objects(files, ignore_patterns=["_*", "checkpoint-*"]))
    assert {"model.safetensors", "modeling_camcut.py", "pruning_plan.json"} <= uploaded
    assert not any("/" in file for file in uploaded)


def test_push_to_hub_sends_a_whole_checkpoint(tmp_path, monkeypatch):
    """All but the network is real: the folder that `Trainer` would upload loads back, card and all."""
    monkeypatch.setattr(CamCutTrainer, "init_hf_repo", lambda self, token=None: None)
    sent = []
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **keywords: sent.append(keywords))
    monkeypatch.setattr(transformers.trainer, "upload_folder", lambda **k: sent.append(k), raising=False)  # version 4
    trainer = make_trainer(tmp_path, pruning(), hub_model_id="user/model")
    trainer.train()
    trainer.hub_model_id = "user/model"
    trainer.push_to_hub(blocking=True)
    assert (
        len(sent) == 1 and sent[0]["repo_id"] == "user/model" and sent[0]["ignore_patterns"] == ["_*", "checkpoint-*"]
    )
    reloaded = load_pruned(sent[0]["folder_path"])
    assert same(weights(reloaded), weights(trainer.model)) and reloaded.pruning_plan == trainer.pruning_plan
    card = ModelCard.load(tmp_path / "README.md")
    assert "Training hyperparameters" in card.text and "load_pruned(" in card.text


def test_training_again_keeps_the_cut_with_model_init(tmp_path):
    trainer = make_trainer(tmp_path, pruning(), model_init=lambda: tiny_model("bert"))
    trainer.score()
    trainer.prune()
    for _ in range(2):
        trainer.train()
        assert sum(sizes(trainer.model).values()) == 6 + 56


@pytest.mark.once
def test_every_round_starts_from_the_initial_weights_after_a_rewind(tmp_path):
    model, starts = tiny_model("bert"), []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            plan = model.pruning_plan.keep["layer.0.neurons"] if hasattr(model, "pruning_plan") else range(37)
            starts.append((list(plan), model.bert.encoder.layer[0].intermediate.dense.weight.detach().clone()))

    config = pruning(rewind=True, dense_epochs=1, rounds=2)
    make_trainer(tmp_path, config, model=copy.deepcopy(model), callbacks=[Watch()]).train()
    assert [len(kept) for kept, _ in starts] == sorted((len(kept) for kept, _ in starts), reverse=True)
    assert len(starts) == 3 and len(starts[2][0]) < len(starts[1][0]) < 37
    for kept, weight in starts:
        assert torch.equal(weight, model.bert.encoder.layer[0].intermediate.dense.weight[kept])


def test_the_teacher_after_a_rewind_is_the_trained_model(tmp_path):
    model, trained = tiny_model("bert"), []

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            trained.append(weights(model))

    config = pruning(rewind=True, dense_epochs=1, distill_weight=0.5)
    trainer = make_trainer(tmp_path, config, model=copy.deepcopy(model), callbacks=[Watch()])
    trainer.train()
    assert same(weights(trainer.dense_model), trained[0]) and not same(trained[0], weights(model))


def test_a_plan_that_fails_is_refused_before_a_rewind(tmp_path):
    """Scores that rank nothing show only after the dense epochs."""
    model, config = tiny_model("bert"), pruning(rewind=True, dense_epochs=1)
    trainer = make_trainer(tmp_path, config, model=copy.deepcopy(model))
    score = trainer.score
    trainer.score = lambda: setattr(trainer, "scores", {name: s * 0 for name, s in score().items()})
    with pytest.raises(ValueError, match="all scores of kind 'heads' are zero"):
        trainer.train()
    assert not same(weights(trainer.model), weights(model))  # what was trained is not lost


def test_scoring_without_a_training_set(tmp_path):
    model = tiny_model("bert")
    trainer = CamCutTrainer(model=model, args=arguments(tmp_path), pruning_config=pruning())
    with pytest.raises(
        ValueError, match="train_dataset is None, and method='taylor' with recovery='finetune' reads training examples"
    ):
        trainer.score()
    CamCutTrainer(
        model=model, args=arguments(tmp_path), pruning_config=pruning(method="magnitude", recovery="none")
    ).train()
    assert sum(sizes(model).values()) == 6 + 56
