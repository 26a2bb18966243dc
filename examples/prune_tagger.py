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
"""Prune a model that tags words (token classification): names, parts of speech.

    python examples/prune_tagger.py --output outputs/tagger

Only the data and the model's class differ from `prune_classifier.py`; it is the same for question answering.
"""

import argparse

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    TrainingArguments,
)

from optimum_camcut import CamCutTrainer, PruningConfig


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="google-bert/bert-base-cased", help="folder or Hub id")
parser.add_argument("--sparsity", type=float, default=0.5, help="the part to remove")
parser.add_argument("--output", required=True, help="folder to write")
options = parser.parse_args()

data = load_dataset("unimelb-nlp/wikiann", "en")
names = data["train"].features["ner_tags"].feature.names
tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForTokenClassification.from_pretrained(
    options.model, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, dtype=torch.float32
)


def encode(row: dict) -> dict:
    """The first token of a word has its tag; the others have -100, which the loss leaves out."""
    encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=128)
    words = encoded.word_ids()
    first = [word is not None and word != before for before, word in zip([None, *words], words)]
    return {**encoded, "labels": [row["ner_tags"][word] if new else -100 for new, word in zip(first, words)]}


data = data.map(encode, remove_columns=data["train"].column_names)
trainer = CamCutTrainer(
    model=model,
    args=TrainingArguments(options.output, num_train_epochs=2, learning_rate=3e-5, report_to="none"),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    data_collator=DataCollatorForTokenClassification(tokenizer),
    processing_class=tokenizer,
    pruning_config=PruningConfig(sparsity=options.sparsity, dense_epochs=1, recovery="reconstruct+finetune"),
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
