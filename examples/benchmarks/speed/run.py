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
"""The benchmarks of speed, one after the other, each in a process of its own: on the CPU, and where there is a GPU
also there, in bfloat16 and by `torch.compile`.

    python examples/benchmarks/speed/run.py --output_dir speed
    python examples/benchmarks/speed/run.py --only latency load_time --output_dir speed
    python examples/benchmarks/speed/run.py --quick --output_dir trial    # whether everything runs, in a few minutes

`--output_dir` gets `speed.json`, a run a benchmark, and the tables in `speed.md`; what was there goes. The scripts
beside this one take more arguments when they are called by themselves.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from tables import as_text


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from study import add_arguments, make_parser, read, write


HERE = Path(__file__).resolve().parent
PARTS = ("scoring_cost", "overhead", "latency", "decoding", "memory", "load_time", "job")
COMPILED = ["--compile", "--batch_sizes", "1", "32", "--tokens", "128"]  # it takes long to compile a shape


def plan(parts: list[str]) -> dict[str, list[str]]:
    """What to run: name of the result -> script and its arguments."""
    runs = {f"{part}-cpu": [part, "--device", "cpu"] for part in parts}
    if torch.cuda.is_available():
        cuda = ["--device", "cuda", "--dtype", "bfloat16"]
        runs |= {f"{part}-cuda": [part, *cuda] for part in parts}
        if "latency" in parts:
            runs["latency-cuda-compiled"] = ["latency", *cuda, *COMPILED]
    return runs


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="default: all")
    add_arguments(parser, "output_dir", quick={"help": "a few seconds of a tiny model each"})
    options = parser.parse_args()
    runs = plan(options.only)

    path, failed = options.output_dir / "speed.json", []
    write(path, {"runs": []})  # those of an earlier call do not pass for this one's
    for name, (part, *arguments) in runs.items():
        command = [sys.executable, str(HERE / f"{part}.py"), *arguments, "--output", str(path)]
        done = subprocess.run(command + ["--quick"] * options.quick)
        if done.returncode:
            failed.append(name)
    (options.output_dir / "speed.md").write_text("\n".join(map(as_text, read(path))))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
