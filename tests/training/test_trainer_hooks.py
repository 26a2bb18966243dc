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
"""`CamCutTrainer` with the hooks of `Trainer` that users override: every option keeps its effect, or is refused."""

import inspect
import re

import pytest
import torch
from datasets import Dataset
from models import TOKENS, VOCABULARY, tiny_batch, tiny_model
from torch.nn import functional
from torch.utils.data import DataLoader
from trainers import Minimal, arguments, examples, make_trainer, pruning, same, weights
from transformers import Seq2SeqTrainingArguments, Trainer, TrainerCallback
from types_of_models import CONFIGS
from workers import together

from optimum_camcut import CamCutSeq2SeqTrainer, CamCutTrainer, distillation_loss, load_pruned
from optimum_camcut.search.divergence import meanings_of
from optimum_camcut.training.losses import distilling
from optimum_camcut.training.trainer import TrainerKeywords


def trained(folder, trainer_class=CamCutTrainer, change=None, **settings):
    """A trainer of a class after `train()`, with `distill_weight=0.5` unless told."""
    trainer = trainer_class(
        model=tiny_model("bert"),
        args=arguments(folder, learning_rate=1e-2),
        train_dataset=examples(24),
        eval_dataset=examples(8, seed=1),
        pruning_config=pruning(**{"distill_weight": 0.5, "num_samples": 16, **settings}),
    )
    if change is not None:
        change(trainer)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """The weights that a trainer with no hooks of its own gives."""
    return weights(trained(tmp_path_factory.mktemp("run")).model)


# --- the loss -------------------------------------------------------------------------------------------------------


class Weighted(CamCutTrainer):
    """The recipe for class weights in the documentation of `Trainer`."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 5.0, 1.0]))
        return (loss, outputs) if return_outputs else loss


class Passed(CamCutTrainer):
    def compute_loss(self, model, inputs, **kwargs):
        return super().compute_loss(model, inputs, **kwargs)


class Named(CamCutTrainer):
    """Calls the model with what it knows of, and divides by itself."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum") / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def test_distillation_mixes_into_a_compute_loss_of_the_users_own(tmp_path):
    plain, mixed = (weights(trained(tmp_path, Weighted, distill_weight=weight).model) for weight in (0.0, 0.9))
    assert not same(plain, mixed)


@pytest.mark.parametrize("own", [Passed, Named])
def test_a_compute_loss_that_computes_the_same_trains_the_same(own, distilled, tmp_path):
    """Hidden states included, of which `Named` does not ask the model."""
    got = weights(trained(tmp_path, own).model)
    for name, value in distilled.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_a_compute_loss_that_is_assigned(distilled, tmp_path):
    def assign(trainer):
        trainer.compute_loss = lambda *args, **kwargs: CamCutTrainer.compute_loss(trainer, *args, **kwargs)
        assign.given = trainer.compute_loss

    trainer = trained(tmp_path, change=assign)
    assert same(weights(trainer.model), distilled)
    assert trainer.compute_loss is assign.given


@pytest.mark.once
def test_a_compiled_model_is_distilled_the_same(distilled, tmp_path):
    trainer = CamCutTrainer(
        model=tiny_model("bert"),
        args=arguments(tmp_path, learning_rate=1e-2, torch_compile=True, torch_compile_backend="eager"),
        train_dataset=examples(24),
        pruning_config=pruning(distill_weight=0.5, num_samples=16),
    )
    trainer.train()
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value, distilled[name], rtol=1e-4, atol=1e-5)


