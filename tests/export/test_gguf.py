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
"""GGUF files: read back as llama.cpp reads them, they compute what the model does. Where llama.cpp is installed,
it is asked too."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from models import random_plan, tiny_batch, tiny_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainingArguments
from types_of_models import model_of

from optimum_camcut import CamCutTrainer, PruningConfig, PruningPlan, apply_plan, load_pruned


gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

from optimum_camcut.export.gguf import export_gguf  # noqa: E402 - needs the extra
from optimum_camcut.export.gguf_tokenizer import LLAMA_3  # noqa: E402


pytestmark = pytest.mark.once  # depends little on the version of transformers
ROWS = 300  # of the word embeddings
PLANS = {
    "units": {
        f"layer.{n}.{kind}": units
        for n in range(3)
        for kind, units in (("heads", range(n + 1)), ("neurons", range(9 + 5 * n)))
    },
    "first attention": {"layer.0.attention": (), "layer.1.heads": (0, 3), "layer.2.neurons": range(0, 37, 2)},
    "feed-forward": {"layer.1.feed_forward": (), "layer.2.attention": ()},
    "last block": {"layer.2.feed_forward": (), "layer.2.attention": (), "layer.1.neurons": (5,)},
    "no units": {"layer.1.heads": (), "layer.2.neurons": ()},
    "dense": {},
}


def byte_level(*steps, whole_words=False, space=False, normalizer=None):
    """Of bytes, with two merges; `steps` split the text before."""
    vocabulary = {text: number for number, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"th": 256, "the": 257}
    found = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")], ignore_merges=whole_words))
    found.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(space, use_regex=len(steps) != 1)])
    found.decoder = decoders.ByteLevel()
    if normalizer is not None:
        found.normalizer = normalizer
    found.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>")


def with_fallback():
    """Of characters, with bytes to fall back on, as llama's first tokenizer."""
    texts = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{number:02X}>" for number in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "th",
        "▁the",
        "▁th",
    ]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e")]
    vocabulary = {text: number for number, text in enumerate(texts)}
    found = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    found.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pruned(kind="units", **changes):
    model = tiny_model("llama", task="CausalLM", **{"vocab_size": ROWS, **changes})
    return apply_plan(model, PruningPlan(PLANS[kind])) if PLANS[kind] else model


def values_of(reader, name):
    """Metadata without the architecture's name."""
    return next((field.contents() for key, field in reader.fields.items() if key.partition(".")[2] == name), None)


def tensors_of(reader):
    return {
        tensor.name: torch.tensor(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)), dtype=torch.float32
        )
        for tensor in reader.tensors
    }


def rotate(states, width, theta, factors):
    """llama.cpp's rotary positions for these architectures: neighbours are pairs."""
    places = torch.arange(states.shape[-2])[:, None]
    angles = places * theta ** -(torch.arange(0, width, 2) / width) / factors
    even, odd = states[..., ::2], states[..., 1::2]
    pairs = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(pairs, -1).flatten(-2)


