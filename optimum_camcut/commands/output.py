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
"""What commands write, and where they may."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path


def check_output(path: str, overwrite: bool, model: str | None = None, resumable: str | None = None) -> Path:
    """Raises `ValueError` unless a folder can be written to without losing anything.

    Args:
        resumable: a file that is in the folder if the next run can go on from there.
    """
    output = Path(path)
    if output.exists() and not output.is_dir():
        raise ValueError(f"the output {output} is a file; name a folder")
    if model is not None and output.is_dir() and Path(model).is_dir() and output.samefile(model):
        raise ValueError(f"the output {output} is the folder of the model, which would be lost; name another")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        more = " (or --resume: a run was interrupted there)" if resumable and (output / resumable).exists() else ""
        raise ValueError(f"the output folder {output} is not empty: choose another, or pass --overwrite{more}")
    there = next(each for each in (output, *output.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"the output {output} cannot be written: {there} is no folder that one can write to")
    return output


def check_file(path: Path, overwrite: bool) -> None:
    """Raises `ValueError` if a file is there, and not to be lost. Makes the folder that it will be in, so that this
    does not fail after the work."""
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: choose another name, or pass --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)


def quiet(verbose: bool) -> None:
    """Silences what libraries tell, and their progress bars where nobody watches. To be called before transformers
    is imported, which tells something as it is."""
    import datasets
    import torch  # noqa: F401 - it sets the level of its logger as it is imported

    if not verbose:
        logging.getLogger("torch").setLevel(logging.ERROR)

    from transformers.utils import logging as transformers_logging

    if not verbose:
        transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
