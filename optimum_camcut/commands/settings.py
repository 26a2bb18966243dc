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
"""`--config`: a file of flags by name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..utils.files import read_json


def read_settings(path: str) -> dict[str, Any]:
    """Reads a JSON or a YAML file of settings by name; a `~` that texts begin with is the home folder, as in a shell.

    Raises:
        `FileNotFoundError`: there is no such file.
        `OSError`: it cannot be read.
        `ValueError`: it holds something else, or is of another kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no file {path}; --config takes a .yaml, .yml or .json file of flags by name"
        )
    kind = Path(path).suffix.lower()
    if kind == ".json":
        return {name: _at_home(value) for name, value in read_json(path).items()}
    if kind not in (".yaml", ".yml"):
        raise ValueError(f"the config {path} should be a .json, .yaml or .yml file")
    import yaml

    class Loader(yaml.SafeLoader):
        """Of YAML 1.2, where 1e-4 is a number."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} should hold settings by name, such as sparsity: 0.5; it holds {values!r}")
    return {name: _at_home(value) for name, value in values.items()}


def _at_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value
