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
"""A trainer whose model loses tokens: its data keep theirs, and nothing trains on the wrong ones."""

import copy
import json

import numpy as np
import pytest
import torch
from command_line import flags, main
from datasets import Dataset
from models import tiny_model
from test_models import batch_of, logits_of, model_for
from tiny_tokenizers import AROUND, TEXTS, tiny_tokenizer
from trainers import Interrupt, arguments, same, weights
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    pipeline,
    set_seed,
)
from workers import run_together

from optimum_camcut import CamCutSeq2SeqTrainer, CamCutTrainer, PruningConfig, load_pruned


SEEN, OTHERS = TEXTS[::5], TEXTS[1::3]


def rows(tokenizer, texts):
    encoded = tokenizer(texts)
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return Dataset.from_dict({**columns, "labels": [number % 3 for number in range(len(texts))]})


def make(folder, tokenizer, model=None, config=None, **changes):
    keywords = {
        name: changes.pop(name) for name in ("data_collator", "callbacks", "compute_metrics") if name in changes
    }
    return CamCutTrainer(
        model or model_for("classifier", tokenizer),
        arguments(folder, **{"max_steps": 4, **changes}),
        train_dataset=rows(tokenizer, SEEN),
        eval_dataset=rows(tokenizer, OTHERS),
        processing_class=tokenizer,
        pruning_config=config or PruningConfig(granularity="vocabulary", min_frequency=1),
        **keywords,
    )


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_trains_as_on_data_of_the_trimmed_tokenizer(tmp_path, kind):
    """The same weights, bit for bit, as when the cut model is trained on text that was tokenized anew."""
    tokenizer = tiny_tokenizer(kind)
    size = len(tokenizer)
    trainer = make(tmp_path / "one", tokenizer)
    plan = trainer.prune()
    trimmed = trainer.processing_class
    assert len(tokenizer) == size > len(trimmed) == len(plan.keep["vocabulary"]) == trainer.model.config.vocab_size
    plain = Trainer(
        copy.deepcopy(trainer.model),
        arguments(tmp_path / "two", max_steps=4),
        train_dataset=rows(trimmed, SEEN),
        processing_class=trimmed,
    )
    for each in (trainer, plain):
        set_seed(5)
        each.train()
    assert same(weights(trainer.model), weights(plain.model))
    trainer.save_model(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert loaded.get_vocab() == trimmed.get_vocab()
    batch = batch_of(loaded, OTHERS)
    assert torch.allclose(logits_of(model, batch), logits_of(trainer.model.eval(), batch), atol=1e-6)
    card = (tmp_path / "saved/README.md").read_text()
    assert "Tokens were scored with `frequency`" in card and "Its tokenizer has lost the same tokens" in card
    assert f"| tokens of the vocabulary | {size} | {len(trimmed)} |" in card
    assert (tmp_path / "one/report.html").exists() is False  # which the run writes that cuts and trains in one
    if kind == "wordpiece":
        answer = pipeline("text-classification", model=str(tmp_path / "saved"))(OTHERS[0])[0]
        assert answer["score"] == pytest.approx(float(logits_of(model, batch)[0].softmax(0).max()), abs=1e-5)


def exact(trainer):
    """One that evaluates the model on text that the trimmed tokenizer has read."""
    tokenizer = trainer.processing_class
    data = rows(tokenizer, OTHERS)
    return Trainer(trainer.model, trainer.args, eval_dataset=data, processing_class=tokenizer)


@pytest.mark.report
def test_evaluates_text_with_tokens_that_are_gone(tmp_path):
    """As the trimmed tokenizer writes it, whatever the collator does with lengths."""
    tokenizer = tiny_tokenizer("wordpiece")
    trainer = make(tmp_path, tokenizer)
    trainer.train()
    other = exact(trainer)
    expected = other.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)
    predicted = trainer.predict(rows(tokenizer, OTHERS)).predictions  # any data with the numbers it was given
    assert predicted == pytest.approx(other.predict(other.eval_dataset).predictions, abs=1e-5)
    assert (tmp_path / "report.html").exists()


