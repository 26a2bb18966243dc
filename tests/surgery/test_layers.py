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
"""Whole sub-layers: a model without them computes what the model computes with them bypassed, and costs less."""

import copy
import importlib
import json
import pickle
import re

import pytest
import torch
import transformers
from checkpoints import edit_json
from marks import few
from models import (
    ARCHITECTURES,
    CONFIGS,
    check_refused,
    outputs,
    random_plan,
    task_classes,
    tiny_batch,
    tiny_config,
    tiny_model,
)
from trainers import make_trainer, pruning

from optimum_camcut import (
    PrunableGroup,
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    load_pruned,
    make_plan,
    prune_heads,
    reconstruct,
    score_groups,
)
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.architectures.modeling_camcut import RECORD
from optimum_camcut.architectures.structure import list_blocks, list_groups
from optimum_camcut.planning.costs import remaining_budget, unit_cost
from optimum_camcut.planning.measure import count_flops, count_parameters
from optimum_camcut.scoring import SCORERS


KINDS = ("heads", "neurons", "layers")


MAJOR = int(transformers.__version__.split(".")[0])

# For attention and feed-forward: a module whose input is the residual stream that enters the sub-layer, and the module
# whose output leaves it. With "zero", a module whose output is added to the stream.
_BERT = (("attention.self.query", "attention.output"), ("intermediate.dense", "output"))
BYPASSES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": (("attention.q_lin", "sa_layer_norm"), ("ffn.lin1", "output_layer_norm")),
    "albert": (("attention.query", "attention.LayerNorm"), ("ffn", "full_layer_layer_norm")),
    "mpnet": (("attention.attn.q", "attention.LayerNorm"), ("intermediate.dense", "output")),
    "gpt2": (("zero", "attn.c_proj"), ("zero", "mlp.c_proj")),
    "llama": (("zero", "self_attn.o_proj"), ("zero", "mlp.down_proj")),
}


def bypass(model, names):
    """Hooks a dense model so that the residual stream passes the named sub-layers unchanged."""
    for name in names:
        _, layer, part = name.split(".")
        entry, leave = BYPASSES[model.config.model_type][part == "feed_forward"]
        block, stream = model.get_submodule(list_blocks(model)[int(layer)]), []
        if entry != "zero":
            block.get_submodule(entry).register_forward_pre_hook(lambda module, args, s=stream: s.append(args[0]))
        block.get_submodule(leave).register_forward_hook(
            lambda module, args, output, s=stream: s.pop() if s else torch.zeros_like(output)
        )
    return model


def without(*names):
    return PruningPlan(dict.fromkeys(names, ()))


def sublayers(model):
    return [group.name for group in find_groups(model, "layers")]


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_groups_a_block(architecture):
    model = tiny_model(architecture)
    layers = find_groups(model, "layers")
    count = len(list_blocks(model))
    assert [g.name for g in layers] == [f"layer.{i}.{p}" for i in range(count) for p in ("attention", "feed_forward")]
    units = find_groups(model)
    assert [g.kind for g in units] == ["heads", "neurons"] * count
    for layer, unit in zip(layers, units):
        assert (layer.kind, layer.size, layer.original_size, layer.units) == ("layers", 1, 1, (0,))
        assert layer.unit_flops == unit.size * unit.unit_flops
        assert layer.unit_flops_per_position == unit.size * unit.unit_flops_per_position
        assert layer.output.module == unit.output.module and layer.output.width == unit.size * unit.output.width
        assert layer.unit_parameters > unit.size * unit.unit_parameters  # the norm at least goes too


def test_an_architecture_that_does_not_say_how_keeps_its_sublayers(monkeypatch):
    monkeypatch.setitem(TABLE, "bert", type(TABLE["bert"])(**{**vars(TABLE["bert"]), "bypass": None}))
    model = tiny_model("bert")
    for kinds in ("layers", KINDS):
        with pytest.raises(
            ValueError, match="whole sub-layers of 'bert' cannot go: its entry of ARCHITECTURES has no"
        ):
            find_groups(model, kinds)
    assert len(find_groups(model)) == 6
    check_refused(model, without("layer.0.attention"), "names the group 'layer.0.attention', which the model lacks")


