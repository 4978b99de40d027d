"""The sizes of images, from the headers of their files where they are not known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds import media
from rayds.edits import edited_size, load_edits
from rayds.engine.base import Block
from rayds.errors import DataError
from rayds.headers import probe_bytes
from rayds.schema import media_field, single_chunk, with_media
from rayds.storage import io_threads


def fill_sizes(block: Block) -> tuple[Block, dict[int, DataError]]:
    """(the block with the image sizes that were not known; the rows whose image is unreadable, and why).

    The size of an image that is not there stays unknown: whether that matters is the caller's to say.
    """
    known = pc.is_valid(media_field(block, "width"))
    rows = np.flatnonzero(~known.to_numpy(zero_copy_only=False))
    if not len(rows):
        return block, {}
    ids = single_chunk(block, "id")
    todo = single_chunk(block, "media").take(pa.array(rows)).to_pylist()
    failed: dict[int, DataError] = {}

    def one(k: int) -> tuple[int, int] | None:
        try:
            return size_of(todo[k])
        except DataError as e:
            failed[int(rows[k])] = DataError(
                e.reason, file=e.file, item=ids[int(rows[k])].as_py(), remedy=e.remedy
            )
            return None

    with ThreadPoolExecutor(io_threads(*(row["path"] for row in todo if row))) as pool:
        sizes = list(pool.map(one, range(len(rows))))
    found = {}
    for name, place in (("height", 0), ("width", 1)):
        values = np.array(media_field(block, name).fill_null(-1), np.int32)
        for row, size in zip(rows, sizes, strict=True):
            if size:
                values[row] = size[place]
        found[name] = pa.array(values, pa.int32(), mask=values < 0)
    return with_media(block, **found), failed


def size_of(row: dict[str, Any] | None) -> tuple[int, int] | None:
    """(height, width) of the image of a row of MEDIA_TYPE after its edits, from its header; None when it is not there."""
    if not row or row["kind"] != "image":
        return None
    if row["data"] is not None:
        size: tuple[int, int] | None = probe_bytes(row["data"], row["path"])
    else:
        size = media.probe(row["path"]) if row["path"] else None
    return edited_size(size, load_edits(row.get("edits"))) if size else None
