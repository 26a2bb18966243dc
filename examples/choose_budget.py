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
"""Choose a method and a budget: cut a fine-tuned model in several ways, and compare accuracy and time.

    python examples/choose_budget.py --methods smooth_cut taylor --sparsities 0.3 0.5 0.7 --output outputs/compare

Nothing is trained. OUTPUT gets a table in JSON and in Markdown.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from optimum_camcut import PruningConfig, compare


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="distilbert/distilbert-base-uncased-finetuned-sst-2-english")
parser.add_argument("--methods", nargs="+", default=["smooth_cut", "cam_cut", "taylor", "fisher"])
parser.add_argument("--sparsities", nargs="+", type=float, default=[0.3, 0.5, 0.7])
parser.add_argument("--budget", default="flops", help="what a sparsity is a fraction of: params, flops or latency")
parser.add_argument("--output", type=Path, required=True, help="folder to write")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32).eval()
data = load_dataset("nyu-mll/glue", "sst2")
data = data.map(lambda row: tokenizer(row["sentence"], truncation=True), remove_columns=["sentence", "idx"])
train, validation = (
    DataLoader(data[split], batch_size=32, collate_fn=DataCollatorWithPadding(tokenizer))
    for split in ("train", "validation")
)


@torch.no_grad()
def accuracy(model: PreTrainedModel) -> float:
    right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in validation]
    return float(torch.cat(right).float().mean())


result = compare(
    model,  # stays as it is: copies are cut
    train,  # scored and rebuilt on `num_samples` of its examples
    accuracy,
    PruningConfig(sparsity=0.5, budget=options.budget, num_samples=512),  # its method and sparsity are not used
    methods=options.methods,
    sparsities=options.sparsities,
    recovery="reconstruct",
)
print(result)
options.output.mkdir(parents=True, exist_ok=True)
result.save(options.output / "comparison.json")
(options.output / "comparison.md").write_text(result.to_markdown() + "\n")
# result.rows[2].plan is what was kept in the third row: apply_plan(model, plan) does it to the model.