# --- surgery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cut_equals_bypassed(architecture, tmp_path):
    """Every sub-layer alone, and random sets of them: the same outputs, the predicted number of parameters, and the
    same bits after a round trip through files."""
    generator = torch.Generator().manual_seed(0)
    names = sublayers(tiny_model(architecture))
    sets = [{name} for name in names]
    sets += [{n for n in names if torch.rand((), generator=generator) < 0.5} for _ in range(6)]
    for seed, gone in enumerate(sets):
        attention = "sdpa" if seed % 2 and tiny_model(architecture)._supports_sdpa else "eager"
        dense = tiny_model(architecture, seed=seed, attn_implementation=attention)
        batch, model = tiny_batch(seed=seed), copy.deepcopy(dense)
        groups = {group.name: group for group in find_groups(model, "layers")}
        apply_plan(model, without(*gone))
        got = outputs(model, batch)
        torch.testing.assert_close(got, outputs(bypass(dense, gone), batch), atol=1e-6, rtol=0)
        removed = sum(groups[name].unit_parameters for name in gone)
        assert count_parameters(dense) - count_parameters(model) == removed
        assert sublayers(model) == [name for name in names if name not in gone]
        model.save_pretrained(tmp_path / str(seed))
        reloaded = load_pruned(tmp_path / str(seed), attn_implementation=attention)
        assert torch.equal(outputs(reloaded, batch), got)
        assert reloaded.pruning_plan == model.pruning_plan and sublayers(reloaded) == sublayers(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("block", [0, 1])
def test_a_removed_block_is_as_if_deleted(architecture, block):
    """The same bits as the model whose list of blocks is one shorter; so is the record of hidden states."""
    dense, batch = tiny_model(architecture), tiny_batch(labels=False)
    model = apply_plan(copy.deepcopy(dense), without(f"layer.{block}.attention", f"layer.{block}.feed_forward"))
    owner, _, number = list_blocks(dense)[block].rpartition(".")
    del dense.get_submodule(owner)[int(number)]
    dense.config.use_cache = False  # its layers are not numbered anew
    if architecture != "albert":
        dense.config.num_hidden_layers -= 1
    assert torch.equal(outputs(model, batch), outputs(dense, batch))
    with torch.no_grad():
        got, expected = (m(**batch, output_hidden_states=True).hidden_states for m in (model, dense))
    assert torch.equal(got[-1], expected[-1]) and len(got) >= len(expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_costs_less(architecture):
    """FLOPs fall by what the groups say."""
    model = tiny_model(architecture, attn_implementation="eager")
    tokens, config = 16, PruningConfig(sparsity=0.5, budget="flops", sequence_length=16)
    gone = ("layer.0.attention", "layer.1.feed_forward")
    calls = 3 if architecture == "albert" else 1  # how often each block runs
    wanted = sum(unit_cost(g, config) for g in find_groups(model, "layers") if g.name in gone) * tokens * calls
    before = count_flops(model, 1, tokens)
    apply_plan(model, without(*gone))
    assert before - count_flops(model, 1, tokens) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize(("architecture", "name"), sorted(set(task_classes())))
def test_every_task_head(architecture, name, tmp_path):
    torch.manual_seed(0)
    changes = {"is_decoder": True} if "LMHead" in name or "CausalLM" in name else {}
    model = getattr(transformers, name)(tiny_config(architecture, num_labels=2, **changes)).eval()
    batch, gone = tiny_batch(labels=False), ("layer.0.attention", "layer.1.feed_forward")
    if "MultipleChoice" in name or "DoubleHeads" in name:
        batch = {key: torch.stack([value, value.flip(0)], dim=1) for key, value in batch.items()}
    dense = bypass(copy.deepcopy(model), gone)
    apply_plan(model, without(*gone)).save_pretrained(tmp_path)
    reloaded = load_pruned(tmp_path)
    assert type(reloaded).__name__ == name
    with torch.no_grad():
        got, expected, again = (list(m(**batch).values()) for m in (model, dense, reloaded))
    tensors = [values for values in zip(got, expected, again) if isinstance(values[0], torch.Tensor)]
    assert tensors
    for a, b, c in tensors:
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        assert torch.equal(a, c)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_sublayers_but_one(architecture, tmp_path):
    names = sublayers(tiny_model(architecture))
    for kept in names[:2]:
        gone, batch = [name for name in names if name != kept], tiny_batch()
        model = apply_plan(tiny_model(architecture), without(*gone))
        torch.testing.assert_close(outputs(model, batch), outputs(bypass(tiny_model(architecture), gone), batch))
        model.save_pretrained(tmp_path / kept)
        assert torch.equal(outputs(load_pruned(tmp_path / kept), batch), outputs(model, batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_outputs_and_chunks(architecture):
    batch, gone = tiny_batch(labels=False), ("layer.0.attention", "layer.1.feed_forward")
    model = apply_plan(tiny_model(architecture, attn_implementation="eager"), without(*gone))
    with torch.no_grad():
        result = model(**batch, output_hidden_states=True, output_attentions=True)
    assert torch.equal(result.logits, outputs(model, batch))
    assert any(isinstance(maps, torch.Tensor) for maps in result.attentions)
    if hasattr(model.config, "chunk_size_feed_forward"):
        for module in model.modules():
            if hasattr(module, "chunk_size_feed_forward"):
                module.chunk_size_feed_forward = 3
        torch.testing.assert_close(outputs(model, batch), result.logits)


# transformers has no gradient checkpointing for albert and mpnet
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("albert", "mpnet")])
@pytest.mark.parametrize("reentrant", [False, True])
def test_training_with_gradient_checkpointing(architecture, reentrant):
    """A step gives every parameter that is left the gradient that it has without checkpointing."""
    dropouts = {n: 0.0 for n, v in tiny_config(architecture).to_dict().items() if "drop" in n and isinstance(v, float)}
    gone = ("layer.0.attention", "layer.0.feed_forward", "layer.1.attention")
    model = apply_plan(tiny_model(architecture, **dropouts), without(*gone)).train()
    model.config.use_cache = False
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**tiny_batch()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = outputs(model.eval(), tiny_batch())
    optimizer.step()
    assert not torch.equal(outputs(model, tiny_batch()), before)


def test_stand_ins_have_nothing_to_train_and_follow_the_dtype():
    model = apply_plan(tiny_model("bert").to(torch.bfloat16), without("layer.1.attention"))
    gone = model.bert.encoder.layer[1].attention
    assert list(gone.parameters()) == [] and not gone.training
    assert {name: (tuple(b.shape), b.dtype) for name, b in gone.named_buffers()} == {
        "output.dense.weight": ((32, 0), torch.bfloat16)
    }


# --- caches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "gone",
    [
        ("layer.0.attention",),
        ("layer.0.attention", "layer.0.feed_forward", "layer.2.attention"),
        ("layer.1.attention",),
    ],
)
def test_generation_with_a_cache(architecture, attention, gone, tmp_path):
    """The same tokens as the bypassed model without a cache, greedily and by beams, with padding on the left."""
    dense = tiny_model(architecture, "CausalLM", attn_implementation=attention)
    model = apply_plan(copy.deepcopy(dense), without(*gone))
    model.save_pretrained(tmp_path)
    ids = tiny_batch(2, padding=False)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3], ids[0, :3] = 0, 0
    for beams in (1, 3):
        options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        expected = bypass(copy.deepcopy(dense), gone).generate(ids, use_cache=False, num_beams=beams, **options)
        for other in (model, load_pruned(tmp_path, attn_implementation=attention)):
            assert torch.equal(other.generate(ids, use_cache=True, num_beams=beams, **options), expected)


