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
"""Fine-tune a classifier, cut half of its heads and neurons, and train what is left, in one `train()`.

    python examples/prune_classifier.py --output outputs/classifier

The model is loaded again with `load_pruned(OUTPUT)`; OUTPUT/report.html shows what was removed.
"""

import argparse

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, TrainingArguments

from optimum_camcut import CamCutTrainer, PruningConfig


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="google-bert/bert-base-uncased", help="folder or Hub id")
parser.add_argument("--sparsity", type=float, default=0.5, help="the part to remove")
parser.add_argument("--output", required=True, help="folder to write")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype=torch.float32)
data = load_dataset("nyu-mll/glue", "sst2")
data = data.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=128), batched=True)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


trainer = CamCutTrainer(
    model=model,
    args=TrainingArguments(options.output, num_train_epochs=2, learning_rate=3e-5, report_to="none"),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    processing_class=tokenizer,  # saved with the model
    compute_metrics=accuracy,
    # Fine-tune for one epoch; score, cut and rebuild; then train for the two epochs above.
    # Of a model that is fine-tuned already, leave `dense_epochs` out.
    pruning_config=PruningConfig(sparsity=options.sparsity, dense_epochs=1, recovery="reconstruct+finetune"),
)
trainer.train()
print(trainer.pruning_plan)  # what was kept in every layer
print(trainer.evaluate())
trainer.save_model()
