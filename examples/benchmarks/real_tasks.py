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
"""What `real_models.py` measures real models on: speech, text, images and pairs of sentences."""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from scipy.io import wavfile
from scipy.signal import resample_poly
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)


Batch = dict[str, Tensor]
TASKS: dict[str, type[RealTask]] = {}


class RealTask:
    """A dense model, what it is scored on and rebuilt from, and what it is measured on.

    Args:
        path (`str`): of the model: a folder or a Hub id.
        options (`argparse.Namespace`): `data`, and `num_samples`, `rebuild_samples` and `examples` in place of the
            defaults.
    """

    auto_class: Any
    num_samples: int  # examples to score on: the first of those to rebuild from, in whole batches
    rebuild_samples: int
    examples: int  # to measure on
    batch_size = 8
    loss: Any = None  # the model's own

    def __init_subclass__(cls) -> None:
        TASKS[cls.__name__.lower()] = cls

    def __init__(self, path: str, options: argparse.Namespace) -> None:
        self.path, self.data = path, options.data
        self.num_samples = options.num_samples or self.num_samples
        self.rebuild_samples = options.rebuild_samples or self.rebuild_samples
        self.examples = options.examples or self.examples
        self.model = self.auto_class.from_pretrained(path, dtype=torch.float32).eval()
        self.prepare()
        self.dense = self.measure(self.model)

    def prepare(self) -> None:
        """Reads the data."""

    def batches(self, seed: int) -> list[Batch]:
        """`rebuild_samples` examples with labels, others for every seed."""
        raise NotImplementedError

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        raise NotImplementedError

    def settings(self) -> dict[str, int]:
        names = ("num_samples", "rebuild_samples", "examples", "window")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def to_score(self, batches: list[Batch]) -> list[Batch]:
        return batches[: len(self.parts(self.num_samples))]

    def parts(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]


# --- speech ---------------------------------------------------------------------------------------------------------

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE, DIGITS_AT_ONCE = 16_000, 20


class Speech(RealTask):
    """Word error rates of Whisper, in percent: of spoken digits, and of recordings.

    `--data` is a folder with WAV files: `DIGIT_SPEAKER_N.wav`, and recordings, each with what is said in a text file
    of its name. An utterance is 20 digits by one speaker in random order. N below 3 is for scoring and rebuilding,
    with the dense model's own transcripts as the labels; the others are measured.
    """

    auto_class = AutoModelForSpeechSeq2Seq
    num_samples, rebuild_samples, examples, batch_size = 8, 16, 9, 4

    def prepare(self) -> None:
        self.processor = AutoProcessor.from_pretrained(self.path)
        self.digits: dict[tuple[str, bool], list[tuple[int, np.ndarray]]] = {}  # speaker, measured -> digits, sounds
        recordings = []
        for file in sorted(Path(self.data).glob("*.wav")):
            if named := re.fullmatch(r"(\d)_(\w+)_(\d+)", file.stem):
                digit, speaker, number = named.groups()
                self.digits.setdefault((speaker, int(number) >= 3), []).append((int(digit), read_wav(file)))
            else:
                recordings.append((file.with_suffix(".txt").read_text(), read_wav(file)))
        self.measured = {"WER of digits": self.utterances(0, self.examples, True), "WER of recordings": recordings}

    def utterances(self, seed: int, count: int, measured: bool) -> list[tuple[str, np.ndarray]]:
        """What is said, and the sound of it; the speakers take turns."""
        generator, made = random.Random(seed), []
        speakers = sorted(speaker for speaker, which in self.digits if which == measured)
        for number in range(count):
            clips = self.digits[speakers[number % len(speakers)], measured]
            chosen = generator.sample(clips, min(DIGITS_AT_ONCE, len(clips)))
            pause = np.zeros(RATE // 5, np.float32)
            sound = np.concatenate([part for _, clip in chosen for part in (clip, pause)])
            made.append((" ".join(DIGITS[digit] for digit, _ in chosen), sound))
        return made

    def features(self, sounds: list[np.ndarray]) -> Tensor:
        return self.processor.feature_extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features

    @torch.no_grad()
    def transcribe(self, model: PreTrainedModel, sounds: list[np.ndarray]) -> list[str]:
        language = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}
        texts = []
        for part in self.parts(len(sounds)):
            written = model.generate(self.features(sounds[part]), do_sample=False, max_length=128, **language)
            texts += self.processor.batch_decode(written, skip_special_tokens=True)
        return texts

    def batches(self, seed: int) -> list[Batch]:
        tokenizer, batches = self.processor.tokenizer, []
        if self.model.generation_config.is_multilingual:
            tokenizer.set_prefix_tokens(language="en", task="transcribe")
        sounds = [sound for _, sound in self.utterances(seed, self.rebuild_samples, False)]
        for part in self.parts(len(sounds)):
            texts = self.transcribe(self.model, sounds[part])
            written = tokenizer(texts, padding=True, return_tensors="pt")
            labels = written.input_ids.masked_fill(written.attention_mask == 0, -100)[:, 1:]
            batches.append({"input_features": self.features(sounds[part]), "labels": labels})
        return batches

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        rates = {}
        for name, utterances in self.measured.items():
            texts = self.transcribe(model, [sound for _, sound in utterances])
            pairs = [(words_of(said), words_of(text)) for (said, _), text in zip(utterances, texts)]
            errors, words = (
                sum(map(count, pairs)) for count in (lambda pair: edits(*pair), lambda pair: len(pair[0]))
            )
            rates[name] = 100 * errors / words
        return rates


