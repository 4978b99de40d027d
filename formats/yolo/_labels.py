"""The text of YOLO label files: many files to flat numbers, and flat numbers to text, whole blocks at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from rayds.storage import Storage

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

DECIMALS = 10  # more than the 6 of most writers; 0.1 pixel boxes of any image come back to 1e-6 pixel
LIMIT = 1e8  # larger numbers (there are none in sane data) do not fit the fixed-point printer

_BLANKS = b" \t\r\v\f"
_TO_LINES = bytes.maketrans(_BLANKS, b"\n" * len(_BLANKS))
_IS_BLANK = np.zeros(256, bool)
_IS_BLANK[list(_BLANKS + b"\n")] = True

_READ = 1 << 16


@dataclass(frozen=True)
class Lines:
    """The non-empty lines of many label files, flat.

    values: the numbers of all lines, float64; starts: index in values of the first number of each line, length
    lines + 1; file: index of the file of each line, ascending; number: line number in its file, from 1.
    """

    values: Floats
    starts: Ints
    file: Ints
    number: Ints

    def __len__(self) -> int:
        return len(self.file)

    @property
    def counts(self) -> Ints:
        """How many numbers each line has."""
        return np.diff(self.starts)

    def only(self, keep: npt.NDArray[np.bool_]) -> Lines:
        """Some of the lines."""
        counts = self.counts
        values = self.values[np.repeat(keep, counts)]
        return Lines(values, starts_of(counts[keep]), self.file[keep], self.number[keep])


@dataclass(frozen=True)
class BadLine:
    """What is wrong with a line of a file."""

    number: int
    reason: str


def starts_of(counts: npt.NDArray[Any]) -> Ints:
    """0 and the running sums of counts."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def ranges(starts: Ints, counts: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ... as one array."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    made: Ints = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return made


