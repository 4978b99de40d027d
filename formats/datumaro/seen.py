"""Which ids occurred before, in eight bytes each: for files of many millions of items."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Seen:
    """A growing set of texts, kept as sorted hashes of 64 bits."""

    def __init__(self) -> None:
        self._levels: list[npt.NDArray[np.uint64]] = []  # each at least twice as long as the next

    def add(self, texts: pa.Array) -> npt.NDArray[np.bool_]:
        """Add texts; says of each whether it was there already (or earlier in the same array)."""
        from pandas.util import hash_array

        values: npt.NDArray[Any] = texts.to_numpy(zero_copy_only=False)
        hashes = np.asarray(hash_array(values, categorize=False), np.uint64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        again = np.zeros(len(hashes), bool)
        again[order[1:]] = ordered[1:] == ordered[:-1]
        for level in self._levels:
            at = np.minimum(np.searchsorted(level, hashes), len(level) - 1)
            again |= level[at] == hashes
        if len(hashes):
            self._levels.append(ordered)
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            self._levels[-2:] = [np.sort(np.concatenate(self._levels[-2:]), kind="stable")]
        return again
