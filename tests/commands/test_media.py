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
"""Tasks whose rows are images or recordings: real files in, out comes a checkpoint that pipelines load."""

import json

import media
import numpy as np
import pytest
import torch
from command_line import flags, main
from datasets import ClassLabel, Dataset, Features
from marks import few
from media import IMAGE_CLASSES, RATE, save_image, save_sound
from models import tiny_model
from transformers import (
    AutoModelForImageClassification,
    EvalPrediction,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    pipeline,
)
from types_of_models import CONFIGS

from optimum_camcut.tasks import TASKS
from optimum_camcut.tasks.data import folder_of, load_data, splits_and_columns
from optimum_camcut.tasks.generation import decoded
from optimum_camcut.tasks.models import load_model, load_processor
from optimum_camcut.tasks.text_metrics import chrf, edit_distance, error_rates, rouge, words_of


QUICK = {"num_samples": 8, "repeats": 1, "sparsity": 0.5, "batch_size": 8, "latency_batch_size": 2}


def written(write):
    """A fixture of a folder that is written once."""

    @pytest.fixture(scope="session", name=write.__name__.removeprefix("make_").removeprefix("write_"))
    def folder(tmp_path_factory):
        where = tmp_path_factory.mktemp("written")
        write(where)
        return where

    return folder


_images, _recordings, _speech = map(written, (media.write_images, media.write_recordings, media.write_speech))
_image_classifier, _audio_classifier = map(written, (media.make_image_classifier, media.make_audio_classifier))
_ctc, _whisper = map(written, (media.make_ctc, media.make_whisper))


@pytest.fixture
def image_job(image_classifier, images):
    return {"model": image_classifier, "dataset": images, "task": "image-classification", **QUICK}


@pytest.fixture
def audio_job(audio_classifier, recordings):
    sizes = {"sequence_length": 16}
    return {"model": audio_classifier, "dataset": recordings, "task": "audio-classification", **QUICK, **sizes}


def read(folder):
    return json.loads((folder / "pruning_results.json").read_text())


def accuracy_of(folder, images):
    """By a pipeline, image by image."""
    classify = pipeline("image-classification", str(folder), trust_remote_code=True)
    files = sorted((images / "validation").glob("*/*.png"))
    return np.mean([classify(str(file), top_k=1)[0]["label"] == file.parent.name for file in files])


def test_images_pruned_are_classified_by_a_pipeline(image_job, image_classifier, images, tmp_path, capsys):
    main("prune", *flags(**image_job, output=tmp_path / "out"))
    results, told = read(tmp_path / "out"), capsys.readouterr().out
    assert results["pruned"]["parameters"] < results["dense"]["parameters"]
    assert results["dense"]["metrics"]["accuracy"] == accuracy_of(image_classifier, images)
    assert results["pruned"]["metrics"]["accuracy"] == accuracy_of(tmp_path / "out", images)
    assert "FLOPs, 1 x 16 x 16 pixels (G)" in told and "latency, 2 x 16 x 16 pixels (ms)" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "leaves the processor as it was" in card and "token" not in card


@pytest.mark.long
@pytest.mark.report
def test_the_report_tells_the_size_of_images(image_job, tmp_path):
    main("prune", *flags(**image_job, output=tmp_path / "out"))
    assert "each of 2 x 16 x 16 pixels in float32" in (tmp_path / "out" / "report.html").read_text()
    main("report", *flags(model=tmp_path / "out", output=tmp_path / "report.html"))
    assert "each of 2 x 16 x 16 pixels" in (tmp_path / "report.html").read_text()


def test_recovery_of_images_trains(image_job, tmp_path):
    training = {"dense_epochs": 2, "recovery": "finetune", "epochs": 4, "learning_rate": 1e-2}
    main("prune", *flags(**image_job, **training, output=tmp_path / "out"))
    metrics = read(tmp_path / "out")["pruned"]["metrics"]
    assert metrics["accuracy"] == 1 and metrics["loss"] < 0.5


def test_other_commands_take_models_of_images(image_job, image_classifier, tmp_path, capsys):
    methods = {"methods": ["magnitude"], "sparsities": [0.5]}
    job = {name: value for name, value in image_job.items() if name != "sparsity"}
    main("compare", *flags(**job, **methods, output=tmp_path / "compared"))
    comparison = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert comparison["settings"]["input_size"] == "16 x 16 pixels" and len(comparison["rows"]) == 2
    timed = {"dense": image_classifier, "pruned": image_classifier, "batch_sizes": 1, "repeats": 1}
    main("benchmark", *flags(**timed))
    assert "16 x 16 pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="leave --sequence_lengths out"):
        main("benchmark", *flags(**timed, sequence_lengths=3))


