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
"""Checkpoints: what is written, that it loads bit for bit with and without the package, and what bad files get."""

import copy
import json
import pickle
import re
import shutil
import sys
import threading

import pytest
import torch
import transformers
from checkpoints import FILES, OfTheUsersOwn, edit_json, logits, pruned_model
from huggingface_hub import ModelCard
from models import ARCHITECTURES, CONFIGS, random_plan, tiny_batch, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from torch.nn.utils.prune import l1_unstructured
from torch.overrides import TorchFunctionMode

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    prune_heads,
    score_groups,
)
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.architectures.modeling_camcut import RECORD
from optimum_camcut.checkpoints import checkpoint
from optimum_camcut.checkpoints.stored import check_finite
from optimum_camcut.scoring import SCORERS, scorer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reload_is_bit_identical(architecture, dtype, tmp_path):
    model = pruned_model(architecture).to(dtype)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    reloaded = load_pruned(tmp_path, dtype=dtype)
    assert type(reloaded).__name__ == type(model).__name__ and not reloaded.training
    assert torch.equal(logits(reloaded), logits(model))
    assert reloaded.pruning_plan == model.pruning_plan
    assert [(g.name, g.units, g.original_size) for g in find_groups(reloaded)] == [
        (g.name, g.units, g.original_size) for g in find_groups(model)
    ]


def test_loads_without_the_package(without_package, tmp_path):
    """A process that cannot import the package gives the same bits, through the auto classes of transformers."""
    expected = {}
    for architecture in ARCHITECTURES:
        for dtype in ("float32", "bfloat16"):
            model = pruned_model(architecture).to(getattr(torch, dtype))
            model.save_pretrained(tmp_path / f"{architecture}-{dtype}")
            expected[f"{architecture}-{dtype}"] = logits(model)
        model, layers = tiny_model(architecture), {"layer.0.attention": (), "layer.1.feed_forward": ()}
        apply_plan(model, PruningPlan({**layers, "layer.1.heads": (0, 3)}))
        model.save_pretrained(tmp_path / f"{architecture}-layers-float32")
        expected[f"{architecture}-layers-float32"] = logits(model)
    torch.save(tiny_batch(labels=False), tmp_path / "batch.pt")
    script = """
        import importlib.util, sys, torch
        from pathlib import Path
        assert importlib.util.find_spec("optimum_camcut") is None
        from transformers import AutoModel, AutoModelForSequenceClassification
        torch.set_num_threads(1)
        root, results = Path(sys.argv[1]), {}
        batch = torch.load(root / "batch.pt")
        for folder in sorted(root.glob("*-*")):
            dtype = getattr(torch, folder.name.rpartition("-")[2])
            model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
            with torch.no_grad():
                results[folder.name] = model(**batch).logits
        base = AutoModel.from_pretrained(root / "bert-float32", trust_remote_code=True)
        assert type(base).__name__ == "BertModel"
        model.save_pretrained(root / "again")
        again = AutoModelForSequenceClassification.from_pretrained(root / "again", trust_remote_code=True, dtype=dtype)
        with torch.no_grad():
            assert torch.equal(again(**batch).logits, results[folder.name])
        torch.save(results, root / "results.pt")
    """
    without_package.run(script, tmp_path, str(tmp_path))
    results = torch.load(tmp_path / "results.pt")
    assert set(results) == set(expected)
    for name in expected:
        assert torch.equal(results[name], expected[name]), name


def test_everything_is_written(tmp_path):
    model = tiny_model("bert")
    config = PruningConfig(method="magnitude", sparsity=0.5)
    groups = find_groups(model)
    plan = make_plan({g.name: torch.rand(g.size) for g in groups}, groups, config)
    apply_plan(model, plan).save_pretrained(tmp_path)
    assert PruningConfig.from_pretrained(tmp_path) == config
    assert PruningPlan.load(tmp_path) == plan
    written = json.loads((tmp_path / "config.json").read_text())
    assert written[RECORD]["sizes"] == {name: len(units) for name, units in plan.keep.items()}
    assert written["auto_map"]["AutoModelForSequenceClassification"] == "modeling_camcut.BertForSequenceClassification"
    assert written["architectures"] == ["BertForSequenceClassification"]
    for layer, heads in written["pruned_heads"].items():
        assert set(heads) == set(range(4)) - set(plan.keep[f"layer.{layer}.heads"])
    card = ModelCard.load(tmp_path / "README.md")
    assert {"optimum-camcut", "pruned"} <= set(card.data.tags) and card.data.library_name == "transformers"
    for line in ("trust_remote_code=True", "load_pruned(", "`magnitude`", "| 0 | heads | "):
        assert line in card.text


