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
"""Where pruned models go once they are saved: pipelines, compilers, exporters, quantizers, adapters, more training.

Every model is cut unevenly, saved, and loaded by `load_pruned` or by an auto class with `trust_remote_code`; what
comes out is compared with the model as it was cut. Speed is the business of examples/benchmarks.
"""

import copy
import functools
import re
import warnings

import numpy as np
import pytest
import torch
import transformers
from checkpoints import tokenizer
from models import TOKENS, even_plan, random_plan, tiny_batch, tiny_model
from places import REPOSITORY, TESTS
from torch import nn
from transformers import pipeline

from optimum_camcut import CamCutTrainer, PruningConfig, PruningPlan, apply_plan, find_groups, load_pruned


MAJOR = int(transformers.__version__.partition(".")[0])
ARCHITECTURES = ("bert", "distilbert", "gpt2", "llama")
LOADERS = ("load_pruned", "trust_remote_code")
# Sub-layers that are gone, beside a layer with every other head and one with some of its neurons.
LAYERS = {
    "layer.0.attention": (),
    "layer.1.feed_forward": (),
    "layer.1.heads": (0, 3),
    "layer.2.neurons": range(0, 37, 2),
}
WIDE = {  # all linear maps of the blocks
    "bert": ["query", "key", "value", "dense"],
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
both_cuts = pytest.mark.parametrize("cut", ["units", "layers"])
CUTS = {"bert": "units", "distilbert": "layers", "gpt2": "layers", "llama": "units"}
every_cut = pytest.mark.parametrize(  # where each takes seconds: two of eight, the others are `long`
    ("architecture", "cut"),
    [
        pytest.param(
            each, cut, marks=[pytest.mark.long] if cut != CUTS[each] or each in ("bert", "distilbert") else []
        )
        for each in ARCHITECTURES
        for cut in ("units", "layers")
    ],
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Gives, for an architecture, a kind of cut and a task, the cut model and the folder it was saved to."""

    @functools.cache
    def save(architecture, cut="units", task="SequenceClassification"):
        model = tiny_model(architecture, task, **({"num_labels": 2} if task == "QuestionAnswering" else {}))
        apply_plan(model, random_plan(model, 1) if cut == "units" else PruningPlan(LAYERS))
        folder = tmp_path_factory.mktemp(f"{architecture}-{cut}-{task}")
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return model, folder

    return save


def load(folder, loader, task="SequenceClassification", **kwargs):
    if loader == "load_pruned":
        return load_pruned(folder, **kwargs)
    return getattr(transformers, f"AutoModelFor{task}").from_pretrained(folder, trust_remote_code=True, **kwargs)


@torch.no_grad()
def logits(model, batch=None):
    return model(**(batch or tiny_batch(labels=False))).logits


def assert_near(result, expected, share):
    """Both differ by at most a share of the spread of what is expected: the rounding of a quantizer."""
    assert (result - expected).abs().max() < share * (expected.max() - expected.min())


class Logits(nn.Module):
    """What is exported: token ids and mask to logits, without a cache."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if model.config.model_type in ("gpt2", "llama") else {}

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **self.options).logits


# --- pipelines ------------------------------------------------------------------------------------------------------

TEXT = "w5 w17 w3 w42 w96"
IDS = torch.tensor([[5, 17, 3, 42, 96]])


def make_pipeline(name, folder, loader):
    if loader == "trust_remote_code":
        return pipeline(name, model=str(folder), trust_remote_code=True, device="cpu")
    return pipeline(name, model=load_pruned(folder), tokenizer=tokenizer(), device="cpu")


@pytest.mark.parametrize("loader", LOADERS)
@both_cuts
@every_architecture
def test_pipeline_text_classification(architecture, cut, loader, saved):
    model, folder = saved(architecture, cut)
    answers = make_pipeline("text-classification", folder, loader)(TEXT, top_k=None)
    scores = {answer["label"]: answer["score"] for answer in answers}
    expected = logits(model, {"input_ids": IDS})[0].softmax(-1)
    assert [scores[f"LABEL_{number}"] for number in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("architecture", "cut"), [("bert", "layers"), ("distilbert", "units"), ("gpt2", "units")])
def test_pipeline_token_classification(architecture, cut, loader, saved):
    model, folder = saved(architecture, cut, "TokenClassification")
    answers = make_pipeline("token-classification", folder, loader)(TEXT, ignore_labels=[])
    expected = logits(model, {"input_ids": IDS})[0].softmax(-1).max(-1)
    assert [answer["entity"] for answer in answers] == [f"LABEL_{index}" for index in expected.indices]
    assert [answer["score"] for answer in answers] == pytest.approx(expected.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("architecture", "cut"), [("bert", "units"), ("distilbert", "layers")])
def test_question_answering(architecture, cut, loader, saved):
    """transformers 5 has no such pipeline any more; its model gives the spans."""
    model, folder = saved(architecture, cut, "QuestionAnswering")
    batch = {"input_ids": IDS}
    with torch.no_grad():
        expected, result = model(**batch), load(folder, loader, "QuestionAnswering")(**batch)
    assert torch.equal(result.start_logits, expected.start_logits)
    assert torch.equal(result.end_logits, expected.end_logits)
    if MAJOR == 4:
        answer = make_pipeline("question-answering", folder, loader)(question="w4 w9", context=TEXT)
        assert answer["answer"] in TEXT and 0 <= answer["score"] <= 1


@pytest.mark.parametrize("loader", LOADERS)
@both_cuts
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_pipeline_text_generation(architecture, cut, loader, saved):
    """Greedy, with a cache; the expected words come from whole forward passes without one."""
    model, folder = saved(architecture, cut, "CausalLM")
    answer = make_pipeline("text-generation", folder, loader)(
        TEXT, max_new_tokens=6, min_new_tokens=6, do_sample=False, return_full_text=False
    )
    ids, words = IDS, []
    for _ in range(6):
        scores = model(input_ids=ids, use_cache=False).logits[0, -1].detach().clone()
        scores[2] = -torch.inf  # the end: six words are asked for
        ids = torch.cat([ids, scores.argmax()[None, None]], 1)
        words.append(int(ids[0, -1]))
    assert answer[0]["generated_text"].split() == tokenizer().decode(words, skip_special_tokens=True).split()


# --- compilers and exporters ----------------------------------------------------------------------------------------


@every_cut
def test_compile_without_graph_breaks(architecture, cut, saved):
    model, folder = saved(architecture, cut)
    torch._dynamo.reset()
    compiled = torch.compile(load(folder, LOADERS[cut == "layers"]), backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model), atol=1e-5, rtol=0)


