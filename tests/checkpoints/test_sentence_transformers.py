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
"""A `SentenceTransformer` is scored, cut, trained, saved and loaded with its transformer cut."""

import pytest
import torch
from models import random_plan, tiny_config
from transformers import AutoModel, BertTokenizerFast

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, score_groups


pytestmark = pytest.mark.once  # sentence-transformers wants transformers 5
TEXTS = ["w1 w2 w3", "w4 w5", "w9 w8 w7 w1", "w2"]


@pytest.fixture
def dense(tmp_path):
    from sentence_transformers import SentenceTransformer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(90))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config("bert")).save_pretrained(tmp_path / "dense")
    BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=16).save_pretrained(tmp_path / "dense")
    return SentenceTransformer(str(tmp_path / "dense"), device="cpu")


def embeddings(model):
    return torch.tensor(model.encode(TEXTS))


def loss(model, batch):
    found = model(batch)["sentence_embedding"]
    return torch.cosine_similarity(found[::2], found[1::2]).mean()


@pytest.mark.parametrize("method", ["smooth_cut", "taylor"])
def test_it_is_scored_by_a_loss_on_pairs(dense, method):
    batches = [dict(dense.tokenizer(TEXTS, padding=True, return_tensors="pt"))]
    config = PruningConfig(method=method, sparsity=0.5, smooth_samples=2)
    groups = find_groups(dense)
    scores = score_groups(dense, groups, batches, config, loss_function=loss, disable_tqdm=True)
    before, size = embeddings(dense), sum(p.numel() for p in dense.parameters())
    apply_plan(dense, make_plan(scores, groups, config))
    assert sum(p.numel() for p in dense.parameters()) < size
    assert not torch.allclose(embeddings(dense), before, atol=1e-4)


def test_it_trains_saves_and_loads(dense, tmp_path):
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    apply_plan(dense, random_plan(dense[0].auto_model, 0))
    before = embeddings(dense)
    dense.save_pretrained(str(tmp_path / "cut"))
    loaded = SentenceTransformer(str(tmp_path / "cut"), trust_remote_code=True, device="cpu")
    assert torch.equal(embeddings(loaded), before)
    assert torch.equal(embeddings(SentenceTransformer(str(tmp_path / "cut"), device="cpu")), before)

    rows = {"sentence1": TEXTS, "sentence2": TEXTS[::-1], "score": [0.1, 0.9, 0.2, 0.8]}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, learning_rate=1e-2, report_to="none", use_cpu=True
    )
    trainer = SentenceTransformerTrainer(
        model=loaded, args=arguments, train_dataset=Dataset.from_dict(rows), loss=CosineSimilarityLoss(loaded)
    )
    trainer.train()
    trained = embeddings(loaded)
    assert not torch.allclose(trained, before, atol=1e-4)
    trainer.save_model(str(tmp_path / "trained"))
    again = SentenceTransformer(str(tmp_path / "trained"), trust_remote_code=True, device="cpu")
    assert torch.equal(embeddings(again), trained)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in dense.parameters())