@pytest.fixture()
def qwen2(monkeypatch):
    """A model whose attention is full and in a sliding window by turns, of an architecture of the user's own."""
    monkeypatch.setitem(TABLE, "qwen2", TABLE["llama"])
    config = transformers.AutoConfig.for_model(
        "qwen2",
        **{**CONFIGS["llama"], "num_hidden_layers": 4, "eos_token_id": None},
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention"] * 2,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (1, 3), (0, 1, 3)])
def test_caches_of_several_kinds_stay_in_step(qwen2, gone, tmp_path):
    """The same tokens with every kind of cache as without one, longer than the window; also where it is loaded."""
    apply_plan(qwen2, PruningPlan({f"layer.{layer}.attention": [] for layer in gone}))
    qwen2.save_pretrained(tmp_path)
    ids = torch.randint(5, 99, (2, 12))
    expected = qwen2.generate(ids, use_cache=False, do_sample=False, max_new_tokens=8)
    remote = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    for model in (qwen2, load_pruned(tmp_path), remote):
        for cache in ({"use_cache": True}, {"cache_implementation": "static"}):
            assert torch.equal(model.generate(ids, do_sample=False, max_new_tokens=8, **cache), expected)


def test_what_a_cache_cannot_follow_is_refused(qwen2):
    before = copy.deepcopy(qwen2.state_dict())
    apply_plan(qwen2, PruningPlan({"layer.0.attention": []}))
    with pytest.raises(ValueError, match="no attention layer of the type 'full_attention' would be left"):
        apply_plan(qwen2, PruningPlan({"layer.2.attention": []}))
    assert qwen2.pruning_plan.keep == {"layer.0.attention": ()}
    assert torch.equal(qwen2.model.layers[2].self_attn.q_proj.weight, before["model.layers.2.self_attn.q_proj.weight"])
    qwen2.config.num_kv_shared_layers = 1
    apply_plan(qwen2, PruningPlan({"layer.1.feed_forward": []}))  # numbers no cache
    with pytest.raises(ValueError, match="share a key-value cache"):
        apply_plan(qwen2, PruningPlan({"layer.1.attention": []}))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "bert"])
