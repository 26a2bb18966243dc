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
"""Two versions of transformers: heads go as transformers 4 removes them, and checkpoints go both ways between 4 and 5.

What needs another environment finds its interpreter in CAMCUT_OTHER_PYTHON, which `make test` sets; without it those
tests are skipped. Both environments run this file, each with the other one.
"""

import copy
import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from environments import Python
from models import ARCHITECTURES, even_plan, kinds_of, outputs, random_plan, tiny_batch, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from optimum_camcut import PruningPlan, apply_plan, find_groups, load_pruned, modeling_camcut, prune_heads
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.architectures.structure import list_blocks


FOUR = transformers.__version__.startswith("4.")
NATIVE = [architecture for architecture in ARCHITECTURES if TABLE[architecture].native_pruned_heads]
SOME = ("electra", "distilbert", "albert", "mpnet", "gpt2", "llama")  # of each way to be loaded, one
ROOT = Path(modeling_camcut.__file__).parents[2]


# --- heads, as transformers 4 removes them --------------------------------------------------------------------------


@pytest.mark.skipif(not FOUR, reason="transformers 5 has no prune_heads to compare with")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_weights_as_prune_heads_of_transformers_4(architecture):
    """Bit for bit, in one go, step by step, and from the end."""
    ours = tiny_model(architecture)
    theirs = copy.deepcopy(ours)
    if not hasattr(theirs.base_model, "_prune_heads"):
        pytest.skip(f"transformers 4 cannot prune heads of {architecture}")
    for heads in ({0: [1, 2], 1: [0]}, {0: [3]}, {0: [1], -1: [2, 3]}):
        theirs.prune_heads(heads)
        assert prune_heads(ours, heads) is ours
        expected, got = theirs.state_dict(), ours.state_dict()
        assert list(expected) == list(got) and all(torch.equal(expected[name], got[name]) for name in got)
    assert {t.dtype for t in got.values()} == {t.dtype for t in expected.values()}
    if architecture != "mpnet":  # transformers 4 cannot run one whose heads it has pruned
        assert torch.equal(outputs(theirs, tiny_batch()), outputs(ours, tiny_batch()))


def test_the_table_says_what_transformers_4_can():
    """All of the table that it can prune and run."""
    assert set(NATIVE) == set(ARCHITECTURES) - {"mpnet", "llama"}


def attention_heads(model):
    """Heads in the attention maps of each layer."""
    with torch.no_grad():
        maps = model(**tiny_batch(labels=False), output_attentions=True).attentions
    return [attention.shape[1] for attention in maps]


def tiny(architecture, **changes):
    return tiny_model(architecture, attn_implementation="eager", **changes)


ENCODERS = [architecture for architecture in ARCHITECTURES if architecture not in ("albert", "llama")]


@pytest.mark.parametrize("architecture", ENCODERS)
def test_heads_go_and_attention_maps_with_them(architecture, tmp_path):
    """All heads but one of the first layer, and one of the last, which is counted from the end; then from files."""
    model = prune_heads(tiny(architecture), {0: [1, 2, 3], -1: [0]})
    assert attention_heads(model) == [1, 4, 3]
    model.save_pretrained(tmp_path)
    assert attention_heads(load_pruned(tmp_path, attn_implementation="eager")) == [1, 4, 3]


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_model_is_built_pruned_from_its_config(architecture, tmp_path):
    """`config.pruned_heads` alone, as transformers 4 reads it, in a config that is new or from a file."""
    config = tiny_config(architecture)
    config.pruned_heads = {0: [1, 2, 3], -1: [0]}
    config._attn_implementation = "eager"
    config.save_pretrained(tmp_path)
    name = type(tiny_model(architecture)).__name__
    read = transformers.AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    for each in (config, read):
        model = getattr(modeling_camcut, name)(each).eval()
        assert type(model).__name__ == name and attention_heads(model) == [1, 4, 3]
        assert {g.name: g.units for g in find_groups(model, "heads")} == {
            "layer.0.heads": (0,),
            "layer.1.heads": (0, 1, 2, 3),
            "layer.2.heads": (1, 2, 3),
        }


