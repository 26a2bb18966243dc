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
"""Tasks whose models write text: how labels are padded, and how what was written is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .task import IGNORED


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction

logger = logging.getLogger(__name__)

CUT = "cut"  # the column of whether a text to write was cut


def tell_cut(number: int, rows: int, length: int) -> None:
    """Says that texts to write were cut to a number of tokens."""
    if number:
        logger.warning(
            "%d of %d texts to write are cut to %d tokens (generation_max_length in the section training); what the "
            "model writes is measured against the whole ones",
            number,
            rows,
            length,
        )


def padded(labels: Sequence[Sequence[int]]) -> Tensor:
    """Labels as `torch.Tensor` of shape `(batch, longest)`; no loss counts what is added."""
    import torch

    rows = [torch.tensor(ids, dtype=torch.long) for ids in labels]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def decoded(tokenizer: Any, ids: np.ndarray, **options: Any) -> list[str]:
    """The texts of tokens of shape `(examples, tokens)`, without special ones; those below 0 are padding."""
    ids = np.where(ids < 0, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True, **options)]


def references(texts: Sequence[str], prediction: EvalPrediction) -> list[str]:
    """The texts of the rows that were predicted, as they are in the data.

    Raises:
        `ValueError`: they are not as many as the predictions.
    """
    if len(texts) != len(prediction.label_ids):
        raise ValueError(f"{len(prediction.label_ids)} rows were predicted of {len(texts)}")
    return [text.strip() for text in texts]
