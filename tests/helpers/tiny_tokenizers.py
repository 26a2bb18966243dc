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
"""Small tokenizers of every kind, trained on a few sentences, as transformers has them."""

import itertools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


SUBJECTS = ("the cat", "a small dog", "our neighbour", "the old painter", "nobody")
VERBS = ("watches", "has painted", "would not believe", "is looking for", "unbuttoned")
OBJECTS = ("the yellow house.", "three fishermen!", "an overcoat, 42 buttons.", "her naïve brother?", "it again.")
TEXTS = [" ".join(words) for words in itertools.product(SUBJECTS, VERBS, OBJECTS)]
STRANGE = [
    "painterly catwatchers rebuttoned",
    "Ünïcode 漢字 and Ωμέγα, 1234567890 \N{GRINNING FACE}",
    "  two  spaces\tand a tab\nand a line ",
    "xyzzy qqq jjj zzz",
]
SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
AROUND = {**SPECIAL, "bos_token": "<s>", "eos_token": "</s>"}
NAMES = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
KINDS = ("wordpiece", "byte_bpe", "sentencepiece_bpe", "unigram", "suffix_bpe")


def letters() -> list[str]:
    """Characters that every tokenizer knows."""
    return sorted(
        {*"abcdefghijklmnopqrstuvwxyz0123456789.,!?"} | {each for text in TEXTS for each in text if each != " "}
    )


def tiny_tokenizer(kind: str, size: int = 300) -> PreTrainedTokenizerFast:
    """Trained on `TEXTS`; the special tokens come first, but the mask, which comes last."""
    common: dict = {"vocab_size": size, "special_tokens": NAMES[:-1], "show_progress": False}
    if kind == "wordpiece":
        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common, initial_alphabet=letters())
    elif kind == "byte_bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            **{**common, "vocab_size": size + 256}, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    elif kind == "sentencepiece_bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        each_byte = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            **{**common, "vocab_size": size + 256, "special_tokens": [*NAMES[:-1], *each_byte]}
        )
    elif kind == "suffix_bpe":
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.BPEDecoder("</w>")
        trainer = trainers.BpeTrainer(**common, end_of_word_suffix="</w>", initial_alphabet=letters())
    else:
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**common, unk_token="<unk>", initial_alphabet=letters())
    tokenizer.train_from_iterator(TEXTS, trainer)
    if kind == "sentencepiece_bpe":
        tokenizer = _bytes_as_tokens(tokenizer)
    tokenizer.add_special_tokens(["<mask>"])  # behind all others, and in no vocabulary of the model inside
    ids = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    tokenizer.post_processor = (
        processors.BertProcessing(*ids)
        if kind == "wordpiece"
        else processors.RobertaProcessing(*ids)
        if kind == "byte_bpe"
        else processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ids)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **AROUND)


def _bytes_as_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Bytes are ordinary tokens: as special ones they would be read in texts."""
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(data))
