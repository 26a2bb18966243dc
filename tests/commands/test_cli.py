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
"""`optimum-cli camcut`: installed as users install it, in real processes; and, in this one, on every kind of task."""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers
from command_line import flags, main
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from environments import make_environment
from marks import few
from models import random_plan, tiny_config, tiny_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction

from optimum_camcut import CamCutTrainer, Comparison, PruningPlan, apply_plan, find_groups, load_pruned, measure
from optimum_camcut.commands.compare import CompareCommand
from optimum_camcut.commands.job import training_arguments
from optimum_camcut.commands.options import options_of, pruning_options
from optimum_camcut.commands.results import measured_length
from optimum_camcut.commands.saved_scores import Origin, SavedScores, identify, scores_table
from optimum_camcut.commands.settings import read_settings
from optimum_camcut.config import PruningConfig
from optimum_camcut.planning.measure import count_bytes, count_parameters, peak_memory
from optimum_camcut.tasks import TASKS
from optimum_camcut.tasks import data as data_module
from optimum_camcut.tasks.data import load_data
from optimum_camcut.tasks.metrics import classification_metrics, larger_is_better, regression_metrics
from optimum_camcut.utils.errors import ScoringError


REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = "what is the first city of name year in on who where when many long a".split()
QUICK = {
    "num_samples": 12,
    "smooth_samples": 2,
    "repeats": 1,
    "sequence_length": 16,
    "max_length": 24,
    "sparsity": 0.5,
}
QUICK |= {"batch_size": 8, "latency_batch_size": 2}
SIZES = ("sequence_length", "latency_batch_size")


def sentence(number, length=6):
    return " ".join(WORDS[(number * 7 + place * (number % 3 + 1)) % len(WORDS)] for place in range(length))


def classified(number):
    return {"sentence": sentence(number, 4 + number % 4), "label": number % 2, "idx": number}


def write(folder, rows, kind="parquet", features=None):
    """The same rows to train and to evaluate on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        data = Dataset.from_list(rows, features=features)
        {"parquet": data.to_parquet, "csv": data.to_csv, "json": data.to_json}[kind](str(folder / f"{split}.{kind}"))
    return folder


@pytest.fixture(autouse=True)
def own_verbosity():
    before = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "words", [classified(number) for number in range(20)])


@pytest.fixture(scope="session")
def classifier(model_path, tmp_path_factory):
    """The tiny BERT with a head for two classes."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path).save_pretrained(folder)
    return folder


def scoring_flags(job):
    """Those of a job that all commands with data take."""
    return {
        name: value for name, value in job.items() if name not in ("repeats", "sparsity", "smooth_samples") + SIZES
    }


@pytest.fixture
def job(classifier, data):
    """Flags of a job that takes little time."""
    return {"model": classifier, "dataset": data, "task": "text-classification", **QUICK}


# --- installed ------------------------------------------------------------------------------------------------------


def clean():
    """Without what would find the package in the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean(), timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of what is packed: building writes beside it."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(REPOSITORY / "optimum_camcut", folder / "optimum_camcut", ignore=shutil.ignore_patterns("__pyc*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="session")
def from_wheel(source, tmp_path_factory):
    """The Python of an environment with a wheel of this package."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    python = make_environment(tmp_path_factory.mktemp("from_wheel"))
    pip("--python", python, "install", "--no-deps", "--no-index", *folder.glob("*.whl"))
    return python


@pytest.fixture(scope="session")
def from_source(source, tmp_path_factory):
    """That of an environment with an editable install."""
    python = make_environment(tmp_path_factory.mktemp("from_source"))
    pip("--python", python, "install", "--no-deps", "--no-index", "--no-build-isolation", "-e", source)
    return python


def run(python, *arguments, expected=0):
    """The standard output and the standard error of a process, away from the repository."""
    command, where = [str(python), *map(str, arguments)], python.parent
    done = subprocess.run(command, capture_output=True, text=True, env=clean(), cwd=where, timeout=300)
    assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, done.stderr


def optimum_cli(python, *arguments, expected=0):
    script = Path(sysconfig.get_path("scripts")) / "optimum-cli"  # not there if optimum is of another environment
    command = [script] if script.exists() else ["-m", "optimum.commands.optimum_cli"]
    return run(python, *command, *arguments, expected=expected)


@pytest.mark.parametrize("install", ["from_wheel", "from_source"])
def test_optimum_cli_shows_it(install, request):
    python = request.getfixturevalue(install)
    assert "camcut" in optimum_cli(python, "--help")[0]
    listed = optimum_cli(python, "camcut", "--help")[0]
    assert all(name in listed for name in ("score", "prune", "report", "benchmark", "compare"))


def test_the_wheel_leaves_the_namespace_to_all(from_wheel):
    """A file `__init__.py` in any of these folders would hide what others put there."""
    code = "import optimum.commands.register as r, optimum_camcut as p; print(*r.__path__, p.__file__)"
    register, package = map(Path, run(from_wheel, "-c", code)[0].split())
    assert [path.name for path in register.glob("*.py")] == ["register_camcut.py"]
    assert register.parents[2] == package.parents[1]  # of the environment itself
    assert not [name for name in ("", "commands") if (register.parents[1] / name / "__init__.py").exists()]


def test_the_wheel_holds_every_file(from_wheel):
    """Packages are listed by name, so a new one is easily left out."""
    installed = Path(run(from_wheel, "-c", "import optimum_camcut as p; print(p.__path__[0])")[0].strip())

    def files(root):
        found = {str(path.relative_to(root)) for path in root.rglob("*.*") if path.is_file()}
        return {name for name in found if not name.endswith(".pyc") and not name.startswith("commands/register")}

    assert files(installed) == files(REPOSITORY / "optimum_camcut")


def test_the_help_loads_nothing_large(from_wheel):
    """`optimum-cli` imports the command whatever it is asked for."""
    code = """
    import sys
    from optimum.commands.optimum_cli import main
    for arguments in ([], ["camcut"], ["camcut", "prune"]):
        sys.argv = ["optimum-cli", *arguments, "--help"]
        try:
            main()
        except SystemExit as end:
            assert not end.code
    heavy = {"torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "huggingface_hub", "yaml"}
    print(sorted(heavy & set(sys.modules)), "optimum_camcut" in sys.modules)
    """
    code = re.sub("^    ", "", code, flags=re.MULTILINE)
    assert run(from_wheel, "-c", code)[0].splitlines()[-1] == "[] True"


def test_the_whole_job(from_wheel, job, tmp_path):
    """In a process of its own: a table at the end, and a checkpoint with its tokenizer that loads."""
    output = tmp_path / "pruned"
    printed, _ = optimum_cli(from_wheel, "camcut", "prune", *flags(**job, output=output))
    model, dense = load_pruned(output), AutoModelForSequenceClassification.from_pretrained(job["model"])
    dense_tokenizer = AutoTokenizer.from_pretrained(job["model"])
    assert AutoTokenizer.from_pretrained(output)("what is")["input_ids"] == dense_tokenizer("what is")["input_ids"]
    assert str(model.pruning_plan) in printed
    results = json.loads((output / "pruning_results.json").read_text())
    for name, each in (("dense", dense), ("pruned", model)):
        assert results[name]["parameters"] == count_parameters(each)
        assert results[name]["latency"]["median"] > 0 and 0 <= results[name]["metrics"]["accuracy"] <= 1
    assert results["dense"]["bytes"] == count_bytes(dense)
    assert results["pruned"]["bytes"] == (output / "model.safetensors").stat().st_size
    assert [re.split(r"  +", line)[0] for line in printed.partition("pruned/dense\n")[2].splitlines()[1:]] == [
        "parameters (M)",
        "FLOPs, 1 x 16 tokens (G)",
        "latency, 2 x 16 tokens (ms)",
        "weights on disk (MB)",
        "accuracy",
        "f1",
        "matthews_correlation",
        "loss",
        f"Saved in {output}.",
    ]
    assert PruningConfig.from_pretrained(output).recovery == "reconstruct"  # by default


@pytest.mark.once  # with transformers 4 it is refused
def test_quantized_beside_dense_and_pruned(job, tmp_path, capsys):
    """In 8 bits it is smaller, answers alike and loads."""
    output = tmp_path / "pruned"
    main("prune", *flags(**{**job, "output": output, "quantize": "int8"}))
    results = json.loads((output / "pruning_results.json").read_text())
    folder = output / "int8"
    assert results["quantize"] == "int8"
    assert results["quantized"]["bytes"] == (folder / "model.safetensors").stat().st_size < results["pruned"]["bytes"]
    assert results["quantized"]["parameters"] == results["pruned"]["parameters"]
    assert results["quantized"]["metrics"]["loss"] == pytest.approx(results["pruned"]["metrics"]["loss"], rel=0.05)
    assert results["quantized"]["metrics"]["loss"] != results["pruned"]["metrics"]["loss"]
    assert "pruned/dense  int8/dense" in capsys.readouterr().out
    cards = [(each / "README.md").read_text() for each in (output, folder)]
    assert ["then quantized by `torchao`, which is needed to load them" in card for card in cards] == [False, True]
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    packed = [p for p in loaded.parameters() if type(p).__module__.startswith("torchao.")]
    assert packed and loaded.pruning_plan == load_pruned(output).pruning_plan
    assert AutoTokenizer.from_pretrained(folder)("what is") == AutoTokenizer.from_pretrained(output)("what is")


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": "int4"}, "packs 4 bits on GPUs alone"),
        ({"quantize": "int8", "dry_run": True}, "leave --quantize out"),
    ],
)
def test_what_cannot_be_quantized_is_told_before_any_work(changes, message, job, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=message):
        main("prune", *flags(**{**job, "output": tmp_path / "pruned", **changes}))
    assert not (tmp_path / "pruned").exists()


@pytest.mark.long  # as test_run_glue.py does with the script that this starts
def test_two_processes_make_the_same_plan(from_wheel, job, tmp_path):
    config = tmp_path / "config.json"
    values = {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}
    config.write_text(json.dumps({**values, "recovery": "finetune", "training": {"max_steps": 1}}))
    main("prune", *flags(config=config, output=tmp_path / "1", recovery="none"))
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command += ["--module", "optimum.commands.optimum_cli", "camcut", "prune"]
    command += flags(config=config, output=tmp_path / "2")
    printed, told = run(from_wheel, *command)
    assert told.count("reading sentence, label of train") == 1  # as are the guesses
    assert printed.count("pruned/dense") == 1  # one table, by the first
    plans = [PruningPlan.load(tmp_path / name) for name in "12"]
    assert plans[0].keep == plans[1].keep and plans[0].config.recovery != plans[1].config.recovery
    one, two = (json.loads((tmp_path / name / "pruning_results.json").read_text()) for name in "12")
    assert one["dense"]["metrics"]["accuracy"] == two["dense"]["metrics"]["accuracy"]


def test_an_error_is_one_line(from_wheel, job):
    """And no traceback."""
    _, shown = optimum_cli(from_wheel, "camcut", "prune", *flags(**job, output=job["dataset"]), expected=1)
    assert shown == (
        f"optimum-cli camcut prune: error: the output folder {job['dataset']} is not empty: choose another, or pass "
        "--overwrite\n"
    )


# --- every task -----------------------------------------------------------------------------------------------------


def answered(number):
    context = sentence(number, 12)
    answer = context.split()[number % 8 + 1]
    start = context.index(f" {answer}") + 1
    return {"question": "what is", "context": context, "answers": {"text": [answer], "answer_start": [start]}}


