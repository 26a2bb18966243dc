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
"""Every type of model that has an entry, on a tiny model: the entry is right, and whatever is cut computes what the
masked model computes, in one pass and word by word, here and after it is loaded again."""

import re

import pytest
import torch
import transformers
from marks import few
from models import mask_units, random_plan
from transformers import CONFIG_MAPPING
from types_of_models import OLD, ONLY_5, TYPES, WITHOUT_AUTO, batch_of, config_of, model_of, type_of, with_own_entries

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    check_architecture,
    find_groups,
    load_pruned,
    make_plan,
    reconstruct,
    score_groups,
)
from optimum_camcut.architectures.groups import possible_kinds
from optimum_camcut.architectures.modeling_camcut import RECORD
from optimum_camcut.architectures.recipes import stacks_of
from optimum_camcut.architectures.structure import config_fields, list_blocks
from optimum_camcut.architectures.table import ARCHITECTURES
from optimum_camcut.reporting.plots.kept import kept_units
from optimum_camcut.surgery.streams import find_stages, run_stage, start_stream, without_cache


OWN = with_own_entries()
# Of each way to lay out a block, one.
SOME = ["llama", "gemma2", "phi", "phi3", "olmo2", "gpt_neox", "bloom", "falcon-new", "opt", "deberta-v2-relative"]
SOME += [
    "modernbert",
    "vit",
    "dinov2",
    "swin",
    "segformer",
    "beit-shared-bias",
    "clip",
    "wav2vec2",
    "wavlm",
    "bart",
    "t5",
    "mixtral",
]
SOME += ["yolos"]
SOME = [name for name in SOME if name in TYPES]
NOT_BLOCK_BY_BLOCK = {"luke": "a second stream", "lilt": "a second stream", "yolos": "hidden states are changed"}
OF_SOME = few([*SOME, *(name for name in TYPES if name not in SOME)], len(SOME))
SLOW = ("longt5-global", "canine", "chinese_clip_vision_model")  # the same code as others, or large
EACH = [pytest.param(name, marks=[] if name in OWN and name not in SLOW else pytest.mark.long) for name in TYPES]


def result(model, batch):
    with torch.no_grad():
        outputs = model(**batch)
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


def plain_kinds(config):
    """Kinds whose number the config has a field for, in every stack."""
    return set.intersection(*(set(entry.config_fields) for entry in stacks_of(config).values()))


def has_experts(name):
    return "expert_neurons" in config_fields(config_of(name))


def words(model, batch):
    """What the model writes, if it does."""
    if not model.can_generate():
        return None
    given = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    return model.generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=0)


def check_same(got, expected):
    scale = expected.abs().max().clamp(min=1.0)
    assert got.shape == expected.shape and (got - expected).abs().max() <= 1e-5 * scale


def check_loaded(loaded, cut, batch):
    """The same weights to the last bit. The last bit of a product depends on where in memory they lie."""
    expected, got = cut.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(got[name], expected[name]) for name in expected)
    check_same(result(loaded, batch), result(cut, batch))


@pytest.mark.parametrize("name", EACH)
def test_the_entry_is_right(name):
    model = model_of(name)
    check_architecture(model, batch_of(model), reload=False)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 20), marks=pytest.mark.long)], ids=["one", "all"])
def test_cut_equals_masked_and_loads(name, seeds, tmp_path):
    for seed in seeds:
        masked = model_of(name, seed)
        kinds = ["heads", "experts"] if seed % 2 and "experts" in possible_kinds(masked) else None
        kinds = kinds and [kind for kind in kinds if kind in possible_kinds(masked)]  # in place of the neurons inside
        batch, plan = batch_of(masked, seed), random_plan(masked, seed, kinds=kinds)
        cut = apply_plan(model_of(name, seed), plan)
        expected, written = result(mask_units(masked, plan), batch), words(masked, batch)
        check_same(result(cut, batch), expected)
        assert written is None or torch.equal(words(cut, batch), written)
        cut.save_pretrained(tmp_path / f"{name}-{seed}")
        by_package = load_pruned(tmp_path / f"{name}-{seed}", model_class=type(cut))
        check_loaded(by_package, cut, batch)
        if seed == 0 and name not in WITHOUT_AUTO:
            targets = {target.rpartition(".")[2]: auto for auto, target in cut.config.auto_map.items()}
            auto = getattr(transformers, targets[type(cut).__name__])
            by_file = auto.from_pretrained(tmp_path / f"{name}-{seed}", trust_remote_code=True).eval()
            assert type(by_file).__name__ == type(cut).__name__
            check_loaded(by_file, cut, batch)


