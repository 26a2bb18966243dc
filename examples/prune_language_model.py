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
"""Prune a causal language model and train what is left on text.

    python examples/prune_language_model.py --model openai-community/gpt2 --sparsity 0.3 --output outputs/gpt2

Perplexity is printed before and after; then the pruned model writes a line.
"""

import argparse
import math

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments

from optimum_camcut import CamCutTrainer, PruningConfig


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="openai-community/gpt2", help="folder or Hub id")
parser.add_argument("--sparsity", type=float, default=0.3, help="the part to remove")
parser.add_argument("--prompt", default="the first city", help="what the pruned model goes on from")
parser.add_argument("--output", required=True, help="folder to write")
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # decoders are trained without one
model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
data = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1")
data = data.map(lambda row: tokenizer(row["text"], truncation=True, max_length=128), remove_columns=["text"])
data = data.filter(lambda row: len(row["input_ids"]) > 1)  # there are empty lines

trainer = CamCutTrainer(
    model=model,
    args=TrainingArguments(options.output, num_train_epochs=1, learning_rate=5e-5, report_to="none"),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
    pruning_config=PruningConfig(sparsity=options.sparsity, recovery="reconstruct+finetune"),
)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
print(f"perplexity {math.exp(before):.1f} before, {math.exp(after):.1f} after")
trainer.save_model()

inputs = tokenizer(options.prompt, return_tensors="pt").to(trainer.model.device)
written = trainer.model.generate(**inputs, max_new_tokens=20, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(written[0], skip_special_tokens=True))