def test_a_collator_for_one_length_gets_examples_as_they_are(tmp_path, caplog):
    tokenizer = tiny_tokenizer("wordpiece")

    def stack(examples):
        return {name: torch.tensor([each[name] for each in examples]) for name in examples[0]}

    trainer = make(tmp_path, tokenizer, data_collator=stack)
    padded, size = tokenizer(SEEN + OTHERS, padding=True), len(SEEN)
    columns = {name: padded[name] for name in ("input_ids", "attention_mask")}
    whole = Dataset.from_dict({**columns, "labels": [0] * len(SEEN + OTHERS)})
    trainer.train_dataset, trainer.eval_dataset = whole.select(range(size)), whole.select(range(size, len(whole)))
    trainer.prune()
    trainer.evaluate()
    assert "tokens that are gone, each as the longest token left that it begins with" in caplog.text


def test_resumed(tmp_path):
    tokenizer = tiny_tokenizer("byte_bpe")
    config = PruningConfig(
        granularity=["heads", "neurons", "vocabulary"],
        method="taylor",
        sparsity=0.3,
        num_samples=16,
        distill_weight=0.5,
    )
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path / "whole", tokenizer, config=config, **saving)
    whole.train()
    killed = make(tmp_path / "killed", tokenizer, config=config, callbacks=[Interrupt(1, 3)], **saving)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make(tmp_path / "killed", tokenizer, config=config, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.processing_class.get_vocab() == whole.processing_class.get_vocab()
    assert resumed.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
    assert resumed.dense_model.config.vocab_size == resumed.model.config.vocab_size < len(tokenizer)
    assert not load_pruned(tmp_path / "killed/checkpoint-4").pruning_plan.cut_before


def test_rebuilt_and_rewound(tmp_path):
    tokenizer = tiny_tokenizer("wordpiece")
    kinds = ["heads", "neurons", "vocabulary"]
    common = {"granularity": kinds, "method": "taylor", "sparsity": 0.3, "num_samples": 25}
    rebuilt = make(tmp_path / "a", tokenizer, config=PruningConfig(**common, recovery="reconstruct"))
    rebuilt.train()
    cut = make(tmp_path / "b", tokenizer, config=PruningConfig(**common, recovery="none"))
    cut.train()
    batch = batch_of(rebuilt.processing_class, SEEN)
    dense = logits_of(rebuilt.dense_model.eval(), batch)
    apart = [(logits_of(each.model.eval(), batch) - dense).norm() for each in (rebuilt, cut)]
    assert apart[0] < apart[1]
    rewound = make(
        tmp_path / "c", tokenizer, config=PruningConfig(**common, rewind=True, dense_epochs=1, distill_weight=0.5)
    )
    rewound.train()
    assert rewound.dense_model.config.vocab_size == rewound.model.config.vocab_size


def test_cut_once_more(tmp_path):
    """Data keep the numbers that they had at first."""
    tokenizer = tiny_tokenizer("wordpiece")
    trainer = make(tmp_path, tokenizer, config=PruningConfig(granularity="vocabulary", sparsity=0.3))
    trainer.prune()
    first = trainer.model.config.vocab_size
    trainer.train_dataset = trainer.train_dataset.select(range(8))
    trainer.prune()
    assert trainer.model.config.vocab_size < first
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(exact(trainer).evaluate()["eval_loss"], abs=1e-6)


def test_masked_words_are_counted_before_they_are_masked(tmp_path):
    """Random words that a collator puts in are no part of the text."""
    tokenizer = tiny_tokenizer("wordpiece")
    texts = Dataset.from_dict({"input_ids": tokenizer(SEEN)["input_ids"]})
    trainer = CamCutTrainer(
        model_for("bias", tokenizer),
        arguments(tmp_path, max_steps=2),
        train_dataset=texts,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.9),
        processing_class=tokenizer,
        pruning_config=PruningConfig(granularity="vocabulary", min_frequency=1),
    )
    scores = trainer.score()["vocabulary"]
    seen = np.concatenate(texts["input_ids"])
    assert torch.equal(scores, torch.from_numpy(np.bincount(seen, minlength=len(tokenizer))).float())
    trainer.train()
    assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_what_is_written_is_told_by_the_numbers_of_the_data(tmp_path):
    tokenizer = tiny_tokenizer("unigram")
    model = model_for("logits_bias", tokenizer)
    data = Dataset.from_dict(
        {"input_ids": tokenizer(SEEN)["input_ids"], "labels": tokenizer(TEXTS[1::5])["input_ids"]}
    )
    told = {}

    def read(prediction):
        told["labels"] = [
            tokenizer.decode([n for n in ids if n >= 0], skip_special_tokens=True) for ids in prediction.label_ids
        ]
        told["written"] = [[n for n in ids if n >= 0] for ids in prediction.predictions.tolist()]
        return {}

    trainer = CamCutSeq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            str(tmp_path),
            use_cpu=True,
            max_steps=1,
            report_to="none",
            save_strategy="no",
            predict_with_generate=True,
            generation_max_length=9,
        ),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=read,
        pruning_config=PruningConfig(granularity="vocabulary", min_frequency=1),
    )
    trainer.train()
    trainer.evaluate()
    kept = set(trainer.pruning_plan.keep["vocabulary"])
    assert told["labels"] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in data["labels"]]
    assert all(set(ids) <= kept for ids in told["written"])
    batch = dict(trainer.processing_class(SEEN, padding=True, return_tensors="pt", return_token_type_ids=False))
    written = trainer.model.eval().generate(**batch, max_length=9)
    keep = list(trainer.pruning_plan.keep["vocabulary"])
    assert [[keep[n] for n in ids] for ids in written.tolist()] == [ids[: written.shape[1]] for ids in told["written"]]


