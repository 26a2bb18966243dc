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
"""Where a checkpoint can be loaded from, as code and words for a card or a report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..planning.plan import PruningPlan


class Place(NamedTuple):
    """Where a checkpoint is.

    Args:
        arguments (`str`): what to write between the parentheses of a call that loads it: `'"user/name"'`, say.
        note (`str`): a sentence on where that call runs, if not everywhere.
    """

    arguments: str
    note: str = ""


def on_hub(repo_id: str, revision: str | None = None) -> Place:
    """A repository, and the branch if it is not the main one."""
    return Place(f'"{repo_id}"' + (f', revision="{revision}"' if revision not in (None, "main") else ""))


def in_folder(location: str, seen_from: str = "this was written in") -> Place:
    """A folder, by its name or its path.

    Args:
        seen_from: ends the sentence on the folder that a relative path begins at.
    """
    if "/" not in location:
        note = f"Run this in the folder that holds `{location}`, or give the path to it."
    else:
        note = "" if Path(location).is_absolute() else f"The path begins at the folder that {seen_from}."
    return Place(f'"{location}"', note)


def first_with_plan(plan: PruningPlan, places: Iterable[tuple[Path | None, Place]]) -> Place | None:
    """The first place that holds a model which is cut by a plan.

    Args:
        places: each after the file that has its own plan, if there may be one.
    """
    return next((place for path, place in places if path is not None and _is_plan(path, plan)), None)


def _is_plan(path: Path, plan: PruningPlan) -> bool:
    try:
        return path.is_file() and PruningPlan.load(path).keep == plan.keep
    except (OSError, ValueError):  # an old file, or half of one
        return False
