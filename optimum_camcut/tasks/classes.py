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
"""Which class of the data is which of the model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.files import nearest, shown


@dataclass(frozen=True)
class Classes:
    """The classes of a column.

    Args:
        names (`list[str]`): of the classes.
        values (`dict[Any, int]`): what stands in the cells -> the place among the names.
        numbered (`bool`): they are mere numbers.
        ordered (`bool`): the data number them, as a `ClassLabel` does; texts are in the order of the alphabet.
    """

    names: list[str]
    values: dict[Any, int]
    numbered: bool = False
    ordered: bool = False


def classes_of(feature: Any, values: Iterable[Any], column: str, given: Sequence[str] = ()) -> Classes:
    """The classes of a column.

    Args:
        feature: of the column, or of the items of its lists.
        values: all of them.
        column: its name, to be told of.
        given: the names that a user gives, in the order of the model's numbers; also of classes that are not in these
            rows. Numbers are given as such. As of the model's names, the case counts only where it tells them apart.

    Raises:
        `ValueError`: no labels, or such as are no classes, or not those that the user names.
    """
    if getattr(feature, "names", None):
        names = list(feature.names)
        _check_given(names, given, column)
        places = {**dict(enumerate(range(len(names)))), **{name: place for place, name in enumerate(names)}}
        return Classes(names, places, numbered=meaningless(names), ordered=True)
    found = {value for value in values if not is_blank(value)}  # which `encode` tells, with its row
    if not found:
        raise ValueError(f"the column {column!r} has no labels")
    if all(isinstance(value, int) for value in found):
        if given:
            names = _check_given([str(int(value)) for value in sorted(found)], given, column)
            if texts := [name for name in names if not re.fullmatch(r"-?[0-9]+", name)]:
                raise ValueError(
                    f"the classes in {column!r} are numbers, so --label_names should be, too; got {shown(texts)}"
                )
            return Classes(names, {int(name): place for place, name in enumerate(names)})
        if min(found) < 0:
            raise ValueError(f"the labels in {column!r} should be 0 or more; found {min(found)}")
        numbers = range(int(max(found)) + 1)
        return Classes([f"LABEL_{number}" for number in numbers], {n: n for n in numbers}, numbered=True, ordered=True)
    if not all(isinstance(value, str) for value in found):
        raise ValueError(f"the labels in {column!r} should be numbers or names; found {shown(found)}")
    alphabet = sorted(found, key=lambda name: (int(name) if name.isdecimal() else -1, name))  # "10" is behind "2"
    names = _check_given(alphabet, given, column)
    return Classes(names, {name: place for place, name in enumerate(names)})


def _check_given(names: Sequence[str], given: Sequence[str], column: str) -> list[str]:
    """The names in the order that a user gives, if there is one; in the data's case."""
    if not given:
        return list(names)
    order = match_names(names, given)
    if order is None or len(set(given)) != len(given):
        unknown = [name for name in given if name not in names]
        hint = nearest(unknown[0], names) if unknown else ""
        if any("," in name for name in unknown):
            parts = [part.strip() for part in ",".join(given).split(",")]
            hint = f"; put spaces between names, not commas: --label_names {shlex.join(filter(None, parts))}"
        raise ValueError(
            f"--label_names should name every class in {column!r} once, in the order of the model's numbers: "
            f"{', '.join(names)}; got {shown(list(given))}{hint}"
        )
    own = dict(zip(order, names))
    return [own.get(number, name) for number, name in enumerate(given)]


def is_blank(value: Any) -> bool:
    """Whether a cell holds no label: it is missing, or a text of nothing but spaces."""
    return value is None or (isinstance(value, str) and not value.strip())


def meaningless(names: Sequence[str]) -> bool:
    """Whether names are the numbers of the classes, as `LABEL_0`, `LABEL_1`, ... are."""
    return all(re.fullmatch(rf"(label_)?{number}", name, re.IGNORECASE) for number, name in enumerate(names))


def match_names(names: Sequence[str], own: Sequence[str]) -> list[int] | None:
    """For each class of the data, the number of the same name among the model's, or those that a user gives; by its
    case only where that is needed to tell them apart. None if one of the names is missing there, or if it is not
    clear which is meant."""
    for alike in (str, str.casefold):
        known = [alike(name) for name in own]
        wanted = [alike(name) for name in names]
        if set(wanted) <= set(known) and len(set(known)) == len(known) and len(set(wanted)) == len(wanted):
            return [known.index(name) for name in wanted]
    return None
