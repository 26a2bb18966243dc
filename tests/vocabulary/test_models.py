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
"""A model without some of its tokens: their rows are gone everywhere, and the same text gives the same logits."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from models import check_refused, random_plan, tiny_model
from tiny_tokenizers import KINDS, STRANGE, TEXTS, tiny_tokenizer
from torch import nn
from transformers import AutoTokenizer, EncoderDecoderModel, GenerationConfig

from optimum_camcut import (
    PruningConfig,
    PruningPlan,
    apply_plan,
    compare,
    find_groups,
    load_pruned,
    make_plan,
    reconstruct,
    score_groups,
    trim_tokenizer,
    with_tokenizer,
)
from optimum_camcut.architectures.structure import is_cut


IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": 3,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
# Type, head, fields, and how many tensors have something for each token.
MODELS = {
    "classifier": ("bert", "SequenceClassification", {}, 1),
    "bias": ("bert", "MaskedLM", {}, 2),
    "positions": ("roberta", "MaskedLM", {"pad_token_id": 1}, 2),
    "factored": ("albert", "MaskedLM", {}, 2),
    "tied": ("gpt2", "CausalLM", {}, 1),
    "untied": ("llama", "CausalLM", {"tie_word_embeddings": False}, 2),
    "logits_bias": ("bart", "Seq2SeqLM", BART, 2),
    "t5": ("t5", "Seq2SeqLM", T5, 1),
}


def model_for(name, tokenizer, **more):
    architecture, task, fields, _ = MODELS[name]
    known = {} if architecture in ("bart", "t5") else IDS
    return tiny_model(architecture, task, **{**known, "vocab_size": len(tokenizer), **fields, **more})


def batch_of(tokenizer, texts, labels=False):
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    if labels:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def cut_by_text(model, tokenizer, texts, **options):
    """The plan, and the trimmed tokenizer."""
    config = PruningConfig(granularity="vocabulary", **(options or {"min_frequency": 1}))
    groups = find_groups(model, "vocabulary")
    scores = score_groups(model, groups, [batch_of(tokenizer, texts)], config, disable_tqdm=True)
    plan = make_plan(with_tokenizer(scores, tokenizer), groups, config)
    apply_plan(model, plan)
    return plan, trim_tokenizer(tokenizer, plan, texts)


@torch.no_grad()
def logits_of(model, batch):
    return model(**batch).logits


@pytest.mark.parametrize("name", MODELS)
def test_the_same_text_gives_the_same_logits(name):
    tokenizer, texts = tiny_tokenizer("wordpiece"), TEXTS[:12]
    model = model_for(name, tokenizer)
    labels = MODELS[name][1] == "Seq2SeqLM"
    dense, rows = logits_of(model, batch_of(tokenizer, texts, labels)), len(tokenizer)
    (group,) = find_groups(model, "vocabulary")
    assert (group.name, group.size) == ("vocabulary", rows)
    held = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers()])
    assert len({id(held[piece.module]) for piece in group.slices}) == MODELS[name][3]
    before = {n: p.clone() for n, p in model.state_dict().items()}
    parameters = sum(p.numel() for p in model.parameters())
    plan, trimmed = cut_by_text(model, tokenizer, texts)
    keep = torch.tensor(list(plan.keep["vocabulary"]))
    assert len(keep) == len(trimmed) == model.config.vocab_size < rows
    found = logits_of(model, batch_of(trimmed, texts, labels))
    assert torch.equal(found, dense if name == "classifier" else dense[..., keep])
    assert parameters - sum(p.numel() for p in model.parameters()) == group.unit_parameters * (rows - len(keep))
    for piece in group.slices:
        assert torch.equal(model.state_dict()[piece.module], before[piece.module].index_select(piece.axis, keep))
    table = model.get_input_embeddings()
    assert table.num_embeddings == len(table.weight) == len(keep)
    output = model.get_output_embeddings()
    if output is not None:
        assert (output.weight is table.weight) == (name != "untied") and output.out_features == len(keep)
    if name == "bias":
        assert model.cls.predictions.bias is model.cls.predictions.decoder.bias


@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_with_a_fresh_process(kind, tmp_path):
    """Loads as a plain checkpoint, in `pipeline` too, without this package."""
    tokenizer, texts = tiny_tokenizer(kind), TEXTS[:8]
    model = model_for("untied" if kind == "byte_bpe" else "tied", tokenizer)
    dense = logits_of(model, batch_of(tokenizer, texts))
    plan, trimmed = cut_by_text(model, tokenizer, texts)
    found = logits_of(model, batch_of(trimmed, texts))
    assert torch.equal(found, dense[..., torch.tensor(list(plan.keep["vocabulary"]))])
    assert not is_cut(model.config)
    model.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    if kind not in ("wordpiece", "byte_bpe"):
        return
    code = """
    import sys, json, torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
    folder, text = sys.argv[1:]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits
    write = pipeline("text-generation", model=folder, tokenizer=folder)
    written = write(text, max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert "optimum_camcut" not in sys.modules
    print(json.dumps([logits[0, -1].tolist(), written]))
    """
    code = "\n".join(line[4:] for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), texts[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits, written = json.loads(done.stdout.strip().splitlines()[-1])
    own = batch_of(trimmed, texts[:1])
    assert torch.equal(torch.tensor(logits), logits_of(model, own)[0, -1])
    assert len(written) > len(texts[0]) - 10


def test_configs_name_the_same_tokens():
    tokenizer = tiny_tokenizer("wordpiece")
    model = model_for("logits_bias", tokenizer)
    mask, the = tokenizer.mask_token_id, tokenizer.convert_tokens_to_ids("the")
    seldom = [number for token, number in tokenizer.get_vocab().items() if len(token) > 7]
    model.config.classifier_token_id = mask  # a field of one's own
    model.generation_config = GenerationConfig(
        eos_token_id=[3, mask],
        pad_token_id=0,
        suppress_tokens=[the, *seldom],
        begin_suppress_tokens=None,
        bad_words_ids=[[the, mask], [the, seldom[0]]],
        lang_to_id={"<mask>": mask},
    )
    given, config = model.generation_config, model.config
    keep = [n for n in range(len(tokenizer)) if n not in seldom]
    apply_plan(model, PruningPlan({"vocabulary": keep}))
    new, generation = keep.index, model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == ([3, new(mask)], 0)
    assert generation.suppress_tokens == [new(the)] and generation.bad_words_ids == [[new(the), new(mask)]]
    assert generation.lang_to_id == {"<mask>": new(mask)} and model.config.classifier_token_id == new(mask)
    assert model.config.vocab_size == len(keep) and model.config.decoder_start_token_id == 3
    assert config.vocab_size == len(tokenizer) and given.eos_token_id == [3, mask]  # others may hold them
    assert model.model.shared.padding_idx == 1 and model.final_logits_bias.shape == (1, len(keep))


def test_the_padding_row_is_renumbered():
    model = tiny_model("bert", pad_token_id=7)
    apply_plan(model, PruningPlan({"vocabulary": [1, 2, 5, 7, *range(20, 60)]}))
    assert model.config.pad_token_id == model.get_input_embeddings().padding_idx == 3
    assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 1)


def test_positions_that_count_from_the_padding_keep_it():
    """Those of RoBERTa begin behind the number of the padding: a plan that would change it is refused."""
    model = tiny_model("roberta", "MaskedLM", pad_token_id=5)
    assert find_groups(model, "vocabulary")[0].needed == [0, 1, 2, 3, 4, 5]
    check_refused(
        model, PruningPlan({"vocabulary": [0, 1, 2, 5, 9]}), "the plan removes the token 3, which the config"
    )


def test_counts_are_those_of_the_text():
    model = tiny_model("gpt2", "CausalLM")
    groups = find_groups(model, "vocabulary")
    batches = [
        {
            "input_ids": torch.tensor([[5, 5, 7], [9, 0, 0]]),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
            "labels": torch.tensor([[5, 5, 8], [9, -100, -100]]),  # 8 is masked: it is written, not read
        },
        {"input_ids": torch.tensor([[7, 5]])},
    ]
    config = PruningConfig(granularity="vocabulary", min_frequency=2, num_samples=1)
    scores = score_groups(model, groups, batches, config, disable_tqdm=True)["vocabulary"]
    assert {number: int(count) for number, count in enumerate(scores) if count} == {5: 3, 7: 2, 8: 1, 9: 1}
    plan = make_plan({"vocabulary": scores}, groups, config)
    assert list(plan.keep["vocabulary"]) == [0, 1, 2, 5, 7]  # with those that the config names
    half = make_plan({"vocabulary": scores}, groups, PruningConfig(granularity="vocabulary", sparsity=0.5))
    assert len(half.keep["vocabulary"]) == 50 and {5, 7, 8, 9} < set(half.keep["vocabulary"])
    both = PruningConfig(granularity="vocabulary", sparsity=0.5, min_frequency=2)
    assert make_plan({"vocabulary": scores}, groups, both).keep["vocabulary"] == plan.keep["vocabulary"]
    with pytest.raises(ValueError, match="hold the token 99, and the model has embeddings for 99"):
        score_groups(model, groups, [{"input_ids": torch.tensor([[99]])}], config, disable_tqdm=True)


def test_together_with_heads_and_neurons(tmp_path):
    tokenizer = tiny_tokenizer("wordpiece")
    model = model_for("classifier", tokenizer)
    config = PruningConfig(granularity=["heads", "neurons", "vocabulary"], method="taylor", sparsity=0.25)
    groups = find_groups(model, config.granularity)
    batch = {**batch_of(tokenizer, TEXTS[:8]), "labels": torch.arange(8) % 3}
    with pytest.raises(TypeError, match="the batches are read twice, and this list_iterator gives them once"):
        score_groups(model, groups, iter([batch]), config, disable_tqdm=True)
    scores = score_groups(model, groups, [batch], config, disable_tqdm=True)
    alone = score_groups(
        model, find_groups(model), [batch], PruningConfig(method="taylor", sparsity=0.25), disable_tqdm=True
    )
    assert all(torch.equal(scores[name], alone[name]) for name in alone)
    assert int(scores["vocabulary"].sum()) == int(batch["attention_mask"].sum())
    for allocation in ("per_kind", "global", "uniform"):
        config.allocation = allocation
        plan = make_plan(with_tokenizer(scores, tokenizer), groups, config)
        left = {g.name: len(plan.keep[g.name]) / g.size for g in groups}
        assert left["vocabulary"] == pytest.approx(0.75, abs=0.01)
        costs = {g.name: g.size * g.unit_parameters for g in groups if g.kind != "vocabulary"}
        kept = sum(left[name] * cost for name, cost in costs.items()) / sum(costs.values())
        assert kept == pytest.approx(0.75, abs=0.05)
    trimmed = trim_tokenizer(tokenizer, plan, TEXTS[:8])
    apply_plan(model, plan)
    model.save_pretrained(tmp_path)
    batch = batch_of(trimmed, TEXTS[:8])
    loaded = load_pruned(tmp_path)
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    assert loaded.pruning_plan.keep == plan.keep and is_cut(loaded.config)
    auto = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits_of(auto.eval(), batch), logits_of(model, batch))
    table = str(plan).splitlines()
    assert table[0].split() == ["layer", "heads", "neurons", "vocabulary"]
    kept = len(plan.keep["vocabulary"])
    assert table[-2].split() == ["embeddings", "-", "-", str(kept), "/", str(len(tokenizer))]
    assert table[1].split()[-1] == "-"


def test_compression_counts_all_parameters():
    model = tiny_model("bert")
    groups = find_groups(model, ("heads", "neurons", "vocabulary"))
    scores = {g.name: torch.arange(1.0, g.size + 1) for g in groups}
    config = PruningConfig(granularity=["heads", "neurons", "vocabulary"], method="taylor", compression=1.5)
    before = sum(p.numel() for p in model.parameters())
    apply_plan(model, make_plan(scores, groups, config))
    # Of the 12 heads in all, whole ones go.
    assert before / sum(p.numel() for p in model.parameters()) == pytest.approx(1.5, abs=0.04)


def test_a_plan_that_removes_nothing_says_why(caplog):
    groups = find_groups(tiny_model("bert"), "vocabulary")
    for exclude, reason in ((["vocabulary"], "exclude names all"), (None, "min_frequency=1 is too little")):
        config = PruningConfig(granularity="vocabulary", min_frequency=1, exclude=exclude)
        make_plan({"vocabulary": torch.ones(99)}, groups, config)
        assert reason in caplog.messages[-1]


def test_cut_twice_and_loaded(tmp_path):
    """The units of a model that was cut before keep the numbers that they had at first."""
    model, ids = tiny_model("bert"), torch.tensor([[0, 40, 50, 98]])
    dense = model(ids).logits
    apply_plan(model, PruningPlan({"vocabulary": [0, 1, 2, *range(40, 99)]}))
    model.save_pretrained(tmp_path)
    model = load_pruned(tmp_path)
    (group,) = find_groups(model, "vocabulary")
    assert (group.size, group.original_size, group.units[3]) == (62, 99, 40)
    apply_plan(model, PruningPlan({"vocabulary": [0, 1, 2, 40, 50, 98]}))
    assert list(model.pruning_plan.keep["vocabulary"]) == [0, 1, 2, 40, 50, 98]
    assert torch.allclose(model(torch.tensor([[0, 3, 4, 5]])).logits, dense, atol=1e-6)
    model.save_pretrained(tmp_path / "again")
    model.resize_token_embeddings(9)
    model.save_pretrained(tmp_path / "resized")
    with pytest.raises(ValueError, match="keeps 6 tokens, but the model has 9"):
        load_pruned(tmp_path / "resized")
    check_refused(load_pruned(tmp_path / "again"), PruningPlan({"vocabulary": range(9)}), "were removed already")


def test_numbers_of_tokens_may_be_other_sizes_by_chance():
    model = tiny_model("bert", "MaskedLM", max_position_embeddings=50, hidden_size=52)
    positions = model.bert.embeddings.position_embeddings.weight
    for keep in (range(52), range(50), range(20)):
        apply_plan(model, PruningPlan({"vocabulary": keep}))
        (group,) = find_groups(model, "vocabulary")
        found = {piece.module for piece in group.slices}
        assert {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"} <= found
        assert all(
            "embeddings.word" in name or "cls.predictions.decoder" in name or name == "cls.predictions.bias"
            for name in found
        )
    assert len(positions) == 50 and model.bert.pooler is None
    neurons = tiny_model("gpt2", "CausalLM", n_inner=99)  # whose biases are as long
    (group,) = find_groups(neurons, "vocabulary")
    assert {piece.module for piece in group.slices} == {"transformer.wte.weight", "lm_head.weight"}


def test_words_that_tell_of_sound_are_counted():
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=99,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            num_mel_bins=8,
            max_source_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ).eval()
    batch = {"input_features": torch.randn(2, 8, 40), "labels": torch.tensor([[5, 6, 7], [7, 9, -100]])}
    groups, config = find_groups(model, "vocabulary"), PruningConfig(granularity="vocabulary", min_frequency=1)
    scores = score_groups(model, groups, [batch], config, disable_tqdm=True)
    assert {number: int(count) for number, count in enumerate(scores["vocabulary"]) if count} == {
        5: 1,
        6: 1,
        7: 2,
        9: 1,
    }
    plan, heard = make_plan(scores, groups, config), {**batch, "decoder_input_ids": torch.tensor([[3, 5], [3, 7]])}
    heard.pop("labels")
    keep = list(plan.keep["vocabulary"])
    assert keep == [0, 1, 2, 3, 5, 6, 7, 9]
    dense = logits_of(model, heard)
    apply_plan(model, plan)
    heard["decoder_input_ids"] = torch.tensor([[3, 4], [3, 6]])
    assert torch.allclose(logits_of(model, heard), dense[..., keep], atol=1e-6)


def test_what_is_refused():
    check_refused(tiny_model("bert"), PruningPlan({"vocabulary": [3, 4]}), "the plan removes the token 0, which")
    check_refused(
        tiny_model("bert", pad_token_id=None, bos_token_id=None, eos_token_id=None),
        PruningPlan({"vocabulary": []}),
        "no token at all",
    )
    model = tiny_model("bert", "MaskedLM")
    with pytest.raises(ValueError, match="apply the plan to the whole model"):
        apply_plan(model.bert, PruningPlan({"vocabulary": range(50)}))
    model = tiny_model("gpt2", "CausalLM")
    model.lm_head = nn.AdaptiveLogSoftmaxWithLoss(32, 99, [10, 50])
    with pytest.raises(ValueError, match="adaptive softmax"):
        find_groups(model, "vocabulary")
    model = tiny_model("bert")
    model.config.vocab_size_per_layer_input = 12
    with pytest.raises(ValueError, match="its config has vocab_size_per_layer_input=12"):
        find_groups(model, "vocabulary")
    model = tiny_model("bert")
    model.bert.second = nn.Embedding(99, 4)
    with pytest.raises(ValueError, match="bert.second of BertForSequenceClassification has 99 rows"):
        find_groups(model, "vocabulary")
    decoder = tiny_model("gpt2", "CausalLM", add_cross_attention=True, is_decoder=True)
    both = EncoderDecoderModel(encoder=tiny_model("bert", ""), decoder=decoder)
    with pytest.raises(ValueError, match="reads by several tables, of 99 and 99 tokens"):
        find_groups(both, "vocabulary")
    image = transformers.AutoModelForImageClassification.from_config(
        transformers.ViTConfig(**SMALL, image_size=8, patch_size=4)
    )
    with pytest.raises(ValueError, match="input embeddings should be an Embedding"):
        find_groups(image, "vocabulary")


def test_a_rebuild_needs_a_dense_model_of_the_same_tokens():
    model, dense = tiny_model("bert"), tiny_model("bert")
    plan = random_plan(model, 0)
    vocabulary = PruningPlan({"vocabulary": range(50)})
    apply_plan(apply_plan(model, vocabulary), plan)
    batch = {"input_ids": torch.randint(3, 50, (16, 9), generator=torch.Generator().manual_seed(0))}
    with pytest.raises(ValueError, match="the model reads 50 tokens, dense_model 99: cut the vocabulary first"):
        reconstruct(model, dense, model.pruning_plan, [batch], disable_tqdm=True)
    apply_plan(dense, vocabulary)
    before = (logits_of(model, batch) - logits_of(dense, batch)).norm()
    reconstruct(model, dense, model.pruning_plan, [batch], disable_tqdm=True)
    assert (logits_of(model, batch) - logits_of(dense, batch)).norm() < before


def test_compare_leaves_it_out():
    with pytest.raises(ValueError, match="leave 'vocabulary' out"):
        compare(
            tiny_model("bert"),
            [],
            lambda model: {"score": 1.0},
            PruningConfig(granularity="vocabulary", min_frequency=1),
        )


def test_magnitude_goes_by_the_rows():
    model = tiny_model("gpt2", "CausalLM")
    with torch.no_grad():
        model.get_input_embeddings().weight[60:] = 0
    groups = find_groups(model, "vocabulary")
    config = PruningConfig(granularity="vocabulary", method="magnitude", sparsity=0.3)
    plan = make_plan(score_groups(model, groups, None, config), groups, config)
    assert set(range(60)) <= set(plan.keep["vocabulary"])


def test_unknown_text_still_runs(tmp_path):
    tokenizer = tiny_tokenizer("unigram")
    model = model_for("tied", tokenizer)
    _, trimmed = cut_by_text(model, tokenizer, TEXTS[:4])
    trimmed.save_pretrained(tmp_path)
    batch = batch_of(AutoTokenizer.from_pretrained(tmp_path), STRANGE)
    assert int(batch["input_ids"].max()) < model.config.vocab_size
    assert torch.isfinite(logits_of(model, batch)).all()
