"""filter: odd names and texts, broken masks, bad expressions with their places, functions over annotations."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rayds as dm
from rayds.errors import DataError, UsageError
from rayds.ops._representation import Document, element_name
from rayds.ops.filter import Filter
from rayds.schema import annotation_rows, item_table, mask_rows

LABELS = ["cat"]


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import this module: send its functions whole."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def odd() -> dm.Dataset:
    told = {"annotation": "x", "²": 1, "a:b": 2, "é ü": 3, "": 4, "\x01": "\x02", "·x": 1, "big": 10**18 + 1}
    items = [
        dm.DatasetItem("a", [dm.Bbox(0, 0, 1, 1, label=0, id=2**53 + 1, attributes=told)], attributes=told),
        dm.DatasetItem("b\x01", [dm.Caption("x\x02y")], media=dm.Image(path="q\x03.jpg")),
    ]
    return dm.Dataset.from_iterable(items, LABELS, engine="local")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("occluded", "occluded"), ("a b", "a-b"), ("1st", "_1st"), ("a/b", "a_b"), ("²", "__"), ("", "_"), ("a:b", "a_b"),
     ("·x", "_·x"), ("é", "é"), ("annotation", "_annotation"), ("-", "_-")],
)  # fmt: skip
def test_every_attribute_has_a_name_in_xml(name: str, expected: str) -> None:
    from lxml import etree

    assert element_name(name) in (expected, expected.replace("__", "_"))
    etree.Element(element_name(name))


@pytest.mark.parametrize(
    ("expression", "mode", "expected"),
    [
        ("/item[id='b\ufffd' and image/path='q\ufffd.jpg']", "i", [False, True]),
        ("/item/annotation[caption='x\ufffdy']", "a", [False, True]),
        ("/item/annotation[string(id)='9007199254740993']", "a", [True, False]),
        ("/item/annotation[_annotation='x' and é-ü=3]", "a", [True, False]),
        ("/item[attributes/_annotation='x']", "i", [True, False]),
    ],
)
def test_odd_texts_are_the_same_on_columns_and_by_lxml(expression: str, mode: str, expected: Any) -> None:
    op = Filter(expression=expression, mode=mode)
    op.prepare(dm.Categories.of(LABELS))
    block = odd().to_arrow().combine_chunks()
    assert op.by_columns(Document(block, LABELS)).tolist() == expected
    assert op.by_elements(Document(block, LABELS)).tolist() == expected


def test_attributes_are_never_taken_for_annotations() -> None:
    made = odd().filter("//annotation", mode="a")
    assert [len(item.annotations) for item in made] == [1, 1]
    assert "<_annotation>x</_annotation>" in "".join(odd().represented())


@pytest.mark.parametrize(
    ("expression", "place", "reason"),
    [
        ("/item[", "at its end", "expected a name"),
        ("/item[foo()]", "at character 7", "unknown function 'foo'. Did you mean 'floor'"),
        ("/item[$x]", "at character 7", "there are no variables"),
        ("/item[a:b]", "at character 8", "there are no namespaces"),
        ("/item[subset='x]", "at character 14", "unclosed quotes"),
        ("/item[contains(id)]", "at character 7", "does not take 1 arguments"),
        ("item]", "at character 5", "expected an operator or the end"),
        ("/item/annotation[label='x' and]", "at character 31", "expected a name"),
        ("count(1)", "at character 1", "takes a path"),
        ("1 | 2", "at character 3", "joins paths only"),
        ("/item[" + "(" * 200 + "1" + ")" * 200 + "]", "at character", "nested too deeply"),
    ],
)
def test_a_bad_expression_names_the_place(expression: str, place: str, reason: str) -> None:
    with pytest.raises(UsageError) as told:
        odd().filter(expression)
    assert place in str(told.value)
    assert reason in str(told.value)


@pytest.mark.parametrize(
    "expression", ["/item", "/item/annotation/label", "count(/item)", "'annotation'", "/"]
)
def test_what_selects_no_annotations_is_told_before_data_is_read(expression: str) -> None:
    with pytest.raises(UsageError, match="does not select annotation elements"):
        odd().filter(expression, filter_annotations=True)


def broken(engine: Any, policy: str) -> dm.Dataset:
    rows = annotation_rows(2, type=[2, 2], mask=mask_rows(2, 5, 5, pa.array(["zzz@", "01"])))
    rows = pa.concat_arrays([rows.slice(0, 1), annotation_rows(1, type=6, points=[[0.0, 0.0, 2.0, 2.0]])])
    table = item_table(2, rows, np.array([1, 1]), id=pa.array(["bad", "good"]))
    made = dm.Dataset.from_arrow(table, LABELS, engine=engine)
    made._on_error = dm.OnError(policy)
    return made


def test_a_broken_mask_is_a_bad_item_where_its_area_is_asked(engine: Any) -> None:
    asked = "/item/annotation[area > 1]"
    with pytest.raises(DataError, match=r"item 'bad'.*run lengths of a mask are broken"):
        list(broken(engine, "raise").filter(asked, mode="a"))
    assert [item.id for item in broken(engine, "skip").filter(asked, mode="a")] == ["good"]
    assert [item.id for item in broken(engine, "raise").filter("/item/annotation[id = 0]", mode="i").filter("/item[subset]")] == ["bad", "good"]  # fmt: skip


def test_skipped_items_are_counted(tmp_path: Any) -> None:
    made = broken("local", "skip").filter("/item[annotation/area > 1]")
    report = made.export(str(tmp_path / "out"), "datumaro")
    assert (report.items, [e["item"] for e in report.errors]) == (1, ["bad"])


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("(FROM t)", "has a query in it"),
        ("id in (SELECT 'a')", "has a query in it"),
        ("random() > 0.5", "is not the same each time"),
        ("now() > '2020-01-01'", "is not the same each time"),
        ("row_number() over () = 1", "window functions"),
        ("count(*) > 0", "aggregates"),
        ("COLUMNS(*) = 'a'", "name the columns"),
        ("rayds_row = 0", "name the columns"),
        ("true) AND (true", "is not one expression"),
        ("true) ORDER BY (id", "is not one expression"),
        ("read_text('/etc/hostname') is null", "read_text"),
    ],
)
def test_sql_is_an_expression_of_the_row_only(where: str, reason: str) -> None:
    if where == "true) AND (true":  # two conditions in brackets are one expression
        assert len(list(odd().filter(where=where))) == 2
        return
    with pytest.raises(UsageError, match=reason):
        odd().filter(where=where)


def test_words_of_sql_may_stand_in_texts() -> None:
    assert len(list(odd().filter(where="id <> 'select one; drop -- it'"))) == 2
    assert len(list(odd().filter(where="id = 'a' -- the first"))) == 1


def test_a_value_that_sql_can_not_convert_is_told() -> None:
    with pytest.raises(UsageError, match="Could not convert string 'a'"):
        list(odd().filter(where="id::INT > 0"))


def first_only(item: dm.DatasetItem, annotation: dm.Annotation) -> bool:
    return annotation is item.annotations[0] and item.id != "c"


def fails(item: dm.DatasetItem, annotation: dm.Annotation) -> bool:
    return item.annotations[0].label < annotation.id  # None < 0


def test_a_function_keeps_annotations(engine: Any) -> None:
    items = [
        dm.DatasetItem("a", [dm.Label(0), dm.Bbox(0, 0, 1, 1, label=0)]),
        dm.DatasetItem("b"),
        dm.DatasetItem("c", [dm.Caption("x")]),
    ]
    dataset = dm.Dataset.from_iterable(items, LABELS, engine=engine)
    made = dataset.filter(first_only, filter_annotations=True)
    assert [(i.id, i.annotations) for i in made] == [("a", [dm.Label(0)]), ("b", []), ("c", [])]
    made = dataset.filter(first_only, filter_annotations=True, remove_empty=True)
    assert [i.id for i in made] == ["a"]
    with pytest.raises(DataError, match="item 'c'.*TypeError"):
        list(dataset.filter(fails, filter_annotations=True))
    with pytest.raises(UsageError, match="not with mode"):
        dataset.filter(first_only, mode="a")