@pytest.mark.once
def test_compile_to_machine_code(tmp_path):
    model = tiny_model("bert", num_hidden_layers=2)
    apply_plan(model, PruningPlan({"layer.0.heads": (1, 2, 3), "layer.1.neurons": range(20)})).save_pretrained(
        tmp_path
    )
    torch._dynamo.reset()
    compiled = torch.compile(load_pruned(tmp_path))
    torch.testing.assert_close(logits(compiled), logits(model), atol=1e-4, rtol=0)


def dynamic_shapes():
    batch, tokens = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("tokens", min=2, max=64)
    return {name: {0: batch, 1: tokens} for name in ("input_ids", "attention_mask")}


OTHER = {name: tensor[:3, : TOKENS - 2] for name, tensor in tiny_batch(labels=False, seed=1).items()}


@every_cut
def test_export(architecture, cut, saved):
    """With a dynamic batch size and length: the program runs on other shapes than it was traced on."""
    model, folder = saved(architecture, cut)
    module = Logits(load(folder, LOADERS[cut == "units"]))
    program = torch.export.export(module, (), tiny_batch(labels=False), dynamic_shapes=dynamic_shapes())
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**OTHER), logits(model, OTHER), atol=1e-5, rtol=0)


def to_onnx(model, path):
    pytest.importorskip("onnxscript")
    batch = tiny_batch(labels=False)
    torch.onnx.export(
        Logits(model),
        (),
        str(path),
        kwargs=batch,
        dynamo=True,
        input_names=list(batch),
        output_names=["logits"],
        dynamic_shapes={name: {0: "batch", 1: "tokens"} for name in batch},
        external_data=False,
        verbose=False,
    )


