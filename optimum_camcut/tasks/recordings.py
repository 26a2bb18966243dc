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
"""Recordings: read from files, and made inputs of a model by its feature extractor."""

from __future__ import annotations

import inspect
import logging
from io import BytesIO
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from .media import MediaTask


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class RecordingTask(MediaTask):
    """Recordings of whatever rate and channels: as one channel, of the rate that the model's feature extractor wants.
    What is done to them is said once."""

    reads = "recording"
    processor = "AutoFeatureExtractor"
    texts = (("audio",), ("speech",), ("audio_path",), ("file_name",), ("file",), ("path",))

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        self.told: set[str] = set()
        super().__init__(*positional, **keywords)

    def fit_to(self, model: PreTrainedModel, processor: Any, max_length: int | None) -> None:
        """Reads the rows as a model and its processor want them.

        Raises:
            `ImportError`: a library that reads sound is missing.
        """
        try:
            import scipy.signal  # noqa: F401
            import soundfile  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f'{self.name} reads recordings with soundfile and scipy: pip install "optimum-camcut[audio]" ({error})'
            ) from error
        super().fit_to(model, processor, max_length)
        self.extractor = getattr(processor, "feature_extractor", processor)

    def decode(self, file: BytesIO) -> np.ndarray:
        """The samples in a file, of shape `(samples,)`, at the rate of the feature extractor."""
        import soundfile
        from scipy.signal import resample_poly

        sound, rate = soundfile.read(file, dtype="float32", always_2d=True)
        wanted = self.extractor.sampling_rate
        if sound.shape[1] > 1:
            self.tell(f"recordings of {sound.shape[1]} channels are made one, their mean")
        sound = sound.mean(1)
        if rate != wanted:
            self.tell(f"recordings at {rate} Hz are resampled to {wanted} Hz, as the model wants them")
            common = gcd(rate, wanted)
            sound = resample_poly(sound, wanted // common, rate // common).astype(np.float32)
        return sound

    def tell(self, what: str) -> None:
        """Says something once."""
        if what not in self.told:
            self.told.add(what)
            logger.info(what)

    def inputs(self, contents: list[Any]) -> dict[str, Tensor]:
        padding = inspect.signature(type(self.extractor).__call__).parameters.get("padding")
        own = padding is None or padding.default is not False  # some pad to a length of their own
        rate = self.extractor.sampling_rate
        return dict(
            self.extractor(contents, sampling_rate=rate, return_tensors="pt", **({} if own else {"padding": True}))
        )
