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
import gc
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from environments import Python, make_environment
from places import PATH


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the Hub
torch.set_num_threads(1)  # workers share the cores
SAME_AS_BERT = ("roberta", "xlm-roberta", "camembert", "electra", "distilbert")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of architectures that are the same code by another name, one is enough for `make test`."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("architecture") in SAME_AS_BERT:
            item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Trainers and cuts collect garbage, cuts also look among all objects for what holds the model: neither goes
    through the million objects of the libraries, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk():
    """A save waits milliseconds for every file to be on the disk, in case power is lost. No test loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def without_report(request, monkeypatch):
    """Training writes no report in this process and cards have no pictures, as where matplotlib is missing, except in
    tests marked `report`: to draw them takes longer than to train or save a tiny model."""
    if request.node.get_closest_marker("report"):
        return

    def missing(*_, **__):
        raise ImportError("the tests draw nothing except where they are marked `report`")

    for name in ("check_libraries", "render_report"):
        monkeypatch.setattr(f"optimum_camcut.training.run_report.{name}", missing)
    for name in ("plot_head_importance", "plot_kept"):
        monkeypatch.setattr(f"optimum_camcut.reporting.card.{name}", missing)


@pytest.fixture(autouse=True)
def own_environment():
    """The training arguments of transformers 4 set variables, such as the precision, for all trainers that follow."""

    def variables():
        return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}

    before = variables()
    yield
    for name in variables():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """A tiny BERT with random weights and a tokenizer of letters and common words."""
    from datasets import load_dataset  # after the environment is set
    from models import tiny_config
    from transformers import AutoModel, BertTokenizerFast

    sample = Path(__file__).resolve().parents[1] / "examples" / "data"
    folder = tmp_path_factory.mktemp("model")
    rows = load_dataset("parquet", data_files=str(sample / "qnli" / "validation.parquet"), split="train")
    words = sorted({word for row in rows for word in row["question"].lower().split() if word.isalpha()})[:300]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?'\"-()"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *words]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = tiny_config("bert", vocab_size=len(vocabulary), max_position_embeddings=64, num_labels=2)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory):
    """A few rows of a task of classes and of a task of scores, with something to learn in them."""
    from datasets import Dataset  # after the environment is set

    folder = tmp_path_factory.mktemp("glue")
    draw = random.Random(0)
    words = {0: ["war", "state", "city", "year"], 1: ["name", "first", "what", "is"]}

    def text(label):  # most words tell the label, some mislead
        return " ".join(draw.choice(words[label if draw.random() < 0.85 else 1 - label]) for _ in range(4))

    for task, columns in {"sst2": ["sentence"], "stsb": ["sentence1", "sentence2"]}.items():
        (folder / task).mkdir()
        for split, count in (("train", 160), ("validation", 60)):
            rows = []
            for index in range(count):
                label = draw.randrange(2)
                score = label if task == "sst2" else 4 * label + draw.random()
                rows.append({**{column: text(label) for column in columns}, "label": score, "idx": index})
            Dataset.from_list(rows).to_parquet(str(folder / task / f"{split}.parquet"))
    return folder


@pytest.fixture(scope="session")
def python_without_package(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def fresh_python():
    """For what should start without this package in `sys.modules`; it finds the package, and what is in `tests`."""
    process = Python(sys.executable, PYTHONPATH=PATH)
    yield process
    process.end()


@pytest.fixture(scope="session")
def without_package(python_without_package):
    process = Python(python_without_package)
    yield process
    process.end()
