"""The marks of a big JSON file of records by a look at few of its bytes, and cuts between its records.

Of a range whose first records look right, and before another such, nothing else is read: it is taken for records
with commas between from the one to the other. That is no proof. Who reads such a range must prove it (PieceScanner with `ends_with`):
that it begins with a record, holds nothing but records with one comma between, and ends where the next one begins.
As the first range begins in a known state, all proofs together prove the marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rayds.formats._ranges import (
    MIN_RANGE,
    Fold,
    Look,
    Marks,
    RangeMarks,
    Read,
    Run,
    State,
    put_together,
    reader,
    scan_many,
    scan_range,
    states_of,
)
from rayds.parallel import ordered_map
from rayds.storage import Storage, io_threads

GLIMPSE = 128 << 10  # bytes looked at of a range
MIN_RANGES = 4  # of fewer, all are scanned
_BEFORE = 256
_GAP = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*\Z")


@dataclass(frozen=True)
class Glimpse:
    """The first records that begin in a range. start: of the first; before: where the one before it ends; state: in which
    the range begins, as it seems; seen: what `look` says of them."""

    start: int
    before: int
    state: State
    seen: Any


def glimpse(read: Read, name: str, size: int, look: Look, at: int) -> Glimpse | None:
    """What the records that begin from byte `at` on look like; None where there are none, or it can't be told."""
    found = scan_range(read, name, size, at, min(at + GLIMPSE, size), None, look)
    if found.assumed is None or found.error is not None or not found.runs:
        return None
    first = found.runs[0]
    begin = max(0, first.start - _BEFORE)
    gap = _GAP.search(read(begin, first.start))
    if gap is None:
        return None
    return Glimpse(first.start, begin + gap.start() + 1, found.assumed, first.seen)


def sketch_marks(
    storage: Storage,
    name: str,
    wanted: Sequence[str],
    range_size: int,
    fold: Fold,
    look: Look,
    seem: Look,
    between: Callable[[Any, Any], Any],
) -> tuple[Marks, list[Glimpse]] | None:
    """(the marks of a file, the glimpses at the ranges that were not scanned, which have to be proved); None where nothing can be spared.

    look: what is to be known of scanned records; seem: what of those that a glimpse shows; between: what is to be known of a range
    by its own `seem` and that of the next one; None: it must be scanned.
    """
    size, read = storage.size(name), reader(storage, name)
    step = max(MIN_RANGE, range_size, 2 * GLIMPSE)
    at = list(range(0, size, step))
    if len(at) < MIN_RANGES:
        return None
    spy = partial(glimpse, read, storage.path(name), size, seem)
    seen = [None, *ordered_map(spy, at[1:], io_threads(storage.url)), None]
    sketched: dict[int, RangeMarks] = {}
    used: dict[int, Glimpse] = {}
    for i in range(1, len(at) - 1):
        one, following = seen[i], seen[i + 1]
        known = between(one.seen, following.seen) if one and following else None
        if one is None or following is None or known is None:
            continue
        odd = one.state.in_string != following.state.in_string
        deeper = following.state.depth - one.state.depth
        run = Run(one.start, following.before, -1, known)
        sketched[i] = RangeMarks(at[i], at[i + 1], odd, (deeper, deeper), one.state, [run])
        used |= {one.start: one, following.start: following}
    marks = _scanned(storage, name, wanted, at, sketched, fold, look) if sketched else None
    return (marks, list(used.values())) if marks is not None else None


def _scanned(
    storage: Storage,
    name: str,
    wanted: Sequence[str],
    at: list[int],
    sketched: dict[int, RangeMarks],
    fold: Fold,
    look: Look,
) -> Marks | None:
    """The marks of all ranges, those that are not sketched scanned; None where they don't fit together."""
    size = storage.size(name)
    marks = Marks(size)
    ends = [*at[1:], size]
    scan = partial(scan_many, storage, name, size, look)
    inputs = [(at[i], ends[i], State() if i == 0 else None) for i in range(len(at)) if i not in sketched]
    by_start = {m.start: m for m in fold(inputs, scan, list.__add__)}
    found = [sketched[i] if i in sketched else by_start[at[i]] for i in range(len(at))]
    states = states_of(found)
    wrong = [i for i, m in enumerate(found) if m.assumed != states[i]]
    if any(i in sketched for i in wrong):
        return None
    if wrong:
        again = {m.start: m for m in fold([(at[i], ends[i], states[i]) for i in wrong], scan, list.__add__)}
        found = [again.get(m.start, m) for m in found]
    put_together(marks, found, states, storage, name, wanted)
    return None if marks.error is not None else marks