def read_wav(file: Path) -> np.ndarray:
    """One channel at 16 kHz, between -1 and 1."""
    rate, sound = wavfile.read(file)
    sound = sound.astype(np.float32) / np.iinfo(sound.dtype).max
    sound = sound if sound.ndim == 1 else sound.mean(1)
    return resample_poly(sound, RATE, rate).astype(np.float32)


def words_of(text: str) -> list[str]:
    """In lower case without punctuation; of a number each digit, as a word."""
    words = re.findall(r"\d|[a-z']+", text.lower())
    return [DIGITS[int(word)] if word.isdigit() else word for word in words]


def edits(wanted: list[str], given: list[str]) -> int:
    """The fewest words to insert, to remove or to replace."""
    row = list(range(len(given) + 1))
    for number, word in enumerate(wanted, 1):
        before, row = row, [number]
        for place, other in enumerate(given):
            row.append(min(before[place] + (word != other), before[place + 1] + 1, row[-1] + 1))
    return row[-1]


# --- text -----------------------------------------------------------------------------------------------------------


class Text(RealTask):
    """Perplexity of a causal language model on windows of WikiText-2, of 256 tokens or `--window`.

    Scored on and rebuilt from the validation set, measured from the start of the test set. `--data` is a folder with
    `wiki.valid.raw` and `wiki.test.raw`.
    """

    auto_class = AutoModelForCausalLM
    num_samples, rebuild_samples, examples = 8, 32, 16
    tokens_at_once = 2048

    def __init__(self, path: str, options: argparse.Namespace) -> None:
        self.window = options.window
        self.batch_size = max(self.tokens_at_once // self.window, 1)
        super().__init__(path, options)

    def prepare(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.windows = {split: self.read(split) for split in ("validation", "test")}
        self.examples = min(self.examples, len(self.windows["test"]))

    def read(self, split: str) -> Tensor:
        """Of shape `(windows, tokens)`; each begins with the token that the tokenizer begins a text with, if any."""
        if self.data:
            file = Path(self.data) / {"validation": "wiki.valid.raw", "test": "wiki.test.raw"}[split]
            text = file.read_text(encoding="utf-8")
        else:
            text = "".join(load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)["text"])
        first = self.tokenizer("").input_ids
        ids = torch.tensor(self.tokenizer(text, verbose=False).input_ids[len(first) :])
        length = self.window - len(first)
        windows = ids[: len(ids) // length * length].view(-1, length)
        return torch.cat([torch.tensor(first).long().expand(len(windows), -1), windows], dim=1)

    def batches(self, seed: int) -> list[Batch]:
        windows = self.windows["validation"]
        drawn = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[: self.rebuild_samples]
        return [{"input_ids": windows[drawn[part]], "labels": windows[drawn[part]]} for part in self.parts(len(drawn))]

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        windows = self.windows["test"][: self.examples]
        losses = [
            model(input_ids=windows[part], labels=windows[part]).loss.item() * len(windows[part])
            for part in self.parts(len(windows))
        ]
        return {"perplexity": float(np.exp(sum(losses) / len(windows)))}


# --- images ---------------------------------------------------------------------------------------------------------


class Images(RealTask):
    """Accuracy of a linear probe, in percent, on the handwritten digits that scikit-learn ships.

    The probe is fitted to the dense model's features of 600 images, and stays. It is the model's classifier, whose
    loss is scored. Each 8 x 8 image becomes one of 8 x 8 patches.
    """

    auto_class = AutoModelForImageClassification
    num_samples, rebuild_samples, examples, batch_size = 64, 192, 400, 32
    fitted = 600

    def prepare(self) -> None:
        digits = load_digits()
        size = 8 * self.model.config.patch_size
        pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
        pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear")
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        self.pixels, self.labels = (pixels - mean) / deviation, torch.tensor(digits.target)
        features = []
        classifier = self.model.classifier = nn.Identity()
        with torch.no_grad():
            for part in self.parts(self.fitted):
                features.append(self.model(pixel_values=self.pixels[part]).logits)
        found = torch.cat(features)
        probe = LogisticRegression(max_iter=2000).fit(found.numpy(), digits.target[: self.fitted])
        classifier = self.model.classifier = nn.Linear(found.shape[1], len(probe.classes_))
        with torch.no_grad():
            classifier.weight.copy_(torch.tensor(probe.coef_))
            classifier.bias.copy_(torch.tensor(probe.intercept_))
        self.model.config.num_labels = self.model.num_labels = len(probe.classes_)

    def batches(self, seed: int) -> list[Batch]:
        drawn = torch.randperm(self.fitted, generator=torch.Generator().manual_seed(seed))[: self.rebuild_samples]
        parts = self.parts(len(drawn))
        return [{"pixel_values": self.pixels[drawn[part]], "labels": self.labels[drawn[part]]} for part in parts]

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        pixels, labels = (values[self.fitted :][: self.examples] for values in (self.pixels, self.labels))
        right = sum(
            int((model(pixel_values=pixels[part]).logits.argmax(-1) == labels[part]).sum())
            for part in self.parts(len(pixels))
        )
        return {"accuracy": 100 * right / len(pixels)}


# --- sentences ------------------------------------------------------------------------------------------------------


class Sentences(RealTask):
    """Spearman correlation, in percent, of cosine similarities with the scores of stsb.

    An embedding is the mean over the tokens. Scored by the squared error of the similarity. `--data` is a folder with
    `stsb/{train,validation}.parquet`.
    """

    auto_class = AutoModel
    num_samples, rebuild_samples, examples, batch_size = 64, 320, 300, 32

    def prepare(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        files = {split: f"{self.data}/stsb/{split}.parquet" for split in ("train", "validation")}
        self.rows = load_dataset("parquet", data_files=files) if self.data else load_dataset("nyu-mll/glue", "stsb")
        self.examples = min(self.examples, len(self.rows["validation"]))

    def pairs(self, split: str, numbers: range | list[int]) -> list[Batch]:
        """Both sentences of a pair one after the other, each with the pair's score between 0 and 1."""
        rows, batches = self.rows[split].select(numbers), []
        for part in self.parts(len(rows)):
            chosen = rows[part]
            texts = [text for pair in zip(chosen["sentence1"], chosen["sentence2"]) for text in pair]
            inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            batches.append({**inputs, "labels": torch.tensor(chosen["label"]).repeat_interleave(2) / 5})
        return batches

    def batches(self, seed: int) -> list[Batch]:
        return self.pairs("train", random.Random(seed).sample(range(len(self.rows["train"])), self.rebuild_samples))

    @staticmethod
    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        return (similarities(model, batch) - batch["labels"][::2]).square().mean()

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        batches = self.pairs("validation", range(self.examples))
        found = torch.cat([similarities(model, batch) for batch in batches])
        labels = torch.cat([batch["labels"][::2] for batch in batches])
        return {"Spearman": 100 * float(spearmanr(found, labels).statistic)}


def similarities(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Of shape `(pairs,)`."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    mask = inputs["attention_mask"][..., None]
    embeddings = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    return nn.functional.cosine_similarity(embeddings[::2], embeddings[1::2])