def test_the_card_keeps_what_others_wrote(tmp_path):
    model = pruned_model()
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n\n# My words\n")
    for _ in range(2):
        model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.data.tags == ["mine", "optimum-camcut", "pruned"]
    assert "# My words" in card.text and card.text.count("## Pruning") == 1


def test_sharded_checkpoints(tmp_path):
    model = pruned_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_pruned(tmp_path)), logits(model))


def test_another_task_head_on_a_pruned_body(tmp_path):
    model = pruned_model()
    model.save_pretrained(tmp_path)
    body = load_pruned(tmp_path, model_class=transformers.BertModel)
    assert type(body).__name__ == "BertModel" and body.pruning_plan == model.pruning_plan
    weight = "encoder.layer.0.output.dense.weight"
    assert torch.equal(body.state_dict()[weight], model.state_dict()[f"bert.{weight}"])


def test_a_reloaded_model_can_be_pruned_and_saved_again(tmp_path):
    model = prune_heads(tiny_model("mpnet"), {0: [1], 2: [0, 3]})
    model.save_pretrained(tmp_path / "one")
    further = prune_heads(load_pruned(tmp_path / "one"), {0: [3], 1: [2]})
    further.save_pretrained(tmp_path / "two")
    reloaded = load_pruned(tmp_path / "two")
    expected = prune_heads(tiny_model("mpnet"), {0: [1, 3], 1: [2], 2: [0, 3]})
    assert torch.equal(logits(reloaded), logits(expected))
    assert reloaded.pruning_plan.keep == further.pruning_plan.keep


def test_copies_and_pickles():
    own = OfTheUsersOwn(tiny_model("bert").config).eval()
    for model in (pruned_model("mpnet"), apply_plan(own, random_plan(own, 1))):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other) is type(model) and torch.equal(logits(other), logits(model))
            assert other.pruning_plan == model.pruning_plan


def test_heads_pruned_by_transformers_4_load(tmp_path):
    """Such a checkpoint has nothing but `pruned_heads` in its config."""
    model = prune_heads(tiny_model("bert"), {0: [1, 2], 2: [3]})
    model.save_pretrained(tmp_path)
    for name in FILES - {"config.json", "model.safetensors"}:
        (tmp_path / name).unlink()
    edit_json(tmp_path / "config.json", lambda config: (config.pop(RECORD), config.pop("auto_map")))
    reloaded = load_pruned(tmp_path)
    assert torch.equal(logits(reloaded), logits(model))
    assert reloaded.pruning_plan.keep == model.pruning_plan.keep


