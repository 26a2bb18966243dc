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
"""Entries of architectures: what is wrong in one is an error that names the entry and the field."""

import dataclasses
import re

import pytest
import torch
from models import ARCHITECTURES, TOKENS, tiny_batch, tiny_model
from types_of_models import batch_of, model_of

from optimum_camcut import PruningPlan, apply_plan, check_architecture, find_groups
from optimum_camcut.architectures.modeling_camcut import ARCHITECTURES as TABLE
from optimum_camcut.architectures.modeling_camcut import HEAD, Architecture, Cut


BERT, LLAMA = TABLE["bert"], TABLE["llama"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shipped_entries_are_right_and_the_model_stays_as_it_is(architecture):
    model = tiny_model(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check_architecture(model, tiny_batch(), reload=False)
    assert torch.equal(random, torch.get_rng_state())
    assert getattr(model, "pruning_plan", None) is None
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (*BERT.heads[:3], Cut("attention.output.dense", "input", HEAD))}, r"heads\[3\]\.axis.*'in'"),
        ({"neurons": (Cut("intermediate.dense", "output"), BERT.neurons[1])}, r"neurons\[0\]\.axis.*mean 'out'"),
        ({"neurons": BERT.neurons[::-1]}, r"neurons\[1\]\.axis should be 'in'"),
        ({"heads": (Cut("attention.self.query", "out", "heads"), *BERT.heads[1:])}, r"width.*did you mean 'head'"),
        ({"heads": (Cut("attention.self.query", "out", HEAD, 0), *BERT.heads[1:])}, r"heads\[0\]\.blocks.*got 0"),
        ({"heads": list(BERT.heads)}, "heads should be a tuple"),
        ({"layers": "encoder.layer"}, "layers should be a path with {}"),
        ({"residual": ("attention.self.query",)}, "residual should be two paths"),
        ({"attributes": {"attention.self.num_attention_heads": "units"}}, "attributes.*did you mean 'unit'"),
        ({"bypass": ({"attention": "inputs pair"}, {})}, r"bypass\[0\].*did you mean 'input pair'"),
        ({"bypass": ({"attention.self": "input pair"}, {})}, r"bypass\[0\].*the output projection"),
        ({"config_fields": {"neuron": ("intermediate_size",)}}, "did you mean 'neurons'"),
        ({"config_fields": {"neurons": "intermediate_size"}}, "should be a tuple of names"),
        ({"native_pruned_heads": "no"}, "native_pruned_heads should be True or False"),
    ],
)
def test_a_field_that_cannot_be_right_is_refused_at_once(changes, message):
    with pytest.raises(ValueError, match="the entry 'mine' of ARCHITECTURES: .*" + message):
        TABLE["mine"] = dataclasses.replace(BERT, **changes)
    with pytest.raises(ValueError, match="the entry 'mine' of ARCHITECTURES"):
        TABLE.update(mine=dataclasses.replace(BERT, **changes))
    assert "mine" not in TABLE


def without(cuts: tuple[Cut, ...], number: int) -> tuple[Cut, ...]:
    return cuts[:number] + cuts[number + 1 :]


