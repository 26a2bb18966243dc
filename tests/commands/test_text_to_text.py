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
"""Summaries and translations: what the model writes is measured, before and after it is pruned."""

import json
import sys
import textwrap

import pytest
import torch
import transformers
from accelerate import Accelerator
from command_line import flags, main
from datasets import Dataset
from models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSeq2SeqLM,
    EvalPrediction,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
)
from types_of_models import CONFIGS
from workers import run_together

from optimum_camcut import load_pruned
from optimum_camcut.tasks import TASKS
from optimum_camcut.tasks.text_metrics import chrf, rouge


SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = "one two three four five six eins zwei drei vier sechs summarize : translate".split()
QUICK = {"num_samples": 8, "repeats": 1, "sparsity": 0.3, "batch_size": 4, "latency_batch_size": 2, "max_length": 16}
QUICK["sequence_length"] = 8


def words(number, count):
    return " ".join(WORDS[(number * 5 + place * (number % 3 + 1)) % 11] for place in range(count))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folders of a tiny T5 and of a tiny BART, with a tokenizer of whole words."""
    folders = {}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    names["model_input_names"] = ["input_ids", "attention_mask"]
    for name in ("t5", "bart"):
        folders[name] = tmp_path_factory.mktemp(name)
        prefixes = {"summarization": {"prefix": "summarize : "}, "translation_en_to_de": {"prefix": "translate : "}}
        changes = {"task_specific_params": prefixes} if name == "t5" else {}
        tiny_model(name, "Seq2SeqLM", **CONFIGS[name], **changes).save_pretrained(folders[name])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folders[name])
    return folders


def write(folder, rows):
    folder.mkdir()
    for split in ("train", "validation"):
        Dataset.from_list(rows).to_json(str(folder / f"{split}.json"))
    return folder


def summarized(number):
    return {"document": words(number, 6), "summary": words(number, 2)}


def translated(number):
    return {"translation": {"en": words(number, 3), "de": words(number + 1, 3)}}


def written(folder, texts, length):
    """One by one, as a user would."""
    model, tokenizer = load_pruned(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    found = []
    for text in texts:
        tokens = model.generate(**tokenizer(text, return_tensors="pt"), max_length=length, do_sample=False)
        found.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return found


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_summaries_of_what_was_pruned_are_measured(kind, checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [summarized(number) for number in range(8)]
    (tmp_path / "run.yaml").write_text("training:\n  generation_max_length: 6\n")
    job = {"model": checkpoint[kind], "dataset": write(tmp_path / "data", rows), "task": "summarization", **QUICK}
    main("prune", *flags(**job, config=tmp_path / "run.yaml", output=tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "pruning_results.json").read_text())
    prefix = "summarize : " if kind == "t5" else ""
    assert ("every text gets 'summarize : ' before it" in caplog.text) == bool(prefix)
    texts = written(tmp_path / "out", [prefix + row["document"] for row in rows], 6)
    expected = rouge(texts, [row["summary"] for row in rows])
    assert {name: results["pruned"]["metrics"][name] for name in expected} == pytest.approx(expected)
    assert results["pruned"]["parameters"] < results["dense"]["parameters"]


def test_translations_are_learned_again(checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [translated(number % 4) for number in range(16)]
    job = {"model": checkpoint["t5"], "dataset": write(tmp_path / "data", rows), "task": "translation", **QUICK}
    training = {"dense_epochs": 5, "recovery": "finetune", "epochs": 10, "learning_rate": 1e-2}
    training["config"] = tmp_path / "run.yaml"
    (tmp_path / "run.yaml").write_text("training:\n  generation_max_length: 6\n")
    main("prune", *flags(**job, **training, output=tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "pruning_results.json").read_text())["pruned"]["metrics"]
    assert "translating en into de" in caplog.text and "every text gets 'translate : '" in caplog.text
    assert list(metrics) == ["chrf", "loss"] and metrics["chrf"] > 0.9
    texts = written(tmp_path / "out", ["translate : " + row["translation"]["en"] for row in rows[:4]], 16)
    assert chrf(texts, [row["translation"]["de"] for row in rows[:4]])["chrf"] > 0.9


def test_models_that_write_are_compared(checkpoint, tmp_path):
    rows = [{"source": words(number, 3), "target": words(number + 1, 3)} for number in range(4)]
    (tmp_path / "run.yaml").write_text("training:\n  generation_max_length: 6\n")
    data, output = write(tmp_path / "data", rows), tmp_path / "out"
    job = {"model": checkpoint["bart"], "dataset": data, "task": "translation", **QUICK, "sparsities": 0.5}
    job |= {"methods": "magnitude", "config": tmp_path / "run.yaml", "output": output}
    del job["sparsity"]
    main("compare", *flags(**job))
    found = json.loads((output / "comparison.json").read_text())
    assert found["settings"]["metric"] == "chrf" and all(0 <= row["quality"] <= 1 for row in found["rows"])


@pytest.mark.parametrize(
    "task, row, message",
    [
        ("translation", {"translation": "one"}, "'translation' should have pairs of texts by language; or name two"),
        ("translation", {"translation": {"en": "a", "de": "b", "fr": "c"}}, "should have texts in two languages"),
        ("translation", {"translation": {"en": "one", "de": None}}, "column 'de', should have text"),
        ("summarization", {"document": "one", "summary": None}, "column 'summary', should have text"),
    ],
)
def test_what_is_no_pair_of_texts_is_refused(task, row, message, checkpoint, tmp_path):
    whole = {"translation": {"en": "one", "de": "two"}, "document": "one", "summary": "two"}
    rows = [row, {name: whole[name] for name in row}] if "None" in str(row) else [row]
    data = write(tmp_path / "data", rows)
    with pytest.raises(SystemExit, match=message):
        main("prune", *flags(model=checkpoint["t5"], dataset=data, task=task, output=tmp_path / "out", **QUICK))


def test_what_is_generated_cannot_be_left_out(checkpoint, tmp_path):
    (tmp_path / "run.yaml").write_text("training:\n  predict_with_generate: false\n")
    data = write(tmp_path / "data", [summarized(number) for number in range(8)])
    job = {"model": checkpoint["t5"], "dataset": data, "task": "summarization", **QUICK, "output": tmp_path / "out"}
    with pytest.raises(SystemExit, match="unknown settings predict_with_generate; it takes those of Seq2SeqTraining"):
        main("prune", *flags(**job, config=tmp_path / "run.yaml"))


def test_what_is_written_is_measured_against_the_texts_of_the_data(checkpoint, caplog):
    """Not against what a tokenizer leaves of them."""
    rows = Dataset.from_list([summarized(0), {"document": "one", "summary": "one strange two three four"}])
    task, tokenizer = TASKS["summarization"](rows), PreTrainedTokenizerFast.from_pretrained(checkpoint["bart"])
    task.target_length = 4
    task.fit_to(AutoModelForSeq2SeqLM.from_pretrained(checkpoint["bart"]), tokenizer, None)
    encoded = task.prepare(rows)
    assert "1 of 2 texts to write are cut to 4 tokens" in caplog.text and "cut" not in encoded.column_names
    assert tokenizer.convert_ids_to_tokens(encoded[1]["labels"]) == ["one", "<unk>", "two", "</s>"]
    texts = [rows[0]["summary"], "one two"]
    ids = tokenizer(texts, padding=True, return_tensors="np")["input_ids"]
    found = task.metrics(EvalPrediction(ids, ids), encoded, rows)
    assert found == rouge(texts, rows["summary"]) and found["rougeL"] < 1
    assert list(task.measure_constants(EvalPrediction(ids, ids), encoded, rows)) == [found]  # the first for both
    assert task.metrics(EvalPrediction(ids[:1], ids[:1]), encoded.select([0]), rows)["rougeL"] == 1
    with pytest.raises(ValueError, match="2 rows were predicted of 1"):
        task.metrics(EvalPrediction(ids, ids), encoded.select([0]), rows)


def told_languages(kind, names, two_columns=False, **saved):
    """The tokens of a text to read and of one to write, and how a model then starts to write."""
    pair = {names[0]: "one", names[1]: "eins"}
    rows = Dataset.from_list([pair if two_columns else {"translation": pair}])
    if kind == "mbart":
        vocabulary = [*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), ("▁one", -1.0), ("▁eins", -1.0)]
        tokenizer = MBartTokenizer(vocab=vocabulary)
    else:
        tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", "one", "eins"]
        tokenizer = NllbTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], **saved)
    changes = {"vocab_size": len(tokenizer), "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
    name = "mbart" if kind == "mbart" else "m2m_100"
    model = tiny_model(name, "Seq2SeqLM", **{**CONFIGS[name], **changes, "decoder_start_token_id": 2})
    task = TASKS["translation"](rows, *([names[:1], names[1]] if two_columns else []))
    task.fit_to(model, tokenizer, None)
    encoded = task.prepare(rows)[0]
    tokens = [tokenizer.convert_ids_to_tokens(encoded[each]) for each in ("input_ids", "labels")]
    wrote = model.generate(torch.tensor([encoded["input_ids"]]), max_length=4, do_sample=False)[0]
    return *tokens, tokenizer.convert_ids_to_tokens(wrote.tolist())


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 makes such tokenizers of files")
def test_texts_and_what_is_written_are_marked_by_their_languages(caplog):
    caplog.set_level("INFO")
    read, labels, wrote = told_languages("mbart", ("en", "de"))
    assert read == ["▁one", "</s>", "en_XX"] and labels == ["▁eins", "</s>", "de_DE"]
    assert wrote[0] == "de_DE"  # the last token of labels comes first where the decoder reads them
    assert caplog.text.count("texts to read are marked as en_XX, those to write as de_DE") == 1
    for names in (("eng", "deu"), ("eng_Latn", "deu_Latn")):
        read, labels, wrote = told_languages("nllb", names)
        assert (read[0], labels[0], labels[-1]) == ("eng_Latn", "deu_Latn", "</s>")
        assert wrote[:2] == ["</s>", "deu_Latn"]
    columns = [told_languages("nllb", ("eng", "deu_latn"), two_columns=True)]
    saved = {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"}
    columns.append(told_languages("nllb", ("source", "target"), two_columns=True, **saved))
    assert columns == 2 * [(read, labels, wrote)]
    with pytest.raises(ValueError, match="and has none for 'source'"):
        told_languages("nllb", ("source", "target"), two_columns=True)
    with pytest.raises(ValueError, match="and has none for 'de'; call the texts in the data as it calls"):
        told_languages("nllb", ("eng", "de"))
    with pytest.raises(ValueError, match="has several codes for 'zho': zho_Hans, zho_Hant"):
        told_languages("nllb", ("eng", "zho"))


MEASURED = """
    import os, sys
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainingArguments
    from optimum_camcut import PruningConfig
    from optimum_camcut.tasks.generation import padded
    from optimum_camcut.training.seq2seq import CamCutSeq2SeqTrainer, WholeSeq2SeqTrainer

    output, folder = sys.argv[1:]
    measured, rows = [], [{"input_ids": [number, 2], "labels": [number, 2]} for number in range(4, 9)]
    options = {"predict_with_generate": True, "generation_max_length": 3, "per_device_eval_batch_size": 2}
    pieces = {
        "model": AutoModelForSeq2SeqLM.from_pretrained(folder),
        "args": Seq2SeqTrainingArguments(output, report_to="none", disable_tqdm=True, **options),
        "data_collator": lambda rows: {name: padded([row[name] for row in rows]) for name in rows[0]},
        "eval_dataset": Dataset.from_list(rows),
        "compute_metrics": lambda each: measured.append(each.label_ids[:, 0].tolist()) or {},
    }
    for trainer in (WholeSeq2SeqTrainer(**pieces),
                    CamCutSeq2SeqTrainer(**pieces, pruning_config=PruningConfig(sparsity=0.5))):
        trainer.evaluate()
        predicted = trainer.predict(pieces["eval_dataset"])
        measured.append([len(predicted.label_ids), len(predicted.predictions)])
    torch.save(measured, f"{output}/{os.environ.get('RANK', 0)}.pt")
"""
ONCE = 2 * [[4, 5, 6, 7, 8], [4, 5, 6, 7, 8], [5, 5]]  # predict measures, too


@pytest.mark.long
def test_several_processes_measure_every_row_once(checkpoint, tmp_path):
    """And not what fills the last batch."""
    for measured in run_together(2, MEASURED, tmp_path, str(checkpoint["bart"])):
        assert measured == ONCE


def test_rows_that_fill_a_batch_are_not_gathered(checkpoint, tmp_path, monkeypatch):
    """The same where it does not take two processes."""
    gathered, gather = [], Accelerator.gather_for_metrics
    monkeypatch.setattr(
        Accelerator, "gather_for_metrics", lambda *args, **options: gathered.append(1) or gather(*args, **options)
    )
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), str(checkpoint["bart"])])
    exec(textwrap.dedent(MEASURED), {})
    assert torch.load(tmp_path / "0.pt") == ONCE
    assert len(gathered) >= 2 * 2 * 3 * 3  # trainers, evaluations, batches; losses, what was written and labels