ELSEWHERE = {"image-classification", "audio-classification", "automatic-speech-recognition"}  # in test_media.py
ELSEWHERE |= {"summarization", "translation"}  # in test_text_to_text.py
ELSEWHERE |= {"feature-extraction"}  # in test_embeddings.py
ROWS = {
    "text-classification": classified,
    "token-classification": lambda n: {"tokens": sentence(n).split(), "ner_tags": [(n + i) % 3 for i in range(6)]},
    "multiple-choice": lambda n: {
        "sent1": sentence(n, 3),
        "sent2": "the city",
        **{f"ending{i}": sentence(n + i, 3) for i in range(3)},
        "label": n % 3,
    },
    "question-answering": answered,
    "fill-mask": lambda n: {"text": sentence(n, 10)},
    "text-generation": lambda n: {"text": sentence(n, 10)},
}


def test_all_tasks_are_tested():
    assert set(ROWS) | ELSEWHERE == set(TASKS)


@pytest.mark.parametrize("task", ROWS)
def test_every_task(task, model_path, tmp_path, capsys):
    """From a model without a head: pruned, evaluated, and loaded as what it now is."""
    data, output, model = write(tmp_path / "data", [ROWS[task](n) for n in range(16)]), tmp_path / "out", model_path
    if task == "text-generation":
        model = decoder(model_path, tmp_path / "decoder")
    main("prune", *flags(model=model, dataset=data, task=task, output=output, **QUICK))
    pruned = load_pruned(output)
    assert type(pruned).__name__.endswith(
        TASKS[task].head.replace("CausalLM", "LMHeadModel").replace("MaskedLM", "ForMaskedLM")
    )
    assert sum(len(kept) for kept in pruned.pruning_plan.keep.values()) < sum(pruned.pruning_plan.sizes.values())
    found = json.loads((output / "pruning_results.json").read_text())
    for name in ("dense", "pruned"):
        assert set(found[name]["metrics"]) == {*TASKS[task].measured, "loss"}
        assert next(iter(found[name]["metrics"])) == TASKS[task].measured[0]
    assert found["dense"]["metrics"]["loss"] != found["pruned"]["metrics"]["loss"]
    assert f"\n{TASKS[task].measured[0]} " in capsys.readouterr().out


def test_pairs_and_numbers_to_predict(model_path, tmp_path):
    """From csv, with columns of other names, which are given."""
    rows = [{"a": sentence(n), "b": sentence(n + 1), "close": n / 3} for n in range(16)]
    data, output = write(tmp_path / "data", rows, "csv"), tmp_path / "out"
    columns = {"text_columns": ["a", "b"], "label_column": "close"}
    main(
        "prune", *flags(model=model_path, dataset=data, task="text-classification", output=output, **columns, **QUICK)
    )
    assert load_pruned(output).config.problem_type == "regression"
    metrics = json.loads((output / "pruning_results.json").read_text())["dense"]["metrics"]
    assert list(metrics) == ["spearmanr", "pearson", "mse", "loss"]
    assert metrics["mse"] == pytest.approx(metrics["loss"], rel=1e-5)  # the loss of a regression is just that
    again = tmp_path / "again"  # a head for numbers is one also where the labels are whole
    whole = write(tmp_path / "whole", [{**row, "close": n % 5} for n, row in enumerate(rows)], "json")
    main("prune", *flags(model=output, dataset=whole, task="text-classification", output=again, **columns, **QUICK))
    assert "mse" in json.loads((again / "pruning_results.json").read_text())["dense"]["metrics"]
    assert sum(len(kept) for kept in load_pruned(again).pruning_plan.keep.values()) < sum(
        len(kept) for kept in load_pruned(output).pruning_plan.keep.values()
    )


# --- data and metrics -----------------------------------------------------------------------------------------------


def task_of(name, rows, model=None, tokenizer=None, **columns):
    task = TASKS[name](rows, **columns)
    if model is not None:
        task.fit_to(model, tokenizer, 24)
    return task


def test_classes_keep_the_numbers_of_the_model(classifier):
    """The data name them in another order, by features or as texts."""
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(classifier),
        AutoTokenizer.from_pretrained(classifier),
    )
    model.config.id2label, model.config.label2id = {0: "Negative", 1: "Positive"}, {"Negative": 0, "Positive": 1}
    rows = [classified(number) for number in range(6)]
    features = Features(
        {"sentence": Value("string"), "label": ClassLabel(names=["positive", "negative"]), "idx": Value("int64")}
    )
    of_features = Dataset.from_list(rows, features=features)
    of_texts = Dataset.from_list([{**row, "label": ["positive", "negative"][row["label"]]} for row in rows])
    for data in (of_features, of_texts):
        task = task_of("text-classification", data)
        task.check_head(model.config)
        task.fit_to(model, tokenizer, 24)
        encoded = task.prepare(data)
        assert encoded["labels"] == [1, 0, 1, 0, 1, 0]
        logits = np.eye(2)[encoded["labels"]]
        logits[0] = logits[1]  # one of six is wrong, the first
        found = task.metrics(EvalPrediction(logits, np.array(encoded["labels"])), encoded, data)
        assert found["accuracy"] == 5 / 6
        # F1 of what the data number 1: by the features negative, 3 of 3 and 1 too many; by the alphabet positive.
        assert found["f1"] == pytest.approx(6 / 7 if data is of_features else 4 / 5)
    plain = Dataset.from_list(rows)  # numbers alone are taken as they are
    assert task_of("text-classification", plain, model, tokenizer).prepare(plain)["labels"] == [0, 1, 0, 1, 0, 1]


def test_only_the_first_token_of_a_word_counts(classifier):
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = tiny_model("bert", "TokenClassification", vocab_size=len(tokenizer))
    data = Dataset.from_list([{"tokens": ["what", "zzz", "is"], "tags": [0, 1, 2]}])
    [encoded] = task_of("token-classification", data, model, tokenizer).prepare(data)
    words = [len(tokenizer.tokenize(word)) for word in ("what", "zzz", "is")]
    assert words[1] > 1
    expected = [-100] + [label for tag, size in enumerate(words) for label in [tag] + [-100] * (size - 1)] + [-100]
    assert encoded["labels"] == expected


def test_answers_are_found_again(classifier):
    """The labels of every window, as if they were predicted, give the answers; long contexts have several windows."""
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = tiny_model("bert", "QuestionAnswering", vocab_size=len(tokenizer))
    rows = [answered(number) for number in range(8)]
    rows += [{**rows[0], "answers": {"text": [], "answer_start": []}}]
    data = Dataset.from_list(rows)
    task = task_of("question-answering", data, model, tokenizer)
    encoded = task.prepare(data)
    assert len(encoded) > len(data) and set(encoded["row"]) == set(range(9))
    width = max(map(len, encoded["input_ids"]))
    logits = [10 * np.eye(width)[encoded[name]] for name in ("start_positions", "end_positions")]
    found = task.metrics(EvalPrediction(tuple(logits), None), encoded, data)
    assert found == {"f1": 1.0, "exact_match": 1.0}
    wrong = [np.roll(each, 1, axis=1) for each in logits]
    assert task.metrics(EvalPrediction(tuple(wrong), None), encoded, data)["exact_match"] < 0.5


@pytest.mark.parametrize("side", ["right", "left"])
def test_answers_stay_in_their_place_in_a_batch(side, classifier):
    """Whichever side the tokenizer pads: decoders' do so on the left. It stays as it is, to be saved."""
    tokenizer = AutoTokenizer.from_pretrained(classifier, padding_side=side)
    model = tiny_model("bert", "QuestionAnswering", vocab_size=len(tokenizer))
    rows = [answered(number) for number in range(4)]
    rows += [{**rows[0], "context": rows[0]["answers"]["text"][0], "answers": {**rows[0]["answers"]}}]
    rows[-1]["answers"]["answer_start"] = [0]
    task = task_of("question-answering", Dataset.from_list(rows), model, tokenizer)
    encoded = task.prepare(task.rows)
    names = ("input_ids", "attention_mask", "start_positions", "end_positions")
    batch = task.collator([{name: each[name] for name in names} for each in encoded])
    assert not batch["attention_mask"].all() and tokenizer.padding_side == side
    for each, ids, start, end in zip(encoded, batch["input_ids"], batch["start_positions"], batch["end_positions"]):
        if end:
            assert tokenizer.decode(ids[start : end + 1]) == rows[each["row"]]["answers"]["text"][0]
    # A head that sees the answer, at its place in the batch, and nothing else.
    width = batch["input_ids"].shape[1]
    logits = [10 * np.eye(width)[batch[name]] for name in names[2:]]
    assert task.metrics(EvalPrediction(tuple(logits), None), encoded, task.rows)["exact_match"] == 1.0


def test_masks_depend_on_the_row_alone(classifier):
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = tiny_model("bert", "MaskedLM", vocab_size=len(tokenizer))
    data = Dataset.from_list([{"text": sentence(number, 20)} for number in range(6)] + [{"text": " "}])
    task = task_of("fill-mask", data, model, tokenizer)
    encoded = task.prepare(data)
    assert len(encoded) == 6 and encoded[:3] == task.prepare(data, 3)[:3]
    for ids, labels in zip(encoded["input_ids"], encoded["labels"]):
        asked = [place for place, label in enumerate(labels) if label != -100]
        assert [ids[place] for place in asked] == [tokenizer.mask_token_id] * len(asked)
        assert len(asked) == max(1, round(0.15 * (len(ids) - 2)))


@pytest.mark.parametrize("name", ["fill-mask", "text-generation"])
def test_language_models_by_hand(name):
    """Three positions count of two sequences; with a shift, those that tell the next token."""
    task, shift = TASKS[name], TASKS[name].shift
    labels = torch.tensor([[-100, 1, -100, 2], [-100, -100, 0, -100]])
    probabilities = torch.full((2, 4, 3), 1 / 3)
    probabilities[0, 1 - shift] = torch.tensor([0.2, 0.5, 0.3])  # right
    probabilities[0, 3 - shift] = torch.tensor([0.5, 0.25, 0.25])  # wrong
    probabilities[1, 2 - shift] = torch.tensor([0.8, 0.1, 0.1])  # right
    found = task.metrics(
        task, EvalPrediction(task.preprocess_logits(probabilities.log(), labels).numpy(), labels.numpy()), None, None
    )
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["perplexity"] == pytest.approx((0.5 * 0.25 * 0.8) ** (-1 / 3), rel=1e-6)


def test_metrics_are_those_of_others():
    generator = np.random.default_rng(0)
    for classes in (2, 4):
        true, predicted = generator.integers(classes, size=(2, 50))
        found = classification_metrics(predicted, true)
        assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
        average = "binary" if classes == 2 else "macro"
        assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(true, predicted, average=average))
        assert found["matthews_correlation"] == pytest.approx(sklearn.metrics.matthews_corrcoef(true, predicted))
    one, other = generator.integers(9, size=(2, 50)).astype(float)  # with ties
    found = regression_metrics(one, other)
    assert found["spearmanr"] == pytest.approx(scipy.stats.spearmanr(one, other)[0])
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(one, other)[0])
    assert regression_metrics(one * 0, other)["pearson"] == 0.0
    assert classification_metrics(np.zeros(4, int), np.zeros(4, int))["matthews_correlation"] == 0.0


def test_data_in_every_form(tmp_path, data):
    expected = Dataset.from_parquet(str(data / "train.parquet")).to_list()
    rows = Dataset.from_list(expected)
    write(tmp_path / "csv", expected, "csv")
    write(tmp_path / "json", expected, "json")
    DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    rows.save_to_disk(tmp_path / "alone")
    (tmp_path / "shards").mkdir()
    for number in range(2):
        rows.shard(2, number).to_parquet(str(tmp_path / "shards" / f"train-0000{number}-of-00002.parquet"))
    for name in ("csv", "json", "saved", "alone", "shards"):
        found = load_data(str(tmp_path / name))
        assert found["train"].to_list() == expected, name
        assert ("validation" in found) == (name in ("csv", "json", "saved"))


