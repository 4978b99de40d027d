"""The top-level keys of COCO files, without reading all of a big one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rayds.errors import DataError
from rayds.format import plain_fold
from rayds.formats._ranges import Fold, find_marks, whole_files
from rayds.formats._records import WINDOW, RecordScanner, read_tail
from rayds.formats.coco.layout import RANGE, SECTIONS
from rayds.storage import Storage

HEAD = 1 << 20
TAIL = 8 << 20
_OVERLAP = 64 << 10  # white space that may stand between a record and the next key
_SEARCHED = 4 * RANGE  # bytes that a task searches: it is quick, and reads a window at a time
_MANY = 1000  # ends of arrays in a range: they are inside records, most likely
_SECTION_END = re.compile(rb'\}\s*\]\s*,\s*"')
_NEXT_SECTION = re.compile(rb'"(?:images|annotations)"\s*:\s*\[\s*\{')


@dataclass(frozen=True)
class Top:
    """The top-level keys of an annotation file but images and annotations: info, licenses, categories, unknown keys.

    known: those that were found without much reading, categories among them where the file has them. whole(): all.
    """

    known: dict[str, Any]
    whole: Callable[[], dict[str, Any]]


def peek(storage: Storage, name: str, broken_ok: bool = False, fold: Fold = plain_fold) -> Top:
    """The top-level keys of an annotation file.

    Big files are parsed at both ends only, when that shows the categories (that there are no others, the reader sees). For
    all keys that suffices when the rest has no other ones, which a quick search proves; else the whole file is scanned.
    fold: runs a function over parts of the file as tasks.
    broken_ok: of a file that is cut off or no JSON, give what stands before (the reader will tell of it).
    """
    size = storage.size(name)
    if size <= HEAD + TAIL or whole_files(storage) is not None:
        return _settled(_all_keys(storage, name, broken_ok))
    found, start = _head(storage, name)
    tail = storage.read_range(name, size - TAIL, size)
    found |= {k: v for k, v in read_tail(tail).items() if k not in SECTIONS}
    if "categories" not in found or start is None:
        return _settled(_marked_keys(storage, name, broken_ok, fold))

    def whole() -> dict[str, Any]:
        tail = storage.read_range(name, size - TAIL, size)
        hidden = _hides_keys(storage, name, start, tail, fold)
        return _marked_keys(storage, name, broken_ok, fold) if hidden else found

    return Top(found, whole)


def _settled(keys: dict[str, Any]) -> Top:
    return Top(keys, lambda: keys)


def _marked_keys(storage: Storage, name: str, broken_ok: bool, fold: Fold) -> dict[str, Any]:
    """The top-level keys of a big file, scanned as tasks."""
    marks = find_marks(storage, name, SECTIONS, RANGE, fold)
    if marks.error is not None:
        return _all_keys(storage, name, broken_ok)
    return {k: v for k, v in marks.skeleton.items() if k not in SECTIONS}


def _all_keys(storage: Storage, name: str, broken_ok: bool) -> dict[str, Any]:
    """The top-level keys of a file, all of which is scanned."""
    with storage.open(name) as f:
        scanner = RecordScanner(f, storage.path(name), SECTIONS)
        try:
            for _ in scanner.records():
                pass
        except DataError:
            if not broken_ok:
                raise
            return _opened(scanner.so_far())
    return {k: v for k, v in scanner.skeleton.items() if k not in SECTIONS}


def _head(storage: Storage, name: str) -> tuple[dict[str, Any], int | None]:
    """(the top-level keys that stand whole in the first bytes of a file, the place there from which on nothing but images or
    annotations is known; None when something else goes on there)."""
    scanner = RecordScanner(io.BytesIO(storage.read_range(name, 0, HEAD)), name, SECTIONS)
    try:
        for _ in scanner.records():
            pass
    except DataError:
        pass  # cut off, of course
    return _opened(scanner.so_far()), scanner.place_in_section()


def _hides_keys(storage: Storage, name: str, start: int, tail: bytes, fold: Fold) -> bool:
    """Whether a file may have keys after byte `start`, which is in a section of records, that `tail` does not show whole."""
    size = storage.size(name)
    ranges = [(at, min(at + _SEARCHED, size)) for at in range(start, size, _SEARCHED)]
    ends: list[tuple[int, bool]] = fold(ranges, partial(_section_ends, storage, name, size), list.__add__)
    for at, plain in ends:
        if plain:
            continue
        if at < size - len(tail):
            return True
        rest = tail[at - size :]
        match = _SECTION_END.match(rest)
        assert match is not None
        try:
            json.loads(b"{" + rest[match.end() - 1 :])
        except ValueError:
            return True
        return False
    return False


def _section_ends(storage: Storage, name: str, size: int, part: tuple[int, int]) -> list[tuple[int, bool]]:
    """(place, whether images or annotations follow) of what may end an array of objects, with a key behind it, in a range;
    no more than are needed."""
    start, end = part
    found: list[tuple[int, bool]] = []
    for at in range(start, end, WINDOW):
        until = min(at + WINDOW, end)
        data = storage.read_range(name, at, min(until + _OVERLAP, size))
        for match in _SECTION_END.finditer(data):
            if at + match.start() < until:
                found.append((at + match.start(), _NEXT_SECTION.match(data, match.end() - 1) is not None))
                if len(found) > _MANY:
                    return [(start, False)]
    return found


def _opened(text: bytes) -> dict[str, Any]:
    """The keys of a JSON object that is cut off."""
    for end in (b"]}", b"}"):
        try:
            found = json.loads(text.rstrip().rstrip(b",") + end)
            return {k: v for k, v in found.items() if k not in SECTIONS} if isinstance(found, dict) else {}
        except ValueError:
            continue
    return {}