def test_scores_are_of_the_contents_of_files(image_job, images, tmp_path):
    """Not of their names."""
    folder = tmp_path / "images"
    for file in sorted(images.glob("*/*/*.png")):
        (folder / file.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.relative_to(images)).write_bytes(file.read_bytes())
    job = {**image_job, "dataset": folder, "num_samples": 10}
    scoring = {name: v for name, v in job.items() if name not in ("repeats", "sparsity", "latency_batch_size")}
    main("score", *flags(**scoring, output=tmp_path / "scores"))
    job["scores"] = tmp_path / "scores"
    main("prune", *flags(**job, output=tmp_path / "out"))
    save_image(folder / "train" / "dark" / "0.png", 0, 99)
    with pytest.raises(SystemExit, match="examples"):
        main("prune", *flags(**job, output=tmp_path / "other"))


def rows_of_files(images, folder, kind):
    """The same as rows, with paths from their own folder."""
    folder.mkdir()
    for split in ("train", "validation"):
        files = sorted((images / split).glob("*/*.png"))
        rows = []
        for file in files:
            (folder / file.name).write_bytes(file.read_bytes())
            contents = {"bytes": file.read_bytes(), "path": None} if kind == "parquet" else file.name
            rows.append({"image": contents, "label": file.parent.name})
        features = None
        if kind == "parquet":
            from datasets import Image

            features = Features({"image": Image(), "label": ClassLabel(names=list(IMAGE_CLASSES))})
            rows = [{**row, "label": IMAGE_CLASSES.index(row["label"])} for row in rows]
        data = Dataset.from_list(rows, features=features)
        {"csv": data.to_csv, "parquet": data.to_parquet, "json": data.to_json}[kind](str(folder / f"{split}.{kind}"))
    return folder


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_images_are_read_from_paths_and_from_bytes(images, tmp_path, kind):
    """As from a folder of them."""
    folder = rows_of_files(images, tmp_path / "rows", kind)
    assert splits_and_columns(str(folder))["train"] == ["image", "label"]
    batches = []
    for name in (images, folder):
        rows = load_data(str(name))["train"].sort("label")
        task = TASKS["image-classification"](rows)
        task.folder = folder_of(str(name))
        model = tiny_model("vit", "ImageClassification", **CONFIGS["vit"])
        task.fit_to(model, ViTImageProcessor(size={"height": 16, "width": 16}), None)
        encoded = task.prepare(rows)
        assert encoded.column_names == ["pixel_values", "labels"]
        batch = task.collator([encoded[number] for number in range(len(encoded))])
        assert batch["pixel_values"].shape == (10, 3, 16, 16)
        batches.append(batch)
    for sums in zip(*(batch["pixel_values"].sum((1, 2, 3)).sort().values for batch in batches)):
        torch.testing.assert_close(*sums)
    assert batches[0]["labels"].tolist() == batches[1]["labels"].tolist()


