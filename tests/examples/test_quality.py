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

"""The benchmarks of quality run, write what the steps give, and their tables hold the right numbers."""

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from scripts import run_script
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from optimum_camcut import PruningConfig, apply_plan, find_groups, make_plan, reconstruct, score_groups
from optimum_camcut.planning.costs import remaining_budget
from optimum_camcut.training.sampling import draw_examples


FOLDER = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"


run = functools.partial(run_script, folder=FOLDER)


@pytest.fixture(scope="session")
def models(model_path, glue_folder, tmp_path_factory):
    """Where the model of sst2 is, which has learned something, and that of stsb will be."""
    pattern = f"{tmp_path_factory.mktemp('models')}/tiny-{{task}}"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=2).train()
    rows = Dataset.from_parquet(str(glue_folder / "sst2" / "train.parquet"))
    inputs = tokenizer(list(rows["sentence"]), padding=True, return_tensors="pt")
    labels, optimizer = torch.tensor(list(rows["label"])), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        for part in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            model(**{name: value[part] for name, value in inputs.items()}, labels=labels[part]).loss.backward()
            optimizer.step()
    for each in (model, tokenizer):
        each.save_pretrained(pattern.format(task="sst2"))
    return pattern


@pytest.fixture(scope="session")
def arguments(models, model_path, glue_folder, tmp_path_factory):
    """Of a run that fine-tunes the model that is missing, too."""
    folder = tmp_path_factory.mktemp("quality")
    made = ["--model", models, "--finetune", model_path, "--dataset_path", glue_folder]
    made += ["--output", folder / "quality.json"]
    made += ["--tasks", "sst2", "stsb", "--methods", "fisher", "cam_cut", "--keep", 0.5, 0.25]
    return [*made, "--num_samples", 48, "--seeds", 1, 2]


