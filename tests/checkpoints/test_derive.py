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
"""Architectures without an entry: what is derived cuts what the entry would, or is refused with the reason."""

import json

import pytest
import torch
import transformers
from marks import few
from models import mask_units, random_plan
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from types_of_models import batch_of, model_of, type_of, with_own_entries

from optimum_camcut import PruningPlan, apply_plan, find_groups, load_pruned
from optimum_camcut.architectures.modeling_camcut import RECORD
from optimum_camcut.architectures.table import ARCHITECTURES
from optimum_camcut.planning.measure import measure_latency


# Whose heads have something to do with what the whole model shares.
NOT_DERIVED = {"gpt_bigcode", "mpnet", "t5", "mt5", "layoutlmv3", "bloom", "mpt", "falcon", "beit", "whisper"}
NOT_DERIVED |= {"olmo2", "olmo3", "longt5"}
SOME = [
    "bert",
    "llama",
    "gpt2",
    "phi3",
    "modernbert",
    "deberta-v2-relative",
    "vit",
    "swin",
    "segformer",
    "bart",
    "olmo2",
]
# clip is told of its parts; in swinv2 the network of the bias is the widest; of canine the parts that read characters
# are derived, too; in mobilebert the several feed-forward layers of a block are taken for blocks; luke's maps of
# entities run with these alone; experts are not looked for.
ALONE = ("clip", "swinv2", "canine", "mobilebert", "luke", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")
OWN = [name for name in with_own_entries() if name not in (*SOME, *ALONE)]


def result(model, batch):
    with torch.no_grad():
        outputs = model(**batch)
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


def check_cut(make, batch, seeds=range(3)):
    for seed in seeds:
        masked = make()
        plan = random_plan(masked, seed)
        expected = result(mask_units(masked, plan), batch)
        got = result(apply_plan(make(), plan), batch)
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("name", few([*SOME, *OWN], len(SOME)))
def test_what_is_derived_is_what_the_entry_says(name, monkeypatch, caplog):
    model = model_of(name)
    listed = {group.name: (group.size, group.unit_parameters) for group in find_groups(model)}
    monkeypatch.delitem(ARCHITECTURES, type_of(name))
    groups = {group.name.replace("part", "stage"): (group.size, group.unit_parameters) for group in find_groups(model)}
    assert f"the architecture '{type_of(name)}' has no entry: one was derived and checked" in caplog.text
    if type_of(name) != "codegen":  # with as many heads as parts, these are independent
        assert groups == {group: facts for group, facts in listed.items() if group in groups}
    assert len(groups) == len(listed) or type_of(name) in NOT_DERIVED | {"codegen", "wavlm"}
    check_cut(lambda: model_of(name), batch_of(model))
    if type_of(name) in ("olmo2", "olmo3"):
        assert "heads not: self_attn.o_proj: each of them depends on all outputs of self_attn.q_proj" in caplog.text


UNKNOWN = {
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 37, "n_positions": 64},
    "persimmon": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37},
    "tapas": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_types_without_an_entry(name, tmp_path, monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, name)
    config = AutoConfig.for_model(name, vocab_size=99, hidden_size=32, pad_token_id=0, **UNKNOWN[name])

    def make():
        torch.manual_seed(0)
        return transformers.AutoModel.from_config(config).eval()

    model = make()
    batch = {"input_ids": torch.randint(3, 99, (3, 8))}
    groups = find_groups(model)
    assert {group.kind for group in groups} >= {"neurons"}
    check_cut(make, batch)
    cut = apply_plan(make(), random_plan(model, 1))
    cut.save_pretrained(tmp_path)
    del ARCHITECTURES[name]  # as in another process, which derives it again
    assert torch.equal(result(load_pruned(tmp_path), batch), result(cut, batch))
    loaded = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert torch.equal(result(loaded, batch), result(cut, batch))


class OwnConfig(PretrainedConfig):
    model_type = "of-our-own"

    def __init__(self, width=24, heads=3, inner=20, depth=2, **more):
        self.width, self.heads, self.inner, self.depth = width, heads, inner, depth
        self.hidden_size, self.vocab_size = width, 50
        super().__init__(**more)


