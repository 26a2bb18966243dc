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
"""Settings by the names of fields: what may be in them, and what has changed."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from .files import nearest, shown


def check_fields(cls: type, values: Any) -> None:
    """Raises `ValueError`, listing the known ones, unless values are by the names of a dataclass's fields."""
    known = [f.name for f in dataclasses.fields(cls)]
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a dict with the fields of {cls.__name__}, {', '.join(known)}; got {shown(values)}")
    unknown = sorted((name for name in values if name not in known), key=repr)
    if unknown:
        raise ValueError(
            f"unknown {cls.__name__} fields {shown(unknown)}; known fields: {', '.join(known)}"
            f"{nearest(unknown[0], known)}"
        )


def check_value(name: str, value: Any, kind: type, valid: Callable[[Any], bool], expected: str) -> None:
    """Raises `ValueError` unless a value is valid and an `int`, `float` or `bool`; an integer is a `float`, too."""
    kinds = (int, float) if kind is float else kind
    right_type = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
    # Larger numbers would overflow wherever they are used.
    largest = 2**63 - 1 if kind is int else sys.float_info.max
    in_range = right_type and abs(value) <= largest and not math.isnan(value)
    if not in_range or not valid(value):
        raise ValueError(f"{name} should be {expected}; got {shown(value)}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What settings by name were and are now, where that is not the same; empty if it is."""
    return "; ".join(
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    )


def numbers_in(text: str) -> int | dict[str, int] | None:
    """`"4"` as 4 and `"heads=1,neurons=64"` as a dict; None for another text, or one that names a kind twice."""
    parts = [part.partition("=") for part in text.split(",")]
    try:
        if not any(equals for _, equals, _ in parts):
            return int(text)
        numbers = {kind.strip(): int(number) for kind, _, number in parts}
    except ValueError:
        return None
    return numbers if len(numbers) == len(parts) else None


def read_exclude(given: Any) -> tuple[str, ...] | None:
    """`PruningConfig.exclude`: numbers of layers become texts; an empty list is None."""
    if isinstance(given, Set):
        given = sorted(given, key=str)  # texts come in another order in every process
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    entries: tuple[Any, ...] = () if given is None else (given,)
    if several:
        try:
            entries = tuple(given)
        except TypeError:  # a tensor of one number says that it can be iterated over
            several = False
    if not all(type(entry) is int or (isinstance(entry, str) and entry.strip()) for entry in entries):
        raise ValueError(
            "exclude should be a list of layer numbers and patterns of group names, such as [0, '*.heads']; got "
            f"{shown(list(entries) if several else given)}"
        )
    texts = tuple(entry.strip() if isinstance(entry, str) else f"{entry}" for entry in entries)
    for text in texts:
        if re.fullmatch(r"-\d+", text):
            raise ValueError(f"exclude numbers layers from 0, so that the last of 12 is 11; got {text}")
    return texts or None


def read_min_units(given: Any, granularity: Sequence[str]) -> int | dict[str, int]:
    """`PruningConfig.min_units`: one number, or one by kind, also from a text.

    Raises:
        `ValueError`: neither.
    """
    kinds = [kind for kind in ("heads", "neurons", "experts") if kind in granularity]
    values: Any = numbers_in(given) if isinstance(given, str) else given
    numbers = values if isinstance(values, Mapping) else {None: values}
    if not numbers or not all(type(n) is int and 0 <= n < 2**63 for n in numbers.values()):
        raise ValueError(
            "min_units should be an integer of at least 0 and below 2**63, or one for each kind, "
            f"{{'heads': 1, 'neurons': 64}} or 'heads=1,neurons=64'; got {shown(given)}"
        )
    if not isinstance(values, Mapping):
        return int(values)
    for kind in values:
        if kind not in kinds:
            raise ValueError(
                f"min_units of {shown(kind)} would have no effect: with granularity {list(granularity)} it "
                f"is of {' and '.join(kinds) or 'no kind'}{nearest(kind, kinds)}"
            )
    return dict(values)


def check_choice(name: str, values: Iterable[Any], choices: Sequence[str]) -> None:
    """Raises `ValueError` unless the values of a field are among its choices."""
    for value in values:
        if not isinstance(value, str) or value not in choices:
            expected = " or ".join(map(repr, choices))
            if name == "granularity" and isinstance(value, str):
                if set(value.replace(" ", "").split(",")) <= set(choices):
                    raise ValueError(f"{name} takes several as a list, or as words of the command line; got {value!r}")
            raise ValueError(f"unknown {name} {shown(value)}; expected {expected}{nearest(value, choices)}")
