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
"""The examples that a trainer scores and rebuilds on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.utils import is_datasets_available

from ..config import PruningConfig


def draw_examples(dataset: Any, count: int, seed: int) -> list[Any]:
    """Those that `DataFrame.sample(count, random_state=seed)` of pandas draws, longest first; of a stream, the first.

    Args:
        dataset: with items by index and a length, or to iterate over.
        count: as many as there are, at most.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        examples = [example for _, example in zip(range(count), dataset)]
    else:
        chosen = np.random.RandomState(seed).permutation(len(dataset))[:count]
        examples = [dataset[index] for index in chosen.tolist()]
    if examples and isinstance(examples[0], dict) and "input_ids" in examples[0]:
        examples.sort(key=lambda example: len(example["input_ids"]), reverse=True)  # little padding
    return examples


def scoring_dataloader(trainer: Trainer, config: PruningConfig) -> DataLoader[Any]:
    """The examples of a trainer to score on; see `CamCutTrainer.get_scoring_dataloader`.

    Raises:
        `ValueError`: there is no training set.
    """
    dataset, collator = trainer.train_dataset, trainer.data_collator
    if dataset is None:
        raise ValueError(
            f"train_dataset is None, and method={config.method!r} with recovery={config.recovery!r} reads "
            "training examples: give a train_dataset, or override get_scoring_dataloader"
        )
    if is_datasets_available():
        import datasets

        if isinstance(dataset, datasets.Dataset):
            dataset = trainer._remove_unused_columns(dataset, description="scoring")
        else:
            collator = trainer._get_collator_with_removed_columns(collator, description="scoring")
    # A generator of its own: reading must not move the random state that training goes on from.
    return DataLoader(
        draw_examples(dataset, config.num_samples, config.seed),  # type: ignore[arg-type]  # a list is one, too
        batch_size=trainer.args.per_device_train_batch_size,
        collate_fn=collator,
        generator=torch.Generator().manual_seed(config.seed),
    )
