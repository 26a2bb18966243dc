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
"""Which cases of a test run in `make test`, and which in `make test-all` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], first: int = 1, rows: bool = False) -> list[Any]:
    """The first of the cases for `make test`; the others only repeat what they show.

    Args:
        rows: a case is a tuple of several arguments.
    """
    cases = [value if rows else (value,) for value in values]
    return [pytest.param(*case, marks=[pytest.mark.long] * (number >= first)) for number, case in enumerate(cases)]
