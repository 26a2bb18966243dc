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
"""What the processes of the fault tests do, and how they are started: forked from one that has imported everything.

As a script it is one process of a launcher: `accelerate launch tests/helpers/workers.py FOLDER FAULT`.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import textwrap
import time
from multiprocessing.connection import wait
from pathlib import Path

import safetensors.torch
import torch
from accelerate import PartialState
from datasets import Dataset
from models import tiny_batch, tiny_model
from places import PATH
from transformers import TrainerCallback, TrainingArguments, modeling_utils

from optimum_camcut import CamCutTrainer, PruningConfig, find_groups, latency_table, load_pruned, score_groups
from optimum_camcut.reporting.card import write_card
from optimum_camcut.scoring import sums
from optimum_camcut.training import steps
from optimum_camcut.training.losses import scoring_loss


context = multiprocessing.get_context("forkserver")


# --- starting and ending --------------------------------------------------------------------------------------------


class Worker:
    """A function in a process of its own."""

    def __init__(self, function, *args, **environment):
        context.set_forkserver_preload([__name__])
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = PATH  # by which the server finds what it should import
        try:
            self.reader, writer = context.Pipe(duplex=False)
            self.process = context.Process(target=_work, args=(writer, environment, function, args), daemon=True)
            self.process.start()
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
        writer.close()

    def end(self, seconds=120):
        """What it printed, and its exit code: minus the signal if one killed it."""
        output, deadline = b"", time.monotonic() + seconds
        with contextlib.suppress(EOFError):
            while True:
                if not wait([self.reader], max(deadline - time.monotonic(), 0)):
                    self.process.kill()
                    raise TimeoutError(f"still running after {seconds} seconds: {output.decode()[-2000:]}")
                part = os.read(self.reader.fileno(), 65536)
                if not part:
                    break
                output += part
        self.process.join(max(deadline - time.monotonic(), 1))
        return self.process.exitcode, output.decode()


def _work(writer, environment, function, args):
    os.environ.update({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment})
    torch.set_num_threads(1)
    for number in (1, 2):
        os.dup2(writer.fileno(), number)
    writer.close()
    logging.basicConfig(stream=sys.stderr, force=True)
    function(*args)
    sys.stdout.flush()


def together(number, function, *args):
    """Several processes without a launcher: no one ends them when one of them dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(number)}
    return [Worker(function, *args, **common, RANK=str(n), LOCAL_RANK=str(n)) for n in range(number)]


def run_together(number, code, folder, *arguments):
    """What each of several processes has written that run a script, which finds a folder and more in `sys.argv`."""
    workers = together(number, _run_script, textwrap.dedent(code), [str(folder), *arguments])
    for code, output in [worker.end(240) for worker in workers]:
        assert code == 0, output[-6000:]
    return [torch.load(Path(folder) / f"{index}.pt", weights_only=False) for index in range(number)]


def _run_script(code, arguments):
    sys.argv[1:] = arguments
    exec(code, {"__name__": "__main__"})


# --- faults ---------------------------------------------------------------------------------------------------------