def run(path, ids):
    """Logits of what is in a file, by the steps of llama.cpp's `deci.cpp`."""
    reader = gguf.GGUFReader(path)
    weights, blocks = tensors_of(reader), values_of(reader, "block_count")
    heads, groups, neurons = (
        found if isinstance(found, list) else [found] * blocks
        for found in (
            values_of(reader, f"{name}")
            for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        )
    )
    width, theta = values_of(reader, "attention.key_length"), values_of(reader, "rope.freq_base")
    eps = values_of(reader, "attention.layer_norm_rms_epsilon")
    factors = weights.get("rope_freqs.weight", torch.ones(width // 2)) * (
        values_of(reader, "rope.scaling.factor") or 1
    )
    states = weights["token_embd.weight"][ids]
    assert heads[0] > 0  # from which llama.cpp reads how wide heads are
    for number in range(blocks):
        own = {
            name.removeprefix(f"blk.{number}."): tensor for name, tensor in weights.items() if f"blk.{number}." in name
        }

        def project(states, name, own=own):
            return torch.nn.functional.linear(states, own[f"{name}.weight"], own.get(f"{name}.bias"))

        assert neurons[number]  # llama.cpp forgets an attention that no feed-forward follows
        if heads[number]:
            normed = rms_norm(states, states.shape[-1:], own["attn_norm.weight"], eps)
            parts = [project(normed, f"attn_{name}").unflatten(-1, (-1, width)).transpose(1, 2) for name in "qkv"]
            assert [part.shape[1] for part in parts] == [heads[number], groups[number], groups[number]]
            queries, keys = (rotate(part, width, theta, factors) for part in parts[:2])
            mixed = scaled_dot_product_attention(queries, keys, parts[2], is_causal=True, enable_gqa=True)
            states = states + project(mixed.transpose(1, 2).flatten(2), "attn_output")
        normed = rms_norm(states, states.shape[-1:], own["ffn_norm.weight"], eps)
        assert own["ffn_up.weight"].shape[0] == neurons[number]
        states = states + project(silu(project(normed, "ffn_gate")) * project(normed, "ffn_up"), "ffn_down")
    states = rms_norm(states, states.shape[-1:], weights["output_norm.weight"], eps)
    return states @ weights.get("output.weight", weights["token_embd.weight"]).T


def assert_same(model, path, near=1e-4):
    ids = tiny_batch(labels=False, padding=False)["input_ids"]
    with torch.no_grad():
        expected = model.eval()(ids).logits
    assert (run(path, ids) - expected).abs().max() < near * (expected.max() - expected.min())


# --- sizes and weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLANS)
def test_the_file_computes_what_the_model_does(kind, tmp_path):
    model = pruned(kind)
    path = export_gguf(model, tmp_path / "m.gguf", tokenizer=byte_level(), disable_tqdm=True)
    assert_same(model, path)
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]
    names = {"dense": "llama"}
    assert gguf.GGUFReader(path).fields["general.architecture"].contents() == names.get(kind, "deci")
    assert values_of(gguf.GGUFReader(path), "block_count") == (2 if kind == "last block" else 3)


ROPE = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope", ROPE)
def test_rotary_positions_that_are_scaled(rope, tmp_path):
    model = pruned(rope_parameters={"rope_theta": 10000.0, **ROPE[rope]})
    assert_same(model, export_gguf(model, tmp_path / "m.gguf", tokenizer=byte_level(), disable_tqdm=True))


@pytest.mark.parametrize("kind", ["units", "no units"])
def test_biases_are_added_even_where_all_units_are_gone(kind, tmp_path):
    model = pruned(kind, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    path = export_gguf(model, tmp_path / "m.gguf", tokenizer=byte_level(), disable_tqdm=True)
    assert "output.weight" not in tensors_of(gguf.GGUFReader(path))
    assert_same(model, path)


@pytest.mark.parametrize("name", ["mistral", "qwen2"])
def test_other_types_like_llama(name, tmp_path):
    model = model_of(name)
    model.config.sliding_window = None
    apply_plan(model, random_plan(model, 1))
    tokenizer = byte_level()
    if model.config.vocab_size < len(tokenizer):
        model.resize_token_embeddings(ROWS)
    assert_same(model, export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, disable_tqdm=True))


@pytest.mark.parametrize(("kind", "near"), [("F16", 5e-3), ("BF16", 5e-2), ("Q8_0", 5e-2), ("Q4_0", 0.7)])
def test_quantized(kind, near, tmp_path):
    """Neurons are filled up to whole blocks."""
    model = pruned(num_attention_heads=4, num_key_value_heads=4, head_dim=32, hidden_size=64)
    path = export_gguf(model, tmp_path / "m.gguf", tokenizer=byte_level(), quantize=kind, disable_tqdm=True)
    assert_same(model, path, near)
    reader = gguf.GGUFReader(path)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 2}
    assert kinds == {kind}
    if kind.startswith("Q"):
        assert all(size % 32 == 0 for size in values_of(reader, "feed_forward_length"))


