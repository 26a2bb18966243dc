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
from models import random_plan, tiny_batch, tiny_model

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


class OfTheUsersOwn(transformers.BertForSequenceClassification):
    pass
