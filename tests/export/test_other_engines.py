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
"""Folders for other engines: plain checkpoints, and those of vLLM's `DeciLMForCausalLM`."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from models import random_plan, tiny_batch, tiny_model
from safetensors.torch import load_file
from torch.nn.functional import embedding, linear, rms_norm
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding
from types_of_models import model_of

from optimum_camcut import PruningPlan, apply_plan, find_groups, load_pruned
from optimum_camcut.export.decilm import export_decilm
from optimum_camcut.export.plain import fill_up


pytestmark = pytest.mark.once  # depends little on the version of transformers
LAYERS = {"layer.0.attention": (), "layer.1.feed_forward": (), "layer.1.heads": (0, 3), "layer.2.neurons": range(9)}


def logits(model, **inputs):
    with torch.no_grad():
        return model.eval()(**(inputs or tiny_batch(labels=False)))[0]


# --- plain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "cut"),
    [
        ("bert", "units"),
        ("gpt2", "units"),
        ("gpt2", "layers"),
        ("llama", "units"),
        ("llama", "layers"),
        ("mpnet", "units"),
    ],
)
def test_a_plain_checkpoint_computes_the_same(architecture, cut, tmp_path):
    model = tiny_model(architecture)
    apply_plan(model, random_plan(model, 1) if cut == "units" else PruningPlan(LAYERS))
    expected, before = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "pruned")
    fill_up(load_pruned(tmp_path / "pruned")).save_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    written = json.loads((tmp_path / "config.json").read_text())
    assert not {"camcut_pruning", "auto_map", "transformers_weights"} & set(written) and not written.get(
        "pruned_heads"
    )
    assert {path.name for path in tmp_path.iterdir()} <= {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "pruned",
    }
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers.")
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_layers_are_no_larger_than_the_largest(tmp_path):
    keep = {f"layer.{n}.neurons": range(3 + 5 * n) for n in range(3)} | {
        f"layer.{n}.heads": range(1 + n % 2) for n in range(3)
    }
    filled = fill_up(apply_plan(tiny_model("llama"), PruningPlan(keep)), multiple_of=4)
    assert {(group.kind, group.size) for group in find_groups(filled)} == {("neurons", 16), ("heads", 2)}
    assert (filled.config.intermediate_size, filled.config.num_key_value_heads) == (16, 2)
    assert filled.config.num_attention_heads == 4  # two queries a group


def test_masked_weights_stay_zero():
    model = tiny_model("bert")
    name = "bert.encoder.layer.0.output.dense.weight"
    apply_plan(model, PruningPlan({"layer.1.neurons": range(9)}))
    apply_plan(model, PruningPlan({name: range(0, 1184, 3)}))
    filled = fill_up(model)
    assert filled.get_parameter(name).count_nonzero() == model.get_parameter(name).count_nonzero()
    assert torch.allclose(logits(filled), logits(model), atol=1e-5)


def test_what_would_compute_something_else_is_refused():
    with pytest.raises(ValueError, match="a norm behind its sub-layers"):
        fill_up(apply_plan(tiny_model("bert"), PruningPlan({"layer.0.attention": ()})))
    with pytest.raises(ValueError, match="not pruned"):
        fill_up(tiny_model("bert"))
    model = model_of("mixtral")
    keep = {group.name: range(group.size - 1) for group in find_groups(model, ("experts",))}
    with pytest.raises(ValueError, match="a router would choose"):
        fill_up(apply_plan(model, PruningPlan(keep)))


# --- vLLM -----------------------------------------------------------------------------------------------------------


def run(folder, ids):
    """Logits by the steps of vLLM's `nemotron_nas.py`; every weight of the folder is used once."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    weights = load_file(folder / "model.safetensors")
    states, residual = embedding(ids, weights.pop("model.embed_tokens.weight")), None
    head = weights.pop("lm_head.weight", None)
    places = torch.arange(ids.shape[1])[None]

    def norm(states, residual, name):
        """What vLLM's fused norm does: without a residual, it gives one result only."""
        residual = states if residual is None else states + residual
        return rms_norm(residual, states.shape[-1:], weights.pop(name), config.rms_norm_eps), residual

    def fill(module, prefix):
        own = {name.removeprefix(prefix): weights.pop(name) for name in sorted(weights) if name.startswith(prefix)}
        module.load_state_dict(own)
        return module.eval()

    for number, block in enumerate(config.block_configs):
        start = f"model.layers.{number}."
        queries = config.num_attention_heads
        shape = LlamaConfig(
            hidden_size=config.hidden_size,
            head_dim=config.head_dim,
            intermediate_size=block.ffn.intermediate_size or 1,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
            hidden_act=config.hidden_act,
            rope_parameters=config.rope_parameters,
            attn_implementation="sdpa",
        )
        shape.num_attention_heads = queries  # which need not divide the hidden size
        shape.num_key_value_heads = queries // (block.attention.n_heads_in_group or 1)
        if not block.attention.no_op:
            states, residual = norm(states, residual, f"{start}input_layernorm.weight")
            turn = LlamaRotaryEmbedding(shape)(states, places)
            states = fill(LlamaAttention(shape, 0), f"{start}self_attn.")(states, turn, None)[0]
        assert residual is not None  # the first layer has to make one
        if not block.ffn.no_op:
            states, residual = norm(states, residual, f"{start}post_attention_layernorm.weight")
            states = fill(LlamaMLP(shape), f"{start}mlp.")(states)
    states, _ = norm(states, residual, "model.norm.weight")
    assert not weights
    return linear(states, head)