def changed(cuts: tuple[Cut, ...], number: int, **changes) -> tuple[Cut, ...]:
    return (*cuts[:number], dataclasses.replace(cuts[number], **changes), *cuts[number + 1 :])


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("bert", {"heads": without(BERT.heads, 1)}, "heads misses 'attention.self.key': output 0 of it changes 0"),
        ("bert", {"heads": without(BERT.heads, 2)}, "heads misses 'attention.self.value'"),
        ("llama", {"neurons": without(LLAMA.neurons, 1)}, "neurons misses 'mlp.up_proj': output 0 of it changes 0"),
        ("llama", {"heads": without(LLAMA.heads, 2)}, "heads misses 'self_attn.v_proj'"),
        (
            "gpt2",
            {"heads": changed(TABLE["gpt2"].heads, 0, width="3 * head", blocks=1)},
            "heads gives output 8 of 'attn.c_attn' to number 0, but it changes 1",
        ),
        (
            "bert",
            {"heads": (*BERT.heads[:3], Cut("output.dense", "out", HEAD), BERT.heads[3])},
            "heads names 'output.dense', but no output of it changes",
        ),
        (
            "bert",
            {"heads": changed(BERT.heads, 1, module="attention.self.keys")},
            r"heads\[1\].*'attention.self.keys'",
        ),
        ("bert", {"heads": changed(BERT.heads, 1, module="attention.self")}, r"heads\[1\].module names no map"),
        ("llama", {"heads": changed(LLAMA.heads, 0, width=HEAD)}, r"heads\[0\].*gives 8 heads in .*there are 4"),
        ("gpt2", {"heads": changed(TABLE["gpt2"].heads, 0, blocks=1)}, r"heads\[0\].*gives 12 heads in .*there are 4"),
        ("bert", {"attributes": {"attention.self.num_attention_heads": HEAD}}, "attributes.*should be 32.*it is 4"),
        ("bert", {"attributes": {"attention.self.all_head": HEAD}}, "attributes.*it is None"),
        ("bert", {"layers": "encoder.layers.{}"}, "layers is 'encoder.layers.{}'"),
        ("bert", {"residual": ("attention.self.query", "feed.forward")}, r"residual\[1\].*which .* lacks"),
        ("bert", {"residual": ("attention.output.dense", "intermediate.dense")}, r"residual\[0\].*does not read"),
        ("bert", {"residual": BERT.residual[::-1]}, r"residual\[0\].*does not read"),
        ("bert", {"residual": ("attention.self.query",) * 2}, r"residual\[1\].*does not read"),
        (
            "bert",
            {"residual": ("attention.self.query", "attention.output.LayerNorm")},
            r"residual\[1\].*does not read",
        ),
        ("bert", {"residual": ("attention.self.query", "output.dense")}, r"residual\[1\].*does not read"),
        ("llama", {"residual": ("self_attn.q_proj", LLAMA.residual[1])}, r"residual\[0\].*does not read"),
        ("llama", {"residual": ("self_attn", LLAMA.residual[1])}, r"residual\[0\].*does not read"),
        ("gpt2", {"residual": ("ln_1", "mlp")}, r"residual\[1\].*does not read"),
        ("bert", {"bypass": ({"attention": "zeros pair"}, BERT.bypass[1])}, r"bypass\[0\] does not pass"),
        ("llama", {"bypass": (LLAMA.bypass[0], {"mlp": "input"})}, r"bypass\[1\] does not pass"),
        ("bert", {"config_fields": {"neurons": ("hidden_size",)}}, "config_fields.*which is 32, but .* 37 neurons"),
        ("bert", {"config_fields": {"neurons": ("ffn_size",)}}, "config_fields.*which the config lacks"),
        ("mpnet", {"position_bias": "attention.attn.bias"}, "position_bias is 'attention.attn.bias'"),
        ("mpnet", {"position_bias": None}, "heads"),
    ],
)
def test_what_is_wrong_for_the_model_is_named(architecture, changes, message, monkeypatch):
    monkeypatch.setitem(TABLE, architecture, dataclasses.replace(TABLE[architecture], **changes))
    with pytest.raises(ValueError, match=f"the entry '{architecture}' of ARCHITECTURES: .*{message}"):
        check_architecture(tiny_model(architecture), tiny_batch(), reload=False)


@pytest.mark.once
def test_a_bias_that_was_forgotten_is_named(monkeypatch):
    entry = TABLE["beit"]
    monkeypatch.setitem(TABLE, "beit", dataclasses.replace(entry, heads=without(entry.heads, 3)))
    model = model_of("beit-own-bias")
    with pytest.raises(ValueError, match="heads misses '.*relative_position_bias_table': number 3 of its dimension 1"):
        check_architecture(model, batch_of(model), reload=False)


def test_what_was_checked_is_told(caplog):
    with caplog.at_level("INFO", "optimum_camcut"):
        check_architecture(tiny_model("bert"), tiny_batch(), reload=False)
    assert "the entry 'bert' is right: heads, neurons, layers cut against masked alone and together" in caplog.text
    assert "6 linear maps changed output by output; not loaded in a new process" in caplog.text


@pytest.mark.once
def test_an_entry_of_the_users_own_is_checked_in_a_new_process_too(monkeypatch):
    monkeypatch.setitem(TABLE, "ernie", dataclasses.replace(BERT, native_pruned_heads=False))
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "hidden_size": 32}
    check_architecture(tiny_model("ernie", vocab_size=99, pad_token_id=0, **config), tiny_batch())


