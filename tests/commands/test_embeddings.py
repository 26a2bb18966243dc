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
"""Sentence embeddings on the command line: out comes a whole `SentenceTransformer`, and what is measured is what it
gives."""

import json
import logging
import subprocess
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from command_line import flags, main
from datasets import ClassLabel, Dataset
from environments import make_environment
from marks import few
from models import tiny_config
from safetensors.torch import load_file
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

from optimum_camcut import PruningConfig, find_groups, load_pruned, score_groups
from optimum_camcut.tasks import feature_extraction


pytestmark = pytest.mark.once  # sentence-transformers wants transformers 5
TASK = {"task": "feature-extraction", "batch_size": 8}
QUICK = {**TASK, "num_samples": 16, "repeats": 1, "sparsity": 0.5, "latency_batch_size": 2, "sequence_length": 16}
WORDS = (("war", "state", "city", "year"), ("name", "first", "what", "is"))


def pair(number):
    """Texts of the same words are alike."""
    kinds = number % 2, number // 2 % 2
    one = [WORDS[kinds[0]][(number * 3 + place) % 4] for place in range(3)]
    other = [WORDS[kinds[1]][(number * 3 + place * 2) % 4] for place in range(4)]
    score = 5.0 - 4.0 * (kinds[0] != kinds[1]) - number % 3 * 0.5
    return {"sentence1": " ".join(one), "sentence2": " ".join(other), "score": score}


