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
"""`CamCutEmbeddingTrainer`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from ..search.divergence import distillation_loss
from .checks import require_config
from .sampling import scoring_dataloader
from .trainer import CamCutTrainer


if TYPE_CHECKING:
    from ..tasks.embedder import Embedder


class CamCutEmbeddingTrainer(CamCutTrainer):
    """`CamCutTrainer` of a transformers model that makes sentence embeddings: by the error of the cosine of pairs.

    A batch has two rows a pair, one after the other, each with the label of the pair. A row counts as an example where
    a model is scored: `num_samples=512` draws 256 pairs.

    Args:
        embedder (`Embedder`): makes embeddings of what the model gives. It is not trained, and saved with the model.
        positional, kwargs: those of `CamCutTrainer`.
    """

    def __init__(self, *positional: Any, embedder: Embedder, **kwargs: Any) -> None:
        super().__init__(*positional, **kwargs)
        self.embedder = embedder.to(self.args.device)
        self.label_names = ["labels"]  # the model itself takes none

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The mean of the squared error of the cosines; as outputs, the cosines: `(pairs,)`.

        Raises:
            `ValueError`: a row without the other of its pair.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if len(labels) % 2:
            raise ValueError(
                f"a batch should hold two rows a pair, and this has {len(labels)}: where memory was short and a batch "
                "was halved, give a --batch_size that is a power of 2; and num_samples should be 2 or more"
            )
        embeddings = self.embedder(model(**inputs), inputs).float()
        cosines = functional.cosine_similarity(embeddings[::2], embeddings[1::2])
        loss = functional.mse_loss(cosines, labels[::2].to(cosines.dtype))
        return (loss, {"loss": loss, "logits": cosines}) if return_outputs else loss

    def compute_distillation_loss(self, outputs: Any, taught: Any, inputs: dict[str, Any]) -> Tensor:
        """Twice what the cosine of the embeddings of both models lacks to 1, and how far their hidden states are
        apart."""
        given = []
        for each in (outputs, taught):
            embeddings = functional.normalize(self.embedder(each, inputs).float(), dim=-1)
            given.append({"logits": embeddings * embeddings.shape[-1] ** 0.5, "hidden_states": each["hidden_states"]})
        return distillation_loss(given[0], given[1], 1.0, inputs.get("attention_mask"), "numbers")

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Any, Any]:
        """That of `CamCutTrainer`, with one label a pair."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        return loss, logits, None if labels is None else labels[::2]

    def get_scoring_dataloader(self) -> DataLoader[Any]:
        """That of `CamCutTrainer`, of half as many pairs as `num_samples`."""
        config = require_config(self)
        return scoring_dataloader(self, dataclasses.replace(config, num_samples=max(config.num_samples // 2, 1)))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """That of `Trainer`; the folder becomes a whole `SentenceTransformer`."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.embedder.save(output_dir or self.args.output_dir)
