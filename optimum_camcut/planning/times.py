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
"""`LatencyTable`: how long a model takes, by its parts and their sizes. Made by `latency.latency_table`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..architectures.entry import SUBLAYERS
from ..architectures.groups import PrunableGroup
from ..architectures.structure import label_of, sublayer_of
from ..utils.fields import check_fields
from ..utils.files import read_json, write_json


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of one forward pass, by its parts; `print` shows them.

    Args:
        conditions (`Mapping[str, str | int]`): what was measured, and where: `"device"`, `"dtype"`, `"batch_size"`,
            `"sequence_length"`, ...
        total (`float`): seconds of the model as it was.
        times (`Mapping[str, Mapping[int, float]]`): `"heads"` or `"neurons"` (where there are several stacks of
            blocks, `"decoder.heads"`) -> how many of them a layer keeps -> what its attention or feed-forward
            sub-layer adds to `total`, in seconds.
        sizes (`Mapping[str, int]`): name of every group of heads or neurons that was there -> how many.
        widths (`Mapping[str, int]`): the same -> input features of the output projection for each.

    Raises:
        `ValueError`: values of another form.
    """

    conditions: Mapping[str, Any]
    total: float
    times: Mapping[str, Mapping[int, float]]
    sizes: Mapping[str, int]
    widths: Mapping[str, int]

    def __post_init__(self) -> None:
        try:
            times = {
                kind: {int(size): float(seconds) for size, seconds in sorted(points.items(), key=lambda p: int(p[0]))}
                for kind, points in self.times.items()
            }
            valid = set(times) == set(self.widths) == {label_of(name) for name in self.sizes} and all(
                max(times[label_of(name)]) >= size > 0 for name, size in self.sizes.items()
            )
            numbers = [self.total, *(seconds for points in times.values() for seconds in points.values())]
            valid = valid and all(np.isfinite(number) and number >= 0 for number in numbers) and self.total > 0
        except (AttributeError, TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError(
                "a latency table should hold a total in seconds, and for the kind of every group its width and the "
                "times by size up to that of the group; latency_table(model, config) measures one"
            )
        object.__setattr__(self, "times", times)

    def seconds(self, kind: str, units: int) -> float:
        """What a sub-layer with so many heads or neurons takes; between two sizes that were measured, on the line from
        one to the other."""
        points = self.times.get(kind, {0: 0.0})
        return float(np.interp(units, list(points), list(points.values())))

    def price(self, group: PrunableGroup) -> np.ndarray:
        """Seconds that a group takes with 0 to all of its units: float64 of shape `(group.size + 1,)`. A sub-layer
        that is removed takes none; one that has lost all its units takes the time of the smallest that was measured.

        Raises:
            `ValueError`: the table is of another model.
        """
        if group.kind == "layers":
            kind = next(kind for kind, part in SUBLAYERS.items() if group.name.endswith(f".{part}"))
            name = group.name.removesuffix(SUBLAYERS[kind]) + kind
            units = group.output.width // self.widths.get(label_of(name), 1)
            self._check(name, units)
            return np.array([0.0, self.seconds(label_of(name), units)])
        self._check(group.name, group.size)
        points = self.times.get(label_of(group.name), {0: 0.0})
        return np.interp(np.arange(group.size + 1), list(points), list(points.values()))

    def total_of(self, groups: Sequence[PrunableGroup]) -> float:
        """Seconds of the model whose groups these are now. Of kinds that are not among them, there is what there was
        when the table was measured."""
        listed = {group.name: group for group in groups}
        kinds, total = {group.kind for group in groups}, self.total
        for group in groups:
            self.price(group)  # raises for groups of another model
        for name, size in self.sizes.items():
            label, units = label_of(name), size
            if name in listed:
                units = listed[name].size
            elif sublayer_of(name) in listed:
                units = listed[sublayer_of(name)].output.width // self.widths[label]
            elif kinds & {label.rpartition(".")[2].removeprefix("cross_"), "layers"}:
                total -= self.seconds(label, size)  # it was removed
                continue
            total += self.seconds(label, units) - self.seconds(label, size)
        return total

    def _check(self, name: str, units: int) -> None:
        if units > self.sizes.get(name, 0):
            has = f"has {self.sizes[name]}" if name in self.sizes else "lacks it"
            raise ValueError(
                f"the model has {units} units in {name!r}, but the latency table {has}: it is of another model, or of "
                "this one when it was smaller; measure it anew with latency_table(model, config)"
            )

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencyTable:
        """From what `to_dict` gives.

        Raises:
            `ValueError`: something else.
        """
        check_fields(cls, values)
        fields: dict[str, Any] = {field.name: values.get(field.name) for field in dataclasses.fields(cls)}
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Writes the table to a JSON file."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Reads what `save` wrote."""
        return cls.from_dict(read_json(path))

    def __str__(self) -> str:
        where = self.conditions
        shape = f"{where.get('batch_size', '?')} x {where.get('sequence_length', '?')} tokens"
        facts = ", ".join(str(where[name]) for name in ("dtype", "attention", "torch") if name in where)
        lines = [
            f"{where.get('model', 'model')} on {where.get('device', 'a device')}, {shape} ({facts}), ms",
            f"whole model {1e3 * self.total:.3f}",
        ]
        rest = self.total
        for label, points in self.times.items():
            sizes = [size for name, size in self.sizes.items() if label_of(name) == label]
            spent = sum(self.seconds(label, size) for size in sizes)
            rest -= spent
            part = sublayer_of(f".{label}").lstrip(".")
            lines.append(f"{len(sizes)} {part} sub-layers {1e3 * spent:.3f}; one of them by its {label}:")
            lines += [f"{size:>8} {1e3 * seconds:>10.3f}" for size, seconds in points.items()]
        return "\n".join([*lines, f"all else {1e3 * rest:.3f}"])
