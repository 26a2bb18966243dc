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
"""Imports: what importing costs, what is optional, and which way dependencies point."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import optimum_camcut


PACKAGE = Path(optimum_camcut.__file__).parent

# Every module may import those above it, and nothing below it.
ORDER = (
    "version",
    "files",
    "tables",
    "hub",
    "units",
    "modeling_camcut",
    "groups",
    "scoring.errors",
    "scoring.registry",
    "scoring.cam_cut",
    "scoring.baselines",
    "scoring.smooth_cut",
    "scoring",
    "config",
    "sharding",
    "scoring.capture",
    "scoring.noise",
    "scoring.processes",
    "scoring.sums",
    "scoring.batches",
    "scoring.gradients",
    "scoring.weights",
    "scoring.loop",
    "measure",
    "latency",
    "plan",
    "places",
    "allocation",
    "overlap",
    "plots.figure",
    "plots.agreement",
    "plots.kept",
    "plots.quality",
    "plots",
    "masking",
    "twin",
    "card",
    "stored",
    "saving",
    "report",
    "checkpoint",
    "stale",
    "surgery",
    "entries",
    "streams",
    "rebuild",
    "comparison",
    "distillation",
    "sampling",
    "phases",
    "progress",
    "resume",
    "logs",
    "checks",
    "evaluations",
    "wrapping",
    "run_report",
    "tasks.classes",
    "tasks.data",
    "tasks.metrics",
    "tasks.task",
    "tasks.models",
    "tasks.text_classification",
    "tasks.token_classification",
    "tasks.multiple_choice",
    "tasks.question_answering",
    "tasks.language_modeling",
    "tasks",
    "trainer",
    "commands.output",
    "commands.settings",
    "commands.options",
    "commands.command",
    "commands.job",
    "commands.results",
    "commands.saved_scores",
    "commands.score",
    "commands.prune",
    "commands.report",
    "commands.benchmark",
    "commands.compare",
    "commands.camcut",
    "commands",
    "",  # the package itself
)
PUBLIC = (
    "CamCutTrainer",
    "Comparison",
    "LatencyTable",
    "MaskOverlap",
    "PrunableGroup",
    "PruningConfig",
    "PruningPlan",
    "apply_plan",
    "check_architecture",
    "compare",
    "distillation_loss",
    "find_groups",
    "hold_masks",
    "latency_table",
    "load_pruned",
    "make_plan",
    "mask_iou",
    "prune_heads",
    "reconstruct",
    "reconstruct_all",
    "score_groups",
)


def run_python(code, *arguments):
    """The last line that a fresh interpreter prints."""
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


# --- the package ----------------------------------------------------------------------------------------------------


def test_importing_the_package_costs_nothing():
    code = """
    import sys
    import optimum_camcut
    optimum_camcut.__version__, dir(optimum_camcut)
    heavy = {"torch", "transformers", "accelerate", "datasets", "evaluate", "optimum", "numpy", "huggingface_hub"}
    print(sorted(heavy & set(sys.modules)))
    """
    assert run_python(code) == "[]"


def test_the_config_needs_no_torch():
    """So that a command line can answer `--help` and a bad value at once."""
    code = """
    import sys
    from optimum_camcut import PruningConfig
    PruningConfig(sparsity=0.5)
    print(sorted({"torch", "transformers", "accelerate"} & set(sys.modules)))
    """
    assert run_python(code) == "[]"


def test_dir_lists_the_public_names():
    assert dir(optimum_camcut) == sorted([*PUBLIC, "__version__"])
    assert sorted(optimum_camcut.__all__) == dir(optimum_camcut)


def test_an_unknown_attribute_lists_the_known():
    with pytest.raises(AttributeError, match="module 'optimum_camcut' has no attribute 'CamCutTrianer'") as error:
        optimum_camcut.CamCutTrianer  # noqa: B018
    assert all(name in str(error.value) for name in PUBLIC)
    assert str(error.value).endswith("; did you mean 'CamCutTrainer'?")
    with pytest.raises(ImportError, match="scoregroups"):
        exec("from optimum_camcut import scoregroups")


@pytest.mark.parametrize("names", [PUBLIC, PUBLIC[::-1], "*"], ids=["forwards", "backwards", "star"])
def test_public_names_are_classes_and_functions_in_any_order(names):
    """A module that had the name of a function would take its place as soon as anything imported it."""
    code = f"""
    import types
    from optimum_camcut import {"*" if names == "*" else ", ".join(names)}
    print(sorted(name for name in {PUBLIC} if isinstance(globals()[name], types.ModuleType)))
    """
    assert run_python(code) == "[]"


# --- what may be absent ---------------------------------------------------------------------------------------------


END_TO_END = """
import sys

ABSENT = {"optimum", "datasets", "evaluate"}


class Absent:
    # As if these packages were not installed: every finder says that it does not know them.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, *args)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Absent(finder) for finder in sys.meta_path]
for name in ABSENT:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")

import torch
from transformers import BertConfig, BertForSequenceClassification

from optimum_camcut import PruningConfig, apply_plan, find_groups, load_pruned, make_plan, score_groups
from optimum_camcut import reconstruct as rebuild