NAMED = ["Negative", "Positive"]


@pytest.mark.parametrize(
    ("labels", "own", "given", "expected", "said"),
    [
        (["b", "a"], None, None, [1, 0], "WARNING .*numbered by the alphabet: a is 0, b is 1.*--label_names b a"),
        (["b", "a"], None, ["b", "a"], [0, 1], "INFO classes, as --label_names says: b is LABEL_0, a is LABEL_1"),
        (["b", "a"], NAMED, ["b", "a"], [0, 1], "INFO .* b is Negative, a is Positive"),
        (["b", "a"], None, ["B", "A"], [0, 1], "INFO .* b is LABEL_0, a is LABEL_1"),
        (["a", "A"], None, ["A", "a"], [1, 0], "INFO .* A is LABEL_0, a is LABEL_1"),
        (["POSITIVE", "negative"], NAMED, None, [1, 0], None),
        (["positive", "positive"], NAMED, None, [1, 1], None),  # no other in these rows
        (["10", "9"], None, None, [1, 0], "WARNING .*9 is 0, 10 is 1"),
        ([1, 0], None, None, [1, 0], None),
        ([1, 0], NAMED, None, [1, 0], "INFO classes, by their number: LABEL_0 is Negative, LABEL_1 is Positive"),
        ([1, 0], ["1", "0"], None, [0, 1], "INFO classes, by their number: LABEL_0 is 0, LABEL_1 is 1"),
        (ClassLabel(names=["0", "1"]), ["1", "0"], None, [0, 1], "INFO .* 0 is 0, 1 is 1"),
        ([1, 0], None, ["1", "0"], [0, 1], "INFO .* 1 is LABEL_0, 0 is LABEL_1"),
        ([2, 1], None, ["1", "2"], [1, 0], "INFO .* 1 is LABEL_0, 2 is LABEL_1"),
        ([True, False], None, None, [1, 0], None),
        (ClassLabel(names=["neg", "pos"]), None, None, [1, 0], "INFO .*no names for them: neg is 0, pos is 1"),
        (ClassLabel(names=["pos", "neg"]), None, ["neg", "pos"], [0, 1], "INFO .*pos is LABEL_1, neg is LABEL_0"),
        (ClassLabel(names=["pos", "neg"]), None, ["Neg", "Pos"], [0, 1], "INFO .*pos is LABEL_1, neg is LABEL_0"),
        (ClassLabel(names=["positive", "negative"]), NAMED, None, [0, 1], None),
    ],
)
def test_which_class_is_which(labels, own, given, expected, said, caplog):
    """Of the two rows; and what is told of what was assumed."""
    caplog.set_level("INFO", "optimum_camcut.tasks")
    features = Features({"text": Value("string"), "label": labels}) if isinstance(labels, ClassLabel) else None
    cells = [1, 0] if features else labels
    rows = Dataset.from_list([{"text": "a", "label": cell} for cell in cells], features=features)
    task = TASKS["text-classification"](rows, label_names=given)
    config = tiny_config("bert", num_labels=2, **({"id2label": dict(enumerate(own))} if own else {}))
    task.check_head(config)
    assert [task.to_class(cell, 0) for cell in cells] == expected
    assert list(config.id2label.values()) == (own or given or ["LABEL_0", "LABEL_1"])
    assert [task.of_model[task.of_data[number]] for number in range(2)] == [0, 1]
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert (not lines) if said is None else re.search(said, *lines)


@pytest.mark.parametrize(
    ("labels", "own", "given", "message"),
    [
        (
            ["happy", "unhappy"],
            NAMED,
            None,
            "apart Negative, Positive, and the data have happy, unhappy in 'label': say",
        ),
        (["positive", "neutral"], NAMED, None, "apart Negative, Positive, and the data have neutral, positive"),
        (["positive", "Positive"], NAMED, None, "the data have Positive, positive .* by --label_names"),
        (["a", "b", "c"], NAMED, None, r"2 classes apart .*, and the data have 3 in 'label' \(a, b, c\)"),
        (
            ["happy", "unhappy"],
            None,
            ["hapy", "unhappy"],
            r"every class .* happy, unhappy; got \['hapy', 'unhappy'\]; did you mean 'happy'",
        ),
        (["happy", "sad"], None, ["sad,happy"], r"once, .*; put spaces between .*: --label_names sad happy$"),
        (["a b", "c"], None, ["c,", "a b"], r"--label_names c 'a b'$"),
        (["a", "b"], None, ["A", "a", "b", "B", "b"], "should name every class in 'label' once"),
        (["a", "A"], None, ["A", "b"], "should name every class in 'label' once"),
        (["happy", "unhappy"], None, ["happy"], "should name every class in 'label' once"),
        ([0, 1], None, ["0", "1", "other"], r"in 'label' are numbers, so --label_names .*; got \['other'\]"),
        ([0.5, 1.5], None, ["a", "b"], "--label_names are for classes, and text-classification has none in label"),
    ],
)
def test_classes_that_do_not_fit(labels, own, given, message):
    rows = Dataset.from_list([{"text": "a", "label": label} for label in labels])
    with pytest.raises(ValueError, match=message):
        task = TASKS["text-classification"](rows, label_names=given)
        task.check_head(tiny_config("bert", num_labels=2, **({"id2label": dict(enumerate(own))} if own else {})))


def test_a_blank_label_is_no_class():
    """Nor is it one of the names to be given."""
    for blank in (None, "", " "):
        rows = Dataset.from_list([{"text": "a", "label": label} for label in ("sad", blank, "happy")])
        assert TASKS["text-classification"](rows, label_names=["sad", "happy"]).names == ["sad", "happy"]
        rows = Dataset.from_list([{"tokens": ["a", "b"], "tags": tags} for tags in (["x", blank], ["y", "x"])])
        task = TASKS["token-classification"](rows)
        assert task.names == ["x", "y"]
        with pytest.raises(ValueError, match=rf"row 0 .*, column 'tags', has no label, it has {blank!r}: fill it in"):
            task.to_class(blank, 0)


def test_what_a_constant_prediction_gives():
    """By hand, of every kind of task."""
    rows = Dataset.from_list([{"text": "a", "label": label} for label in (0, 1, 1, 1)])
    task = TASKS["text-classification"](rows)
    labels = np.array(rows["label"])
    task.compute_metrics(EvalPrediction(np.eye(2)[1 - labels], labels), None, None)
    assert task.constant == {"accuracy": 0.75, "f1": pytest.approx(6 / 7), "matthews_correlation": 0.0}
    task = TASKS["text-classification"](Dataset.from_list([{"text": "a", "label": label} for label in (0.0, 2.0)]))
    values = np.array([0.0, 2.0])
    task.compute_metrics(EvalPrediction(values, values), None, None)
    assert task.constant == {"spearmanr": 0.0, "pearson": 0.0, "mse": 1.0}
    task = TASKS["token-classification"](Dataset.from_list([{"tokens": ["a", "b", "c"], "tags": [0, 0, 1]}]))
    labels = np.array([[-100, 0, 0, 1, -100]])
    task.compute_metrics(EvalPrediction(labels.clip(0), labels), None, None)
    assert task.constant["accuracy"] == pytest.approx(2 / 3)
    task = TASKS["multiple-choice"](Dataset.from_list([{"question": "q", "choices": ["a", "b"], "label": 0}]))
    task.compute_metrics(EvalPrediction(np.eye(2)[[0, 1, 1]], np.array([0, 1, 1])), None, None)
    assert task.constant == {"accuracy": pytest.approx(2 / 3)}
    rows = [{"context": "one two", "question": "q", "answers": {"text": [text], "answer_start": [0]}} for text in "ab"]
    rows[0]["answers"] = {"text": [], "answer_start": []}
    task = TASKS["question-answering"](Dataset.from_list(rows))
    found = list(task.measure_constants(None, {"row": [0, 0, 1]}, task.rows))
    assert found[0] == {"f1": 0.5, "exact_match": 0.5} and found[1] == {"f1": 0.0, "exact_match": 0.0}
    task = TASKS["text-generation"](Dataset.from_list([{"text": "a"}]))
    task.tokenizer = range(50)
    labels = np.array([[9, 1, 1, 2], [9, 1, -100, -100]])
    (found,) = task.measure_constants(EvalPrediction(None, labels), None, None)
    assert found == {"accuracy": 0.75, "perplexity": 50.0}


# --- texts one after the other --------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of letters: a start at the start of a text, and an end that the task adds."""

    eos_token_id = 1
    chat_template = "some"

    def __call__(self, text, add_special_tokens=True):
        ids = [ord(letter) for letter in text]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}

    def apply_chat_template(self, messages, tokenize):
        return "".join(f"{message['role'][0]}{message['content']};" for message in messages)


def blocks_of(rows, length, **changes):
    task = TASKS["text-generation"](Dataset.from_list(rows))
    task.tokenizer, task.length = Letters(), length
    for name, value in changes.items():
        setattr(task.tokenizer, name, value)
    encoded = task.prepare(task.rows)
    assert encoded["labels"] == encoded["input_ids"]
    assert all(mask == [1] * len(ids) for mask, ids in zip(encoded["attention_mask"], encoded["input_ids"]))
    return ["".join({0: "^", 1: "$"}.get(token, chr(token)) for token in ids) for ids in encoded["input_ids"]]


def test_texts_are_packed_whatever_the_rows():
    rows = [{"text": text} for text in ("abc", "", None, " ", "defgh", "i")]
    assert blocks_of(rows, 4) == ["^abc", "$^de", "fgh$", "^i$"]
    many = [{"text": "abc"}] * 2500  # more than one batch of rows: 5 tokens each
    found = blocks_of(many, 128)
    assert {len(block) for block in found[:-1]} == {128} and sum(map(len, found)) == 12_500


def test_lines_go_on_in_the_next_row(monkeypatch):
    rows = [{"text": text} for text in ("ab\n", "\n", "cd\n", "", "ef", "g\n")]
    assert "".join(blocks_of(rows, 5)) == "^ab\n\ncd\nef$^g\n$"
    monkeypatch.setattr("optimum_camcut.tasks.language_modeling.PIECE", 2)  # pieces, but one text
    assert "".join(blocks_of([{"text": "abc\n"}, {"text": "\n"}, {"text": "def\n"}], 5)) == "^abc\n\ndef\n"


def test_chats_go_by_the_template():
    chat = [{"role": "user", "content": "hi"}, {"role": "bot", "content": "yes"}]
    assert blocks_of([{"messages": chat, "text": "x"}, {"messages": chat[:1], "text": "y"}], 6) == ["uhi;by", "es;uhi"]
    with pytest.raises(ValueError, match="the tokenizer has no template for them: choose a column of texts"):
        blocks_of([{"messages": chat}], 6, chat_template=None)
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    assert blocks_of([{"conversations": shared}], 20) == ["uhi;ayes;"]
    with pytest.raises(ValueError, match=r"is text, and the column is for chats, lists of messages with a role"):
        blocks_of([{"messages": json.dumps(chat)}], 6)


