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
"""`make gpu` on the CPU: what its checks can do there, and what its runner does with scripts that crash or hang."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from places import REPOSITORY
from scripts import SPEED


GPU = SPEED.parent / "gpu"
BY_THEMSELVES = ("ddp", "fsdp2", "fsdp2_trainer")  # they start torch.distributed
SLOW = ("scores", "bfloat16", "budget", "search", "trainer")


@pytest.fixture
def gpu(monkeypatch):
    """The runner, and beside it the modules of the checks."""
    for folder in (SPEED.parent, SPEED, GPU):
        monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield importlib.import_module("run")
    for name in ("run", "checks", "systems", "small", "study", "tables"):
        if name not in before:
            sys.modules.pop(name, None)


def names():
    """Without an import: collecting tests imports no script."""
    texts = [(GPU / file).read_text() for file in ("checks.py", "systems.py")]
    return [part.partition("(")[0] for text in texts for part in text.split("@check\ndef ")[1:]]


def test_the_names(gpu):
    assert not set(gpu.CHECKS) & set(gpu.PARTS)  # one name, one thing
    assert set(gpu.CHECKS) == set(names()) and {*BY_THEMSELVES, *SLOW} < set(names())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in SLOW else ())
        for name in names()
        if name not in BY_THEMSELVES
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="`make gpu` runs them there")
def test_checks(name, gpu):
    """They hold, or say what they miss."""
    try:
        assert gpu.CHECKS[name]()
    except sys.modules["small"].Skipped as reason:
        assert "no GPU" in str(reason) or "transformers 4" in str(reason) or "transformers 5" in str(reason)


def test_a_check_fails_where_something_is_wrong(gpu, monkeypatch):
    monkeypatch.setattr(sys.modules["checks"], "masked", lambda model, plan: model)
    with pytest.raises(AssertionError, match=r"bert, sdpa: off by .* of the largest number; expected at most 0.0001"):
        gpu.CHECKS["equal_sdpa"]()


# --- the runner -----------------------------------------------------------------------------------------------------

# Hides all that neither torch nor transformers nor accelerate brings, as on a machine that has no more.
HIDING = """
import importlib.machinery, importlib.metadata, re
def plain(name): return re.sub("[-_.]+", "-", name).lower()
left, allowed = ["torch", "transformers", "accelerate", "safetensors"], set()
while left:
    name = plain(left.pop())
    if name not in allowed:
        try: needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError: continue
        allowed.add(name)
        left += [re.match(r"[\\w.-]+", each)[0] for each in needs if "extra ==" not in each]
