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
"""Kills `CamCutTrainer.train` at many points, resumes it, and compares the final weights with those of an undisturbed
run, bit for bit.

    python tests/helpers/kill_and_resume.py --kills 20

Every run is a process of its own, forked from one that has imported everything, and dies by SIGKILL: at a step, inside
scoring, between the cut and the recovery, or in the middle of writing a file. Prints one line a kill, and fails if any
run ends elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import safetensors.torch
import torch
from datasets import Dataset
from models import tiny_batch, tiny_model
from transformers import TrainerCallback, TrainingArguments, modeling_utils

from optimum_camcut import CamCutTrainer, PruningConfig
from optimum_camcut.scoring import sums
from optimum_camcut.training import steps


# Everything that a phase can have: dense epochs, noisy scores, two rounds, a teacher, a rewind, masks.
RUNS = {
    "units": {"method": "smooth_cut", "smooth_samples": 2, "rounds": 2, "distill_weight": 0.5},
    "weights": {"method": "snip", "granularity": ["weights"], "rewind": True, "rounds": 2},
    "layers": {"method": "taylor", "granularity": ["layers", "neurons"], "distill_weight": 0.5, "rewind": True},
}


class Clock(TrainerCallback):
    """Counts the moments at which a run can be killed, and kills it at one of them."""

    def __init__(self, kill_at: int | None, log: Path) -> None:
        self.kill_at, self.log, self.count = kill_at, log, 0

    def tick(self, where: str) -> None:
        self.count += 1
        if self.kill_at is None:
            with self.log.open("a") as file:
                file.write(f"{where}\n")
        elif self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.tick(f"step {state.global_step}")

    def on_save(self, args, state, control, **kwargs) -> None:
        self.tick(f"saved {state.global_step}")

    def watch(self, module: object, name: str, where: str, broken: bool = False) -> None:
        """Ticks before and after every call of a function, and (for writers) with a part of the file written."""
        function = getattr(module, name)

        def wrapped(*args, **kwargs):
            self.tick(f"before {where}")
            if broken and self.kill_at == self.count + 1:
                path = next(a for a in args if isinstance(a, str | os.PathLike))
                Path(path).write_bytes(b"half a file")
            self.tick(f"inside {where}")
            result = function(*args, **kwargs)
            self.tick(f"after {where}")
            return result

        setattr(module, name, wrapped)


def run(folder: Path, options: dict, kill_at: int | None, resume: bool) -> None:
    """Trains in this process, which may not survive it; writes a digest of the final weights."""
    clock = Clock(kill_at, folder / "moments")
    batch = tiny_batch(24)
    data = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    arguments = TrainingArguments(
        str(folder / "out"),
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    config = PruningConfig(**{"sparsity": 0.5, "num_samples": 12, "dense_epochs": 1, **options})
    trainer = CamCutTrainer(
        model=tiny_model("bert", num_hidden_layers=2),
        args=arguments,
        train_dataset=data,
        pruning_config=config,
        callbacks=[clock],
    )
    clock.watch(torch, "save", "torch.save", broken=True)
    sums.RunningSums.__init__.__defaults__ = (None, "", 0.0)  # written after every batch
    clock.watch(sums, "save_file", "saving running sums", broken=True)
    clock.watch(safetensors.torch, "save_file", "saving the teacher", broken=True)
    clock.watch(modeling_utils, "safe_save_file", "saving weights", broken=True)
    clock.watch(steps, "score_groups", "scoring")
    clock.watch(steps, "apply_plan", "the cut")
    clock.watch(steps, "scoring_loss", "a scoring batch")
    trainer.train(resume_from_checkpoint=resume)
    digest = hashlib.sha256()
    for name, value in trainer.model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    (folder / "digest").write_text(digest.hexdigest())


def fork(*arguments) -> int:
    """Runs in a child process; returns the signal it died of, or 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit("a run failed; see above")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each kind of run, spread over all moments")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        for name in options.runs:
            undisturbed = Path(root, name)
            undisturbed.mkdir()
            fork(undisturbed, RUNS[name], None, False)
            moments = (undisturbed / "moments").read_text().splitlines()
            expected = (undisturbed / "digest").read_text()
            for number in range(options.kills):
                kill_at = 1 + round(number * (len(moments) - 1) / max(options.kills - 1, 1))
                folder, start = Path(root, f"{name}-{kill_at}"), time.perf_counter()
                folder.mkdir(exist_ok=True)
                assert fork(folder, RUNS[name], kill_at, False) == signal.SIGKILL
                fork(folder, RUNS[name], None, True)
                same = (folder / "digest").read_text() == expected
                wrong += not same
                seconds = time.perf_counter() - start
                where = f"{kill_at} of {len(moments)}, {moments[kill_at - 1]}"
                print(
                    json.dumps({"run": name, "killed": where, "same": same, "seconds": round(seconds, 1)}), flush=True
                )
    if wrong:
        raise SystemExit(f"{wrong} runs ended elsewhere")


if __name__ == "__main__":
    main()
