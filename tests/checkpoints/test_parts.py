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
"""Parts of composite models, cut on their own: whatever holds them saves and loads what that takes."""

import json

import pytest
import torch
from models import mask_units, random_plan, tiny_batch, tiny_config, tiny_model
from transformers import (
    EncoderDecoderModel,
    PreTrainedModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    find_groups,
    hold_masks,
    load_pruned,
    make_plan,
    score_groups,
)


HEADS = PruningPlan({"layer.0.heads": [1, 2], "layer.1.neurons": [0, 5, 9]})


def encoder_decoder(decoder="bert"):
    options = {"is_decoder": True, "add_cross_attention": True} if decoder == "bert" else {"add_cross_attention": True}
    return EncoderDecoderModel(
        encoder=tiny_model("bert", task=""), decoder=tiny_model(decoder, "CausalLM", seed=1, **options)
    ).eval()


def logits(model):
    ids = tiny_batch(labels=False)["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, decoder_input_ids=ids[:, :5]).logits


@pytest.mark.parametrize("decoder", ["bert", "gpt2"])
def test_both_parts_are_cut_saved_loaded_and_cut_again(decoder, tmp_path):
    model = encoder_decoder(decoder)
    plans = {"encoder": random_plan(model.encoder, 1), "decoder": random_plan(model.decoder, 2)}
    expected = encoder_decoder(decoder)
    for name, plan in plans.items():
        mask_units(expected.get_submodule(name), plan)
        apply_plan(model.get_submodule(name), plan)
    assert torch.allclose(logits(model), logits(expected), atol=1e-5)
    model.save_pretrained(tmp_path / "once")
    loaded = load_pruned(tmp_path / "once")
    assert torch.equal(logits(loaded), logits(model))
    for name in plans:
        part = loaded.get_submodule(name)
        assert part.pruning_plan.keep == model.get_submodule(name).pruning_plan.keep
        kept = part.pruning_plan.keep["layer.0.heads"]
        apply_plan(part, PruningPlan({"layer.0.heads": kept[:1], "layer.1.attention": []}))
    with torch.no_grad():  # as after training
        loaded.encoder.embeddings.word_embeddings.weight.mul_(1.1)
    loaded.save_pretrained(tmp_path / "twice")
    again = load_pruned(tmp_path / "twice")
    assert torch.equal(logits(again), logits(loaded))
    again.encoder.save_pretrained(tmp_path / "part")  # a part alone is a checkpoint like any other
    assert load_pruned(tmp_path / "part").pruning_plan.keep == loaded.encoder.pruning_plan.keep


def test_parts_load_without_the_package(without_package, tmp_path):
    model = encoder_decoder()
    apply_plan(model.encoder, HEADS)
    apply_plan(model.decoder, PruningPlan({"layer.2.attention": [], "layer.0.neurons": [3]}))
    model.save_pretrained(tmp_path / "model")
    script = (
        "import torch; from transformers import AutoModelForSeq2SeqLM as A; torch.set_num_threads(1);"
        "m = A.from_pretrained('model', trust_remote_code=True); ids = torch.load('ids.pt');"
        "torch.save(m(input_ids=ids, decoder_input_ids=ids[:, :5]).logits.detach(), 'logits.pt');"
        "m.save_pretrained('again')"
    )
    torch.save(tiny_batch()["input_ids"], tmp_path / "ids.pt")
    without_package.run(script, tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))
    again = load_pruned(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert again.encoder.pruning_plan.keep == model.encoder.pruning_plan.keep


def test_other_models_of_the_same_config_are_left_as_they_are():
    model = encoder_decoder()
    config, twin = model.config, EncoderDecoderModel(model.config)
    before = json.dumps(config.to_dict(), default=str)
    apply_plan(model.encoder, HEADS)
    assert model.config is not config
    assert twin.config is config
    assert type(twin) is EncoderDecoderModel
    assert json.dumps(config.to_dict(), default=str) == before
    assert model.encoder.config is model.config.encoder
    assert model.decoder.config is model.config.decoder


def test_the_body_of_a_model_with_a_head(tmp_path):
    """`model.bert` has the config of the whole: the record and the plan are those of the whole."""
    model = tiny_model("bert")
    apply_plan(model.bert, HEADS)
    model.save_pretrained(tmp_path / "cut")
    ids = tiny_batch()["input_ids"]
    loaded = load_pruned(tmp_path / "cut")
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.pruning_plan.keep == HEADS.keep
    model, config = tiny_model("bert"), PruningConfig(granularity=("weights",), method="magnitude", sparsity=0.5)
    groups = find_groups(model.bert, config.granularity)
    apply_plan(model.bert, make_plan(score_groups(model.bert, groups, None, config), groups, config))
    model.save_pretrained(tmp_path / "masked")
    masked = load_pruned(tmp_path / "masked").pruning_plan
    assert masked.keep == {f"bert.{name}": units for name, units in model.bert.pruning_plan.keep.items()}
    filled = "encoder.layer.0.output.dense.weight"  # as by merging an adapter: both plans follow the weights
    with torch.no_grad():
        model.bert.get_parameter(filled).fill_(3)
    model.save_pretrained(tmp_path / "merged")
    assert filled not in model.bert.pruning_plan.keep
    with hold_masks(model):
        assert (model.bert.get_parameter(filled) == 3).all()
    assert load_pruned(tmp_path / "merged").pruning_plan == model.pruning_plan


def test_a_part_that_needs_no_record_or_is_masked(tmp_path):
    """All layers of one size make a plain checkpoint of the whole; masks are read with it."""
    model = encoder_decoder()
    apply_plan(model.encoder, PruningPlan({f"layer.{layer}.neurons": range(8) for layer in range(3)}))
    config = PruningConfig(granularity=("weights",), method="magnitude", sparsity=0.5)
    groups = find_groups(model.decoder, config.granularity)
    apply_plan(model.decoder, make_plan(score_groups(model.decoder, groups, None, config), groups, config))
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "modeling_camcut.py").exists()
    assert torch.equal(logits(EncoderDecoderModel.from_pretrained(tmp_path)), logits(model))
    loaded = load_pruned(tmp_path)
    for name in ("encoder", "decoder"):
        assert loaded.get_submodule(name).pruning_plan.keep == model.get_submodule(name).pruning_plan.keep


