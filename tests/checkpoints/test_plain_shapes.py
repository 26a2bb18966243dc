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
"""Plain shapes: cuts that a config can express by itself leave an ordinary checkpoint, and go on from there."""

import copy
import json
import logging

import pytest
import torch
import transformers
from models import ARCHITECTURES, even_plan, kinds_of, outputs, task_classes, tiny_batch, tiny_config, tiny_model
from trainers import make_trainer, pruning

from optimum_camcut import PruningConfig, PruningPlan, apply_plan, find_groups, load_pruned, make_plan
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.architectures.modeling_camcut import RECORD


def check_plain(folder):
    written = json.loads((folder / "config.json").read_text())
    assert not {RECORD, "auto_map"} & set(written) and not written.get("pruned_heads")
    assert not (folder / "modeling_camcut.py").exists()


def test_the_table_names_fields_that_configs_have():
    for architecture in ARCHITECTURES:
        config = tiny_config(architecture)
        fields = TABLE[architecture].config_fields
        assert "neurons" in fields and all(hasattr(config, name) for names in fields.values() for name in names)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_even_cut_is_an_ordinary_checkpoint(architecture, tmp_path):
    """The class of transformers loads it bit for bit, the auto class without remote code; ours with the plan too."""
    model, batch = tiny_model(architecture), tiny_batch()
    apply_plan(model, even_plan(model, **kinds_of(architecture)))
    expected = outputs(model, batch)
    model.save_pretrained(tmp_path)
    check_plain(tmp_path)
    plain_class = getattr(transformers, type(model).__name__)
    for loaded in (
        plain_class.from_pretrained(tmp_path),
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path),
    ):
        assert type(loaded) is plain_class
        assert torch.equal(outputs(loaded, batch), expected)
        assert {g.kind: g.size for g in find_groups(loaded, tuple(kinds_of(architecture)))} == kinds_of(architecture)
    ours = load_pruned(tmp_path)
    assert torch.equal(outputs(ours, batch), expected) and ours.pruning_plan == model.pruning_plan


@pytest.mark.parametrize(("architecture", "name"), sorted(set(task_classes())))
def test_every_task_head_is_built_by_the_new_config(architecture, name):
    changes = {"is_decoder": True} if "LMHead" in name or "CausalLM" in name else {}
    model = getattr(transformers, name)(tiny_config(architecture, num_labels=2, **changes))
    apply_plan(model, even_plan(model, **kinds_of(architecture)))
    again = getattr(transformers, name)(model.config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_cuts_compose_in_original_indices(architecture, tmp_path):
    """Even, then even, then uneven, then even again, each from files: the same bits and config as in one go."""
    dense, batch = tiny_model(architecture), tiny_batch()
    first = even_plan(dense, neurons=30, **({"heads": 3} if architecture == "llama" else {}))
    model = apply_plan(copy.deepcopy(dense), first)
    sizes = [("neurons", 20), ("uneven", None), ("neurons", 4)]
    for step, (kind, size) in enumerate(sizes):
        folder = tmp_path / str(step)
        model.save_pretrained(folder)
        model = load_pruned(folder)
        if kind == "uneven":
            apply_plan(model, PruningPlan({"layer.1.neurons": model.pruning_plan.keep["layer.1.neurons"][:5]}))
            assert RECORD in model.config.to_dict()
        else:
            apply_plan(model, even_plan(model, seed=step, neurons=size))
        whole = apply_plan(copy.deepcopy(dense), model.pruning_plan)
        assert torch.equal(outputs(whole, batch), outputs(model, batch))
        for name in (RECORD, *(n for names in TABLE[architecture].config_fields.values() for n in names)):
            assert getattr(whole.config, name, None) == getattr(model.config, name, None), name
    model.save_pretrained(tmp_path / "0")  # over the first
    assert torch.equal(outputs(load_pruned(tmp_path / "0"), batch), outputs(whole, batch))
    if architecture != "llama":
        check_plain(tmp_path / "0")


def test_a_plain_save_over_a_recorded_one_leaves_no_code(tmp_path):
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.neurons": range(20)}))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_camcut.py").exists()
    apply_plan(model, PruningPlan({f"layer.{layer}.neurons": range(20) for layer in (0, 2)})).save_pretrained(tmp_path)
    check_plain(tmp_path)
    assert torch.equal(
        outputs(transformers.BertForSequenceClassification.from_pretrained(tmp_path), tiny_batch()),
        outputs(model, tiny_batch()),
    )


