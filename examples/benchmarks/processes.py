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
"""Scoring on 1, 2 and 4 processes of one machine: whether the plans are equal, what it takes, and what share of it is
communication.

Every round starts each number of processes once, in turn, with one thread each (gloo on the CPU; NCCL with a GPU for
each process). The clock runs from the first batch to the scores.

    python examples/benchmarks/processes.py --output processes.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from accelerate import PartialState
from study import add, add_arguments, make_parser
from transformers import BertConfig, BertForSequenceClassification

from optimum_camcut import PruningConfig, find_groups, make_plan, score_groups


KINDS = {"units": ("heads", "neurons"), "weights": ("weights",)}


def work(options: argparse.Namespace) -> None:
    """One process: scores once to warm up, then against the clock; prints what it found."""
    torch.set_num_threads(1)
    state = PartialState(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertForSequenceClassification(config).to(state.device).eval()
    ids = torch.randint(1000, 30000, (options.examples, options.tokens))
    labels = torch.randint(0, 2, (options.examples,))
    size = options.batch_size
    batches = [{"input_ids": i, "labels": y} for i, y in zip(ids.split(size), labels.split(size))]
    pruning = PruningConfig(
        method=options.method, granularity=KINDS[options.granularity], sparsity=0.5, smooth_samples=3
    )
    groups = find_groups(model, pruning.granularity)
    communication, reduce = [], dist.all_reduce

    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = reduce(*args, **kwargs)
        communication.append(time.perf_counter() - start)
        return result

    dist.all_reduce = timed
    score_groups(model, groups, batches[: state.num_processes], pruning, disable_tqdm=True)
    communication.clear()
    if state.num_processes > 1:
        dist.barrier()
    start = time.perf_counter()
    scores = score_groups(model, groups, batches, pruning, disable_tqdm=True)
    seconds = time.perf_counter() - start
    plan = json.dumps(make_plan(scores, groups, pruning).to_dict()["keep"])
    # The first waits until all are done, the others add up what they have found.
    result = {
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
        "seconds": seconds,
        "waiting": sum(communication[:1]),
        "reducing": sum(communication[1:]),
        "scores": torch.cat([value.flatten() for value in scores.values()]).double().sum().item(),
    }
    print(f"RESULT {json.dumps(result)}", flush=True)


def start(number: int, arguments: list[str]) -> list[dict]:
    """Runs so many processes, and returns what each of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    processes = []
    for rank in range(number):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)} if number > 1 else {}
        command = [sys.executable, __file__, "--worker", *arguments]
        processes.append(subprocess.Popen(command, env={**environment, **ranks}, stdout=subprocess.PIPE, text=True))
    found = []
    for process in processes:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a process failed with code {process.returncode}")
        found += [json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")]
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    add_arguments(parser, rounds={"default": 3, "help": None}, method="cam_cut", granularity={"choices": KINDS})
    add_arguments(parser, examples={"default": 500, "help": "the default is no multiple of the batches' size"})
    add_arguments(parser, "output", batch_size=16, tokens=64)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if torch.cuda.is_available() and max(options.processes) > torch.cuda.device_count():
        parser.error(f"--processes asks for more than the {torch.cuda.device_count()} GPUs of this machine")
    names = ("method", "granularity", "examples", "batch_size", "tokens")
    arguments = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
    rounds = [{number: start(number, arguments) for number in options.processes} for _ in range(options.rounds)]
    plans = {found["plan"] for each in rounds for processes in each.values() for found in processes}
    plan = rounds[0][options.processes[0]][0]["plan"]

    results = {}
    for number in options.processes:
        slowest = [max(found["seconds"] for found in each[number]) for each in rounds]
        shares = {
            part: statistics.median(
                statistics.mean(found[part] / found["seconds"] for found in each[number]) for each in rounds
            )
            for part in ("waiting", "reducing")
        }
        results[number] = {
            "milliseconds_per_example": [1000 * s / options.examples for s in slowest],
            **shares,
            "same_plan": {found["plan"] for each in rounds for found in each[number]} == {plan},
        }
    what = f"{options.method} on {options.granularity}, {options.examples} x {options.tokens} tokens, MiniLM-L6 shape"
    print(f"{what}, {os.cpu_count()} cores; {len(plans)} plan(s) in {options.rounds} rounds")
    print(f"{'processes':>9}{'same plan':>11}{'ms an example (low - high)':>30}{'reducing':>10}{'waiting':>9}")
    for number, r in results.items():
        times = r["milliseconds_per_example"]
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} - {max(times):.2f})"
        same = "yes" if r["same_plan"] else "no"
        print(f"{number:>9}{same:>11}{spread:>30}{r['reducing']:>10.2%}{r['waiting']:>9.1%}")
    if options.output:
        settings = {name: getattr(options, name) for name in (*names, "rounds")}
        add(options.output, {"settings": settings, "plans": len(plans), "results": results}, ["settings"])
    if len(plans) > 1:
        raise SystemExit("the plans differ")


if __name__ == "__main__":
    main()