def test_layers_that_run_side_by_side(monkeypatch):
    """In Phi both layers read what the block gets: that is where the attention's output is added to, but the other's
    is added to the sum."""
    heads = [Cut(f"self_attn.{name}_proj", "out", HEAD) for name in "qkv"]
    entry = Architecture(
        layers="layers.{}",
        heads=(*heads, Cut("self_attn.dense", "in", HEAD)),
        neurons=(Cut("mlp.fc1", "out"), Cut("mlp.fc2", "in")),
        residual=("input_layernorm", "input_layernorm"),
        config_fields={"neurons": ("intermediate_size",)},
    )
    monkeypatch.setitem(TABLE, "phi", entry)
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "hidden_size": 32}
    model = tiny_model("phi", "CausalLM", vocab_size=99, pad_token_id=0, **config)
    with pytest.raises(ValueError, match=r"residual\[1\].*both layers of a block read the same stream"):
        check_architecture(model, tiny_batch(labels=False), reload=False)
    monkeypatch.setitem(TABLE, "phi", dataclasses.replace(entry, residual=("input_layernorm", None)))
    check_architecture(model, tiny_batch(labels=False), reload=False)


def test_a_model_that_was_cut_is_refused():
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.0.heads": [1]}))
    with pytest.raises(ValueError, match="takes a model that was not cut"):
        check_architecture(model, tiny_batch())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": [[1, 2]]}, "; 'input_ids' is a list"),
        (torch.tensor([[1, 2]]), "got a Tensor"),
        ({"use_cache": False, "token_type_ids": None}, "it has none"),
    ],
)
def test_a_batch_of_something_else_than_tensors_is_refused(batch, message):
    with pytest.raises(TypeError, match=f"takes a batch of tensors by name, .*{message}"):
        check_architecture(tiny_model("bert"), batch)


def test_layers_of_an_architecture_without_bypass(monkeypatch):
    """They are refused by name; all else, a cut too, goes on as if there were no such kind."""
    monkeypatch.setitem(TABLE, "bert", dataclasses.replace(BERT, bypass=None))
    model = tiny_model("bert")
    for kinds in ("layers", ("layers", "heads")):
        with pytest.raises(ValueError, match="whole sub-layers of 'bert' cannot go: .* has no `bypass`"):
            find_groups(model, kinds)
    with pytest.raises(ValueError, match="the plan names the group 'layer.0.attention', which the model lacks"):
        apply_plan(model, PruningPlan({"layer.0.attention": []}))
    assert apply_plan(model, PruningPlan({"layer.0.heads": [1]})).pruning_plan.keep == {"layer.0.heads": (1,)}
    assert isinstance(TABLE["bert"], Architecture)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_two_rows_do_not_pass_for_a_pair(rows, monkeypatch):
    """A block of llama unpacks what its attention gives."""
    entry = TABLE["llama"]
    attention = {**entry.bypass[0], "self_attn": "zeros"}
    monkeypatch.setitem(TABLE, "llama", dataclasses.replace(entry, bypass=(attention, entry.bypass[1])))
    with pytest.raises(ValueError, match=r"bypass\[0\]"):
        check_architecture(tiny_model("llama"), tiny_batch(rows, labels=False, padding=False), reload=False)


def test_the_path_of_the_blocks_begins_inside_the_base_model(monkeypatch):
    monkeypatch.setitem(TABLE, "llama", dataclasses.replace(TABLE["llama"], layers="model.layers.{}"))
    message = (
        "but LlamaModel has no module at 'model.layers.{}': nothing can be cut in it; the path begins inside of it"
    )
    message += ", so leave 'model.' out"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_architecture(tiny_model("llama"), tiny_batch(labels=False))


def test_a_tensor_of_two_among_more_rows_stays(monkeypatch):
    """Rows are repeated where the whole batch has two, not where another input happens to be of that length."""
    batch = {**tiny_batch(4, labels=False, padding=False), "position_ids": torch.arange(TOKENS)[None]}
    check_architecture(tiny_model("bert"), batch, reload=False)
    two = {name: value[:2] for name, value in batch.items()}
    check_architecture(tiny_model("bert"), two, reload=False)
