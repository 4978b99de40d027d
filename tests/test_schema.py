"""Item tables: flat views are right on any slice; foreign tables become item tables or say why not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayds.engine.base import guarded, rechunked
from rayds.format import with_errors
from rayds.schema import (
    ANNOTATION_TYPE,
    ERROR_COLUMN,
    ITEM_SCHEMA,
    annotation_rows,
    conform,
    empty_table,
    flat,
    item_table,
    list_of,
    mask_rows,
    media_field,
    media_rows,
    single_chunk,
    split_errors,
    with_annotations,
    with_media,
)

COUNTS = [2, 0, 3, 1, 0, 2]


def table() -> pa.Table:
    """6 items; annotation k has id k, label k % 3 (null for 0), points [k, k + 0.5]."""
    n = sum(COUNTS)
    rows = annotation_rows(
        n,
        type=6,
        id=np.arange(n),
        label=pa.array([k % 3 or None for k in range(n)], pa.int32()),
        points=pa.array([[k, k + 0.5] for k in range(n)], pa.list_(pa.float64())),
    )
    media = media_rows(6, path=[f"{i}.jpg" for i in range(6)], width=5)
    return item_table(6, rows, COUNTS, id=[str(i) for i in range(6)], media=media)


def expected(start: int, stop: int) -> dict[str, Any]:
    before = np.concatenate([[0], np.cumsum(COUNTS)])
    return {
        "id": list(range(before[start], before[stop])),
        "item": [i - start for i in range(start, stop) for _ in range(COUNTS[i])],
        "offsets": (before[start : stop + 1] - before[start]).tolist(),
    }


@pytest.mark.parametrize(("start", "stop"), [(a, b) for a in range(7) for b in range(a, 7)])
def test_flat_on_any_slice(start: int, stop: int) -> None:
    view = flat(table().slice(start, stop - start))
    want = expected(start, stop)
    assert view.numpy("id").tolist() == want["id"]
    assert view.item.tolist() == want["item"]
    assert view.offsets.tolist() == want["offsets"]
    assert view.type.tolist() == [6] * len(want["id"]) == [6] * len(view)
    assert view.column("points").to_pylist() == [[k, k + 0.5] for k in want["id"]]
    assert view.column("label").to_pylist() == [k % 3 or None for k in want["id"]]
    assert view.numpy("label", -1).tolist() == [k % 3 or -1 for k in want["id"]]


def test_flat_of_several_chunks_and_filters() -> None:
    whole = table()
    pieces = pa.concat_tables([whole.slice(4), whole.slice(0, 2), whole.slice(2, 1)])
    assert flat(pieces).numpy("id").tolist() == [6, 7, 0, 1, 2, 3, 4]
    assert flat(pieces).item.tolist() == [1, 1, 2, 2, 4, 4, 4]
    kept = whole.filter(pa.array([False, True, True, False, True, True]))
    assert flat(kept).numpy("id").tolist() == [2, 3, 4, 6, 7]
    assert flat(kept).item.tolist() == [1, 1, 1, 3, 3]


def test_flat_of_nothing_and_of_null() -> None:
    assert len(flat(empty_table())) == 0
    assert flat(empty_table()).offsets.tolist() == [0]
    made = conform(pa.table({"id": ["a", "b"]}))  # its annotations are null
    assert flat(made).offsets.tolist() == [0, 0, 0]
    mixed = pa.concat_tables([table().slice(0, 1), made, table().slice(2, 1)])
    assert flat(mixed).numpy("id").tolist() == [0, 1, 2, 3, 4]
    assert flat(mixed).item.tolist() == [0, 0, 3, 3, 3]


def test_flat_makes_no_copy() -> None:
    block = table()
    values = block.column("annotations").chunk(0).values.field("points").values
    assert flat(block).column("points").values.buffers()[1].address == values.buffers()[1].address


def test_other_annotations() -> None:
    block = table().slice(1, 4)
    view = flat(block)
    keep = view.numpy("id") != 3
    counts = np.bincount(view.item[keep], minlength=block.num_rows)
    got = with_annotations(block, view.rows.filter(pa.array(keep)), counts)
    assert got.schema.equals(ITEM_SCHEMA)
    assert [[a["id"] for a in row] for row in got.column("annotations").to_pylist()] == [[], [2, 4], [5], []]


def test_media_fields() -> None:
    block = table().slice(2, 3)
    assert media_field(block, "path").to_pylist() == ["2.jpg", "3.jpg", "4.jpg"]
    got = with_media(block, path=["a", None, "c"], height=7)
    assert [(m["path"], m["width"], m["height"]) for m in got.column("media").to_pylist()] == [
        ("a", 5, 7),
        (None, 5, 7),
        ("c", 5, 7),
    ]
    none = with_media(conform(pa.table({"id": ["a"]})), path="x")
    assert none.column("media").to_pylist() == [None]
    assert media_field(none, "path").to_pylist() == [None]
    with pytest.raises(KeyError, match="pth"):
        with_media(block, pth="x")


def test_rows_from_scalars_arrays_and_nothing() -> None:
    rows = annotation_rows(2, type=[1, 2], label=3, text=pa.array(["a", None]))
    assert rows.type == ANNOTATION_TYPE
    first, second = rows.to_pylist()
    assert (first["type"], first["label"], first["id"], first["group"], first["z_order"]) == (1, 3, 0, 0, 0)
    assert (first["text"], second["text"], first["points"]) == ("a", None, None)
    assert mask_rows(2, 4, [5, 6], ["x", None]).to_pylist() == [
        {"height": 4, "width": 5, "counts": "x"},
        None,
    ]
    assert list_of(pa.array([1, 2, 3]), np.array([1, 0, 2])).to_pylist() == [[1], [], [2, 3]]
    for bad in (
        lambda: annotation_rows(1, lable=1),
        lambda: item_table(1, ids=["a"]),
        lambda: media_rows(1, x=1),
    ):
        with pytest.raises(KeyError, match="no such columns"):
            bad()


def test_single_chunk_of_many() -> None:
    column = pa.chunked_array([["a"], [], ["b"]], pa.string())
    assert single_chunk(pa.table({"x": column}), "x").to_pylist() == ["a", "b"]
    assert single_chunk(pa.table({"x": pa.chunked_array([], pa.string())}), "x").to_pylist() == []


# foreign tables


def test_conform_fills_and_casts() -> None:
    foreign = pa.table(
        {
            "subset": pa.array(["a", "b"], pa.large_string()),
            "id": pa.array(["1", "2"]).dictionary_encode(),
            "annotations": pa.array([[], None], pa.large_list(ANNOTATION_TYPE)),
        }
    )
    got = conform(foreign)
    assert got.schema.equals(ITEM_SCHEMA)
    assert got.column("subset").to_pylist() == ["a", "b"]
    assert conform(pa.table({"id": ["1"]})).column("subset").to_pylist() == ["default"]
    assert conform(table()).equals(table())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"subset": ["a"]}, "needs a column 'id'"),
        ({"id": ["a"], "label": [1]}, "not columns of an item table.*label"),
        ({"id": ["a"], "media": [1]}, "column 'media' is int64"),
        ({"id": ["a"], "annotations": ["x"]}, "column 'annotations' is string"),
    ],
)
def test_conform_says_why_not(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conform(pa.table(columns))


# error rows


def test_error_rows_stand_beside_good_ones() -> None:
    errors = [{"item": "x", "subset": "s", "reason": "bad"}, {"item": None, "subset": "s", "reason": "worse"}]
    block = with_errors(table(), errors)
    good, bad = split_errors(block)
    assert good.equals(table())
    assert bad is not None
    assert bad.column("id").to_pylist() == ["x", ""]
    assert [json.loads(t)["reason"] for t in bad.column(ERROR_COLUMN).to_pylist()] == ["bad", "worse"]
    assert split_errors(with_errors(table(), []))[1] is None
    assert split_errors(table()) == (table(), None)
    assert conform(block).schema.names == [*ITEM_SCHEMA.names, ERROR_COLUMN]


def test_stages_do_not_see_error_rows() -> None:
    block = with_errors(table(), [{"item": "x", "subset": "s", "reason": "bad"}])
    seen = []

    def first_two(part: pa.Table) -> pa.Table:
        seen.append(part.schema.names)
        return part.slice(0, 2)

    out = guarded(first_two)(block)
    assert seen == [ITEM_SCHEMA.names]
    assert out.column("id").to_pylist() == ["0", "1", "x"]


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 100])
def test_rechunked_blocks_have_the_same_rows(rows: int) -> None:
    whole = pa.concat_tables([table(), table(), table()])
    pieces = [whole.slice(0, 5), empty_table(), whole.slice(5, 1), whole.slice(6)]
    got = list(rechunked(pieces, rows))
    assert pa.concat_tables(got).equals(whole)
    assert {b.num_rows for b in got[:-1]} <= {rows}
    assert 0 < got[-1].num_rows <= rows
