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
"""Writing files so that a reader sees the old content or the new, never a part; reading what may be anything."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


class WriteError(OSError):
    """Says what could not be written, why, and what to do."""

    def __init__(self, what: object, reason: object, advice: str) -> None:
        super().__init__(f"{what} could not be written: {reason}. {advice}")
        self.what, self.reason = what, reason
        self.errno = reason.errno if isinstance(reason, OSError) else None


@contextmanager
def write_errors(
    what: object, advice: str = "Make room or choose another folder; what was there before is as it was."
) -> Iterator[None]:
    """Turns the errors of a full disk, a read-only folder, ... into one that says what to do. Inside another, the
    inner one says what could not be written, and the outer one what to do.

    Raises:
        `WriteError`: its cause is the original error.
    """
    try:
        yield
    except WriteError as error:
        raise WriteError(error.what, error.reason, advice) from error.__cause__
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _of_disk(error):
            raise
        reason = f"is the disk full? ({error})" if isinstance(error, RuntimeError) else error  # torch does not say
        raise WriteError(what, reason, advice) from error


def _of_disk(error: Exception) -> bool:
    """Whether writing failed: errors of the network are `OSError`s too, and `torch.save` gives a `RuntimeError`."""
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, ConnectionError)
    return isinstance(error, SafetensorError) or "inline_container" in str(error)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`. What is written there takes the place of `path` at the end, when it is on
    the disk; after an error nothing of it is left.

    Raises:
        `WriteError`: it could not be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with write_errors(path):
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def sync(path: Path) -> None:
    """Waits until a file is on the disk; some file systems tell only then that they are full."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes to a temporary file in the same folder, then renames it."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        `ValueError`: the file holds no JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, and what Python limits
        raise ValueError(f"{path} is not valid JSON: {error}; write it anew, or take another copy") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object, it holds a {type(value).__name__}")
    return value


def shown(value: Any) -> str:
    """How an error message shows a value that may be anything: its `repr`, not too long."""
    try:
        return f"{value!r:.200}"
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists nested as deep
        return f"a {type(value).__name__} too large to show"


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: `"; did you mean 'taylor'?"`, or nothing if no known name is
    like it."""
    found = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else []
    return f"; did you mean {found[0]!r}?" if found else ""