def test_two_passes_of_the_model_count_alike(tmp_path):
    """R-Drop calls the model twice: the mean of both distances is mixed in."""

    class Twice(CamCutTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            (_, first), (loss, second) = (Trainer.compute_loss(self, model, dict(inputs), True) for _ in range(2))
            self.seen = first, second
            return (loss, second) if return_outputs else loss

    trainer = Twice(tiny_model("bert"), arguments(tmp_path), pruning_config=pruning(distill_weight=0.25))
    trainer.train_dataset = examples(16)
    trainer.prune()
    trainer.dense_model.requires_grad_(False)
    model, batch = trainer.model.train(), tiny_batch()
    with distilling(trainer):
        got = trainer.compute_loss(model, batch)
    taught = trainer.dense_model(**batch, output_hidden_states=True)
    distances = [distillation_loss(each, taught, 2.0, batch["attention_mask"], "classes") for each in trainer.seen]
    assert distances[0] != distances[1]  # dropout
    torch.testing.assert_close(got, 0.75 * trainer.seen[1].loss + 0.25 * sum(distances) / 2)


def test_a_compute_loss_that_calls_another_model_is_refused(tmp_path):
    class Elsewhere(CamCutTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model.classifier(model.bert(inputs["input_ids"], inputs["attention_mask"])[1])
            loss = functional.cross_entropy(logits, inputs["labels"])
            return (loss, {"logits": logits}) if return_outputs else loss

    with pytest.raises(ValueError, match="does not call the model that it is handed: call that one, or set distill_"):
        trained(tmp_path, Elsewhere)
    trained(tmp_path, Elsewhere, distill_weight=0.0)


def test_the_users_loss_is_what_scores(tmp_path):
    """Also one that divides by the number of items, of which there is none while scoring."""
    expected, got, weighted = (
        each(tiny_model("bert"), arguments(tmp_path), train_dataset=examples(16), pruning_config=pruning()).score()
        for each in (CamCutTrainer, Named, Weighted)
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=0)
    assert not same(weighted, expected)


# --- the step -------------------------------------------------------------------------------------------------------


class OwnStep(CamCutTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class BareStep(CamCutTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_training_step_of_the_users_own(distilled, tmp_path):
    assert same(weights(trained(tmp_path, OwnStep).model), distilled)


def test_a_training_step_without_compute_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="would have no effect: training_step of BareStep gets its loss without"):
        BareStep(tiny_model("bert"), arguments(tmp_path), pruning_config=pruning(distill_weight=0.5))
    with pytest.raises(ValueError, match="has no effect: training_step of Helped gets its loss without self.compute_"):

        class Helped(CamCutTrainer):
            def training_step(self, *args):
                return helped(self, *args)

        trained(tmp_path, Helped)
    assert trained(tmp_path, BareStep, distill_weight=0.0).state.global_step == 3


def helped(*args):
    return BareStep.training_step(*args)


def test_masks_hold_in_a_step_and_with_an_optimizer_of_the_users_own(tmp_path):
    made = []

    class Own(BareStep):
        def create_optimizer(self, model=None):
            made.append(torch.optim.SGD(self.model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1))
            self.optimizer = made[-1]
            return self.optimizer

    trainer = trained(
        tmp_path,
        Own,
        granularity=("weights",),
        method="magnitude",
        recovery="finetune",
        distill_weight=0,
        dense_epochs=1,
    )
    assert len(made) == 2  # one for each phase
    name = "bert.encoder.layer.1.output.dense.weight"
    removed = list(trainer.pruning_plan.removed(name))
    assert removed and not trainer.model.get_parameter(name).flatten()[removed].any()


# --- data and evaluation --------------------------------------------------------------------------------------------


class OwnData(CamCutTrainer):
    def get_train_dataloader(self):
        return DataLoader(examples(24).with_format("torch"), batch_size=8)


class OwnScoringData(OwnData):
    def get_scoring_dataloader(self):
        return [tiny_batch(8, seed=1)]


def test_training_data_of_the_users_own(tmp_path, caplog):
    def make(trainer_class, **changes):
        return trainer_class(
            tiny_model("bert"), arguments(tmp_path), pruning_config=pruning(**changes.pop("config", {})), **changes
        )

    with pytest.raises(
        ValueError, match="OwnData makes its training batches in get_train_dataloader and has no train_"
    ):
        make(OwnData)
    assert make(OwnData, config={"method": "magnitude"}).train().global_step == 3  # reads no data to score
    assert "get_train_dataloader" not in caplog.text
    assert make(OwnScoringData).train().global_step == 3
    assert "get_train_dataloader" not in caplog.text
    make(OwnData, train_dataset=examples(8))
    assert "not by get_train_dataloader of OwnData; where that matters, override get_scoring_dataloader" in caplog.text


def test_an_evaluation_of_the_users_own_is_in_the_card(tmp_path):
    class Own(CamCutTrainer):
        def evaluate(self, *args, **kwargs):
            return {"eval_own": 0.25}

    trainer = Own(
        tiny_model("bert"),
        arguments(tmp_path, eval_strategy="epoch"),
        train_dataset=examples(16),
        eval_dataset=examples(8),
        pruning_config=pruning(),
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert re.search(r"\| own \| +\| 0.25 \|", (tmp_path / "saved" / "README.md").read_text())


def test_what_is_logged_and_saved_by_methods_of_the_users_own(tmp_path):
    """The figures of a cut go where the losses go, and what is saved has its plan, each round's checkpoints too."""

    class Own(CamCutTrainer):
        def log(self, logs, *args, **kwargs):
            logged.append(logs)

        def save_model(self, output_dir=None, _internal_call=False):
            self.model.save_pretrained(output_dir or self.args.output_dir)

    logged = []
    trainer = trained(tmp_path, Own, rounds=2)
    figures = [each for each in logged if "pruning/sparsity" in each]
    assert len(figures) == 2 and figures[0]["pruning/parameters"] > figures[1]["pruning/parameters"]
    assert any("loss" in each for each in logged)
    trainer.save_model()
    loaded = load_pruned(tmp_path)
    assert same(weights(loaded), weights(trainer.model)) and loaded.pruning_plan == trainer.pruning_plan


class Ignoring(torch.utils.data.Dataset):
    """Masked language modelling in which all labels of some examples are ignored."""

    def __init__(self, *ignored):
        self.ignored = ignored

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.randint(3, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids * 0 - 100 if index in self.ignored else ids}


def test_batches_in_which_no_label_counts(tmp_path, caplog):
    """They have no part in scores, in the loss of evaluation, or in that of training."""

    def make(*ignored):
        return CamCutTrainer(
            tiny_model("bert", "MaskedLM"),
            arguments(tmp_path, per_device_train_batch_size=1, per_device_eval_batch_size=2, logging_steps=1),
            train_dataset=Ignoring(*ignored),
            eval_dataset=Ignoring(*ignored),
            pruning_config=pruning(distill_weight=0.5, num_samples=8),
        )

    trainer = make(2, 3)
    losses = []
    for start in (0, 4, 6):
        batch = torch.utils.data.default_collate([Ignoring()[start], Ignoring()[start + 1]])
        with torch.no_grad():
            losses.append(trainer.model.eval()(**batch).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(sum(losses)) / 3, rel=1e-5)
    trainer.train()
    assert "2 of 8 scoring batches were skipped" in caplog.text
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 8 and min(logged) > 0  # Trainer replaces what is NaN; a distance is left of a batch
    with pytest.raises(ValueError, match="all labels in the 8 scoring batches are -100"):
        make(*range(8)).score()


def evaluate_by_objects(folder):
    """`Trainer` gathers objects in its first evaluation, and tensors from then on."""
    trainer = CamCutTrainer(
        tiny_model("bert", "MaskedLM"),
        arguments(folder, per_device_eval_batch_size=2, eval_use_gather_object=True),
        eval_dataset=Ignoring(2, 3),
        pruning_config=pruning(),
    )
    print(*(trainer.evaluate()["eval_loss"] for _ in range(2)))


def test_losses_that_are_gathered_as_objects(tmp_path):
    for worker in together(2, evaluate_by_objects, tmp_path):
        code, output = worker.end()
        assert code == 0, output
        objects, tensors = map(float, output.splitlines()[-1].split())
        assert objects == pytest.approx(tensors)


# --- what logits stand for ------------------------------------------------------------------------------------------


def test_replaced_tokens_are_distilled_each_by_itself():
    """ELECTRA gives one logit a token. A softmax over the tokens would not see that all of them are flipped."""
    model = tiny_model("electra", "PreTraining")
    taught = {"logits": torch.tensor([[-4.0, -3.0, 5.0], [2.0, 7.0, 7.0]])}
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert meanings_of(model, taught) == {"logits": "tokens"}
    flipped = {"logits": -taught["logits"]}
    p, q = (torch.sigmoid(each["logits"][mask.bool()] / 2) for each in (flipped, taught))
    expected = 4 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    torch.testing.assert_close(distillation_loss(flipped, taught, 2.0, mask, "tokens"), expected)


def test_positions_leave_padding_out():
    """The answer of an example of two tokens is one of two; whatever the third is, it is none."""
    student, taught = torch.tensor([[1.0, 3.0, 50.0]]), torch.tensor([[2.0, 0.0, -50.0]])
    mask = torch.tensor([[1, 1, 0]])
    got = distillation_loss({"start_logits": student}, {"start_logits": taught}, 0.5, mask)
    alone = distillation_loss({"start_logits": student[:, :2]}, {"start_logits": taught[:, :2]}, 0.5)
    torch.testing.assert_close(got, alone)
    p, q = student[:, :2].mul(2).softmax(-1), taught[:, :2].mul(2).softmax(-1)
    torch.testing.assert_close(alone, 0.25 * (q * (q / p).log()).sum())


@pytest.mark.parametrize(
    "head, changes, expected",
    [
        ("SequenceClassification", {}, {"logits": "classes"}),
        ("SequenceClassification", {"num_labels": 1}, {"logits": "numbers"}),
        ("SequenceClassification", {"problem_type": "regression"}, {"logits": "numbers"}),
        ("SequenceClassification", {"problem_type": "multi_label_classification"}, {"logits": "labels"}),
        ("TokenClassification", {}, {"logits": "classes"}),
        ("MaskedLM", {}, {"logits": "classes"}),
        ("QuestionAnswering", {"num_labels": 2}, {"start_logits": "positions", "end_logits": "positions"}),
        ("PreTraining", {}, {"prediction_logits": "classes", "seq_relationship_logits": "classes"}),
    ],
)
def test_meanings_come_from_the_model(head, changes, expected):
    model, batch = tiny_model("bert", head, **changes), tiny_batch()
    del batch["labels"]
    assert meanings_of(model, model(**batch)) == expected


def test_choices_are_classes():
    model, batch = tiny_model("bert", "MultipleChoice"), tiny_batch(10)
    inputs = {name: batch[name].view(2, 5, TOKENS) for name in ("input_ids", "attention_mask")}
    assert meanings_of(model, model(**inputs)) == {"logits": "classes"}


def test_logits_of_unknown_meaning_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"meaning of logits of shape \(1, 2\) is not told: pass meanings=.*'classes'"
    ):
        distillation_loss({"logits": torch.zeros(1, 2)}, {"logits": torch.ones(1, 2)}, 2.0)
    with pytest.raises(ValueError, match="unknown meaning 'class' of logits; .*did you mean 'classes'"):
        distillation_loss({"logits": torch.zeros(1, 2)}, {"logits": torch.ones(1, 2)}, 2.0, meanings="class")
    config = tiny_model("bert", num_labels=5).config

    def make(trainer_class):
        return trainer_class(
            Minimal(config), arguments(tmp_path), train_dataset=examples(8), pruning_config=pruning(distill_weight=0.5)
        )

    with pytest.raises(
        ValueError, match=r"what logits of shape \(8, 3\) of Minimal stand for.*compute_distillation_loss"
    ):
        make(CamCutTrainer).train()

    class Told(CamCutTrainer):
        def compute_distillation_loss(self, outputs, taught, inputs):
            return distillation_loss(outputs, taught, 2.0, inputs["attention_mask"], {"logits": "classes"})

    assert make(Told).train().global_step == 1


# --- interrupted in a notebook --------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ctrl-C, once, at a step of the nth training loop."""

    def __init__(self, loop, step):
        self.loops, self.at = 0, (loop, step)

    def on_train_begin(self, *args, **kwargs):
        self.loops += 1

    def on_step_end(self, args, state, control, **kwargs):
        if (self.loops, state.global_step) == self.at:
            raise KeyboardInterrupt


@pytest.mark.once
@pytest.mark.report
def test_train_again_after_an_interruption_ends_the_run(tmp_path):
    """The report is written, and nothing stays that was kept for resuming."""
    trainer = make_trainer(tmp_path, pruning(distill_weight=0.5), callbacks=[Stop(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert list(tmp_path.glob("_*"))
    assert trainer.train().global_step == 6
    assert (tmp_path / "report.html").exists()
    assert not list(tmp_path.glob("_*"))
    before = (tmp_path / "report.html").stat().st_mtime_ns
    trainer.train()  # ordinary training of a pruned model
    assert (tmp_path / "report.html").stat().st_mtime_ns == before


@pytest.mark.once
def test_train_again_after_an_interruption_of_the_dense_epochs_says_so(tmp_path, caplog):
    trainer = make_trainer(tmp_path, pruning(dense_epochs=1), callbacks=[Stop(1, 2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "stopped before its first cut" not in caplog.text
    trainer.train()
    assert "stopped before its first cut; this one begins with the dense epochs again, from the weights" in caplog.text
    caplog.clear()
    other = make_trainer(tmp_path / "other", pruning(dense_epochs=1))
    other.train(resume_from_checkpoint=True)
    assert "no checkpoint to resume from" in caplog.text and "with the weights that the model has now" in caplog.text


# --- what editors show ----------------------------------------------------------------------------------------------


def test_a_model_that_writes_is_measured_by_what_it_writes(tmp_path):
    """Also in the evaluations while it trains."""
    rows = [{"input_ids": [3 + n, 4 + n, 5], "labels": [5 + n, 1]} for n in range(5)]
    seen = []

    def measure(prediction):
        seen.append(prediction.predictions)
        return {"written": float(prediction.predictions.shape[1])}

    trainer = CamCutSeq2SeqTrainer(
        model=tiny_model("t5", "Seq2SeqLM", **CONFIGS["t5"]),
        args=Seq2SeqTrainingArguments(
            **{**arguments(tmp_path).to_dict(), "eval_strategy": "epoch", "per_device_eval_batch_size": 2},
            predict_with_generate=True,
            generation_max_length=7,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        compute_metrics=measure,
        pruning_config=pruning(num_samples=5),
    )
    trainer.train()
    assert trainer.pruning_plan is not None and len(seen[0]) == 5 and not seen[0][:, 7:].any()  # but padding
    assert set(seen[0].flatten()) <= {-100, *range(VOCABULARY)}, seen


def test_the_signature_has_the_arguments_of_trainer():
    own, theirs = (inspect.signature(each).parameters for each in (CamCutTrainer, Trainer))
    assert list(own) == [*theirs, "pruning_config"]
    assert set(TrainerKeywords.__annotations__) == set(theirs)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tokenizr'"):
        CamCutTrainer(tiny_model("bert"), tokenizr=None)
