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
"""Runs that are killed and resumed end where undisturbed ones do. `make test-faults` kills at many more points."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import workers
from models import tiny_batch, tiny_model
from places import HELPERS, PATH
from workers import last_line, together

from optimum_camcut import PruningConfig, find_groups, score_groups
from optimum_camcut.scoring import sums


@pytest.mark.long
@pytest.mark.parametrize("run", ["units", "weights", "layers"])
def test_killed_and_resumed(run):
    """At the first moment, in the middle, and at the last."""
    done = subprocess.run(
        [sys.executable, str(HELPERS / "kill_and_resume.py"), "--kills", "3", "--runs", run],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run"')]
    assert len(kills) == 3 and all(kill["same"] for kill in kills)
    assert len({kill["killed"] for kill in kills}) == 3


@pytest.mark.parametrize(
    ("granularity", "method"), [("neurons", "smooth_cut"), ("weights", "smooth_cam_cut"), ("weights", "wanda")]
)
def test_scoring_goes_on_where_it_was_stopped(granularity, method, tmp_path, monkeypatch):
    monkeypatch.setattr(sums.RunningSums.__init__, "__defaults__", (None, "", 0.0))  # written after every batch
    model, seen = tiny_model("bert"), []
    config = PruningConfig(method=method, granularity=granularity, sparsity=0.5, smooth_samples=1, dropout=True)
    groups, batches = find_groups(model, granularity), [tiny_batch(seed=seed) for seed in range(4)]
    forward = model.forward

    def watch(*args, **kwargs):
        seen.append(kwargs["input_ids"])
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    def score(**changes):
        seen.clear()
        return score_groups(model, groups, batches, config, disable_tqdm=True, **changes)

    stop_at = None
    expected = score()
    monkeypatch.setattr(model, "forward", watch)
    stop_at, passes = None, 2 if granularity == "neurons" else 1  # noisy and clean
    score()
    assert len(seen) == 4 * passes
    stop_at = 2 * passes + 1
    with pytest.raises(KeyboardInterrupt):
        score(progress_file=tmp_path / "sums")
    stop_at = None
    scores = score(progress_file=tmp_path / "sums")
    assert len(seen) == 2 * passes and torch.equal(seen[0], batches[2]["input_ids"])
    assert list(scores) == list(expected) and all(torch.equal(scores[name], expected[name]) for name in scores)
    assert score(progress_file=tmp_path / "sums").keys() == scores.keys() and not seen  # all is there
    with torch.no_grad():
        model.classifier.bias.add_(1)  # another model: its sums are others
    score(progress_file=tmp_path / "sums")
    assert len(seen) == 4 * passes
    (tmp_path / "sums").write_bytes(b"half a file")
    score(progress_file=tmp_path / "sums")
    assert len(seen) == 4 * passes


@pytest.mark.parametrize("granularity", ["neurons", "weights"])
def test_scoring_goes_on_only_with_the_same_batches(granularity, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sums.RunningSums.__init__, "__defaults__", (None, "", 0.0))
    model, path = tiny_model("bert"), tmp_path / "sums"
    batches = [tiny_batch(seed=seed) for seed in range(4)]

    def score(batches, seed=0):
        config = PruningConfig(
            method="taylor" if granularity == "neurons" else "snip", granularity=granularity, sparsity=0.5, seed=seed
        )
        groups = find_groups(model, granularity)
        return score_groups(model, groups, batches, config, disable_tqdm=True, progress_file=path)

    expected = score(batches)
    halves = [{name: value[i : i + 2] for name, value in batch.items()} for batch in batches for i in (0, 2)]
    for others in (
        halves,
        batches[:3],
        batches[::-1],
        [{**batch, "labels": (batch["labels"] + 1) % 3} for batch in batches],
    ):
        with pytest.raises(ValueError, match="holds scores of 4 other batches .* remove the file to start over"):
            score(others)
    again = score(batches)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    score(halves, seed=1)  # another config: other sums
    assert "is of another model or config: scoring starts from the beginning" in caplog.text


@pytest.mark.parametrize("granularity", ["heads", "weights"])
def test_one_batch_with_a_nan_loss_is_named(granularity):
    model, batches = tiny_model("bert"), [tiny_batch(seed=seed) for seed in range(4)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = PruningConfig(method="cam_cut", granularity=granularity, sparsity=0.5)

    def loss(model, batch):
        spoilt = torch.equal(batch["input_ids"], batches[2]["input_ids"])
        return model(**batch).loss * (float("nan") if spoilt else 1)

    with pytest.raises(ValueError, match="the loss of scoring batch 2 is nan, with which all scores are NaN"):
        score_groups(model, find_groups(model, granularity), batches, config, loss_function=loss, disable_tqdm=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


# --- a process that fails or dies -----------------------------------------------------------------------------------

DIED = "ScoringError: another process died while scoring: see its output, and start all of them again"
FAILED = "ScoringError: scoring failed in another process (number 2): see the error in its output"


@pytest.mark.parametrize(("granularity", "method"), [("neurons", "smooth_cut"), ("weights", "snip")])
def test_scoring_ends_in_all_processes_when_one_dies(granularity, method):
    first, second, dead = (w.end() for w in together(3, workers.score, granularity, method, workers.die))
    assert dead[0] == -signal.SIGKILL
    for code, output in (first, second):
        assert code == 3 and DIED in output


@pytest.mark.parametrize(("granularity", "method"), [("heads", "taylor"), ("weights", "cam_cut")])
def test_scoring_fails_in_all_processes_when_one_fails_and_lives_on(granularity, method):
    *others, failing = together(3, workers.score, granularity, method, workers.nan, True)
    for code, output in (worker.end() for worker in others):
        assert code == 3 and FAILED in output
    failing.process.kill()  # which has been waiting since
    code, output = failing.end()
    assert code == -signal.SIGKILL and "ValueError: the loss of scoring batch 5 is nan" in output


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes print at the end that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, outputs = zip(*[worker.end() for worker in together(2, workers.train, folder / "out")])
    assert codes == (0, 0), outputs
    one, other = map(last_line, outputs)
    assert one == other and one.startswith("digest")
    return one


FAULTS = {
    "scoring": ("scoring", 2, workers.die),
    "nan": ("scoring", 2, workers.nan),
    "dense": (1, 2, workers.die),
    "recovery": (2, 2, workers.die),
}


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS)
def test_training_stops_when_a_process_dies_and_goes_on_from_there(fault, two_processes, tmp_path):
    """Without a launcher, which would end the others."""
    (code, output), (dead, _) = (worker.end() for worker in together(2, workers.train, tmp_path, FAULTS[fault]))
    assert dead == (1 if fault == "nan" else -signal.SIGKILL)
    assert code == 1 and ("RuntimeError: " in output or "ScoringError: " in output)
    for worker in together(2, workers.train, tmp_path, None, True):
        code, output = worker.end()
        assert code == 0 and last_line(output) == two_processes, output


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "fault"), [("accelerate", "scoring"), ("torchrun", "nan")])
def test_launchers_end(launcher, fault, two_processes, tmp_path):
    command = {
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
        + ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"],
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    }
    done = subprocess.run(
        [sys.executable, "-m", *command[launcher], str(HELPERS / "workers.py"), str(tmp_path), fault],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": workers.PATH},
        timeout=120,
    )
    assert done.returncode != 0
    assert "ValueError: the loss of scoring batch 3 is nan" in done.stderr or fault != "nan", done.stderr
    for number in range(2):
        pid = int((tmp_path / f"pid-{number}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for worker in together(2, workers.train, tmp_path / "out", None, True):
        code, output = worker.end()
        assert code == 0 and last_line(output) == two_processes, output


@pytest.mark.long
def test_only_the_main_process_writes(two_processes, tmp_path):
    """But for the sums and the random state of each."""
    for number, worker in enumerate(together(2, workers.train_watched, tmp_path / "out", tmp_path)):
        code, output = worker.end()
        assert code == 0 and last_line(output) == two_processes, output
        written = json.loads((tmp_path / f"written-{number}").read_text())
        if number == 0:
            expected = {"model.safetensors", "optimizer.pt", "trainer_state.json", "pruning_plan.json", ".unfinished"}
            assert expected | {"rng_state_0.pth", "_scores.0", "_teacher.safetensors"} <= set(written)
        else:
            partial = [name for name in written if name.startswith("_scores.1.") and name.endswith(".partial")]
            assert set(written) == {"rng_state_1.pth", "_scores.1", *partial} and len(partial) == 1
