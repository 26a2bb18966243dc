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
"""`examples/benchmarks/deepcuts` as it is run: stopped and started again, by two processes, and what it reports."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from optimum_camcut import PruningPlan, mask_iou


FOLDER = Path(__file__).resolve().parents[2] / "examples" / "benchmarks" / "deepcuts"
METHODS = ("magnitude", "cam_cut+shift", "smooth_cut")
TASKS = {"sst2": ["sentence"], "stsb": ["sentence1", "sentence2"]}
KEEP = (0.5, 0.2)
MEASURED = ("metric", "kept", "compression")


@pytest.fixture(scope="session")
def data(glue_folder):
    return glue_folder


def start(model_path, data, output, *flags):
    arguments = ["--model_name_or_path", model_path, "--dataset_path", data, "--output_dir", output]
    arguments += ["--tasks", *TASKS, "--seeds", "0", "--methods", *METHODS, "--keep", *KEEP, "--dropout", "off"]
    arguments += ["--num_samples", "24", "--smooth_samples", "2", "--epochs", "4", "--learning_rate", "1e-2", *flags]
    return subprocess.Popen(
        [sys.executable, str(FOLDER / "run.py"), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-4000:]
    return [line.partition(":")[0] for line in output.splitlines() if line.startswith(tuple(TASKS))]


@pytest.fixture(scope="session")
def results(model_path, data, tmp_path_factory):
    """What a run that nobody disturbed leaves behind."""
    folder = tmp_path_factory.mktemp("results")
    done = finish(start(model_path, data, folder))
    assert sorted(name for name in done if not name.endswith("dense")) == sorted(runs(folder))
    return folder


def table(folder, name):
    return json.loads((folder / "deepcuts.json").read_text())[name]


def runs(folder):
    """By the names that `run.py` prints."""
    keys = ("task", "seed", "recipe", "method", "allocation", "dropout", "keep")
    return {"-".join(str(row[key]) for key in keys): row for row in table(folder, "runs")}


def dense(folder, task):
    (found,) = (row for row in table(folder, "dense") if row["task"] == task)
    return found


def measured(folder):
    return {name: [row[key] for key in MEASURED] for name, row in runs(folder).items()}


@pytest.mark.long
def test_every_run_is_there(results):
    dropout = {"magnitude": "any"}
    expected = {
        f"{task}-0-{recipe}-{method}-uniform-{dropout.get(method, 'off')}-{keep}"
        for task in TASKS
        for recipe in ("none", "rewind")
        for method in METHODS
        for keep in KEEP
    }
    found = runs(results)
    assert set(found) == expected
    for row in found.values():
        assert row["kept"] == pytest.approx(row["keep"], abs=0.005)  # counted in the evaluated model
        assert (row["train_seconds"] > 0) == (row["recipe"] == "rewind") and row["device"]
    assert len({row["metric"] for row in found.values()}) > 8  # the runs are different runs
    assert len(table(results, "runs")) == len(found)
    settings, (versions,) = table(results, "settings"), table(results, "versions")
    assert settings["num_samples"] == 24 and settings["epochs"] == 4
    assert set(versions) == {"torch", "transformers", "optimum_camcut"}
    assert len(table(results, "scoring")) == len(TASKS) * len(METHODS)


@pytest.mark.long
def test_metric_and_compression_by_hand(results, data, model_path):
    """One run worked out anew, from the dense model and the plan alone."""
    folder = results / "models" / "sst2-0" / "dense"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    plan = PruningPlan.load(results / "plans" / "sst2-0-cam_cut+shift-off" / "uniform-0.2.json")
    rows = Dataset.from_parquet(str(data / "sst2" / "validation.parquet"))
    tokenizer = BertTokenizerFast.from_pretrained(model_path)
    with torch.no_grad():
        for name in plan.keep:
            parameter = model.get_parameter(name)
            parameter *= torch.from_numpy(plan.mask(name)).view(parameter.shape)
        logits = model(**tokenizer(list(rows["sentence"]), padding=True, return_tensors="pt")).logits
    accuracy = (logits.argmax(1) == torch.tensor(list(rows["label"]))).float().mean()
    row = runs(results)["sst2-0-none-cam_cut+shift-uniform-off-0.2"]
    assert row["metric"] == pytest.approx(100 * float(accuracy), abs=1e-4)
    linear = sum(plan.sizes.values())
    removed = linear - sum(len(units) for units in plan.keep.values())
    parameters = sum(p.numel() for p in model.parameters())
    assert row["compression"] == pytest.approx(parameters / (parameters - removed), rel=1e-3)
    assert not any("classifier" in name or "embeddings" in name for name in plan.keep)
    assert {"bert.encoder.layer.0.attention.self.query.weight", "bert.pooler.dense.weight"} <= set(plan.keep)


@pytest.mark.long
def test_stopped_and_taken_up_by_two_processes(results, model_path, data, tmp_path, report):
    leftover = tmp_path / "models" / ".stsb-0"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("{")  # as if it had been stopped there before
    process = start(model_path, data, tmp_path)
    deadline = time.monotonic() + 200
    study = tmp_path / "deepcuts.json"
    while (not study.exists() or len(runs(tmp_path)) < 4) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = runs(tmp_path)
    assert 4 <= len(before) < 24
    trained = {path.name for path in tmp_path.glob("models/*")}

    done = [finish(process) for process in [start(model_path, data, tmp_path) for _ in range(2)]]
    assert {name: row for name, row in runs(tmp_path).items() if name in before} == before  # also its seconds
    missing = {*runs(results)} - {*before}
    missing |= {f"{name}-dense" for name in {"sst2-0", "stsb-0"} - trained}
    assert sorted(done[0] + done[1]) == sorted(missing) and all(done)  # nothing twice, nothing in vain
    assert measured(tmp_path) == measured(results)
    report.write_report(tmp_path)  # of all runs: the first process to end had not seen the last ones
    tables_of = [(folder / "report.md").read_text().split("## Seconds")[0] for folder in (tmp_path, results)]
    assert tables_of[0] == tables_of[1]


@pytest.mark.long
def test_other_settings_are_refused(results, model_path, data, tmp_path):
    shutil.copytree(results, tmp_path / "results")
    process = start(model_path, data, tmp_path / "results", "--epochs", "3", "--num_samples", "25")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (
        "deepcuts.json was made with other settings: num_samples was 24 and is now 25; epochs was 4.0 and is now 3.0"
        in (output)
    )
    assert "another --output_dir" in output


@pytest.mark.long
def test_overlaps_are_those_of_the_plans(results):
    overlaps = json.loads((results / "overlaps.json").read_text())["runs"]
    assert sorted((row["task"], row["keep"]) for row in overlaps) == sorted((t, k) for t in TASKS for k in KEEP)
    for row in overlaps:
        assert row["methods"] == list(METHODS)
        plans = {
            method: PruningPlan.load(
                results
                / "plans"
                / f"{row['task']}-0-{method}-{'any' if method == 'magnitude' else 'off'}"
                / f"uniform-{row['keep']}.json"
            )
            for method in METHODS
        }
        assert [(pair["first"], pair["second"]) for pair in row["pairs"]] == list(combinations(METHODS, 2))
        for pair in row["pairs"]:
            overlap = mask_iou(plans[pair["first"]], plans[pair["second"]])
            assert vars(overlap) == {key: pair[key] for key in ("groups", "layers", "total")}
            assert 0 < pair["total"] < 1


def tables(report):
    """Every table of a report, by the section and the line above it: row -> column -> cell."""
    found, section, above, header = {}, "", "", None
    for line in filter(None, report.splitlines()):
        if not line.startswith("|"):
            section, above, header = line.removeprefix("## ") if line.startswith("## ") else section, line, None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if header is None:
            header, table = cells[1:], found.setdefault((section, above), {})
        elif set(cells) != {"---"}:
            table[cells[0].strip("`")] = dict(zip(header, cells[1:]))
    return found


@pytest.mark.long
def test_the_tables_hold_the_numbers(results):
    found = tables((results / "report.md").read_text())
    where = "(allocation uniform, scored with dropout off)"
    texts = {
        "none": f"**Masked, not trained again** {where}",
        "rewind": f"**Rewound, masked and trained again** {where}",
    }
    sections = {"sst2": "sst2: accuracy, in percent", "stsb": "stsb: Spearman correlation, in percent"}
    rows = runs(results).values()
    for task, section in sections.items():
        whole = dense(results, task)["metric"]
        for recipe, text in texts.items():
            table = found[section, text]
            assert list(table) == ["dense", *METHODS]
            for column, keep in zip(table["dense"], KEEP):
                chosen = {r["method"]: r for r in rows if (r["task"], r["recipe"], r["keep"]) == (task, recipe, keep)}
                assert column == f"{keep:.0%} ({statistics.mean(r['compression'] for r in chosen.values()):.2f}x)"
                assert table["dense"][column] == f"{whole:.1f}"
                best = max(row["metric"] for row in chosen.values())
                for method, row in chosen.items():
                    number = f"{row['metric']:.1f}"
                    assert table[method][column] == (f"**{number}**" if row["metric"] == best else number)
    for recipe, text in texts.items():
        (table,) = (t for (s, above), t in found.items() if s.startswith("The paper's methods") and above == text)
        assert list(table) == [f"{method}` - `magnitude" for method in ("cam_cut+shift", "smooth_cut")]
        of = {(r["task"], r["method"], r["keep"]): r["metric"] for r in rows if r["recipe"] == recipe}
        for name, cells in table.items():
            method, standard = name.split("` - `")
            for keep in KEEP:
                gains = [of[task, method, keep] - of[task, standard, keep] for task in TASKS]
                expected = f"{statistics.mean(gains):+.1f} ± {statistics.stdev(gains):.1f} (n=2)"
                assert cells[f"{keep:.0%}"] == expected
    images = [
        line.partition("](")[2].rstrip(")")
        for line in (results / "report.md").read_text().splitlines()
        if "](" in line
    ]
    # Two tasks: a metric, an IoU matrix for each of two fractions, a heat map for every two of three methods.
    assert len(set(images)) == 2 * (1 + 2 + 3)
    assert all((results / image).read_bytes().startswith(b"\x89PNG") for image in images)


def row(method, metric, seed=0, task="sst2", dropout="on", **changes):
    made = {"task": task, "seed": seed, "method": method, "dropout": dropout, "recipe": "none", "keep": 0.5}
    return {**made, "allocation": "uniform", "metric": metric, "compression": 2.0, **changes}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import report

    return report


def test_means_deviations_and_the_best(report):
    rows = [row("snip", 80.0), row("snip", 82.0, seed=1), row("cam_cut", 83.0), row("cam_cut", 85.0, seed=1)]
    rows += [row("random", 50.0, keep=0.1, compression=5.0)]
    assert report.results_table(rows, [90.0, 92.0]).splitlines() == [
        "| kept (compression) | 50% (2.00x) | 10% (5.00x) |",
        "| --- | --- | --- |",
        "| dense | 91.0 ± 1.4 | 91.0 ± 1.4 |",
        "| `snip` | 81.0 ± 1.4 |  |",
        "| `random` |  | **50.0** |",
        "| `cam_cut` | **84.0 ± 1.4** |  |",
    ]


def test_differences_are_paired(report):
    rows = [row("snip", 80.0), row("snip", 60.0, seed=1), row("snip", 10.0, seed=2), row("snip", 30.0, task="cola")]
    rows += [row("cam_cut", 81.0), row("cam_cut", 63.0, seed=1), row("cam_cut", 28.0, task="cola")]
    # 1, 3 and -2; seed 2 has no partner. Mean 2/3, deviation sqrt(19/3).
    assert report.differences_table(rows).splitlines()[2:] == ["| `cam_cut` - `snip` | +0.7 ± 2.5 (n=3) |"]
    assert report.differences_table(rows[:4]) == ""


def test_methods_that_look_at_weights_alone_go_with_either_dropout(report):
    rows = [row("magnitude", 1.0, dropout="any"), row("snip", 2.0, dropout="on"), row("snip", 3.0, dropout="off")]
    found = {key: [r["metric"] for r in chosen] for key, chosen in report.settings(rows).items()}
    assert found == {("uniform", "off"): [1.0, 3.0], ("uniform", "on"): [1.0, 2.0]}
    assert list(report.settings(rows[:1])) == [("uniform", "any")]


def test_overlaps_are_averaged_over_seeds(report):
    pairs = [
        {"first": "snip", "second": "cam_cut", "groups": {"a": x}, "layers": {"0": x}, "total": x} for x in (0.2, 0.4)
    ]
    (overlap,) = report.mean_overlaps([{"pairs": [pair]} for pair in pairs]).values()
    assert overlap.groups["a"] == overlap.layers["0"] == overlap.total == pytest.approx(0.3)


def test_a_folder_without_results(report, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected runs in .*deepcuts.json, found none; run.py makes"):
        report.write_report(tmp_path)


@pytest.mark.long
def test_models_that_are_fine_tuned_already(results, model_path, data, tmp_path):
    """They are what is masked; what trains again is compared with a model trained on the same schedule."""
    flags = ["--recipes", "none", "--methods", "magnitude", "--keep", "0.5", "--epochs", "1", "--tasks", "sst2"]
    dense_model = f"{results}/models/{{task}}-0/dense"
    finish(start(model_path, data, tmp_path, "--dense_model", dense_model, *flags))
    of = [dense(folder, "sst2") for folder in (results, tmp_path)]
    assert of[0]["metric"] == of[0]["trained_metric"] == of[1]["metric"] != of[1]["trained_metric"]
    name = "sst2-0-none-magnitude-uniform-any-0.5"
    assert measured(tmp_path)[name] == measured(results)[name]
