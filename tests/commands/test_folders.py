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
"""Folders of images and recordings as people have them, and data whose splits number their classes in two ways."""

import re
import shutil

import media
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from models import tiny_model
from transformers import ViTImageProcessor
from types_of_models import CONFIGS

from optimum_camcut.tasks import TASKS
from optimum_camcut.tasks.data import load_data


@pytest.fixture
def images(tmp_path):
    media.write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def speech(tmp_path):
    media.write_speech(tmp_path / "speech")
    return tmp_path / "speech"


def labels_of(data, split="validation"):
    """What a model is told of each file."""
    task = TASKS["image-classification"](data["train"])
    task.fit_to(tiny_model("vit", "ImageClassification", **CONFIGS["vit"]), ViTImageProcessor(size=16), None)
    task.check_head(task_config(task))
    return task.prepare(data[split])["labels"], task.names


def task_config(task):
    config = tiny_model("vit", "ImageClassification", **CONFIGS["vit"]).config
    config.id2label = dict(enumerate(sorted(task.names)))
    return config


def test_a_split_may_lack_a_class(images):
    """Its folders then have other numbers."""
    media.save_image(images / "train" / "blue" / "0.png", 0, 0)
    shutil.rmtree(images / "validation" / "dark")
    labels, names = labels_of(load_data(str(images)))
    assert names == ["blue", "dark", "light"] and set(labels) == {2}


def test_a_class_that_was_not_trained_is_refused(images):
    media.save_image(images / "validation" / "blue" / "0.png", 0, 0)
    with pytest.raises(
        ValueError, match=r"row 0 .from 0. of validation, .* has the label 'blue'; the classes of the tr"
    ):
        labels_of(load_data(str(images)))


def test_splits_that_were_saved_with_their_classes_in_two_orders(tmp_path):
    def rows(names, split):
        tags = Features(
            {"text": Value("string"), "label": ClassLabel(names=names), "tags": Sequence(ClassLabel(names=names))}
        )
        cells = [{"text": name, "label": names.index(name), "tags": [names.index(name)]} for name in sorted(names)]
        return Dataset.from_list(cells, features=tags, split=split)

    DatasetDict(train=rows(["a", "b", "c"], "train"), validation=rows(["c", "a"], "validation")).save_to_disk(tmp_path)
    data = load_data(str(tmp_path))
    for column in ("label", "tags"):
        task = TASKS["text-classification"](data["train"])
        task.label_column = column
        translated = task._by_own_numbers(data["validation"])
        assert np.ravel(translated[column]).tolist() == [0, 2] and translated["text"] == ["a", "c"]


def moved(folder, **names):
    for old, new in names.items():
        shutil.move(folder / old, folder / new)


def test_splits_go_by_their_usual_names(images):
    moved(images, train="Training", validation="validate")
    (images / "docs").mkdir()
    (images / "docs" / "about.md").write_text("of the data")
    (images / "Training" / ".ipynb_checkpoints").mkdir()
    file = next((images / "Training" / "dark").iterdir())
    shutil.copy(file, images / "Training" / ".ipynb_checkpoints" / file.name)
    shutil.copy(file, images / "Training" / "dark" / f"._{file.name}")
    data = load_data(str(images))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 10, "validation": 6}
    assert data["train"].features["label"].names == ["dark", "light"]


def test_folders_of_which_only_some_are_splits_are_refused(images):
    shutil.copytree(images / "validation", images / "more")
    with pytest.raises(ValueError, match="train, validation say a split, more do not: name each by another split"):
        load_data(str(images))
    moved(images, more="Train")
    with pytest.raises(ValueError, match="Train, train, validation say a split, some the same: name each by another"):
        load_data(str(images))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("file_name,text\n0.wav,a\n,b\n", "row 1 .from 0. of .* should name a file in file_name; it has None"),
        ("file_name,text,audio\n0.wav,a,x\n", "has a column 'audio', as that of the files is named: rename it"),
    ],
)
def test_metadata_that_name_no_files_are_told(speech, contents, message):
    (speech / "train" / "metadata.csv").write_text(contents)
    with pytest.raises(ValueError, match=message):
        load_data(str(speech))


@pytest.mark.parametrize("place", ["metadata.csv", "train/part/metadata.csv", "train/metadata.tsv"])
def test_metadata_that_would_not_be_read_are_told(speech, place):
    (speech / place).parent.mkdir(exist_ok=True)
    shutil.move(next((speech / "train").glob("metadata.*")), speech / place)
    with pytest.raises(ValueError, match=re.escape(f"{speech / place} would not be read: put it in ")):
        load_data(str(speech))


def test_images_of_16_bits_are_not_made_white(images):
    from PIL import Image

    file = next((images / "train" / "dark").iterdir())
    Image.fromarray(np.full((16, 16), 3000, np.uint16)).save(file)
    task = TASKS["image-classification"](load_data(str(images))["train"])
    task.fit_to(tiny_model("vit", "ImageClassification", **CONFIGS["vit"]), ViTImageProcessor(size=16), None)
    encoded = task.prepare(task.rows)
    with pytest.raises(ValueError, match="column 'image', holds no image that can be read .*more than 8 bits a pixel"):
        task.collator([encoded[number] for number in range(len(encoded))])