def test_layers_cut_in_two_steps_number_their_caches_as_in_one(architecture):
    changes = {"is_decoder": True} if architecture == "bert" else {}
    one = apply_plan(
        tiny_model(architecture, "CausalLM", **changes), without("layer.0.attention", "layer.1.attention")
    )
    two = apply_plan(tiny_model(architecture, "CausalLM", **changes), without("layer.1.attention"))
    apply_plan(two, without("layer.0.attention"))
    for model in (one, two):
        assert [m.layer_idx for m in model.modules() if hasattr(m, "layer_idx")] == [0]


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("gone", [("layer.0.attention",), ("layer.0.feed_forward", "layer.1.attention")])
def test_cross_attention_stays(architecture, gone):
    """Token by token with a cache, a decoder beside an encoder computes what it does at once, and as if bypassed."""
    dense = tiny_model(architecture, "CausalLM", is_decoder=True, add_cross_attention=True)
    model = apply_plan(copy.deepcopy(dense), without(*gone))
    ids, encoder = tiny_batch(2, padding=False)["input_ids"], torch.randn(2, 5, 32)
    bypass(dense, gone)
    with torch.no_grad():
        expected = dense(ids, encoder_hidden_states=encoder, use_cache=False).logits
        at_once = model(ids, encoder_hidden_states=encoder, use_cache=False).logits
        cache, steps = None, []
        for token in ids.T:
            result = model(token[:, None], encoder_hidden_states=encoder, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            steps.append(result.logits)
    torch.testing.assert_close(at_once, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=0)


# --- plans applied --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "albert", "mpnet", "gpt2", "llama"])
def test_together_with_heads_and_neurons_and_in_steps(architecture, tmp_path):
    """All at once, or in three steps with a round trip through files between: the same model and the same plan."""
    keep = {
        "layer.0.attention": (),
        "layer.0.heads": (1,),  # goes with its sub-layer
        "layer.0.neurons": (3, 5, 30),
        "layer.1.heads": (0, 3),
        "layer.1.feed_forward": (),
    }
    batch = tiny_batch()
    once = apply_plan(tiny_model(architecture), PruningPlan(keep))
    kept = {name: units for name, units in keep.items() if name != "layer.0.heads"}
    assert once.pruning_plan.keep == kept
    assert once.pruning_plan.sizes == {n: {"heads": 4, "neurons": 37}.get(n.split(".")[2], 1) for n in kept}

    stepwise = apply_plan(tiny_model(architecture), PruningPlan({"layer.1.heads": (0, 2, 3), "layer.0.heads": (1, 2)}))
    stepwise.save_pretrained(tmp_path / "1")
    stepwise = apply_plan(load_pruned(tmp_path / "1"), PruningPlan({"layer.0.attention": (), "layer.1.heads": (0, 3)}))
    stepwise.save_pretrained(tmp_path / "2")
    stepwise = load_pruned(tmp_path / "2")
    groups = {g.name: g for g in find_groups(stepwise, KINDS)}
    assert groups["layer.1.heads"].units == (0, 3) and groups["layer.1.heads"].original_size == 4
    assert not {"layer.0.attention", "layer.0.heads"} & set(groups)
    apply_plan(stepwise, PruningPlan({"layer.0.neurons": (3, 5, 30), "layer.1.feed_forward": ()}))
    assert torch.equal(outputs(stepwise, batch), outputs(once, batch))
    assert stepwise.pruning_plan == once.pruning_plan
    assert stepwise.config.to_dict()[RECORD] == once.config.to_dict()[RECORD]
    assert once.config.to_dict()[RECORD]["sizes"] == {name: len(units) for name, units in kept.items()}
    once.save_pretrained(tmp_path / "3")
    assert torch.equal(outputs(load_pruned(tmp_path / "3"), batch), outputs(once, batch))


def test_the_plan_as_a_value():
    plan = PruningPlan(
        {"layer.0.attention": (), "layer.0.feed_forward": (0,), "layer.0.neurons": (1, 2), "layer.1.heads": (0,)},
        {"layer.0.attention": 1, "layer.0.feed_forward": 1, "layer.0.neurons": 37, "layer.1.heads": 4},
    )
    assert PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert [line.split("  ") for line in re.sub(" {2,}", "  ", str(plan)).split("\n")] == [
        ["layer", "attention", "feed_forward", "neurons", "heads"],
        ["", "0", "0 / 1", "1 / 1", "2 / 37", "-"],
        ["", "1", "all", "all", "all", "1 / 4"],
        ["total", "0 / 1", "1 / 1", "2 / 37", "1 / 4"],
    ]
    assert ("0", "attention", "0 / 1") in plan.table() and plan.removed("layer.0.attention") == (0,)


def test_what_was_removed_cannot_come_back():
    model = apply_plan(tiny_model("bert"), without("layer.1.attention"))
    for name in ("layer.1.attention", "layer.1.heads"):
        check_refused(model, PruningPlan({name: [0]}), f"keeps units [0] of '{name}', which was removed already")
    check_refused(model, lambda m: prune_heads(m, {0: [1], 1: [0]}), "the attention of layer 1 was removed already")
    check_refused(model, lambda m: prune_heads(m, {3: [0]}), "the model has no layer 3; its layers are [0, 1, 2]")
    check_refused(model, PruningPlan({"layer.1.feed_forward": [1]}), "'layer.1.feed_forward' has no unit 1: it has 1")
    parameters, plan = dict(model.named_parameters()), model.pruning_plan
    apply_plan(model, without("layer.1.attention", "layer.1.heads"))
    assert model.pruning_plan == plan
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert prune_heads(model, {0: [1]}).config.pruned_heads == {0: [1]}


def test_groups_from_before_the_cut_are_refused():
    model, config = tiny_model("bert"), PruningConfig(sparsity=0.5, granularity=KINDS, method="magnitude")
    for group in find_groups(model, KINDS)[:2]:
        cut = apply_plan(copy.deepcopy(model), without("layer.0.attention"))
        with pytest.raises(ValueError, match=f"the group '{group.name}' has {group.size} units, but the .* lacks it"):
            score_groups(cut, [group], None, config)


def test_a_failure_in_the_middle_changes_nothing(monkeypatch):
    model, calls = tiny_model("bert"), []
    clone = torch.Tensor.clone

    def fail_late(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no memory left")
        return clone(*args, **kwargs)

    def cut(model):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "clone", fail_late)
            apply_plan(model, PruningPlan({"layer.2.heads": [0], "layer.0.attention": (), "layer.1.feed_forward": ()}))

    check_refused(model, cut, "no memory left", MemoryError)


def test_scaling_by_the_number_of_the_layer():
    """Transformers 5 fixes the scale when it builds the layer; 4 reads the number that the cut would change."""
    dense, batch = tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True, attn_implementation="eager"), tiny_batch()
    if MAJOR < 5:
        check_refused(dense, without("layer.0.attention"), "use transformers 5")
        return
    model = apply_plan(copy.deepcopy(dense), without("layer.0.attention"))
    expected = outputs(bypass(dense, ["layer.0.attention"]), batch)
    torch.testing.assert_close(outputs(model, batch), expected, atol=1e-6, rtol=0)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["layer.0.attention", "layer.1.feed_forward"])
def test_the_plain_way_stays_an_error(architecture, name, tmp_path):
    """One missing sub-layer is enough, even with every other weight in place, and without the hint in the config."""
    apply_plan(tiny_model(architecture), without(name)).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda values: values.pop("transformers_weights"))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    plain = transformers.PreTrainedModel.from_pretrained.__wrapped__  # as it is without this package
    for auto_class in (transformers.AutoModelForSequenceClassification, transformers.AutoModel):
        with pytest.raises(RuntimeError, match="(?i)mismatch"):
            plain(auto_class._model_mapping[type(config)], tmp_path)


