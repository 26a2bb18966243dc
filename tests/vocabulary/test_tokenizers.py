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
"""A tokenizer without some of its tokens: the same text, the same tokens; any other text can still be written."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import AROUND, KINDS, STRANGE, TEXTS, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from optimum_camcut import PruningPlan, trim_tokenizer, with_tokenizer
from optimum_camcut.vocabulary.numbers import IGNORED, Renumbering
from optimum_camcut.vocabulary.pieces import Pieces
from optimum_camcut.vocabulary.trim import count_tokens, encoded


BARE = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
MADE = {kind: tiny_tokenizer(kind) for kind in KINDS}


def counts_of(tokenizer, texts):
    counts = torch.zeros(len(tokenizer))
    for ids in encoded(tokenizer, texts):
        counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=len(counts))
    return counts


def plan_for(tokenizer, scores, keep=None):
    """Keeps the tokens that score above 0, or so many of the best."""
    scores = with_tokenizer({"vocabulary": scores}, tokenizer)["vocabulary"]
    best = scores.argsort(descending=True, stable=True)
    count = int((scores > 0.5).sum()) if keep is None else max(keep, int(scores.isinf().sum()))
    return PruningPlan({"vocabulary": sorted(best[:count].tolist())}, {"vocabulary": len(scores)})


def check_same(old, new, keep, texts):
    """Texts whose tokens all stay get the same ones, by new numbers, and so does what stands around them."""
    keep, found = list(keep), 0
    for text in texts:
        before, after = old(text)["input_ids"], new(text)["input_ids"]
        if set(before) <= set(keep):
            found += 1
            assert [keep[number] for number in after] == before
            assert new.convert_ids_to_tokens(after) == old.convert_ids_to_tokens(before)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_the_data_gets_the_same_tokens(kind):
    old, texts = MADE[kind], TEXTS[:60]
    plan = plan_for(old, counts_of(old, texts))
    new = trim_tokenizer(old, plan, texts)
    assert len(plan.keep["vocabulary"]) == len(new) < len(old)
    assert check_same(old, new, plan.keep["vocabulary"], texts) == 60
    keep = plan.keep["vocabulary"]
    pair = new(texts[0], texts[1])["input_ids"]
    assert [keep[number] for number in pair] == old(texts[0], texts[1])["input_ids"]
    for name in AROUND:
        assert getattr(new, name) == getattr(old, name)
        assert keep[getattr(new, f"{name}_id")] == getattr(old, f"{name}_id")
    assert type(new) is type(old) and len(old) == len(MADE[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_can_still_be_written(kind):
    old = MADE[kind]
    new = trim_tokenizer(old, plan_for(old, counts_of(old, TEXTS[:10])))
    for text in [*TEXTS, *STRANGE]:
        before, after = old(text, add_special_tokens=False), new(text, add_special_tokens=False)
        assert new.decode(after["input_ids"]) == old.decode(before["input_ids"])
        unknown = before["input_ids"].count(old.unk_token_id), after["input_ids"].count(new.unk_token_id)
        assert unknown[0] == unknown[1]
    others = TEXTS[60:]
    assert count_tokens(new, others) > count_tokens(old, others) == int(counts_of(old, others).sum())


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1))
@settings(max_examples=8, deadline=None)
def test_whatever_stays(kind, seed, share):
    old = MADE[kind]
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(old)).astype(np.float32))
    plan = plan_for(old, scores, keep=int(share * len(old)))
    new = trim_tokenizer(old, plan, [*TEXTS[::7], *STRANGE])  # raises if a text of which all stays has other tokens
    keep = list(plan.keep["vocabulary"])
    check_same(old, new, keep, [*TEXTS[::5], *STRANGE])
    assert [new.convert_ids_to_tokens(number) for number in range(len(new))] == old.convert_ids_to_tokens(keep)
    for text in [*TEXTS[::9], *STRANGE]:
        assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    old, texts = MADE[kind], TEXTS[:20]
    plan = plan_for(old, counts_of(old, texts))
    new = trim_tokenizer(old, plan)
    new.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))):
        encode = loaded.encode
        for text in [*texts, *STRANGE]:
            ids = encode(text)
            assert (ids if isinstance(ids, list) else ids.ids) == new(text)["input_ids"]
    assert (
        trim_tokenizer(old, PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))).get_vocab()
        == new.get_vocab()
    )


@pytest.mark.parametrize(
    ("name", "kind", "special"),
    [
        ("BertTokenizerFast", "wordpiece", AROUND),
        ("RobertaTokenizerFast", "byte_bpe", AROUND),
        ("T5TokenizerFast", "unigram", {**BARE, "extra_ids": 5}),
        ("XLMRobertaTokenizerFast", "unigram", AROUND),
        ("GemmaTokenizerFast", "sentencepiece_bpe", {**BARE, "bos_token": "<s>"}),
    ],
)
def test_classes_of_transformers(name, kind, special, tmp_path):
    """Some make their tokenizer anew from what a folder holds, and put text between tokens by themselves."""
    MADE[kind].backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **special}))
    (tmp_path / "vocab.txt").write_text("of a slow tokenizer, which would number all of them")
    old, texts = AutoTokenizer.from_pretrained(tmp_path), TEXTS[:40]
    plan = plan_for(old, counts_of(old, texts))
    new = trim_tokenizer(old, plan, texts)
    assert type(new) is type(old) and new.name_or_path == old.name_or_path
    assert check_same(old, new, plan.keep["vocabulary"], texts) == 40
    new.save_pretrained(tmp_path / "new")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new")
    for text in [*TEXTS[::4], *STRANGE]:
        assert loaded(text)["input_ids"] == new(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == old.decode(old(text)["input_ids"])


def toy():
    """`ab` and `abc` are merged; `bc` is, too, but later."""
    vocab = {token: number for number, token in enumerate(["a", "b", "c", "ab", "abc", "bc", "<unk>"])}
    merges = [("a", "b"), ("ab", "c"), ("b", "c")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_scores_keep_what_a_token_is_merged_from():
    scores = with_tokenizer({"vocabulary": torch.tensor([0.0, 0, 0, 0, 5, 3, 0, 0])}, toy())["vocabulary"].tolist()
    infinity = float("inf")
    assert scores[:3] == [infinity] * 3 and scores[6] == infinity  # letters, and what is unknown
    assert scores[4] == 5 < scores[3] < 5.001 and scores[5] == 3  # `ab` is what `abc` is made from, `bc` is not
    assert scores[7] == -1  # an embedding that no token has


def test_merges_go_with_their_tokens():
    new = trim_tokenizer(toy(), PruningPlan({"vocabulary": [0, 1, 2, 3, 4, 6]}, {"vocabulary": 7}))
    model = json.loads(new.backend_tokenizer.to_str())["model"]
    assert model["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "<unk>": 5}
    assert [list(pair) if not isinstance(pair, str) else pair.split() for pair in model["merges"]] == [
        ["a", "b"],
        ["ab", "c"],
    ]
    assert new.tokenize("abc bc") == ["abc", "b", "c"] and toy().tokenize("abc bc") == ["abc", "bc"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0, 1, 2, 4, 5, 6], "removes 'ab', which 'abc' is merged from"),
        ([0, 1, 3, 6], "removes 'c' (number 2), which the tokenizer cannot do without"),
        ([0, 1, 2, 3, 4], "removes '<unk>' (number 6)"),
    ],
)
def test_what_cannot_go_is_named(keep, message):
    with pytest.raises(ValueError) as error:
        trim_tokenizer(toy(), PruningPlan({"vocabulary": keep}, {"vocabulary": 7}))
    assert message in str(error.value) and "with_tokenizer(scores, tokenizer)" in str(error.value)


def test_rows_without_tokens():
    """As many models have, whose embeddings are a multiple of 64: behind the tokens they may stay."""
    new = trim_tokenizer(toy(), PruningPlan({"vocabulary": [0, 1, 2, 6, 7]}, {"vocabulary": 9}))
    assert new.get_vocab() == {"a": 0, "b": 1, "c": 2, "<unk>": 3}
    tokenizer = toy()
    tokenizer.add_tokens(["<image>"])  # which has no embedding: it stays behind those that have
    new = trim_tokenizer(tokenizer, PruningPlan({"vocabulary": [0, 1, 2, 6]}, {"vocabulary": 7}))
    assert new.convert_tokens_to_ids("<image>") == 4 and new.tokenize("a<image>b") == ["a", "<image>", "b"]


def test_a_plan_of_the_uncut_model_needs_its_tokenizer(tmp_path):
    """The numbers of a second plan are those of the uncut model, too: those of a trimmed tokenizer are others."""
    once = trim_tokenizer(toy(), PruningPlan({"vocabulary": [0, 1, 2, 5, 6]}, {"vocabulary": 7}))
    twice = PruningPlan({"vocabulary": [0, 1, 2, 6]}, {"vocabulary": 7})
    once.save_pretrained(tmp_path)
    again = trim_tokenizer(once, PruningPlan({"vocabulary": [0, 1, 2, 4]}, {"vocabulary": 5}))
    for trimmed in (once, again, AutoTokenizer.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="give the tokenizer of the uncut model"):
            trim_tokenizer(trimmed, twice)
    assert trim_tokenizer(toy(), twice).get_vocab() == {"a": 0, "b": 1, "c": 2, "<unk>": 3}
    # A checkpoint without a plan is an uncut model of its own.
    fewer = trim_tokenizer(once, PruningPlan({"vocabulary": [0, 1, 2, 4]}, {"vocabulary": 5}))
    assert fewer.get_vocab() == {"a": 0, "b": 1, "c": 2, "<unk>": 3}
    with pytest.raises(ValueError, match="give the tokenizer of the uncut model"):
        trim_tokenizer(fewer, PruningPlan({"vocabulary": [0, 1, 2]}, {"vocabulary": 5}))


def test_what_was_set_on_a_tokenizer_stays(tmp_path):
    toy().save_pretrained(tmp_path)
    old = AutoTokenizer.from_pretrained(tmp_path)
    old.padding_side = old.truncation_side = "left"
    old.model_max_length, old.chat_template = 2, "{{ 1 }}"
    new = trim_tokenizer(old, PruningPlan({"vocabulary": [0, 1, 2, 3, 6]}, {"vocabulary": 7}))
    assert (new.padding_side, new.truncation_side, new.model_max_length) == ("left", "left", 2)
    assert new.chat_template == "{{ 1 }}" and new("abc a b", truncation=True).input_ids == [0, 1]


def test_other_tokenizers_are_refused():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, "<unk>")))
    plan = PruningPlan({"vocabulary": [1]}, {"vocabulary": 2})
    with pytest.raises(ValueError, match="WordLevel tokenizer has no smaller tokens"):
        trim_tokenizer(words, plan)
    with pytest.raises(TypeError, match="fast tokenizer"):
        trim_tokenizer(object(), plan)
    with pytest.raises(ValueError, match="no group 'vocabulary'"):
        trim_tokenizer(toy(), PruningPlan({"layer.0.heads": [0]}))


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_written_out(kind):
    """Token by token, by others that are there: the same text, and what stands for a token goes with each of them."""
    old = MADE[kind]
    plan = plan_for(old, counts_of(old, TEXTS[:10]))
    new, numbers = trim_tokenizer(old, plan), Renumbering(old, plan.keep["vocabulary"], len(old), writes=True)
    gone = 0
    for text in TEXTS[60:]:
        ids = old(text)["input_ids"]
        each, words = [1] * len(ids), list(range(len(ids)))
        example = {"input_ids": ids, "labels": ids, "attention_mask": each, "token_type_ids": words}
        found = numbers.example(example, longest=1000)
        gone += found is not example
        assert set(found["input_ids"]) <= set(plan.keep["vocabulary"]) and found["labels"] == found["input_ids"]
        assert len(found["token_type_ids"]) == len(found["input_ids"]) == sum(found["attention_mask"])
        assert [ids[word] for word in dict.fromkeys(found["token_type_ids"])] == ids
        batch = numbers.batch({"input_ids": torch.tensor([found["input_ids"]])})
        assert new.decode(batch["input_ids"][0]) == old.decode(ids)
        assert numbers.back(batch["input_ids"])[0].tolist() == found["input_ids"]
        if kind == "wordpiece":  # where a word is all that matters, this is what the tokenizer does itself
            assert batch["input_ids"][0].tolist() == new(text)["input_ids"]
    assert gone > 0


def test_examples_that_go_by_places_stay():
    numbers = Renumbering(toy(), [0, 1, 2, 6], 7, writes=False)
    answer = {"input_ids": [4, 0], "start_positions": 1, "labels": [7, 8]}
    assert numbers.example(answer, 10) is answer
    tags = numbers.example({"input_ids": [4, 0], "labels": [7, 8]}, 10)
    assert tags == {"input_ids": [0, 1, 2, 0], "labels": [7, IGNORED, IGNORED, 8]}
    assert numbers.example({"input_ids": [4, 6]}, 3) == {"input_ids": [0, 1, 6]}  # the last is what ends a text
    batch = numbers.batch({"input_ids": torch.tensor([[4, 6]]), "labels": torch.tensor([[4, 6]])})
    assert batch["input_ids"].tolist() == [[0, 3]] and batch["labels"].tolist() == [[4, 6]]  # classes, here
    written = Renumbering(toy(), [0, 1, 2, 6], 7, writes=True).batch({"labels": torch.tensor([[4, 6, -100]])})
    assert written["labels"].tolist() == [[IGNORED, 3, IGNORED]]


def test_only_what_is_of_each_token_is_given_to_its_parts():
    numbers = Renumbering(toy(), [0, 1, 2, 6], 7)
    for name in ("position_ids", "words"):  # or what nobody knows
        example = {"input_ids": [4, 0], name: [0, 1]}
        assert numbers.example(example, 10) is example
    choices = {"input_ids": [[4, 0], [0, 1]], "labels": 1}
    assert numbers.example(choices, 10) is choices
    classes = numbers.example({"input_ids": [4, 0], "labels": [1.0, 0.0]}, 10)  # of as many classes as tokens
    assert classes == {"input_ids": [0, 1, 2, 0], "labels": [1.0, 0.0]}


def test_the_end_of_a_text_that_is_too_long_is_cut_off(caplog):
    numbers = Renumbering(toy(), [0, 1, 2, 6], 7, writes=True)
    found = numbers.example({"input_ids": [4, 0, 1], "labels": [4, 0, 1]}, 4)
    assert found == {"input_ids": [0, 1, 2, 0], "labels": [0, 1, 2, 0]}
    numbers.example({"input_ids": [4, 0, 6]}, 3)
    (told,) = caplog.messages
    assert "a text is now of 5 tokens, and the model takes 4: the last 1 are cut off" in told


def test_a_token_without_letters_stays():
    vocab = {token: number for number, token in enumerate(["a", "b", "ab", ""])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")])))
    assert with_tokenizer({"vocabulary": torch.zeros(4)}, tokenizer)["vocabulary"].isinf().tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_what_a_decoder_writes_is_a_text_of_its_own():
    numbers = Renumbering(toy(), [0, 1, 2, 6], 7, writes=True, apart=True)
    found = numbers.example({"input_ids": [0, 1], "attention_mask": [1, 1], "labels": [4, 6]}, 10)
    assert found == {"input_ids": [0, 1], "attention_mask": [1, 1], "labels": [0, 1, 2, 6]}
    with pytest.raises(ValueError, match="does not know how many tokens there were"):
        trim_tokenizer(toy(), PruningPlan({"vocabulary": [0, 1, 2, 6]}))


def test_letters_of_a_word_piece():
    pieces = Pieces.of(MADE["wordpiece"])
    assert pieces.letters("##ing") == ["##i", "##n", "##g"] and pieces.letters("cat") == ["c", "##a", "##t"]
    assert pieces.joined(["##i", "##n"]) == "##in" and pieces.joined(["c", "##a"]) == "ca"
    assert Pieces.of(MADE["suffix_bpe"]).letters("cat</w>") == ["c", "a", "t</w>"]