def test_sizes_that_are_the_same_by_chance(tmp_path):
    """As many tokens are left as there are positions."""
    tokenizer = tiny_tokenizer("wordpiece")
    plan = make(tmp_path / "a", tokenizer).prune()
    left = len(plan.keep["vocabulary"])
    trainer = make(tmp_path / "b", tokenizer, model_for("classifier", tokenizer, max_position_embeddings=left))
    assert (
        trainer.prune().keep == plan.keep and len(trainer.processing_class) == trainer.model.config.vocab_size == left
    )


def test_labels_of_classes_are_not_counted(tmp_path):
    """Whatever they are: a collator gives them their numbers."""
    tokenizer = tiny_tokenizer("wordpiece")
    trainer = make(tmp_path, tokenizer)
    counts = trainer.score()
    named = [{**row, "labels": "yes"} for row in trainer.train_dataset]
    trainer.train_dataset = named
    assert torch.equal(trainer.score()["vocabulary"], counts["vocabulary"])


def test_data_tokenized_again(tmp_path):
    tokenizer, given = tiny_tokenizer("wordpiece"), []

    class Again(CamCutTrainer):
        def tokenize_again(self, before, after):
            given.append((before, after))
            self.train_dataset, self.eval_dataset = rows(after, SEEN), rows(after, OTHERS)
            self.data_collator = DataCollatorWithPadding(after)
            return True

    trainer = Again(
        model_for("classifier", tokenizer),
        arguments(tmp_path, max_steps=2, dataloader_num_workers=1, dataloader_persistent_workers=True),
        train_dataset=rows(tokenizer, SEEN),
        eval_dataset=rows(tokenizer, OTHERS),
        processing_class=tokenizer,
        pruning_config=PruningConfig(granularity="vocabulary", min_frequency=1),
    )
    trainer.evaluate()  # by workers that stay
    trainer.train()
    other = make(tmp_path, tokenizer, max_steps=2)
    other.train()
    assert given == [(tokenizer, trainer.processing_class)]
    assert same(weights(trainer.model), weights(other.model))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(other.evaluate()["eval_loss"], abs=1e-6)


def test_tokens_that_are_gone_are_told_of_all_processes(tmp_path):
    code = """
    import logging, sys
    from pathlib import Path
    import torch
    from workers import make_trainer, rank
    from optimum_camcut.training.tokens import tell_gone
    told = []
    logging.getLogger("optimum_camcut.training.tokens").addFilter(lambda record: told.append(record.getMessage()))
    trainer = make_trainer(Path(sys.argv[1]) / "run", dense_epochs=0)
    trainer.run.gone = torch.tensor(3 + rank())
    tell_gone(trainer, "evaluation")
    torch.save(told, Path(sys.argv[1]) / f"{rank()}.pt")
    """
    (told,), nothing = run_together(2, code, tmp_path)
    assert told.startswith("evaluation read 7 tokens that are gone") and nothing == []


