"""What can be told of COCO records' ids without parsing the records: in which order they are, and that each has one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayds.formats._records import Records

Ints = npt.NDArray[np.int64]

_SPACES = np.isin(np.arange(256), np.frombuffer(b" \t\r\n", np.uint8))
_MAX_DIGITS = 18  # sure to be an int64
_MAX_SPACES = 8
# A key may be written with escapes: \u0069d is id. Where there are such, nothing is told.
_ESCAPED_ASCII = re.compile(rb"\\u00[567]")


@dataclass(frozen=True)
class Numbers:
    """Some numbers in the order of their records.

    rising: each is greater than the one before; level: or equal; unique: no two are equal. turn: the place (byte) of the
    first record whose number is another than that of the first record, -1 when there is none.
    """

    first: int
    last: int
    low: int
    high: int
    rising: bool
    level: bool
    unique: bool
    turn: int = -1

    @classmethod
    def of(cls, values: Ints, places: Ints) -> Numbers:
        """That of one number or more."""
        step = np.diff(values)
        rising, level = bool((step > 0).all()), bool((step >= 0).all())
        other = np.flatnonzero(values != values[0])
        return cls(
            int(values[0]),
            int(values[-1]),
            int(values.min()),
            int(values.max()),
            rising,
            level,
            rising or len(np.unique(values)) == len(values),
            int(places[other[0]]) if len(other) else -1,
        )

    def merge(self, later: Numbers, at: int) -> Numbers:
        """That of these numbers and later ones, whose first record is at a place."""
        turn = self.turn if self.turn >= 0 else at if later.first != self.first else later.turn
        apart = self.high < later.low or later.high < self.low
        return Numbers(
            self.first,
            later.last,
            min(self.low, later.low),
            max(self.high, later.high),
            self.rising and later.rising and self.last < later.first,
            self.level and later.level and self.last <= later.first,
            self.unique and later.unique and apart,
            turn,
        )


@dataclass(frozen=True)
class Order:
    """What is known of consecutive records: id and image id of each; None where not every record surely has one.

    at: the place of the first record.
    """

    at: int
    ids: Numbers | None
    images: Numbers | None

    def merge(self, later: Order) -> Order:
        """The order of these records and the ones after them."""
        ids = self.ids.merge(later.ids, later.at) if self.ids and later.ids else None
        images = self.images.merge(later.images, later.at) if self.images and later.images else None
        return Order(self.at, ids, images)


def order_of(records: Records) -> Order:
    """The order of some records, which come with their marks."""
    places = records.base + records.starts
    at = int(places[0])
    if _has_escaped_ascii(records):
        return Order(at, None, None)
    braces = _inner_braces(records)
    found = [_plain_integers(records, braces, key) for key in (b"id", b"image_id")]
    ids, images = (None if v is None else Numbers.of(v, places) for v in found)
    return Order(at, ids, images)


@dataclass(frozen=True)
class Ids:
    """The place, id and image id of consecutive records; ids is None where not every record surely has both."""

    places: Ints
    ids: Ints | None
    images: Ints

    def merge(self, later: Ids) -> Ids:
        """Those of these records and the ones after them."""
        ids = None if self.ids is None or later.ids is None else np.concatenate([self.ids, later.ids])
        places = np.concatenate([self.places, later.places])
        return Ids(places, ids, np.concatenate([self.images, later.images]))

    @property
    def turn(self) -> int:
        """Which is the first record of another image than that of the first record; 0: none."""
        return int(np.argmax(self.images != self.images[0]))


def ids_of(records: Records) -> Ids:
    """The ids of some records, which come with their marks."""
    places = records.base + records.starts
    none = np.zeros(0, np.int64)
    if _has_escaped_ascii(records):
        return Ids(places, None, none)
    braces = _inner_braces(records)
    ids, images = (_plain_integers(records, braces, key) for key in (b"id", b"image_id"))
    return Ids(places, None, none) if ids is None or images is None else Ids(places, ids, images)


def order_between(one: Ids, following: Ids) -> Order | None:
    """What the order of the records of a range should be by its first ones and those of the next range; None where
    the records don't seem to be in order, or do not show where another image begins."""
    if one.ids is None or following.ids is None or not (one.turn and following.turn):
        return None
    first, last = int(one.ids[0]), int(following.ids[0]) - 1
    image, next_image = int(one.images[0]), int(following.images[0])
    if last < first or next_image <= image:
        return None
    ids = Numbers(first, last, first, last, True, True, True)
    turn = int(one.places[one.turn])
    images = Numbers(image, next_image, image, next_image, False, True, False, turn)
    return Order(int(one.places[0]), ids, images)


