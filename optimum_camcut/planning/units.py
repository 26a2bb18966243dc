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
"""Indices of very many units, one byte each: what a plan keeps of single weights."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from ..utils.files import shown


class IndexSet(Sequence[int]):
    """An immutable, ascending sequence of indices below `size`, stored as a mask.

    A tuple of the weights that a BERT keeps would take gigabytes; this takes as many bytes as there are weights.

    Args:
        mask (`np.ndarray` of bool, shape `(size,)`): True at the indices in the set. Not to be changed afterwards.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = np.ascontiguousarray(mask, dtype=bool).reshape(-1)
        self._length = int(np.count_nonzero(self.mask))

    @property
    def size(self) -> int:
        """One more than the largest index that could be in the set."""
        return len(self.mask)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self.mask).tolist())

    @overload
    def __getitem__(self, position: int) -> int: ...

    @overload
    def __getitem__(self, position: slice) -> tuple[int, ...]: ...

    def __getitem__(self, position: int | slice) -> int | tuple[int, ...]:
        indices = np.flatnonzero(self.mask)[position]
        return tuple(indices.tolist()) if isinstance(position, slice) else int(indices)

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int | np.integer) and bool(0 <= index < self.size and self.mask[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.flatnonzero(self.mask).astype(dtype or np.int64)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IndexSet):
            return self.size == other.size and np.array_equal(self.mask, other.mask)
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other))
        return NotImplemented

    def __repr__(self) -> str:
        return f"IndexSet({len(self)} of {self.size})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the size, and the mask as packed bits (big-endian), compressed by zlib, in base64."""
        return {"size": self.size, "bits": base64.b64encode(zlib.compress(np.packbits(self.mask).data, 1)).decode()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IndexSet:
        """From what `to_dict` gives.

        Raises:
            `ValueError`: something else.
        """
        size = values.get("size") if isinstance(values, Mapping) and set(values) == {"size", "bits"} else None
        if type(size) is not int or size < 0:
            raise ValueError(f"expected 'size' and 'bits', as IndexSet.to_dict gives; got {shown(values)}")
        length = -(-size // 8)
        try:
            unpacker = zlib.decompressobj()
            packed = unpacker.decompress(base64.b64decode(values["bits"], validate=True), length + 1)
        except (TypeError, ValueError, OverflowError, zlib.error) as error:
            raise ValueError(
                f"expected 'size' and 'bits', as IndexSet.to_dict gives; got {shown(values)}: {error}"
            ) from error
        if len(packed) != length or not unpacker.eof:
            raise ValueError(f"a set of {size} indices should hold {length} bytes of bits, got {len(packed)}")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8))
        if bits[size:].any():
            raise ValueError(f"a set of {size} indices holds an index beyond its size")
        return cls(bits[:size])


def mask_of(units: Sequence[int], size: int) -> np.ndarray:
    """Bool of shape `(size,)`: True at the given indices.

    Raises:
        `IndexError`: an index that is negative or not below `size`.
    """
    if isinstance(units, range) and units == range(size):
        return np.ones(size, dtype=bool)
    if isinstance(units, IndexSet) and units.size == size:
        return units.mask
    indices = np.asarray(units, dtype=np.int64)
    if indices.size and not (0 <= indices.min() and indices.max() < size):
        raise IndexError(f"there is no unit {indices.max() if indices.min() >= 0 else indices.min()} of {size}")
    mask = np.zeros(size, dtype=bool)
    mask[indices] = True
    return mask