def test_a_text_file_is_read_line_by_line_and_its_end_held_out(model_path, tmp_path, caplog):
    model, text = decoder(model_path, tmp_path / "model"), tmp_path / "words.txt"
    text.write_text("".join(f"{sentence(n, 10)}\n" for n in range(40)))
    output = tmp_path / "out"
    with caplog.at_level("INFO", "optimum_camcut.commands"):
        main("prune", *flags(model=model, dataset=text, task="text-generation", output=output, sequence_length=16),
             *flags(**QUICK))  # fmt: skip
    assert "reading text of train (36 rows); evaluating on 4 others of its rows (10%, the last: " in caplog.text
    lengths = {len(ids) for ids in blocks_of([{"text": line} for line in text.read_text().splitlines(True)], 16)}
    assert 16 in lengths and max(lengths) == 16
    found = json.loads((output / "pruning_results.json").read_text())
    assert found["dense"]["metrics"]["perplexity"] > 1


def decoder(model_path, folder):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    transformers.GPT2LMHeadModel(tiny_config("gpt2", vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_run_of_packed_texts_is_resumed_and_dry_run(model_path, tmp_path, capsys):
    model, output = decoder(model_path, tmp_path / "model"), tmp_path / "out"
    data = write(tmp_path / "data", [{"text": sentence(n, 10)} for n in range(16)])
    arguments = flags(model=model, dataset=data, task="text-generation", **{**QUICK, "sequence_length": 32})
    more = flags(recovery="finetune", lora_rank=2, distill_weight=0.5, distill_top_k=3, epochs=1)
    main("prune", *arguments, *more, *flags(output=output, dry_run=True))
    assert "Nothing was written" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_camcut.training.trainer.CamCutTrainer.save_model", stop)
        with pytest.raises(SystemExit):
            main("prune", *arguments, *more, *flags(output=output))
    main("prune", *arguments, *more, *flags(output=output, resume=True))
    assert (output / "pruning_results.json").exists()


def test_scores_of_packed_texts_tell_how_they_were_packed(model_path, tmp_path, caplog):
    model = decoder(model_path, tmp_path / "model")
    data = write(tmp_path / "data", [{"text": sentence(n, 10)} for n in range(16)])
    own = flags(model=model, dataset=data, task="text-generation", max_train_samples=12)
    main("score", *own, *flags(method="taylor", num_samples=8, sequence_length=24, output=tmp_path / "scores"))
    prune = [*own, *flags(scores=tmp_path / "scores", sparsity=0.3, recovery="none", dry_run=True, repeats=1)]
    with caplog.at_level("INFO", "optimum_camcut.commands"):
        main("prune", *prune, *flags(output=tmp_path / "out"))
    assert "reading text of train (12 rows); " in caplog.text
    with pytest.raises(SystemExit, match="by other examples: sequence_length was 24 and is now 32"):
        main("prune", *prune, *flags(output=tmp_path / "out", sequence_length=32))


def stop(*_, **__):
    raise KeyboardInterrupt


def test_scores_of_blocks_and_of_packed_texts_serve_for_pruning(model_path, tmp_path):
    model, scores = decoder(model_path, tmp_path / "model"), tmp_path / "scores"
    data = write(tmp_path / "data", [{"text": sentence(n, 10)} for n in range(16)])
    common = {"model": model, "dataset": data, "task": "text-generation", "sequence_length": 32}
    of_blocks = {"method": "block_influence", "granularity": "layers", "layer_unit": "block", "num_samples": 12}
    main("score", *flags(**common, **of_blocks, batch_size=8, output=scores))
    main("prune", *flags(**common, scores=scores, sparsity=0.3, recovery="none", repeats=1, latency_batch_size=2),
         *flags(output=tmp_path / "out"))  # fmt: skip
    kept = load_pruned(tmp_path / "out").pruning_plan.keep
    gone = [name.rpartition(".")[0] for name, units in kept.items() if not units]
    assert len(gone) == 2 and len(set(gone)) == 1  # both parts of one block


def test_files_beside_the_data_and_texts_that_are_blank(model_path, tmp_path):
    data = write(tmp_path / "data", [{"text": " "} for _ in range(16)])
    (data / "README.txt").write_text("what these are")
    assert set(load_data(str(data))) == {"train", "validation"}
    model = decoder(model_path, tmp_path / "model")
    with pytest.raises(SystemExit) as raised:
        main("prune", *flags(model=model, dataset=data, task="text-generation", output=tmp_path / "out", **QUICK))
    assert "the rows hold no text in text" in raised.value.code


def test_streaming_reads_the_first_rows_alone(model_path, tmp_path, capsys):
    """Those behind them could not even be read."""
    model, data = decoder(model_path, tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        rows = [json.dumps({"text": sentence(n, 10)}) for n in range(30)]
        (data / f"{split}-0.jsonl").write_text("\n".join(rows))
        (data / f"{split}-1.jsonl").write_text("{no row")
    arguments = flags(model=model, dataset=data, task="text-generation", streaming=True, **QUICK)
    with pytest.raises(SystemExit) as raised:
        main("prune", *arguments, *flags(output=tmp_path / "none", max_train_samples=20))
    assert "say how many by --max_train_samples and --max_eval_samples" in raised.value.code
    main("prune", *arguments, *flags(output=tmp_path / "out", max_train_samples=20, max_eval_samples=8))
    assert (tmp_path / "out" / "pruning_results.json").exists()
    with pytest.raises(SystemExit) as raised:  # as it is without streaming
        plain = flags(model=model, dataset=data, task="text-generation", max_train_samples=20, **QUICK)
        main("prune", *plain, *flags(output=tmp_path / "none", max_eval_samples=8))
    assert "cannot be read" in raised.value.code


def test_a_model_no_better_than_a_constant_is_told(caplog):
    task = TASKS["text-classification"](Dataset.from_list([{"text": "a", "label": label} for label in (0, 1, 1, 1)]))
    task.constant = {"accuracy": 0.75, "f1": 0.8}
    task.warn_of_constants({"accuracy": 0.8, "f1": 0.1, "loss": 3.0})  # which is not compared by
    assert not caplog.records
    task.warn_of_constants({"accuracy": 0.75, "f1": 1.0, "loss": 3.0})
    assert re.search(r"accuracy 0.75, and it gets 0.75\. .* \(--label_names\)", caplog.messages[-1])
    task = TASKS["text-classification"](Dataset.from_list([{"text": "a", "label": label} for label in (0.0, 2.0)]))
    task.constant = {"spearmanr": 0.0, "mse": 1.0}
    task.warn_of_constants({"spearmanr": 0.3, "mse": 4.0})  # of a head that has not learned the scale
    assert "mse 4, and it gets 1" in caplog.messages[-1] and "--label_names" not in caplog.messages[-1]


def test_labels_in_the_wrong_order(job, model_path, tmp_path, caplog):
    """A file of names, and a model that has numbers alone and knows them in another order than the alphabet's."""
    model = AutoModelForSequenceClassification.from_pretrained(job["model"])
    with torch.no_grad():  # it says class 1 whatever it reads
        for parameter in model.parameters():
            parameter.mul_(0.0)
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_path).save_pretrained(tmp_path / "model")
    rows = [{"text": sentence(n), "label": "happy" if n % 4 else "sad"} for n in range(40)]
    data, found = write(tmp_path / "data", rows, "csv"), []
    own = {**job, "model": tmp_path / "model", "dataset": data, "method": "random", "recovery": "none"}
    for number, names in enumerate((["happy", "sad"], ["sad", "happy"])):
        main("prune", *flags(**own, label_names=names, output=tmp_path / str(number)))
        results = json.loads((tmp_path / str(number) / "pruning_results.json").read_text())
        found.append(results["dense"]["metrics"]["accuracy"])
        config = AutoConfig.from_pretrained(tmp_path / str(number))
        assert config.id2label == dict(enumerate(names)) and config.label2id == {names[0]: 0, names[1]: 1}
        assert "no better than one that gives the same answer" in caplog.text
    assert found == [0.25, 0.75]


def test_a_file_is_a_data_set(job, tmp_path, caplog):
    """A tenth is held out, the same for all; the columns and the split are told."""
    caplog.set_level("INFO", "optimum_camcut.commands")
    file, other = tmp_path / "words.csv", tmp_path / "more.csv"
    for path, count in ((file, 20), (other, 12)):
        Dataset.from_list([classified(number) for number in range(count)]).to_csv(str(path))
    quick = {**job, "dataset": file, "method": "magnitude", "recovery": "none", "dry_run": True}
    main("prune", *flags(**quick, output=tmp_path / "out"))
    assert "reading sentence, label of train (18 rows); evaluating on 2 others of its rows (10%" in caplog.text
    assert "comparing by accuracy (more is better)" in caplog.text
    parts = [data_module.hold_out(load_data(str(file))["train"]) for _ in range(2)]
    assert parts[0][1].to_list() == parts[1][1].to_list() and len(parts[0][1]) == 2
    assert sorted(row["idx"] for part in parts[0] for row in part) == list(range(20))
    del quick["dataset"]
    main("prune", *flags(**quick, train_file=file, validation_file=other, output=tmp_path / "out"))
    assert "of train (20 rows); evaluating on validation (12 rows)" in caplog.text
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="not by both"):
        main("prune", *flags(**quick, train_file=file, dataset=file, output=tmp_path / "out"))
    with pytest.raises(SystemExit, match="there is no file nowhere.csv"):
        main("prune", *flags(**quick, train_file="nowhere.csv", output=tmp_path / "out"))


# --- flags and files ------------------------------------------------------------------------------------------------


def test_every_field_is_a_flag():
    assert {option.name: option.default for option in pruning_options()} == {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(PruningConfig)
    }


@pytest.mark.parametrize("from_file", [False, True])
def test_what_always_stays_is_a_flag(from_file, job, tmp_path):
    """As the field of the config: several words, and numbers by kind, which a file holds as a list and a mapping."""
    values = {"exclude": [0, "layer.1.heads"], "min_units": {"heads": 1, "neurons": 3}}
    words = ["--exclude", "0", "layer.1.heads", "--min_units", "heads=1,neurons=3"]
    if from_file:
        (tmp_path / "config.json").write_text(json.dumps(values))
        words = ["--config", str(tmp_path / "config.json")]
    changes = {"method": "magnitude", "recovery": "none", "sparsity": 0.2, "output": tmp_path / "out"}
    main("prune", *flags(**{**job, **changes}), *words)
    config, plan = PruningConfig.from_pretrained(tmp_path / "out"), PruningPlan.load(tmp_path / "out")
    assert (config.exclude, config.min_units) == (("0", "layer.1.heads"), values["min_units"])
    whole = {name for name, units in plan.keep.items() if len(units) == plan.sizes[name]}
    assert whole >= {"layer.0.heads", "layer.0.neurons", "layer.1.heads"} and whole != set(plan.keep)


@pytest.mark.parametrize("kind", few(["yaml", "json"]))
def test_a_config_file(kind, job, tmp_path, capsys):
    """Holds any flag and a section for training; flags beat it, and `compression` the `sparsity` in it."""
    output = tmp_path / "out"
    job |= {"recovery": "finetune", "granularity": ["neurons"], "method": "taylor", "seed": 3, "methods": ["fisher"]}
    values = {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}
    values["training"] = {"learning_rate": 1e-4, "max_steps": 2, "lr_scheduler_type": "constant"}
    text = json.dumps(values)
    if kind == "yaml":
        text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in values.items()).replace("0.0001", "1e-4")
        assert "1e-4" in text
    (tmp_path / f"config.{kind}").write_text(text)
    more = flags(method="magnitude", compression=1.2, learning_rate=2e-4)
    main("prune", "--config", tmp_path / f"config.{kind}", "--output", output, *more)
    config = PruningConfig.from_pretrained(output)
    assert (config.method, config.compression, config.sparsity) == ("magnitude", 1.2, None)
    assert (config.granularity, config.recovery, config.seed) == (("neurons",), "finetune", 3)
    training = torch.load(output / "training_args.bin", weights_only=False)
    assert (training.max_steps, training.learning_rate, training.seed) == (2, 2e-4, 3)
    assert training.lr_scheduler_type == "constant"
    main("prune", "--config", tmp_path / f"config.{kind}", *flags(output=output, overwrite=True))
    training = torch.load(output / "training_args.bin", weights_only=False)
    assert training.learning_rate == 1e-4 and PruningConfig.from_pretrained(output).sparsity == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "object-detection"},
            "unknown task 'object-detection'; known tasks: text-classification, token-class",
        ),
        (
            {"label_column": "mood"},
            "there is no column mood; the columns are sentence, label, idx; choose by --label_",
        ),
        ({"task": "question-answering"}, "no text column of a usual name was found; the columns are sentence, label"),
        ({"eval_split": "held_out"}, "there is no split 'held_out' to evaluate on; the data have train, validation"),
        ({"train_split": "all"}, "there is no split 'all' to score on; the data have train, validation"),
        ({"dataset": "./nowhere"}, "there is no folder ./nowhere to read data from"),
        ({"dataset": "nowhere"}, "nowhere is no folder, and cannot be fetched from the Hub: "),
        ({"dataset": REPOSITORY}, "should hold files of one kind, named by split, such as train.parquet"),
        ({"dataset": REPOSITORY / "README.md"}, "README.md is no file of data: it should end with .parquet, .csv,"),
        ({"model": "./nowhere"}, "there is no folder ./nowhere to load from"),
        ({"model": "nowhere"}, "nowhere is no folder, and cannot be fetched from the Hub: "),
        ({"method": "tailor"}, "unknown method 'tailor'"),
        ({"metric": "bleu"}, "the metric 'bleu' is none of accuracy, f1, matthews_correlation, loss, nor one that "),
        ({"scores": "./nowhere"}, "there are no scores in nowhere; optimum-cli camcut score writes some"),
        ({"text_columns": ["sentence", "idx", "label"]}, "reads one text or two, not sentence, idx, label"),
        ({"max_length": -1}, "max_length should be at least 1, got -1"),
        ({"max_length": 0}, "max_length should be at least 1, got 0"),
        ({"max_length": 2}, "2 tokens (--max_length) has no room beside 2 special ones"),
        ({"max_train_samples": -3}, "max_train_samples should be at least 1, got -3"),
        ({"batch_size": 0}, "batch_size should be at least 1, got 0"),
    ],
)
def test_what_is_refused(changes, message, job, tmp_path):
    """In one line, before anything is written."""
    with pytest.raises(SystemExit) as error:
        main("prune", *flags(**{**job, "output": tmp_path / "out", **changes}))
    assert message in error.value.code and "\n" not in error.value.code
    assert not any(tmp_path.iterdir())


