"""Parsed item records as columns, and which of them the columns can't vouch for.

Every known key and text brings a known number of quotation marks: a record with others has something that the columns
don't show. The other doubts are about values: a shape of the wrong length, a number that is none, a label that is not there.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayds.geometry import broken_rles
from rayds.schema import AnnotationType
from rayds.sql import query, text_column

T = AnnotationType
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

INTEGERS = {"id": 63, "group": 63, "label_id": 31, "z_order": 31}  # bits
_TRIPLES = ("position", "rotation", "scale")
_LISTS = ("points", "bbox", "visibility", *_TRIPLES)
# Numbers that are to be whole come as text: a cast to an integer would round 1.5 and take true for 1.
_ANNOTATION = {
    "type": "VARCHAR",
    "attributes": "JSON",
    **dict.fromkeys(INTEGERS, "JSON"),
    **{k: ["DOUBLE"] for k in _LISTS},
    "rle": {"counts": "JSON", "size": ["DOUBLE"]},
    "caption": "JSON",
    "object_id": "JSON",
}
_ITEM = {
    "id": "JSON",
    "annotations": [_ANNOTATION],
    "attr": "JSON",
    "image": {"path": "JSON", "size": ["DOUBLE"]},
    "point_cloud": {"path": "JSON"},
}
_PARSE = f"SELECT from_json(text, '{json.dumps(_ITEM)}') AS item FROM records"
_HALF = r"\\u[dD]"  # half a character: all others stand as themselves in what DuckDB prints
_NULLS = r'[{,\s]"(?:label_id|z_order|group|id|attributes|visibility|attr|size|object_id)"\s*:\s*null'

_NAMES = pa.array([t.name for t in T])
_CODES = np.array([*(int(t) for t in T), 0], np.int8)
_EVEN = (T.points, T.polygon, T.polyline)
_CORNERS = 6  # numbers of the smallest polygon


def parse(texts: pa.Array) -> tuple[pa.StructArray, Bools]:
    """(the records as structs, which of them are not JSON: their structs are empty)."""
    import duckdb

    broken = np.zeros(len(texts), bool)
    try:
        return text_column(query(_PARSE, records=pa.table({"text": texts})), "item"), broken
    except (duckdb.Error, UnicodeDecodeError):
        pass
    for i in range(len(texts)):
        try:
            texts[i].as_py()
        except UnicodeDecodeError:
            broken[i] = True
    texts = pc.if_else(pa.array(broken), "{}", texts)
    valid = query("SELECT json_valid(text) AS text FROM records", records=pa.table({"text": texts}))
    broken |= ~_true(text_column(valid))
    texts = pc.if_else(pa.array(broken), "{}", texts)
    return text_column(query(_PARSE, records=pa.table({"text": texts})), "item"), broken


def unquoted(texts: pa.Array) -> pa.Array:
    """The values of JSON strings; null stays null."""
    if texts.null_count == len(texts):
        return texts
    if pc.any(pc.match_substring(texts, "\\")).as_py():
        table = pa.table({"text": texts})
        return text_column(query("SELECT json_extract_string(text, '$') AS text FROM strings", strings=table))
    return pc.replace_substring(texts, '"', "")


def _true(mask: pa.Array) -> Bools:
    """A boolean array as NumPy, null as false."""
    found: Bools = (mask.fill_null(False) if mask.null_count else mask).to_numpy(zero_copy_only=False)
    return found


def _valid(array: pa.Array) -> Bools:
    found: Bools = array.is_valid().to_numpy(zero_copy_only=False)
    return found


def _starts(texts: pa.Array, first: str) -> Bools:
    """Whether each text begins so; null does."""
    found: Bools = pc.starts_with(texts, first).fill_null(True).to_numpy(zero_copy_only=False)
    return found


def _quotes(texts: pa.Array) -> Ints:
    """The quotation marks in JSON texts that are not escaped; 0 for null."""
    if texts.null_count == len(texts):
        return np.zeros(len(texts), np.int64)
    encoded = texts.dictionary_encode()
    values = encoded.dictionary
    if pc.any(pc.match_substring(values, "\\")).as_py():
        values = pc.replace_substring_regex(values, r"\\.", "")
    counts = np.append(pc.count_substring(values, '"').to_numpy(zero_copy_only=False), 0).astype(np.int64)
    found: Ints = counts[encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    return found


def _lengths(lists: pa.Array) -> Ints:
    """The lengths of lists, -1 for null."""
    found = pc.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.int64)


def _rows_with(lists: pa.Array, wrong: Any) -> Ints:
    """The rows of a list array with a value for which `wrong` (of the flat values, null as NaN) holds."""
    values = lists.flatten().to_numpy(zero_copy_only=False)
    where = np.flatnonzero(wrong(values))
    if not len(where):
        return where
    ends = np.cumsum(np.maximum(_lengths(lists), 0))
    found: Ints = np.unique(np.searchsorted(ends, where, side="right"))
    return found


def _odd(values: Any) -> Any:
    return ~np.isfinite(values)


def _no_size(values: Any) -> Any:
    return ~((values >= 0) & (values < 1 << 31) & (values == np.floor(values)))


def _no_visibility(values: Any) -> Any:
    return ~np.isin(values, (0, 1, 2))


class Columns:
    """The columns of parsed records: items, and their annotations flat.

    items: structs; rows: annotation structs, those of item i are offsets[i]:offsets[i + 1].
    """

    def __init__(self, items: pa.StructArray) -> None:
        self.items = items
        lists = self.field("annotations")
        offsets = lists.offsets.to_numpy().astype(np.int64)
        self.rows: pa.StructArray = lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        self.offsets: Ints = offsets - offsets[0]
        self.has_annotations = _valid(lists)
        codes = (
            pc.index_in(self.row_field("type"), _NAMES).fill_null(len(_NAMES)).to_numpy(zero_copy_only=False)
        )
        self.type: npt.NDArray[np.int8] = _CODES[codes]
        self.lists: dict[str, pa.Array] = {k: self.row_field(k) for k in _LISTS}
        rle, image = self.row_field("rle"), self.field("image")
        self.has_rle, self.has_image = _valid(rle), _valid(image)
        self.has_cloud = _valid(self.field("point_cloud"))
        self.rle_counts, self.rle_size = pc.struct_field(rle, "counts"), pc.struct_field(rle, "size")
        self.image_path, self.image_size = pc.struct_field(image, "path"), pc.struct_field(image, "size")
        self.cloud_path = pc.struct_field(self.field("point_cloud"), "path")

    def field(self, name: str) -> pa.Array:
        """One field of all items."""
        return pc.struct_field(self.items, name)

    def row_field(self, name: str) -> pa.Array:
        """One field of all annotations."""
        return pc.struct_field(self.rows, name)

    @cached_property
    def _integers(self) -> tuple[dict[str, pa.Array], Bools]:
        """(the whole numbers by key, null where there is none; the annotations where one is something else)."""
        wrong = np.zeros(len(self.rows), bool)
        found = {}
        for key, bits in INTEGERS.items():
            texts = self.row_field(key)
            try:
                values = texts.cast(pa.int64())
            except pa.ArrowInvalid:
                whole = pc.match_substring_regex(texts, r"^-?[0-9]{1,18}$")
                wrong |= ~whole.fill_null(True).to_numpy(zero_copy_only=False)
                values = pc.if_else(whole, texts, pa.scalar(None, pa.string())).cast(pa.int64())
            if bits == 31:
                numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
                big = (numbers >= 1 << 31) | (numbers < -(1 << 31))
                if big.any():
                    wrong |= big
                    values = pc.if_else(pa.array(big), pa.scalar(None, pa.int64()), values)
                values = values.cast(pa.int32())
            found[key] = values
        return found, wrong

    def integer(self, key: str) -> pa.Array:
        """One of the INTEGERS of all annotations, null where there is none."""
        return self._integers[0][key]

    def doubts(self, texts: pa.Array, quotes: Ints, labels: int) -> Bools:
        """Which items to read again. texts, quotes: their records, and the quotation marks in each; labels: how many."""
        doubt = self._items_in_doubt()
        wrong = self._rows_in_doubt(labels)
        doubt[np.searchsorted(self.offsets, np.flatnonzero(wrong), side="right") - 1] = True
        expected = self._expected_quotes()
        strange = np.flatnonzero((expected != quotes) & ~doubt)
        if len(strange):  # keys with the value null
            nulls = pc.count_substring_regex(texts.take(pa.array(strange)), _NULLS).to_numpy(
                zero_copy_only=False
            )
            doubt[strange] = expected[strange] + 2 * nulls != quotes[strange]
        return doubt

    def _items_in_doubt(self) -> Bools:
        ids, attributes = self.field("id"), self.field("attr")
        doubt = ~_valid(ids) | _true(pc.equal(ids, '""')) | ~_starts(ids, '"') | ~_starts(attributes, "{")
        doubt |= self.has_image & self.has_cloud
        lengths = _lengths(self.image_size)
        doubt |= self.has_image & ~_valid(self.image_path) & (lengths < 0)
        doubt |= (lengths >= 0) & (lengths != 2)
        doubt |= self.has_cloud & (_true(pc.equal(self.cloud_path, '""')) | ~_valid(self.cloud_path))
        doubt[_rows_with(self.image_size, _no_size)] = True
        for texts in (ids, self.image_path, self.cloud_path):
            doubt |= ~_starts(texts, '"') | _true(pc.match_substring_regex(texts, _HALF))
        for paths in (self.image_path, self.cloud_path):
            doubt |= _true(pc.match_substring(paths, "..")) | _true(pc.match_substring(paths, "\u0000"))
        return doubt

    def _rows_in_doubt(self, labels: int) -> Bools:
        kind = self.type
        wrong: Bools = (kind == 0) | self._integers[1] | ~_starts(self.row_field("attributes"), "{")
        label = self.integer("label_id").fill_null(-1).to_numpy(zero_copy_only=False)
        wrong |= (label >= labels) | ((label < 0) & _valid(self.integer("label_id")))
        length = {k: _lengths(v) for k, v in self.lists.items()}
        n = length["points"]
        even = np.isin(kind, _EVEN)
        want = np.full(128, -1)
        want[T.ellipse], want[T.rotated_bbox] = 4, 5
        wrong |= np.where(
            even, (n < 0) | (n & 1 == 1) | ((kind == T.polygon) & (n < _CORNERS)), n != want[kind]
        )
        wrong |= length["bbox"] != np.where(kind == T.bbox, 4, -1)
        for key in _TRIPLES:
            wrong |= length[key] != np.where(kind == T.cuboid_3d, 3, -1)
        seen = length["visibility"]
        wrong |= (seen >= 0) & ((kind != T.points) | (seen * 2 != n))
        caption = self.row_field("caption")
        wrong |= (_valid(caption) != (kind == T.caption)) | ~_starts(caption, '"')
        if caption.null_count < len(caption):
            wrong |= _true(pc.match_substring_regex(caption, _HALF))
        wrong |= self.has_rle != (kind == T.mask)
        if self.has_rle.any():
            counts = self.rle_counts
            wrong |= self.has_rle & (~_valid(counts) | ~_starts(counts, '"') | (_lengths(self.rle_size) != 2))
            wrong |= ~pc.string_is_ascii(counts).fill_null(True).to_numpy(zero_copy_only=False)
            wrong[_rows_with(self.rle_size, _no_size)] = True
            masks = np.flatnonzero(self.has_rle & ~wrong)
            sizes = self.rle_size.take(pa.array(masks)).flatten().to_numpy(zero_copy_only=False)
            height, width = sizes.reshape(-1, 2).T.astype(np.int64)
            wrong[masks[broken_rles(unquoted(counts.take(pa.array(masks))), height, width)]] = True
        for key, values in self.lists.items():
            if values.null_count < len(values):
                wrong[_rows_with(values, _no_visibility if key == "visibility" else _odd)] = True
        return wrong

    def _expected_quotes(self) -> Ints:
        """The quotation marks of each record by what the columns show."""
        rows = np.full(len(self.rows), 4, np.int64)  # "type": "..."
        for key in (*INTEGERS, "object_id", *_LISTS):
            rows += 2 * _valid(self.row_field(key))
        rows += 2 * (self.has_rle + _valid(self.rle_size).astype(np.int64))
        for texts in (
            self.row_field("attributes"),
            self.row_field("caption"),
            self.rle_counts,
            self.row_field("object_id"),
        ):
            rows += _quotes(texts)
        for texts in (self.row_field("attributes"), self.row_field("caption"), self.rle_counts):
            rows += 2 * _valid(texts)
        sums = np.concatenate([[0], np.cumsum(rows)])
        items: Ints = sums[self.offsets[1:]] - sums[self.offsets[:-1]]
        items += 2 * (
            self.has_annotations.astype(np.int64) + self.has_image + self.has_cloud + _valid(self.image_size)
        )
        for texts in (self.field("id"), self.field("attr"), self.image_path, self.cloud_path):
            items += _quotes(texts) + 2 * _valid(texts)
        return items
