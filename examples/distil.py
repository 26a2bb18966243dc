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
"""Cut a fine-tuned classifier to a half of its measured time, and train it with the dense model as its teacher.

    python examples/distil.py --speedup 2 --output outputs/distilled

The teacher is the model as it was before the cut: the trainer keeps a copy.
"""

import argparse

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, TrainingArguments

from optimum_camcut import CamCutTrainer, PruningConfig


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="distilbert/distilbert-base-uncased-finetuned-sst-2-english")
parser.add_argument("--speedup", type=float, default=2.0, help="on this machine, 8 x 128 tokens")
parser.add_argument("--distill_weight", type=float, default=0.9, help="of the teacher in the loss")
parser.add_argument("--epochs", type=float, default=2.0)
parser.add_argument("--output", required=True, help="folder to write")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32)
data = load_dataset("nyu-mll/glue", "sst2")
data = data.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=128), batched=True)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


config = PruningConfig(
    sparsity=1 - 1 / options.speedup,
    budget="latency",  # the sparsity is of the time, which is measured once and kept in a cache
    multiple_of=16,  # sizes that hardware likes
    recovery="reconstruct+finetune",
    distill_weight=options.distill_weight,
)
trainer = CamCutTrainer(
    model=model,
    args=TrainingArguments(options.output, num_train_epochs=options.epochs, learning_rate=1e-4, report_to="none"),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    processing_class=tokenizer,
    compute_metrics=accuracy,
    pruning_config=config,
)
print("before:", trainer.evaluate())
trainer.train()
print("after:", trainer.evaluate())
trainer.save_model()