def run_onnx(path, batch):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0])


@pytest.mark.parametrize(
    ("architecture", "cut", "loader"),
    [
        pytest.param("bert", "units", "load_pruned", marks=pytest.mark.long),
        pytest.param("distilbert", "layers", "trust_remote_code", marks=pytest.mark.long),
        ("gpt2", "layers", "load_pruned"),
        pytest.param("llama", "units", "trust_remote_code", marks=pytest.mark.long),
    ],
)
def test_onnx(architecture, cut, loader, saved, tmp_path):
    """Other shapes than those traced; then also with weights in 8 bits."""
    model, folder = saved(architecture, cut)
    to_onnx(load(folder, loader), tmp_path / "model.onnx")
    expected = logits(model, OTHER)
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", OTHER), expected, atol=1e-4, rtol=0)
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic(tmp_path / "model.onnx", tmp_path / "quantized.onnx")
    assert_near(run_onnx(tmp_path / "quantized.onnx", OTHER), expected, 0.15)


@pytest.mark.skipif(MAJOR < 5, reason="attention without heads does not run in transformers 4")
@pytest.mark.parametrize(
    "attention",
    [
        "eager",
        pytest.param(
            "sdpa",
            marks=[pytest.mark.long, pytest.mark.xfail(reason="onnxruntime: Reshape of a tensor without heads")],
        ),
    ],
)
@pytest.mark.long
def test_onnx_of_a_layer_without_heads(attention, tmp_path):
    model = apply_plan(tiny_model("bert"), PruningPlan({"layer.1.heads": (), "layer.2.neurons": ()}))
    model.save_pretrained(tmp_path)
    to_onnx(load_pruned(tmp_path, attn_implementation=attention), tmp_path / "model.onnx")
    torch.testing.assert_close(run_onnx(tmp_path / "model.onnx", OTHER), logits(model, OTHER), atol=1e-4, rtol=0)


@pytest.mark.skipif(MAJOR < 5, reason="attention without heads does not run in transformers 4")
@pytest.mark.parametrize("architecture", [pytest.param("bert", marks=pytest.mark.long), "llama"])
def test_compile_and_export_of_a_layer_without_heads(architecture, tmp_path):
    model = apply_plan(tiny_model(architecture), PruningPlan({"layer.1.heads": (), "layer.2.neurons": ()}))
    model.save_pretrained(tmp_path)
    module, batch = Logits(load_pruned(tmp_path)), tiny_batch(labels=False)
    program = torch.export.export(module, (), batch, dynamic_shapes=dynamic_shapes())
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(program.module()(**OTHER), logits(model, OTHER), atol=1e-5, rtol=0)
        compiled = torch.compile(module, backend="eager", fullgraph=True)(**batch)
    torch.testing.assert_close(compiled, logits(model), atol=1e-5, rtol=0)


def test_gpt2_does_not_lose_all_units_of_a_layer():
    """Its Conv1D does not run then."""
    for name in ("layer.1.heads", "layer.2.neurons"):
        model = tiny_model("gpt2")
        before = logits(model)
        with pytest.raises(ValueError, match=f"keeps nothing of '{name}', and transformers' Conv1D does not run"):
            apply_plan(model, PruningPlan({name: ()}))
        assert torch.equal(logits(model), before)