def test_what_cannot_be_done_is_said_before_anything_is_trained(tmp_path):
    tokenizer, most = tiny_tokenizer("byte_bpe"), PruningConfig(granularity="vocabulary", sparsity=0.9, dense_epochs=1)
    begun = []

    class Begins(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            begun.append(args)

    with pytest.raises(ValueError, match="the highest possible sparsity here is 0.3167"):
        make(tmp_path, tokenizer, config=most, callbacks=[Begins()]).train()
    model = model_for("logits_bias", tokenizer)
    model.generation_config.forced_decoder_ids = [[1, 9]]
    with pytest.raises(ValueError, match="forced_decoder_ids of the generation config"):
        fewer = PruningConfig(granularity="vocabulary", min_frequency=1, dense_epochs=1)
        make(tmp_path, tokenizer, model, config=fewer, callbacks=[Begins()]).train()

    class OfItself(type(tokenizer)):
        def get_vocab(self):
            return {**super().get_vocab(), "<always 299>": 299}

    of_itself = OfItself(tokenizer_object=tokenizer.backend_tokenizer, **AROUND)
    with pytest.raises(ValueError, match="OfItself numbers its tokens by itself"):
        make(tmp_path, of_itself, model_for("classifier", tokenizer), callbacks=[Begins()]).train()
    assert not begun


def test_a_tokenizer_is_needed(tmp_path):
    tokenizer, config = tiny_tokenizer("wordpiece"), PruningConfig(granularity="vocabulary", min_frequency=1)
    with pytest.raises(ValueError, match="processing_class=tokenizer"):
        CamCutTrainer(
            tiny_model("bert"), arguments(tmp_path), train_dataset=rows(tokenizer, SEEN), pruning_config=config
        )


def test_the_command(tmp_path, capsys):
    tokenizer = tiny_tokenizer("wordpiece")
    model_for("classifier", tokenizer).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    for name, texts in (("train", SEEN), ("validation", OTHERS)):
        lines = [json.dumps({"text": text, "label": number % 3}) for number, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    common = {
        "model": tmp_path / "dense",
        "train_file": tmp_path / "train.jsonl",
        "validation_file": tmp_path / "validation.jsonl",
        "task": "text-classification",
        "granularity": "vocabulary",
        "min_frequency": 1,
        "repeats": 1,
        "sequence_length": 16,
    }
    main("prune", *flags(**common, output=tmp_path / "out", dry_run=True))
    planned = capsys.readouterr().out
    main("prune", *flags(**common, output=tmp_path / "out"))
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/pruning_results.json").read_text())
    trimmed = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    counts = [(len(each), sum(map(len, each(OTHERS)["input_ids"]))) for each in (tokenizer, trimmed)]
    assert [(results[n]["vocabulary"], results[n]["tokens"]) for n in ("dense", "pruned")] == counts
    assert counts[0][0] > counts[1][0] == model.config.vocab_size and counts[0][1] < counts[1][1]
    assert f"{counts[1][0]} / {counts[0][0]}" in planned and f"{counts[1][0]} / {counts[0][0]}" in printed
    row = next(line for line in printed.splitlines() if line.startswith("tokens of the evaluation text"))
    assert row.split()[-3:-1] == [str(counts[0][1]), str(counts[1][1])]
    with torch.no_grad():
        batch = batch_of(trimmed, OTHERS)
        loss = model.eval()(**batch, labels=torch.arange(len(OTHERS)) % 3).loss
    assert results["pruned"]["metrics"]["loss"] == pytest.approx(float(loss), abs=1e-4)
    main(
        "score",
        *flags(
            **{n: v for n, v in common.items() if n not in ("min_frequency", "repeats")},
            output=tmp_path / "scores",
        ),
    )
    main("prune", *flags(**common, output=tmp_path / "again", scores=tmp_path / "scores"))
    assert AutoTokenizer.from_pretrained(tmp_path / "again").get_vocab() == trimmed.get_vocab()