def test_copies_pickles_dtypes_and_shards(tmp_path):
    model, batch = apply_plan(tiny_model("mpnet"), without("layer.0.attention", "layer.2.feed_forward")), tiny_batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and torch.equal(outputs(other, batch), outputs(model, batch))
        assert other.pruning_plan == model.pruning_plan and sublayers(other) == sublayers(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(outputs(load_pruned(tmp_path, dtype=torch.bfloat16), batch), outputs(model, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda sizes: sizes.update({"layer.1.attention": 1}),
            "records 1 units for 'layer.1.attention', but its weigh",
        ),
        (
            lambda sizes: sizes.update({"layer.0.attention": 0}),
            "records 0 units for 'layer.0.attention', but its weigh",
        ),
        (
            lambda sizes: sizes.pop("layer.1.attention"),
            "records 1 units for 'layer.1.attention', but its weights hold 0",
        ),
        (
            lambda sizes: sizes.update({"layer.1.heads": sizes.pop("layer.1.attention")}),
            "records 1 units for 'layer.1.attention', but its weights hold 0",
        ),
        (
            lambda sizes: sizes.update({"layer.2.feed_forward": sizes.pop("layer.2.neurons")}),
            "records 3 units for 'layer.2.feed_forward'; expected an integer between 0 and 1",
        ),
        (lambda sizes: sizes.update({"layer.1.attention": -1}), "records -1 units for 'layer.1.attention'; expected"),
        (lambda sizes: sizes.update({"layer.1.attention": False}), "records False units for 'layer.1.attention'"),
        (lambda sizes: sizes.update({"layer.1.attention": "0"}), "records '0' units for 'layer.1.attention'"),
        (
            lambda sizes: sizes.update({"layer.9.attention": 0}),
            "units for 'layer.9.attention'; expected one of the groups",
        ),
        (
            lambda sizes: sizes.update({"layer.1.heads": 2}),
            "units for 'layer.1.heads', whose sub-layer it records as gone",
        ),
    ],
)
def test_records_that_do_not_fit(change, message, tmp_path):
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.attention": (), "layer.2.neurons": (0, 1, 2)}))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    change(values[RECORD]["sizes"])
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pruned(tmp_path)


def test_the_plan_beside_a_checkpoint_must_fit(tmp_path):
    apply_plan(tiny_model("bert"), without("layer.1.attention")).save_pretrained(tmp_path)
    PruningPlan({"layer.0.attention": ()}, {"layer.0.attention": 1}).save(tmp_path)
    with pytest.raises(ValueError, match="the two files do not belong together"):
        load_pruned(tmp_path)


# --- make_plan ------------------------------------------------------------------------------------------------------


def layer(name, cost=1):
    return PrunableGroup(name, "layers", 1, (), unit_parameters=cost, unit_flops=2 * cost, model_parameters=100)


def removed_by(scores, sparsity=None, groups=None, **changes):
    """The names that a plan for scored sub-layers, `(attention, feed_forward)` of each block, removes."""
    names = [f"layer.{i}.{part}" for i in range(len(scores)) for part in ("attention", "feed_forward")]
    scores = dict(zip(names, (torch.tensor([score]) for pair in scores for score in pair)))
    config = PruningConfig(**{"sparsity": sparsity, "granularity": "layers", **changes})
    plan = make_plan(scores, groups or [layer(name) for name in names], config)
    assert set(plan.keep) == set(names) and set(plan.sizes.values()) == {1}
    return [name.removeprefix("layer.") for name in plan.keep if not plan.keep[name]]


PARTS = ("attention", "feed_forward")
PAIRS = [(5.0, 1.0), (0.5, 4.0), (3.0, 2.0)]


@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize("min_units", [0, 1, 5])
def test_sublayers_by_hand(allocation, min_units):
    changes = {"allocation": allocation, "min_units": min_units, "multiple_of": 8}
    for sparsity, gone in (
        (0.08, []),  # less than half of one sub-layer in six
        (0.1, ["1.attention"]),
        (0.24, ["1.attention"]),
        (0.26, ["0.feed_forward", "1.attention"]),
        (0.5, ["0.feed_forward", "1.attention", "2.feed_forward"]),
        (5 / 6, ["0.feed_forward", "1.attention", "1.feed_forward", "2.attention", "2.feed_forward"]),
        (0.9, ["0.feed_forward", "1.attention", "1.feed_forward", "2.attention", "2.feed_forward"]),
    ):
        assert removed_by(PAIRS, sparsity, **changes) == gone


def test_blocks_by_hand():
    """Sums of 6, 4.5 and 5."""
    for sparsity, gone in (
        (0.15, []),
        (0.2, ["1.attention", "1.feed_forward"]),
        (0.6, ["1.attention", "1.feed_forward", "2.attention", "2.feed_forward"]),
        (0.8, ["1.attention", "1.feed_forward", "2.attention", "2.feed_forward"]),
    ):
        assert removed_by(PAIRS, sparsity, layer_unit="block") == gone


@pytest.mark.parametrize(
    ("exclude", "changes", "gone"),
    [
        (["layer.1.attention"], {"sparsity": 0.26}, ["0.feed_forward", "2.feed_forward"]),
        ([1], {"sparsity": 0.5}, ["0.feed_forward", "2.attention", "2.feed_forward"]),
        (["*.heads"], {"sparsity": 0.5}, ["0.feed_forward", "1.feed_forward", "2.feed_forward"]),
        (["*.1.attention"], {"sparsity": 0.6, "layer_unit": "block"}, [f"{i}.{p}" for i in (0, 2) for p in PARTS]),
    ],
)
def test_sublayers_that_always_stay(exclude, changes, gone):
    """A sub-layer goes by the name of its heads or neurons too; a block stays with one of its sub-layers."""
    assert removed_by(PAIRS, exclude=exclude, **changes) == gone
    with pytest.raises(ValueError, match="the highest possible sparsity here is .* are excluded or have a score of"):
        removed_by(PAIRS, exclude=exclude, **{**changes, "sparsity": 0.95})


