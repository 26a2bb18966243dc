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
"""Every block of Python and of shell in README.md and `docs` runs, a page as one session from top to bottom.

The blocks run as they stand, in a folder where `stand_ins` has put tiny models and data under the names that the pages
use. What is different is in this file: `GIVEN` (names that a page takes as given), `SHORTER` (options added to
commands so that they take seconds), and `place` (time is counted and not measured, smooth methods
take two passes, and cards have no figures).

A marker above a block says why it does not run:

    <!-- not run: REASON -->            nothing is done
    <!-- checked, not run: REASON -->   a command is read as the program would read it, and not started
"""

import argparse
import contextlib
import functools
import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from datasets import load_dataset
from optimum.commands.base import RootOptimumCLICommand
from optimum.commands.optimum_cli import register_optimum_cli_subcommand
from stand_ins import make_stand_ins
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

import optimum_camcut
from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, score_groups
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES
from optimum_camcut.commands.camcut import COMMANDS, CamCutCommand
from optimum_camcut.config import NOISE, PAPER_NOISE
from optimum_camcut.scoring import SCORERS


REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MARKER = re.compile(r"<!-- (not run|checked, not run): (\S.*) -->\n[ ]*$")
LANGUAGES = ("python", "bash", "yaml", "text", "bibtex")
SHORTER = {
    "prune": ["--repeats", "1"],
    "compare": ["--repeats", "1", "--seeds", "0", "--sparsities", "0.5"],
    "benchmark": ["--repeats", "1"],
    "examples/benchmarks/budgets.py": ["--model_name_or_path", "MODEL", "--sparsities", "0.5", "--rounds", "2"],
}


# --- what pages take as given ---------------------------------------------------------------------------------------


@functools.cache
def data_to_train_on():
    tokenizer = AutoTokenizer.from_pretrained("MODEL")
    data = load_dataset("nyu-mll/glue", "sst2")
    data = data.map(lambda rows: tokenizer(rows["sentence"], padding="max_length", max_length=40), batched=True)
    return tokenizer, data.remove_columns(["sentence", "idx"]).rename_column("label", "labels")


def load(name):
    return AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32).eval()


class Given:
    """Names of a page, made where it needs them."""

    def __init__(self):
        self.tokenizer, data = data_to_train_on()
        self.train = self.train_dataset = data["train"]
        self.validation = data["validation"]
        self.dataloader = DataLoader(self.train, 16, collate_fn=DataCollatorWithPadding(self.tokenizer))
        self.training_args = TrainingArguments("outputs/given", num_train_epochs=1, report_to="none")
        self.labelled = next(iter(self.dataloader))
        self.batch = {name: value for name, value in self.labelled.items() if name != "labels"}

    @property
    def model(self):
        return self.model_init()

    dense = another = model

    @property
    def other(self):
        return load("FOUR_LAYERS")

    def model_init(self):
        return load("MODEL")

    @property
    def sparse_model(self):
        model = self.model
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight[:, ::2] = 0
        return model

    @property
    def config(self):
        return PruningConfig(method="magnitude", sparsity=0.5)

    @property
    def scores(self):
        return score_groups(self.model, find_groups(self.model), [], self.config)

    @property
    def plan(self):
        return make_plan(self.scores, find_groups(self.model), self.config)

    @property
    def other_plan(self):
        config = PruningConfig(method="random", sparsity=0.5)
        groups = find_groups(self.model)
        return make_plan(score_groups(self.model, groups, [], config), groups, config)

    @property
    def pruned_model(self):
        return apply_plan(self.model, self.plan)

    def evaluate(self, model):
        with torch.no_grad():
            hits = (model(**self.batch).logits.argmax(-1) == self.labelled["labels"]).float()
        return float(hits.mean())

    @property
    def pairs(self):
        tokens = {"decoder_input_ids": self.batch["input_ids"], "labels": self.batch["input_ids"]}
        return [{**{name: self.batch[name] for name in ("input_ids", "attention_mask")}, **tokens}]

    @property
    def batches(self):
        ids = torch.randint(5, 60, (2, 12))
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


