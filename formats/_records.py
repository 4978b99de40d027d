"""Streaming scanner for JSON files that hold big arrays of objects: {"images": [{...}, ...], "annotations": [...]}.

It finds the byte range of every record of the wanted top-level arrays, whatever the white space, nesting, key
order, strings with braces, escapes and order of sections, in one pass over windows of the file; the records
themselves are parsed by DuckDB, many at a time. What is not such a record (info, licenses, categories, ...)
is gathered as a skeleton and parsed as ordinary JSON, which also proves that the file is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayds.errors import DataError
from rayds.formats import _compiled

BOM = b"\xef\xbb\xbf"
WINDOW = 8 << 20
_FIRST = 1 << 20
MAX_SKELETON = 256 << 20
_PART = 256 << 10  # bytes, which stay in the cache of a core

Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]

_QUOTE, _COMMA, _BACKSLASH, _OPEN, _CLOSE, _SPACE = b'",\\{} '
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]:]', re.DOTALL)


@dataclass
class Records:
    """Some consecutive records of one section.

    data: bytes whose i-th record is data[starts[i]:ends[i]]; base: place of data[0] in the file;
    quotes: number of (unescaped) quotation marks in each record; first: running number of the first. marks: the places
    of these marks in data, from a scanner that was asked for them.
    """

    section: str
    data: Bytes
    starts: Index
    ends: Index
    base: int
    quotes: Index
    first: int
    marks: Index | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def texts(self) -> pa.Array:
        """The records as a string array (no copy, unless much stands between them: gaps become spaces, which JSON ignores)."""
        data = self.data
        if len(self) > 1:
            if (self.starts[1:] - self.ends[:-1]).sum() > (self.ends - self.starts).sum():
                bounds = np.column_stack([self.starts, self.ends]).astype(np.int32)
                parts = pa.StringArray.from_buffers(bounds.size - 1, pa.py_buffer(bounds), pa.py_buffer(data))
                return parts.take(pa.array(np.arange(0, len(parts), 2)))
            data[_between(self.ends[:-1], self.starts[1:])] = _SPACE
        offsets = np.append(self.starts, self.ends[-1:]).astype(np.int32)
        return pa.StringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(data))

    def take(self, numbers: Index) -> Records:
        """Some of the records; numbers: ascending."""
        own = {name: getattr(self, name)[numbers] for name in ("starts", "ends", "quotes")}
        return replace(self, marks=None, **own)

    def place(self, i: int) -> str:
        """Where the i-th record begins in the file."""
        return f"byte {self.base + int(self.starts[i])}"


def _between(starts: Index, ends: Index) -> Index:
    """All positions of the ranges starts[i]:ends[i], one after the other."""
    lengths = ends - starts
    if len(lengths) and lengths.max(initial=0) == 1 == lengths.min(initial=1):
        return starts
    total = int(lengths.sum())
    shift = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    every: Index = np.arange(total) + shift
    return every


def _marks(data: Bytes) -> tuple[Index, Index, bool]:
    """(positions of quotation marks, those of braces, whether there are backslashes), looked for part by part."""
    quotes, braces, slashes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], False
    bits, mask = np.empty(_PART, np.uint8), np.empty(_PART, bool)
    for at in range(0, len(data), _PART):
        part = data[at : at + _PART]
        n = len(part)
        quotes.append(np.flatnonzero(np.equal(part, _QUOTE, out=mask[:n])) + at)
        slashes = slashes or bool(np.equal(part, _BACKSLASH, out=mask[:n]).any())
        np.bitwise_or(part, 6, out=bits[:n])
        found = np.flatnonzero(np.equal(bits[:n], 0x7F, out=mask[:n]))  # { } and few others
        kinds = part[found]
        braces.append(found[(kinds == _OPEN) | (kinds == _CLOSE)] + at)
    return np.concatenate(quotes), np.concatenate(braces), slashes


@dataclass
class Found:
    """Records found in some bytes: start and end of each (places in the file), the places of all quotation marks that are not
    escaped; or, by the compiled scanner, their number in each record, and whether more than a comma stands before it."""

    starts: Index
    ends: Index
    marks: Index | None = None
    quotes: Index | None = None
    special: npt.NDArray[np.bool_] | None = None


class Outline:
    """Which section the records belong to that come next, told by what stands between records; and the skeleton."""

    def __init__(self, name: str, wanted: Sequence[str], bare: bool = False) -> None:
        self.name, self.wanted, self.bare = name, wanted, bare
        self.section: str | None = None  # of the next records; None: not wanted
        self._key: str | None = None  # the last top-level key
        self._brackets = 0  # open around the records of it
        self._parts: list[bytes] = []
        self._size = 0

    def enter(self, gap: bytes, at: int) -> None:
        """Take up the gap before a record where there is more than a comma: keys, brackets, other values."""
        if self.section is not None and not gap.lstrip().startswith(b"]"):
            text = gap[:40].decode(errors="replace")
            raise DataError(
                f"expected one comma between records, found {text!r}", file=self.name, place=f"byte {at}"
            )
        self.keep(gap)
        last = b'""'
        for token in _TOKEN.findall(gap):
            if token == b"[":
                self._brackets += 1
            elif token == b"]":
                self._brackets -= 1
            elif token == b":":
                if self._brackets == 0:
                    self._key = _text(last)
            else:
                last = token
        wanted = self._brackets == 1 and (self.bare or self._key in self.wanted)
        self.section = (self._key or "") if wanted else None
        if self.bare and not wanted and len(self._parts) == 1:
            raise DataError("a JSON list of objects was expected at top level", file=self.name)

    def make_room(self, n: int) -> None:
        """Raise DataError when n more bytes would make the skeleton too big to be held."""
        if self._size + n > MAX_SKELETON:
            raise DataError(f"more than {MAX_SKELETON >> 20} MiB outside the records", file=self.name)

    def keep(self, part: bytes) -> None:
        """Add a part to the skeleton."""
        self.make_room(len(part))
        self._size += len(part)
        self._parts.append(part)

    def text(self) -> bytes:
        """The skeleton so far."""
        return b"".join(self._parts)

    def parsed(self) -> dict[str, Any]:
        """The skeleton of a whole file as JSON; raises DataError when it is none."""
        text = self.text()
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise DataError(
                f"not valid JSON ({e})" if text.strip() else "the file is empty",
                file=self.name,
                remedy="Repair it",
            ) from e
        if isinstance(found, dict):
            return found
        if not (self.bare and isinstance(found, list)):
            kind = "list of objects" if self.bare else "object"
            raise DataError(f"a JSON {kind} was expected at top level", file=self.name)
        return {}


def cut_off(in_string: bool, size: int, name: str) -> DataError:
    """The error of a file of `size` bytes that ends too early."""
    what = "a string" if in_string else "an object"
    return DataError(
        f"the file is cut off inside {what}",
        file=name,
        place=f"byte {size}",
        remedy="Copy or download it again",
    )


def empty_file(name: str) -> DataError:
    """The error of a file without a byte."""
    return DataError("the file is empty", file=name, remedy="Restore the file")


@dataclass
class RecordScanner:
    """Scans one file. After `records()` is exhausted, `skeleton` holds all but the wanted records.

    bare: the file is a list of records at top level (COCO results); its section is "".
    Raises DataError for a file that is empty, cut off or not such JSON.
    """

    file: BinaryIO
    name: str
    wanted: Sequence[str]
    bare: bool = False
    window: int = WINDOW
    skeleton: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._depth = 0  # of braces
        self._in_string = False
        self._escaped = False  # the next byte is escaped
        self._outline = Outline(self.name, self.wanted, self.bare)
        self._count = 0
        self._pending = b""  # from the end of the last whole record on
        self._pending_at = 0  # its place in the file
        self._open: int | None = None  # where the record that is open begins (file position)
        self._record_depth = 1 if self.bare else 2
        self._marks_pending = np.zeros(0, np.int64)
        self._quotes = 0  # of what is pending, where nobody needs their places
        self._with_marks = False

    def records(self) -> Iterator[Records]:
        """The wanted records in file order, about a window's worth at a time; less at first, so that soon all have work."""
        at, window = 0, min(_FIRST, self.window)
        while True:
            joined = self._room(window)
            n = self.file.readinto(joined[len(self._pending) :])  # type: ignore[attr-defined]  # all have it
            if not n:
                break
            joined = joined[: len(self._pending) + n]
            if at == 0:
                joined[: len(BOM)] = np.frombuffer(without_bom(joined[: len(BOM)].tobytes()), np.uint8)
            yield from self._scan(joined, at)
            at += n
            window = min(2 * window, self.window)
        if at == 0:
            raise empty_file(self.name)
        self._finish(at)

    def _structure(self, data: Bytes) -> tuple[Index, Index]:
        """(positions of quotes that are not escaped, positions of braces outside strings); moves the state on."""
        quotes, braces, inside = self._signs(data)
        return quotes, braces[~inside]

    def _signs(self, data: Bytes) -> tuple[Index, Index, npt.NDArray[np.bool_]]:
        """(positions of quotes that are not escaped, those of braces, which of them are in strings); moves on."""
        quotes, found, slashes = _marks(data)
        if slashes or self._escaped:
            escaped = self._escaped_positions(np.flatnonzero(data == _BACKSLASH), len(data))
            quotes = quotes[~np.isin(quotes, escaped, assume_unique=True)]
        inside = (np.searchsorted(quotes, found) + self._in_string) & 1
        self._in_string = bool((len(quotes) + self._in_string) & 1)
        return quotes, found, inside.astype(bool)

    def _escaped_positions(self, slashes: Index, n: int) -> Index:
        """Positions of bytes that a backslash escapes; remembers whether the next window's first one is."""
        out = []
        skip = 0 if self._escaped else -1
        if self._escaped:
            out.append(0)
        for s in slashes.tolist():
            if s == skip:
                continue
            skip = s + 1
            out.append(skip)
        self._escaped = bool(out) and out[-1] == n
        return np.array(out, np.int64)

    def _room(self, n: int) -> Bytes:
        """A writable array of what is pending, and room for n more bytes."""
        joined = np.empty(len(self._pending) + n, np.uint8)
        joined[: len(self._pending)] = np.frombuffer(self._pending, np.uint8)
        return joined

    def _feed(self, chunk: bytes, at: int) -> Iterator[Records]:
        """The records that end in a chunk, which stands at `at` in the file."""
        joined = self._room(len(chunk))
        joined[len(self._pending) :] = np.frombuffer(chunk, np.uint8)
        return self._scan(joined, at)

    def _scan(self, joined: Bytes, at: int) -> Iterator[Records]:
        """The records that end in what is new, from `at` in the file on; before it stands what is pending."""
        base = self._pending_at
        found = (
            self._find(joined, at)
            if self._with_marks or not _compiled.jsonscan
            else self._scanned(joined, at)
        )
        done = int(found.ends[-1]) if len(found.ends) else base
        if len(found.ends):
            yield from self._cut(joined, base, found)
        self._pending = bytes(joined[done - base :])
        self._pending_at = done
        if found.marks is not None:
            self._marks_pending = found.marks[np.searchsorted(found.marks, done) :]

    def _scanned(self, joined: Bytes, at: int) -> Found:
        """What _find gives, by the compiled scanner; without the marks."""
        base = self._pending_at
        is_open = -1 if self._open is None else self._open - base
        state = (self._depth, self._in_string, self._escaped, is_open, self._quotes)
        table, state, wrong = _compiled.jsonscan.scan(joined, at - base, self._record_depth, *state)
        if wrong >= 0:
            raise self._closed_too_often(base + wrong)
        self._depth, self._in_string, self._escaped, is_open, self._quotes = state
        self._open = None if is_open < 0 else is_open + base
        starts, ends, quotes, special = np.frombuffer(table, np.int64).reshape(-1, 4).T
        return Found(starts + base, ends + base, None, quotes, special.astype(bool))

    def _closed_too_often(self, place: int) -> DataError:
        return DataError("a closing brace too many", file=self.name, place=f"byte {place}")

    def _find(self, joined: Bytes, at: int) -> Found:
        """The records that end in what is new; moves the state on."""
        base = self._pending_at
        data = joined[at - base :]
        quotes, braces = self._structure(data)
        signs = np.where(data[braces] == _OPEN, 1, -1)
        depth = self._depth + np.cumsum(signs)
        if len(depth):
            if depth.min() < 0:
                raise self._closed_too_often(at + int(braces[np.argmax(depth < 0)]))
            self._depth = int(depth[-1])
        starts = braces[(signs > 0) & (depth == self._record_depth)] + at
        ends = braces[(signs < 0) & (depth == self._record_depth - 1)] + at + 1
        if self._open is not None:
            starts = np.append(self._open, starts)
        self._open = int(starts[-1]) if len(starts) > len(ends) else None
        starts = starts[: len(ends)]
        marks = np.concatenate([self._marks_pending, quotes + at])
        return Found(starts, ends, marks)

    def _told(self, data: Bytes, base: int, found: Found) -> tuple[Index, npt.NDArray[np.bool_]]:
        """(quotation marks in each record, whether more than one comma with white space stands before it)."""
        if found.marks is None:
            assert found.quotes is not None
            assert found.special is not None
            return found.quotes, found.special
        inner = np.searchsorted(found.marks, found.ends) - np.searchsorted(found.marks, found.starts)
        gaps = np.append(base, found.ends[:-1])
        return inner, self._special(data, base, gaps, found.starts, found.marks)

    def _cut(self, data: Bytes, base: int, found: Found) -> Iterator[Records]:
        """Split records at the gaps that are more than one comma with white space."""
        starts, ends = found.starts, found.ends
        gap_starts = np.append(base, ends[:-1])
        inner, special = self._told(data, base, found)
        bounds = [*np.flatnonzero(special).tolist(), len(starts)]
        if bounds[0] != 0:
            yield from self._emit(data, base, starts, ends, inner, gap_starts, 0, bounds[0])
        for lo, hi in pairwise(bounds):
            self._outline.enter(bytes(data[gap_starts[lo] - base : starts[lo] - base]), int(gap_starts[lo]))
            yield from self._emit(data, base, starts, ends, inner, gap_starts, lo, hi, entered=True)

    def _special(
        self, data: Bytes, base: int, gaps: Index, starts: Index, quotes: Index
    ) -> npt.NDArray[np.bool_]:
        """Which of the gaps gaps[i]:starts[i] are more than one comma with white space."""
        special: npt.NDArray[np.bool_] = (starts - gaps != 1) | (data[gaps - base] != _COMMA)
        if special.any():
            named = np.searchsorted(quotes, starts) > np.searchsorted(quotes, gaps)
            unsure = special & ~named
            special[unsure] = ~self._plain(data, gaps[unsure] - base, starts[unsure] - base)
        return special

    def _plain(self, data: Bytes, starts: Index, ends: Index) -> npt.NDArray[np.bool_]:
        """Which of the gaps starts[i]:ends[i] are white space with exactly one comma."""
        values = data[_between(starts, ends)]
        gap = np.repeat(np.arange(len(starts)), ends - starts)
        solid = ~np.isin(values, np.frombuffer(b" \t\r\n", np.uint8))
        commas = np.bincount(gap[values == _COMMA], minlength=len(starts))
        plain: npt.NDArray[np.bool_] = (commas == 1) & (np.bincount(gap[solid], minlength=len(starts)) == 1)
        return plain

    def _emit(
        self,
        data: Bytes,
        base: int,
        starts: Index,
        ends: Index,
        quotes: Index,
        gaps: Index,
        lo: int,
        hi: int,
        entered: bool = False,
    ) -> Iterator[Records]:
        section = self._outline.section
        if section is None:
            for i in range(lo, hi):
                separator = b"" if entered and i == lo else bytes(data[gaps[i] - base : starts[i] - base])
                self._outline.keep(separator + bytes(data[starts[i] - base : ends[i] - base]))
            return
        if hi > lo:
            yield Records(
                section,
                data,
                starts[lo:hi] - base,
                ends[lo:hi] - base,
                base,
                quotes[lo:hi],
                self._count,
            )
            self._count += hi - lo

    def so_far(self) -> bytes:
        """The skeleton's text up to the last whole record: JSON without its end."""
        return self._outline.text()

    def place_in_section(self) -> int | None:
        """Where the last whole record ends, when that is in a wanted section."""
        return None if self._outline.section is None else self._pending_at

    def _finish(self, size: int) -> None:
        if self._open is not None or self._depth > 0 or self._in_string:
            raise cut_off(self._in_string, size, self.name)
        self._outline.keep(self._pending)
        self.skeleton = self._outline.parsed()


