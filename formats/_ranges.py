"""One JSON file of records read by byte ranges: the marks that tasks find in their ranges, and what they say together.

A range may begin anywhere: in a string, after a backslash, in a record of any depth. A task therefore finds what
the range does to the state under both hypotheses (it begins in a string, or not), and guesses the state to tell
where records are; the driver puts the effects one after the other, which gives the true state at the beginning of every range,
and the few ranges whose guess was wrong are scanned again with it. What comes out is equal to what
RecordScanner finds in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.errors import DataError
from rayds.formats._records import (
    _OPEN,
    WINDOW,
    Bytes,
    Found,
    Index,
    Outline,
    Records,
    RecordScanner,
    cut_off,
    empty_file,
    is_plain_gap,
    without_bom,
)
from rayds.storage import Storage
from rayds.urls import split_archive

MIN_RANGE = 16
_SAMPLE = 1 << 20  # of a range, to guess its state from
_BEYOND = 64 << 10  # first bytes read past a range's end, to finish its last record

Read = Callable[[int, int], bytes]
# Makes something to know of some consecutive records (with marks), which has a method merge(later).
Look = Callable[[Records], Any]
Fold = Callable[[Sequence[Any], Callable[[Any], Any], Callable[[Any, Any], Any]], Any]


@dataclass(frozen=True)
class State:
    """Where in JSON a byte stands. depth: of braces."""

    in_string: bool = False
    depth: int = 0


@dataclass
class Run:
    """Consecutive records with one comma between them: bytes start:end, count of them (-1: not known), and what was seen of them."""

    start: int
    end: int
    count: int
    seen: Any


@dataclass
class RangeMarks:
    """What a task found in bytes start:end.

    odd: whether they hold an odd number of quotation marks. change: how the depth changes where they begin outside a
    string, and inside one. assumed: the state that `runs` (of records that begin in the range) follow from; None: none was found under which the records end. error: of the true state.
    """

    start: int
    end: int
    odd: bool
    change: tuple[int, int]
    assumed: State | None
    runs: list[Run] = field(default_factory=list)
    error: DataError | None = None


@dataclass
class Piece(Run):
    """Some records of a wanted section. first: their number among all records of the file."""

    section: str
    first: int


@dataclass
class Marks:
    """What all ranges of a file say: the wanted records in file order, and the rest as JSON.

    error: why the file can't be read by ranges; then the pieces end there.
    """

    size: int
    pieces: list[Piece] = field(default_factory=list)
    skeleton: dict[str, Any] = field(default_factory=dict)
    error: DataError | None = None

    def of(self, *sections: str) -> list[Piece]:
        """The pieces of some sections."""
        return [p for p in self.pieces if p.section in sections]


def reader(storage: Storage, name: str) -> Read:
    """The function that reads bytes of a file."""
    return partial(storage.read_range, name)


def find_marks(
    storage: Storage, name: str, wanted: Sequence[str], range_size: int, fold: Fold, look: Look | None = None
) -> Marks:
    """The marks of a file, found in ranges of about range_size bytes; fold: runs a function over inputs as tasks."""
    size = storage.size(name)
    marks = Marks(size)
    if not size:
        marks.error = empty_file(storage.path(name))
        return marks
    step = max(MIN_RANGE, range_size)
    ranges = [(at, min(at + step, size), State() if at == 0 else None) for at in range(0, size, step)]
    scan = partial(scan_many, storage, name, size, look)
    found: list[RangeMarks] = fold(ranges, scan, list.__add__)
    states = states_of(found)
    wrong = [(m.start, m.end, state) for m, state in zip(found, states, strict=False) if m.assumed != state]
    if wrong:
        again = {m.start: m for m in fold(wrong, scan, list.__add__)}
        found = [again.get(m.start, m) for m in found]
    put_together(marks, found, states, storage, name, wanted)
    return marks


def states_of(found: Sequence[RangeMarks]) -> list[State]:
    """The true state where each range begins, and the one where the file ends."""
    states = [State()]
    for m in found:
        s = states[-1]
        states.append(State(s.in_string ^ m.odd, s.depth + m.change[s.in_string]))
    return states


def put_together(
    marks: Marks, found: Sequence[RangeMarks], states: list[State], storage: Storage, name: str, wanted: Any
) -> None:
    """Set the pieces and the skeleton of marks by what the ranges say, or its error."""
    path, read = storage.path(name), reader(storage, name)
    outline = Outline(path, wanted)
    try:
        end = _walk(marks, found, outline, read)
        last = states[-1]
        if last.depth > 0 or last.in_string:
            raise cut_off(last.in_string, marks.size, path)
        outline.make_room(marks.size - end)
        outline.keep(_text(read, end, marks.size))
        marks.skeleton = outline.parsed()
    except DataError as e:
        marks.error = e


def _walk(marks: Marks, found: Sequence[RangeMarks], outline: Outline, read: Read) -> int:
    """Go through the runs of all ranges in order; returns where the last record ends."""
    end = count = 0
    for m in found:
        if m.error is not None:
            raise m.error
        for i, run in enumerate(m.runs):
            outline.make_room(run.start - end)
            gap = _text(read, end, run.start)
            goes_on = i == 0 and end > 0 and is_plain_gap(gap)
            if not goes_on:
                outline.enter(gap, end)
            if outline.section is None:
                outline.make_room(run.end - run.start)
                outline.keep((gap if goes_on else b"") + read(run.start, run.end))
            else:
                piece = Piece(run.start, run.end, run.count, run.seen, outline.section, count)
                marks.pieces.append(piece)
                count += max(run.count, 0)
            end = run.end
    return end


def _text(read: Read, start: int, end: int) -> bytes:
    if start == end:
        return b""
    return without_bom(read(start, end)) if start == 0 else read(start, end)


def scan_many(
    storage: Storage, name: str, size: int, look: Look | None, part: tuple[int, int, State | None]
) -> list[RangeMarks]:
    start, end, state = part
    return [scan_range(reader(storage, name), storage.path(name), size, start, end, state, look)]


def scan_range(
    read: Read, name: str, size: int, start: int, end: int, state: State | None, look: Look | None
) -> RangeMarks:
    """The marks of bytes start:end; state: the one they begin in, where it is known.

    Memory: a window (8 MB) and its index, or the biggest record.
    """
    escaped = start > 0 and _is_escaped(read, start)
    chunk = _text(read, start, min(end, start + WINDOW))
    guessed = state is None
    if state is None:
        state = _guess(chunk[:_SAMPLE], escaped, start + len(chunk[:_SAMPLE]) == size)
    scanner = _RangeScanner(read, name, size, start, end, state, escaped, look)
    error = None
    try:
        whole = scanner.run(chunk, max(WINDOW, end - start) if guessed else size)
    except DataError as e:  # more braces close than open: so it is, or the guess was wrong
        error, whole = (None, False) if guessed else (e, True)
        scanner.count_rest()
    assumed = state if whole else None
    return RangeMarks(start, end, scanner.odd, scanner.effect(state.in_string), assumed, scanner.runs, error)


def _is_escaped(read: Read, at: int) -> bool:
    """Whether an odd number of backslashes stands before a byte."""
    n, step = 0, 64
    while at > n:
        part = read(max(0, at - n - step), at - n)
        here = len(part) - len(part.rstrip(b"\\"))
        n += here
        if here < len(part):
            break
        step = min(2 * step, WINDOW)
    return n % 2 == 1


def _guess(sample: bytes, escaped: bool, to_end: bool) -> State:
    """The likely state where some bytes begin: more braces are outside strings; records end at depth 1."""
    scanner = RecordScanner(None, "", ())  # type: ignore[arg-type]
    scanner._escaped = escaped
    data = np.frombuffer(sample, np.uint8)
    _, braces, inside = scanner._signs(data)
    in_string = int(inside.sum()) * 2 > len(inside)
    outside = braces[inside == in_string]
    if not len(outside):
        return State(in_string, 2)
    depth = np.cumsum(np.where(data[outside] == _OPEN, 1, -1))
    return State(in_string, -int(depth[-1]) if to_end else 1 - min(int(depth.min()), 0))


class _RangeScanner(RecordScanner):
    """RecordScanner from the middle of a file on: counts what a range does to the state, and notes its records."""

    def __init__(
        self,
        read: Read,
        name: str,
        size: int,
        start: int,
        end: int,
        state: State,
        escaped: bool,
        look: Look | None,
    ) -> None:
        super().__init__(None, name, ())  # type: ignore[arg-type]
        self.read, self.size, self.at, self.end, self.look = read, size, start, end, look
        self._depth, self._in_string, self._escaped = state.depth, state.in_string, escaped
        self._pending_at = start
        self._with_marks = True
        self.partial = state.depth >= self._record_depth  # begins in a record of an earlier range
        self._open = start if self.partial else None
        self.odd = False
        self._counting = True  # still in the range
        self._change = [0, 0]  # by braces outside strings by the assumed state, and inside
        self.last: int | None = None  # where the last record ends
        self.runs: list[Run] = []

    def run(self, chunk: bytes, limit: int) -> bool:
        """Scan the range, and past it to the end of its last record, or `limit` bytes; whether that end was found."""
        while True:
            self._counting = self.at < self.end
            for _ in self._feed(chunk, self.at):
                pass
            self.at += len(chunk)
            if self.partial:  # nobody needs the text of it
                self._pending, self._pending_at = b"", self.at
                self._marks_pending = np.zeros(0, np.int64)
            if self.at < self.end:
                chunk = self.read(self.at, min(self.at + WINDOW, self.end))
                continue
            if self.partial or self._open is None or self._open >= self.end or self.at >= self.size:
                return True
            if self.at - self.end > limit:
                return False
            beyond = min(max(_BEYOND, self.at - self.end), WINDOW)
            chunk = self.read(self.at, min(self.at + beyond, self.size))

    def count_rest(self) -> None:
        """After a failure: the rest of the range for its effect on the state only."""
        if not self._counting:
            return
        self.at += self._fed
        while self.at < self.end:
            chunk = self.read(self.at, min(self.at + WINDOW, self.end))
            self._signs(np.frombuffer(chunk, np.uint8))
            self.at += len(chunk)

    def effect(self, in_string: bool) -> tuple[int, int]:
        """The change of depth for a beginning outside a string, and inside; in_string: how the assumed state begins."""
        outside, inside = self._change
        return (inside, outside) if in_string else (outside, inside)

    def _signs(self, data: Bytes) -> tuple[Index, Index, npt.NDArray[np.bool_]]:
        quotes, braces, inside = super()._signs(data)
        self._fed = len(data)
        if self._counting:
            self.odd ^= len(quotes) % 2 == 1
            signs = np.where(data[braces] == _OPEN, 1, -1)
            self._change[0] += int(signs[~inside].sum())
            self._change[1] += int(signs[inside].sum())
        return quotes, braces, inside

    def _cut(self, data: Bytes, base: int, found: Found) -> Iterator[Records]:
        starts, ends, quotes = found.starts, found.ends, found.marks
        assert quotes is not None
        if self.partial:
            self.partial = False
            starts, ends = starts[1:], ends[1:]
        own = int(np.searchsorted(starts, self.end))
        starts, ends = starts[:own], ends[:own]
        if not own:
            return iter(())
        first = self.last is None
        gaps = np.append(int(starts[0]) if self.last is None else self.last, ends[:-1])
        special = np.append(first, np.zeros(own - 1, bool))
        later = slice(1, None) if first else slice(None)
        special[later] = self._special(data, base, gaps[later], starts[later], quotes)
        self.last = int(ends[-1])
        bounds = np.unique([0, *np.flatnonzero(special).tolist(), own]).tolist()
        for lo, hi in pairwise(bounds):
            self._note(data, base, starts[lo:hi], ends[lo:hi], quotes, bool(special[lo]))
        return iter(())

    def _note(self, data: Bytes, base: int, starts: Index, ends: Index, quotes: Index, new: bool) -> None:
        seen = None
        if self.look:
            lo, hi = np.searchsorted(quotes, (starts[0], ends[-1]))
            none = np.zeros(0, np.int64)
            seen = self.look(
                Records("", data, starts - base, ends - base, base, none, 0, quotes[lo:hi] - base)
            )
        run = Run(int(starts[0]), int(ends[-1]), len(starts), seen)
        if new:
            self.runs.append(run)
            return
        last = self.runs[-1]
        merged = last.seen.merge(seen) if self.look else None
        self.runs[-1] = replace(last, end=run.end, count=last.count + run.count, seen=merged)


class PieceScanner(RecordScanner):
    """The records of a piece: whole records of one section with commas between, at some place of a file.

    ends_with: a comma or nothing, what must stand behind the last record; then DataError is raised unless the piece is what
    it was taken for (see rayds.formats._sketch). None: it is known to be.
    """

    def __init__(
        self,
        read: Read,
        name: str,
        piece: Run,
        section: str,
        marks: bool = False,
        ends_with: bytes | None = None,
    ) -> None:
        super().__init__(None, name, (section,))  # type: ignore[arg-type]
        self.read, self.piece, self.section, self.ends_with = read, piece, section, ends_with
        self._with_marks = marks
        self._depth, self._pending_at = self._record_depth - 1, piece.start

    def records(self) -> Iterator[Records]:
        """The records, about a window's worth at a time."""
        at = self.piece.start
        while at < self.piece.end:
            chunk = self.read(at, min(at + self.window, self.piece.end))
            if not chunk:
                break
            yield from self._feed(chunk, at)
            at += len(chunk)
        if self._count != self.piece.count >= 0:
            raise file_changed(self.name, self.piece)
        if self.ends_with is not None:
            self._prove(self._ends_well(), self._pending_at)

    def _ends_well(self) -> bool:
        rest = self._pending.strip(b" \t\r\n")
        whole = self._open is None and not self._in_string and self._depth == self._record_depth - 1
        return whole and rest == self.ends_with and self._count > 0

    def _prove(self, right: bool, at: int) -> None:
        if not right:
            raise DataError("not only records with one comma between", file=self.name, place=f"byte {at}")

    def _cut(self, data: Bytes, base: int, found: Found) -> Iterator[Records]:
        starts, ends = found.starts, found.ends
        inner, special = self._told(data, base, found)
        if self.ends_with is not None:
            if self._count == 0:
                special[0] = int(starts[0]) != self.piece.start
            self._prove(not special.any(), int(starts[np.argmax(special)]))
        made = Records(self.section, data, starts - base, ends - base, base, inner, self._count)
        if found.marks is not None:
            lo, hi = np.searchsorted(found.marks, (starts[0], ends[-1]))
            made.marks = found.marks[lo:hi] - base
        yield made
        self._count += len(starts)


def file_changed(name: str, run: Run) -> DataError:
    """The error of records that are not what they were when the file was scanned."""
    return DataError(
        "the records are not what they were a moment before",
        file=name,
        place=f"bytes {run.start} to {run.end}",
        remedy="The file was changed while it was read: run again",
    )


def whole_files(storage: Storage) -> str | None:
    """Why files of a storage can't be read by ranges; None when they can."""
    if split_archive(storage.url) or "::" in storage.url:
        return "a member of an archive is read from its beginning"
    return None