# Of every page that takes names as given: which, in the words of the page.
TRAINING = ("model", "training_args", "train", "validation", "tokenizer")
GIVEN = {
    "README": TRAINING,
    "trainer": (*TRAINING, "model_init"),
    "steps": ("model", "tokenizer", "dataloader", "train", "other", "another", "pairs"),
    "weights": (*TRAINING, "dataloader", "sparse_model"),
    "choosing": ("train_dataset", "dataloader", "evaluate"),
    "methods": ("plan", "other_plan"),
    "loading": ("model", "tokenizer", "batch"),
    "report": ("dense", "scores", "other_plan"),
    "scale": ("batches",),
    "guide_vocabulary": (*TRAINING, "batches"),
}


# And folders that it takes as given.
CHECKPOINTS = {"README": ("path-or-hub-id",), "loading": ("path-or-hub-id", "smaller"), "report": ("smaller",)}


# --- how a block runs -----------------------------------------------------------------------------------------------


def marker(example):
    found = MARKER.search(example.document.text[: example.region.start])
    return found[1] if found else None


def run_python(example):
    if marker(example) is None:
        PythonEvaluator()(example)
    else:
        compile(example.parsed, example.path, "exec")


def write_yaml(example):
    """The file that its first line names."""
    name = re.match(r"# (\S+\.yaml)\n", example.parsed)[1]
    Path(name).write_text(example.parsed)
    assert yaml.safe_load(example.parsed)


def run_shell(example):
    for command in example.parsed.replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if words:
            run_command(words, started=marker(example) is None)


def run_command(words, started):
    """One command, in this process; `started` or only read."""
    program, *rest = words
    if program == "accelerate":
        launch = launch_command_parser().parse_args(rest[1:])
        assert rest[0] == "launch"
        target = [launch.training_script, *launch.training_script_args]
        if launch.module:
            assert target[0] == "optimum.commands.optimum_cli"
            run_command(["optimum-cli", *target[1:]], started)  # as one process
        else:
            run_command(["python", *target], started)
    elif program == "optimum-cli" and rest[0] == "camcut":
        root = RootOptimumCLICommand("Optimum CLI tool", usage="optimum-cli")
        register_optimum_cli_subcommand(CamCutCommand, parent_command=root)
        arguments = root.parser.parse_args([*rest, *SHORTER.get(rest[1], [])])
        if started:
            arguments.func(arguments).run()
    elif program == "python":
        if rest[:2] == ["-m", "pytest"]:
            assert not started and all((REPOSITORY / word).exists() for word in rest if word.startswith("tests"))
        else:
            assert not started or rest[0] in SHORTER, f"mark this block: {words}"
            run_script(*rest, *SHORTER.get(rest[0], []), started=started)
    elif program == "pip":
        extras = ",".join(re.findall(r"\[(.+?)\]", rest[-1])).split(",")
        known = (REPOSITORY / "pyproject.toml").read_text()
        assert not started and rest[0] == "install" and all(f"\n{each} = [" in known for each in extras if each)
    elif program == "make":
        assert not started and f"\n{rest[0]}:" in (REPOSITORY / "Makefile").read_text()
    else:
        assert not started, f"mark this block: {words}"


class Read(Exception):
    """A script has read its arguments."""


