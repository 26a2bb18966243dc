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
"""Cut a fine-tuned model in five calls, without training: find the units, score them, plan, cut, rebuild.

    python examples/prune_without_training.py --output outputs/untrained

Scoring needs a few hundred examples with labels; the rebuild, by least squares, needs no labels.
"""

import argparse
import copy

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups
from optimum_camcut.measure import count_parameters


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="distilbert/distilbert-base-uncased-finetuned-sst-2-english")
parser.add_argument("--sparsity", type=float, default=0.5, help="the part to remove")
parser.add_argument("--num_samples", type=int, default=512, help="examples to score and rebuild on")
parser.add_argument("--output", required=True, help="folder to write")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32).eval()
rows = load_dataset("nyu-mll/glue", "sst2", split="train").shuffle(seed=0)
rows = rows.select(range(min(options.num_samples, len(rows))))
rows = rows.map(lambda row: tokenizer(row["sentence"], truncation=True), remove_columns=["sentence", "idx"])
batches = DataLoader(rows, batch_size=32, collate_fn=DataCollatorWithPadding(tokenizer))

dense = copy.deepcopy(model)
config = PruningConfig(sparsity=options.sparsity)

groups = find_groups(model)  # the heads and the neurons of every layer
scores = score_groups(model, groups, batches, config)  # how much each matters
plan = make_plan(scores, groups, config)  # which stay
apply_plan(model, plan)  # removes the others from `model`
reconstruct(model, dense, plan, batches)  # fits what is left to the outputs of `dense`

print(plan)
print(f"{count_parameters(dense):,} parameters before, {count_parameters(model):,} now")
model.save_pretrained(options.output)
tokenizer.save_pretrained(options.output)