def _has_escaped_ascii(records: Records) -> bool:
    text: Any = records.data[records.starts[0] : records.ends[-1]]
    return _ESCAPED_ASCII.search(text) is not None


def plain_ids(records: Records) -> Ints | None:
    """The id of each record; None when not every record surely has one."""
    if _has_escaped_ascii(records):
        return None
    return _plain_integers(records, _inner_braces(records), b"id")


def _plain_integers(records: Records, braces: tuple[Ints, Ints] | None, key: bytes) -> Ints | None:
    """The value of a key in each record, when every record surely has it once, as a plain integer; else None."""
    quotes = records.marks
    data, starts, ends = records.data, records.starts, records.ends
    if quotes is None or not len(quotes):
        return None
    at = np.flatnonzero(np.diff(quotes) == len(key) + 1)
    for k, c in enumerate(key):
        at = at[data[quotes[at] + 1 + k] == c]
    after = _skip_spaces(data, quotes[at] + len(key) + 2)
    named = data[after] == ord(":")
    at, after = at[named], after[named]
    n = len(starts)
    if len(at) != n:
        return None
    opening = quotes[at]
    # One each, and an opening mark: the marks of a record before it are pairs.
    pairs = (at - np.searchsorted(quotes, starts)) % 2 == 0
    if not (pairs & (opening > starts) & (opening < ends)).all():
        return None
    if braces is not None:  # not in an object inside the record
        places, depth = braces
        if (depth[np.searchsorted(places, opening)] != 1).any():
            return None
    return _numbers(data, _skip_spaces(data, after + 1))


def _skip_spaces(data: npt.NDArray[np.uint8], at: Ints) -> Ints:
    """The places of the first bytes from `at` on that are no white space (of much white space: one of it)."""
    at = np.minimum(at, len(data) - 1)
    for _ in range(_MAX_SPACES):
        space = _SPACES[data[at]]
        if not space.any():
            break
        at = np.minimum(at + space, len(data) - 1)
    return at


def _inner_braces(records: Records) -> tuple[Ints, Ints] | None:
    """(places of the braces outside strings, depth before each and after the last); None where no record has inner ones."""
    data, starts, ends = records.data, records.starts, records.ends
    lo = int(starts[0])
    found = np.flatnonzero((data[lo : ends[-1]] | 6) == 0x7F) + lo  # { } and few others
    if len(found) == 2 * len(starts):
        return None
    kinds = data[found]
    found = found[(kinds == ord("{")) | (kinds == ord("}"))]
    assert records.marks is not None
    found = found[np.searchsorted(records.marks, found) % 2 == 0]
    return found, np.append(0, np.cumsum(np.where(data[found] == ord("{"), 1, -1)))


def _numbers(data: npt.NDArray[np.uint8], at: Ints) -> Ints | None:
    """The integers that begin at some places; None when one is not plain."""
    negative = data[at] == ord("-")
    at = at + negative
    value = np.zeros(len(at), np.int64)
    digits = np.zeros(len(at), np.int64)
    more = np.ones(len(at), bool)
    for _ in range(_MAX_DIGITS + 1):
        digit = data[at].astype(np.int64) - ord("0")
        more &= (digit >= 0) & (digit <= 9)
        if not more.any():
            break
        value = np.where(more, value * 10 + digit, value)
        digits += more
        at = np.minimum(at + more, len(data) - 1)
    end = data[at]
    plain = (end == ord(",")) | (end == ord("}")) | _SPACES[end]
    if more.any() or not plain.all() or digits.min(initial=1) == 0:
        return None
    return np.where(negative, -value, value)
