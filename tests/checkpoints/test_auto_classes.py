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
"""The classes of transformers load what was pruned once the package is imported, and else say what to do."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from checkpoints import logits, pruned_model
from models import random_plan, tiny_batch, tiny_model
from places import PATH
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    EncoderDecoderModel,
    GPT2LMHeadModel,
)

from optimum_camcut import PruningPlan, apply_plan, find_groups
from optimum_camcut.checkpoints.checkpoint import checkpoint_class


def run(code, *arguments):
    """What a process that has imported nothing yet writes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["optimum_camcut", "transformers"])
def test_importing_the_package_is_enough(first, tmp_path):
    """Whichever is imported first; and nothing of the checkpoint is run."""
    model = pruned_model("bert")
    model.save_pretrained(tmp_path)
    (tmp_path / "modeling_camcut.py").write_text("raise AssertionError")
    torch.save(tiny_batch(labels=False), tmp_path / "batch.pt")
    code = f"""
        import {first}
        import optimum_camcut, torch, sys
        from transformers import AutoModelForSequenceClassification
        torch.set_num_threads(1)
        model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], dtype=torch.float32)
        with torch.no_grad():
            torch.save(model(**torch.load(sys.argv[1] + "/batch.pt")).logits, sys.argv[1] + "/logits.pt")
    """
    run(code, tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("loader", [AutoModelForSequenceClassification, BertForSequenceClassification])
def test_by_an_auto_class_and_by_the_class_itself(loader, ignore, tmp_path):
    """And nothing starts at random, whatever a caller would ignore."""
    model = pruned_model("bert", attn_implementation="eager")
    model.save_pretrained(tmp_path)
    options = {"ignore_mismatched_sizes": True} if ignore else {}
    loaded = loader.from_pretrained(tmp_path, output_attentions=True, attn_implementation="eager", **options)
    assert isinstance(loaded, BertForSequenceClassification) and loaded.config.output_attentions
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.pruning_plan == model.pruning_plan
    with torch.no_grad():
        assert len(loaded(**tiny_batch(labels=False)).attentions) == 3
    assert not hasattr(loaded.config, "transformers_weights")  # no model in memory carries the hint
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "BertModel"


def test_ways_to_say_what_to_load(tmp_path):
    """A keyword for the name, a config by its path or its object, a subfolder."""
    model = pruned_model("bert")
    model.save_pretrained(tmp_path / "sub")
    config = AutoConfig.from_pretrained(tmp_path / "sub")
    assert config.transformers_weights
    for loaded in (
        BertForSequenceClassification.from_pretrained(pretrained_model_name_or_path=tmp_path / "sub"),
        BertForSequenceClassification.from_pretrained(tmp_path / "sub", config=str(tmp_path / "sub")),
        BertForSequenceClassification.from_pretrained(tmp_path / "sub", config=config),
        BertForSequenceClassification.from_pretrained(tmp_path, subfolder="sub"),
        AutoModelForSequenceClassification.from_pretrained(tmp_path, subfolder="sub"),
        checkpoint_class(BertForSequenceClassification).from_pretrained(
            pretrained_model_name_or_path=tmp_path / "sub", config=str(tmp_path / "sub")
        ),
    ):
        assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(TypeError, match="keywords alone"):
        BertForSequenceClassification.from_pretrained(tmp_path / "sub", config)


def test_another_thread_that_is_importing_transformers():
    code = """
        import importlib, sys, threading
        other = threading.Thread(target=importlib.import_module, args=["transformers.modeling_utils"])
        other.start()
        while "transformers.modeling_utils" not in sys.modules:
            pass
        import optimum_camcut
        other.join()
        from transformers import PreTrainedModel
        print(PreTrainedModel.from_pretrained.__wrapped__ is not None)
    """
    assert run(code).strip().endswith("True")


def test_what_is_not_pruned_is_left_alone(tmp_path):
    for name, model in (("dense", tiny_model("bert")), ("plain", apply_evenly(tiny_model("bert")))):
        model.save_pretrained(tmp_path / name)
        for loaded in (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / name),
            BertForSequenceClassification.from_pretrained(tmp_path / name),
            AutoModelForSequenceClassification.from_config(model.config),
        ):
            assert type(loaded) is BertForSequenceClassification
    with pytest.raises((OSError, ValueError), match="nowhere"):  # what transformers raises
        BertModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(OSError):
        BertModel.from_pretrained("nobody/nothing", local_files_only=True)


def apply_evenly(model):
    keep = {group.name: range(9) for group in find_groups(model) if group.kind == "neurons"}
    return apply_plan(model, PruningPlan(keep))


def test_a_part_of_a_composite_model(tmp_path):
    """The record is in the part's own config, inside of the model's."""
    encoder, decoder = tiny_model("bert", task=""), tiny_model("gpt2", task="CausalLM", add_cross_attention=True)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    apply_plan(model.encoder, random_plan(model.encoder, 1))
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert type(loaded) is checkpoint_class(EncoderDecoderModel)
    assert {name: p.shape for name, p in loaded.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }


# --- without the package --------------------------------------------------------------------------------------------

PLAIN = """
    import sys
    import transformers
    loader = getattr(transformers, sys.argv[2])
    try:
        loader.from_pretrained(sys.argv[1], ignore_mismatched_sizes=sys.argv[3] == "ignore")
    except Exception as error:
        print(f"said: {error}")
    """


@pytest.mark.parametrize("ignore", ["", "ignore"])
@pytest.mark.parametrize("loader", ["AutoModelForSequenceClassification", "BertForSequenceClassification"])
def test_a_colleague_without_the_package_is_told_both_ways(loader, ignore, without_package, tmp_path):
    pruned_model("bert").save_pretrained(tmp_path)
    said = without_package.run(PLAIN, tmp_path, str(tmp_path), loader, ignore).partition("said: ")[2]
    assert "was pruned" in said
    for way in ("trust_remote_code=True", "`import optimum_camcut`", "pip install optimum-camcut"):
        assert way in said
    assert "mismatch" not in said


def test_a_copy_that_a_colleague_saves_says_it_too(without_package, tmp_path):
    pruned_model("gpt2", task="CausalLM").save_pretrained(tmp_path / "first")
    code = """
        import sys
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
        model.save_pretrained(sys.argv[2])
        again = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)
        assert not hasattr(again.config, "transformers_weights")
    """
    without_package.run(code, tmp_path, str(tmp_path / "first"), str(tmp_path / "second"))
    said = without_package.run(PLAIN, tmp_path, str(tmp_path / "second"), "AutoModelForCausalLM", "ignore")
    assert "was pruned" in said.partition("said: ")[2]
    assert isinstance(GPT2LMHeadModel.from_pretrained(tmp_path / "second"), GPT2LMHeadModel)
