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
"""The benchmarks of speed run on a tiny model, in processes of their own; what they share, on numbers worked out by
hand. How long anything takes decides nothing here."""

import importlib
import json
import math
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from scripts import SPEED, run_script


# The rows by the columns that name them, and what else each has.
PARTS = {
    "scoring_cost": (["method"], {"passes", "pass_to_plain", "milliseconds_per_example"}),
    "overhead": (["trainer"], {"milliseconds_per_step", "to_trainer"}),
    "latency": (
        ["batch_size", "tokens", "attention", "model"],
        {"milliseconds", "speed_up", "speed_up_by_flops", "tokens_per_second", "peak_memory_mb"},
    ),
    "decoding": (
        ["model"],
        {
            "parameters_million",
            "prompt_milliseconds",
            "prompt_speed_up",
            "milliseconds_per_token",
            "decoding_speed_up",
            "cache_mb",
        },
    ),
    "memory": (["task"], {"peak_memory_mb", "to_plain", "to_adam"}),
    "load_time": (
        ["way"],
        {"loaded_milliseconds", "loaded_to_dense", "answered_milliseconds", "answered_to_dense", "megabytes"},
    ),
    "job": (
        ["method"],
        {
            "seconds",
            "scoring_seconds",
            "rebuild_seconds",
            "job_to_plain",
            "scoring_to_plain",
            "rebuild_to_plain_forward",
        },
    ),
}
ROWS = {
    "scoring_cost": ["plain", "cam_cut", "smooth_cut", "smooth_cam_cut", "taylor", "fisher", "activation"],
    "overhead": ["Trainer", "CamCutTrainer"],
    "latency": [(size, 8, "sdpa", model) for size in (1, 2) for model in ("dense", "50%")],
    "decoding": ["dense", "50%"],
    "memory": [
        *(f"{task}{half}" for half in ("", ", half kept") for task in ("forward", "plain", "adam")),
        "cam_cut",
        "job",
    ],
    "load_time": ["dense", "load_pruned", "trust_remote_code"],
    "job": ["cam_cut", "smooth_cut"],
}
TO_ITSELF = {  # ratios that are 1
    "scoring_cost": ("plain", "pass_to_plain"),
    "overhead": ("Trainer", "to_trainer"),
    "latency": ((2, 8, "sdpa", "dense"), "speed_up"),
    "decoding": ("dense", "decoding_speed_up"),
    "load_time": ("dense", "answered_to_dense"),
}


def runs_of(path):
    return json.loads(path.read_text())["runs"]


def numbers(row):
    """All numbers of a row; each spread has its median between its ends."""
    for value in row.values():
        if isinstance(value, dict):
            assert set(value) == {"median", "low", "high"} and value["low"] <= value["median"] <= value["high"]
            yield from value.values()
        elif not isinstance(value, str):
            yield value


