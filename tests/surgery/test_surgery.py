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
"""Cutting: a cut model computes what the uncut model computes with the removed units silenced."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from models import (
    ARCHITECTURES,
    check_refused,
    mask_units,
    outputs,
    random_plan,
    task_classes,
    tiny_batch,
    tiny_config,
    tiny_model,
)

from optimum_camcut import PruningPlan, apply_plan, find_groups, load_pruned, prune_heads
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.architectures.table import unsupported_architecture


PLANS, IN_SHORT = 50, 8


def test_the_table_has_the_architectures_of_the_tests():
    assert set(TABLE) > set(ARCHITECTURES)  # the others: test_types.py


@pytest.mark.parametrize("seeds", [range(IN_SHORT), pytest.param(range(IN_SHORT, PLANS), marks=pytest.mark.long)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cut_equals_masked(architecture, seeds, tmp_path):
    """Fifty random plans an architecture: eager and sdpa, with padding, and after a round trip through files."""
    for seed in seeds:
        attention = "sdpa" if seed % 2 and tiny_model(architecture)._supports_sdpa else "eager"
        model = tiny_model(architecture, seed=seed, attn_implementation=attention)
        plan, batch = random_plan(model, seed), tiny_batch(seed=seed)
        masked = mask_units(copy.deepcopy(model), plan)
        expected = outputs(masked, batch)
        parameters = sum(p.numel() for p in model.parameters())
        apply_plan(model, plan)
        got = outputs(model, batch)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        assert {g.name: g.units for g in find_groups(model)} == plan.keep
        removed = sum(plan.sizes[name] - len(units) for name, units in plan.keep.items())
        assert removed == 0 or sum(p.numel() for p in model.parameters()) < parameters
        if seed % 10 < 2:
            model.save_pretrained(tmp_path / str(seed))
            reloaded = load_pruned(tmp_path / str(seed), attn_implementation=attention)
            assert torch.equal(outputs(reloaded, batch), got)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generation_with_a_cache_equals_masked(architecture, attention):
    for seed in range(5):
        model = tiny_model(architecture, "CausalLM", seed=seed, attn_implementation=attention)
        plan = random_plan(model, seed)
        ids = tiny_batch(2, seed=seed, padding=False)["input_ids"]
        # Padding on the left, as generation wants it.
        mask = torch.ones_like(ids)
        mask[0, :3], ids[0, :3] = 0, 0
        options = {
            "attention_mask": mask,
            "max_new_tokens": 8,
            "do_sample": False,
            "eos_token_id": None,
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        expected = mask_units(copy.deepcopy(model), plan).generate(ids, use_cache=False, **options)
        apply_plan(model, plan)
        got = model.generate(ids, use_cache=True, **options)
        assert torch.equal(got.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("architecture", "name"), sorted(set(task_classes())))
def test_every_task_head(architecture, name, tmp_path):
    """Every class that transformers has for the architecture can be cut, computes as if masked, and reloads."""
    torch.manual_seed(0)
    changes = {"is_decoder": True} if "LMHead" in name or "CausalLM" in name else {}
    changes["num_labels"] = 2  # the start and the end, for question answering
    model = getattr(transformers, name)(tiny_config(architecture, **changes)).eval()
    plan = random_plan(model, seed=1)
    batch = tiny_batch(labels=False)
    if "MultipleChoice" in name or "DoubleHeads" in name:
        batch = {key: torch.stack([value, value.flip(0)], dim=1) for key, value in batch.items()}
    masked = mask_units(copy.deepcopy(model), plan)
    apply_plan(model, plan)
    assert type(model).__name__ == name
    model.save_pretrained(tmp_path)
    reloaded = load_pruned(tmp_path)
    assert type(reloaded).__name__ == name and isinstance(reloaded, getattr(transformers, name))
    with torch.no_grad():
        got, expected, again = (list(m(**batch).values()) for m in (model, masked, reloaded))
    compared = 0
    for a, b, c in zip(got, expected, again):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            assert torch.equal(a, c)
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attributes_stay_true(architecture):
    model = apply_plan(tiny_model(architecture), PruningPlan({"layer.1.heads": [1], "layer.1.neurons": [3, 5, 6]}))
    for group in find_groups(model):
        for path, amount in group.attributes.items():
            owner, _, name = path.rpartition(".")
            assert getattr(model.get_submodule(owner), name) == amount * group.size
        for piece in group.slices:
            module = model.get_submodule(piece.module)
            if isinstance(module, torch.nn.Linear):
                assert tuple(module.weight.shape) == (module.out_features, module.in_features)
            else:
                assert tuple(module.weight.shape) == (module.nx, module.nf)


def test_parameters_keep_dtype_and_requires_grad():
    model = tiny_model("bert").to(torch.bfloat16)
    frozen = model.bert.encoder.layer[0].attention.self.query
    frozen.weight.requires_grad_(False)
    random_state = torch.get_rng_state()
    apply_plan(model, random_plan(model, 3))
    assert torch.equal(random_state, torch.get_rng_state())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not frozen.weight.requires_grad and frozen.bias.requires_grad


def test_zero_units_silence_a_layer():
    model, batch = tiny_model("bert"), tiny_batch()
    plan = {"layer.1.heads": [], "layer.2.neurons": []}
    if transformers.__version__.startswith("4."):
        del plan["layer.1.heads"]  # its attention cannot reshape what has no heads
    plan = PruningPlan(plan)
    full = {g.name: plan.keep.get(g.name, range(g.size)) for g in find_groups(model)}
    expected = outputs(mask_units(copy.deepcopy(model), PruningPlan(full)), batch)
    torch.testing.assert_close(outputs(apply_plan(model, plan), batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "gpt2", "llama"])
def test_plans_compose_in_original_indices(architecture):
    first = PruningPlan({"layer.0.heads": [0, 2, 3], "layer.2.neurons": list(range(5, 30))})
    second = PruningPlan({"layer.0.heads": [0, 3], "layer.1.heads": [1], "layer.2.neurons": [7, 29]})
    batch = tiny_batch()
    once = apply_plan(tiny_model(architecture), second)
    twice = apply_plan(apply_plan(tiny_model(architecture), first), second)
    assert torch.equal(outputs(once, batch), outputs(twice, batch))
    assert twice.pruning_plan.keep == once.pruning_plan.keep


def test_prune_heads_takes_what_transformers_4_took():
    model, batch = tiny_model("roberta"), tiny_batch()
    plan = PruningPlan({"layer.0.heads": [0, 3], "layer.2.heads": [1, 2, 3]})
    expected = outputs(apply_plan(copy.deepcopy(model), plan), batch)
    assert prune_heads(model, {0: [1, 2], 2: [0]}) is model
    assert torch.equal(outputs(model, batch), expected)
    assert model.config.pruned_heads == {0: [1, 2], 2: [0]}


def test_the_config_of_another_model_is_left_alone():
    config = tiny_config("bert")
    one, other = transformers.BertModel(config), transformers.BertModel(config)
    before = config.to_dict()
    apply_plan(one, random_plan(one, 0))
    assert other.config is config and config.to_dict() == before
    assert one.encoder.config is one.config


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            {"layer.0.heads": [0], "layer.9.heads": [0]},
            "the plan names the group 'layer.9.heads', which the model lacks",
        ),
        ({"layer.0.heads": [0], "layer.1.heads": [0, 4]}, "'layer.1.heads' has no unit 4: it has 4"),
    ],
)
def test_a_plan_with_what_the_model_lacks_changes_nothing(keep, message):
    check_refused(tiny_model("bert"), PruningPlan(keep), message)


def test_a_plan_for_another_model_changes_nothing():
    check_refused(tiny_model("bert"), random_plan(tiny_model("gpt2"), 0), "the plan is for a 'gpt2' model")
    wider = random_plan(tiny_model("bert", intermediate_size=40), 0)
    check_refused(tiny_model("bert"), wider, "the plan is for a model with 40 units in 'layer.0.neurons'; this has 37")
    check_refused(tiny_model("bert"), {"layer.0.heads": [0]}, "expected a PruningPlan, got dict", TypeError)


def test_removed_units_cannot_come_back():
    model = prune_heads(tiny_model("bert"), {0: [1]})
    check_refused(
        model, PruningPlan({"layer.0.heads": [0, 1]}), "keeps units [1] of 'layer.0.heads', which were removed"
    )
    for layer in (3, -4):
        check_refused(
            model,
            lambda m, layer=layer: prune_heads(m, {1: [0], layer: [0]}),
            f"the model has no layer {layer}; its layers are [0, 1, 2]",
        )
    check_refused(model, lambda m: prune_heads(m, {1: [4]}), "layer 1 has no heads [4]: it has 4")


def test_a_failure_in_the_middle_changes_nothing(monkeypatch):
    """The last tensor that the cut makes fails, as it would with no memory left."""
    model, calls = tiny_model("bert"), []
    index_select = torch.Tensor.index_select

    def fail_late(*args):
        calls.append(args)
        if len(calls) == 20:
            raise MemoryError("no memory left")
        return index_select(*args)

    monkeypatch.setattr(torch.Tensor, "index_select", fail_late)
    check_refused(model, random_plan(model, 0), "no memory left", MemoryError)


def test_unsupported_models_are_refused_with_a_way_on():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}
    model = transformers.ResNetModel(transformers.ResNetConfig(**sizes)).eval()
    with pytest.raises(ValueError) as error:
        find_groups(model)
    for part in ("'resnet'", "none could be derived", "docs/models.md", "docs/adding.md"):
        assert part in str(error.value)
    assert "names like this" in unsupported_architecture("bart2")
    with pytest.raises(TypeError, match="or a module that holds one; got Linear, which holds none"):
        find_groups(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="expected a transformers PreTrainedModel, got str"):
        find_groups("bert-base-uncased")
    two = torch.nn.ModuleDict({"student": tiny_model("bert"), "teacher": torch.nn.Sequential(tiny_model("bert"))})
    for kind in ("heads", "weights"):
        with pytest.raises(TypeError, match=r"several: `student` \(Bert\S+\) and `teacher.0` \(B\S+\); pass"):
            find_groups(two, kind)
    with pytest.raises(ValueError, match=re.escape("unknown kinds ['haeds']; expected one or more of heads, neurons")):
        find_groups(tiny_model("bert"), kinds=("haeds",))


def test_wrapped_or_quantized_linears_are_refused():
    model = tiny_model("bert")
    model.bert.encoder.layer[1].output.dense = torch.nn.Sequential(torch.nn.Linear(37, 32))
    with pytest.raises(ValueError, match="bert.encoder.layer.1.output.dense is a torch.nn.*.Sequential; expected"):
        find_groups(model)


# --- what was made before the cut -----------------------------------------------------------------------------------


def loss_of(model):
    model.zero_grad()
    model(**tiny_batch()).loss.backward()


def test_an_optimizer_from_before_the_cut_does_not_step():
    """It would train parameters that are no longer the model's, and say nothing."""
    model = tiny_model("bert")
    dense, stale = copy.deepcopy(model), torch.optim.AdamW(model.parameters(), lr=0.1)
    of_dense = torch.optim.AdamW(dense.parameters(), lr=0.1)
    loss_of(model)
    stale.step()
    apply_plan(model, PruningPlan({"layer.0.heads": [1], "layer.1.attention": []}))
    start = [parameter.detach().clone() for parameter in model.parameters()]
    gone = 7 + 10  # three maps and the weight of the output projection; a sub-layer of four maps and a norm
    total = len(list(dense.parameters()))
    message = (
        f"{gone} of the {total} parameters of this AdamW are no longer those of the BertForSequenceClassification"
    )
    loss_of(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{message}: a cut .* Make the optimizer after apply_plan"):
            stale.step()
    assert all(torch.equal(one, other) for one, other in zip(start, model.parameters()))
    fresh = torch.optim.AdamW(model.parameters(), lr=0.1)
    fresh.step()
    assert not torch.equal(start[-1], list(model.parameters())[-1])
    loss_of(dense)
    of_dense.step()  # a copy has parameters of its own
    prune_heads(model, {2: [0]})  # after a step that was fine
    with pytest.raises(ValueError, match=f"7 of the {len(start)} parameters"):
        fresh.step()
    rest = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    rest.step()
    rest.add_param_group({"params": fresh.param_groups[0]["params"][:-2]})
    with pytest.raises(ValueError, match="7 of the"):
        rest.step()


def test_an_optimizer_of_two_models_that_shared_a_layer_steps():
    """One was cut; the layer is still the other's."""
    model, other = tiny_model("bert"), tiny_model("bert")
    shared = model.bert.encoder.layer[0].output.dense.weight
    other.bert.encoder.layer[0].output.dense.weight = shared
    before = shared.detach().clone()
    apply_plan(model, PruningPlan({"layer.0.neurons": [1]}))
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    loss_of(other)
    optimizer.step()
    assert not torch.equal(shared, before)
    del other
    with pytest.raises(ValueError, match="1 of the .* parameters of this SGD are no longer those of the Bert"):
        torch.optim.SGD([shared], lr=0.1).step()


def test_what_keeps_its_parameters_keeps_its_optimizer():
    """A plan that cuts nothing, and one that masks."""
    model = tiny_model("bert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply_plan(model, PruningPlan({"layer.0.heads": range(4)}))
    apply_plan(model, PruningPlan({"bert.encoder.layer.0.output.dense.bias": [1]}))
    before = model.classifier.weight.clone()
    loss_of(model)
    optimizer.step()
    assert not torch.equal(model.classifier.weight, before)


def test_what_ddp_holds_is_not_cut(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = tiny_model("bert")
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="DistributedDataParallel holds on to the parameters"):
            apply_plan(wrapped, PruningPlan({"layer.0.heads": [1]}))
        assert find_groups(wrapped)[0].size == 4 and getattr(model, "pruning_plan", None) is None
    finally:
        torch.distributed.destroy_process_group()


def test_the_steps_of_the_docs_run(tmp_path, monkeypatch):
    """The example without a trainer, word for word: it cuts, rebuilds, trains and saves."""
    text = (Path(__file__).parents[2] / "docs" / "steps.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    rows = tiny_batch(16)
    examples = [{name: value[i] for name, value in rows.items()} for i in range(16)]
    model, other, another = (tiny_model("bert", intermediate_size=512, num_hidden_layers=4) for _ in range(3))
    classifier = model.classifier.weight.detach().clone()
    given = {
        "model": model,
        "other": other,
        "another": another,
        "dataloader": torch.utils.data.DataLoader(examples, batch_size=4),
        "tokenizer": SimpleNamespace(save_pretrained=lambda folder: None),
    }
    exec(code, given)
    assert given["model"] is model and not torch.equal(model.classifier.weight, classifier)
    assert [sum(g.size for g in find_groups(model, kind)) for kind in ("heads", "neurons")] == [8, 1024]
    again = load_pruned("smaller")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert [group.size for group in find_groups(other, "heads")] == [2, 4, 4, 3]
