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
"""The short scripts of `examples` run as they stand, on tiny models and a few rows, and leave behind what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from optimum_camcut import find_groups, load_pruned


REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tests" / "docs"))
from stand_ins import make_data, make_model  # noqa: E402


EXAMPLES = REPOSITORY / "examples"
# Of every script: its arguments here, and what it prints. All but `time_pruned.py` also write into `--output`.
SCRIPTS = {
    "prune_classifier": (["--model", "MODEL"], r"'eval_accuracy': "),
    "prune_without_training": (["--model", "MODEL"], r"parameters before, [\d,]+ now"),
    "choose_budget": (["--model", "MODEL", "--methods", "taylor", "magnitude", "--sparsities", "0.5"], r"taylor.+50"),
    "prune_tagger": (["--model", "google-bert/bert-base-cased"], r"'eval_loss': "),
    "prune_language_model": (["--model", "openai-community/gpt2"], r"perplexity [\d.]+ before, [\d.]+ after"),
    "distil": (["--model", "MODEL", "--epochs", "1"], r"after: .*'eval_accuracy': "),
    "time_pruned": (["--dense", "MODEL", "--pruned", "pruned", "--repeats", "2"], r"[\d.]+ times as fast"),
}
MODELS = {
    "MODEL": ("SequenceClassification", "bert"),
    "google-bert/bert-base-cased": ("MaskedLM", "bert"),
    "openai-community/gpt2": ("CausalLM", "gpt2"),
}
DATA = ("nyu-mll/glue:sst2", "unimelb-nlp/wikiann:en", "Salesforce/wikitext:wikitext-2-raw-v1")


@pytest.fixture(scope="module")
def stand_ins(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand_ins")
    for name, (task, architecture) in MODELS.items():
        make_model(folder / name, task, architecture, model_path)
    for name in DATA:
        make_data(folder, name)
    return folder


@pytest.fixture
def run(stand_ins, tmp_path, monkeypatch, capsys):
    """Runs a script as `python examples/NAME.py ARGUMENTS` would, beside folders of the names it asks the Hub for."""
    for each in stand_ins.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMCUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("optimum_camcut.planning.latency.ROUNDS", 2)
    monkeypatch.setattr("optimum_camcut.planning.latency.SIZES", 4)
    for module in ("measure", "latency"):
        monkeypatch.setattr(f"optimum_camcut.planning.{module}.time_forward", count_time)
    monkeypatch.setattr("optimum_camcut.reporting.card.draw_pictures", lambda plan: {})

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        made = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return made, capsys.readouterr().out

    return run


def count_time(model, inputs, clock=None):
    """A nanosecond a parameter but of embeddings: what a tiny model takes hardly depends on its sizes."""
    return 1e-9 * sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_runs(name, run):
    arguments, expected = SCRIPTS[name]
    if name == "time_pruned":
        run("prune_without_training", *SCRIPTS["prune_without_training"][0], "--output", "pruned")
    else:
        arguments = [*arguments, "--output", "out"]
    made, printed = run(name, *arguments)
    assert re.search(expected, printed), printed
    if name == "choose_budget":
        rows = json.loads(Path("out/comparison.json").read_text())["rows"]
        assert [row["method"] for row in rows] == ["dense", "taylor", "magnitude"]
        assert "| taylor" in Path("out/comparison.md").read_text()
    elif name != "time_pruned":
        model = load_pruned("out")
        plan = made["trainer"].pruning_plan if "trainer" in made else made["plan"]
        assert model.pruning_plan.keep == plan.keep
        assert sum(group.size for group in find_groups(model)) < sum(plan.sizes.values())
        assert Path("out/tokenizer_config.json").exists()


def test_every_script_is_tested_and_listed():
    """Beside the demo and what it needs, and the script for all of GLUE."""
    found = {path.stem for path in EXAMPLES.glob("*.py")} - {"demo", "fetch_model", "run_glue"}
    assert found == set(SCRIPTS)
    for page in ("README.md", "docs/index.md"):
        text = (REPOSITORY / page).read_text()
        assert all(f"examples/{name}.py" in text for name in found), page
