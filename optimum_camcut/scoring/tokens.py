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
"""How often tokens are read or written: no loss and no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from ..architectures.groups import PrunableGroup, inner_model
from ..config import PruningConfig
from ..methods.registry import Scorer
from .batches import Batch
from .loss import CheckedLoss
from .sums import RunningSums
from .weights import EachBatch


def writes_tokens(model: PreTrainedModel) -> bool:
    """Whether labels are tokens."""
    return model.get_output_embeddings() is not None


def tokens_of(batch: Batch, writes: bool) -> Iterator[Tensor]:
    """The tokens of a batch, padding aside: int64 of shape `(tokens,)` each. A label that stands where its token is
    read counts once.

    Args:
        writes: labels are tokens, too.
    """
    labels = batch.get("labels") if writes else None
    for start in ("", "decoder_") if labels is None else ("",):  # a decoder reads what it writes
        ids = batch.get(f"{start}input_ids")
        if ids is not None:
            mask = batch.get(f"{start}attention_mask")
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.shape != ids.shape else mask > 0
            yield ids[real]
    if labels is not None:
        ids = batch.get("input_ids")  # none of images and of sound
        there = ids is not None and labels.shape == ids.shape
        yield labels[(labels >= 0) & ((labels != ids) | ~real if there else True)]


def score_tokens(
    model: PreTrainedModel,
    groups: list[PrunableGroup],
    each_batch: EachBatch,
    sums: RunningSums,
    config: PruningConfig,
    scorer: Scorer,
    loss_function: CheckedLoss,
) -> dict[str, Tensor]:
    """By how often each token is in the batches.

    Raises:
        `ValueError`: a token that the model has no embedding for.
    """
    (group,) = groups
    writes = writes_tokens(inner_model(model))
    sums.values.setdefault(group.name, torch.zeros(group.size, dtype=torch.float64))

    def score(pieces: Iterable[Batch]) -> Callable[[], None]:
        found = [ids.cpu() for piece in pieces for ids in tokens_of(piece, writes)]
        tokens = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < group.size:
            raise ValueError(
                f"the batches hold the token {int(tokens.max())}, and the model has embeddings for {group.size}: they "
                "were made by another tokenizer, or by this one before it was trimmed"
            )
        counts = scorer.function(tokens, group.size)
        return lambda: sums.add(group.name, counts.double())

    each_batch(score)
    return {group.name: sums.reduce(PartialState().device)[group.name].float()}
