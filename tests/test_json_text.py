"""JSON of numbers and strings: what the table gives is what DuckDB prints, and reads back equal."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayds import json_text
from rayds.json_text import list_texts, string_texts
from rayds.sql import query, text_column

LISTS = pa.list_(pa.float64())
NESTED = pa.list_(LISTS)

pixels = st.integers(0, 700_000).map(lambda n: n / 100)
numbers = st.one_of(
    pixels,
    pixels,
    st.sampled_from([-0.0, 0.0, 655.35, 655.36, 5242.87, 5242.88, 0.1 + 0.2, 1e22, -3.25, 1e-7]),
    st.floats(allow_nan=False, allow_infinity=False),
)


def lists_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return st.lists(st.none() | st.lists(values, max_size=6), max_size=6)


def nested_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    inner = st.lists(values, min_size=2, max_size=6) | st.lists(values, max_size=2)
    return st.lists(st.none() | st.lists(inner, max_size=3), max_size=5)


@pytest.fixture(autouse=True)
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "_table", (0, None))


@pytest.fixture(params=["below 655.36", "below 1310.72", "below 5242.88", "none"])
def table(request: pytest.FixtureRequest) -> None:
    """The table as it is after many numbers: so few as here would be printed one by one."""
    sizes = {"below 655.36": 1 << 16, "below 1310.72": 1 << 17, "below 5242.88": 1 << 19}
    if request.param in sizes:
        json_text._table_of(np.arange(sizes[request.param], dtype=np.int32))
        assert json_text._table[0] == sizes[request.param]


def check(lists: Any, kind: pa.DataType) -> None:
    array = pa.array(lists, kind)
    found = list_texts(array)
    printed = query("SELECT to_json(l)::VARCHAR AS text FROM t", t=pa.table({"l": array}))
    assert [None if t is None else f"[{t}" for t in found.to_pylist()] == text_column(printed).to_pylist()
    assert [None if t is None else json.loads(f"[{t}") for t in found.to_pylist()] == lists


@pytest.mark.usefixtures("table")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists_of(pixels) | lists_of(numbers))
def test_lists(lists: Any) -> None:
    check(lists, LISTS)


@pytest.mark.usefixtures("table")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nested_of(pixels) | nested_of(numbers))
def test_lists_of_lists(lists: Any) -> None:
    check(lists, NESTED)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("kind", [LISTS, NESTED])
def test_slices(kind: pa.DataType) -> None:
    one: Any = [1.25, 2.0] if kind == LISTS else [[1.25, 2.0], [3.0, 4.0]]
    whole = pa.array([one, [], None, one, one], kind)
    assert list_texts(whole[1:4]).to_pylist() == list_texts(whole).to_pylist()[1:4]


def test_a_table_is_made_for_many_numbers_only_and_grows() -> None:
    assert list_texts(pa.array([[1.5, 2.0]])).to_pylist() == ["1.5,2.0]"]
    assert list_texts(pa.array([[], None], LISTS)).to_pylist() == ["]", None]
    assert json_text._table[0] == 0
    for n, size in ((40_000, 1 << 16), (70_000, 1 << 17), (10, 1 << 17)):
        many = [i / 100 for i in range(n)]
        assert json.loads("[" + list_texts(pa.array([many])).to_pylist()[0]) == many
        assert json_text._table[0] == size


def test_threads_share_the_table() -> None:
    lists = [pa.array([[i / 100 for i in range(n)]]) for n in range(33_000, 140_000, 9_000)]
    with ThreadPoolExecutor(4) as pool:
        for array, texts in zip(lists, pool.map(list_texts, lists), strict=True):
            assert json.loads("[" + texts.to_pylist()[0]) == array[0].as_py()


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=("Cs",)))))
def test_strings(strings: list[str | None]) -> None:
    found = string_texts(pa.array(strings, pa.string())).to_pylist()
    assert [None if t is None else json.loads(t) for t in found] == strings