def without_bom(head: bytes) -> bytes:
    """The first bytes of a file with blanks in the place of a byte order mark."""
    return b" " * len(BOM) + head[len(BOM) :] if head.startswith(BOM) else head


def is_plain_gap(gap: bytes) -> bool:
    """Whether what stands between two records is one comma with white space."""
    return gap.strip(b" \t\r\n") == b","


def _text(literal: bytes) -> str | None:
    """The value of a JSON string; None when it is broken."""
    try:
        return str(json.loads(literal))
    except ValueError:
        return None


_NEXT_KEY = re.compile(rb"\]\s*,\s*(?=\")")
_AFTER_OBJECT = re.compile(rb"[}\[]\s*\Z")
_MAX_BLANKS = 256
_TAIL_TRIES = 300
_BYTES = np.arange(256)
_MAY_END_ARRAY = np.isin(_BYTES, np.frombuffer(b"}[ \t\r\n", np.uint8))
_MAY_SEPARATE = np.isin(_BYTES, np.frombuffer(b", \t\r\n", np.uint8))


def read_tail(tail: bytes) -> dict[str, Any]:
    """The top-level keys that stand whole in the last bytes of a JSON object, after an array (of objects, or empty).

    tail must end where the file ends; a key counts only when all from it to the end reads as the end of an object.
    """
    found: dict[str, Any] = {}
    data = np.frombuffer(tail, np.uint8)
    closing = np.flatnonzero(data[1:-1] == ord("]")) + 1
    closing = closing[_MAY_END_ARRAY[data[closing - 1]] & _MAY_SEPARATE[data[closing + 1]]]
    tries = 0
    for at in closing[::-1].tolist():
        match = _NEXT_KEY.match(tail, at)
        if match is None or not _AFTER_OBJECT.search(tail, max(0, at - _MAX_BLANKS), at):
            continue
        tries += 1
        if tries > _TAIL_TRIES:
            break
        try:
            found = json.loads(b"{" + tail[match.end() :])
        except ValueError:
            continue
    return found