def test_a_sublayer_stays_with_a_unit_that_stays():
    """Whatever it scores itself; and one that is excluded keeps all its heads and neurons."""
    kinds = ("layers", "heads", "neurons")
    groups = find_groups(tiny_model("bert"), kinds)
    scores = {g.name: torch.ones(g.size) for g in groups}
    scores["layer.1.attention"][:] = 0
    config = PruningConfig(sparsity=0.5, granularity=kinds)
    assert make_plan(scores, groups, config).keep["layer.1.attention"] == ()
    scores["layer.1.heads"][3] = torch.inf
    kept = make_plan(scores, groups, config).keep
    assert kept["layer.1.attention"] == (0,) and 3 in kept["layer.1.heads"]
    for name, whole in (("layer.1.attention", "layer.1.heads"), ("layer.2.feed_forward", "layer.2.neurons")):
        for entry in (name, whole):
            kept = make_plan(scores, groups, PruningConfig(sparsity=0.5, granularity=kinds, exclude=[entry])).keep
            assert kept[name] == (0,) and kept[whole] == tuple(range({"heads": 4, "neurons": 37}[whole[8:]]))
    scores["layer.0.attention"][:] = torch.inf  # its heads may go
    assert 0 < len(make_plan(scores, groups, config).keep["layer.0.heads"]) < 4


def test_score_per_cost_decides():
    """Attention costs 1 and feed-forward 2 or 4: 8 / 4 is less than 3 / 1 and 5 / 2. What is left is 3 or 1 of 7."""
    groups = [layer("layer.0.attention"), layer("layer.0.feed_forward", 4), layer("layer.1.attention", 2)]
    scores = {"layer.0.attention": [3.0], "layer.0.feed_forward": [8.0], "layer.1.attention": [5.0]}
    scores = {name: torch.tensor(value) for name, value in scores.items()}
    for sparsity, kept in ((0.25, 3), (0.3, 2), (0.5, 2), (0.7, 2), (0.8, 1)):
        plan = make_plan(scores, groups, PruningConfig(sparsity=sparsity, granularity="layers"))
        assert sum(map(len, plan.keep.values())) == kept
        assert (plan.keep["layer.0.attention"], plan.keep["layer.0.feed_forward"]) == ((0,), (0,) if kept == 3 else ())
    # 100 / 1.05 is 4.76 less: the sub-layer that costs 4, in any budget.
    for budget in ("params", "flops"):
        plan = make_plan(scores, groups, PruningConfig(compression=1.05, granularity="layers", budget=budget))
        assert [name for name in plan.keep if not plan.keep[name]] == ["layer.0.feed_forward"]


def test_ties_keep_the_earlier():
    assert removed_by([(1.0, 1.0)] * 3, 1 / 3) == ["2.attention", "2.feed_forward"]
    assert removed_by([(1.0, 2.0), (2.0, 1.0)], 0.5, layer_unit="block") == ["1.attention", "1.feed_forward"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 0.92}, "sparsity=0.92 cannot be reached: the highest possible sparsity here is 0.8333"),
        ({"sparsity": 0.84, "layer_unit": "block"}, "sparsity=0.84 cannot be reached: the highest possible sparsity"),
        ({"compression": 2.0}, "compression=2.0 cannot be reached: the highest possible compression here is 1.0526"),
    ],
)
def test_one_candidate_stays(changes, message):
    """100 parameters, of which 6 are in sub-layers: without five of them 95 are left."""
    with pytest.raises(ValueError, match=re.escape(message)):
        removed_by(PAIRS, **changes)


def random_scores(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in groups}


FINE = {"hidden_size": 64, "num_attention_heads": 16, "intermediate_size": 200, "num_hidden_layers": 6}


@pytest.mark.once
@pytest.mark.parametrize("unit", ["sublayer", "block"])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize("budget", ["params", "flops"])
def test_joint_budgets_land_on_the_target(unit, sparsity, allocation, budget):
    """To within a unit of each pool, in the physical model; and sub-layers go down to the square root, no further."""
    config = PruningConfig(
        sparsity=sparsity, granularity=KINDS, allocation=allocation, budget=budget, layer_unit=unit, method="fisher"
    )
    model = tiny_model("bert", **FINE)
    before = find_groups(model, KINDS)
    scores = random_scores(before)
    for g in before:  # no kind is cheap on the whole
        scores[g.name] *= unit_cost(g, config)
    plan = make_plan(scores, before, config)
    gone = {g.name for g in before if g.kind == "layers" and not plan.keep[g.name]}
    parts = {"heads": "attention", "neurons": "feed_forward"}
    for g in before:
        if g.kind != "layers":
            owner = g.name.replace(g.kind, parts[g.kind])
            assert (g.name in plan.keep) == (owner not in gone)
    layers = [g for g in before if g.kind == "layers"]
    total = sum(unit_cost(g, config) for g in layers)
    left = sum(unit_cost(g, config) for g in layers if g.name not in gone) / total
    candidate = max(unit_cost(g, config) for g in layers) * (2 if unit == "block" else 1) / total
    assert left >= (1 - sparsity) - 1e-9 and abs(left - (1 - sparsity) ** 0.5) <= candidate
    apply_plan(model, plan)
    pools = sum(g.kind != "layers" and g.name in plan.keep for g in before) if allocation == "uniform" else 2
    unit_share = max(unit_cost(g, config) for g in before if g.kind != "layers") / total
    assert remaining_budget(before, find_groups(model, KINDS), config) == pytest.approx(
        1 - sparsity, abs=pools * unit_share / 2 + 1e-6 if allocation != "global" else unit_share
    )


