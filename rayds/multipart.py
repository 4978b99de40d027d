"""How a file is made of others on an object store: every part but the last has at least 5 MiB, and at most 10,000 are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MIN_PART = 5 << 20
MAX_COPY = 512 << 20  # S3 takes up to 5 GiB; smaller ones are copied side by side
MAX_PARTS = 10_000


@dataclass(frozen=True)
class Slice:
    """Bytes start..end of literal bytes or of a file."""

    source: bytes | str
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Part:
    """A part of the new file. copy: its one slice is of a file and large enough to be copied on the server."""

    slices: tuple[Slice, ...]
    copy: bool = False


def plan_parts(
    pieces: Sequence[tuple[bytes | str, int]],
    *,
    min_part: int = MIN_PART,
    max_copy: int = MAX_COPY,
    max_parts: int = MAX_PARTS,
) -> list[Part]:
    """The parts of a file that is made of pieces (literal bytes or a path, and the size of it), in order.

    Large files are copied on the server; what is too small for a part of its own is brought together, with the
    beginning of the next file where need be.
    """
    while True:
        parts = _plan(pieces, min_part, max(max_copy, 2 * min_part))
        if len(parts) <= max_parts:
            return parts
        min_part, max_copy = 2 * min_part, 2 * max_copy


def _plan(pieces: Sequence[tuple[bytes | str, int]], least: int, most: int) -> list[Part]:
    parts: list[Part] = []
    held: list[Slice] = []
    for source, size in pieces:
        at = 0
        while at < size:
            rest, have = size - at, sum(s.size for s in held)
            if not held and rest >= least and isinstance(source, str):
                parts += _copies(source, at, size, most)
                break
            take = min(rest, least - have)
            if rest - take < least or isinstance(source, bytes):
                take = rest  # what would be left is too small for a copy
            held.append(Slice(source, at, at + take))
            at += take
            if have + take >= least:
                parts.append(Part(tuple(held)))
                held = []
    if held:
        parts.append(Part(tuple(held)))
    return parts


def _copies(source: str, start: int, end: int, most: int) -> list[Part]:
    n = -(-(end - start) // most)
    cuts = [start + (end - start) * i // n for i in range(n + 1)]
    return [Part((Slice(source, a, b),), copy=True) for a, b in pairwise(cuts)]