@pytest.mark.parametrize("architecture", ENCODERS)
def test_heads_go_again_and_again(architecture, tmp_path):
    """From a config, through files, then heads of which some are gone already, which are passed over."""
    config = tiny_config(architecture)
    config.pruned_heads = {1: [1, 2]}
    config._attn_implementation = "eager"
    model = getattr(modeling_camcut, type(tiny_model(architecture)).__name__)(config).eval()
    assert attention_heads(model) == [4, 2, 4]
    model.save_pretrained(tmp_path / "one")
    model = load_pruned(tmp_path / "one", attn_implementation="eager")
    assert attention_heads(model) == [4, 2, 4]
    assert model.config.pruned_heads == {1: [1, 2]}
    prune_heads(model, {0: [0], 1: [1, 2]})
    assert attention_heads(model) == [3, 2, 4]
    assert model.pruning_plan.keep == {"layer.0.heads": (1, 2, 3), "layer.1.heads": (0, 3)}
    if TABLE[architecture].native_pruned_heads:
        assert model.config.pruned_heads == {0: [0], 1: [1, 2]}
    model.save_pretrained(tmp_path / "two")
    again = load_pruned(tmp_path / "two", attn_implementation="eager")
    assert torch.equal(outputs(again, tiny_batch()), outputs(model, tiny_batch()))


@pytest.mark.skipif(not FOUR, reason="transformers 5 has no prune_heads")
@pytest.mark.parametrize("architecture", NATIVE)
def test_cutting_goes_on_from_heads_that_transformers_4_has_pruned(architecture, tmp_path):
    model, plan = (
        tiny_model(architecture),
        {"layer.0.heads": [0, 3], "layer.1.heads": [2], "layer.1.neurons": range(9)},
    )
    expected = apply_plan(copy.deepcopy(model), PruningPlan(plan))
    model.prune_heads({0: [1], 1: [0, 1, 3]})
    apply_plan(model, PruningPlan({name: units for name, units in plan.items() if name != "layer.1.heads"}))
    assert model.pruning_plan.keep == expected.pruning_plan.keep and model.config.pruned_heads[0] == [1, 2]
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(load_pruned(tmp_path), tiny_batch()), outputs(expected, tiny_batch()))


# --- checkpoints of one version, read by the other ------------------------------------------------------------------


