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
"""Disks that are full, folders that are read-only, and saves that are killed: real files in real processes."""

import os
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
import workers
from models import random_plan
from workers import Worker, digest, last_line, limit_files, small_model

from optimum_camcut import PruningPlan, apply_plan, load_pruned


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run, and what it prints at the end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = Worker(workers.train, folder).end()
    assert code == 0, output
    return folder, last_line(output)


CHECKPOINT = "Make room, and go on from the one before with resume_from_checkpoint=True."
PLACES = {
    "dense": ((1, 3, limit_files, 8192), None, f"checkpoint-4.* could not be written: .*{CHECKPOINT}"),
    "teacher": (None, (limit_files, 8192), "_teacher.safetensors could not be written: .*File too large"),
    "weights": ((2, 3, limit_files, 8192), None, f"checkpoint-4 could not be written: .*File too large.*{CHECKPOINT}"),
    "optimizer": (
        (2, 3, limit_files, None),
        None,
        f"the checkpoint .*checkpoint-4 could not .* disk full.*{CHECKPOINT}",
    ),
}


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=[pytest.mark.long] if name != "optimizer" else []) for name in PLACES]
)
def test_a_full_disk_ends_training_and_loses_nothing(place, undisturbed, tmp_path):
    folder, expected = undisturbed
    fault, then, message = PLACES[place]
    if place == "optimizer":
        sizes = [(folder / "checkpoint-4" / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")]
        assert sizes[0] < sizes[1]
        fault = (*fault[:3], sum(sizes) // 2)
    code, output = Worker(workers.train, tmp_path, fault, False, then).end()
    assert code == 1 and "The above exception was the direct cause" in output
    assert re.search(f"^optimum_camcut.utils.files.WriteError: .*{message}", output, re.MULTILINE), output
    phase = tmp_path / "_dense" if place == "dense" else tmp_path
    left = {path.name for path in phase.glob("checkpoint-4/*")}
    assert left == (set() if place == "teacher" else {".unfinished"})
    names = {path.name for path in tmp_path.rglob("*")}
    assert not [name for name in names if "partial" in name or name.startswith(("_saving", "_removed"))]
    code, output = Worker(workers.train, tmp_path, None, True).end()
    assert code == 0 and last_line(output) == expected, output
    assert set(snapshot(tmp_path)) == set(snapshot(folder))


def test_a_full_disk_does_not_end_scoring(undisturbed, tmp_path):
    code, output = Worker(workers.train, tmp_path, ("scoring", 1, limit_files, 64), False, (limit_files,)).end()
    assert code == 0 and last_line(output) == undisturbed[1], output
    assert "_scores could not be written: " in output and "scoring goes on" in output
    assert set(snapshot(tmp_path)) == set(snapshot(undisturbed[0]))


def test_a_full_disk_at_the_final_save(tmp_path):
    code, output = Worker(workers.save_model, tmp_path, 8192).end()
    assert code == 1
    message = f"WriteError: {tmp_path} could not be written: .*File too large.* another folder, and save again."
    assert re.search(message, output), output


def test_leftovers_of_killed_saves_go(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0] / "_dense", tmp_path / "out" / "_dense")
    killed = tmp_path / "out" / "checkpoint-99"
    killed.mkdir()
    (killed / ".unfinished").touch()
    (tmp_path / "out" / "_scores.123.partial").touch()
    code, output = Worker(workers.train, tmp_path / "out", None, True).end()
    assert code == 0 and last_line(output) == undisturbed[1], output
    assert set(snapshot(tmp_path / "out")) == set(snapshot(undisturbed[0]))


@pytest.mark.parametrize("kind", ["read-only", "below a file"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(kind):
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to other users
        Path(root).chmod(0o755)
        folder = Path(root, "out")
        if kind == "read-only":
            folder.mkdir(mode=0o555)
        else:
            folder.touch()
            folder = folder / "run"
        code, output = Worker(workers.train_unprivileged, folder).end()
    refused = "pruning_config.json could not be written: .Errno 13. Permission denied: .* choose another output_dir"
    message = {"read-only": f"{folder}/{refused}", "below a file": f"Not a directory: '{folder}'"}[kind]
    assert code == 3 and "a step" not in output and re.search(message, output), output


# --- saving over an earlier save ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("saved"), small_model()
    apply_plan(model, random_plan(model, seed=0))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("save", "size"), [("checkpoint", 8192), ("checkpoint", 300), ("card", 300), ("plan", 300)])
def test_a_full_disk_leaves_the_earlier_save_whole(save, size, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    code, output = Worker(workers.save_over, folder, save, size).end()
    assert code == 3 and "could not be written: " in output and "File too large" in output
    assert {"card": "README.md", "plan": "pruning_plan.json"}.get(save, "model") in output
    assert "Make room or choose another folder; what was there before is as it was. | " in output
    assert snapshot(folder) == snapshot(saved)
    code, output = Worker(workers.save_over, folder, save).end()
    assert code == 0 and set(snapshot(folder)) == set(snapshot(saved)), output


@pytest.mark.long
def test_a_killed_save_leaves_the_earlier_one_or_the_new_one(saved, tmp_path):
    """Killed while it writes, and before every renaming; sharded weights are never mixed."""
    for before, after in (("50GB", "50GB"), ("50GB", "40KB"), ("40KB", "50GB"), ("40KB", "40KB")):
        first = tmp_path / "first"
        old = load_pruned(saved)
        old.save_pretrained(first, max_shard_size=before)
        codes, loaded, kill_at = [], [], 0
        while not codes or codes[-1] != 0:
            kill_at += 1
            folder = tmp_path / "model"
            shutil.copytree(first, folder)
            save = partial(workers.save_over, folder, "checkpoint", max_shard_size=after)
            code, output = Worker(partial(save, kill_at=kill_at)).end()
            assert code in (0, -9), output
            codes.append(code)
            try:
                loaded.append(digest(load_pruned(folder)))
            except OSError as error:
                assert before == after == "40KB" and "no file named model.safetensors" in str(error)
                loaded.append(None)
            shutil.rmtree(folder)
        new = loaded[-1]
        assert len(codes) > 3 and new != digest(old) and set(loaded) <= {digest(old), new, None}
        assert loaded == sorted(loaded, key=[digest(old), None, new].index)  # once new, it stays new
        shutil.rmtree(first)


def test_a_save_waits_until_its_files_are_on_the_disk(tmp_path, monkeypatch):
    waited = set()
    monkeypatch.setattr(os, "fsync", lambda file: waited.add(Path(os.readlink(f"/proc/self/fd/{file}")).name))
    model = apply_plan(small_model(), PruningPlan({"layer.0.heads": [0]}))
    model.save_pretrained(tmp_path)
    assert waited >= {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "config.json"}