def test_the_decoder_of_images(tmp_path):
    vision = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, image_size=8, patch_size=4
    )
    decoder = tiny_model("gpt2", "CausalLM", add_cross_attention=True)
    model = VisionEncoderDecoderModel(encoder=ViTModel(vision), decoder=decoder).eval()
    apply_plan(model.decoder, HEADS)
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": torch.rand(2, 3, 8, 8), "decoder_input_ids": tiny_batch(2)["input_ids"]}
    assert torch.equal(load_pruned(tmp_path)(**inputs).logits, model(**inputs).logits)


def test_a_record_that_was_lost_is_an_error_that_says_so(tmp_path):
    model = encoder_decoder()
    apply_plan(model.encoder, HEADS)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for key in ("camcut_pruning", "pruned_heads"):
        values["encoder"].pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "pruning_plans.json").unlink()
    with pytest.raises(ValueError, match=r"'encoder\.encoder\.layer\.0\..*config\.json has lost the record"):
        load_pruned(tmp_path)


def test_what_no_config_can_say_is_warned_of(caplog):
    class Pair(PreTrainedModel):
        config_class = type(tiny_config("gpt2"))

        def __init__(self, config, part):
            super().__init__(config)
            self.part = part

    pair = Pair(tiny_config("gpt2"), tiny_model("bert", task=""))
    apply_plan(pair.part, HEADS)
    assert "the config of the Pair around it has no place for what was cut of 'part'" in caplog.text


def test_a_composite_model_itself_says_what_can_be_cut():
    with pytest.raises(ValueError, match=r"one by one: model\.encoder, model\.decoder"):
        find_groups(encoder_decoder())
