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
"""Environments of Python beside the one that the tests run in."""

import subprocess
import sys
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