def read_labels(root: Storage, names: Sequence[str]) -> list[bytes]:
    """The contents of label files; b"" for one that is not there."""
    if not root.local:
        return [data or b"" for data in root.read_many(names, missing_ok=True)]
    base = root.path("")
    out = []
    for name in names:  # the direct way: three system calls a file
        try:
            fd = os.open(f"{base}/{name}", os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            out.append(b"")
            continue
        try:
            data = os.read(fd, _READ)
            while len(data) % _READ == 0 and data and (more := os.read(fd, _READ)):
                data += more
        finally:
            os.close(fd)
        out.append(data)
    return out


def parse(texts: Sequence[bytes]) -> tuple[Lines, dict[int, BadLine]]:
    """The lines of label files, and the first bad line of each file that has one (no line of it is returned)."""
    found = _parse_all(texts)
    return (found, {}) if found is not None else _parse_slowly(texts)


def _parse_all(texts: Sequence[bytes]) -> Lines | None:
    """All texts at once; None when a word is not a plain finite number."""
    data = b"\n".join(texts) + b"\n"
    buffer = np.frombuffer(data, np.uint8)
    blank = _IS_BLANK[buffer]
    begins = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))
    if not len(begins):
        return Lines(np.zeros(0), np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    values = _numbers(data.translate(_TO_LINES))
    if values is None or len(values) != len(begins):
        return None
    breaks = np.flatnonzero(buffer == 10)
    line = np.searchsorted(breaks, begins)  # the line of each number, over all files
    first = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
    ends = starts_of(np.fromiter((len(t) + 1 for t in texts), np.int64, len(texts)))
    file = np.searchsorted(ends, begins[first], side="right") - 1
    lines_before = np.searchsorted(breaks, ends[:-1])
    number = line[first] - lines_before[file] + 1
    return Lines(values, np.append(first, len(values)), file, number)


def _numbers(data: bytes) -> Floats | None:
    """The numbers of a text with one word a line."""
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            csv.ReadOptions(
                use_threads=False, column_names=["v"], block_size=max(1 << 20, min(len(data), 1 << 26))
            ),
            csv.ParseOptions(delimiter=",", quote_char=False, escape_char=False),
            csv.ConvertOptions(
                column_types={"v": pa.float64()}, null_values=[], strings_can_be_null=False, check_utf8=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    values: Floats = table.column("v").to_numpy()
    return values if np.isfinite(values).all() else None


def _parse_slowly(texts: Sequence[bytes]) -> tuple[Lines, dict[int, BadLine]]:
    """Line by line: for words that the fast way does not know, and to find the bad ones."""
    values: list[float] = []
    counts: list[int] = []
    places: list[tuple[int, int]] = []
    bad: dict[int, BadLine] = {}
    for i, text in enumerate(texts):
        marks = len(values), len(counts)
        for number, raw in enumerate(text.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            words = raw.split()
            if not words:
                continue
            try:
                values.extend(map(_number, words))
            except ValueError as e:
                bad[i] = BadLine(number, str(e))
                del values[marks[0] :], counts[marks[1] :], places[marks[1] :]
                break
            counts.append(len(words))
            places.append((i, number))
    where = np.array(places, np.int64).reshape(-1, 2)
    starts = starts_of(np.array(counts, np.int64))
    return Lines(np.array(values, np.float64), starts, where[:, 0], where[:, 1]), bad


def _number(word: bytes) -> float:
    try:
        value = float(word) if b"_" not in word else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{word[:40].decode('utf-8', 'replace')!r} is not a number")
    return value


# Of the numbers 00000 to 99999: the digits as text, and how many stand before the zeros at the end.
_DIGITS = np.ascontiguousarray(np.indices((10,) * 5, np.uint8).reshape(5, -1).T) + np.uint8(ord("0"))
_SIGNIFICANT = 5 - np.cumprod(_DIGITS[:, ::-1] == ord("0"), axis=1, dtype=np.int8).sum(1)


def format_numbers(values: Floats, line_ends: npt.NDArray[np.bool_]) -> tuple[Bytes, Ints]:
    """(text, end of each number in it): shortest decimals, at most 10 of them, a blank or a line break after each.

    values: finite, below LIMIT; line_ends: whether a line ends after the value.
    """
    n = len(values)
    fixed = np.rint(np.abs(values) * 10.0**DECIMALS).astype(np.int64)
    whole, fraction = np.divmod(fixed, 10**DECIMALS)
    high, low = np.divmod(fraction, 100_000)
    places = np.where(low > 0, 5 + _SIGNIFICANT[low], _SIGNIFICANT[high])
    width = len(str(int(whole.max()))) if n else 1
    text = np.empty((n, width + 13), np.uint8)
    text[:, 0] = ord("-")
    more_digits = np.zeros(n, np.int64)
    for j in range(width):
        unit = 10 ** (width - 1 - j)
        text[:, 1 + j] = whole // unit % 10 + 48
        if unit > 1:
            more_digits += whole >= unit
    text[:, width + 1] = ord(".")
    text[:, width + 2 : width + 7] = _DIGITS[high]
    text[:, width + 7 : width + 12] = _DIGITS[low]
    text[:, -1] = np.where(line_ends, 10, 32)
    table = _kept(width)
    shape = (((values < 0) & (fixed > 0)) * width + more_digits) * (DECIMALS + 1) + places
    return text[table[shape]], np.cumsum(table.sum(1)[shape])


def _kept(width: int) -> npt.NDArray[np.bool_]:
    """Which bytes of "-<width digits>.<DECIMALS digits><end>" the text of a number has, for each shape of number: with a sign or
    without, by how many digits before the point after the first, by how many behind it."""
    table = np.zeros((2, width, DECIMALS + 1, width + 13), bool)
    table[1, ..., 0] = True
    for more in range(width):
        table[:, more, :, width - more : width + 1] = True
    for places in range(1, DECIMALS + 1):
        table[:, :, places, width + 1 : width + 2 + places] = True
    table[..., -1] = True
    return table.reshape(-1, width + 13)


def line_texts(
    label: npt.NDArray[Any], values: Floats, counts: Ints, item: Ints, items: int
) -> tuple[memoryview, Ints]:
    """(text, bounds): the lines of item i are text[bounds[i]:bounds[i + 1]].

    One line for each label: it and its numbers, counts[k] of values; item: ascending item of each line.
    """
    sizes = counts + 1
    starts = starts_of(sizes)
    tokens = np.empty(int(starts[-1]))
    is_label = np.zeros(len(tokens), bool)
    is_label[starts[:-1]] = True
    tokens[is_label] = label
    tokens[~is_label] = values
    line_ends = np.zeros(len(tokens), bool)
    line_ends[starts[1:] - 1] = True
    text, ends = format_numbers(tokens, line_ends)
    line_bounds = np.concatenate([[0], ends[starts[1:] - 1]]).astype(np.int64)
    lines_of = starts_of(np.bincount(item, minlength=items))
    return memoryview(text.data), line_bounds[lines_of]