NEWS = {"text": "a", "label": "good"}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("text-classification", {**NEWS, "label": "neutral"}, "label', has the label 'neutral'; the classes .* good"),
        ("text-classification", {**NEWS, "label": None}, "column 'label', has no label, it has None: fill it in, or"),
        (
            "text-classification",
            {**NEWS, "label": ""},
            "column 'label', has no label, it has '': fill it in, or leave",
        ),
        ("text-classification", {**NEWS, "text": None}, "column 'text', should have text, it has None"),
        (
            "token-classification",
            {"tokens": ["a", "b"], "tags": [0]},
            "column 'tags', has 1 classes for 2 words in 'to",
        ),
        ("token-classification", {"tokens": ["a", None], "tags": [0, 0]}, "column 'tokens', should have text"),
        ("token-classification", {"tokens": ["a"], "tags": [None]}, "column 'tags', has no label"),
        ("multiple-choice", {"question": "q", "choices": ["a"], "label": 0}, "'choices', has 1 choices, .* have 2"),
        ("multiple-choice", {"question": "q", "choices": ["a", "b"], "label": None}, "'label', has the label None"),
        ("question-answering", {**answered(0), "context": None}, "column 'context', should have text"),
        ("question-answering", {**answered(0), "answers": None}, "column 'answers', has no answers"),
    ],
)
def test_rows_that_are_refused(task, row, message, classifier):
    """By their number and column, in the split that they are in."""
    good = {
        "text-classification": NEWS,
        "token-classification": {"tokens": ["a", "b"], "tags": [0, 0]},
        "multiple-choice": {"question": "q", "choices": ["a", "b"], "label": 0},
        "question-answering": answered(0),
    }[task]
    rows = Dataset.from_list([good, good])
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    task = task_of(task, rows, tiny_model("bert", TASKS[task].head), tokenizer)
    with pytest.raises(ValueError, match=rf"row 1 \(from 0\) of validation, .*{message}"):
        task.prepare(Dataset.from_list([good, row], features=rows.features, split="validation"))


def test_numbers_to_predict_that_are_missing():
    """Whole numbers of a csv file with an empty cell, too."""
    for missing in (None, float("nan")):
        rows = Dataset.from_list([{"text": "a", "label": 1.0}, {"text": "a", "label": missing}])
        with pytest.raises(
            ValueError, match=r"row 1 \(from 0\) of the data, column 'label', should have a label, .* fill it in"
        ):
            task_of("text-classification", rows)


def test_advice_while_scoring_is_one_line(job, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ScoringError("a single example does not fit into memory while scoring: give shorter ones")

    monkeypatch.setattr("optimum_camcut.training.steps.score_groups", fail)
    with pytest.raises(SystemExit, match="score: error: a single example does not fit into memory .* shorter ones$"):
        main("score", *flags(**scoring_flags(job), output=tmp_path / "out"))


@pytest.mark.parametrize("architecture", ["roberta", "mpnet", "bert"])
def test_no_more_tokens_than_there_are_positions(architecture, classifier):
    """Of 64, two are before the first token's where positions start behind the padding's, whose number is 1."""
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = tiny_model(architecture, vocab_size=len(tokenizer), pad_token_id=1)
    longest = 64 if architecture == "bert" else 62
    task = TASKS["text-classification"](Dataset.from_list([{"text": "a " * 99, "label": 0}]))
    task.fit_to(model, tokenizer, 100)
    assert len(task.prepare(task.rows)["input_ids"][0]) == task.length == longest
    assert measured_length(model, PruningConfig(sparsity=0.5)) == longest
    model(**measure.random_inputs(model, 1, longest))


def test_a_home_folder_in_a_config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "a.yaml").write_text("model: ~/m\npruned: [~/a, b~]")
    assert read_settings(tmp_path / "a.yaml") == {"model": "/home/me/m", "pruned": ["/home/me/a", "b~"]}


@pytest.mark.parametrize(
    ("text", "given", "expected"), [("seed: 4", [], [4]), ("seed: 4", ["--seeds", "5", "6"], [5, 6]), ("", [], [0])]
)
def test_compare_takes_the_seed_of_a_file(text, given, expected, job, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(CompareCommand, "execute", lambda self, arguments: read.append(arguments.seeds))
    (tmp_path / "prune.yaml").write_text(f"sparsity: 0.5\n{text}")
    main("compare", *flags(**scoring_flags(job), config=tmp_path / "prune.yaml", output=tmp_path / "out"), *given)
    assert read == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty: 0.5", "has unknown settings sparsty; known: all_heads, allocation, "),
        ("training: 3", "'training' in {path} should be settings by name, got 3"),
        ("training: {learning_rat: 1}", "the training section has unknown settings learning_rat"),
        ("training: {output_dir: x}", "which is --output"),
        ("method: [taylor, fisher]", "'method' should be one str, got ['taylor', 'fisher']"),
        ("- sparsity", "should hold settings by name"),
        ("a: [", "is no YAML"),
    ],
)
def test_config_files_that_are_refused(text, message, job, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as error:
        main("prune", *flags(**job, config=path, output=tmp_path / "out"))
    assert message.format(path=path) in error.value.code
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(SystemExit, match="should be a .json, .yaml or .yml file"):
        main("prune", *flags(**job, config=tmp_path / "config.toml", output=tmp_path / "out"))
    for missing in ("missing.yml", "missing.json"):
        with pytest.raises(
            SystemExit, match=f"there is no file .*{missing}; --config takes a .yaml, .yml or .json file"
        ):
            main("prune", *flags(**job, config=tmp_path / missing, output=tmp_path / "out"))


def test_values_of_a_wrong_kind_end_as_argparse_does(job, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("num_samples: many")
    del job["num_samples"]
    for wrong in (["--num_samples", "many"], ["--config", str(path)]):
        with pytest.raises(SystemExit) as error:
            main("prune", *flags(**job, output=tmp_path / "out"), *wrong)
        assert error.value.code == 2
        assert "argument --num_samples: invalid int value: 'many'" in capsys.readouterr().err
    del job["sparsity"]
    for missing in (
        "--sparsity and --compression is required",
        "required: --model, --dataset (or --train_file), --task, --output",
    ):
        with pytest.raises(SystemExit) as error:
            main("prune", *(flags(**job, output=tmp_path / "out") if "sparsity" in missing else ["--sparsity", "0.5"]))
        assert error.value.code == 2 and missing in capsys.readouterr().err


EARLY = """
import sys, time
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand
from optimum_camcut.commands.camcut import CamCutCommand

start = time.perf_counter()
for line in sys.stdin.read().splitlines():
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    register_optimum_cli_subcommand(CamCutCommand, parent_command=root)
    try:
        parsed = root.parser.parse_args(["camcut", *line.split()])
        parsed.func(parsed).run()
    except SystemExit as end:
        print(end.code)
print({"torch", "transformers", "datasets", "accelerate"} & set(sys.modules) or "nothing large")
"""


def test_what_is_refused_before_torch_is_imported(job, tmp_path):
    """All of these by one process, which imports no library that takes seconds."""
    (tmp_path / "a.parquet").write_text("no parquet")
    (tmp_path / "b.csv").write_text("sentence;label\ngood;1\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.yaml").write_text("sparsty: 0.5")
    own, no_data = {**job, "output": tmp_path / "out"}, {k: v for k, v in job.items() if k != "dataset"}
    compared = {**{name: job[name] for name in ("model", "dataset", "task")}, "output": tmp_path / "out"}
    cases = [
        ("prune", {**own, "dataset": tmp_path / "nowhere"}, "there is no folder"),
        ("prune", {**own, "dataset": tmp_path / "empty"}, "should hold files of one kind"),
        ("prune", {**own, "dataset": tmp_path / "nowhere.csv"}, "there is no file"),
        ("prune", {**own, "dataset": tmp_path / "a.parquet"}, "is no parquet file"),
        ("prune", {**own, "dataset": tmp_path / "b.csv"}, "no text column of a usual .*; the columns are sentence;"),
        ("prune", {**no_data, "output": "o", "train_file": tmp_path / "b.csv", "validation_file": "v.csv"}, "no file"),
        ("prune", {**own, "text_columns": ["sentense"]}, "there is no column sentense; .* did you mean 'sentence'"),
        ("prune", {**own, "label_column": "mood"}, "there is no column mood"),
        ("prune", {**own, "train_split": "trian"}, "no split 'trian' to score on; .* did you mean 'train'"),
        ("prune", {**own, "eval_split": "test"}, "no split 'test' to evaluate on"),
        ("prune", {**own, "task": "text-clasification"}, "unknown task .*; did you mean 'text-classification'"),
        ("prune", {**own, "model": tmp_path / "nowhere"}, "there is no folder .*nowhere to load from"),
        ("prune", {**own, "model": tmp_path / "empty"}, "holds no model, which has a config.json; it holds nothing"),
        ("prune", {**own, "model": "nowhere"}, "nowhere is no folder, and cannot be fetched from the Hub"),
        ("prune", {**own, "output": job["dataset"]}, "is not empty"),
        ("prune", {**own, "output": tmp_path / "b.csv" / "out"}, "cannot be written: .*b.csv is no folder"),
        ("prune", {**own, "method": "taylr"}, "unknown method .*; did you mean 'taylor'"),
        ("prune", {**own, "config": tmp_path / "a.yaml"}, "unknown settings sparsty; .*; did you mean 'sparsity'"),
        ("compare", {**compared, "methods": ["taylr"]}, "did you mean 'taylor'"),
        ("compare", {**compared, "granularity": "vocabulary"}, "leave out --granularity vocabulary"),
        ("benchmark", {"dense": tmp_path / "nowhere", "pruned": [job["model"]]}, "no folder .*nowhere to load from"),
        ("report", {"model": tmp_path / "nowhere", "output": "a.html"}, "no folder .*nowhere to load from"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", EARLY],
        input="\n".join(" ".join([command, *flags(**given)]) for command, given, _ in cases),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    for (command, _, message), line in zip(cases, told):
        assert re.search(f"{command}: error: .*{message}", line), (message, line)
    assert told[len(cases) :] == ["nothing large"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--sparcity", "0.5"], "unrecognized arguments: --sparcity 0.5; did you mean '--sparsity'?"),
        (["--dry-rum"], "unrecognized arguments: --dry-rum; did you mean '--dry_run'?"),
        (["--budget", "flop"], "--budget: unknown 'flop'; known: params, flops, latency; did you mean 'flops'?"),
        (
            ["--granularity", "head"],
            "known: heads, neurons, experts, layers, vocabulary, weights; did you mean 'heads'?",
        ),
    ],
)
def test_mistyped_flags(wrong, message, job, tmp_path, capsys):
    """With the usage of the command at hand."""
    with pytest.raises(SystemExit) as error:
        main("prune", *flags(**job, output=tmp_path / "out"), *wrong)
    shown = capsys.readouterr().err
    assert error.value.code == 2 and message in shown
    assert shown.startswith("usage: optimum-cli camcut prune --model MODEL --dataset DATASET --task TASK --output")


@dataclasses.dataclass
class Fields:
    exclude: list[str] = dataclasses.field(default_factory=list, metadata={"help": "What stays."})
    least: int | dict[str, int] = dataclasses.field(default=1, metadata={"help": "Of every kind."})
    sizes: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"help": "Numbers."})
    rates: dict[str, float] | None = dataclasses.field(default=None, metadata={"help": "By name."})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"exclude": ["a", "b"], "least": 2, "sizes": [3, 4]}, {"exclude": ["a", "b"], "least": 2, "sizes": [3, 4]}),
        ({"least": {"heads": 2, "neurons": 64}}, {"least": {"heads": 2, "neurons": 64}}),
        ({"rates": {"heads": 0.5}, "exclude": []}, {"rates": {"heads": 0.5}}),
    ],
)
def test_flags_of_fields_with_several_values(given, expected):
    """As a file gives them, which go through the flags, too."""
    parser = argparse.ArgumentParser()
    options = {option.name: option for option in options_of(Fields)}
    for option in options.values():
        option.add_to(parser)
    parsed = parser.parse_args([token for name, value in given.items() for token in options[name].tokens(value)])
    assert vars(parsed) == expected
    with pytest.raises(SystemExit):
        parser.parse_args(["--least", "heads=many"])
    parser.format_help()