def rank():
    return int(os.environ.get("RANK", "0"))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def limit_files(size=None):
    """From now on this process can write no file beyond this size, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if size is None else size, hard))


class At(TrainerCallback):
    """Calls a function before a step of a loop: the first loop is the dense epoch, the second the recovery."""

    def __init__(self, loop, step, function):
        self.loop, self.step, self.function, self.loops = loop, step, function, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.loops += 1

    def on_step_begin(self, args, state, control, **kwargs):
        if (self.loops, state.global_step) == (self.loop, self.step):
            self.function()


# --- work -----------------------------------------------------------------------------------------------------------


def digest(model):
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def small_model():
    return tiny_model("bert", num_hidden_layers=2)


def make_trainer(folder, callbacks=(), **changes):
    """A dense epoch, scores of which the running sums are written after every batch, a teacher, a recovery."""
    sums.RunningSums.__init__.__defaults__ = (None, "", 0.0)
    data = Dataset.from_dict({name: value.tolist() for name, value in tiny_batch(24).items()})
    config = {"method": "taylor", "sparsity": 0.5, "num_samples": 24, "dense_epochs": 1, "distill_weight": 0.5}
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    return CamCutTrainer(
        model=small_model(),
        args=arguments,
        train_dataset=data,
        pruning_config=PruningConfig(**{**config, **changes}),
        callbacks=list(callbacks),
    )


def train(folder, fault=None, resume=False, then=None):
    """Trains with a fault, and prints a digest of the weights.

    Args:
        fault: `(loop, step, function, *args)`, for the last process; a loop of "scoring" counts batches.
        then: `(function, *args)` after scoring.
    """
    callbacks, last = [], rank() == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if fault is not None and fault[0] != "scoring" and last:
        callbacks = [At(*fault[:2], lambda: fault[2](*fault[3:]))]
    trainer = make_trainer(folder, callbacks)
    seen = []

    def loss(trainer, model, batch):
        seen.append(batch)
        if len(seen) == fault[1]:
            result = fault[2](*fault[3:])
            if result is not None:
                return scoring_loss(trainer, model, batch) * result
        return scoring_loss(trainer, model, batch)

    if fault is not None and fault[0] == "scoring" and last:
        steps.scoring_loss = loss
    score = trainer.score

    def score_and_then():
        score()
        then[0](*then[1:])

    if then is not None:
        trainer.score = score_and_then
    trainer.train(resume_from_checkpoint=resume)
    print("digest", digest(trainer.model), flush=True)


def train_watched(folder, report):
    """Trains, and reports the names of all files and folders below `folder` that this process has changed."""
    written, changes = set(), ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.utime")

    def note(path):
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(f"{folder}/"):
            written.add(os.path.basename(os.fsdecode(path)))

    def watch(event, args):
        if event == "os.mkdir" and os.path.isdir(args[0]):  # which changes nothing
            return
        if event in changes or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            for path in args[: 2 if event == "os.rename" else 1]:
                note(path)

    def watched(function):  # these write without Python
        def call(*args, **kwargs):
            for path in args:
                note(path)
            return function(*args, **kwargs)

        return call

    sys.addaudithook(watch)
    torch.save = watched(torch.save)
    safetensors.torch.serialize_file = watched(safetensors.torch.serialize_file)
    train(folder)
    Path(report, f"written-{rank()}").write_text(json.dumps(sorted(written)))


def score(granularity, method, fault, patient=False):
    """Scores as one of several processes, of which the last has a fault in its second batch."""
    PartialState(cpu=True)
    model, seen = small_model(), []
    batches = [tiny_batch(seed=seed) for seed in range(9)]
    config = PruningConfig(method=method, granularity=granularity, sparsity=0.5)
    groups = find_groups(model, config.granularity)

    def loss(model, batch):
        seen.append(batch)
        if len(seen) == 2 and rank() == int(os.environ["WORLD_SIZE"]) - 1:
            return model(**batch).loss * fault()
        return model(**batch).loss

    try:
        score_groups(model, groups, batches, config, loss_function=loss, disable_tqdm=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        if patient and isinstance(error, ValueError):
            time.sleep(600)
        raise SystemExit(3) from None


def measure(folder):
    """The latency table of this process. Each has a cache of its own, so that another would measure another."""
    number = PartialState(cpu=True).process_index
    config = PruningConfig(sparsity=0.5, budget="latency", latency_batch_size=2, sequence_length=8)
    table = latency_table(tiny_model("bert"), config, cache_dir=f"{folder}/cache-{number}", disable_tqdm=True)
    table.save(f"{folder}/{number}.json")


def train_unprivileged(folder):
    """Trains as a user who may not write everywhere, and prints what is worked on."""
    if os.geteuid() == 0:
        os.seteuid(65534)  # nobody
    try:
        train(folder, (1, 0, print, "a step"))
    except OSError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        raise SystemExit(3) from None


def save_model(folder, size):
    trainer = make_trainer(folder)
    limit_files(size)
    trainer.save_model()


def save_over(folder, save, size=None, kill_at=None, **kwargs):
    """Saves a pruned model with other weights, its plan or its card over those in `folder`, on a full disk or killed
    in the middle of writing weights, or when weights in `folder` are replaced or removed."""
    model, moments = load_pruned(folder), []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

    def watched(function, writes=False):
        def call(*args, **kwargs):
            path = Path(args[-1])
            if writes or (path.parent == folder and path.name.startswith("model")):
                moments.append(path)
                if len(moments) == kill_at:
                    if writes:
                        path.write_bytes(b"half a file")
                    die()
            return function(*args, **kwargs)

        return call

    if kill_at is not None:
        os.replace, os.unlink = watched(os.replace), watched(os.unlink)
        modeling_utils.safe_save_file = watched(modeling_utils.safe_save_file, writes=True)
    limit_files(size)
    try:
        if save == "checkpoint":
            model.save_pretrained(folder, **kwargs)
        elif save == "card":
            write_card(folder, model)
        elif save == "plan":
            model.pruning_plan.save(folder)
    except OSError as error:
        print(f"{error} | {type(error.__cause__).__name__}", flush=True)
        raise SystemExit(3) from None


def last_line(output):
    return output.strip().splitlines()[-1]


def nan():
    return float("nan")


if __name__ == "__main__":
    folder, *fault = sys.argv[1:]
    faults = {"scoring": ("scoring", 2, die), "nan": ("scoring", 2, nan), "recovery": (2, 2, die)}
    Path(folder, f"pid-{rank()}").write_text(str(os.getpid()))
    train(f"{folder}/out", faults[fault[0]])