def test_an_architecture_of_the_users_own_travels_with_its_checkpoint(without_package, tmp_path, monkeypatch):
    """An entry that was added at run time is written into the stand-alone file, and needs nothing else to load."""
    name = "tapas"
    monkeypatch.delitem(TABLE, name)
    config = transformers.AutoConfig.for_model(name, **CONFIGS["bert"])
    TABLE[name] = type(TABLE["bert"])(
        layers="encoder.layer.{}",
        heads=TABLE["bert"].heads,
        neurons=TABLE["bert"].neurons,
        residual=TABLE["bert"].residual,
        attributes=TABLE["bert"].attributes,
    )
    try:
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        apply_plan(model, random_plan(model, 1)).save_pretrained(tmp_path / "model")
        expected = logits(model)
        assert torch.equal(logits(load_pruned(tmp_path / "model")), expected)
    finally:
        del TABLE[name]
    torch.save(tiny_batch(labels=False), tmp_path / "batch.pt")
    script = (
        "import torch; from transformers import AutoModelForSequenceClassification as A; torch.set_num_threads(1);"
        "m = A.from_pretrained('model', trust_remote_code=True);"
        "torch.save(m(**torch.load('batch.pt')).logits.detach(), 'logits.pt')"
    )
    without_package.run(script, tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


@pytest.mark.once
def test_an_architecture_travels_whenever_it_was_registered(fresh_python, tmp_path):
    """Before all else in a script, as in docs/adding.md, or after other use: every checkpoint has the entry."""
    script = """
        import dataclasses, sys, torch, transformers
        order = sys.argv[1]
        assert "optimum_camcut" not in sys.modules
        import optimum_camcut
        if order == "late":
            import optimum_camcut.checkpoints.saving, optimum_camcut.surgery.cut
        from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES, Architecture, Cut
        ARCHITECTURES["bert"] = dataclasses.replace(ARCHITECTURES["bert"], bypass=None)
        ARCHITECTURES["ernie"] = ARCHITECTURES["bert"]
        for name in ("bert", "ernie", "roberta"):
            config = transformers.AutoConfig.for_model(
                name, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, vocab_size=9
            )
            model = transformers.AutoModel.from_config(config)
            optimum_camcut.prune_heads(model, {0: [1]}).save_pretrained(f"{order}-{name}")
    """
    for order in ("early", "late"):
        fresh_python.run(script, tmp_path, order)
    for name in ("bert", "ernie", "roberta"):
        sources = {(tmp_path / f"{order}-{name}" / "modeling_camcut.py").read_text() for order in ("early", "late")}
        assert len(sources) == 1
        table = sources.pop().partition("RECIPES = {")[2].partition("\n}\n")[0]
        assert table.startswith(f'\n    "{name}": {{') and table.count('"layers": ') == 1
        assert ('"gone": ' in table) == (name == "roberta"), table


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda c: c[RECORD]["sizes"].update({"layer.1.neurons": 99}),
            "99 units for 'layer.1.neurons'",
        ),
        (
            "config.json",
            lambda c: c[RECORD]["sizes"].update({"layer.1.neurons": -1}),
            "-1 units for 'layer.1.neurons'",
        ),
        ("config.json", lambda c: c[RECORD]["sizes"].update({"layer.1.heads": "2"}), "'2' units for 'layer.1.heads'"),
        (
            "config.json",
            lambda c: c[RECORD]["sizes"].update({"layer.7.heads": 2}),
            "units for 'layer.7.heads'; expected one of the groups",
        ),
        ("config.json", lambda c: c[RECORD]["sizes"].pop("layer.1.neurons"), "for 'layer.1.neurons', but its weights"),
        (
            "config.json",
            lambda c: c[RECORD]["sizes"].update({"layer.1.neurons": 1}),
            "records 1 units for 'layer.1.neurons', but its weigh",
        ),
        (
            "config.json",
            lambda c: c[RECORD]["sizes"].update({"layer.0.heads": 1}),
            "but config.pruned_heads leaves {'layer.0.heads': 3",
        ),
        ("config.json", lambda c: c["pruned_heads"].update({"0": [1, 1]}), "should map layers to lists of different"),
        (
            "config.json",
            lambda c: c["pruned_heads"].update({"0": [2]}),
            "config.json records [0, 1, 3]; the two files do not belong together",
        ),
        ("config.json", lambda c: c.update(architectures=["GPT2Model"]), "no class 'GPT2Model' for a 'bert' model"),
        ("config.json", lambda c: c.update(auto_map=3), "transformers cannot read config.json of"),
        ("config.json", lambda c: c.update({RECORD: [1]}), "should hold 'sizes'"),
        (
            "config.json",
            lambda c: c.update({RECORD: None, "pruned_heads": {}}),
            "but config.json asks for torch.float32",
        ),
        ("config.json", lambda c: c.update(architectures=["BertForNothing"]), "transformers has no class 'BertForNot"),
        (
            "pruning_plan.json",
            lambda p: p["keep"]["layer.2.heads"].pop(),
            "units of 'layer.2.heads', but the model has",
        ),
        ("pruning_plan.json", lambda p: p.update(kep={}), "unknown PruningPlan fields ['kep']"),
        ("pruning_plan.json", lambda p: p["keep"].pop("layer.2.heads"), "the two files do not belong together"),
        ("pruning_plan.json", lambda p: p.pop("sizes"), "the two files do not belong together"),
        (
            "config.json",
            lambda c: (c.pop(RECORD), c.update(pruned_heads={"9": [0]})),
            "units for 'layer.9.heads'; expected one of the groups",
        ),
    ],
)
def test_files_that_do_not_fit(file, change, message, tmp_path):
    model = apply_plan(
        tiny_model("bert"),
        PruningPlan(
            {"layer.0.heads": [0, 2, 3], "layer.1.heads": [1, 2], "layer.1.neurons": range(9), "layer.2.heads": [3]}
        ),
    )
    model.save_pretrained(tmp_path)
    edit_json(tmp_path / file, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pruned(tmp_path)


def test_a_checkpoint_that_is_not_pruned(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no pruned checkpoint: .* and there is no pruning_plan.json"):
        load_pruned(tmp_path)


def test_an_adapter_is_told_from_a_model(tmp_path):
    """On the way in, and where one is to be pruned: with what to do, which then works."""
    peft = pytest.importorskip("peft")
    pruned_model().save_pretrained(tmp_path / "model")
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    tuned = peft.get_peft_model(load_pruned(tmp_path / "model"), config).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    message = (
        f"adapter holds a PEFT adapter, not a model: .*PeftModel.from_pretrained\\(load_pruned\\(...\\), '{tmp_path}"
    )
    with pytest.raises(ValueError, match=message):
        load_pruned(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(load_pruned(tmp_path / "model"), tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), logits(tuned))
    with pytest.raises(TypeError, match=re.escape("PeftModelForSequenceClassification; merge the adapter first: `")):
        find_groups(loaded)
    for kind in ("heads", "weights"):
        with pytest.raises(TypeError, match="this Bert.* carries an adapter of PEFT; merge it first"):
            find_groups(loaded.get_base_model(), kind)
    assert find_groups(loaded.merge_and_unload())


@pytest.mark.parametrize("name", ["{}/none", "./none", "../none/there", "~/none", "none/of/those"])
def test_a_folder_that_is_not_there(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*none.* to load from"):
        load_pruned(name.format(tmp_path))
    with pytest.raises(OSError) as error:
        load_pruned("user/none")
    assert "there is no folder" not in str(error.value)  # it may be on the Hub


def test_a_model_that_lost_its_plan_is_not_cut_further(tmp_path):
    pruned_model().save_pretrained(tmp_path)
    (tmp_path / "pruning_plan.json").unlink()
    model = load_pruned(tmp_path)
    with pytest.raises(ValueError, match="load it with `optimum_camcut.load_pruned`"):
        find_groups(model)


def test_importing_the_file_alone_gives_classes_by_name():
    from optimum_camcut.architectures import modeling_camcut

    cls = modeling_camcut.BertForSequenceClassification
    assert cls is modeling_camcut.BertForSequenceClassification and cls.__name__ == "BertForSequenceClassification"
    with pytest.raises(AttributeError, match="no attribute 'BertTokenizer'"):
        modeling_camcut.BertTokenizer  # noqa: B018
    assert sys.modules[cls.__module__] is modeling_camcut


@pytest.mark.parametrize("kept", [[0, 99], [1, 1], {}, 3, None, [0, True], [3, 1]])
def test_recorded_heads_that_share_a_position_bias_are_checked(kept, tmp_path):
    prune_heads(tiny_model("mpnet"), {1: [0, 2]}).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda c: c[RECORD]["kept_heads"].update({"layer.1.heads": kept}))
    with pytest.raises(ValueError, match="for 'layer.1.heads'; expected 2 different indices below 4, ascending"):
        load_pruned(tmp_path)


def test_a_method_unknown_here_does_not_keep_a_checkpoint_from_loading(tmp_path):
    @scorer("of_my_own", source="weights")
    def of_my_own(weights, generator):
        return weights.sum(1)

    try:
        model = tiny_model("bert")
        config, groups = PruningConfig(method="of_my_own", sparsity=0.5), find_groups(model)
        apply_plan(model, make_plan(score_groups(model, groups, None, config), groups, config))
        model.save_pretrained(tmp_path)
    finally:
        del SCORERS["of_my_own"]
    reloaded = load_pruned(tmp_path)
    assert torch.equal(logits(reloaded), logits(model)) and reloaded.pruning_plan.keep == model.pruning_plan.keep


def test_a_model_loaded_by_the_auto_class_keeps_its_plan_when_saved_again(tmp_path):
    model = pruned_model()
    model.save_pretrained(tmp_path / "one")
    auto = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "one", trust_remote_code=True)
    auto.save_pretrained(tmp_path / "two")
    assert load_pruned(tmp_path / "two").pruning_plan == model.pruning_plan


@pytest.mark.report
def test_pickles_are_neither_written_nor_read(monkeypatch, tmp_path):
    """Saving, loading and saving again with every way to pickle taken away."""
    plans = ({"layer.0.heads": [1, 2]}, {f"layer.{layer}.neurons": range(9) for layer in range(3)})
    models = [apply_plan(tiny_model("bert"), PruningPlan(keep)) for keep in plans]

    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was written or read")

    with monkeypatch.context() as context:
        for module, name in ((torch, "save"), (torch, "load"), (pickle, "dump"), (pickle, "load")):
            context.setattr(module, name, refuse)
        for name in ("Pickler", "Unpickler", "dumps", "loads"):
            context.setattr(pickle, name, refuse)
        for number, model in enumerate(models):
            for shards in ({}, {"max_shard_size": "20KB"}):
                model.save_pretrained(tmp_path / str(number), **shards)
                reloaded = load_pruned(tmp_path / str(number))
                assert torch.equal(logits(reloaded), logits(model))
    known = {".safetensors", ".json", ".py", ".md", ".png"}
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == known
    with pytest.raises(ValueError, match="written and read as safetensors only"):
        models[0].save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()


def test_weights_that_are_pickles_are_refused(tmp_path):
    model = pruned_model()
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load_pruned(tmp_path, use_safetensors=False)), logits(model))  # from the other file
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="model.safetensors"):
        load_pruned(tmp_path)


