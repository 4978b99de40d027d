"""Where in a COCO file the annotations of a certain item begin, found by looking at few places; for annotations in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from rayds.formats._ranges import reader
from rayds.formats._sketch import GLIMPSE, glimpse
from rayds.formats.coco.items import Ints
from rayds.formats.coco.order import Ids, ids_of
from rayds.parallel import ordered_map
from rayds.storage import Storage, io_threads

SPAN_BYTES = 64 << 20  # of the file, at least; up to twice as much where that leaves TASKS for each CPU
TASKS = 16
TRIES = 24

Look = Callable[[int], Ids | None]  # the first records from a byte on
Cut = tuple[
    int, int, int | None
]  # byte, item that begins there, id of the annotation there (None: not known)


def aligned_cuts(
    root: Storage, name: str, known: Sequence[tuple[int, int]], images: Ints, align: int, cpus: int
) -> list[Cut] | None:
    """Cuts at items whose numbers are multiples of `align`, some SPAN_BYTES apart, and the end; None where one can't be found.

    known: (byte, item) of cuts that are known, the first of item 0, the last the end; images: the ids of all images, ascending.
    """
    (begin, _), (end, total) = known[0], known[-1]
    if total <= align:
        return None
    span = min(max(SPAN_BYTES, (end - begin) // (TASKS * cpus)), 2 * SPAN_BYTES)
    step = max(1, round(span * total / max(end - begin, 1) / align)) * align
    items = np.array([lo for _, lo in known])
    read, path, size = reader(root, name), root.path(name), root.size(name)

    def look(at: int) -> Ids | None:
        found = glimpse(read, path, size, ids_of, at)
        return found.seen if found is not None and found.seen.ids is not None else None

    def cut(item: int) -> Cut | None:
        k = int(np.searchsorted(items, item, side="right")) - 1
        if items[k] == item:
            return known[k][0], item, None
        return find_cut(look, known[k], known[k + 1], images, item)

    found = list(ordered_map(cut, range(step, total, step), io_threads(root.url)))
    cuts = [(begin, 0, None), *(c for c in found if c is not None), (end, total, None)]
    if None in found or any(a[0] >= b[0] for a, b in pairwise(cuts)):
        return None
    return cuts


def find_cut(look: Look, low: tuple[int, int], high: tuple[int, int], images: Ints, item: int) -> Cut | None:
    """The first annotation record of an item or a later one, between two known cuts; None where it is not found."""
    wanted = images[item]
    (at, lo), (until, hi) = low, high
    before = False  # whether the record at `at` is known to be of an item before
    for n in range(TRIES):
        share = (item - lo) / max(hi - lo, 1) if n % 4 < 3 else 0.5
        guess = int(at + share * (until - at)) - GLIMPSE // 2
        guess = min(max(guess, at + 1), until)
        seen = look(guess)
        if seen is None or not len(seen.images) or seen.places[0] >= until:
            if until - at <= GLIMPSE:
                return None
            until = guess
            continue
        assert seen.ids is not None
        if seen.images[0] >= wanted:
            if guess == at + 1:
                return (int(seen.places[0]), item, int(seen.ids[0])) if before else None
            until, hi = int(seen.places[0]), int(np.searchsorted(images, seen.images[0]))
        elif seen.images[-1] < wanted:
            at, lo, before = int(seen.places[-1]), int(np.searchsorted(images, seen.images[-1])), True
        else:
            k = int(np.argmax(seen.images >= wanted))
            return int(seen.places[k]), item, int(seen.ids[k])
    return None
