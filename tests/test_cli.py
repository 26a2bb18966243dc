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

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_environment
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from models import random_plan, tiny_config, tiny_model
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optimum_camcut import Comparison, PruningPlan, apply_plan, find_groups, load_pruned
from optimum_camcut.commands.camcut import CamCutCommand, pruning_options, read_settings
from optimum_camcut.config import PruningConfig
from optimum_camcut.measure import count_bytes, count_parameters, peak_memory
from optimum_camcut.tasks import TASKS, classification_metrics, regression_metrics


REPOSITORY = Path(__file__).resolve().parents[1]
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


def flags(**values):
    found = []
    for name, value in values.items():
        if isinstance(value, bool):
            found += [f"--{name}"] if value else []
        elif isinstance(value, list | tuple):
            found += [f"--{name}", *map(str, value)]
        else:
            found += [f"--{name}", str(value)]
    return found


def main(*arguments):
    """`optimum-cli camcut` in this process."""
    root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
    register_optimum_cli_subcommand(CamCutCommand, parent_command=root)
    parsed = root.parser.parse_args(["camcut", *map(str, arguments)])
    parsed.func(parsed).run()


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
    return run(python, Path(sysconfig.get_path("scripts")) / "optimum-cli", *arguments, expected=expected)


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
    assert AutoTokenizer.from_pretrained(output).tokenize("what") == ["what"]
    assert str(model.pruning_plan) in printed
    results = json.loads((output / "pruning_results.json").read_text())
    for name, each in (("dense", dense), ("pruned", model)):
        assert results[name]["parameters"] == count_parameters(each)
        assert results[name]["latency"]["median"] > 0 and 0 <= results[name]["metrics"]["accuracy"] <= 1
    assert results["dense"]["bytes"] == count_bytes(dense)
    assert results["pruned"]["bytes"] == (output / "model.safetensors").stat().st_size
    last = [re.split(r"  +", line) for line in printed.splitlines()]
    assert [each[0] for each in last if len(each) == 4][-7:] == [
        "parameters (M)",
        "FLOPs, 1 x 16 tokens (G)",
        "latency, 2 x 16 tokens (ms)",
        "weights on disk (MB)",
        "accuracy",
        "f1",
        "matthews_correlation",
    ] or [each[0] for each in last if len(each) == 4][-1] == "loss"
    assert PruningConfig.from_pretrained(output).recovery == "reconstruct"  # by default


def test_two_processes_make_the_same_plan(from_wheel, job, tmp_path):
    config = tmp_path / "config.json"
    values = {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}
    config.write_text(json.dumps({**values, "recovery": "finetune", "training": {"max_steps": 1}}))
    main("prune", *flags(config=config, output=tmp_path / "1", recovery="none"))
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command += ["--module", "optimum.commands.optimum_cli", "camcut", "prune"]
    command += flags(config=config, output=tmp_path / "2")
    printed, _ = run(from_wheel, *command)
    assert printed.count("pruned/dense") == 1  # one table, by the first
    plans = [PruningPlan.load(tmp_path / name) for name in "12"]
    assert plans[0].keep == plans[1].keep and plans[0].config.recovery != plans[1].config.recovery
    one, two = (json.loads((tmp_path / name / "pruning_results.json").read_text()) for name in "12")
    assert one["dense"]["metrics"]["accuracy"] == two["dense"]["metrics"]["accuracy"]


def test_an_error_is_one_line(from_wheel, job, tmp_path):
    """And no traceback."""
    job |= {"output": tmp_path / "out", "text_columns": ["phrase"]}
    _, shown = optimum_cli(from_wheel, "camcut", "prune", *flags(**job), expected=1)
    assert "Traceback" not in shown
    assert shown.splitlines()[-1] == (
        "optimum-cli camcut prune: error: there is no column phrase; the columns are sentence, label, idx; choose by "
        "--text_columns"
    )
    assert not (tmp_path / "out").exists()


# --- every task -----------------------------------------------------------------------------------------------------


def answered(number):
    context = sentence(number, 12)
    answer = context.split()[number % 8 + 1]
    start = context.index(f" {answer}") + 1
    return {"question": "what is", "context": context, "answers": {"text": [answer], "answer_start": [start]}}


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
    assert set(ROWS) == set(TASKS)


@pytest.mark.parametrize("task", ROWS)
def test_every_task(task, model_path, tmp_path, capsys):
    """From a model without a head: pruned, evaluated, and loaded as what it now is."""
    data, output, model = write(tmp_path / "data", [ROWS[task](n) for n in range(16)]), tmp_path / "out", model_path
    if task == "text-generation":
        model = tmp_path / "decoder"
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        config = tiny_config("gpt2", vocab_size=len(tokenizer))
        transformers.GPT2LMHeadModel(config).save_pretrained(model)
        tokenizer.save_pretrained(model)
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