def run_script(path, *arguments, started):
    """Runs a script of the examples in this process; or stops it where it has read its arguments."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, *given, **keywords):
        _, unknown = parse(self, *given, **keywords)
        assert not unknown, unknown
        raise Read

    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / Path(path).parent))
        patch.setattr(sys, "argv", [path, *arguments])
        if not started:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        with contextlib.suppress(Read):
            runpy.run_path(str(REPOSITORY / path), run_name="__main__")
            assert started, f"{path} read no arguments"
    for name in set(sys.modules) - before:  # scripts import what is beside them
        if str(REPOSITORY / "examples") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


SYBIL = Sybil(
    [
        CodeBlockParser("python", run_python),
        CodeBlockParser("bash", run_shell),
        CodeBlockParser("yaml", write_yaml),
    ]
)


@pytest.fixture(scope="session")
def stand_ins(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand_ins")
    make_stand_ins(folder, model_path)
    return folder


@pytest.fixture
def place(stand_ins, tmp_path, monkeypatch):
    """A folder with the stand-ins and the examples, for one page."""
    folder = tmp_path / "page"
    folder.mkdir()
    for path in (*stand_ins.iterdir(), REPOSITORY / "examples"):
        (folder / path.name).symlink_to(path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CAMCUT_CACHE", str(tmp_path / "cache"))
    for module in ("measure", "latency"):
        monkeypatch.setattr(f"optimum_camcut.planning.{module}.time_forward", count_time)
    monkeypatch.setattr("optimum_camcut.planning.latency.ROUNDS", 2)
    monkeypatch.setattr("optimum_camcut.planning.latency.SIZES", 4)
    for noise in (NOISE, PAPER_NOISE):
        monkeypatch.setitem(noise, "smooth_samples", 2)
    monkeypatch.setattr("optimum_camcut.reporting.card.draw_pictures", lambda plan: {})
    before = [(registry, dict(registry)) for registry in (ARCHITECTURES, SCORERS)]  # a page may add to them
    yield folder
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def count_time(model, inputs, clock=None):
    """A nanosecond for every parameter except those of embeddings, in place of the time that a pass takes."""
    return 1e-9 * sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_blocks_run(page, place):
    document = SYBIL.parse(page)
    names = GIVEN.get(page.stem, ())
    if names:
        given = Given()
        document.namespace.update({name: getattr(given, name) for name in names})
    for name in CHECKPOINTS.get(page.stem, ()):
        given.pruned_model.save_pretrained(name)
        given.tokenizer.save_pretrained(name)
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    blocks = re.findall(r"^[ ]*```(?:python|bash|yaml)$", page.read_text(), re.MULTILINE)
    assert len(examples) == len(blocks)  # none was overlooked


def test_every_block_is_known():
    """None is of a language that nothing runs, and every marker stands above a block."""
    for page in PAGES:
        text = page.read_text()
        found = re.findall(r"^[ ]*```(\w*)\n.*?^[ ]*```$", text, re.MULTILINE | re.DOTALL)
        assert set(found) <= set(LANGUAGES), page
        markers = re.findall(r"^[ ]*<!-- (?:checked, )?not run.*-->", text, re.MULTILINE)
        assert len(markers) == len(re.findall(r"<!-- (?:checked, )?not run: \S.* -->\n[ ]*```(?:bash|python)\n", text))
        for name in GIVEN.get(page.stem, ()):
            assert f"`{name}`" in text or re.search(rf"\b{name}\b", text), (page, name)


def test_the_pages_name_files_and_tests_that_there_are():
    sources = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in sources, (page, name)
        for name in re.findall(r"(?:tests|docs|examples|optimum_camcut)/[\w/.]+\.(?:py|md|png|json)", text):
            assert (REPOSITORY / name).exists(), (page, name)


def test_the_links_outside_of_the_site_lead_somewhere():
    """`mkdocs build --strict` looks at those between the pages."""
    for page in PAGES[:2]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text) + re.findall(r'src="(.+?)"', text):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


def test_the_page_of_the_api_has_all_public_names():
    text = (REPOSITORY / "docs" / "api.md").read_text()
    found = set(re.findall(r"^::: optimum_camcut\.(\w+)$", text, re.MULTILINE))
    assert found == set(optimum_camcut.__all__) - {"__version__"}


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 200


def test_the_page_of_options_has_them_all():
    specification = importlib.util.spec_from_file_location("hooks", REPOSITORY / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    page = (REPOSITORY / "docs" / "options.md").read_text()
    made = hooks.on_page_markdown(page)
    assert hooks.OPTIONS not in made
    for command in COMMANDS:
        section = made.split(f"## {command.COMMAND.name}\n")[1].partition("\n## ")[0]
        options = [option.name for option in command.options()]
        assert re.findall(r"^\| `--(?:no-)?(\w+)", section, re.MULTILINE)[: len(options)] == options