class OwnBlock(nn.Module):
    """Attention whose fused map holds queries, keys and values head by head, and a gated feed-forward layer."""

    def __init__(self, config, norm_all):
        super().__init__()
        self.heads = config.heads
        self.norm, self.norm_all = (
            nn.LayerNorm(config.width),
            nn.LayerNorm(config.width) if norm_all else nn.Identity(),
        )
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.scale = nn.Parameter(torch.ones(config.heads, 1))
        self.out = nn.Linear(config.width, config.width)
        self.up, self.down = nn.Linear(config.width, 2 * config.inner), nn.Linear(config.inner, config.width)

    def forward(self, hidden_states):
        batch, tokens, _ = hidden_states.shape
        fused = self.qkv(self.norm(hidden_states)).view(batch, tokens, -1, 3, 8)
        q, k, v = fused.unbind(3)
        q = self.norm_all(q.flatten(2)).view_as(q) * self.scale
        maps = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        read = torch.einsum("bhqk,bkhd->bqhd", maps, v).flatten(2)
        hidden_states = hidden_states + self.out(read)
        gate, value = self.up(hidden_states).chunk(2, dim=-1)
        return hidden_states + self.down(nn.functional.silu(gate) * value)


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    norm_all = False

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList([OwnBlock(config, self.norm_all) for _ in range(config.depth)])
        self.post_init()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None):
        hidden = self.table(input_ids)
        for block in self.blocks:
            hidden = block(hidden)
        return (hidden,)


class NormedModel(OwnModel):
    norm_all = True


class NarrowBlock(nn.Module):
    """Queries go through a narrow map, each head has a gate, and neurons a gate that is shut half of the time."""

    def __init__(self, config):
        super().__init__()
        self.heads, width = config.heads, config.width
        self.narrow, self.query = nn.Linear(width, 10), nn.Linear(10, width)
        self.kv, self.gate, self.out = (
            nn.Linear(width, 2 * width),
            nn.Linear(width, self.heads),
            nn.Linear(width, width),
        )
        self.shut, self.up, self.down = (
            nn.Linear(width, config.inner),
            nn.Linear(width, config.inner),
            nn.Linear(config.inner, width),
        )

    def forward(self, hidden_states):
        batch, tokens, _ = hidden_states.shape
        q = self.query(self.narrow(hidden_states)).view(batch, tokens, -1, 8)
        k, v = self.kv(hidden_states).view(batch, tokens, 2, -1, 8).unbind(2)
        maps = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        read = torch.einsum("bhqk,bkhd->bqhd", maps, v) * self.gate(hidden_states).sigmoid()[..., None]
        hidden_states = hidden_states + self.out(read.flatten(2))
        normed = nn.functional.layer_norm(hidden_states, hidden_states.shape[-1:])
        return hidden_states + self.down(self.shut(normed).relu() * self.up(normed))


class NarrowModel(OwnModel):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList([NarrowBlock(config) for _ in range(config.depth)])
        nn.init.normal_(self.table.weight)  # so that words are unlike each other


@pytest.fixture
def unlisted():
    yield
    ARCHITECTURES.pop("of-our-own", None)


@pytest.fixture
def registered():
    AutoConfig.register("of-our-own", OwnConfig)
    AutoModel.register(OwnConfig, OwnModel)
    yield
    CONFIG_MAPPING._extra_content.pop("of-our-own")
    MODEL_MAPPING._extra_content.pop(OwnConfig)


@pytest.mark.usefixtures("unlisted")
def test_a_model_of_the_users_own_needs_no_entry():
    batch = {"input_ids": torch.randint(0, 50, (3, 7))}

    def make():
        torch.manual_seed(0)
        return OwnModel(OwnConfig()).eval()

    assert {group.name: group.size for group in find_groups(make())} == {
        "layer.0.heads": 3,
        "layer.0.neurons": 20,
        "layer.1.heads": 3,
        "layer.1.neurons": 20,
    }
    cuts = {cut.module: cut for cut in ARCHITECTURES["of-our-own"].heads}
    assert (cuts["qkv"].width, cuts["scale"].axis, cuts["out"].axis) == ("24 * unit", 0, "in")
    check_cut(make, batch, range(6))


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("seed", range(3))
def test_narrow_queries_and_shut_gates_hide_nothing(seed):
    def make():
        torch.manual_seed(seed)
        return NarrowModel(OwnConfig()).eval()

    assert [group.size for group in find_groups(make())] == [3, 20, 3, 20]
    assert {cut.module for cut in ARCHITECTURES["of-our-own"].heads} == {"query", "kv", "gate", "out"}
    check_cut(make, {"input_ids": torch.randint(0, 50, (3, 7))})


@pytest.mark.usefixtures("unlisted")
def test_groups_print_short_and_loading_tells_to_register(tmp_path):
    model = OwnModel(OwnConfig()).eval()
    assert str(find_groups(model)[:1]) == "[PrunableGroup('layer.0.heads', 'heads', size=3)]"
    apply_plan(model, PruningPlan({"layer.0.heads": [0]})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"call `AutoConfig.register\('of-our-own', YourConfig\)`"):
        load_pruned(tmp_path)


