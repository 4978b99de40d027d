"""How many records a big JSON file holds, by looking at a few windows of it: for the time left, not for results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rayds.storage import Storage

WHOLE = 4 << 20  # smaller files are counted
WINDOW = 1 << 14
WINDOWS = 64
THREADS = 16  # requests at a time, where each takes a trip to an object store
STEPS = 6  # halvings of the gap in which records begin or end: a part in 64 * 2^6 of the file


def about_records(storage: Storage, name: str, key: bytes) -> int | None:
    """About how many records with a key (`"key":`, once in each) a file holds; None when nothing can be said.

    The records may fill one region of the file only, as COCO's images do: its ends are looked for.
    """
    try:
        return _Sampled(storage, name, key).about()
    except OSError:  # also StorageError; whoever reads the file will tell of it
        return None


class _Sampled:
    """One file, of which windows are read."""

    def __init__(self, storage: Storage, name: str, key: bytes) -> None:
        self.storage, self.name, self.key = storage, name, key
        self.size = storage.size(name)

    def hits(self, starts: Iterable[int]) -> list[int]:
        """How many records begin in each of the windows."""

        def one(start: int) -> int:
            # A key may stand across the window's end: those that begin in it count.
            data = self.storage.read_range(
                self.name, start, min(self.size, start + WINDOW + len(self.key) - 1)
            )
            return data.count(self.key)

        if self.storage.local:
            return [one(s) for s in starts]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(one, starts))

    def about(self) -> int | None:
        if self.size <= WHOLE:
            return self.storage.read_bytes(self.name).count(self.key)
        step = (self.size - WINDOW) / (WINDOWS - 1)
        starts = [int(i * step) for i in range(WINDOWS)]
        found = self.hits(starts)
        full = [i for i, n in enumerate(found) if n]
        if not full:
            return None
        first, last = full[0], full[-1]
        begin = self.edge(starts[first], starts[first - 1] if first else None)
        end = self.edge(starts[last], starts[last + 1] if last + 1 < WINDOWS else None)
        return self.in_region(
            begin, min(self.size, end + WINDOW), starts[first : last + 1], found[first : last + 1]
        )

    def edge(self, inside: int, outside: int | None) -> int:
        """The start of the window with records that is nearest to one without."""
        for _ in range(STEPS if outside is not None else 0):
            assert outside is not None
            middle = (inside + outside) // 2
            if abs(middle - inside) < WINDOW // 2:
                break
            if self.hits([middle])[0]:
                inside = middle
            else:
                outside = middle
        return inside

    def in_region(self, begin: int, end: int, starts: Sequence[int], found: Sequence[int]) -> int:
        """The number of records between begin and end, by their mean density in it."""
        if len(found) < WINDOWS // 2:  # a small region: more windows in it make the mean steady
            step = max(0, end - begin - WINDOW) / (WINDOWS - 1)
            found = self.hits([int(begin + i * step) for i in range(WINDOWS)])
        return round(sum(found) / (len(found) * WINDOW) * (end - begin))