DECILM = {
    "units": {
        f"layer.{n}.{kind}": units
        for n in range(3)
        for kind, units in (("heads", range(n + 1)), ("neurons", range(9 + n)))
    },
    "layers": {"layer.0.attention": (), "layer.1.feed_forward": (), "layer.2.neurons": range(9)},
    "block": {"layer.2.attention": (), "layer.2.feed_forward": (), "layer.1.heads": (1,)},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", DECILM)
def test_what_vllm_reads_computes_what_the_model_does(kind, bias, tmp_path):
    model = tiny_model("llama", task="CausalLM", attention_bias=bias, mlp_bias=bias)
    apply_plan(model, PruningPlan(DECILM[kind]))
    export_decilm(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["DeciLMForCausalLM"] and written["attention_bias"] is bias
    sizes = [block["ffn"]["intermediate_size"] for block in written["block_configs"]]
    assert sizes == {"units": [9, 10, 11], "layers": [37, None, 9], "block": [37, 37]}[kind]
    ids = tiny_batch(labels=False, padding=False)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(run(tmp_path, ids), logits(model, input_ids=ids), atol=1e-5)


def test_its_config_can_be_saved_and_read_again(tmp_path):
    model = apply_plan(tiny_model("llama", task="CausalLM"), PruningPlan(DECILM["layers"]))
    export_decilm(model, tmp_path / "first")
    config = AutoConfig.from_pretrained(tmp_path / "first", trust_remote_code=True)
    json.dumps(config.to_dict())
    assert config.block_configs[0].ffn.intermediate_size == 37 and not hasattr(config.block_configs[0].ffn, "ffn_mult")


def test_vllm_takes_decoders_like_llama_alone(tmp_path):
    with pytest.raises(ValueError, match="vLLM's DeciLM has layers of different sizes for decoders like llama alone"):
        export_decilm(tiny_model("gpt2", task="CausalLM"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


VLLM = """
import os, sys
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform
vllm.platforms._current_platform = CpuPlatform()  # wherever this runs
import torch
from safetensors.torch import load_file
from vllm.config import DeviceConfig, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
folder = sys.argv[1]
config = ModelConfig(
    folder, skip_tokenizer_init=True, trust_remote_code=True, dtype="float32", enforce_eager=True, max_model_len=64
)
whole = VllmConfig(model_config=config, device_config=DeviceConfig(device="cpu"))
with set_current_vllm_config(whole):
    init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
    initialize_model_parallel(1, 1)
    torch.set_default_dtype(torch.float32)
    from vllm.model_executor.models.nemotron_nas import DeciLMForCausalLM
    model = DeciLMForCausalLM(vllm_config=whole)
    loaded = model.load_weights(iter(load_file(folder + "/model.safetensors").items()))
names = {name for name, _ in model.named_parameters()}
print("loaded", config.architectures[0], len(loaded), len(names), loaded == names)
"""


@pytest.mark.engines
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM, which is large")
@pytest.mark.parametrize("kind", DECILM)
def test_vllm_itself_takes_the_config_and_every_weight(kind, tmp_path):
    """On a CPU: it builds the model and loads it, by its own code. It has no kernels there to run it."""
    model = tiny_model("llama", task="CausalLM", head_dim=32)
    export_decilm(apply_plan(model, PruningPlan(DECILM[kind])), tmp_path)
    done = subprocess.run([sys.executable, "-c", VLLM, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    words = done.stdout.strip().splitlines()[-1].split()
    assert words[:2] == ["loaded", "DeciLMForCausalLM"] and words[-1] == "True" and int(words[2]) > 10


# --- ExecuTorch -----------------------------------------------------------------------------------------------------


@pytest.mark.engines
@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="ExecuTorch, which is large")
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_executorch_answers_as_torch_does(architecture, tmp_path):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    class Logits(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    dense = tiny_model(architecture)
    apply_plan(dense, random_plan(dense, 1)).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    batch = tuple(tiny_batch(labels=False).values())
    exported = torch.export.export(Logits(model.eval()).eval(), batch)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    (tmp_path / "model.pte").write_bytes(program.buffer)
    method = Runtime.get().load_program(tmp_path / "model.pte").load_method("forward")
    assert torch.allclose(method.execute(list(batch))[0], logits(model), atol=1e-5)