def test_sublayers_leave_no_less_than_the_target():
    """Of three blocks to keep 0.82, two are nearer than three; but that is less than the 0.68 to keep of the whole."""
    groups = find_groups(tiny_model("bert"), KINDS)
    config = PruningConfig(sparsity=0.32, granularity=KINDS, layer_unit="block")
    plan = make_plan(random_scores(groups), groups, config)
    assert all(plan.keep[g.name] for g in groups if g.kind == "layers")
    left = find_groups(apply_plan(tiny_model("bert"), plan), KINDS)
    assert remaining_budget(groups, left, config) == pytest.approx(0.68, abs=0.02)


@pytest.mark.once
@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
@pytest.mark.parametrize("compression", [1.2, 2.0])
@pytest.mark.parametrize("granularity", [KINDS, ("layers", "neurons"), ("layers",)])
def test_compression_is_that_of_the_physical_model(allocation, compression, granularity):
    model = tiny_model("gpt2", n_embd=64, n_head=16, n_inner=200, n_layer=12)
    before, groups = count_parameters(model), find_groups(model, granularity)
    config = PruningConfig(compression=compression, allocation=allocation, granularity=granularity)
    apply_plan(model, make_plan(random_scores(groups), groups, config))
    assert before / count_parameters(model) == pytest.approx(compression, rel=0.09 if len(granularity) == 1 else 0.02)


@pytest.mark.once
@pytest.mark.parametrize("granularity", [("layers", "heads"), ("layers", "neurons"), KINDS])
@pytest.mark.parametrize("allocation", ["per_kind", "uniform", "global"])
def test_a_joint_budget_is_met_or_refused(granularity, allocation):
    """Where units cannot give the rest, more sub-layers go; the value that an error names can be reached."""
    groups = find_groups(tiny_model("bert"), granularity)
    for seed in range(5):
        scores = random_scores(groups, seed)
        for sparsity in (0.2, 0.5, 0.8, 0.9999):
            config = PruningConfig(sparsity=sparsity, granularity=granularity, allocation=allocation)
            try:
                plan = make_plan(scores, groups, config)
            except ValueError as error:
                highest = float(re.search(r"highest possible sparsity here is (\d\.\d+)", str(error))[1])
                assert 0.8 < highest < sparsity
                config.sparsity = highest
                plan = make_plan(scores, groups, config)
            model = apply_plan(tiny_model("bert"), plan)
            rounding = 0.1 if allocation == "uniform" else 0.05  # four heads a layer
            assert 1 - remaining_budget(groups, find_groups(model, granularity), config) > config.sparsity - rounding
            assert any(plan.keep[g.name] for g in groups if g.kind == "layers")
            model(**tiny_batch())


# --- scores, rebuilding, training -----------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("architecture", few(["albert", "gpt2", "bert", "llama"], 2))
@pytest.mark.parametrize("method", tuple(SCORERS))
def test_every_method_scores_sublayers(architecture, method):
    """Alone and with their heads and neurons at the same projections, which score the same in either company."""
    model, batches = tiny_model(architecture), [tiny_batch(seed=seed) for seed in range(2)]
    results = {}
    for kinds in (("layers",), ("heads", "neurons"), KINDS):
        config = PruningConfig(sparsity=0.5, granularity=kinds, method=method, smooth_samples=2)
        groups = find_groups(model, kinds)
        results[kinds] = score_groups(model, groups, batches, config, disable_tqdm=True)
        assert {name: tuple(s.shape) for name, s in results[kinds].items()} == {g.name: (g.size,) for g in groups}
        apply_plan(copy.deepcopy(model), make_plan(results[kinds], groups, config))
    apart = {**results["layers",], **results["heads", "neurons"]}
    if method != "random":
        for name, score in results[KINDS].items():
            torch.testing.assert_close(score, apart[name])


def test_the_score_of_a_sublayer_is_that_of_its_units_together():
    model, batches = tiny_model("bert"), [tiny_batch()]
    for method, together in (("magnitude", torch.sum), ("activation", torch.mean)):
        config = PruningConfig(sparsity=0.5, granularity=KINDS, method=method)
        scores = score_groups(model, find_groups(model, KINDS), batches, config, disable_tqdm=True)
        for i in range(3):
            torch.testing.assert_close(scores[f"layer.{i}.attention"][0], together(scores[f"layer.{i}.heads"]))
            torch.testing.assert_close(scores[f"layer.{i}.feed_forward"][0], together(scores[f"layer.{i}.neurons"]))


@pytest.mark.skipif(MAJOR < 5, reason="attention without heads does not run in transformers 4")
@pytest.mark.parametrize("method", ["taylor", "magnitude"])
def test_a_sublayer_that_has_no_units_left_goes_first(method):
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.heads": [], "layer.2.neurons": []}))
    config, groups = PruningConfig(sparsity=0.05, granularity="layers", method=method), find_groups(model, "layers")
    scores = score_groups(model, groups, [tiny_batch()], config, disable_tqdm=True)
    assert [name for name, score in scores.items() if not score] == ["layer.1.attention", "layer.2.feed_forward"]
    apply_plan(model, without("layer.1.attention"))
    assert "layer.1.heads" not in model.pruning_plan.keep and model.config.pruned_heads == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reconstruct_makes_up_for_sublayers(architecture):
    """Closer to the dense model than before on batches it has not seen; what comes before the cut is untouched."""
    dense = tiny_model(architecture)
    plan = PruningPlan({"layer.0.feed_forward": (), "layer.0.neurons": (1,), "layer.1.attention": ()})
    model = apply_plan(copy.deepcopy(dense), plan)
    batches = [tiny_batch(16, seed=seed, labels=False) for seed in range(8)]
    held_out = tiny_batch(32, seed=99, labels=False)

    def distance():
        with torch.no_grad():
            a, b = (m(**held_out, output_hidden_states=True).hidden_states[-1] for m in (model, dense))
        return (a - b)[held_out["attention_mask"].bool()].square().mean().item()

    before, weights = distance(), {name: value.clone() for name, value in model.state_dict().items()}
    assert reconstruct(model, dense, plan, batches, disable_tqdm=True) is model
    assert distance() < 0.9 * before
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    projections = [group.output.module for group in find_groups(model)]
    projections = projections if architecture == "albert" else projections[1:]  # behind the first cut
    outputs_of = {f"{name}.{part}" for name in projections for part in ("weight", "bias")}
    assert changed <= outputs_of and len(changed) >= 1


