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
"""`automatic-speech-recognition`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .generation import decoded, padded
from .recordings import RecordingTask
from .task import first_output, register
from .text_metrics import error_rates


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction, PretrainedConfig, PreTrainedModel


@register("automatic-speech-recognition")
class SpeechRecognition(RecordingTask):
    """Recordings and what is said in them: by a model that writes text (Whisper), or that tells letters (CTC)."""

    head, other_heads, processor = "SpeechSeq2Seq", ("CTC",), "AutoProcessor"
    labels = ("text", "sentence", "transcription", "transcript", "label")
    measured = ("wer", "cer")
    takes_metrics = True
    generates = True
    max_length, max_target = 30, 225

    def set_head(self, config: PretrainedConfig) -> None:
        super().set_head(config)
        self.check_head(config)

    def check_head(self, config: PretrainedConfig) -> None:
        if getattr(config, "ctc_loss_reduction", None) is not None:
            config.ctc_loss_reduction, config.ctc_zero_infinity = "mean", True
            self.tell("the CTC loss is a mean, and a text that is too long for its recording does not count in it")

    def fit_to(self, model: PreTrainedModel, processor: Any, max_length: int | None) -> None:
        """Reads the rows as a model and its processor want them.

        Raises:
            `ValueError`: the tokenizer has other tokens than the model.
        """
        super().fit_to(model, processor, max_length)
        self.tokenizer, self.generates = processor.tokenizer, bool(model.config.is_encoder_decoder)
        self.seconds = max_length or self.max_length
        self.start = getattr(model.config, "decoder_start_token_id", None) if self.generates else None
        positions = getattr(model.config, "max_target_positions", None)
        self.target_length = min(self.target_length, positions or self.target_length)
        if len(self.tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model tells {model.config.vocab_size} apart: "
                "name the tokenizer that it was trained with by --tokenizer"
            )

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        import soundfile

        encoded = super().encode(rows, numbers)
        for cell in encoded[self.input_name]:
            seconds = self.open(cell, lambda file: soundfile.info(file).duration)
            if seconds > self.seconds:
                raise ValueError(
                    f"{cell['row']} is a recording of {seconds:.1f} seconds, and at most {self.seconds} are heard "
                    "(--max_length): cut it together with its text, or leave it out"
                )
        return encoded

    def encode_labels(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> list[list[int]]:
        self.check_texts(rows, numbers, (self.label_column,))
        texts = rows[self.label_column]
        unknown = self.tokenizer.unk_token_id
        labels = self.tokenizer(texts)["input_ids"]
        if not self.generates and unknown is not None:  # letters: the model knows those of one case, it may be
            for change in (str.upper, str.lower):
                changed = self.tokenizer([change(text) for text in texts])["input_ids"]
                if sum(ids.count(unknown) for ids in changed) < sum(ids.count(unknown) for ids in labels):
                    labels = changed
                    self.tell(f"texts are read in {change.__name__} case, whose letters the tokenizer knows")
        if self.start is not None:  # the model puts it there by itself
            labels = [ids[1:] if ids[:1] == [self.start] else ids for ids in labels]
        if self.generates and max(map(len, labels)) > self.target_length:
            self.tell(f"texts are cut to {self.target_length} tokens (generation_max_length in the section training)")
            labels = [ids[: self.target_length] for ids in labels]
        return labels

    def collate_labels(self, labels: list[Any]) -> Tensor:
        return padded(labels)

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Tensor:
        """The likeliest letters, or the tokens that were generated: `(batch, frames or tokens)`."""
        logits = first_output(logits)
        return logits if logits.dim() == 2 else logits.argmax(-1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        predicted = decoded(self.tokenizer, first_output(prediction.predictions))
        return self.measure(predicted, self._true(prediction))

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """No word at all."""
        true = self._true(prediction)
        yield self.measure([""] * len(true), true)

    def _true(self, prediction: EvalPrediction) -> list[str]:
        options = {} if self.generates else {"group_tokens": False}  # letters of the text itself may stand twice
        return decoded(self.tokenizer, prediction.label_ids, **options)

    def own_metrics(self, predicted: Any, true: Any) -> dict[str, float]:
        return error_rates(predicted, true)
