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
"""`Embedder`: what a `SentenceTransformer` does behind its transformers model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checkpoints.stored import find
from ..reporting.card import SENTENCES_NAME


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Embedder(nn.Module):
    """Makes sentence embeddings of what the transformers model of a `SentenceTransformer` gives, by the modules that
    come behind it: pooling, and others. These are used and saved as they are, not trained.

    Args:
        whole (`SentenceTransformer`): around the model.

    Raises:
        `ValueError`: it does not begin with a transformers model that gives an embedding a token.

    Attributes:
        prompt (`str`): its default prompt, before every text.
    """

    def __init__(self, whole: SentenceTransformer) -> None:
        super().__init__()
        first: Any = whole[0]
        params = first.modality_config.get("text") if isinstance(first, Transformer) else None
        if params is None or params["method"] != "forward" or first.module_output_name != "token_embeddings":
            modules = ", ".join(type(module).__name__ for module in whole)
            raise ValueError(
                "feature-extraction wants a SentenceTransformer that begins with a transformers model of text, which "
                f"gives an embedding for every token; this one has {modules}"
            )
        names = params["method_output_name"] or ()
        self.names = (names,) if isinstance(names, str) else tuple(names)
        self.behind = nn.ModuleList(list(whole)[1:]).eval().requires_grad_(False)
        self.prompt = whole.prompts.get(whole.default_prompt_name or "") or ""
        self.features: dict[str, Any] = {}  # of the texts, beside what the model reads
        self.width = whole.truncate_dim
        self.parts = (whole,)  # in a tuple, so that its model is not a part of this module
        self._measure_prompt()
        if whole.similarity_fn_name not in (None, "cosine"):
            logger.info("embeddings are compared by their cosine; the model says %s", whole.similarity_fn_name)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts[0].tokenizer

    def use(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts a tokenizer in the place of its own."""
        self.parts[0].tokenizer = tokenizer
        self._measure_prompt()

    def _measure_prompt(self) -> None:
        first: Any = self.parts[0][0]
        if self.prompt:
            length = first.preprocess([""], prompt=self.prompt).get("prompt_length")
            self.features = {} if length is None else {"prompt_length": length}

    def forward(self, outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of shape `(rows, width)`.

        Args:
            outputs: of the transformers model.
            inputs: of the same, by name.
        """
        tokens = outputs
        for name in self.names:
            tokens = tokens[name]
        features = {**inputs, **self.features, "token_embeddings": tokens}
        if outputs.get("hidden_states"):
            features["all_layer_embeddings"] = outputs["hidden_states"]
        for module in self.behind:
            features = module(features)
        return features["sentence_embedding"][..., : self.width]

    def save(self, folder: str) -> None:
        """Makes a `SentenceTransformer` of a folder that has the transformers model and its tokenizer."""
        whole = self.parts[0]
        first: Any = whole[0]
        first.save = lambda path, **_: first.save_config(path)
        try:
            whole.save(folder, create_model_card=False)
        finally:
            del first.save


def load_embedder(name: str, model: PreTrainedModel, revision: str | None = None) -> Embedder:
    """What a `SentenceTransformer` does behind its transformers model, which is loaded already: sentence-transformers
    does not know how to load one that was cut, but by running the code in its folder.

    Args:
        name: a folder or a Hub id, of a `SentenceTransformer`; or of a plain encoder, which gets a pooling.
        model: as loaded from there.
        revision: on the Hub.

    Raises:
        `ValueError`: the modules are classes of the folder's own, or do not begin with a transformers model of text;
            or that has an encoder and a decoder.
    """
    kind = type(model).__name__
    if model.config.is_encoder_decoder or kind.endswith("EncoderModel"):
        raise ValueError(
            f"feature-extraction takes encoders and decoders, and {name} is a {kind}: of a model with both, "
            "sentence-transformers loads the encoder by a class of its own, which no smaller one fits"
        )
    with _without_loading(model):
        whole = SentenceTransformer(name, device=str(model.device), revision=revision)
    if find(name, SENTENCES_NAME, {"revision": revision} if revision else {}) is None:
        logger.info(
            "%s is no SentenceTransformer: its tokens get the pooling %r, as sentence-transformers has it for such",
            name,
            whole[1].pooling_mode if len(whole) > 1 else None,
        )
    return Embedder(whole)


@contextmanager
def _without_loading(model: PreTrainedModel) -> Iterator[None]:
    """While `Transformer` takes this model in place of one that it loads."""
    own = Transformer._load_model
    Transformer._load_model = lambda *_, **__: model
    try:
        yield
    finally:
        Transformer._load_model = own