@pytest.mark.parametrize("even", [False, True])
def test_nothing_that_a_config_names_is_executed(even, tmp_path):
    """Code beside the weights that the config points to, as classes of every kind, does not run: nor does a name of
    something that transformers has and that is no model."""
    keep = {f"layer.{layer}.neurons": range(9 if even or layer else 8) for layer in range(3)}
    model = apply_plan(tiny_model("bert"), PruningPlan(keep))
    model.save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n"
    (tmp_path / "evil.py").write_text(code)
    (tmp_path / "modeling_camcut.py").write_text(code)
    evil = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer"), "evil.A")
    edit_json(tmp_path / "config.json", lambda config: config.update(auto_map=evil))
    assert torch.equal(logits(load_pruned(tmp_path)), logits(model)) and not ran.exists()
    for name in ("evil.A", "os.system", "__import__", "pipeline", "AutoModel", "PreTrainedModel"):
        edit_json(tmp_path / "config.json", lambda config, name=name: config.update(architectures=[name]))
        with pytest.raises(ValueError, match=f"transformers has no class '{name}' for a 'bert' model"):
            load_pruned(tmp_path)
    assert not ran.exists()


def test_the_stand_alone_file_is_the_same_in_all_checkpoints(tmp_path):
    """Of an architecture: the runtime and its one entry, short enough to be read before it is trusted."""
    for architecture in ARCHITECTURES:
        sources = set()
        for number, model in enumerate((pruned_model(architecture), prune_heads(tiny_model(architecture), {1: [0]}))):
            model.save_pretrained(tmp_path / str(number))
            sources.add((tmp_path / str(number) / "modeling_camcut.py").read_bytes())
        (source,) = sources
        assert source.count(b"\n") < 380 and source.count(b'"layers": ') == 1
        assert f'    "{tiny_config(architecture).model_type}": {{'.encode() in source


