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
import subprocess
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).resolve().parent


@pytest.mark.parametrize("run", ["units", "weights", "layers"])
def test_killed_and_resumed(run):
    """At the first moment, in the middle, and at the last."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "kill_and_resume.py"), "--kills", "3", "--runs", run],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"run"')]
    assert len(kills) == 3 and all(kill["same"] for kill in kills)
    assert len({kill["killed"] for kill in kills}) == 3