REFUSED = {
    "not empty": ({"output": "there"}, "is not empty: choose another, or pass --overwrite"),
    "no such split": ({"eval_split": "held_out"}, "no split 'held_out' to evaluate on"),
    "other classes": ({"label_names": ["a", "b"]}, "--label_names should name every class"),
    "a metric": ({"metric": "bleu"}, "the metric 'bleu' is none of"),
    "rounds with scores": ({"rounds": 2, "scores": "scores"}, "take no --scores"),
    "too much": ({"compression": 500.0}, "compression"),
    "training": ({"config": "training.yaml", "recovery": "finetune"}, "load_best_model_at_end"),
    "evaluation rows": ({"dataset": "bad"}, r"row 3 \(from 0\) of validation"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dry_run_refuses_what_the_run_would(case, job, tmp_path, monkeypatch):
    """In the same words, and before anything is written."""
    monkeypatch.chdir(tmp_path)
    changes, message = REFUSED[case]
    Path("there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("years of work")
    Path("training.yaml").write_text("training: {load_best_model_at_end: true, save_strategy: epoch}")
    if case == "rounds with scores":
        main("score", *flags(**scoring_flags(job), method="magnitude", output="scores"))
    if case == "evaluation rows":
        write(Path("bad"), [classified(number) for number in range(8)])
        rows = [{**classified(number), "label": 2 if number == 3 else 0} for number in range(8)]
        Dataset.from_list(rows).to_parquet("bad/validation.parquet")
    before, told = sorted(Path().rglob("*")), []
    if "compression" in changes:
        del job["sparsity"]
    for dry_run in (True, False):
        with pytest.raises(SystemExit, match=message) as error:
            main("prune", *flags(**{**job, "output": "out", "dry_run": dry_run, **changes}))
        told.append(error.value.code)
        assert dry_run is False or sorted(Path().rglob("*")) == before
    assert told[0] == told[1]


def start(*arguments):
    """`optimum-cli camcut prune` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from optimum.commands.optimum_cli import main; main()", "camcut", "prune", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    )


def test_a_row_is_named_by_its_number_in_the_file(job, tmp_path):
    """Also where a part of the rows is held out to evaluate on."""
    file, number = tmp_path / "words.csv", 20
    lines = [f"{'good' if row % 2 else 'bad'} word,{row % 2}" for row in range(30)]
    lines[number] = "no label,"
    file.write_text("\n".join(["text,label", *lines]))
    own = {name: value for name, value in job.items() if name != "dataset"}
    with pytest.raises(
        SystemExit, match=rf"row {number} \(from 0\) of train, column 'label', should have a label, .* fill it in"
    ):
        main("prune", *flags(**own, train_file=file, output=tmp_path / "out"), "--dry-run")


def interrupt(process):
    """Ctrl-C, and again if Python has lost it in a place where exceptions are ignored, such as a finalizer."""
    for _ in range(18):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)
    process.kill()
    return process.communicate()


def test_stopped_and_resumed(job, tmp_path, caplog):
    """By Ctrl-C, between two steps of the recovery; it then ends where an undisturbed run does."""
    training = "{save_strategy: %s, save_steps: 1, save_total_limit: 1, max_steps: %d}"
    output, whole, config = tmp_path / "out", tmp_path / "whole", tmp_path / "a.yaml"
    config.write_text("recovery: finetune\ntraining: " + training % ("steps", 4000))
    own = flags(**job, config=config, dense_epochs=0.5)
    process = start(*own, *flags(output=output))
    while process.poll() is None and not list(output.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    printed, shown = interrupt(process)
    assert process.returncode == 130 and not printed, shown
    assert shown.splitlines()[-1] == "optimum-cli camcut prune: interrupted; go on with --resume"
    assert "Traceback" not in shown
    with pytest.raises(SystemExit, match=r"--overwrite \(or --resume: a run was interrupted there\)"):
        main("prune", *own, *flags(output=output))
    with pytest.raises(SystemExit, match="had other flags: num_samples was 12 and is now 13"):
        main("prune", *own, *flags(output=output, num_samples=13), "--resume")
    # The run is told that it is two steps from its end, so that the test takes no longer than it has to.
    reached = max(int(path.name.rpartition("-")[2]) for path in output.glob("checkpoint-*"))
    config.write_text("recovery: finetune\ntraining: " + training % ("steps", reached + 2))
    run = json.loads((output / "_run.json").read_text())
    run["flags"]["training"]["max_steps"] = reached + 2
    (output / "_run.json").write_text(json.dumps(run))
    main("prune", *own, *flags(output=output), "--resume")
    assert re.search(r"going on from .*checkpoint-\d+", caplog.text)
    assert "the dense model is no better" not in caplog.text  # which was evaluated before
    config.write_text("recovery: finetune\ntraining: " + training % ("'no'", reached + 2))
    main("prune", *own, *flags(output=whole))
    one, two = (json.loads((folder / "pruning_results.json").read_text()) for folder in (output, whole))
    assert one["dense"]["metrics"] == two["dense"]["metrics"] != {}
    assert f"| loss | {one['dense']['metrics']['loss']:.4g} |" in (output / "README.md").read_text()
    assert load_pruned(output).pruning_plan == load_pruned(whole).pruning_plan
    assert not (output / "_run.json").exists()


def test_resumed_after_scores(job, tmp_path, caplog, monkeypatch):
    """It is no warning that there is no checkpoint yet."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("optimum_camcut.training.steps.make_plan", stop)
        main("prune", *flags(**job, recovery="none", output=output))
    caplog.clear()
    main("prune", *flags(**job, recovery="none", output=output), "--resume")
    told = {record.getMessage(): record.levelname for record in caplog.records}
    assert told[f"{output} has no checkpoint yet, and scores that were begun"] == "INFO"
    assert any(re.match(r"scoring goes on after \d+ batches, from ", line) for line in told)
    assert any(re.match(r"planning and cutting took [\d.]+ s", line) for line in told)  # off a terminal
    assert not any("no checkpoint to resume from" in line for line in told)


@pytest.mark.report
def test_a_resumed_run_tells_how_good_the_dense_model_was(job, tmp_path, monkeypatch):
    """Which was evaluated before the run was stopped."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    own = flags(**job, method="magnitude", recovery="none", output=output)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(CamCutTrainer, "score", stop)
        main("prune", *own)
    main("prune", *own, "--resume")
    results = json.loads((output / "pruning_results.json").read_text())
    dense = results["dense"]["metrics"]["loss"]
    assert f"| loss | {dense:.4g} |" in (output / "README.md").read_text()
    page = (output / "report.html").read_text()
    assert re.search(rf"loss</th>\s*<td[^>]*>{dense:.4g}</td>", page)
    times = [results[name]["latency"] for name in ("dense", "pruned")]  # measured once, for the table and the page
    low, high = ([f"{1e3 * each[end]:,.1f}" for each in times] for end in ("low", "high"))
    assert f"{low[0]} to {high[0]} ms (dense) and {low[1]} to {high[1]} ms (pruned)" in page


def test_nothing_to_resume(job, tmp_path, caplog):
    quick = {**job, "method": "magnitude", "recovery": "none", "resume": True}
    main("prune", *flags(**quick, output=tmp_path / "out"))
    assert "no run was interrupted in" in caplog.text and load_pruned(tmp_path / "out").pruning_plan
    with pytest.raises(SystemExit, match="is not empty: choose another, or pass --overwrite$"):
        main("prune", *flags(**quick, output=tmp_path / "out"))


def test_checkpoints_of_an_earlier_run_are_not_resumed_from(job, tmp_path, caplog):
    """They go as a run begins that may write over them, and nothing else does."""
    output = tmp_path / "out"
    (output / "checkpoint-7").mkdir(parents=True)
    (output / "checkpoint-8").mkdir()
    (output / "checkpoint-7" / "trainer_state.json").write_text("{}")
    main("prune", *flags(**job, method="magnitude", recovery="none", output=output, overwrite=True))
    assert "checkpoint-7 of an earlier run" in caplog.text
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-8"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("reconstruct+finetune", "reconstruct"), ("finetune", None), ("none", "none"), ("reconstruct", "reconstruct")],
)
def test_compare_takes_of_a_recovery_what_trains_nothing(text, expected, job, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(CompareCommand, "execute", lambda self, arguments: read.append(arguments.recovery))
    (tmp_path / "prune.yaml").write_text(f"recovery: {text}")
    main("compare", *flags(**scoring_flags(job), config=tmp_path / "prune.yaml", output=tmp_path / "out"))
    assert read == [expected]


# --- prune ----------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(job, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="is not empty: choose another, or pass --overwrite"):
        main("prune", *flags(**job, output=output))
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]
    main("prune", *flags(**job, output=output, overwrite=True))
    assert load_pruned(output).pruning_plan and (output / "thesis.txt").exists()
    with pytest.raises(SystemExit, match="is the folder of the model, which would be lost"):
        main("prune", *flags(**{**job, "model": output}, output=output, overwrite=True))


def test_a_dry_run_writes_nothing(job, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in Path(job["model"]).iterdir()}
    main("prune", *flags(**job, output=tmp_path / "out"), "--dry-run")
    printed = capsys.readouterr().out
    assert not any(tmp_path.iterdir()) and {path: path.stat().st_mtime_ns for path in before} == before
    main("prune", *flags(**job, output=tmp_path / "out"))
    done = capsys.readouterr().out
    assert str(PruningPlan.load(tmp_path / "out")) in printed
    rows = [[row.split() for row in text.splitlines() if row.startswith("parameters")] for text in (printed, done)]
    assert rows[0] == rows[1] != [] and "Nothing was written" in printed


@pytest.mark.report
@pytest.mark.long
def test_scores_are_taken_from_a_file(job, tmp_path, capsys):
    """The same plan as if the job scored, and by the same method without being told."""
    scoring = {name: value for name, value in job.items() if name not in ("repeats", "sparsity") + SIZES}
    main("score", *flags(**scoring, method="taylor", output=tmp_path / "scores"))
    printed, scores = capsys.readouterr().out, load_file(tmp_path / "scores" / "scores.safetensors")
    groups = find_groups(AutoModelForSequenceClassification.from_pretrained(job["model"]))
    assert {name: len(values) for name, values in scores.items()} == {group.name: group.size for group in groups}
    lowest = scores["layer.0.heads"].argsort().tolist()
    assert re.search(rf"layer.0.heads +4 .* {' '.join(map(str, lowest))}$", printed, re.MULTILINE)
    assert "| layer.0.heads | 4 |" in (tmp_path / "scores" / "scores.md").read_text()
    main("prune", *flags(**job, method="taylor", output=tmp_path / "1"))
    main("prune", *flags(**job, scores=tmp_path / "scores", output=tmp_path / "2"))
    one, two = load_pruned(tmp_path / "1"), load_pruned(tmp_path / "2")
    assert one.pruning_plan == two.pruning_plan and two.pruning_plan.config.method == "taylor"
    assert all("Pruned" in (tmp_path / name / "report.html").read_text() for name in "12")
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())  # rebuilt too
    for wrong, message in (
        (
            {"method": "fisher"},
            "by other settings: method was 'taylor' and is now 'fisher'. Leave these, or score again",
        ),
        ({"granularity": ["layers"]}, r"granularity was \['heads', 'neurons'\] and is now \['layers'\]"),
        ({"seed": 1, "num_samples": 8}, "num_samples was 12 and is now 8; seed was 0 and is now 1"),
        ({"rounds": 2}, "take no --scores"),
        ({"max_train_samples": 15}, "are by other examples: max_train_samples was None and is now 15. Give the same"),
        ({"dtype": "bfloat16"}, r"\(BertForSequenceClassification, bfloat16\) differs in its --dtype"),
    ):
        with pytest.raises(SystemExit, match=message):
            main("prune", *flags(**{**job, **wrong}, scores=tmp_path / "scores", output=tmp_path / "3"))
    same = {"granularity": ["neurons", "heads"], "smooth_samples": 3}  # of which taylor has none
    main("prune", *flags(**{**job, **same}, scores=tmp_path / "scores", output=tmp_path / "4"))


def test_settings_of_the_noise_count_for_smooth_methods():
    config = PruningConfig(method="smooth_cut", sparsity=0.5, smooth_samples=2)
    scores = SavedScores(Path("file"), {}, Origin(config.to_dict(), {}, {}, None))
    scores.check_settings({"smooth_samples": 2, "noise_std": 0.1, "max_length": 3})
    with pytest.raises(
        ValueError, match="settings: smooth_samples was 2 and is now 3; noise_std was 0.1 and is now 1.0"
    ):
        scores.check_settings({"smooth_samples": 3, "noise_std": 1.0})


def test_which_settings_count_for_methods_that_read_no_data():
    for method, seed_counts in (("magnitude", False), ("random", True)):
        config = PruningConfig(method=method, sparsity=0.5)
        scores = SavedScores(Path("file"), {}, Origin(config.to_dict(), {}, {}, None))
        scores.check_settings({"num_samples": 3, **({} if seed_counts else {"seed": 1})})
    with pytest.raises(ValueError, match="seed was 0 and is now 1"):
        scores.check_settings({"seed": 1})


@pytest.mark.parametrize(
    "settings", [{"method": "snip", "granularity": ["weights"]}, {"method": "smooth_cut"}, {"method": "taylor"}]
)
def test_the_size_of_the_batches(settings, job, tmp_path):
    """Where scores depend on it, it is that of the file unless another is given, which is refused."""
    scoring = {name: value for name, value in job.items() if name not in ("repeats", "sparsity") + SIZES}
    main("score", *flags(**{**scoring, "batch_size": 5}, **settings, output=tmp_path / "scores"))
    own = {**job, **settings, "scores": tmp_path / "scores", "recovery": "none", "dry_run": True}
    if settings["method"] != "taylor":
        with pytest.raises(SystemExit, match="by batches of 5 examples, and these have 8, which .* same --batch_size"):
            main("prune", *flags(**own, output=tmp_path / "out"))
        del own["batch_size"]
    main("prune", *flags(**own, output=tmp_path / "out"))


def test_scores_of_weights_that_have_changed():
    model = tiny_model("bert")
    scores = SavedScores(Path("file"), {}, Origin({}, identify(model, "M"), {}, None))
    scores.check_model(model, "M")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"are of M \(.*\), but its weights have changed since: score again"):
        scores.check_model(model, "M")


@pytest.fixture(scope="session")
def of_another(classifier, data, tmp_path_factory):
    """Scores of the classifier before its last step: the same sizes, other weights; and that model."""
    folder = tmp_path_factory.mktemp("another")
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(classifier).save_pretrained(folder / "model")
    job = {"dataset": data, "task": "text-classification", "num_samples": 12, "batch_size": 8, "max_length": 24}
    main("score", *flags(model=folder / "model", **job, method="taylor", output=folder / "scores"))
    return folder


@pytest.mark.parametrize("dry_run", [False, True])
def test_scores_of_another_model_are_refused(dry_run, job, of_another, tmp_path):
    """The name does not matter: a copy of the model is the same."""
    more = {"scores": of_another / "scores", "output": tmp_path / "out", "dry_run": dry_run}
    with pytest.raises(SystemExit) as error:
        main("prune", *flags(**job, **more))
    told = r"\(BertForSequenceClassification, float32\)"
    assert re.fullmatch(
        rf".* prune: error: the scores in .*scores.safetensors are of .*model {told}; .* {told} is another. Name the "
        "former, or score again with optimum-cli camcut score",
        error.value.code,
    )
    shutil.copytree(of_another / "model", tmp_path / "copy")
    main("prune", *flags(**{**job, "model": tmp_path / "copy"}, **more))


def test_scores_by_other_rows_are_refused(job, tmp_path):
    """Unless the method reads none."""
    rows = [classified(number) for number in range(1, 21)]
    for method in ("taylor", "magnitude"):
        folder, scores = tmp_path / method, tmp_path / f"{method}.scores"
        own = {**job, "dataset": write(folder, [classified(number) for number in range(20)]), "method": method}
        scoring = {name: value for name, value in own.items() if name not in ("repeats", "sparsity") + SIZES}
        main("score", *flags(**scoring, output=scores))
        write(folder, rows)
        if method == "taylor":
            with pytest.raises(
                SystemExit, match="by other examples: the rows of .*taylor have changed. Give the same"
            ):
                main("prune", *flags(**own, scores=scores, output=tmp_path / "out"))
        else:
            main("prune", *flags(**own, scores=scores, output=tmp_path / "out"))


def test_what_would_go_first():
    """Of equal scores the last, as plans have it."""
    (line,) = scores_table({"group": torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0])})[1:]
    assert line == ["group", "5", "0", "1", "2", "3 1 4 0 2"]


def test_files_that_are_no_scores(job, pruned, tmp_path):
    with pytest.raises(SystemExit, match=r"holds no scores that can be used \(.*\): score again with optimum-cli"):
        main("prune", *flags(**job, scores=pruned / "model.safetensors", output=tmp_path / "out"))


def test_the_dense_model_counts_as_it_was_before_the_cut(job, tmp_path):
    """With dense epochs, after them; a learning rate of 0 changes nothing."""
    training = {"dense_epochs": 1, "epochs": 1, "recovery": "none"}
    losses = []
    for rate in (0.0, 1e-2):
        main("prune", *flags(**job, **training, learning_rate=rate, output=tmp_path / str(rate)))
        losses.append(
            json.loads((tmp_path / str(rate) / "pruning_results.json").read_text())["dense"]["metrics"]["loss"]
        )
    main("prune", *flags(**job, output=tmp_path / "plain"))
    plain = json.loads((tmp_path / "plain" / "pruning_results.json").read_text())["dense"]["metrics"]["loss"]
    assert losses[0] == pytest.approx(plain, rel=1e-6) and abs(losses[1] - plain) > 1e-3


def test_single_weights_and_a_metric_of_evaluate(job, tmp_path):
    metric = f"{REPOSITORY / 'examples' / 'glue_metric'}:cola"
    main("prune", *flags(**job, granularity=["weights"], metric=metric, output=tmp_path / "out"))
    assert PruningConfig.from_pretrained(tmp_path / "out").recovery == "none"
    main("prune", *flags(**job, granularity=["weights"], output=tmp_path / "own"))
    theirs, own = (json.loads((tmp_path / name / "pruning_results.json").read_text()) for name in ("out", "own"))
    for name in ("dense", "pruned"):
        assert list(theirs[name]["metrics"]) == ["matthews_correlation", "loss"]
        assert theirs[name]["metrics"]["matthews_correlation"] == pytest.approx(
            own[name]["metrics"]["matthews_correlation"]
        )


# --- the other commands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pruned(classifier, tmp_path_factory):
    """A pruned checkpoint, with its tokenizer."""
    folder = tmp_path_factory.mktemp("pruned")
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    apply_plan(model, random_plan(model, 0)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(classifier).save_pretrained(folder)
    return folder


def test_benchmark(classifier, pruned, tmp_path, capsys, monkeypatch):
    path = tmp_path / "times.json"
    shapes = {"batch_sizes": [1, 4], "sequence_lengths": [8, 16], "repeats": 2}
    main("benchmark", *flags(dense=classifier, pruned=[pruned], **shapes, output=path))
    rows, printed = json.loads(path.read_text())["rows"], capsys.readouterr().out
    assert [(row["model"], row["batch_size"], row["sequence_length"]) for row in rows] == [
        (str(model), batch, length) for length in (8, 16) for batch in (1, 4) for model in (classifier, pruned)
    ]
    assert len(printed.splitlines()) == 2 + len(rows)
    model = load_pruned(pruned)
    for dense, cut in zip(rows[::2], rows[1::2]):
        assert cut["parameters"] == count_parameters(model) < dense["parameters"]
        assert cut["memory"] == peak_memory(model, cut["batch_size"], cut["sequence_length"]) < dense["memory"]
        assert cut["throughput"] == pytest.approx(cut["batch_size"] / cut["latency"])
        assert cut["speedup"] == pytest.approx(dense["latency"] / cut["latency"]) and dense["speedup"] == 1.0
    with pytest.raises(SystemExit, match="is there already"):
        main("benchmark", *flags(dense=classifier, pruned=[pruned], output=path))
    monkeypatch.setattr(measure, "measure_latency", lambda *_: pytest.fail("measured before all was checked"))
    for wrong, message in (
        ({"sequence_lengths": [8, 65]}, "takes 64 tokens at most, not 65"),
        ({"sequence_lengths": [0]}, "sequence_lengths should be at least 1, got 0"),
        ({"batch_sizes": [1, -1]}, "batch_sizes should be at least 1, got -1"),
    ):
        with pytest.raises(SystemExit, match=message):
            main("benchmark", *flags(dense=classifier, pruned=[pruned], **wrong))


class Chain(torch.nn.Module):
    config, device = SimpleNamespace(vocab_size=10, pad_token_id=None), torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Embedding(10, 16), torch.nn.Linear(16, 32), torch.nn.Linear(32, 8), torch.nn.Flatten()
        )

    def forward(self, input_ids, attention_mask):
        return self.layers(input_ids)


def test_peak_memory_by_hand():
    """The most is there at the first linear layer: its input and its output; views take nothing."""
    weights = 4 * (10 * 16 + 17 * 32 + 33 * 8)
    assert peak_memory(Chain(), 3, 5) == weights + 4 * 3 * 5 * (16 + 32)
    model = tiny_model("bert")
    small, large = (peak_memory(model, batch, 16) - count_bytes(model) for batch in (2, 4))
    assert large == 2 * small > 0


def test_peak_memory_where_the_allocator_keeps_no_record(monkeypatch):
    """As Apple's: the results of operations are counted, as on the CPU."""
    on_cpu = peak_memory(Chain(), 3, 5)
    inputs = measure.random_inputs(Chain(), 3, 5)
    monkeypatch.setattr(Chain, "device", torch.device("mps"))
    monkeypatch.setattr(measure, "random_inputs", lambda *_: inputs)
    assert peak_memory(Chain(), 3, 5) == on_cpu


def test_compare(job, tmp_path, capsys):
    output = tmp_path / "out"
    del job["sparsity"]
    job |= {"methods": ["taylor", "magnitude"], "sparsities": [0.5], "seeds": [0, 1], "metric": "f1"}
    (tmp_path / "prune.yaml").write_text("recovery: reconstruct+finetune\ntraining: {max_steps: 1}\nscores: s")
    main("compare", *flags(**job, config=tmp_path / "prune.yaml", output=output))  # of which none is for it
    result = Comparison.load(output / "comparison.json")
    assert [row.method for row in result.rows] == ["dense", "taylor", "magnitude"]
    assert result.settings["recovery"] == "reconstruct"
    assert result.settings["seeds"] == [0, 1] and str(result) in capsys.readouterr().out
    assert (output / "comparison.md").read_text() == result.to_markdown()
    assert (output / "comparison.png").stat().st_size > 10_000
    changed = {name: value for name, value in job.items() if name not in ("methods", "sparsities", "seeds")}
    main("prune", *flags(**changed, method="magnitude", sparsity=0.5, output=tmp_path / "one"))
    metrics = json.loads((tmp_path / "one" / "pruning_results.json").read_text())
    assert result.dense.quality == pytest.approx(metrics["dense"]["metrics"]["f1"])
    with pytest.raises(SystemExit, match="is not empty"):
        main("compare", *flags(**job, output=output))


MAE = """
import datasets
import evaluate

class MAE(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("float") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        mae = sum(abs(one - other) for one, other in zip(predictions, references)) / len(references)
        return GIVES
"""


@pytest.mark.parametrize("gives", ["{'score': mae}", "mae", "{'of_rows': [mae], 'mae': mae}"])
def test_metrics_of_evaluate_that_are_errors(gives, tmp_path):
    """Known by their own name where what they give is named otherwise, or is a number alone."""
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae" / "mae.py").write_text(MAE.replace("GIVES", gives))
    task = task_of("text-classification", Dataset.from_list([{"text": sentence(n), "label": n / 3} for n in range(4)]))
    task.use_metric(str(tmp_path / "mae"))
    assert task.measure(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == {task.headline: 0.5}
    assert task.headline == ("score" if "'score'" in gives else "mae") and not task.larger_is_better


def test_which_way_metrics_rank():
    smaller = ("loss", "eval_loss", "mse", "MAE", "perplexity", "mean_perplexity", "mean_squared_error")
    smaller += ("eval_mse", "eval_mae", "test_wer", "eval_perplexity")
    assert not any(map(larger_is_better, smaller))
    assert all(map(larger_is_better, ("accuracy", "f1", "eval_f1", "spearmanr", "exact_match", "of_somebody")))


@pytest.mark.parametrize("metric", ["loss", "mse"])
def test_compare_by_what_should_be_small(metric, job, model_path, tmp_path, capsys):
    rows = [{"sentence": sentence(n), "label": n / 3} for n in range(16)]
    job |= {"dataset": write(tmp_path / "data", rows), "model": model_path, "metric": metric}
    job |= {"methods": ["magnitude"], "sparsities": [0.5], "rebuild": False}
    del job["sparsity"]
    main("compare", *flags(**job, output=tmp_path / "out"))
    result = Comparison.load(tmp_path / "out" / "comparison.json")
    dense, cut = result.rows
    assert not result.larger_is_better and "quality, less is better" in capsys.readouterr().out
    best, fastest = (min(result.rows, key=lambda row: getattr(row, name)) for name in ("quality", "latency"))
    assert set(map(id, result.pareto())) == {id(best), id(fastest)}


@pytest.mark.parametrize(("metric", "greater"), [("loss", False), ("eval_mse", False), ("f1", True)])
def test_the_best_checkpoint_is_that_of_the_right_direction(metric, greater, job, tmp_path):
    """`Trainer` by itself takes all but losses to be better the larger they are."""
    arguments = SimpleNamespace(batch_size=8, training={"metric_for_best_model": metric}, given={})
    assert training_arguments(arguments, tmp_path, PruningConfig(sparsity=0.5)).greater_is_better == greater
    arguments.training["greater_is_better"] = not greater  # a user knows better
    assert training_arguments(arguments, tmp_path, PruningConfig(sparsity=0.5)).greater_is_better != greater


def test_numbered_choices_are_found_by_their_labels():
    """As some rows of ARC have them: the first choice is "1"."""
    choices = {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]}
    rows = Dataset.from_list([{"question": "q", "choices": choices, "answerKey": key} for key in "14"])
    task = TASKS["multiple-choice"](rows)
    task.tokenizer = lambda one, other, **_: {"input_ids": [[0]] * len(other)}
    task.length = 8
    assert task.encode(rows[:], [0, 1])["labels"] == [0, 3]


def test_labels_that_are_true_or_false():
    rows = Dataset.from_list([{"text": "a", "label": True}, {"text": "b", "label": False}])
    task = TASKS["text-classification"](rows)
    task.of_model = np.array([1, 0])
    assert [task.to_class(value, 0) for value in rows["label"]] == [0, 1]


def test_repeats_are_checked_before_anything_runs(tmp_path):
    with pytest.raises(SystemExit, match="repeats should be at least 1, got 0"):
        main("prune", *flags(model="m", dataset="d", task="fill-mask", sparsity=0.5, repeats=0, output=tmp_path / "o"))


def test_what_measures_time_runs_in_one_process(job, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="runs in one process: start it without accelerate"):
        main("compare", *flags(**{name: job[name] for name in ("model", "dataset", "task")}, output=tmp_path / "out"))


def test_a_report_with_scores_of_another_model(job, of_another, tmp_path):
    """Of the same sizes: the checkpoint tells which model was pruned."""
    main("prune", *flags(**{**job, "method": "magnitude", "recovery": "none"}, output=tmp_path / "pruned"))
    report = flags(model=tmp_path / "pruned", output=tmp_path / "1.html")
    with pytest.raises(SystemExit, match="are of .*another.*; .* is another. Name the former, or score again"):
        main("report", *report, *flags(scores=of_another / "scores"))
    main("score", *flags(**scoring_flags(job), method="magnitude", output=tmp_path / "scores"))
    main("report", *report, *flags(scores=tmp_path / "scores"))


@pytest.mark.parametrize("dense", [False, True], ids=["checkpoint", "with the dense model"])
def test_a_report_with_scores_of_other_sizes(dense, classifier, pruned, data, model_path, tmp_path):
    """Of fewer layers, and of none of the kinds that were cut."""
    model = tiny_model("bert", "SequenceClassification", vocab_size=len(AutoTokenizer.from_pretrained(model_path)))
    apply_plan(model, random_plan(model, 1)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_path).save_pretrained(tmp_path / "model")
    own = {"dataset": data, "task": "text-classification", "num_samples": 4, "max_length": 24, "method": "magnitude"}
    for kinds in (["heads", "neurons"], ["layers"]):
        scores = tmp_path / kinds[0]
        main("score", *flags(model=tmp_path / "model", **own, granularity=kinds, output=scores))
        given = flags(dense=classifier) if dense else []
        with pytest.raises(SystemExit, match="report: error: .*scores"):
            main("report", *flags(model=pruned, scores=scores, repeats=1, output=tmp_path / "1.html"), *given)
    assert not (tmp_path / "1.html").exists()


def test_report(classifier, pruned, of_another, data, tmp_path, capsys):
    """From a checkpoint, and from a plan and the dense model."""
    quick = {"repeats": 1, "sequence_length": 16}
    main("report", *flags(model=pruned, output=tmp_path / "1.html"))
    main("report", *flags(model=pruned, dense=classifier, output=tmp_path / "2.html", **quick))
    plan, other = {"plan": pruned / "pruning_plan.json"}, [f"other={pruned}"]
    main("report", *flags(model=classifier, **plan, plans=other, output=tmp_path / "3.html", **quick))
    pages = [(tmp_path / f"{number}.html").read_text() for number in (1, 2, 3)]
    own = {"dataset": data, "task": "text-classification", "method": "magnitude", "granularity": ["layers"]}
    main("score", *flags(model=classifier, **own, output=tmp_path / "scores"))
    with pytest.raises(SystemExit, match="the scores in .* are of layers, of which the plan cuts none"):
        main("report", *flags(model=classifier, **plan, scores=tmp_path / "scores", output=tmp_path / "4.html"))
    with pytest.raises(SystemExit, match=r"are of .*another.*; .* is another. Name the former, or score again"):
        main("report", *flags(model=classifier, **plan, scores=of_another / "scores", output=tmp_path / "4.html"))
    assert ["latency of a forward pass" in page for page in pages] == [False, True, True]
    assert capsys.readouterr().out.count(".html.\n") == 3 and "other" in pages[2]
    with pytest.raises(SystemExit, match="is there already"):
        main("report", *flags(model=pruned, output=tmp_path / "1.html"))
    with pytest.raises(SystemExit, match="is not pruned; name a plan for it with --plan"):
        main("report", *flags(model=classifier, output=tmp_path / "4.html"))
