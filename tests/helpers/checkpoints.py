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
"""Pruned models, and what is in the files of a checkpoint."""

import json

import torch
import transformers
from models import VOCABULARY, random_plan, tiny_batch, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from optimum_camcut import apply_plan


FILES = {"config.json", "model.safetensors", "pruning_plan.json", "modeling_camcut.py", "README.md"}


def logits(model):
    with torch.no_grad():
        return model(**tiny_batch(labels=False)).logits


def pruned_model(architecture="bert", seed=1, **changes):
    model = tiny_model(architecture, seed=seed, **changes)
    return apply_plan(model, random_plan(model, seed))


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def tokenizer():
    """One word a token: w0, w1, ..."""
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    model = Tokenizer(WordLevel(words, unk_token="[PAD]"))
    model.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[PAD]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=model, model_input_names=["input_ids", "attention_mask"], model_max_length=64, **names
    )


class OfTheUsersOwn(transformers.BertForSequenceClassification):
    pass
