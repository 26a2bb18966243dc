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
"""Other Pythons: environments beside the one that the tests run in, and processes in them."""

import json
import os
import subprocess
import sys
import textwrap
import venv
from pathlib import Path


def make_environment(folder: Path) -> Path:
    """The Python of a new environment with the same libraries and without this package: `.pth` files are not read from
    a folder that a `.pth` file adds, so an editable install stays behind."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], capture_output=True, text=True
    )
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (folder / site.stdout.strip() / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return python


class Python:
    """Runs scripts with another Python, each in a process forked from one that has imported the libraries, and nothing
    of this package."""

    SERVER = """
import json, os, sys, traceback
import accelerate, torch, transformers.trainer
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
torch.set_num_threads(1)
for line in sys.stdin:
    code, arguments, folder, output = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(written, number)
    sys.argv[1:], status = arguments, 1
    try:
        exec(code, {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)
"""

    def __init__(self, executable: str | Path, **environment: str) -> None:
        self.server = subprocess.Popen(
            [executable, "-c", self.SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )

    def run(self, code: str, folder: Path, *arguments: str) -> str:
        """What a script writes, which runs in a folder."""
        output = folder / "output.txt"
        print(
            json.dumps([textwrap.dedent(code), arguments, str(folder), str(output)]),
            file=self.server.stdin,
            flush=True,
        )
        status = int(self.server.stdout.readline())
        written = output.read_text() if output.exists() else ""
        assert status == 0, written[-3000:]
        return written

    def end(self) -> None:
        self.server.stdin.close()
        self.server.wait()