def test_reparametrized_and_packed_weights_are_refused():
    model = tiny_model("bert")
    l1_unstructured(model.bert.encoder.layer[0].output.dense, "weight", 0.3)
    with pytest.raises(ValueError, match="expected torch.nn.Linear or Conv1D with a plain weight"):
        prune_heads(model, {0: [1]})
    model = tiny_model("bert")
    packed = model.bert.encoder.layer[0].output.dense
    packed.weight = torch.nn.Parameter(torch.zeros(592, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="undo quantization before pruning"):
        prune_heads(model, {0: [1]})


def drop(name):
    return lambda tensors: tensors.pop(name)


def change(name, function):
    return lambda tensors: tensors.update({name: function(tensors[name]).contiguous()})


DENSE, NORM = "bert.encoder.layer.1.intermediate.dense.weight", "bert.encoder.layer.0.output.LayerNorm.weight"


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (change(NORM, lambda tensor: tensor[:-1]), f"holds '{NORM}' as F32 of shape [31], but config.json asks for"),
        (change(DENSE, lambda tensor: tensor.T), f"holds '{DENSE}' as F32 of shape [32, 37], but config.json asks"),
        (change(NORM, lambda tensor: tensor.to(torch.int32)), f"holds '{NORM}' as I32 of shape [32], but config.json"),
        (change("bert.encoder.layer.0.output.dense.weight", lambda tensor: tensor[0]), "but its weights hold"),
        (drop(DENSE), "records 1 units for 'layer.1.feed_forward', but its weights hold 0"),
        (drop(NORM), f"lack {NORM}, which would start at random; take the files anew"),
        (drop("classifier.bias"), "lack classifier.bias, which would start at random"),
        (drop("bert.encoder.layer.0.attention.output.dense.weight"), "lack bert.encoder.layer.0.attention.output.de"),
        (lambda tensors: tensors.update(other=tensors.pop(NORM)), f"lack {NORM}, which would start at random"),
    ],
)
def test_altered_tensors(alter, message, tmp_path):
    apply_plan(tiny_model("bert"), PruningPlan({"layer.0.heads": [0, 2]})).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    alter(tensors)
    save_file(tensors, file, {"format": "pt"})
    before = file.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pruned(tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize(("name", "factor"), [(NORM, "nan"), ("classifier.bias", "inf"), (NORM, 1e39)])
@pytest.mark.parametrize("keep", [{"layer.0.heads": [0, 2]}, {f"layer.{n}.neurons": range(9) for n in range(3)}])
def test_weights_that_are_no_numbers_give_no_answer(keep, name, factor, tmp_path):
    """Nor does a copy of the model; loading itself does not read the weights."""
    apply_plan(tiny_model("bert"), PruningPlan(keep)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    narrow = torch.float32 if isinstance(factor, str) else torch.float16
    tensors[name] = (tensors[name] + 1e-3) * float(factor) if narrow == torch.float32 else tensors[name] + 1e5
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_pruned(tmp_path, dtype=narrow)
    message = re.escape(f"{name!r} of {tmp_path} holds NaN or infinity as {narrow}: the file was altered")
    for again in (model, model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=message):
            logits(again)
    if narrow == torch.float16:
        assert logits(load_pruned(tmp_path)).isfinite().all()  # not out of the range of float32


def test_weights_are_looked_at_once(monkeypatch, tmp_path):
    pruned_model().save_pretrained(tmp_path)
    looked = []
    monkeypatch.setattr(checkpoint, "check_finite", lambda path, model: looked.append(path))
    model = load_pruned(tmp_path)
    assert not looked
    logits(model)
    logits(model)
    assert looked == [str(tmp_path)]


def test_a_class_on_the_meta_device_is_tied_as_it_would_be(tmp_path):
    apply_plan(tiny_model("gpt2", "CausalLM"), PruningPlan({"layer.0.neurons": range(9)})).save_pretrained(tmp_path)
    loaded = load_pruned(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    with torch.device("meta"):
        built = type(loaded)(loaded.config)
    assert built.lm_head.weight is built.transformer.wte.weight and built.lm_head.weight.is_meta
    assert {name: p.shape for name, p in built.named_parameters()} == {
        name: p.shape for name, p in loaded.named_parameters()
    }


def test_a_model_built_from_a_config_draws_its_weights():
    """Only where there is no storage is that left out."""
    from optimum_camcut.architectures import modeling_camcut

    config = prune_heads(tiny_model("bert"), {0: [1]}).config
    model = modeling_camcut.BertForSequenceClassification(config)
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    assert all(0.01 < weight.std() < 0.03 for weight in weights)  # initializer_range is 0.02


def test_models_built_in_other_threads_meanwhile_draw_their_weights():
    """What keeps the one from drawing is seen by its own thread alone, and is gone behind it."""
    config, cls = pruned_model().config, checkpoint.checkpoint_class(transformers.BertForSequenceClassification)
    functions = [torch.nn.init.kaiming_uniform_, torch.nn.init.normal_, transformers.PreTrainedModel.init_weights]
    interval = sys.getswitchinterval()

    def build():
        for _ in range(10):
            with torch.device("meta"):
                cls(config)

    threads = [threading.Thread(target=build) for _ in range(2)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        deviations = [torch.nn.Linear(64, 64).weight.std().item()]
        while any(thread.is_alive() for thread in threads):
            deviations.append(torch.nn.Linear(64, 64).weight.std().item())
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert min(deviations) > 0.06 and max(deviations) < 0.08  # uniform within 1/8
    assert functions == [
        torch.nn.init.kaiming_uniform_,
        torch.nn.init.normal_,
        transformers.PreTrainedModel.init_weights,
    ]


def test_nothing_is_drawn_where_there_is_no_storage():
    cls, drawn = checkpoint.checkpoint_class(transformers.BertForSequenceClassification), []
    config = apply_plan(tiny_model("bert"), PruningPlan({"layer.0.neurons": range(9)})).config

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            drawn.append(getattr(function, "__module__", ""))
            return function(*args, **(kwargs or {}))

    with Watch(), torch.device("meta"):
        cls(config)
    assert drawn and "torch.nn.init" not in drawn


def test_a_config_class_of_the_users_own(tmp_path):
    class OwnConfig(transformers.BertConfig):
        @property
        def scale(self):
            return 2 * self.hidden_size

    class Own(transformers.BertForSequenceClassification):
        config_class = OwnConfig

        def __init__(self, config):
            super().__init__(config)
            self.scale = config.scale

    model = pruned_model()
    model.save_pretrained(tmp_path)
    own = load_pruned(tmp_path, model_class=Own)
    assert own.scale == 64 and torch.equal(logits(own), logits(model))


def test_a_model_with_another_one_inside(tmp_path):
    """The files are compared with the one that they fill."""
    inner, model = (
        apply_plan(tiny_model("bert", hidden_size=size), PruningPlan({"layer.0.neurons": range(9)}))
        for size in (16, 32)
    )

    class Outer(transformers.BertForSequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            self.inner = type(inner)(inner.config)

    model.save_pretrained(tmp_path)
    outer = load_pruned(tmp_path, model_class=Outer)
    assert torch.equal(logits(outer), logits(model))
    edit_json(tmp_path / "config.json", lambda config: config[RECORD]["sizes"].update({"layer.0.neurons": 1}))
    with pytest.raises(ValueError, match="records 1 units for 'layer.0.neurons'"):
        load_pruned(tmp_path, model_class=Outer)


def test_a_model_is_traced_before_its_first_answer(tmp_path):
    model = pruned_model()
    model.save_pretrained(tmp_path)
    reloaded = load_pruned(tmp_path)
    reloaded.config.return_dict = False
    inputs = tuple(tiny_batch(labels=False).values())
    traced = torch.jit.trace(reloaded, inputs)
    torch.testing.assert_close(traced(*inputs)[0], logits(model))


def test_floats_of_8_bits_are_not_looked_at():
    """Quantizers make them of linear maps, and torch cannot add them up."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    packed = model[0].weight.detach().to(torch.float8_e4m3fn)
    model[0].weight = torch.nn.Parameter(packed, requires_grad=False)
    check_finite("here", model)
    model[1].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'1.weight' of here holds NaN"):
        check_finite("here", model)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 0.5, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_cut_short(masked, length, tmp_path):
    keep = {"bert.pooler.dense.bias": range(30)} if masked else {"layer.0.heads": [0, 2]}
    apply_plan(tiny_model("bert"), PruningPlan(keep)).save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: int(length * len(data)) if length == 0.5 else length])
    with pytest.raises(ValueError, match="model.safetensors is cut short or was altered, take it anew"):
        load_pruned(tmp_path)


def test_shards_that_are_missing_or_cut_short(tmp_path):
    pruned_model().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=f"{shard.name} is cut short or was altered"):
        load_pruned(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} of .* is missing, which holds a part of the weights"):
        load_pruned(tmp_path)
    shard.write_bytes(data)
    load_pruned(tmp_path)
    for text, message in (("{", "is not valid JSON"), ('{"weight_map": 3}', "should hold 'weight_map'")):
        index.write_text(text)
        with pytest.raises(ValueError, match=f"index.json.* {message}"):
            load_pruned(tmp_path)


def test_a_plan_of_another_checkpoint_with_the_same_sizes(tmp_path):
    for name, heads in (("one", [1, 2]), ("two", [0, 3])):
        prune_heads(tiny_model("mpnet"), {1: heads}).save_pretrained(tmp_path / name)
    shutil.copy(tmp_path / "one" / "pruning_plan.json", tmp_path / "two")
    with pytest.raises(
        ValueError, match=re.escape("keeps the heads [0, 3] of 'layer.1.heads', but config.json records")
    ):
        load_pruned(tmp_path / "two")


@pytest.mark.parametrize(
    "text", ["", '{"model_type": "bert"', "\0\1", "[" * 5000, "null", '{"num_labels": ' + "9" * 5000]
)
def test_a_config_that_cannot_be_read(text, tmp_path):
    pruned_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match="config"):
        load_pruned(tmp_path)