def test_what_is_no_image_is_told_with_its_row(images, image_job, tmp_path):
    folder = rows_of_files(images, tmp_path / "rows", "csv")
    job = {**image_job, "dataset": folder, "num_samples": 10, "output": tmp_path / "out"}
    (folder / "0.png").unlink()
    with pytest.raises(SystemExit, match="names 0.png, and there is no such file"):
        main("prune", *flags(**job))
    (folder / "0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"row \d \(from 0\) of train, column 'image', holds no image that can be"):
        main("prune", *flags(**job))
    with pytest.raises(SystemExit, match="no image column of a usual name was found; the columns are x, label"):
        Dataset.from_list([{"x": "0.png", "label": 0}]).to_csv(str(tmp_path / "x.csv"))
        main("prune", *flags(**{**job, "dataset": tmp_path / "x.csv", "output": tmp_path / "other"}))


def test_options_without_effect_on_images_are_refused(image_job, classifier_without_processor, tmp_path):
    with pytest.raises(SystemExit, match="has no --max_length: the image processor"):
        main("prune", *flags(**image_job, max_length=32, output=tmp_path / "out"))
    with pytest.raises(SystemExit, match="has no preprocessor_config.json or processor_config.json, which say"):
        main("prune", *flags(**{**image_job, "model": classifier_without_processor}, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def classifier_without_processor(image_classifier, tmp_path):
    folder = tmp_path / "bare"
    AutoModelForImageClassification.from_pretrained(image_classifier).save_pretrained(folder)
    return folder


def heard(path):
    """A file as a pipeline takes it, at the model's rate, one channel."""
    import soundfile
    from scipy.signal import resample_poly

    sound, rate = soundfile.read(path, always_2d=True)
    return {"raw": resample_poly(sound.mean(1), RATE, rate), "sampling_rate": RATE}


def test_recordings_pruned_are_heard_by_a_pipeline(audio_job, recordings, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    main("prune", *flags(**audio_job, output=tmp_path / "out"))
    results, told = read(tmp_path / "out"), capsys.readouterr().out
    assert results["pruned"]["parameters"] < results["dense"]["parameters"]
    files = sorted((recordings / "validation").glob("*/*.wav"))
    for name, folder in (("dense", audio_job["model"]), ("pruned", tmp_path / "out")):
        classify = pipeline("audio-classification", str(folder), trust_remote_code=True)
        hits = [classify(heard(file), top_k=1)[0]["label"] == file.parent.name for file in files]
        assert results[name]["metrics"]["accuracy"] == pytest.approx(np.mean(hits))
    assert "latency, 2 x 136 samples (ms)" in told  # (15 x 2 + 3 - 1) x 4 + 8, which give 16 frames
    for line in ("at 8000 Hz are resampled to 16000 Hz", "of 2 channels are made one"):
        assert caplog.text.count(line) == 1
    assert "token" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.long
def test_recovery_of_recordings_trains(audio_job, tmp_path):
    training = {"dense_epochs": 4, "recovery": "finetune", "epochs": 6, "learning_rate": 1e-2}
    main("prune", *flags(**audio_job, **training, output=tmp_path / "out"))
    assert read(tmp_path / "out")["pruned"]["metrics"]["accuracy"] == 1


def test_long_recordings_are_cut_with_a_word(audio_job, recordings, tmp_path, caplog):
    save_sound(tmp_path / "long" / "train" / "low" / "a.wav", 0, 1000)
    save_sound(tmp_path / "long" / "train" / "high" / "b.wav", 1, 0)
    rows = load_data(str(tmp_path / "long"))["train"]
    task = TASKS["audio-classification"](rows)
    extractor = Wav2Vec2FeatureExtractor()
    task.fit_to(tiny_model("wav2vec2", "AudioClassification", **CONFIGS["wav2vec2"]), extractor, 1)
    encoded = task.prepare(rows)
    caplog.set_level("INFO")
    assert task.collator(list(encoded))["input_values"].shape == (2, RATE)
    assert "the first 1 seconds are heard" in caplog.text


@pytest.mark.once  # the pipeline of transformers 4.57 asks Whisper for more tokens than the tiny one has places for
@pytest.mark.parametrize("kind", ["ctc", "whisper"])
def test_speech_is_recognised_by_what_was_pruned(kind, speech, tmp_path, request, caplog):
    caplog.set_level("INFO")
    job = {"model": request.getfixturevalue(kind), "dataset": speech, "task": "speech-recognition", **QUICK}
    main("prune", *flags(**{**job, "batch_size": 1, "sequence_length": 16}, output=tmp_path / "out"))
    metrics = read(tmp_path / "out")["pruned"]["metrics"]
    hear = pipeline("automatic-speech-recognition", str(tmp_path / "out"), trust_remote_code=True)
    said = [hear(heard(speech / "validation" / f"{number}.wav"))["text"].strip() for number in range(6)]
    assert any(said) and error_rates(said, ["one two", "Yes."] * 3) == pytest.approx(
        {name: metrics[name] for name in ("wer", "cer")}
    )
    if kind == "ctc":
        assert "in upper case, whose letters the tokenizer knows" in caplog.text


@pytest.mark.long
def test_a_pruned_whisper_learns_again(whisper, speech, tmp_path):
    job = {"model": whisper, "dataset": speech, "task": "automatic-speech-recognition", **QUICK, "sparsity": 0.2}
    training = {"dense_epochs": 30, "recovery": "finetune", "epochs": 20, "learning_rate": 1e-2}
    main("prune", *flags(**job, **training, output=tmp_path / "out"))
    assert read(tmp_path / "out")["pruned"]["metrics"]["wer"] < 0.5


def test_speech_that_is_too_long_is_refused(whisper, speech, tmp_path):
    save_sound(tmp_path / "long" / "a.wav", 0, 1000)
    Dataset.from_list([{"file_name": "a.wav", "text": "one"}] * 4).to_csv(str(tmp_path / "long" / "metadata.csv"))
    job = {"model": whisper, "dataset": tmp_path / "long", "task": "automatic-speech-recognition", **QUICK}
    with pytest.raises(SystemExit, match="is a recording of 1.4 seconds, and at most 1 are heard"):
        main("prune", *flags(**job, max_length=1, output=tmp_path / "out"))


def fitted(name, folder, model, rows, max_length=None, dtype=torch.float32, language=None):
    """A task and a model that know each other."""
    task = TASKS[name](rows)
    task.folder, task.language = folder, language
    loaded = load_model(str(model), task, dtype=dtype)
    task.fit_to(loaded, load_processor(str(model), task, loaded), max_length)
    return task, loaded


def said(folder, *texts, seconds=()):
    """Rows of recordings and what is said in them."""
    rows = []
    for number, text in enumerate(texts):
        save_sound(folder / f"{number}.wav", number % 2, ([*seconds] or [0] * len(texts))[number])
        rows.append({"audio": f"{number}.wav", "text": text})
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    "task, model, data",
    few(
        [
            ("automatic-speech-recognition", "ctc", "speech"),
            ("image-classification", "image_classifier", "images"),
            ("audio-classification", "audio_classifier", "recordings"),
            ("automatic-speech-recognition", "whisper", "speech"),
        ],
        first=2,
        rows=True,
    ),
)
def test_inputs_have_the_precision_of_the_model(task, model, data, request):
    folder = request.getfixturevalue(data)
    rows = load_data(str(folder))["validation"]
    task, loaded = fitted(task, folder, request.getfixturevalue(model), rows, dtype=torch.bfloat16)
    encoded = task.prepare(rows, 2)
    with torch.no_grad():
        assert loaded(**task.collate(list(encoded))).loss.isfinite()


def test_what_fills_a_batch_is_no_text(ctc, tmp_path):
    """A recording alone, and beside a longer one."""
    rows = said(tmp_path, "one", "two three", seconds=(0, 300))
    task, model = fitted("automatic-speech-recognition", tmp_path, ctc, rows)
    encoded, found = task.prepare(rows), []
    for numbers in ([0], [0, 1]):
        batch = task.collate([encoded[number] for number in numbers])
        with torch.no_grad():
            ids = task.preprocess_logits(model(**batch).logits, batch["labels"]).numpy()
        features = encoded.select(numbers)
        prediction = EvalPrediction(ids, batch["labels"].numpy())
        found.append(decoded(task.tokenizer, task._heard(ids, features["samples"]))[0])
        measured = task.metrics(prediction, features, rows.select(numbers))
        assert numbers != [0] or measured == error_rates(found, ["one"])
    assert found[0] == found[1] != "" and len(decoded(task.tokenizer, ids)[0]) > len(found[0])


def test_what_is_said_is_measured_with_letters_that_no_tokenizer_knows(ctc, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = said(tmp_path, "grö, äins", "two")
    task, _ = fitted("automatic-speech-recognition", tmp_path, ctc, rows)
    encoded = task.prepare(rows)
    assert encoded.column_names == ["input_values", "labels", "samples"] and encoded["samples"][0] == RATE // 10
    assert "2 letters in 1 of 2 texts are unknown to the tokenizer, and count as errors: ÄÖ" in caplog.text
    assert caplog.text.count("in upper case") == 1
    ids = np.array([[*task.tokenizer("GRE")["input_ids"]], [*task.tokenizer("TWO")["input_ids"]]])
    task._frames = lambda samples: 3
    found = task.metrics(EvalPrediction(ids, ids), encoded, rows)
    assert found == error_rates(["gre", "two"], ["grö äins", "two"]) and found["wer"] == 2 / 3
    with pytest.raises(ValueError, match="2 rows were predicted of 1"):
        task.metrics(EvalPrediction(ids, ids), encoded.select([0]), rows)
    strange = said(tmp_path, "one", "один два")
    with pytest.raises(ValueError, match="row 1 .*, column 'text', has no letter that the tokenizer knows: 'ОДИН"):
        task.prepare(strange)


def test_a_model_hears_no_more_than_its_window(whisper, tmp_path):
    rows = said(tmp_path, "one", seconds=(1000,))
    with pytest.raises(ValueError, match="the model hears 1 seconds of a recording; --max_length 30 is more"):
        fitted("automatic-speech-recognition", tmp_path, whisper, rows, 30)
    task, _ = fitted("automatic-speech-recognition", tmp_path, whisper, rows)
    with pytest.raises(ValueError, match="is a recording of 1.4 seconds, and at most 1 are heard"):
        task.prepare(rows)


def test_labels_of_a_model_of_many_languages_start_as_what_it_writes(tmp_path):
    media.make_whisper(tmp_path / "model", ["en", "zh"])  # numbered as in the real ones
    rows = said(tmp_path, "one")
    with pytest.raises(ValueError, match="neither its generation config nor its tokenizer says which is spoken"):
        fitted("automatic-speech-recognition", tmp_path, tmp_path / "model", rows)
    generation = tmp_path / "model" / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "language": "en"}))
    task, model = fitted("automatic-speech-recognition", tmp_path, tmp_path / "model", rows)
    given, _ = fitted("automatic-speech-recognition", tmp_path, tmp_path / "model", rows, language="zh")
    assert given.tokenizer.convert_ids_to_tokens(given.prepare(rows)[0]["labels"])[0] == "<|zh|>"
    named = task.tokenizer.convert_ids_to_tokens
    start = ["<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    encoded = task.prepare(rows)
    assert named(encoded[0]["labels"]) == [*start, "o", "n", "e", "<|endoftext|>"]
    forward, given = model.forward, []
    model.forward = lambda *args, **inputs: given.append(inputs) or forward(*args, **inputs)
    model.generate(task.collate(list(encoded))["input_features"], max_length=6)
    assert named(given[0]["decoder_input_ids"][0].tolist()) == ["<|startoftranscript|>", *start]


def test_a_language_without_effect_is_refused(whisper, ctc, image_job, speech, tmp_path):
    rows = said(tmp_path, "one")
    for model in (whisper, ctc):
        with pytest.raises(ValueError, match="--language is for models that know many; .* is not told one"):
            fitted("automatic-speech-recognition", tmp_path, model, rows, language="zh")
    with pytest.raises(SystemExit, match="--language is for automatic-speech-recognition; image-classification takes"):
        main("prune", *flags(**image_job, language="de", output=tmp_path / "out"))


def test_metrics_of_texts():
    """Worked out by hand."""
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3
    found = error_rates(["The cat, sat", "no"], ["the cat sat down", "yes no"])
    assert found == {"wer": 2 / 6, "cer": (5 + 4) / (16 + 6)}
    assert error_rates([""], ["a b"]) == {"wer": 1.0, "cer": 1.0}
    found = rouge(["the cat sat"], ["the sat cat down"])
    assert found == pytest.approx({"rougeL": 2 * 2 / 7, "rouge1": 2 * 3 / 7, "rouge2": 0})
    assert rouge(["a b c"], ["x a b"])["rouge2"] == pytest.approx(2 * 1 / 4)
    # Of "ab" and "ac": one of two characters, none of one pair; no side has more.
    assert chrf(["a b"], ["ac"]) == {"chrf": pytest.approx(0.25)}
    assert chrf(["same text"], ["same text"]) == {"chrf": 1.0} and chrf([""], ["a"]) == {"chrf": 0.0}


def test_words_keep_marks_of_vowels():
    """Worked out by hand; codes of letters tell what an editor may change."""
    assert error_rates(["नमस्ता दुनिया"], ["नमस्ते दुनिया"]) == {"wer": 0.5, "cer": 1 / 13}
    assert error_rates(["कि"], ["की"]) == {"wer": 1.0, "cer": 0.5}
    assert error_rates(["தமிழ்"], ["தமழ்"])["wer"] == 1
    assert error_rates(["\u0643\u064e\u062a\u064e"], ["\u0643\u062a"]) == {"wer": 1.0, "cer": 1.0}  # vowels of Arabic
    assert words_of("cafe\u0301 \uff21") == words_of("caf\u00e9 a") == ["caf\u00e9", "a"]
    assert words_of("don\u2019t") == words_of("Don't!") == ["don't"]
    assert words_of("\u2018one\u2019, two-three_4") == ["one", "two", "three", "4"]
    assert words_of("\u0645\u06cc\u200c\u0631\u0648\u0645 soft\u00adly") == [
        "\u0645\u06cc\u0631\u0648\u0645",
        "softly",
    ]
    assert rouge(["நன்றி"], ["நன்றி"])["rougeL"] == 1 and rouge(["कि"], ["की"])["rougeL"] == 0
