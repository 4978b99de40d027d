"""Hashes of ids, to find those that occur twice without keeping them all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.sql import query


def hashes(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """A hash of each text, the same in one version of DuckDB. (pandas' can't be used: two threads that import it first,
    at one time, stop each other.)"""
    found = query("SELECT hash(id) AS h FROM t", t=pa.table({"id": ids})).column("h")
    return np.asarray(found.to_numpy(), np.uint64)