found = importlib.metadata.packages_distributions().items()
hidden = {name for name, owners in found if not allowed & set(map(plain, owners))} - {"optimum_camcut"}
find = importlib.machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def run_bare(tmp_path, *arguments):
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}  # not the package
    found = subprocess.run([sys.executable, "-c", "import greenlet"], env=environment, capture_output=True, text=True)
    assert "No module named 'greenlet'" in found.stderr
    command = [sys.executable, str(GPU / "run.py"), "--output_dir", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done, json.loads((tmp_path / "out" / "gpu.json").read_text())


def test_checks_and_benchmarks_need_no_more_than_torch_and_transformers(tmp_path):
    done, found = run_bare(tmp_path, "--quick", "--only", "ddp", "job", "--minutes", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["what"]: row["result"] for row in found["checks"]} == {"ddp": "pass"}
    assert [(row["what"], row["result"]) for row in found["parts"]] == [("job", "pass")]
    (job,) = found["runs"]
    assert job["settings"]["quick"] and [row["method"] for row in job["rows"]] == ["cam_cut", "smooth_cut"]
    assert found["targets"] == [] and found["settings"]["torch"] == torch.__version__
    tables = (tmp_path / "out" / "gpu.md").read_text()
    assert "| ddp | pass |" in tables and "## job\n" in tables


@pytest.mark.long
def test_every_benchmark_runs(tmp_path):
    wanted = ["fsdp2", "latency", "budgets", "compiled", "memory", "big_model", "scoring_cost", "compiled_odd"]
    done, found = run_bare(tmp_path, "--quick", "--only", *wanted, "--minutes", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["result"] for row in found["checks"] + found["parts"]} == {"pass"}
    assert [row["what"] for row in found["parts"]] == wanted[1:]
    assert {run["benchmark"] for run in found["runs"]} == {"latency", "budgets", "memory", "big_model", "scoring_cost"}


def started(gpu, tmp_path, code, seconds=60):
    (tmp_path / "script.py").write_text(code)
    return gpu.started([str(tmp_path / "script.py")], seconds, tmp_path)[:2]


def test_what_a_script_says_is_its_result(gpu, tmp_path):
    said = "print('before'); print('{}'); print('a library has more to say')"
    assert started(gpu, tmp_path, said.format("pass: seen: 3")) == ("pass", "seen: 3")
    assert started(gpu, tmp_path, said.format("skipped: no such kernel")) == ("skipped", "no such kernel")
    assert started(gpu, tmp_path, "import sys; print('no error', file=sys.stderr)") == ("pass", "")
    assert started(gpu, tmp_path, "print('pass: it is not'); raise ValueError('wrong')") == (
        "fail",
        "1: ValueError: wrong",
    )


def test_a_crash_and_a_hang_are_failures(gpu, tmp_path):
    crash = "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    assert started(gpu, tmp_path, crash) == ("fail", "-11: so far")
    hang = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
print("waits", flush=True)
time.sleep(600)
"""
    result, told = started(gpu, tmp_path, hang, seconds=5)
    assert result == "fail" and told.startswith("stopped after 5 s: waits")
    child = Path("/proc") / (tmp_path / "child").read_text() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split()[2] == "Z", "what the script has started runs on"


def test_what_no_longer_fits_is_left_out(gpu, tmp_path):
    path = tmp_path / "gpu.json"
    gpu.write(path, {"settings": gpu.machine(), **{table: [] for table in (*gpu.TABLES, "runs")}})
    end = time.monotonic() + 3
    gpu.run_checks(["equal_sdpa"], 1, end, tmp_path, path)
    gpu.run_part("job", end, True, tmp_path, path)
    for table in ("checks", "parts"):
        (row,) = gpu.read(path, table)
        assert row["result"] == "left out" and row["told"] == "3 s were left"
    assert path.with_suffix(".md").read_text().count("| left out |") == 2


@pytest.mark.parametrize(
    "capability, expected", [((9, 0), ["met", "missed", "met"]), ((8, 6), ["not judged: another GPU"] * 3)]
)
def test_targets(capability, expected, gpu, tmp_path, monkeypatch):
    """Medians count."""

    def spread(median):
        return {"median": median, "low": 0.1, "high": 100.0}

    rows = [
        {"method": "cam_cut", "seconds": spread(50.0), "scoring_seconds": spread(1.5)},
        {"method": "smooth_cut", "seconds": spread(8.0), "scoring_seconds": spread(6.1)},
    ]
    path, job = (
        tmp_path / "gpu.json",
        {"benchmark": "job", "device": "a GPU", "settings": {"quick": False}, "rows": rows},
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    gpu.write(path, {"settings": gpu.machine(), **{table: [] for table in gpu.TABLES}, "runs": [job]})
    gpu.judge(path)
    found = gpu.read(path, "targets")
    assert [row["result"] for row in found] == expected
    assert [row["target_seconds"] for row in found] == [1.5, 6.0, 8.0]


def test_make_starts_it_with_the_python_that_is_there(tmp_path):
    """And makes no environment."""
    command = ["make", "--no-print-directory", "--dry-run", "gpu", "PYTHON=some-python", f"OUTPUT={tmp_path}"]
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}  # of `make test`
    told = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.strip() == f"some-python examples/benchmarks/gpu/run.py --output_dir {tmp_path}"
