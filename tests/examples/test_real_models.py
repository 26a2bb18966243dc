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
"""The benchmark of real models runs on tiny ones, writes what the steps give, and counts words as by hand."""

import copy
import functools
import json
import sys

import numpy as np
import pytest
import torch
from datasets import load_dataset
from models import tiny_config
from places import REPOSITORY
from scipy.io import wavfile
from scripts import run_script
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups


FOLDER = REPOSITORY / "examples" / "benchmarks"
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
pytestmark = pytest.mark.once


run = functools.partial(run_script, "real_models", folder=FOLDER)


@pytest.fixture
def tasks(monkeypatch):
    """The module of what is measured."""
    monkeypatch.syspath_prepend(FOLDER)
    import real_tasks

    yield real_tasks
    del sys.modules["real_tasks"]


def text(folder, model_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("llama", vocab_size=len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = load_dataset("parquet", data_files=str(REPOSITORY / "examples/data/qnli/validation.parquet"), split="train")
    for name in ("valid", "test"):
        (folder / f"wiki.{name}.raw").write_text("\n".join(rows["sentence"][:40]), encoding="utf-8")
    return folder


def images(folder, model_path):
    sizes = {"image_size": 16, "patch_size": 2, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    AutoModelForImageClassification.from_config(tiny_config("dinov2", **sizes)).save_pretrained(folder / "model")
    return folder


def sentences(folder, model_path, glue_folder):
    (folder / "model").symlink_to(model_path)
    return glue_folder


def speech(folder, model_path):
    """Noise for sounds, and letters for tokens."""
    vocabulary = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    tokenizer = WhisperTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL, "pad_token": SPECIAL[0]})
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=1), tokenizer).save_pretrained(
        folder / "model"
    )
    end, start, before, plain = tokenizer.convert_tokens_to_ids(SPECIAL)
    sizes = {"d_model": 32, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "num_mel_bins": 8}
    sizes |= {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    torch.manual_seed(0)
    config = WhisperConfig(vocab_size=len(tokenizer), max_source_positions=50, **sizes, **ids)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        is_multilingual=False, no_timestamps_token_id=plain, prev_sot_token_id=before, **ids
    )
    model.save_pretrained(folder / "model")
    noise = np.random.default_rng(0)
    for name in ("1_ann_0", "2_ann_1", "3_ann_2", "1_ann_3", "2_ann_4", "recording"):
        wavfile.write(folder / f"{name}.wav", 8000, noise.integers(-3000, 3000, 800, dtype=np.int16))
    (folder / "recording.txt").write_text("one word")
    return folder


MEASURES = {
    "text": {"perplexity"},
    "images": {"accuracy"},
    "sentences": {"Spearman"},
    "speech": {"WER of digits", "WER of recordings"},
}


@pytest.mark.long
@pytest.mark.parametrize("task", MEASURES)
def test_a_task_runs_and_is_not_run_again(task, model_path, glue_folder, tmp_path):
    more = [glue_folder] if task == "sentences" else []
    data = globals()[task](tmp_path, model_path, *more)
    output = tmp_path / "runs.json"
    arguments = [task, "--model", f"tiny={tmp_path}/model", "--data", data, "--output", output, "--methods", "fisher"]
    arguments += ["--seeds", 1, "--num_samples", 4, "--rebuild_samples", 5, "--examples", 3]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(output.read_text())["runs"]
    assert (found["task"], found["model"], found["method"], found["seed"]) == (task, "tiny", "fisher", 1)
    assert [row["keep"] for row in found["results"]] == [0.7, 0.5]
    rows = [found["dense"], *(row[stage] for row in found["results"] for stage in ("cut", "rebuilt"))]
    assert all(set(row) == MEASURES[task] and np.isfinite(list(row.values())).all() for row in rows)
    assert found["results"][0]["parameters"] > found["results"][1]["parameters"]
    for measure in MEASURES[task]:
        assert f"| tiny: {measure}, dense {found['dense'][measure]:.1f} | 70% | 50% |" in done.stdout
    if task != "text":
        return
    before = output.read_bytes()
    (tmp_path / "model" / "config.json").unlink()  # it would not load again
    assert run(*arguments).returncode == 0 and output.read_bytes() == before
    done = run(*arguments, "--keep", 0.6)
    assert done.returncode != 0 and "is of other --keep" in done.stderr


def test_a_run_is_what_the_steps_give(tasks, model_path, tmp_path, monkeypatch):
    import real_models

    data = text(tmp_path, model_path)
    options = real_models.argparse.Namespace(data=str(data), num_samples=8, rebuild_samples=12, examples=3, window=256)
    task = tasks.TASKS["text"](str(tmp_path / "model"), options)
    found = real_models.run(real_models.Scored(task, "fisher", 2), [0.5])["results"][0]
    model, batches, groups = copy.deepcopy(task.model), task.batches(2), find_groups(task.model)
    assert sum(len(batch["input_ids"]) for batch in batches) == 12
    config = PruningConfig(method="fisher", sparsity=0.5, num_samples=8, seed=2)
    plan = make_plan(score_groups(model, groups, batches, config), groups, config)
    apply_plan(model, plan)
    assert task.measure(model) == found["cut"]
    reconstruct(model, task.model, plan, batches)
    assert task.measure(model) == pytest.approx(found["rebuilt"], rel=1e-4)
    assert task.measure(task.model) == task.dense


def test_words_are_counted(tasks):
    assert tasks.words_of(" 60, Seven-8!") == ["six", "zero", "seven", "eight"]
    assert tasks.words_of("Ask what you can't.") == ["ask", "what", "you", "can't"]
    for wanted, given, errors in [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "", 3), ("", "a", 1)]:
        assert tasks.edits(wanted.split(), given.split()) == errors
    assert tasks.edits("a b c d".split(), "b c d e".split()) == 2  # one goes, one comes


@pytest.mark.long
def test_recovery_of_a_language_model_runs_and_is_not_run_again(model_path, tmp_path):
    data, output = text(tmp_path, model_path), tmp_path / "runs.json"
    arguments = ["--model", f"tiny={tmp_path}/model", "--data", data, "--output", output, "--keep", 0.5]
    arguments += ["--window", 64, "--train_window", 32, "--num_samples", 4, "--rebuild_samples", 5, "--examples", 3]
    arguments += ["--steps", 30, "--learning_rate", 0.02, "--lora_rank", 4]
    done = run_script("recover_language_model", *arguments, folder=FOLDER)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(output.read_text())["runs"]
    assert (found["model"], found["keep"], found["seed"], found["train_window"]) == ("tiny", 0.5, 1, 32)
    assert found["trained"]["perplexity"] < found["rebuilt"]["perplexity"]
    assert f"| tiny: perplexity, dense {found['dense']['perplexity']:.1f} | 50% |" in done.stdout
    (tmp_path / "model" / "config.json").unlink()  # it would not load again
    assert run_script("recover_language_model", *arguments, folder=FOLDER).returncode == 0
