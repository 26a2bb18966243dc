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
"""Images, recordings and speech with something to learn in them, in files; and tiny models of those, with processors.
All functions write into a folder."""

import json

import numpy as np
from datasets import Dataset
from models import tiny_model
from transformers import (
    ViTImageProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
    WhisperProcessor,
    WhisperTokenizer,
)
from types_of_models import CONFIGS


IMAGE_CLASSES, SOUND_CLASSES, SAID = ("dark", "light"), ("low", "high"), ("one two", "Yes.")
RATE = 16_000
SOUND = {**CONFIGS["wav2vec2"], "feat_extract_norm": "layer"}  # padding then changes nothing
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRAINING, ALL = 10, 16  # files


def save_image(path, light, number):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 100, (20, 24, 3)) + 150 * light
    Image.fromarray(pixels.astype("uint8")).save(path)


def save_sound(path, high, number, rate=RATE, channels=1):
    """A tone, for 0.1 s and a little."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = np.arange(rate // 10 + 20 * number) / rate
    sound = np.sin(2 * np.pi * (1500 if high else 200) * seconds) * (0.3 + number / 50)
    soundfile.write(path, np.stack([sound] * channels, 1), rate)


def split_of(number):
    return "train" if number < TRAINING else "validation"


def write_images(folder):
    """Dark and light ones, by split and class."""
    for number in range(ALL):
        save_image(folder / split_of(number) / IMAGE_CLASSES[number % 2] / f"{number}.png", number % 2, number)


def write_recordings(folder):
    """Low and high tones, by split and class; some are at another rate, some have two channels."""
    for number in range(ALL):
        rate, channels = RATE // (1 + number % 3 // 2), 1 + number // 14
        path = folder / split_of(number) / SOUND_CLASSES[number % 2] / f"{number}.wav"
        save_sound(path, number % 2, number, rate, channels)


def write_speech(folder):
    """Two tones, which say `SAID`; texts in the metadata of the splits."""
    for split, count in (("train", TRAINING), ("validation", ALL - TRAINING)):
        for number in range(count):
            save_sound(folder / split / f"{number}.wav", number % 2, number)
        rows = [{"file_name": f"{number}.wav", "text": SAID[number % 2]} for number in range(count)]
        Dataset.from_list(rows).to_csv(str(folder / split / "metadata.csv"))


def _named(classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


def make_image_classifier(folder):
    tiny_model("vit", "ImageClassification", **CONFIGS["vit"], **_named(IMAGE_CLASSES)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def make_audio_classifier(folder):
    model = tiny_model("wav2vec2", "AudioClassification", **SOUND, **_named(SOUND_CLASSES), classifier_proj_size=16)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def make_ctc(folder):
    """It knows capitals."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS.upper(), "'"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(folder)
    tiny_model("wav2vec2", "CTC", **SOUND).save_pretrained(folder)


def make_whisper(folder, languages=()):
    """Its recordings take up to a second. With languages it does not say which of them is spoken."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = ["<|translate|>", "<|transcribe|>"] if languages else []
    marks = [f"<|{language}|>" for language in languages]
    special = ["<|endoftext|>", "<|startoftranscript|>", *marks, *tasks, "<|notimestamps|>"]
    tokens = [*LETTERS, *LETTERS.upper(), "Ġ", ".", *special]
    end, start = map(tokens.index, special[:2])
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    names = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), special[0])
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = WhisperTokenizer(*files, **names, additional_special_tokens=special[1:])
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1, hop_length=500)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    ids = {"eos_token_id": end, "pad_token_id": end, "bos_token_id": end, "decoder_start_token_id": start}
    model = tiny_model("whisper", "SpeechSeq2Seq", **{**CONFIGS["whisper"], **ids, "vocab_size": len(tokens)})
    generation = model.generation_config
    generation.begin_suppress_tokens = None
    if languages:
        generation._from_model_config, generation.is_multilingual = False, True
        generation.no_timestamps_token_id = tokens.index(special[-1])
        generation.lang_to_id = {mark: tokens.index(mark) for mark in marks}
        generation.task_to_id = {name.strip("<|>"): tokens.index(name) for name in tasks}
    model.save_pretrained(folder)
