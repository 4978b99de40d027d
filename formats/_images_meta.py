"""images.meta: the sizes of images in formats whose annotation files lack them.

One line an image: `<ID> <height> <width>`; `#` begins a comment; an id with blanks, quotes or `#` is quoted
as in a shell. A line `# subset NAME` (a comment to other readers) says to which subset the lines below it belong,
as two subsets may hold the same id.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from rayds.errors import DataError
from rayds.storage import Storage

FILE = "images.meta"

_SECTION = re.compile(rb"^# subset (.*)$", re.MULTILINE)
_COMMENT = re.compile(rb"^[ \t]*#.*$", re.MULTILINE)
_SPECIAL = r"""[\s#'"\\]|^$"""

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Sizes:
    ids: pa.Array
    height: IntArray
    width: IntArray


@dataclass
class ImagesMeta:
    """The sizes of an images.meta file, by subset (None: lines that no subset claims) and id."""

    sections: dict[str | None, _Sizes] = field(default_factory=dict)

    def find(self, subset: str, ids: pa.Array) -> tuple[IntArray, IntArray]:
        """(height, width) of each id, int32, -1 where not known."""
        height = np.full(len(ids), -1, np.int32)
        width = height.copy()
        order = [s for s in (subset, None) if s in self.sections]
        for name in [*order, *(s for s in self.sections if s not in order)]:
            left = np.flatnonzero(height < 0)
            if not len(left):
                break
            sizes = self.sections[name]
            found = (
                pc.index_in(ids.take(pa.array(left)), sizes.ids).fill_null(-1).to_numpy(zero_copy_only=False)
            )
            rows, where = left[found >= 0], found[found >= 0]
            height[rows], width[rows] = sizes.height[where], sizes.width[where]
        return height, width


def parse_images_meta(data: bytes, file: str) -> ImagesMeta:
    """The sizes in the bytes of a file; raises DataError naming file and line."""
    made = ImagesMeta()
    subset, start = None, 0
    marks = [
        (m.start(), m.end(), m.group(1).strip().decode("utf-8", "replace")) for m in _SECTION.finditer(data)
    ]
    for begin, end, name in [*marks, (len(data), len(data), "")]:
        sizes = _parse(data[start:begin], file, data.count(b"\n", 0, start))
        if len(sizes.ids):
            had = made.sections.get(subset)
            made.sections[subset] = _joined(had, sizes) if had else sizes
        subset, start = _unquoted(name), end
    return made


def _unquoted(name: str) -> str:
    try:
        return "".join(shlex.split(name)) if name[:1] in ("'", '"') else name
    except ValueError:
        return name


def _joined(a: _Sizes, b: _Sizes) -> _Sizes:
    return _Sizes(
        pa.concat_arrays([a.ids, b.ids]),
        np.concatenate([a.height, b.height]),
        np.concatenate([a.width, b.width]),
    )


def _parse(data: bytes, file: str, lines_before: int) -> _Sizes:
    """The fast way for plain lines; anything unusual goes line by line."""
    if not data.strip():
        return _Sizes(pa.array([], pa.string()), np.zeros(0, np.int32), np.zeros(0, np.int32))
    types = {"id": pa.string(), "height": pa.int32(), "width": pa.int32()}
    try:
        table = csv.read_csv(
            pa.BufferReader(_COMMENT.sub(b"", data)),
            csv.ReadOptions(use_threads=False, column_names=list(types)),
            csv.ParseOptions(delimiter=" ", quote_char='"', double_quote=False, escape_char="\\"),
            csv.ConvertOptions(column_types=types, null_values=[], strings_can_be_null=False),
        ).combine_chunks()
        ids, height, width = (table.column(n).combine_chunks() for n in types)
        plain = not pc.any(pc.match_substring_regex(ids, r"^[#']|^$")).as_py()
        if plain and pc.min(height).as_py() > 0 and pc.min(width).as_py() > 0:
            return _Sizes(ids, height.to_numpy(zero_copy_only=False), width.to_numpy(zero_copy_only=False))
    except (pa.ArrowInvalid, TypeError):
        pass
    return _parse_lines(data, file, lines_before)


def _parse_lines(data: bytes, file: str, lines_before: int) -> _Sizes:
    ids, sizes = [], []
    for number, raw in enumerate(data.split(b"\n"), lines_before + 1):
        line = raw.decode("utf-8-sig", "replace")
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            height, width = int(words[1]), int(words[2])  # further words are for extensions of the format
            if height <= 0 or width <= 0:
                raise ValueError(line)
        except (ValueError, IndexError) as e:
            raise DataError(
                f"expected '<ID> <height> <width>', found {line.strip()[:80]!r}",
                file=file,
                place=f"line {number}",
            ) from e
        ids.append(words[0])
        sizes.append((height, width))
    array = np.array(sizes, np.int32).reshape(-1, 2)
    return _Sizes(pa.array(ids, pa.string()), array[:, 0], array[:, 1])


@lru_cache(maxsize=2)
def load_images_meta(root: Storage, token: str, name: str = FILE) -> ImagesMeta:
    """The sizes of a dataset's file, kept for the next shard of the same worker; token: new for each reading."""
    del token
    return parse_images_meta(root.read_bytes(name), root.path(name))


def images_meta_lines(ids: pa.Array, height: pa.Array, width: pa.Array) -> bytes:
    """The lines of some images; those whose size is null are left out."""
    known = pc.and_(pc.is_valid(height), pc.is_valid(width))
    ids, height, width = ids.filter(known), height.filter(known), width.filter(known)
    if not len(ids):
        return b""
    if pc.any(pc.match_substring_regex(ids, _SPECIAL)).as_py():
        ids = pa.array([quoted(i) for i in ids.to_pylist()], pa.string())
    lines = pc.binary_join_element_wise(ids, height.cast(pa.string()), width.cast(pa.string()), " ")
    return ("\n".join(lines.to_pylist()) + "\n").encode()


def quoted(text: str) -> str:
    """A text as one word of an images.meta line."""
    if not re.search(_SPECIAL, text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def subset_line(subset: str) -> bytes:
    """The line that begins the images of a subset."""
    return f"# subset {quoted(subset)}\n".encode()