@pytest.mark.parametrize(
    ("architecture", "keep"),
    [
        ("bert", {f"layer.{layer}.heads": [0, 2] for layer in range(3)}),  # the head size is not the config's to say
        ("bert", {f"layer.{layer}.neurons": range(20) for layer in range(2)}),
        ("bert", {f"layer.{layer}.neurons": range(20 + (layer == 1)) for layer in range(3)}),
        ("bert", {f"layer.{layer}.neurons": () for layer in range(3)}),
        ("bert", {**{f"layer.{layer}.neurons": range(20) for layer in range(3)}, "layer.1.attention": ()}),
        ("llama", {f"layer.{layer}.heads": [0, 1, 3] for layer in range(3)}),  # 32 is no multiple of 6
        ("llama", {f"layer.{layer}.feed_forward": () for layer in range(3)}),
    ],
)
def test_what_a_config_cannot_express_keeps_its_record(architecture, keep, tmp_path):
    model = apply_plan(tiny_model(architecture), PruningPlan(keep))
    assert getattr(model.config, RECORD)["sizes"] == {name: len(units) for name, units in keep.items()}
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_camcut.py").exists()
    assert torch.equal(outputs(load_pruned(tmp_path), tiny_batch()), outputs(model, tiny_batch()))


def test_heads_leave_the_head_size_alone(tmp_path):
    model = tiny_model("llama", "CausalLM")
    apply_plan(model, even_plan(model, heads=1))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["num_key_value_heads"], written["num_attention_heads"], written["head_dim"]) == (1, 2, 4)
    plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    ids = tiny_batch(2, padding=False)["input_ids"]
    assert torch.equal(plain.generate(ids, **options), model.generate(ids, **options))
    static = plain.generate(ids, cache_implementation="static", **options)  # its size is taken from the config
    assert torch.equal(static, model.generate(ids, **options))


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_uniform_allocation_gives_plain_shapes(architecture):
    """That is what makes them of use: not by luck, but for any scores."""
    for seed in range(5):
        torch.manual_seed(seed)
        config = PruningConfig(sparsity=0.5, allocation="uniform", granularity=tuple(kinds_of(architecture)))
        model = tiny_model(architecture)
        groups = find_groups(model, config.granularity)
        apply_plan(model, make_plan({g.name: torch.rand(g.size) for g in groups}, groups, config))
        assert RECORD not in model.config.to_dict()


@pytest.mark.parametrize(("allocation", "words"), [("uniform", "a plain checkpoint"), ("per_kind", "load_pruned")])
def test_the_trainer_says_what_it_has_written(allocation, words, tmp_path, caplog):
    config = pruning(granularity=("neurons",), allocation=allocation, sparsity=0.5)
    trainer = make_trainer(tmp_path, config, tiny_model("bert"))
    trainer.train()
    with caplog.at_level(logging.INFO, logger="optimum_camcut"):
        trainer.save_model(tmp_path / "saved")
    said = [record.getMessage() for record in caplog.records if str(tmp_path / "saved") in record.getMessage()]
    assert len(said) == 1 and words in said[0]
    card = (tmp_path / "saved" / "README.md").read_text()
    assert ("plain transformers checkpoint" in card) == (allocation == "uniform")
    assert ("trust_remote_code" in card) == (allocation == "per_kind")
    if allocation == "uniform":
        plain = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "saved")
        assert torch.equal(outputs(plain, tiny_batch()), outputs(trainer.model.eval(), tiny_batch()))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda c: c.update(intermediate_size=37), "but config.json asks for"),
        ("pruning_plan.json", lambda p: p["keep"]["layer.1.neurons"].pop(), "the two files do not belong together"),
        ("pruning_plan.json", lambda p: p["keep"].pop("layer.1.neurons"), "the two files do not belong together"),
        ("pruning_plan.json", lambda p: p.pop("sizes"), "the two files do not belong together"),
        ("pruning_plan.json", lambda p: [p["keep"].update({n: [0, 1]}) for n in p["keep"]], "but the model has 20"),
    ],
)
def test_files_that_do_not_fit(file, change, message, tmp_path):
    model = tiny_model("bert")
    apply_plan(model, even_plan(model, neurons=20)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / file).read_text())
    change(values)
    (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_pruned(tmp_path)


def test_masks_on_a_plain_shape(tmp_path):
    model = tiny_model("bert")
    apply_plan(model, even_plan(model, neurons=20))
    groups = find_groups(model, "weights")
    apply_plan(model, PruningPlan({g.name: range(0, g.original_size, 2) for g in groups}))
    model.save_pretrained(tmp_path)
    check_plain(tmp_path)
    again = load_pruned(tmp_path)
    assert again.pruning_plan == model.pruning_plan and torch.equal(
        outputs(again, tiny_batch()), outputs(model, tiny_batch())
    )
