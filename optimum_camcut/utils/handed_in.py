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
"""What a room calls that lies above it. The package hands it in, so that imports go one way."""

from __future__ import annotations

import importlib
from typing import Any


_places: dict[str, str] = {}  # name -> the module that defines it, imported at first use


def hand_in(name: str, module: str) -> None:
    """Says which module of the package defines what others call by this name."""
    _places[name] = module


def handed_in(name: str) -> Any:
    """What was handed in under a name."""
    return getattr(importlib.import_module(_places[name]), name)