def test_a_model_of_equal_layers_is_read_by_transformers(tmp_path):
    """Which reads llama's files, in its own way."""
    model = pruned("dense")
    export_gguf(model, tmp_path / "m.gguf", tokenizer=byte_level(), disable_tqdm=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = tiny_batch(labels=False, padding=False)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)


def test_a_model_from_a_gguf_file_is_cut_trained_and_saved(tmp_path):
    """Which transformers calls quantized; its tokenizer comes along."""
    export_gguf(pruned("dense"), tmp_path / "m.gguf", tokenizer=byte_level(), quantize="F16", disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = tiny_batch(labels=False, padding=False)["input_ids"]
    trainer = CamCutTrainer(
        model=model,
        args=TrainingArguments(tmp_path / "run", max_steps=1, report_to="none", use_cpu=True),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        pruning_config=PruningConfig("magnitude", sparsity=0.5),
    )
    trainer.train()
    trainer.save_model(tmp_path / "cut")
    loaded, written = load_pruned(tmp_path / "cut"), json.loads((tmp_path / "cut" / "config.json").read_text())
    assert "quantization_config" not in written
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    second = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    apply_plan(second, PruningPlan(PLANS["units"])).save_pretrained(tmp_path / "second")
    with torch.no_grad():
        assert torch.equal(load_pruned(tmp_path / "second")(ids).logits, second(ids).logits)


# --- tokenizers -----------------------------------------------------------------------------------------------------


DIGITS = pre_tokenizers.Digits(individual_digits=True)
QWEN_2 = LLAMA_3.replace("{1,3}", "")


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ((), "gpt-2"),
        ((DIGITS,), None),  # without the words of bytes, of no model
        ((pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),), "llama-bpe"),
        ((pre_tokenizers.Split(Regex(QWEN_2), "isolated"),), "qwen2"),
        ((pre_tokenizers.Split(Regex("x"), "isolated"),), None),
    ],
)
def test_how_text_is_split(steps, name, tmp_path):
    tokenizer = byte_level(*steps, whole_words=name == "llama-bpe")
    if name is None:
        with pytest.raises(ValueError, match="tokenizer_gguf"):
            export_gguf(pruned(), tmp_path / "m.gguf", tokenizer=tokenizer, disable_tqdm=True)
        assert not list(tmp_path.iterdir())
        return
    reader = gguf.GGUFReader(export_gguf(pruned(), tmp_path / "m.gguf", tokenizer=tokenizer, disable_tqdm=True))
    assert values_of(reader, "ggml.pre") == name
    tokens = values_of(reader, "ggml.tokens")
    assert [tokens[number] for number in (256, 257, 258, 299)] == ["th", "the", "<s>", "[PAD299]"]
    kinds = values_of(reader, "ggml.token_type")
    assert [kinds[number] for number in (256, 258, 299)] == [1, 3, 5]
    assert values_of(reader, "ggml.merges") == ["t h", "th e"]
    assert values_of(reader, "ggml.bos_token_id") == 258
    assert values_of(reader, "ggml.add_bos_token") is False  # llama.cpp would add one by itself


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: byte_level(space=True), "add_prefix_space"),
        (lambda: byte_level(normalizer=normalizers.Lowercase()), "normalize text by Lowercase"),
        (lambda: byte_level(pre_tokenizers.Split(Regex(LLAMA_3), "isolated")), "ignore_merges"),
    ],
)
def test_tokenizers_that_llama_cpp_would_read_otherwise(tokenizer, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_gguf(pruned(), tmp_path / "m.gguf", tokenizer=tokenizer(), disable_tqdm=True)
    assert not list(tmp_path.iterdir())


def test_tokens_with_bytes_to_fall_back_on_get_their_merges_as_scores(tmp_path):
    tokenizer = with_fallback()
    reader = gguf.GGUFReader(export_gguf(pruned(), tmp_path / "m.gguf", tokenizer=tokenizer, disable_tqdm=True))
    tokens, scores = values_of(reader, "ggml.tokens"), values_of(reader, "ggml.scores")
    assert values_of(reader, "ggml.model") == "llama" and values_of(reader, "ggml.add_space_prefix")
    ranked = [scores[tokens.index(text)] for text in ("th", "▁th", "▁the", "t")]
    assert ranked == sorted(ranked, reverse=True) and len(set(ranked)) == 4
    assert values_of(reader, "ggml.token_type")[tokens.index("<0x41>")] == 6


def test_the_tokenizer_of_another_file(tmp_path):
    first = export_gguf(pruned("dense"), tmp_path / "dense.gguf", tokenizer=with_fallback(), disable_tqdm=True)
    second = export_gguf(pruned(), tmp_path / "m.gguf", tokenizer_gguf=first, disable_tqdm=True)
    fields = [
        {
            name: field.contents()
            for name, field in gguf.GGUFReader(path).fields.items()
            if name.startswith("tokenizer")
        }
        for path in (first, second)
    ]
    assert fields[0] == fields[1] and len(fields[0]) > 5
    with pytest.raises(ValueError, match="has 300 tokens, the model embeds 310"):
        export_gguf(pruned(vocab_size=310), tmp_path / "x.gguf", tokenizer_gguf=first, disable_tqdm=True)
    with pytest.raises(FileNotFoundError, match="nowhere.gguf to take the tokenizer from"):
        export_gguf(pruned(), tmp_path / "x.gguf", tokenizer_gguf=tmp_path / "nowhere.gguf", disable_tqdm=True)


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: tiny_model("gpt2", task="CausalLM"), {}, "for decoders like llama alone"),
        (lambda: tiny_model("llama"), {}, "with the head of a language model"),
        (lambda: pruned(hidden_act="gelu"), {}, "no gelu in the feed-forward"),
        (lambda: pruned(vocab_size=99), {}, "the model embeds 99"),
        (pruned, {"quantize": "Q8"}, "did you mean 'Q8_0'"),
        (pruned, {"tokenizer": None}, "holds the tokenizer"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(model, options, message, tmp_path):
    options = {"tokenizer": byte_level(), **options}
    with pytest.raises(ValueError, match=message):
        export_gguf(model(), tmp_path / "m.gguf", disable_tqdm=True, **options)
    assert not list(tmp_path.iterdir())


def test_kinds_of_llama_cpp_without_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError, match="pip install llama-cpp-python"):
        export_gguf(pruned(), tmp_path / "m.gguf", tokenizer=byte_level(), quantize="Q4_K_M", disable_tqdm=True)


# --- llama.cpp itself -----------------------------------------------------------------------------------------------


@pytest.mark.engines
@pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python, which takes long to build"
)
@pytest.mark.parametrize("kind", PLANS)
def test_llama_cpp_answers_the_same(kind, tmp_path):
    import llama_cpp

    model, tokenizer = pruned(kind), byte_level()
    path = export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer, disable_tqdm=True)
    engine = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    text = "the other 12 themes, and the rest"
    ids = tokenizer(text)["input_ids"]
    assert engine.tokenize(text.encode(), add_bos=False, special=True) == ids
    engine.eval(ids)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
        greedy = model.generate(
            torch.tensor([ids[:9]]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    found = torch.tensor(np.array(engine.scores[: len(ids)]))
    assert (found - expected).abs().max() < 1e-2 * (expected.max() - expected.min())
    engine.reset()
    written = engine.generate(ids[:9], temp=0.0, repeat_penalty=1.0)
    assert [next(written) for _ in range(12)] == greedy[0, 9:].tolist()
