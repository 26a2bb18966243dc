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
import functools
import graphlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import optimum_camcut


PACKAGE = Path(optimum_camcut.__file__).parent

# Every folder may import those above it, and nothing below it.
ROOMS = (
    "version",
    "utils",
    "methods",
    "config",
    "architectures",
    "scoring",
    "planning",
    "vocabulary",
    "surgery",
    "search",
    "checkpoints",
    "export",
    "reporting",
    "tasks",
    "training",
    "commands",
    "",  # the package itself
)
PUBLIC = (
    "CamCutSeq2SeqTrainer",
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
    "search_plan",
    "trim_tokenizer",
    "with_tokenizer",
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


@pytest.mark.once
def test_importing_the_package_costs_nothing():
    code = """
    import sys
    import optimum_camcut
    optimum_camcut.__version__, dir(optimum_camcut)
    heavy = {"torch", "transformers", "accelerate", "datasets", "evaluate", "optimum", "numpy", "huggingface_hub"}
    print(sorted(heavy & set(sys.modules)))
    """
    assert run_python(code) == "[]"


@pytest.mark.once
def test_the_config_needs_no_torch():
    """So that a command line can answer `--help` and a bad value at once."""
    code = """
    import sys
    from optimum_camcut import PruningConfig
    PruningConfig(sparsity=0.5)
    print(sorted({"torch", "transformers", "accelerate"} & set(sys.modules)))
    """
    assert run_python(code) == "[]"


@pytest.mark.once
def test_dir_lists_the_public_names():
    assert dir(optimum_camcut) == sorted([*PUBLIC, "__version__"])
    assert sorted(optimum_camcut.__all__) == dir(optimum_camcut) == sorted([*optimum_camcut._MODULES, "__version__"])


@pytest.mark.once
def test_an_unknown_attribute_lists_the_known():
    with pytest.raises(AttributeError, match="module 'optimum_camcut' has no attribute 'CamCutTrianer'") as error:
        optimum_camcut.CamCutTrianer  # noqa: B018
    assert all(name in str(error.value) for name in PUBLIC)
    assert str(error.value).endswith("; did you mean 'CamCutTrainer'?")
    with pytest.raises(ImportError, match="scoregroups"):
        exec("from optimum_camcut import scoregroups")


@pytest.mark.once
def test_public_names_are_classes_and_functions_in_any_order(fresh_python, tmp_path):
    """A module that had the name of a function would take its place as soon as anything imported it."""
    for names in (", ".join(PUBLIC), ", ".join(PUBLIC[::-1]), "*"):
        code = f"""
        import sys, types
        assert "optimum_camcut" not in sys.modules
        from optimum_camcut import {names}
        assert not [name for name in {PUBLIC} if isinstance(globals()[name], types.ModuleType)]
        """
        fresh_python.run(code, tmp_path)


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


@pytest.mark.once
def test_runs_where_optimum_datasets_and_evaluate_are_absent(tmp_path):
    assert run_python(END_TO_END, str(tmp_path)) == "[]"


# --- which way imports point ----------------------------------------------------------------------------------------


@functools.cache
def modules():
    """Name and path of each; without what is a part of optimum's own namespace."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "register" not in path.parts]
    parts = [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]
    return [(".".join(part for part in each if part != "__init__"), path) for each, path in zip(parts, paths)]


def imports(path):
    """Every import statement, those inside of functions and those for type checkers too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def inner_imports(module, path):
    """Modules of this package that a module imports."""
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


@functools.cache
def graph():
    return {name: set(inner_imports(name, path)) for name, path in modules()}


def room_of(module):
    return module.partition(".")[0]


@pytest.mark.once
def test_every_module_is_in_a_room():
    assert {room_of(name) for name, _ in modules()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS[:-1])
@pytest.mark.once
def test_imports_point_downward(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for module, found in graph().items():
        if room_of(module) == room:
            up = [name for name in found if room_of(name) not in allowed]
            assert not up, f"{module} imports {sorted(up)}, which should import it if anything"


@pytest.mark.once
def test_no_circle_between_files():
    order = list(graphlib.TopologicalSorter(graph()).static_order())  # CycleError names them
    assert sorted(order) == sorted(name for name, _ in modules())


@pytest.mark.once
def test_scoring_plans_and_cuts_do_not_know_each_other():
    """A scorer never cuts, a cutter never scores, a plan is data."""
    found = graph()
    assert not {room_of(name) for name in found["planning.plan"]} & {"scoring", "surgery", "methods"}
    cutting = found["surgery.cut"] | found["surgery.plan_check"]
    assert not {room_of(name) for name in cutting} & {"scoring", "methods"}
    assert {name for name in cutting if room_of(name) == "planning"} == {"planning.plan", "planning.units"}


@pytest.mark.once
def test_the_check_sees_imports():
    """The least that these modules are known to import, so that an empty answer cannot pass for a good one."""
    found = graph()
    assert {"scoring.loop", "config", "planning.plan"} <= found["planning.allocation"]
    assert {"methods.registry", "methods.cam_cut", "methods.baselines"} <= found["methods.smooth_cut"]
    assert {"config", "architectures.groups", "scoring.capture"} <= found["scoring.loop"]
    assert "checkpoints.stored" in found["commands.prune"] | found["tasks.models"]  # inside of a function
    assert {"version", "training.trainer"} <= found[""]  # for type checkers


@pytest.mark.once
def test_short_names_are_the_modules_that_they_stand_for(fresh_python, tmp_path):
    """Public since before there were folders: one table of architectures, whichever way it was imported."""
    code = """
    import sys
    from optimum_camcut.modeling_camcut import ARCHITECTURES as short
    assert "optimum_camcut.plots" not in sys.modules and "matplotlib" not in sys.modules
    from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as long
    import optimum_camcut.masking, optimum_camcut.measure, optimum_camcut.plots, optimum_camcut.sharding
    from optimum_camcut.report import write_report
    assert optimum_camcut.measure is sys.modules["optimum_camcut.planning.measure"]
    assert optimum_camcut.measure.__spec__.name == "optimum_camcut.planning.measure"
    print(short is long, optimum_camcut.plots.plot_kept.__module__, write_report.__module__)
    """
    written = fresh_python.run(code, tmp_path)
    assert "True optimum_camcut.reporting.plots.kept optimum_camcut.reporting.report" in written


def whole_modeling_file():
    """The modeling file of a checkpoint, with all that an architecture may take."""
    from transformers import AutoConfig

    from optimum_camcut.architectures.standalone import modeling_source

    return modeling_source(*map(AutoConfig.for_model, ("bert", "mpnet", "t5", "phi3", "vit")))


def test_the_modeling_file_stands_alone():
    """It is copied beside the weights, where neither this package nor any other of its dependencies need be."""
    tops = set()
    for statement in ast.walk(ast.parse(whole_modeling_file())):
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        assert isinstance(statement, ast.Import) or statement.level == 0, ast.unparse(statement)
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else [statement.module]
        tops |= {name.partition(".")[0] for name in names}
    assert {"torch", "transformers"} <= tops
    assert tops - {"torch", "transformers"} <= set(sys.stdlib_module_names)


def test_the_modeling_file_runs_no_text():
    """It calls nothing that could turn words of a config into code, files or processes."""
    tree = ast.parse(whole_modeling_file())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert {"getattr", "shutil.copy", "re.fullmatch"} <= called  # it sees calls
    assert not called & {"eval", "exec", "compile", "__import__", "open", "torch.load", "os.system"}
    roots = {name.partition(".")[0] for name in called}
    assert not roots & {"importlib", "subprocess", "pickle"} and not any(name.startswith("os.exec") for name in called)


@pytest.mark.once
def test_scoring_methods_need_no_torch_at_import():
    """A new method registers for the command line's help without loading torch."""
    code = """
    import sys
    from optimum_camcut.config import PruningConfig
    from optimum_camcut.scoring import SCORERS
    from optimum_camcut.utils.errors import ScoringError
    print(len(SCORERS) > 5, "torch" in sys.modules)
    """
    assert run_python(code) == "True False"


@pytest.mark.parametrize("name", ["Bert", "Llama", "ViT"])
def test_a_cut_model_still_gives_hidden_states_and_attentions(name):
    """In a fresh process: transformers notes which classes give them when the first model of a class is built, and a
    model that is cut in memory changes its class."""
    code = f"""
    import copy, torch, transformers
    from optimum_camcut import PruningPlan, apply_plan, find_groups
    torch.manual_seed(0)
    config = transformers.{name}Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20,
        image_size=8, patch_size=4, attn_implementation="eager",
    )
    model = transformers.{name}Model(config).eval()
    given = {{"input_ids": torch.tensor([[1, 2]])}}
    if "{name}" == "ViT":
        given = {{"pixel_values": torch.rand(1, 3, 8, 8)}}
    asked = {{"output_hidden_states": True, "output_attentions": True}}
    dense = model(**given, **asked)
    keep = {{group.name: group.units[1:] for group in find_groups(model)}}
    apply_plan(model, PruningPlan(keep=keep))
    cut = model(**given, **asked)
    assert dense.keys() == cut.keys() and "hidden_states" in cut, (dense.keys(), cut.keys())
    heads = dense.attentions[0].shape[1] - cut.attentions[0].shape[1]
    print(len(cut.hidden_states), len(cut.attentions), heads > 0)
    """
    assert run_python(code) == "3 2 True"