@pytest.mark.usefixtures("unlisted")
def test_a_checkpoint_of_a_class_of_ones_own_is_loaded_by_naming_the_class(tmp_path, registered, caplog):
    """Its config.json names no code, since none that is saved with it knows the class. What was cut by an entry that
    is missing here is told to need that."""
    caplog.set_level("INFO")
    model, batch = OwnModel(OwnConfig()).eval(), {"input_ids": torch.randint(0, 50, (3, 7))}
    find_groups(model)
    assert "pruned OwnModel" not in caplog.text  # the trials of a derivation are not told
    cut = apply_plan(model, PruningPlan({"layer.0.heads": [0]}))
    cut.save_pretrained(tmp_path / "heads")
    assert not json.loads((tmp_path / "heads" / "config.json").read_text()).get("auto_map")
    assert torch.equal(result(load_pruned(tmp_path / "heads", model_class=OwnModel), batch), result(cut, batch))
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    config[RECORD]["sizes"] = {"layer.0.attention": 0}
    (tmp_path / "heads" / "config.json").write_text(json.dumps(config))
    ARCHITECTURES.pop("of-our-own")
    with pytest.raises(ValueError, match="lacks whole sub-layers .*: add the entry that it was cut by, ARCHITECTURES"):
        load_pruned(tmp_path / "heads", model_class=OwnModel)


@pytest.mark.usefixtures("unlisted")
def test_a_norm_over_all_heads_is_seen_through(caplog):
    """Each head's queries are normed with those of all others: no head is independent. Neurons are."""
    groups = find_groups(NormedModel(OwnConfig()).eval())
    assert {group.kind for group in groups} == {"neurons"}
    assert "heads not: out: each of them depends on all outputs of qkv" in caplog.text
    with pytest.raises(ValueError, match="heads of 'of-our-own' cannot go: out: each of them depends on all outputs"):
        find_groups(NormedModel(OwnConfig()).eval(), ("heads",))


def test_models_without_blocks_are_refused_with_the_reason():
    model = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    message = "'resnet' is not supported: .* none could be derived .*types have one .docs/models.md.*"
    with pytest.raises(ValueError, match=f"{message}.*shows how to add one"):
        find_groups(model.eval())
    assert "resnet" not in ARCHITECTURES
    with pytest.raises(ValueError, match="the plan names the group"):
        apply_plan(model_of("bert"), PruningPlan({"layer.9.heads": [0]}))


class OddModel(OwnModel):
    def forward(self, input_ids, times, **keywords):
        return super().forward(input_ids + times, **keywords)


@pytest.mark.usefixtures("unlisted")
def test_a_class_may_say_what_it_takes():
    model = OddModel(OwnConfig()).eval()
    with pytest.raises(
        ValueError, match="does not run on inputs made for it: .*'times'; give its class `dummy_inputs`"
    ):
        find_groups(model)
    assert "of-our-own" not in ARCHITECTURES
    given = {"input_ids": torch.randint(0, 40, (1, 7)), "times": torch.arange(7)[None]}
    OddModel.dummy_inputs = property(lambda self: given)
    assert {group.kind for group in find_groups(model)} == {"heads", "neurons"}


@pytest.mark.parametrize(
    ("name", "sizes", "kinds"),
    few(
        [
            ("vivit", {"image_size": 16, "num_frames": 4, "tubelet_size": [2, 4, 4]}, {"heads", "neurons"}),
            ("timesformer", {"image_size": 16, "patch_size": 4, "num_frames": 2}, {"neurons"}),
            ("vitpose_backbone", {"image_size": [256, 192], "patch_size": [16, 16]}, {"heads", "neurons"}),
        ],
        rows=True,
    ),
)
def test_videos_and_feature_maps(name, sizes, kinds):
    sizes |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.AutoBackbone if "backbone" in name else transformers.AutoModel
    model = model.from_config(AutoConfig.for_model(name, **sizes)).eval()
    try:
        assert {group.kind for group in find_groups(model)} == kinds
        assert measure_latency({"it": model}, 1, repeats=1)["it"].median > 0
    finally:
        ARCHITECTURES.pop(name, None)


@pytest.mark.usefixtures("unlisted")
def test_another_config_of_the_type_is_derived_anew(caplog):
    """What was proved of one class or config says nothing of another."""
    assert {group.kind for group in find_groups(OwnModel(OwnConfig()).eval())} == {"heads", "neurons"}
    assert {group.kind for group in find_groups(NormedModel(OwnConfig()).eval())} == {"neurons"}
    assert {group.kind for group in find_groups(OwnModel(OwnConfig(inner=12)).eval())} == {"heads", "neurons"}
    assert caplog.text.count("one was derived") == 3
    find_groups(OwnModel(OwnConfig(inner=12)).eval())
    assert caplog.text.count("one was derived") == 3