torch.set_num_threads(1)
config = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20
)
dense, model = BertForSequenceClassification(config).eval(), BertForSequenceClassification(config).eval()
model.load_state_dict(dense.state_dict())
ids = torch.randint(50, (8, 6))
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(8) % 2}
pruning = PruningConfig(method="smooth_cut", sparsity=0.5, smooth_samples=2)
groups = find_groups(model)
plan = make_plan(score_groups(model, groups, [batch], pruning), groups, pruning)
apply_plan(model, plan)
rebuild(model, dense, plan, [batch])
model.save_pretrained(sys.argv[1])
again = load_pruned(sys.argv[1])
with torch.no_grad():
    assert torch.equal(again(**batch).logits, model(**batch).logits)
assert sum(group.size for group in find_groups(again, "heads")) == 4
assert sum(group.size for group in find_groups(again, "neurons")) == 20
print(sorted(ABSENT & {name.partition(".")[0] for name in sys.modules}))
"""


def test_runs_where_optimum_datasets_and_evaluate_are_absent(tmp_path):
    assert run_python(END_TO_END, str(tmp_path)) == "[]"


# --- which way imports point ----------------------------------------------------------------------------------------


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[:2] != ("commands", "register"):  # a part of optimum's own namespace
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path):
    """Every import statement that runs, those inside of functions too, but not those for type checkers alone."""

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child
            yield from visit(child)

    return list(visit(ast.parse(path.read_text(encoding="utf-8"))))


def inner_imports(module, path):
    """Modules of this package that a module imports, by their names in `ORDER`."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    known = {name for name, _ in modules()}
    for statement in imports(path):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                assert alias.name.partition(".")[0] != "optimum_camcut", f"{module} should import relatively"
            continue
        if statement.level == 0:
            assert statement.module.partition(".")[0] != "optimum_camcut", f"{module} should import relatively"
            continue
        base = package[: len(package) - (statement.level - 1)]
        source = ".".join([*base, *filter(None, [statement.module])])
        for alias in statement.names:
            inner = f"{source}.{alias.name}".lstrip(".")
            yield inner if inner in known else source


def test_every_module_has_its_place():
    assert sorted(name for name, _ in modules()) == sorted(ORDER)


@pytest.mark.parametrize("module", [name for name in ORDER if name], ids=str)
def test_imports_point_downward(module):
    found = set(inner_imports(module, dict(modules())[module]))
    allowed = set(ORDER[: ORDER.index(module)])
    assert found <= allowed, f"{module} imports {sorted(found - allowed)}, which should import it if anything"


def test_the_check_sees_imports():
    """The least that these modules are known to import, so that an empty answer cannot pass for a good one."""
    paths = dict(modules())
    assert {"scoring.loop", "config", "plan"} <= set(inner_imports("allocation", paths["allocation"]))
    assert {"scoring.registry", "scoring.cam_cut", "scoring.baselines"} <= set(
        inner_imports("scoring.smooth_cut", paths["scoring.smooth_cut"])
    ) | set(inner_imports("scoring", paths["scoring"]))
    assert {"config", "groups", "scoring.capture"} <= set(inner_imports("scoring.loop", paths["scoring.loop"]))
    assert "modeling_camcut" in set(inner_imports("checkpoint", paths["checkpoint"]))
    assert set(inner_imports("", paths[""])) == {"version"}


def test_the_modeling_file_stands_alone():
    """It is copied beside the weights, where neither this package nor any other of its dependencies need be."""
    tops = set()
    for statement in imports(PACKAGE / "modeling_camcut.py"):
        assert isinstance(statement, ast.Import) or statement.level == 0, ast.unparse(statement)
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else [statement.module]
        tops |= {name.partition(".")[0] for name in names}
    assert {"torch", "transformers"} <= tops
    assert tops - {"torch", "transformers"} <= set(sys.stdlib_module_names)


def test_the_modeling_file_runs_no_text():
    """It calls nothing that could turn words of a config into code, files or processes."""
    tree = ast.parse((PACKAGE / "modeling_camcut.py").read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert {"getattr", "shutil.copy", "re.fullmatch"} <= called  # it sees calls
    assert not called & {"eval", "exec", "compile", "__import__", "open", "torch.load", "os.system"}
    roots = {name.partition(".")[0] for name in called}
    assert not roots & {"importlib", "subprocess", "pickle"} and not any(name.startswith("os.exec") for name in called)


def test_scoring_methods_need_no_torch_at_import():
    """A new method registers for the command line's help without loading torch."""
    for name, path in modules():
        if name.startswith("scoring") and name not in (
            "scoring.capture",
            "scoring.noise",
            "scoring.processes",
            "scoring.sums",
            "scoring.batches",
            "scoring.gradients",
            "scoring.weights",
            "scoring.loop",
        ):
            outer = [s for s in imports(path) if isinstance(s, ast.Import) or s.level == 0]
            roots = {(s.names[0].name if isinstance(s, ast.Import) else s.module).partition(".")[0] for s in outer}
            assert roots <= set(sys.stdlib_module_names), f"{name} imports {sorted(roots)}"
