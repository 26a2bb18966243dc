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
"""What a GPU is asked, all in one call: that the package works there, and how fast it is there.

First the checks, each in a process of its own, so that one that crashes or hangs takes no other with it; then the
benchmarks of speed, the most important first. What no longer fits into `--minutes` is left out, which is said. Without
a GPU, the checks do what they can on the CPU, and the benchmarks run on tiny models, whose figures mean nothing.

    make gpu                                               # results in outputs/gpu
    python examples/benchmarks/gpu/run.py --output_dir outputs/gpu --only scores job

`--output_dir` gets `gpu.json` and `gpu.md`, written anew after every part: one that is stopped leaves what it has. It
ends with an error if a check or a benchmark failed, or a target was missed. Torch, transformers, accelerate and
safetensors are enough, and no network.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the package, which need not be installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))
import systems  # noqa: F401  # the rest of the checks
from checks import CHECKS
from study import add, add_arguments, find, load, make_parser, read, write
from tables import as_text, table

from optimum_camcut.planning.latency import device_name


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ON_GPU = torch.cuda.is_available()
CHECK_SECONDS, LEAST_SECONDS, AT_ENDS = 100, 25, 20  # a check may take; is needed to begin; to start and to end
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "triton", "flash_attn", "greenlet")
BF16 = ("--device", "cuda", "--dtype", "bfloat16")
SHAPES = (*BF16, "--tokens", "128", "--keep", "0.5", "--batch_sizes")
COMPILED = ("speed/latency.py", *SHAPES, "1", "64", "8", "--compile", "reduce-overhead", "--seconds", "60")
# Benchmarks, the most important first: script and arguments on a GPU, and the seconds that each may take.
PARTS: dict[str, tuple[list[str], int]] = {
    "job": (
        ["speed/job.py", *BF16, "--examples", "2048", "--batch_size", "128"]
        + ["--smooth_samples", "10", "--smooth_examples", "2048"],
        150,
    ),
    "latency": (
        ["speed/latency.py", *SHAPES, "1", "8", "64", "--multiple_of", "1", "8", "64"]
        + ["--attention", "sdpa", "eager", "--seconds", "80"],
        120,
    ),
    "budgets": (
        ["budgets.py", "--dtype", "bfloat16", "--budgets", "latency", "--allocations", "per_kind", "--refresh"]
        + ["--batch_size", "256", "--sparsities", "0.3", "0.5", "0.7"],
        120,
    ),
    "compiled": ([*COMPILED, "--multiple_of", "64"], 130),
    "memory": (["speed/memory.py", *BF16], 90),
    "big_model": (
        ["big_model.py", "--in_memory", "--hidden_size", "2048", "--intermediate_size", "5632", "--tokens", "1024"],
        120,
    ),
    "scoring_cost": (["speed/scoring_cost.py", *BF16, "--rounds", "5"], 90),
    "compiled_odd": ([*COMPILED, "--multiple_of", "1"], 130),
}
# Of the job on a GPU of compute capability 9.0 or more: what, the method, the figure, and the most seconds.
TARGETS = (
    ("scoring by cam_cut", "cam_cut", "scoring_seconds", 1.5),
    ("scoring by smooth_cut, 10 passes", "smooth_cut", "scoring_seconds", 6.0),
    ("the whole job, by smooth_cut", "smooth_cut", "seconds", 8.0),
)


# --- what runs ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures are of."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not there"
    found = {"device": device_name(torch.device("cuda" if ON_GPU else "cpu")), "cores": cores()}
    if ON_GPU:
        facts = torch.cuda.get_device_properties(0)
        found |= {"memory_gb": round(facts.total_memory / 1e9, 1), "capability": f"{facts.major}.{facts.minor}"}
        found |= {"driver": driver(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
    return {**found, "date": date, "python": platform.python_version(), **versions}


def driver() -> str:
    """By NVIDIA's management library, which comes with the driver."""
    try:
        library, version = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(96)
    except OSError:
        return "unknown"
    told = not library.nvmlInit_v2() and not library.nvmlSystemGetDriverVersion(version, len(version))
    return version.value.decode() if told else "unknown"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started(command: list[str], seconds: float, folder: Path, threads: int | None = None) -> tuple[str, str, float]:
    """Runs a script: pass, skipped or fail, the last of what it said, and its seconds. It and what it has started end
    when its time is over."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {"CAMCUT_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        said, late = process.communicate(timeout=max(seconds, 1))[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, late = process.communicate()[0], True
    taken = time.monotonic() - begin
    lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
    if late or process.returncode:
        print(said[-4000:], flush=True)
        error = next((line for line in reversed(lines) if "Error" in line), lines[-1])[:600]
        return "fail", f"{f'stopped after {taken:.0f} s' if late else process.returncode}: {error}", taken
    # Libraries may have more to say as they end.
    own = [line.partition(": ") for line in lines if line.startswith(("pass: ", "skipped: "))]
    return (own[-1][0], own[-1][2], taken) if own else ("pass", "", taken)


def note(path: Path, table: str, row: dict[str, Any]) -> None:
    print(f"{row['what']}: {row['result']} {row.get('told', '')}", flush=True)
    add(path, row, ["what"], table)
    path.with_suffix(".md").write_text(markdown(path))


def run_checks(names: list[str], jobs: int, end: float, folder: Path, path: Path) -> None:
    """Several at a time: none of them measures time."""

    def run(name: str) -> dict[str, Any]:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            return {"what": name, "result": "left out", "told": f"{left:.0f} s were left"}
        command, limit = [str(HERE / "checks.py"), name], min(CHECK_SECONDS, left)
        result, told, taken = started(command, limit, folder, threads=max(cores() // jobs, 1))
        return {"what": name, "result": result, "seconds": round(taken, 1), "told": told}

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(run, name) for name in names]):
            note(path, "checks", done.result())


def run_part(name: str, end: float, quick: bool, folder: Path, path: Path) -> None:
    (script, *arguments), limit = PARTS[name]
    left = end - time.monotonic()
    row = {"what": name, "result": "left out", "told": f"{left:.0f} s were left"}
    if left >= LEAST_SECONDS:
        if quick:  # a tiny model, and what the script takes by default
            arguments = ["--quick", *(["--in_memory"] if "--in_memory" in arguments else [])]
        command = [str(HERE.parent / script), *arguments, "--output", str(path)]
        result, told, taken = started(command, left if quick else min(limit, left), folder)
        row = {"what": name, "result": result, "seconds": round(taken, 1), "told": told}
    note(path, "parts", row)


def judge(path: Path) -> None:
    """Compares the job with its targets, if it ran on such a GPU and at that size."""
    job = find(read(path), benchmark="job")
    if job is None or job["settings"]["quick"]:
        return
    judged = torch.cuda.get_device_capability() >= (9, 0)
    for what, method, column, limit in TARGETS:
        seconds = next(row[column] for row in job["rows"] if row["method"] == method)
        result = "not judged: another GPU" if not judged else "met" if seconds["median"] <= limit else "missed"
        note(path, "targets", {"what": what, "seconds": seconds, "target_seconds": limit, "result": result})


# --- what comes out -------------------------------------------------------------------------------------------------


def markdown(path: Path) -> str:
    study = load(path)
    facts = table([{"what": name.replace("_", " "), "is": str(value)} for name, value in study["settings"].items()])
    parts = [f"# {study['settings']['device']}\n\n{facts}\n"]
    parts += [f"## {name}\n\n{table(study[name])}\n" for name in TABLES if study[name]]
    return "\n".join([*parts, *map(as_text, study["runs"])])


TABLES = ("checks", "targets", "parts")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument(
        "--only", nargs="+", choices=[*CHECKS, *PARTS], help="default: all checks, then all benchmarks"
    )
    parser.add_argument("--jobs", type=int, default=max(min(cores() // 2, 6), 1), help="checks at a time")
    add_arguments(parser, "output_dir", quick={"help": "tiny models in all benchmarks, as without a GPU"})
    options = parser.parse_args()
    raise SystemExit(run_all(options))


def run_all(options: argparse.Namespace) -> str | int:
    """All that is asked for; what went wrong, or 0."""
    started_at = time.monotonic()
    end = started_at + 60 * options.minutes - AT_ENDS
    path, wanted = options.output_dir / "gpu.json", options.only or [*CHECKS, *PARTS]
    write(path, {"settings": machine(), **{table: [] for table in (*TABLES, "runs")}})
    with tempfile.TemporaryDirectory() as folder:
        # A GPU is asked for figures, too.
        checked = started_at + 30 * options.minutes if ON_GPU else end
        run_checks([name for name in CHECKS if name in wanted], options.jobs, checked, Path(folder), path)
        for part in PARTS:
            if part in wanted:
                run_part(part, end, options.quick or not ON_GPU, Path(folder), path)
                if part == "job":
                    judge(path)
    study = load(path)
    bad = [row["what"] for table in TABLES for row in study[table] if row["result"] in ("fail", "missed")]
    print(f"{path.with_suffix('.md')}, {time.monotonic() - started_at:.0f} s", flush=True)
    return f"failed: {', '.join(bad)}" if bad else 0


if __name__ == "__main__":
    main()
