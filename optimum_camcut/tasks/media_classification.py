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
"""`image-classification` and `audio-classification`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .media import MediaTask
from .metrics import CLASSIFICATION
from .recordings import RecordingTask
from .task import first_output, register


if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import EvalPrediction, PreTrainedModel


class MediaClassification(MediaTask):
    """One class for each image or recording."""

    measured = CLASSIFICATION
    takes_metrics = True

    def find_classes(self) -> None:
        self._set_classes(self.rows.features[self.label_column], self.rows.unique(self.label_column))

    def encode_labels(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> list[int]:
        return list(map(self.to_class, rows[self.label_column], numbers))

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Tensor:
        return first_output(logits).argmax(-1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        return self.measure(self.of_data[prediction.predictions], self._true(prediction))

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        yield from self.measure_classes(self._true(prediction), self.measure)

    def _true(self, prediction: EvalPrediction) -> np.ndarray:
        return self.of_data[prediction.label_ids]


@register("image-classification")
class ImageClassification(MediaClassification):
    """Images, as the model's image processor makes them."""

    head, processor, reads = "ImageClassification", "AutoImageProcessor", "image"
    texts = (("image",), ("img",), ("image_path",), ("file_name",), ("file",), ("path",))
    labels = ("label", "labels", "target", "fine_label")

    def fit_to(self, model: PreTrainedModel, processor: Any, max_length: int | None) -> None:
        if max_length is not None:
            raise ValueError(f"{self.name} has no --max_length: the image processor says how large images are")
        super().fit_to(model, processor, max_length)

    def decode(self, file: BytesIO) -> Any:
        """The image in a file, upright and in RGB, as pipelines read it."""
        from PIL import Image
        from transformers.image_utils import load_image

        image = Image.open(file)
        extrema: Any = image.getextrema() if image.mode.startswith("I") else (0, 0)
        if extrema[1] > 255:
            raise OSError("it has more than 8 bits a pixel, of which all above 255 would be white: convert it first")
        return load_image(image)

    def inputs(self, contents: list[Any]) -> dict[str, Tensor]:
        return dict(self.own_processor(contents, return_tensors="pt"))


@register("audio-classification")
class AudioClassification(MediaClassification, RecordingTask):
    """Recordings, of which the first seconds count."""

    head = "AudioClassification"
    labels = ("label", "labels", "target", "intent_class", "command")
    max_length = 20

    def fit_to(self, model: PreTrainedModel, processor: Any, max_length: int | None) -> None:
        super().fit_to(model, processor, max_length)
        self.seconds = max_length or self.max_length

    def decode(self, file: BytesIO) -> np.ndarray:
        sound, most = super().decode(file), self.seconds * self.extractor.sampling_rate
        if len(sound) > most:
            self.tell(f"of recordings, the first {self.seconds} seconds are heard (--max_length)")
        return sound[:most]