@pytest.fixture(scope="session")
def other():
    """Runs a script with the other environment's Python, which takes a folder and has `torch`, `batch`, `logits` and
    the versions of transformers; `optimum_camcut` is where it can be imported from, but is not unless asked for."""
    python = os.environ.get("CAMCUT_OTHER_PYTHON")
    if not python:
        pytest.skip("CAMCUT_OTHER_PYTHON should name the Python of an environment with another transformers")
    before = textwrap.dedent("""
        import sys
        from pathlib import Path
        import torch, transformers
        from transformers import AutoModelForSequenceClassification as Auto
        folder, version = Path(sys.argv[1]), sys.argv[2]
        assert {version[:2], transformers.__version__[:2]} == {"4.", "5."}
        batch = torch.load(folder / "batch.pt")
        def logits(model):
            with torch.no_grad():
                return model.eval()(**batch).logits
    """)
    process = Python(python, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")

    def run(script, folder):
        torch.save(tiny_batch(labels=False), folder / "batch.pt")
        process.run(before + textwrap.dedent(script), folder, str(folder), transformers.__version__)
        return torch.load(folder / "results.pt") if (folder / "results.pt").exists() else None

    yield run
    process.end()


def check_same(got, expected, name):
    """The same bits; but electra of transformers 4 has eager attention alone, which rounds otherwise there."""
    if name.startswith("electra"):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    else:
        assert torch.equal(got, expected), name


@pytest.mark.skipif(FOUR, reason="it is transformers 4 that reads pruned_heads by itself")
def test_pruned_heads_load_in_plain_transformers_4(other, tmp_path):
    """No package, no remote code, no message about weights that are missing or new: nothing but transformers 4."""
    expected = {}
    for architecture in NATIVE:
        model = prune_heads(tiny_model(architecture), {0: [1, 2], 1: [0]})
        model.save_pretrained(tmp_path / architecture)
        expected[architecture] = outputs(model, tiny_batch())
    script = """
        results = {}
        for path in folder.glob("*/"):
            model, info = Auto.from_pretrained(path, output_loading_info=True)
            assert not any(info.values()), (path, info)
            assert type(model).__module__.startswith("transformers.models."), type(model)
            results[path.name] = logits(model)
        assert "optimum_camcut" not in sys.modules
        torch.save(results, folder / "results.pt")
    """
    results = other(script, tmp_path)
    assert set(results) == set(NATIVE)
    for architecture in NATIVE:
        check_same(results[architecture], expected[architecture], architecture)


@pytest.mark.skipif(FOUR, reason="it is transformers 4 that has prune_heads")
def test_heads_that_transformers_4_has_pruned_load_here(other, tmp_path):
    for architecture in NATIVE:
        tiny_model(architecture).save_pretrained(tmp_path / architecture)
    script = """
        results = {}
        for path in list(folder.glob("*/")):
            model = Auto.from_pretrained(path)
            model.prune_heads({0: [1, 2]})
            model.prune_heads({-1: [0], 0: [1]})
            results[path.name] = logits(model)
            model.save_pretrained(path)
        torch.save(results, folder / "results.pt")
    """
    results = other(script, tmp_path)
    for architecture in NATIVE:
        model = load_pruned(tmp_path / architecture)
        check_same(outputs(model, tiny_batch()), results[architecture], architecture)
        last = len(list_blocks(model)) - 1
        assert model.pruning_plan.keep == {"layer.0.heads": (0, 3), f"layer.{last}.heads": (1, 2, 3)}
        again = prune_heads(tiny_model(architecture), {0: [1, 2], last: [0]})
        assert torch.equal(outputs(again, tiny_batch()), outputs(model, tiny_batch()))
        prune_heads(model, {0: [3]}).save_pretrained(tmp_path / "again")
        assert torch.equal(outputs(load_pruned(tmp_path / "again"), tiny_batch()), outputs(model, tiny_batch()))


@pytest.mark.skipif(FOUR, reason="it is transformers 4 that has prune_heads")
def test_what_transformers_4_has_pruned_further_is_not_taken_for_what_it_was(other, tmp_path):
    """Its prune_heads leaves our record and plan as they were, which then are those of another model. Nothing goes by
    them: the package and the stand-alone file refuse, and transformers 4 alone reads what it wrote, which are heads.
    Saved elsewhere, or over what was there; the name says by what it was loaded."""
    plans = {
        "heads": lambda m: PruningPlan({"layer.0.heads": (0, 3)}),
        "units": lambda m: PruningPlan({"layer.0.heads": (0, 3), "layer.1.neurons": range(9)}),
        "plain": lambda m: even_plan(m, neurons=20),
    }
    for architecture in ("bert", "gpt2"):
        for kind, plan in plans.items():
            for way in ("alone", "remote") if kind != "units" else ("remote",):
                model = tiny_model(architecture)
                apply_plan(model, plan(model)).save_pretrained(tmp_path / f"{architecture}.{kind}.{way}.over")
    script = """
        results = {}
        for path in list(folder.glob("*.*/")):
            _, kind, way, _ = path.name.split(".")
            model = Auto.from_pretrained(path, trust_remote_code=way == "remote")
            model.prune_heads({0: [3], 1: [1]})
            for target in (path, path.with_suffix(".elsewhere")):
                model.save_pretrained(target)
                results[target.name] = logits(model)
                if kind == "units" or (kind, way) == ("heads", "remote"):
                    try:
                        Auto.from_pretrained(target, trust_remote_code=True)
                    except ValueError as error:
                        assert "config.camcut_pruning records" in str(error), error
                    else:
                        raise SystemExit(f"{target} was loaded")
                else:
                    assert torch.equal(logits(Auto.from_pretrained(target)), results[target.name])
        torch.save(results, folder / "results.pt")
    """
    results = other(script, tmp_path)
    assert len(results) == 2 * 5 * 2
    for name, expected in results.items():
        if ".plain." in name and name.endswith(".elsewhere"):  # without our plan: as transformers 4 wrote it
            check_same(outputs(load_pruned(tmp_path / name), tiny_batch()), expected, name)
        else:
            message = "do not belong together" if ".plain." in name else "but config.pruned_heads leaves"
            with pytest.raises(ValueError, match=message):
                load_pruned(tmp_path / name)


@pytest.mark.parametrize("names", [SOME, pytest.param(ARCHITECTURES, marks=pytest.mark.long)])
def test_every_kind_of_checkpoint_loads_in_the_other_version(names, other, tmp_path):
    """Units, whole sub-layers, and plain shapes: by the package, and by the stand-alone file or nothing at all."""
    expected = {}
    for architecture in names:
        for kind in ("units", "layers", "plain"):
            model = tiny_model(architecture, seed=1)
            plan = {
                "units": lambda m: random_plan(m, 1),
                "layers": lambda m: PruningPlan({"layer.0.attention": (), "layer.1.heads": (0, 3)}),
                "plain": lambda m, a=architecture: even_plan(m, **kinds_of(a)),
            }[kind](model)
            apply_plan(model, plan).save_pretrained(tmp_path / f"{architecture}.{kind}")
            expected[f"{architecture}.{kind}"] = outputs(model, tiny_batch())
    script = """
        results = {}
        for path in list(folder.glob("*.*/")):
            remote = {} if path.suffix == ".plain" else {"trust_remote_code": True}
            model, info = Auto.from_pretrained(path, output_loading_info=True, **remote)
            assert not any(info.values()), (path, info)
            results[path.name] = [logits(model)]
        assert "optimum_camcut" not in sys.modules
        from optimum_camcut import load_pruned
        for name in results:
            model = load_pruned(folder / name)
            assert model.pruning_plan is not None
            results[name].append(logits(model))
            model.save_pretrained(folder / "back" / name)
        torch.save(results, folder / "results.pt")
    """
    results = other(script, tmp_path)
    assert set(results) == set(expected) and len(results) == 3 * len(names)
    for name, (plain, ours) in results.items():
        assert torch.equal(plain, ours), name
        check_same(plain, expected[name], name)
        back = load_pruned(tmp_path / "back" / name)
        assert torch.equal(outputs(back, tiny_batch()), expected[name]), name


@pytest.mark.parametrize("saved", ["bert", "llama"])
def test_checkpoints_saved_earlier_load(saved, tmp_path):
    """Saved when the stand-alone file had all architectures in it: by the package, by that file, and saved anew."""
    earlier = Path(__file__).parent / "saved_earlier"
    shutil.copytree(earlier / saved, tmp_path / saved)
    shutil.copy(earlier / "modeling_camcut.py", tmp_path / saved)
    expected = torch.tensor(json.loads((tmp_path / saved / "logits.json").read_text()))
    batch = {"input_ids": torch.arange(3, 11)[None]}
    ours = load_pruned(tmp_path / saved)
    kind = AutoModelForCausalLM if saved == "llama" else AutoModelForSequenceClassification
    theirs = kind.from_pretrained(tmp_path / saved, trust_remote_code=True)
    assert ours.pruning_plan is not None and "transformers_modules" in type(theirs).__module__
    for model in (ours, theirs):
        model.save_pretrained(tmp_path / "again")
        for each in (model, load_pruned(tmp_path / "again")):
            torch.testing.assert_close(each(**batch).logits, expected)
