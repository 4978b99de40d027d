"""Which ids occurred before, in eight bytes each: for files of many millions of items."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.formats._hashes import hashes


class Seen:
    """A growing set of texts, kept as sorted hashes of 64 bits."""

    def __init__(self) -> None:
        self._levels: list[npt.NDArray[np.uint64]] = []  # each at least twice as long as the next

    def add(self, texts: pa.Array) -> npt.NDArray[np.bool_]:
        """Add texts; says of each whether it was there already (or earlier in the same array)."""
        values = hashes(texts)
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        again = np.zeros(len(values), bool)
        again[order[1:]] = ordered[1:] == ordered[:-1]
        for level in self._levels:
            at = np.minimum(np.searchsorted(level, values), len(level) - 1)
            again |= level[at] == values
        if len(values):
            self._levels.append(ordered)
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            self._levels[-2:] = [np.sort(np.concatenate(self._levels[-2:]), kind="stable")]
        return again