@pytest.mark.parametrize("name", OF_SOME)
def test_sublayers_go_and_the_rest_loads(name, tmp_path):
    model = model_of(name)
    if "layers" not in possible_kinds(model):
        assert type_of(name) == "openai-gpt" or (OLD and name == "lilt")
        return
    groups = find_groups(model, ("layers",))
    gone = {group.name: [] for group in groups[1::2]}
    cut, batch = apply_plan(model, PruningPlan(gone)), batch_of(model)
    assert {group.name for group in find_groups(cut, ("layers",))} == {group.name for group in groups} - set(gone)
    cut.save_pretrained(tmp_path)
    loaded = load_pruned(tmp_path, model_class=type(cut))
    check_loaded(loaded, cut, batch)
    assert not cut.can_generate() or torch.equal(words(loaded, batch), words(cut, batch))


@pytest.mark.once
@pytest.mark.parametrize(
    "name", [name for name in OWN if "neurons" in plain_kinds(config_of(name)) and not has_experts(name)]
)
def test_an_even_cut_is_an_ordinary_checkpoint(name, tmp_path):
    model = model_of(name)
    batch, groups = batch_of(model), find_groups(model, ("neurons",))
    cut = apply_plan(model, PruningPlan({group.name: range(0, group.size, 2) for group in groups}))
    assert getattr(cut.config, RECORD, None) is None
    cut.save_pretrained(tmp_path)
    assert not (tmp_path / "modeling_camcut.py").exists()
    plain = next(each for each in type(cut).__mro__ if each.__module__.startswith("transformers.models."))
    check_loaded(plain.from_pretrained(tmp_path).eval(), cut, batch)


def test_every_entry_has_a_tiny_model():
    assert {type_of(name) for name in TYPES} == set(ARCHITECTURES) - set(ONLY_5 if OLD else ())
    known = [name for name in ONLY_5 if name in CONFIG_MAPPING and name != "apertus"]
    assert not OLD or all(not possible_kinds(model_of(name)) for name in known)


def test_what_cannot_go_is_told_with_what_can():
    model = model_of("olmo2")
    assert [group.kind for group in find_groups(model)] == ["neurons"] * 3
    message = "heads of 'olmo2' cannot go: its norms of queries and keys run over all heads.*neurons and layers"
    with pytest.raises(ValueError, match=message):
        find_groups(model, ("heads",))
    with pytest.raises(ValueError, match="the plan names the group 'layer.0.heads', which the model lacks"):
        apply_plan(model, PruningPlan({"layer.0.heads": [0]}))


def loss(model, batch):
    outputs = model(**batch)
    return (outputs.logits if hasattr(outputs, "logits") else outputs[0]).square().mean()


@pytest.mark.once
@pytest.mark.parametrize("name", OF_SOME)
def test_units_and_sublayers_are_scored_and_planned(name):
    """By what flows through every kind of map, forward and backward."""
    model = model_of(name)
    kinds, batches = possible_kinds(model), [batch_of(model, seed) for seed in range(2)]
    kinds = tuple(kind for kind in kinds if kind != "experts")  # which do not go with the neurons inside of them
    config = PruningConfig(method="taylor", granularity=kinds, sparsity=0.3, min_units=1)
    groups = find_groups(model, kinds)
    scores = score_groups(model, groups, batches, config, loss_function=loss)
    assert all(torch.isfinite(values).all() and values.any() for values in scores.values())
    plan = make_plan(scores, groups, config)
    before = sum(group.size * group.unit_parameters for group in groups if group.kind in ("layers", kinds[-1]))
    cut = apply_plan(model, plan)
    assert torch.isfinite(result(cut, batches[0])).all()
    left = find_groups(cut, kinds)
    after = sum(group.size * group.unit_parameters for group in left if group.kind in ("layers", kinds[-1]))
    assert after < before


