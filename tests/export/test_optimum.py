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
"""Optimum exports pruned models as it does others: the package's import is all it takes. With transformers 4, which
optimum-onnx and optimum-intel want."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoints import tokenizer
from models import random_plan, tiny_batch, tiny_model
from places import PATH
from transformers import pipeline

from optimum_camcut import PruningPlan, apply_plan
from optimum_camcut.export.plain import fill_up


onnxruntime = pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx wants transformers before 4.58")

NEURONS = {f"layer.{number}.neurons": range(5 + 9 * number) for number in range(3)}
LAYERS = {"layer.0.attention": (), "layer.1.feed_forward": (), "layer.1.heads": (0, 3), "layer.2.neurons": range(9)}
KINDS = ("units", "layers", "neurons")


@pytest.fixture
def saved(tmp_path):
    def save(architecture, kind, task="SequenceClassification", change=lambda model: model):
        model = tiny_model(architecture, task)
        plan = random_plan(model, 1) if kind == "units" else PruningPlan(LAYERS if kind == "layers" else NEURONS)
        change(apply_plan(model, plan)).save_pretrained(tmp_path / "pruned")
        tokenizer().save_pretrained(tmp_path / "pruned")
        return model, tmp_path / "pruned"

    return save


def assert_same(exported, model, near=1e-5):
    batch = tiny_batch(labels=False)
    with torch.no_grad():
        expected = model(**batch).logits
    assert (exported(**batch).logits - expected).abs().max() < near * (expected.max() - expected.min())


def written(model):
    ids = tiny_batch(labels=False, padding=False)["input_ids"][:1]
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options).tolist()


# --- ONNX -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("kind", ["units", "layers"])
def test_classifiers_go_to_onnx(architecture, kind, saved):
    model, folder = saved(architecture, kind)
    exported = onnxruntime.ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    assert_same(exported, model)


def test_the_command_exports_and_int8_follows(saved, tmp_path):
    """`optimum-cli` imports the package by itself."""
    model, folder = saved("bert", "units")
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(folder)]
    done = subprocess.run(
        [*command, "--task", "text-classification", str(tmp_path / "onnx")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    load = onnxruntime.ORTModelForSequenceClassification.from_pretrained
    assert_same(load(tmp_path / "onnx"), model)
    quantizer = onnxruntime.ORTQuantizer.from_pretrained(tmp_path / "onnx")
    config = onnxruntime.configuration.AutoQuantizationConfig.avx2(is_static=False, per_channel=False)
    quantizer.quantize(save_dir=tmp_path / "int8", quantization_config=config)
    assert_same(load(tmp_path / "int8", file_name="model_quantized.onnx"), model, near=0.1)


def test_static_int8_is_calibrated_after_the_cut(saved, tmp_path):
    from datasets import Dataset

    model, folder = saved("distilbert", "units")
    exported = onnxruntime.ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    exported.save_pretrained(tmp_path / "onnx")
    quantizer = onnxruntime.ORTQuantizer.from_pretrained(tmp_path / "onnx")
    config = onnxruntime.configuration.AutoQuantizationConfig.avx2(is_static=True, per_channel=False)
    rows = Dataset.from_dict({name: tensor.tolist() for name, tensor in tiny_batch(64, labels=False).items()})
    minmax = onnxruntime.configuration.AutoCalibrationConfig.minmax(rows)
    ranges = quantizer.fit(rows, minmax, onnx_augmented_model_name=tmp_path / "augmented.onnx", batch_size=4)
    quantizer.quantize(config, tmp_path / "int8", calibration_tensors_range=ranges)
    load = onnxruntime.ORTModelForSequenceClassification.from_pretrained
    assert_same(load(tmp_path / "int8", file_name="model_quantized.onnx"), model, near=0.2)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_decoders_with_their_cache_where_layers_have_as_many_heads(architecture, saved):
    model, folder = saved(architecture, "neurons", "CausalLM")
    assert written(onnxruntime.ORTModelForCausalLM.from_pretrained(folder, export=True)) == written(model)


@pytest.mark.parametrize("kind", ["units", "layers"])
def test_decoders_with_other_heads_in_each_layer(kind, saved):
    """optimum knows one number of heads for the cache of all layers. Without a cache it needs none; with one, the
    model goes there as a plain checkpoint."""
    model, folder = saved("llama", kind, "CausalLM")
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        onnxruntime.ORTModelForCausalLM.from_pretrained(folder, export=True)
    without = onnxruntime.ORTModelForCausalLM.from_pretrained(
        folder, export=True, use_cache=False, use_io_binding=False
    )
    assert written(without) == written(model)
    model, folder = saved("llama", kind, "CausalLM", change=functools.partial(fill_up, all_heads=True))
    assert written(onnxruntime.ORTModelForCausalLM.from_pretrained(folder, export=True)) == written(model)


# --- OpenVINO -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("optimum.intel", reason="optimum-intel, which is large")


F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.engines
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("kind", ["units", "layers"])
def test_classifiers_go_to_openvino(architecture, kind, saved, openvino):
    model, folder = saved(architecture, kind)
    load = openvino.OVModelForSequenceClassification.from_pretrained
    assert_same(load(folder, export=True, ov_config=F32), model)
    assert_same(load(folder, export=True, ov_config=F32, load_in_8bit=True), model, near=0.1)


@pytest.mark.engines
def test_decoders_go_to_openvino_as_they_go_to_onnx(saved, openvino):
    load = openvino.OVModelForCausalLM.from_pretrained
    model, folder = saved("llama", "neurons", "CausalLM")
    assert written(load(folder, export=True, ov_config=F32)) == written(model)
    model, folder = saved("llama", "units", "CausalLM")
    with pytest.raises(RuntimeError):
        load(folder, export=True, ov_config=F32)
    model, folder = saved("llama", "units", "CausalLM", change=fill_up)
    assert written(load(folder, export=True, ov_config=F32)) == written(model)


# --- Node.js --------------------------------------------------------------------------------------------------------


NODE = os.environ.get("CAMCUT_NODE")  # a folder where `npm install @huggingface/transformers` was run
ASK = """
import { env, pipeline } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[1];
const ask = await pipeline("text-classification", "js", { dtype: "fp32" });
console.log(JSON.stringify(await ask("w5 w6 w7")));
"""


@pytest.mark.engines
@pytest.mark.skipif(not NODE, reason="CAMCUT_NODE names no folder with the package @huggingface/transformers")
def test_transformers_js_answers_as_torch_does(saved, tmp_path):
    _, folder = saved("bert", "units")
    exported = onnxruntime.ORTModelForSequenceClassification.from_pretrained(folder, export=True)
    exported.save_pretrained(tmp_path / "js" / "onnx")
    (tmp_path / "js" / "onnx" / "config.json").rename(tmp_path / "js" / "config.json")
    tokenizer().save_pretrained(tmp_path / "js")
    command = ["node", "--input-type=module", "-e", ASK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=NODE)
    assert done.returncode == 0, done.stderr
    [found], [expected] = json.loads(done.stdout), pipeline("text-classification", str(folder))("w5 w6 w7")
    assert found["label"] == expected["label"] and found["score"] == pytest.approx(expected["score"], abs=1e-5)
