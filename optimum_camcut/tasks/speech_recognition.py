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

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.files import shown
from .generation import CUT, decoded, padded, references, tell_cut
from .recordings import RecordingTask
from .task import IGNORED, first_output, register
from .text_metrics import error_rates, words_of


if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction, PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

UNKNOWN, SAMPLES = "unknown", "samples"  # columns: letters that the tokenizer does not know; how long a recording is


@register("automatic-speech-recognition")
class SpeechRecognition(RecordingTask):
    """Recordings and what is said in them: by a model that writes text (Whisper), or that tells letters (CTC)."""

    head, other_heads, processor = "SpeechSeq2Seq", ("CTC",), "AutoProcessor"
    labels = ("text", "sentence", "transcription", "transcript", "label")
    measured = ("wer", "cer")
    takes_metrics = True
    generates = True
    max_length, max_target = 30, 225
    takes_language = True
    looks_at = 1000  # texts, to find out whose letters the tokenizer knows

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
        self.seconds = self._seconds(max_length)
        self.start = getattr(model.config, "decoder_start_token_id", None) if self.generates else None
        positions = getattr(model.config, "max_target_positions", None)
        self.target_length = min(self.target_length, positions or self.target_length)
        if len(self.tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model tells {model.config.vocab_size} apart: "
                "name the tokenizer that it was trained with by --tokenizer"
            )
        told = self.generates and getattr(model.generation_config, "is_multilingual", False)
        if self.language and not told:
            raise ValueError(f"--language is for models that know many; {type(model).__name__} is not told one")
        if self.generates:
            self._set_language(model)
        else:
            self.frames_of = _frames_of(model)
            self._choose_case()

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: `datasets` makes a fingerprint of this, to know what was encoded before."""
        return {name: value for name, value in self.__dict__.items() if name != "frames_of"}

    def _seconds(self, given: int | None) -> int:
        """How long recordings may be: no longer than what the model hears, of which the extractor has a limit."""
        heard = getattr(self.extractor, "chunk_length", None) if self.generates else None
        if heard and (given or 0) > heard:
            raise ValueError(f"the model hears {heard} seconds of a recording; --max_length {given} is more")
        return min(given or self.max_length, heard or given or self.max_length)

    def _set_language(self, model: PreTrainedModel) -> None:
        """Lets the labels of a multilingual Whisper start as what it writes does."""
        config = model.generation_config
        if not getattr(config, "is_multilingual", False):
            return
        language = self.language or getattr(config, "language", None) or getattr(self.tokenizer, "language", None)
        if not isinstance(language, str):
            raise ValueError(
                "the model knows many languages, and neither its generation config nor its tokenizer says which is "
                "spoken: give --language en, say"
            )
        language = language.strip("<|>")
        self.tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
        config.language, config.task, config.forced_decoder_ids = language, "transcribe", None
        self.tell(f"recordings are transcribed, in the language {language}")

    def _choose_case(self) -> None:
        """A model that tells letters may know those of one case."""
        rows = self.rows.select_columns([self.label_column])
        texts = [text for text in rows[: self.looks_at][self.label_column] if isinstance(text, str)]
        self.case: Callable[[str], str] = str
        unknown = self.tokenizer.unk_token_id
        if unknown is None or not texts:
            return
        counts = {}
        for change in (str, str.upper, str.lower):
            ids = self.tokenizer([change(text) for text in texts])["input_ids"]
            counts[change] = sum(each.count(unknown) for each in ids)
        self.case = min(counts, key=lambda change: counts[change])
        if self.case is not str:
            self.tell(f"texts are read in {self.case.__name__} case, whose letters the tokenizer knows")

    def encode(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        import soundfile

        encoded, samples = super().encode(rows, numbers), []
        for cell in encoded[self.input_name]:
            info = self.open(cell, soundfile.info)
            if info.duration > self.seconds:
                raise ValueError(
                    f"{cell['row']} is a recording of {info.duration:.1f} seconds, and at most {self.seconds} are "
                    "heard (--max_length): cut it together with its text, or leave it out"
                )
            samples.append(ceil(info.frames * self.extractor.sampling_rate / info.samplerate))
        labels = encoded["labels"]
        cut = [self.generates and len(ids) > self.target_length for ids in labels]
        if self.generates:
            labels = [ids[: self.target_length] for ids in labels]
        unknown = [""] * len(labels) if self.generates else self._unknown(rows, numbers, labels)
        return {**encoded, "labels": labels, SAMPLES: samples, CUT: cut, UNKNOWN: unknown}

    def encode_labels(self, rows: Mapping[str, list[Any]], numbers: list[int]) -> list[list[int]]:
        self.check_texts(rows, numbers, (self.label_column,))
        texts = rows[self.label_column]
        labels: list[list[int]] = self.tokenizer(texts if self.generates else list(map(self.case, texts)))["input_ids"]
        if self.start is not None:  # the model puts it there by itself
            labels = [ids[1:] if ids[:1] == [self.start] else ids for ids in labels]
        return labels

    def _unknown(self, rows: Mapping[str, list[Any]], numbers: list[int], labels: list[list[int]]) -> list[str]:
        """The letters of each text that the tokenizer does not know.

        Raises:
            `ValueError`: it knows none of a text.
        """
        unknown, texts = self.tokenizer.unk_token_id, list(map(self.case, rows[self.label_column]))
        nothing = {unknown, getattr(self.tokenizer, "word_delimiter_token_id", None)}
        strange = {
            letter
            for letter in set("".join(text for text, ids in zip(texts, labels) if unknown in ids))
            if words_of(letter) and unknown in self.tokenizer(letter)["input_ids"]
        }
        for number, text, ids in zip(numbers, texts, labels):
            if words_of(text) and set(ids) <= nothing:
                raise ValueError(
                    f"{self.place(number, self.label_column)} has no letter that the tokenizer knows: {shown(text)}; "
                    "name the tokenizer that the model was trained with by --tokenizer, or leave the row out"
                )
        return ["".join(letter for letter in text if letter in strange) for text in texts]

    def prepare(self, rows: Any, limit: int | None = None) -> Any:
        encoded = super().prepare(rows, limit)
        tell_cut(sum(encoded[CUT]), len(encoded), self.target_length)
        unknown = list(encoded[UNKNOWN])
        if any(unknown):
            letters = "".join(sorted(set("".join(unknown))))
            logger.warning(
                "%d letters in %d of %d texts are unknown to the tokenizer, and count as errors: %s",
                sum(map(len, unknown)),
                sum(map(bool, unknown)),
                len(unknown),
                letters[:40] + ("..." if len(letters) > 40 else ""),
            )
        return encoded.remove_columns([CUT, UNKNOWN])

    def collate_labels(self, labels: list[Any]) -> Tensor:
        return padded(labels)

    @classmethod
    def preprocess_logits(cls, logits: Any, labels: Tensor) -> Tensor:
        """The likeliest letters, or the tokens that were generated: `(batch, frames or tokens)`."""
        logits = first_output(logits)
        return logits if logits.dim() == 2 else logits.argmax(-1)

    def metrics(self, prediction: EvalPrediction, features: Any, rows: Any) -> dict[str, float]:
        ids = first_output(prediction.predictions)
        if not self.generates:
            ids = self._heard(ids, features[SAMPLES])
        return self.measure(decoded(self.tokenizer, ids), self._true(prediction, features, rows))

    def measure_constants(self, prediction: EvalPrediction, features: Any, rows: Any) -> Iterator[dict[str, float]]:
        """No word at all."""
        true = self._true(prediction, features, rows)
        yield self.measure([""] * len(true), true)

    def _heard(self, ids: np.ndarray, samples: Sequence[int]) -> np.ndarray:
        """What is told in frames of the recordings themselves; the others only fill a batch."""
        lengths = np.array([self._frames(number) for number in samples])
        return np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, IGNORED)

    def _frames(self, samples: int) -> int:
        """How many frames the model makes of samples."""
        length = samples
        if self.input_name != "input_values":  # the extractor makes frames, too
            inputs = self.inputs([np.zeros(samples, np.float32)])
            mask = inputs.get("attention_mask")
            length = inputs[self.input_name].shape[1] if mask is None else int(mask.sum())
        return self.frames_of(length)

    def _true(self, prediction: EvalPrediction, features: Any, rows: Any) -> list[str]:
        texts = rows.select_columns([self.label_column]).select(range(len(features)))[:][self.label_column]
        return references(texts if self.generates else list(map(self.case, texts)), prediction)

    def own_metrics(self, predicted: Any, true: Any) -> dict[str, float]:
        return error_rates(predicted, true)


def _frames_of(model: PreTrainedModel) -> Callable[[int], int]:
    """How many frames a model that tells letters makes of a number of samples, or of frames of its extractor. As many
    if it does not say."""
    import torch

    for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
        for module in model.modules():
            if hasattr(module, name):
                return lambda length: int(getattr(module, name)(torch.tensor([length]))[0])
    return lambda length: length