@pytest.mark.parametrize("name", OF_SOME)
def test_rebuilding_comes_closer(name):
    """Where the residual stream is restored, and where only what each layer gives can be."""
    dense = model_of(name)
    batches, plan = [batch_of(dense, seed) for seed in range(12)], random_plan(dense, 1)
    cut = apply_plan(model_of(name), plan)

    def distance():
        return sum(float((result(cut, batch) - result(dense, batch)).square().mean()) for batch in batches)

    before = distance()
    if name in NOT_BLOCK_BY_BLOCK:
        with pytest.raises(ValueError, match="cannot rebuild this model"):
            reconstruct(cut, dense, plan, batches, disable_tqdm=True)
        assert distance() == before
        return
    reconstruct(cut, dense, plan, batches, disable_tqdm=True)
    if all(group.observed == "inside" for group in find_groups(dense)):
        assert distance() == before  # of experts, nothing is rebuilt
        return
    local = any(group.residual is None for group in find_groups(dense))
    assert distance() < (1.0 if local else 0.9) * before


WINDOWED = [*SOME, "gemma3_text"]  # which has masks of two kinds


@pytest.mark.parametrize("name", few([*WINDOWED, *(name for name in TYPES if name not in WINDOWED)], len(WINDOWED)))
def test_block_by_block_gives_what_the_model_gives(name):
    """Each block gets the arguments that the model gives it: masks, positions and biases may differ by layer."""
    model = model_of(name)
    batch = batch_of(model)
    batch["attention_mask"] = batch["attention_mask"].clone() if "attention_mask" in batch else None
    batch = {key: value for key, value in batch.items() if value is not None}
    if "attention_mask" in batch:
        batch["attention_mask"][0, -2:] = 0
    seen: dict[str, torch.Tensor] = {}

    def keep(path):
        return lambda _, args, output: seen.update({path: output[0] if isinstance(output, tuple | list) else output})

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in list_blocks(model)]
    with torch.no_grad(), without_cache(model):
        model(**batch)
        for handle in handles:
            handle.remove()
        if name in NOT_BLOCK_BY_BLOCK:
            with pytest.raises(ValueError, match=NOT_BLOCK_BY_BLOCK[name] if not OLD else "cannot rebuild this model"):
                find_stages(model, batch, find_groups(model))
            return
        for stages in find_stages(model, batch, find_groups(model)):
            stream = start_stream(model, stages, batch, 0)
            for stage in stages:
                stream.hidden = run_stage(model, stage, stream)
                check_same(stream.hidden, seen[stage.blocks[-1]])


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_labels_become_what_the_decoder_reads(name):
    """As when the model is trained: batches of inputs and labels are enough to rebuild from."""
    dense = model_of(name)
    plan = random_plan(dense, 1)
    batches = [{k: v for k, v in batch_of(dense, seed).items() if k != "decoder_input_ids"} for seed in range(8)]
    labels = [torch.randint(3, 90, (3, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    for each in labels:
        each[0, 4:] = -100
    given = [{**batch, "labels": each} for batch, each in zip(batches, labels)]

    def distance(model):
        return sum(float((result(model, each) - result(dense, each)).square().mean()) for each in given)

    cut = apply_plan(model_of(name), plan)
    before = distance(cut)
    reconstruct(cut, dense, plan, given, disable_tqdm=True)
    assert distance(cut) < 0.9 * before


def test_plans_tell_the_stacks_apart():
    plan = apply_plan(model_of("bart"), random_plan(model_of("bart"), 0)).pruning_plan
    lines = [line.split() for line in str(plan).splitlines()]
    columns = lines[0].index("cross_heads")
    assert [line[0] for line in lines[1:-1]] == ["0", "1", "2", "decoder.0", "decoder.1"]
    cells = re.split(r"  +", str(plan).splitlines()[1].strip())
    assert cells[columns] == "-"
    assert set(kept_units(plan)["cross_heads"]) == {"decoder.layer.0", "decoder.layer.1"}
    assert len(kept_units(plan)["neurons"]["decoder.layer.0"]) == 41 and len(kept_units(plan)["neurons"]) == 5


@pytest.mark.parametrize("name", ["phi3", "llama", "t5", "bart", "swin", "bloom"])
def test_cuts_go_on_from_an_even_one_that_was_saved(name, tmp_path):
    """Its config has the smaller numbers; those of the layers that are not cut again stay."""
    model, batch = model_of(name), batch_of(model_of(name))
    groups = find_groups(model)
    even = PruningPlan({group.name: range(max(group.size // 2, 1)) for group in groups})
    apply_plan(model, even).save_pretrained(tmp_path)
    loaded = load_pruned(tmp_path, model_class=type(model))
    last = {groups[0].name: [0]}
    expected = result(apply_plan(model_of(name), PruningPlan({**even.keep, **last})), batch)
    check_same(result(apply_plan(loaded, PruningPlan(last)), batch), expected)