@pytest.fixture(scope="session")
def results(arguments):
    done = run("quality", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return arguments[arguments.index("--output") + 1], done.stdout


def run_of(path, task, method, rounds, seed):
    """That of the file with this key."""
    key = {"task": task, "method": method, "rounds": rounds, "seed": seed}
    (found,) = (run for run in json.loads(path.read_text())["runs"] if run.items() >= key.items())
    return found


@pytest.fixture
def by_hand(models, glue_folder):
    """A function that loads the model of sst2, one that gives its accuracy, and the batches of a scoring sample."""
    path = models.format(task="sst2")
    tokenizer = AutoTokenizer.from_pretrained(path)

    def examples(split):
        rows = Dataset.from_parquet(str(glue_folder / "sst2" / f"{split}.parquet"))
        return [{**tokenizer(row["sentence"]), "labels": row["label"]} for row in rows]

    def accuracy(model):
        batch = DataCollatorWithPadding(tokenizer)(examples("validation"))
        with torch.no_grad():
            return 100 * float((model(**batch).logits.argmax(1) == batch["labels"]).float().mean())

    def batches(seed):
        chosen = draw_examples(examples("train"), 48, seed)
        return [DataCollatorWithPadding(tokenizer)(chosen[i : i + 32]) for i in (0, 32)]

    return lambda: AutoModelForSequenceClassification.from_pretrained(path).eval(), accuracy, batches


def cut(model, batches, sparsity, seed):
    config = PruningConfig(method="fisher", sparsity=sparsity, num_samples=48, seed=seed)
    groups = find_groups(model)
    return apply_plan(
        model, make_plan(score_groups(model, groups, batches, config, disable_tqdm=True), groups, config)
    )


@pytest.mark.long
def test_quality_is_what_the_steps_give(results, by_hand):
    """One run worked out anew."""
    path, _ = results
    load, accuracy, sample = by_hand
    asked = itertools.product(("sst2", "stsb"), (1, 2), ("fisher", "cam_cut"))
    runs = json.loads(path.read_text())["runs"]
    assert [(run["task"], run["seed"], run["method"]) for run in runs] == list(asked)
    report = run_of(path, "sst2", "fisher", 1, 2)
    assert report["dense"] == pytest.approx(accuracy(load()), abs=1e-3)
    assert any(row["cut"] != row["rebuilt"] for row in report["results"])
    for keep, row in zip((0.5, 0.25), report["results"], strict=True):
        model, batches = load(), sample(2)
        cut(model, batches, 1 - keep, 2)
        assert row["cut"] == pytest.approx(accuracy(model), abs=1e-3)
        assert row["macs"] == pytest.approx(keep, abs=0.05)
        reconstruct(model, load(), model.pruning_plan, batches, disable_tqdm=True)
        assert row["rebuilt"] == pytest.approx(accuracy(model), abs=1e-3)


@pytest.mark.long
def test_what_is_there_is_not_run_again(results, arguments):
    path, printed = results
    before = path.stat().st_mtime_ns
    done = run("quality", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert before == path.stat().st_mtime_ns
    assert printed.endswith(done.stdout) and "| `cam_cut`, rebuilt, 1 round |" in done.stdout


@pytest.mark.long
def test_two_rounds(results, arguments, by_hand, tmp_path):
    """By the cubic schedule: 7/8 of what is to go in the first, the rest after the rebuilt model was scored again."""
    flags = ["--output", tmp_path / "two.json", "--tasks", "sst2", "--methods", "fisher", "--seeds", 1, "--rounds", 2]
    done = run("quality", *arguments, *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = run_of(tmp_path / "two.json", "sst2", "fisher", 2, 1)["results"]
    load, accuracy, sample = by_hand
    for keep, row in zip((0.5, 0.25), rows, strict=True):
        model, batches = load(), sample(1)
        cut(model, batches, (1 - keep) * 7 / 8, 1)
        reconstruct(model, load(), model.pruning_plan, batches, disable_tqdm=True)
        left = remaining_budget(find_groups(load()), find_groups(model), PruningConfig(sparsity=0.5, budget="flops"))
        cut(model, batches, 1 - keep / left, 1)
        reconstruct(model, load(), model.pruning_plan, batches, disable_tqdm=True)
        assert row["macs"] == pytest.approx(keep, abs=0.05) and "cut" not in row
        assert row["rebuilt"] == pytest.approx(accuracy(model), abs=1e-3)

    other = run("quality", *arguments, *flags, "--keep", 0.6)
    assert other.returncode != 0 and "is of other --num_samples, --keep, --allocation or --bf16" in other.stderr


@pytest.mark.long
def test_recovery_cuts_trains_and_tells_the_speed(results, models, glue_folder, tmp_path):
    path = tmp_path / "recovery.json"
    flags = ["--model", models, "--dataset_path", glue_folder, "--output", path, "--tasks", "sst2"]
    flags += ["--speedups", 1.05, "--seeds", 1, "--num_samples", 48, "--latency_batch_size", 64, "--epochs", 1]
    flags += ["--sequence_length", 60, "--latency_repeats", 5, "--multiple_of", 1]
    done = run("recovery", *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    (report,) = json.loads(path.read_text())["runs"]
    low, high = report["speedup_quartiles"]
    assert 0 < low <= report["speedup"] <= high and report["parameters"] < 1
    assert 0 <= report["pruned"] <= 100 and 0 <= report["dense"] <= 100
    model = AutoModelForSequenceClassification.from_pretrained(models.format(task="sst2"))
    dense = {group.name: group.size for group in find_groups(model)}
    assert report["epochs"] == 1 and report["num_samples"] == 48
    assert report["kept"].keys() == dense.keys() and sum(report["kept"].values()) < sum(dense.values())
    assert "| 1.05x | `smooth_cut`, per_kind, reconstruct+finetune, distilled |" in done.stdout

    again = run("recovery", *flags, "--time_again")
    assert again.returncode == 0, again.stderr[-4000:]
    (timed,) = json.loads(path.read_text())["runs"]
    assert timed["speedup_quartiles"] != report["speedup_quartiles"]
    assert {**timed, "speedup": 0, "speedup_quartiles": 0} == {**report, "speedup": 0, "speedup_quartiles": 0}

    other = run("recovery", *flags, "--learning_rate", "1e-3")
    assert other.returncode != 0 and "is of other settings" in other.stderr
    assert json.loads(path.read_text()) == {"runs": [timed]}


@pytest.mark.long
def test_layer_by_layer(results, models, glue_folder, by_hand, tmp_path):
    """The same metrics as of `quality.py`; distances worked out sentence by sentence; the sign of the loss matters to
    Grad-CAM and not to Fisher information."""
    path, _ = results
    load, _, sample = by_hand
    names = ["fisher", "minus_fisher", "cam_cut", "minus_cam_cut"]
    flags = ["--model", models, "--dataset_path", glue_folder, "--output", tmp_path / "rows.json", "--tasks", "sst2"]
    done = run("layer_by_layer", *flags, "--methods", *names, "--num_samples", 48, "--seeds", 2)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads((tmp_path / "rows.json").read_text())["runs"]
    found = {(row["method"], row["stage"]): row for row in rows}
    assert list(found) == list(itertools.product(names, ("cut", "rebuilt")))
    quality = run_of(path, "sst2", "fisher", 1, 2)["results"][0]
    assert {stage: found["fisher", stage]["metric"] for stage in ("cut", "rebuilt")} == {
        stage: quality[stage] for stage in ("cut", "rebuilt")
    }
    for stage in ("cut", "rebuilt"):
        assert found["fisher", stage]["off"] == found["minus_fisher", stage]["off"]
        assert found["cam_cut", stage]["off"] != found["minus_cam_cut", stage]["off"]
    assert "| sst2 | 50% | `minus_cam_cut` | rebuilt |" in done.stdout

    dense, model = load(), load()
    cut(model, sample(2), 0.5, 2)
    kept = [[group.size for group in find_groups(model, [kind])] for kind in ("heads", "neurons")]
    assert [found["fisher", "cut"][kind] for kind in ("heads", "neurons")] == kept
    tokenizer = AutoTokenizer.from_pretrained(models.format(task="sst2"))
    pairs = []  # hidden states behind every layer: of the dense model, of the cut one
    for sentence in Dataset.from_parquet(str(glue_folder / "sst2" / "validation.parquet"))["sentence"]:
        batch = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            both = [each(**batch, output_hidden_states=True).hidden_states[1:] for each in (dense, model)]
        pairs.append([torch.cat(states) for states in both])
    h, h_cut = (torch.cat(states, dim=1) for states in zip(*pairs))
    expected = (h_cut - h).square().sum((1, 2)) / (h - h.mean(1, keepdim=True)).square().sum((1, 2))
    torch.testing.assert_close(torch.tensor(found["fisher", "cut"]["off"]), expected, rtol=1e-3, atol=1e-6)


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import quality

    return quality


def test_means_and_leads_by_hand(quality):
    """Two tasks, two seeds: ratios capped at 1, means over tasks within a seed, deviations over seeds."""
    rebuilt = {  # method -> seed -> the metrics of two tasks whose dense models have 80 and 50
        "smooth_cut": {1: (88, 45), 2: (80, 40)},  # 1 and 0.9; 1 and 0.8
        "cam_cut": {1: (40, 25), 2: (40, 25)},
        "fisher": {1: (72, 45), 2: (64, 40)},  # 0.9 and 0.9; 0.8 and 0.8
        "taylor": {1: (80, 50)},
    }
    rows = [
        {
            **{"task": task, "method": method, "rounds": 1, "seed": seed, "keep": 0.5},
            **{"rebuilt": value, "dense": dense, "scoring_seconds": seed * dense / 10},
        }
        for method, seeds in rebuilt.items()
        for seed, values in seeds.items()
        for task, value, dense in zip(("sst2", "stsb"), values, (80, 50))
    ]
    made = quality.tables(rows).splitlines()
    assert "| `smooth_cut`, rebuilt, 1 round | 0.925 ± 0.035 |" in made
    assert "| `fisher`, rebuilt, 1 round | 0.850 ± 0.071 |" in made
    assert "| `taylor`, rebuilt, 1 round | 1.000 |" in made
    assert "| rebuilt, 1 round | -5.0 (`smooth_cut`, `taylor`) |" in made  # of the seed that all have
    assert "| `smooth_cut`, rebuilt, 1 round | 84.0 ± 5.7 |" in made  # of sst2 alone
    assert "| `fisher` | 9.8 |" in made  # the mean of 8, 5, 16 and 10 seconds
    without = quality.tables([row for row in rows if row["method"] != "taylor"]).splitlines()
    assert "| rebuilt, 1 round | +7.5 ± 3.5 (`smooth_cut`, `fisher`) |" in without


def test_runs_of_other_smoothing_have_rows_of_their_own(quality):
    run = {"task": "sst2", "method": "smooth_cut", "results": [{"keep": 0.5}, {"keep": 0.2}]}
    few = {**run, "smooth_samples": 2, "smooth_examples": 512}
    named = [(row["method"], row["keep"]) for row in quality.rows_of([run, few])]
    other = "smooth_cut, 2 passes, 512 examples"
    assert named == [("smooth_cut", 0.5), ("smooth_cut", 0.2), (other, 0.5), (other, 0.2)]