def test_reconstruct_solves_each_projection_once(monkeypatch):
    module, solved = importlib.import_module("optimum_camcut.surgery.rebuild"), []
    monkeypatch.setattr(module, "_solve", lambda model, group, *_: solved.append(group.name))
    dense, plan = tiny_model("bert"), without("layer.1.attention")
    reconstruct(apply_plan(copy.deepcopy(dense), plan), dense, plan, [tiny_batch()], disable_tqdm=True)
    assert solved == ["layer.1.neurons", "layer.2.heads", "layer.2.neurons"]


def test_reconstruct_with_nothing_behind_the_cut():
    dense, plan = tiny_model("bert"), without("layer.2.attention", "layer.2.feed_forward")
    model = apply_plan(copy.deepcopy(dense), plan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reconstruct(model, dense, plan, [tiny_batch()], disable_tqdm=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_reconstruct_checks_what_it_gets():
    dense, plan = tiny_model("bert"), without("layer.1.attention")
    model = apply_plan(copy.deepcopy(dense), plan)
    for wrong, message in (
        (without("layer.0.attention"), "'layer.0.attention' has 1 units, not those of the plan"),
        (PruningPlan({"layer.1.attention": [0]}), "names the group 'layer.1.attention', which the model lacks"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            reconstruct(model, dense, wrong, [tiny_batch()])
    with pytest.raises(ValueError, match="dense_model lacks 'layer.1.attention', which the pruned model has"):
        reconstruct(copy.deepcopy(dense), model, PruningPlan({}), [tiny_batch()])
    # A model that was cut before is the dense one of a second step.
    further = apply_plan(copy.deepcopy(model), PruningPlan({"layer.1.neurons": range(20)}))
    reconstruct(further, model, further.pruning_plan, [tiny_batch(seed=seed) for seed in range(8)])


@pytest.mark.once
@pytest.mark.parametrize("recovery", ["finetune", "reconstruct"])
@pytest.mark.parametrize("granularity", few([KINDS, ("layers",)]))
def test_the_trainer_arrives_at_the_target_in_rounds(recovery, granularity, tmp_path):
    """Whole sub-layers may run ahead of a round's share; the next round then waits."""
    model = tiny_model("bert", num_hidden_layers=6)
    before, config = find_groups(model, granularity), None
    for sparsity, rounds in ((0.1, 5), (0.5, 2)):
        config = pruning(granularity=granularity, recovery=recovery, sparsity=sparsity, rounds=rounds)
        trainer = make_trainer(tmp_path / f"{rounds}", config, copy.deepcopy(model))
        trainer.train()
        left = remaining_budget(before, find_groups(trainer.model, granularity), config)
        assert left == pytest.approx(1 - sparsity, abs=0.05)
        again = apply_plan(copy.deepcopy(model), trainer.pruning_plan)  # all that any round has removed
        assert {n: p.shape for n, p in again.named_parameters()} == {
            n: p.shape for n, p in trainer.model.named_parameters()
        }
        trainer.save_model(tmp_path / "saved")
        assert torch.equal(
            outputs(load_pruned(tmp_path / "saved"), tiny_batch()), outputs(trainer.model.eval(), tiny_batch())
        )


def test_shrinking_again_does_nothing():
    from optimum_camcut.architectures.modeling_camcut import shrink

    model = apply_plan(tiny_model("mpnet"), PruningPlan({"layer.0.attention": (), "layer.1.heads": (0, 2)}))
    modules = dict(model.named_modules())
    shrink(model)
    assert dict(model.named_modules()) == modules
    assert [(g.name, g.size) for g in list_groups(model)][:1] == [("layer.0.attention", 0)]


def test_random_plans_of_all_kinds(tmp_path):
    """Units and sub-layers at once, uneven, on top of a random plan of units alone."""
    for architecture in ARCHITECTURES:
        for seed in range(3):
            model = tiny_model(architecture, seed=seed)
            plan = random_plan(model, seed)
            gone = [name for i, name in enumerate(sublayers(model)) if (i + seed) % 3 == 0]
            once = apply_plan(copy.deepcopy(model), PruningPlan({**plan.keep, **without(*gone).keep}))
            twice = apply_plan(apply_plan(copy.deepcopy(model), plan), without(*gone))
            thrice = apply_plan(
                apply_plan(model, without(*gone)),
                PruningPlan({n: plan.keep[n] for n in once.pruning_plan.keep if n in plan.keep}),
            )
            batch = tiny_batch(seed=seed)
            assert torch.equal(outputs(once, batch), outputs(twice, batch))
            assert torch.equal(outputs(once, batch), outputs(thrice, batch))
            assert once.pruning_plan.keep == twice.pruning_plan.keep == thrice.pruning_plan.keep
