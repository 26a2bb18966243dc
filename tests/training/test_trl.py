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
"""`SFTTrainer` of trl with `CamCutTrainer` before it, and copies of models whose `forward` others have replaced."""

import copy
import functools
import types

import pytest
import torch
from datasets import Dataset
from models import tiny_batch, tiny_config, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from optimum_camcut import CamCutTrainer, PruningConfig, load_pruned
from optimum_camcut.utils.copies import copy_model


pytestmark = pytest.mark.once


class CamCutSFTTrainer(CamCutTrainer, SFTTrainer):
    """As docs/guide_generation.md has it."""


def make_tokenizer():
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", *sorted(ByteLevel.alphabet())])}
    letters = Tokenizer(BPE(vocabulary, merges=[]))
    letters.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def trainer_of(folder, rows, **changes):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = tiny_config("llama", vocab_size=len(tokenizer), max_position_embeddings=128)
    arguments = SFTConfig(
        str(folder), max_steps=12, learning_rate=5e-3, report_to="none", per_device_train_batch_size=4, use_cpu=True,
        max_length=32, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    settings = {"method": "fisher", "sparsity": 0.4, "num_samples": 8}
    return CamCutSFTTrainer(
        AutoModelForCausalLM.from_config(config),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        pruning_config=PruningConfig(**{**settings, **changes}),
    )


class CountCalls(TrainerCallback):
    """Notes every pass of the model that trains in which gradients are on, with whether it gave hidden states."""

    def __init__(self, calls):
        self.calls = calls

    def on_train_begin(self, args, state, control, model, **kwargs):
        def note(module, inputs, outputs):
            if torch.is_grad_enabled() and module.training:
                self.calls.append(outputs.get("hidden_states") is not None)

        model.register_forward_hook(note)


TEXTS = [{"text": "hello world " * 2}] * 16


@pytest.mark.parametrize(("recovery", "weight"), [("reconstruct", 0.0), ("reconstruct+finetune", 0.5)])
def test_supervised_fine_tuning_prunes_recovers_and_saves(recovery, weight, tmp_path, caplog):
    trainer = trainer_of(tmp_path / "out", TEXTS, recovery=recovery, distill_weight=weight)
    batch = next(iter(trainer.get_scoring_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    dense = trainer.model(**inputs).logits.detach()
    student = []
    trainer.add_callback(CountCalls(student))
    trainer.train()
    assert all(student[1::2])  # the second compares hidden states too
    assert len(student) == (24 if weight else 0)  # two passes with gradients in each of 12 steps
    assert trainer.pruning_plan is not None and trainer.state.global_step == (12 if weight else 0)
    trainer.save_model(tmp_path / "saved")
    pruned = load_pruned(tmp_path / "saved")
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in trainer.dense_model.parameters())
    # The dense model computes by its own weights, though trl has replaced its forward.
    torch.testing.assert_close(trainer.dense_model(**inputs).logits, dense)
    assert ("asks the model for no logits: it runs once more" in caplog.text) == (weight > 0)


def patched(model, how):
    """As others replace the forward of a model."""
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, **kwargs):
        return original(*args, **kwargs)

    if how == "closure":
        model.forward = types.MethodType(forward, model)
    elif how == "partial":
        model.forward = functools.partial(forward, model)
    else:
        model.bert.encoder.layer[1].forward = model.bert.encoder.layer[1].forward  # bound to what it is of
    return model


def test_copies_find_what_a_forward_holds_on_to_in_other_ways(monkeypatch, caplog):
    for how in ("default", "list", "global"):
        model = tiny_model("bert")
        original = type(model).forward
        if how == "default":
            model.forward = lambda *args, keep=(original, model), **kwargs: keep[0](keep[1], *args, **kwargs)
        elif how == "list":
            held = [model]
            model.forward = lambda *args, **kwargs: original(held[0], *args, **kwargs)  # noqa: B023
        else:
            monkeypatch.setitem(globals(), "HELD", model)
            model.forward = lambda *args, **kwargs: original(HELD, *args, **kwargs)  # noqa: B023, F821
        caplog.clear()
        copied = copy_model(model)
        assert "forward" not in vars(copied) and "goes by the forward of its class" in caplog.text


@pytest.mark.parametrize("how", ["closure", "partial", "bound"])
@torch.no_grad()
def test_copies_compute_by_their_own_weights(how):
    batch = tiny_batch()
    model = patched(tiny_model("bert"), how)
    expected = model(**batch).logits
    copied = copy_model(model)
    for parameter in model.parameters():
        parameter.zero_()
    torch.testing.assert_close(copied(**batch).logits, expected)
    if how == "closure":  # which is what a plain copy does not
        assert not torch.allclose(copy.deepcopy(model)(**batch).logits, expected)
