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
"""Trainers of tiny models, on sequences with something to learn in them."""

import torch
import transformers
from datasets import Dataset
from models import TOKENS, VOCABULARY, tiny_model
from transformers import TrainerCallback, TrainingArguments

from optimum_camcut import CamCutTrainer, PruningConfig, find_groups


def examples(count=48, seed=0):
    """Sequences of different lengths whose class shows in their tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        length = 4 + index % (TOKENS - 4)
        label = index % 3
        ids = torch.randint(3 + 32 * label, 35 + 32 * label, (length,), generator=generator).clamp(max=VOCABULARY - 1)
        pad = TOKENS - length
        rows.append(
            {
                "input_ids": ids.tolist() + [0] * pad,
                "attention_mask": [1] * length + [0] * pad,
                "labels": label,
            }
        )
    return Dataset.from_list(rows)


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 2,
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **changes})


def make_trainer(folder, config=None, model=None, **changes):
    keywords = {name: changes.pop(name) for name in ("callbacks", "compute_metrics", "model_init") if name in changes}
    if "model_init" not in keywords:
        keywords["model"] = model or tiny_model("bert")
    data = changes.pop("train_dataset", examples())
    return CamCutTrainer(
        args=arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=examples(24, seed=1),
        pruning_config=config,
        **keywords,
    )


def pruning(**changes):
    return PruningConfig(**{"method": "taylor", "sparsity": 0.5, "num_samples": 40, "smooth_samples": 2, **changes})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def sizes(model):
    return {group.name: group.size for group in find_groups(model)}


class Interrupt(TrainerCallback):
    """Ends the process's training at a step of the nth call of the training loop, as a kill would."""

    def __init__(self, loop, step):
        self.left, self.step = loop, step

    def on_train_begin(self, args, state, control, **kwargs):
        self.left -= 1

    def on_step_end(self, args, state, control, **kwargs):
        if self.left == 0 and state.global_step == self.step:
            raise KeyboardInterrupt


class Minimal(transformers.BertPreTrainedModel):
    """Its forward knows none of the keywords that ask for more."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.classifier = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.classifier(self.bert(input_ids, attention_mask)[0][:, 0])
        loss = torch.nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)


class Elsewhere(Minimal):
    """Its body has a name that no class of transformers looks for."""

    base_model_prefix = "body"

    def __init__(self, config):
        super().__init__(config)
        self.body = self.bert
        del self.bert

    def forward(self, input_ids, attention_mask=None, labels=None):
        self.__dict__["bert"] = self.body
        return super().forward(input_ids, attention_mask, labels)