# --- serving engines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_a_plain_shape_is_served_by_ctranslate2(architecture, tmp_path):
    """Which knows nothing of this package: it reads the checkpoint of transformers, and runs it with its own kernels.
    It takes the size of heads to be `hidden_size` by their number, so heads stay."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    if architecture == "bert" and MAJOR > 4:
        pytest.skip("its converter reads position_embedding_type, which transformers 5 has no more")
    model = tiny_model(architecture, "" if architecture == "bert" else "CausalLM")
    apply_plan(model, even_plan(model, neurons=20)).save_pretrained(tmp_path / "model")
    words = tokenizer()
    words.add_special_tokens({"bos_token": "[CLS]", "eos_token": "[SEP]"})
    words.save_pretrained(tmp_path / "model")
    served = ctranslate2.converters.TransformersConverter(str(tmp_path / "model")).convert(str(tmp_path / "served"))
    options = {"device": "cpu", "inter_threads": 1, "intra_threads": 1}
    with torch.no_grad():
        expected = model(input_ids=IDS)
    if architecture == "bert":
        result = ctranslate2.Encoder(served, **options).forward_batch(IDS.tolist()).last_hidden_state
        expected = expected.last_hidden_state
    else:
        tokens = [words.convert_ids_to_tokens(IDS[0].tolist())]
        result, expected = ctranslate2.Generator(served, **options).forward_batch(tokens), expected.logits
    torch.testing.assert_close(torch.from_numpy(np.array(result)), expected, atol=1e-4, rtol=0)


# --- quantizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
@both_cuts
@every_architecture
def test_torch_quantize_dynamic(architecture, cut, loader, saved):
    model, folder = saved(architecture, cut)
    loaded = load(folder, loader)
    linear = sum(isinstance(module, nn.Linear) for module in loaded.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantized = torch.ao.quantization.quantize_dynamic(loaded, {nn.Linear}, dtype=torch.qint8)
    packed = [m for m in quantized.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(packed) == linear > 0
    assert_near(logits(quantized), logits(model), 0.15)


@both_cuts
@every_architecture
def test_torchao_after_loading(architecture, cut, saved):
    torchao = pytest.importorskip("torchao.quantization")
    model, folder = saved(architecture, cut)
    quantized = load(folder, LOADERS[cut == "units"])
    torchao.quantize_(quantized, torchao.Int8DynamicActivationInt8WeightConfig())
    assert any(type(p).__module__.startswith("torchao.") for p in quantized.parameters())
    assert_near(logits(quantized), logits(model), 0.15)


def test_torchao_leaves_alone_what_it_cannot_hold(tmp_path, caplog):
    """Layers that lost all units; and in groups, inputs that do not fill them, which is told."""
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_model("bert", hidden_size=64, num_attention_heads=4, intermediate_size=64)
    keep = {"layer.1.neurons": (), "layer.2.neurons": range(33)}
    keep |= {"layer.0.heads": ()} if MAJOR > 4 else {}  # 4 runs no attention without heads
    apply_plan(model, PruningPlan(keep)).save_pretrained(tmp_path)
    quantized = load_pruned(tmp_path, quantization_config=torchao_config())
    packed = {name for name, p in quantized.named_parameters() if type(p).__module__.startswith("torchao.")}
    assert "bert.encoder.layer.2.output.dense.weight" in packed
    empty = {name for name, parameter in load_pruned(tmp_path).named_parameters() if not parameter.numel()}
    assert len(empty) > 1 and not empty & packed
    assert_near(logits(quantized), logits(model), 0.05)
    kind = torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(32))
    caplog.clear()
    grouped = load_pruned(tmp_path, quantization_config=transformers.TorchAoConfig(kind))
    packed = {name for name, p in grouped.named_parameters() if type(p).__module__.startswith("torchao.")}
    assert "bert.encoder.layer.2.output.dense.weight" not in packed
    assert "bert.encoder.layer.2.intermediate.dense.weight" in packed
    told = [record.getMessage() for record in caplog.records if record.name.startswith("optimum_camcut")]
    assert len(told) == 1 and "layer.2.output.dense; cut with multiple_of=32" in told[0]


def torchao_config():
    torchao = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())


@pytest.mark.parametrize("loader", LOADERS)
@both_cuts
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "llama", "mpnet"])
def test_loading_quantized_by_torchao(architecture, cut, loader, saved, tmp_path):
    model, folder = saved(architecture, cut)
    quantized = load(folder, loader, quantization_config=torchao_config())
    packed = [p for p in quantized.parameters() if type(p).__module__.startswith("torchao.")]
    assert len(packed) > 10
    assert_near(logits(quantized), logits(model), 0.15)
    if loader == "load_pruned":
        assert quantized.pruning_plan == model.pruning_plan
        with pytest.raises(ValueError, match="undo quantization before pruning"):
            apply_plan(quantized, PruningPlan({"layer.2.neurons": (0,)}))
        if MAJOR > 4:
            quantized.save_pretrained(tmp_path)
            assert torch.equal(logits(load_pruned(tmp_path)), logits(quantized))


@pytest.mark.parametrize("bits", [8, 4])
def test_loading_quantized_by_bitsandbytes(bits, tmp_path):
    """Not among the packages for tests: it is large. In 4 bits its CPU kernels want multiples of 64."""
    pytest.importorskip("bitsandbytes")
    config = transformers.BitsAndBytesConfig(
        **{f"load_in_{bits}bit": True}, llm_int8_skip_modules=["classifier", "pooler"]
    )
    model = tiny_model("bert", hidden_size=256, intermediate_size=256)
    apply_plan(model, PruningPlan({"layer.0.heads": (0, 3), "layer.1.neurons": range(128)}))
    model.save_pretrained(tmp_path)
    quantized = load_pruned(tmp_path, quantization_config=config)
    assert sum("bitsandbytes" in type(module).__module__ for module in quantized.modules()) == 18
    assert quantized.pruning_plan == model.pruning_plan
    assert_near(logits(quantized), logits(model), 0.1 if bits == 8 else 0.6)


def test_an_altered_weight_is_found_in_a_narrow_dtype(tmp_path):
    """The check sums first, which overflows here without a fault."""
    model = tiny_model("bert")
    model.bert.pooler.dense.weight.data.fill_(6e4)
    apply_plan(model, PruningPlan({"layer.0.heads": (0,)})).half().save_pretrained(tmp_path)
    assert logits(load_pruned(tmp_path, dtype=torch.float16)).dtype == torch.float16
    model.bert.pooler.dense.weight.data[1, 1] = -torch.inf
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds NaN or infinity as torch.float16"):
        logits(load_pruned(tmp_path, dtype=torch.float16))


# --- adapters and further training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
@both_cuts
@every_architecture
def test_lora(architecture, cut, loader, saved, tmp_path):
    """Train a step, save the adapter, load it onto the pruned model loaded again, merge, save that."""
    peft = pytest.importorskip("peft")
    model, folder = saved(architecture, cut)
    targets = WIDE[architecture] if cut == "units" else "all-linear"
    # Of DistilBERT's head, PEFT itself saves whatever ends like "classifier".
    options = {"exclude_modules": ["pre_classifier"]} if architecture == "distilbert" else {}
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS", init_lora_weights=False, **options)
    tuned = peft.get_peft_model(load(folder, loader), config)
    train_one_step(tuned)
    expected = logits(tuned.eval())
    assert (expected - logits(model)).abs().max() > 1e-3
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(folder, loader), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load_pruned(tmp_path / "merged")), logits(merged))
    assert load_pruned(tmp_path / "merged").pruning_plan == model.pruning_plan


@every_architecture
def test_lora_by_name_where_sub_layers_are_gone(architecture, saved):
    """What stands in for a removed sub-layer still bears the name of its output projection."""
    peft = pytest.importorskip("peft")
    model, folder = saved(architecture, "layers")
    targets = {"target_modules": WIDE[architecture], "init_lora_weights": False}
    with pytest.raises(ValueError, match="Target module Bypass"):
        peft.get_peft_model(load_pruned(folder), peft.LoraConfig(**targets))
    gone = [name for name, module in load_pruned(folder).named_modules() if type(module).__name__ == "Bypass"]
    tuned = peft.get_peft_model(load_pruned(folder), peft.LoraConfig(**targets, exclude_modules=gone)).eval()
    assert (logits(tuned) - logits(model)).abs().max() > 1e-3


def train_one_step(model):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**tiny_batch()).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("loader", LOADERS)
@both_cuts
@every_architecture
def test_training_on_and_pruning_further(architecture, cut, loader, saved, tmp_path):
    """Indices stay those of the model that was never cut."""
    model, folder = saved(architecture, cut)
    trained = load(folder, loader)
    train_one_step(trained)
    trained.eval().save_pretrained(tmp_path / "trained")
    again = load_pruned(tmp_path / "trained")
    assert torch.equal(logits(again), logits(trained)) and not torch.equal(logits(again), logits(model))
    groups = {group.name: group for group in find_groups(again) if group.size > 1}
    further = {name: group.units[1:] for name, group in groups.items()}
    before = {name: again.get_submodule(groups[name].output.module).weight for name in further}
    apply_plan(again, PruningPlan(further)).save_pretrained(tmp_path / "smaller")
    smaller = load_pruned(tmp_path / "smaller")
    assert torch.equal(logits(smaller), logits(again))
    assert smaller.pruning_plan.keep == again.pruning_plan.keep == {**model.pruning_plan.keep, **further}
    for name, weight in before.items():  # the last units of what was left
        width = groups[name].output.width
        kept = smaller.get_submodule(groups[name].output.module).weight
        assert torch.equal(kept, weight[width:] if architecture == "gpt2" else weight[:, width:])


@pytest.mark.parametrize("cut", ["units", "layers"])
def test_the_trainer_prunes_a_loaded_model_further(cut, saved, tmp_path):
    model, folder = saved("bert", cut)
    data = [
        {name: tensor[row] for name, tensor in tiny_batch(batch_size=8, padding=False).items()} for row in range(8)
    ]
    trainer = CamCutTrainer(
        model=load_pruned(folder),
        args=transformers.TrainingArguments(tmp_path / "run", max_steps=1, report_to="none", use_cpu=True),
        train_dataset=data,
        pruning_config=PruningConfig(method="taylor", sparsity=0.3),
    )
    trainer.train()
    trainer.save_model(tmp_path / "smaller")
    smaller = load_pruned(tmp_path / "smaller")
    assert torch.equal(logits(smaller), logits(trainer.model.eval()))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    for name, units in smaller.pruning_plan.keep.items():
        assert set(units) <= set(model.pruning_plan.keep.get(name, units))


def test_copies_of_a_loaded_model_go_on(saved):
    """Quantizers and trainers copy."""
    for loader in LOADERS:
        model, folder = saved("bert", "layers")
        assert torch.equal(logits(copy.deepcopy(load(folder, loader))), logits(model))


def test_the_docs_name_tests_that_there_are():
    """In its table of places, and `make test` runs their files with transformers 4 as well."""
    table = (REPOSITORY / "docs" / "compatibility.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", table))
    files = re.search(r"TESTS4 := (.*)", (REPOSITORY / "Makefile").read_text())[1].split()
    sources = [path.read_text() for name in files for path in TESTS.rglob(f"test_{name}.py")]
    assert len(named) > 30 and named <= {test for text in sources for test in re.findall(r"def (test_\w+)", text)}