def rows_of(result, part):
    keys, columns = PARTS[part]
    rows = {}
    for row in result["rows"]:
        assert set(row) == {*keys, *columns}
        assert all(math.isfinite(number) and number > 0 for number in numbers(row))
        rows[tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]] = row
    return rows


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_each_benchmark_runs(part, tmp_path):
    done = run_script("run", "--only", part, "--quick", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    (result,) = runs_of(tmp_path / "speed.json")
    assert result["benchmark"] == part and "thread" in result["device"] and result["torch"] == torch.__version__
    assert result["settings"]["quick"] and result["settings"]["device"] == "cpu"
    rows = rows_of(result, part)
    assert list(rows) == ROWS[part]
    if part in TO_ITSELF:
        name, ratio = TO_ITSELF[part]
        assert set(rows[name][ratio].values()) == {1.0}
    tables = (tmp_path / "speed.md").read_text()
    assert tables in done.stdout and f"## {part}\n\n{result['device']}" in tables
    assert sum(line.startswith("| ") for line in tables.splitlines()) >= 2 + len(rows)


def test_a_benchmark_that_fails_is_named(tmp_path):
    """And does not keep the others from running; figures of an earlier run do not pass for its own."""
    folder, output = tmp_path / "benchmarks" / "speed", tmp_path / "output"
    shutil.copytree(SPEED.parent, folder.parent)
    (folder / "job.py").write_text("raise SystemExit(3)")
    result = {"benchmark": "overhead", "device": "here", "settings": {}, "rows": [{"trainer": "Trainer"}]}
    written = json.dumps({"runs": [result]})
    (folder / "overhead.py").write_text(f"import sys; open(sys.argv[-2], 'w').write({written!r})")
    output.mkdir()
    (output / "speed.json").write_text(json.dumps({"runs": [{**result, "benchmark": "job"}]}))
    done = run_script("run", "--only", "job", "overhead", "--quick", "--output_dir", output, folder=folder)
    assert done.returncode == 1 and "failed: job-cpu" in done.stderr
    assert runs_of(output / "speed.json") == [result]


@pytest.mark.long
def test_latency_in_bfloat16_and_compiled(tmp_path):
    arguments = ["--quick", "--batch_sizes", "2", "--compile", "--dtype", "bfloat16", "--attention", "eager", "sdpa"]
    done = run_script("latency", *arguments, "--multiple_of", "1", "8", "--output", tmp_path / "latency.json")
    assert done.returncode == 0, done.stderr
    (result,) = runs_of(tmp_path / "latency.json")
    rows, names = result["rows"], ("dense", "50% by 1", "50% by 8")
    models = [*names, *(f"{name} compiled" for name in names)]
    assert [(row["attention"], row["model"]) for row in rows] == [
        (attention, model) for attention in ("eager", "sdpa") for model in models
    ]
    assert all(math.isfinite(number) and number > 0 for row in rows for number in numbers(row))


def test_latency_begins_no_cell_when_its_seconds_are_over(tmp_path):
    done = run_script("latency", "--quick", "--seconds", "0", "--output", tmp_path / "latency.json")
    assert done.returncode == 0 and "left out: 1 x 8 tokens, sdpa\nleft out: 2 x 8 tokens, sdpa" in done.stdout


# --- what they share ------------------------------------------------------------------------------------------------


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    yield importlib.import_module("common")
    for name in ("common", "tables", "study"):
        sys.modules.pop(name)


def test_spread(common):
    assert common.spread([1.0, 4.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 4.0}
    assert common.spread([1.0, 4.0, 2.0], [2.0, 2.0, 8.0], 10) == {"median": 5.0, "low": 2.5, "high": 20.0}


def test_in_turn(common):
    """The first round does not count, and the order changes from round to round."""
    ran = []
    tasks = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b") or {"part": float(len(ran))}}
    times = common.in_turn(SimpleNamespace(rounds=2, device="cpu", cpu_time=False), tasks)
    assert ran == ["b", "a", "a", "b", "b", "a"]
    assert times["b/part"] == [4.0, 5.0] and {name: len(each) for name, each in times.items()} == {
        "a": 2,
        "b": 2,
        "b/part": 2,
    }


def test_peak_memory_is_of_the_task_alone(common):
    options = SimpleNamespace(device="cpu")
    small = common.peak_memory(options, lambda: None)
    large = common.peak_memory(options, lambda: torch.ones(2**26))
    assert 250 < large - small < 290  # 268 MB
    assert common.peak_memory(options, lambda: None) < large - 250


def test_the_table(common):
    result = {
        "benchmark": "example",
        "device": "a device",
        "settings": {"rounds": 3, "tokens": [1, 2], "quick": False, "dtype": "float32"},
        "rows": [
            {"model": "dense", "seconds_taken": {"median": 1.5, "low": 0.25, "high": 1234.5}, "count": 3},
            {"model": "other", "count": 123.45},
        ],
    }
    assert common.as_text(result).splitlines() == [
        "## example",
        "",
        "a device; rounds 3, dtype float32; median (lowest to highest)",
        "",
        "| model | seconds taken | count |",
        "| --- | --- | --- |",
        "| dense | 1.5 (0.25 to 1,234) | 3 |",
        "| other |  | 123.5 |",
    ]


# --- the file of a study --------------------------------------------------------------------------------------------


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(SPEED.parent)
    yield importlib.import_module("study")
    sys.modules.pop("study")


def test_a_run_takes_the_place_of_the_one_with_its_key(study, tmp_path):
    path = tmp_path / "new" / "study.json"
    assert study.read(path) == []
    for number, (seed, method) in enumerate([(1, "fisher"), (2, "fisher"), (1, "taylor"), (1, "fisher")]):
        study.add(path, {"method": method, "seed": seed, "figure": number / 3}, ("method", "seed"))
    expected = [("fisher", 1, 1.0), ("fisher", 2, 1 / 3), ("taylor", 1, 2 / 3)]
    assert study.read(path) == [dict(zip(("method", "seed", "figure"), each)) for each in expected]
    assert study.find(study.read(path), seed=2)["method"] == "fisher" and study.find([], seed=2) is None
    study.add(path, {"task": "sst2"}, ["task"], table="dense")
    assert study.read(path, "dense") == [{"task": "sst2"}] and len(study.read(path)) == 3
    assert len(path.read_text().splitlines()) == 2 + 5 + 3  # a line a run
    assert [each.name for each in path.parent.iterdir()] == ["study.json"]


def test_a_run_that_could_not_be_written_leaves_the_others(study, tmp_path, monkeypatch):
    path = tmp_path / "study.json"
    study.add(path, {"seed": 1}, ["seed"])
    with pytest.raises(TypeError):
        study.add(path, {"seed": 2, "figure": object()}, ["seed"])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        study.add(path, {"seed": 3}, ["seed"])
    assert study.read(path) == [{"seed": 1}] and list(tmp_path.iterdir()) == [path]


def test_a_file_of_something_else_is_left_alone(study, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="config.json holds no runs of a benchmark: choose another file"):
        study.add(path, {"seed": 1}, ["seed"])
    assert path.read_text() == '{"model_type": "bert"}'


def test_the_committed_studies_are_written_as_the_scripts_write_them(study, tmp_path):
    for path in sorted((SPEED.parent / "results").glob("*.json")):
        if path.name != "compare.json":  # of `optimum-cli camcut compare`
            study.write(tmp_path / path.name, study.load(path))
            assert (tmp_path / path.name).read_text() == path.read_text()


def test_scripts_share_their_arguments(study):
    """A default or a help text can be another; the name, the type and what else is said stay."""
    parser = study.make_parser("what it does")
    study.add_arguments(parser, "dataset_path", seeds=[7], keep={"nargs": None, "default": 0.25})
    assert vars(parser.parse_args([])) == {"dataset_path": None, "seeds": [7], "keep": 0.25}
    assert vars(parser.parse_args(["--seeds", "3", "4", "--keep", "0.1"]))["seeds"] == [3, 4]
    (option,) = (action for action in parser._actions if action.dest == "seeds")
    assert option.help == study.ARGUMENTS["seeds"]["help"]