def write(folder, rows, features=None):
    folder.mkdir()
    for split, part in {"train": rows, "validation": rows[: len(rows) // 2]}.items():
        Dataset.from_list(part, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pairs") / "data", [pair(number) for number in range(16)])


@pytest.fixture(scope="session")
def sentence_models(model_path, tmp_path_factory):
    """Folders of a tiny BERT with several poolings; `all` has whatever can come behind or before it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    folders = {name: tmp_path_factory.mktemp("models") / name for name in ("mean", "cls", "all")}
    torch.manual_seed(0)
    for name, folder in folders.items():
        first = Transformer(str(model_path), max_seq_length=16 if name == "all" else 6)
        behind = [Pooling(32, "cls" if name == "cls" else "mean", include_prompt=name != "all")]
        extra = {"prompts": {"s": "is what: "}, "default_prompt_name": "s", "truncate_dim": 7} if name == "all" else {}
        behind += [Dense(32, 10), Normalize()] if name == "all" else []
        SentenceTransformer(modules=[first, *behind], device="cpu", **extra).save_pretrained(str(folder))
    return folders


@pytest.fixture(scope="session")
def pruned(sentence_models, data, tmp_path_factory):
    """Folders that the command wrote, by the poolings."""
    folder = tmp_path_factory.mktemp("pruned")

    class Made(dict):
        def __missing__(self, name):
            main("prune", *flags(model=sentence_models[name], dataset=data, output=folder / name, **QUICK))
            self[name] = folder / name
            return self[name]

    return Made()


def results_of(folder):
    return json.loads((folder / "pruning_results.json").read_text())


def load(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def cosines(model, rows):
    one, other = (torch.tensor(model.encode(list(rows[column]))) for column in ("sentence1", "sentence2"))
    return torch.cosine_similarity(one, other).numpy()


def metrics_of(folder, data):
    """By hand, as a user of sentence-transformers would."""
    rows = Dataset.from_parquet(str(data / "validation.parquet"))
    every = Dataset.from_parquet(str(data / "train.parquet"))["score"]
    labels = (np.array(rows["score"]) - min(every)) / (max(every) - min(every))
    found = cosines(load(folder), rows)
    return {"spearmanr": spearmanr(found, labels).statistic, "mse": np.mean((found - labels) ** 2)}


@pytest.mark.parametrize("name", few(["cls", "all", "mean"], 2))
def test_what_is_measured_is_what_encode_gives(name, sentence_models, pruned, data):
    """Dense and pruned; with the pooling, and whatever else there is, of the model."""
    results, folder = results_of(pruned[name]), pruned[name]
    assert results["pruned"]["parameters"] < results["dense"]["parameters"]
    for kind, where in {"dense": sentence_models[name], "pruned": folder}.items():
        metrics, expected = results[kind]["metrics"], metrics_of(where, data)
        assert list(metrics) == ["spearmanr", "pearson", "mse", "loss"]
        assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-5)
        assert metrics["loss"] == pytest.approx(metrics["mse"], abs=1e-6)  # that of CosineSimilarityLoss
    own, first = load(folder), load(folder)[0]
    assert [type(module) for module in own] == [type(module) for module in load(sentence_models[name])]
    assert own.prompts == load(sentence_models[name]).prompts
    assert own.max_seq_length == load(sentence_models[name]).max_seq_length
    assert type(load_pruned(folder)).__name__ == type(first.auto_model).__name__ == "BertModel"
    card = (folder / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert f'SentenceTransformer("{name}", trust_remote_code=True)' in card


def test_the_pooling_counts_in_the_scores(sentence_models, data, tmp_path):
    """They are those of the loss of sentence-transformers, on both texts of each pair."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    rows, found = Dataset.from_parquet(str(data / "train.parquet")), {}
    for name in ("cls", "mean"):
        scoring = {**TASK, "method": "taylor", "batch_size": 16, "num_samples": 32}
        main("score", *flags(model=sentence_models[name], dataset=data, **scoring, output=tmp_path / name))
        found[name] = load_file(tmp_path / name / "scores.safetensors")
    assert any(not torch.allclose(found["cls"][group], found["mean"][group], rtol=0.1) for group in found["cls"])

    whole = load(sentence_models["cls"])
    texts = [text for row in rows for text in (row["sentence1"], row["sentence2"])]
    labels = torch.tensor(list(rows["score"]))
    labels = (labels - labels.min()) / (labels.max() - labels.min())
    inputs = dict(whole[0].tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))

    def loss(model, batch):
        embeddings = model(dict(batch))["sentence_embedding"]
        return CosineSimilarityLoss(model).compute_loss_from_embeddings([embeddings[::2], embeddings[1::2]], labels)

    config = PruningConfig(method="taylor", sparsity=0.5, num_samples=32)
    scores = score_groups(whole, find_groups(whole), [inputs], config, loss_function=loss, disable_tqdm=True)
    for group, values in scores.items():
        torch.testing.assert_close(found["cls"][group.partition("model.")[2] or group], values, rtol=1e-3, atol=1e-7)


LOAD = """
import sys
sys.modules["torchao"] = None  # else transformers imports it, which takes seconds
from sentence_transformers import SentenceTransformer
found = []
for path, remote in zip(sys.argv[1::2], sys.argv[2::2]):
    model = SentenceTransformer(path, trust_remote_code=remote == "True", device="cpu")
    found.append(model.encode(["war", "what is"]).tolist())
assert "optimum_camcut" not in sys.modules
print(found)
"""


def test_the_folder_loads_without_this_package(sentence_models, pruned, data, tmp_path):
    """Also without code of its own, where all layers are alike."""
    plain = {"granularity": "neurons", "allocation": "uniform", "method": "magnitude", "recovery": "none"}
    main("prune", *flags(model=sentence_models["all"], dataset=data, output=tmp_path / "out", **{**QUICK, **plain}))
    python = make_environment(tmp_path / "environment")
    folders = {pruned["all"]: True, tmp_path / "out": False}
    arguments = [str(each) for item in folders.items() for each in item]
    done = subprocess.run([python, "-c", LOAD, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for found, folder in zip(json.loads(done.stdout.splitlines()[-1]), folders):
        np.testing.assert_allclose(found, load(folder).encode(["war", "what is"]), atol=1e-6)


def test_a_pruned_folder_is_a_model_again(pruned, data, tmp_path, capsys):
    """For every command, and without running the code in it."""
    import shutil

    folder = tmp_path / "pruned"
    shutil.copytree(pruned["all"], folder)
    (folder / "modeling_camcut.py").write_text("raise SystemExit('the code of the folder ran')")
    main("prune", *flags(model=folder, dataset=data, output=tmp_path / "again", **QUICK))
    before, after = results_of(pruned["all"])["pruned"], results_of(tmp_path / "again")
    assert after["dense"]["metrics"] == pytest.approx(before["metrics"], abs=1e-6)
    assert after["pruned"]["parameters"] < before["parameters"]
    assert after["pruned"]["metrics"]["mse"] == pytest.approx(metrics_of(tmp_path / "again", data)["mse"], abs=1e-5)

    job = {name: value for name, value in QUICK.items() if name != "sparsity"}
    compared = {"methods": ["taylor", "activation"], "sparsities": [0.5]}
    main("compare", *flags(model=folder, dataset=data, **job, **compared, output=tmp_path / "compared"))
    comparison = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    qualities = {row["method"]: row["quality"] for row in comparison["rows"]}
    assert qualities["dense"] == pytest.approx(before["metrics"]["spearmanr"], abs=1e-6) and len(qualities) == 3
    main("benchmark", *flags(dense=folder, pruned=tmp_path / "again", batch_sizes=1, sequence_lengths=8, repeats=1))
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize("distill", few([0.5, 0.0]))
def test_recovery_trains_by_the_same_loss(distill, sentence_models, data, tmp_path):
    training = {"recovery": "finetune", "epochs": 15, "learning_rate": 3e-3, "distill_weight": distill}
    main("prune", *flags(model=sentence_models["all"], dataset=data, output=tmp_path / "out", **{**QUICK, **training}))
    results = results_of(tmp_path / "out")
    assert results["pruned"]["metrics"]["mse"] < 0.7 * results["dense"]["metrics"]["mse"]
    assert results["pruned"]["metrics"]["mse"] == pytest.approx(metrics_of(tmp_path / "out", data)["mse"], abs=1e-5)
    for one, other in zip(load(tmp_path / "out")[2].parameters(), load(sentence_models["all"])[2].parameters()):
        assert torch.equal(one, other)  # what is behind the transformer stays


def test_what_is_guessed_is_said(model_path, data, tmp_path, caplog):
    """The range of the labels and a pooling; and how long texts are."""
    caplog.set_level(logging.INFO, "optimum_camcut")
    scoring = {**TASK, "num_samples": 4, "method": "magnitude", "max_length": 5}
    main("score", *flags(model=model_path, dataset=data, **scoring, output=tmp_path / "out"))
    for told in (
        "labels are scaled to 0 to 1: they go from 0 to 5 in the training rows",
        "is no SentenceTransformer: its tokens get the pooling 'mean'",
        "texts are cut to 5 tokens (--max_length), those of the model itself to 64",
    ):
        assert told in caplog.text


def rows_with(scores):
    return [{**pair(number), "score": score} for number, score in enumerate(scores)]


WRONG = {
    "one text": (
        [{"sentence": "is", "score": 0.5}],
        {},
        "no text column of a usual name .* sentence, score; .*--text",
    ),
    "one column": (rows_with([0.0, 1.0]), {"text_columns": ["sentence1"]}, "two texts.*got sentence1"),
    "words": (rows_with(["far", "near"]), {}, r"row 0 .*'score', should have a number, .* 'far': .*--label_column"),
    "a gap": (rows_with([0.5, None]), {}, "row 1 .*'score', should have a number.* None: fill it in"),
    "all alike": (rows_with([3.0, 3.0]), {}, "all labels in 'score' are 3"),
    "names": (rows_with([0.0, 1.0]), {"label_names": ["a", "b"]}, "--label_names are for classes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data(case, model_path, tmp_path):
    rows, extra, message = WRONG[case]
    folder = write(tmp_path / "data", [*rows, *rows])
    with pytest.raises(SystemExit, match=message):
        main("prune", *flags(model=model_path, dataset=folder, **QUICK, **extra, output=tmp_path / "out"))


def test_classes_are_no_similarities(model_path, tmp_path):
    names = ClassLabel(names=["entailment", "neutral", "contradiction"])
    rows = Dataset.from_list(rows_with([0, 1, 2, 0]))
    rows.cast_column("score", names).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(SystemExit, match=r"more alike, and 'score' has classes \(entailment, neutral, contra"):
        main("score", *flags(model=model_path, train_file=tmp_path / "train.parquet", **TASK, output=tmp_path / "out"))


@pytest.mark.parametrize("found", ["none", "5.4.1"])
def test_the_library_is_asked_for_before_anything_is_loaded(found, tmp_path, monkeypatch):
    def version(name):
        if found == "none":
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(feature_extraction, "version", version)
    message = rf"sentence-transformers 6 or later, and there is {found}; .*pip install optimum-camcut\[embeddings\]"
    with pytest.raises(SystemExit, match=message):
        main("prune", *flags(model=tmp_path / "absent", dataset=tmp_path / "absent", **QUICK, output=tmp_path / "out"))


def test_a_pair_is_not_torn(sentence_models, data, tmp_path):
    job = {**TASK, "method": "taylor", "num_samples": 1}
    with pytest.raises(SystemExit, match="two rows a pair, and this has 1: .*--batch_size that is a power of 2"):
        main("score", *flags(model=sentence_models["mean"], dataset=data, **job, output=tmp_path / "out"))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("gpt2", "has no token to pad with.*set its pad_token"),
        ("t5", "takes encoders and decoders, .* T5EncoderModel"),
    ],
)
def test_models_that_it_does_not_take(architecture, message, model_path, data, tmp_path):
    small = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 37, "num_layers": 2} if architecture == "t5" else {}
    AutoModel.from_config(tiny_config(architecture, **small, vocab_size=400)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_path, pad_token=None).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=message):
        main("score", *flags(model=tmp_path / "model", dataset=data, **TASK, output=tmp_path / "out"))


def test_code_of_a_folder_does_not_run(sentence_models, data, tmp_path):
    import shutil

    shutil.copytree(sentence_models["mean"], tmp_path / "own")
    (tmp_path / "own" / "own_module.py").write_text("raise SystemExit('the code of the folder ran')")
    listed = json.loads((tmp_path / "own" / "modules.json").read_text())
    listed[1]["type"] = "own_module.Pooling"
    (tmp_path / "own" / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(SystemExit, match="own_module.Pooling.*not part of Sentence Transformers"):
        main("prune", *flags(model=tmp_path / "own", dataset=data, **QUICK, output=tmp_path / "out"))
