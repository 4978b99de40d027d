"""What the compiled scanner reads is what is read without it, to the last bit; of bad records too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rayds.errors import DataError
from rayds.formats import _compiled
from rayds.formats._records import RecordScanner
from rayds.formats.coco.images import images_of
from rayds.formats.coco.plain import annotations_of
from rayds.formats.coco.rows import Rows

pytestmark = pytest.mark.skipif(_compiled.jsonscan is None, reason="rayds was not compiled here")
T = TypeVar("T")
SOME = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LABELS = {1: 0, 3: 2, 0: 1}

spaces = st.sampled_from(["", "", "", " ", "\n", "\t \r\n"])
digits = st.text("0123456789", min_size=1, max_size=20)
numbers = st.one_of(
    st.integers(0, 3).map(str),
    st.integers(-(10**18), 10**18).map(str),
    st.floats(-1e4, 1e4).map(lambda v: repr(round(v, 2))),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.tuples(digits, digits).map(".".join),
    st.builds(lambda a, b, e: f"{a}.{b}e{e}", digits, digits, st.integers(-330, 330)),
)
odd = st.sampled_from(
    [
        "-0",
        "-0.0",
        "0.10",
        "1e3",
        "1E-5",
        "00",
        "01",
        "+1",
        ".5",
        "5.",
        "-.5",
        "-",
        "1e",
        "0x10",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "1e-999",
        "9007199254740993",
        "null",
        "true",
        "false",
        '"3"',
        '""',
        '"a\\"b"',
        "[]",
        "{}",
        "[1,2]",
        "[[1,2,3,4,5,6]]",
        '{"size":[2,2],"counts":[0,4]}',
        '{"size":[2,2],"counts":"04"}',
        "[[1,2,3,4,5]]",
        "[[1,2]]",
        "[[]]",
        "[1,2,3,null]",
        '[1,2,3,"4"]',
        "[[1,2,3,4,5,6],[1]]",
        "[1,2,3,4,5]",
        "[1,2,3]",
        "0.0",
        "0",
        "1",
        "2",
    ]
)


def listed(inner: st.SearchStrategy[str], least: int, most: int) -> st.SearchStrategy[str]:
    parts = st.lists(
        st.builds(lambda a, v, b: a + v + b, spaces, inner, spaces), min_size=least, max_size=most
    )
    return parts.map(lambda found: "[" + ",".join(found) + "]")


polygon = st.integers(3, 5).flatmap(lambda n: listed(numbers, 2 * n, 2 * n))
PLAIN = {
    "id": st.integers(-3, 10**6).map(str),
    "image_id": st.integers(0, 5).map(str),
    "category_id": st.sampled_from("0133"),
    "bbox": listed(numbers, 4, 4),
    "area": numbers,
    "iscrowd": st.sampled_from("01"),
    "segmentation": listed(polygon, 0, 2),
}
IMAGE = {
    "id": st.integers(-3, 10**6).map(str),
    "file_name": st.sampled_from(
        ['"a.jpg"', '"b/c d.png"', '"é.jpg"', '"x.tar.gz"', '"../a.jpg"', '""', '"a\\u0062.jpg"']
    ),
    "width": st.integers(0, 5000).map(str),
    "height": st.integers(0, 5000).map(str),
    "license": numbers,
    "date": st.sampled_from(['"2026"', '""', "null", "true", "false", '"日本"']),
    "a": st.sampled_from(["0", "1.50", "2.5", "-7"]),
    "é": st.just("1"),
    "\x7f'": st.just("null"),
}


@st.composite
def objects(draw: Any, keys: dict[str, st.SearchStrategy[str]], needed: int, strange: bool) -> str:
    """The text of an object: plain, or with something odd."""
    names = list(keys)[:needed] + [k for k in list(keys)[needed:] if draw(st.booleans())]
    members = [(json.dumps(k, ensure_ascii=False), draw(keys[k])) for k in draw(st.permutations(names))]
    if strange:
        at = draw(st.integers(0, len(members) - 1))
        name, value = members[at]
        members[at] = draw(
            st.sampled_from(
                [
                    (name, None),
                    ('"other"', "{ }"),
                    ('"caption"', '"x"'),
                    ('"\\u0069d"', "7"),
                    (name, value + "]"),
                    ('""', value),
                ]
            )
        )
        if members[at][1] is None:
            members[at] = (name, draw(odd))
        if draw(st.integers(0, 5)) == 0:
            members.append(draw(st.sampled_from(members)))
    space = lambda: draw(spaces)  # noqa: E731
    return "{" + ",".join(space() + k + space() + ":" + space() + v + space() for k, v in members) + "}"


def several(keys: dict[str, st.SearchStrategy[str]], needed: int) -> st.SearchStrategy[list[str]]:
    """Mostly plain records."""
    one = st.integers(0, 4).flatmap(lambda n: objects(keys, needed, strange=n == 0))
    return st.lists(one, min_size=1, max_size=9)


def both(read: Callable[[], T]) -> tuple[T, T]:
    """What is read with the compiled scanner, and without it."""
    with_it, scanner = read(), _compiled.jsonscan
    try:
        _compiled.jsonscan = None
        return with_it, read()
    finally:
        _compiled.jsonscan = scanner


def parts_of(
    data: bytes, wanted: tuple[str, ...] = ("",), bare: bool = True, window: int = 8 << 20
) -> list[Any]:
    return list(RecordScanner(io.BytesIO(data), "f", wanted, bare, window).records())


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or the error."""
    try:
        return read()
    except DataError as e:
        return str(e)


@SOME
@given(
    several(PLAIN, 4),
    st.sampled_from([None, "stuff"]),
    st.sampled_from([",", " ,\n"]),
    st.sets(st.integers(0, 300), max_size=9),
)
@example(['{"id":1,"image_id":2,"category_id":1,"bbox":[1,2,3,4],"area":-0.0}'] * 3, None, ",", set())
@example(
    ['{"id":1,"image_id":2,"category_id":1,"bbox":[1,2,3,4],"area":123456789012345678}'] * 3, None, ",", set()
)
def test_annotations(texts: list[str], mark: str | None, gap: str, exclude: set[int]) -> None:
    data = ("[" + gap.join(texts) + "]").encode()

    def read() -> Any:
        return [annotations_of(part, "f", LABELS, mark, 5, frozenset(exclude)) for part in parts_of(data)]

    with_it, without = both(lambda: outcome(read))
    assert type(with_it) is type(without)
    if isinstance(with_it, str):
        assert with_it == without
        return
    for a, b in zip(with_it, without, strict=True):
        same(a, b)


def same(a: Rows, b: Rows) -> None:
    assert a.rows.equals(b.rows)
    a.rows.validate(full=True)
    for name in ("image", "annotation", "ids", "places"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert list(map(str, a.errors)) == list(map(str, b.errors))


def test_numbers_are_read_to_the_last_bit() -> None:
    """Most are read in a shorter way than by strtod."""
    rng = np.random.default_rng(0)
    texts = [
        *map(repr, rng.uniform(0, 1000, 4000).round(2).tolist()),
        *map(repr, rng.uniform(0, 1, 4000).tolist()),
    ]
    texts += [
        "9007199254740993",
        "0.1e1",
        "123456789012345.6",
        "5e-324",
        "1.7976931348623157e308",
        "0.3",
        "1e22",
        "1e23",
    ]
    texts += [
        f"{a}.{b}" for a, b in zip(rng.integers(0, 10**9, 4000), rng.integers(0, 10**9, 4000), strict=True)
    ]
    data = f'[{{"id":1,"image_id":1,"category_id":1,"bbox":[0,0,1,1],"segmentation":[[{",".join(texts)}]]}}]'.encode()
    (part,) = parts_of(data)
    rows = annotations_of(part, "f", LABELS, None, 0).rows
    assert rows.field("points")[1].as_py() == [float(t) for t in texts]


def test_one_odd_record_among_plain_ones_leaves_these_to_the_scanner(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = '{"id":%d,"image_id":1,"category_id":1,"bbox":[0,0,1,1]}'
    texts = [plain % i for i in range(9)]
    texts[4] = '{"id":4,"image_id":1,"category_id":1,"bbox":[0,0,1,1],"score":0.5}'
    seen: list[int] = []
    import rayds.formats.coco.plain as module

    parse = module.parsed_rows

    def spy(records: Any, *args: Any) -> Rows:
        seen.append(len(records))
        return parse(records, *args)

    monkeypatch.setattr(module, "parsed_rows", spy)
    (part,) = parts_of(("[" + ",".join(texts) + "]").encode())
    found = annotations_of(part, "f", LABELS, None, 0)
    assert seen == [1]
    assert found.ids.tolist() == list(range(9))
    assert found.rows.field("attributes")[4].as_py() == '{"score":0.5}'


@SOME
@given(several(IMAGE, 2), st.sampled_from([",", "\n,"]))
@example(['{"id":1,"file_name":"\xff.jpg"}'], ",")
@example(['{"id":1,"file_name":"a.jpg","b":1,"b":2}'], ",")
def test_images(texts: list[str], gap: str) -> None:
    data = ("[" + gap.join(texts) + "]").encode("latin-1" if "\xff" in texts[0] else "utf-8")

    def read() -> Any:
        found = [images_of(part, "f") for part in parts_of(data)]
        return [table for table, _ in found], [str(e) for _, errors in found for e in errors]

    with_it, without = both(lambda: outcome(read))
    assert with_it == without


@st.composite
def broken_json(draw: Any) -> bytes:
    """Bytes that look like JSON, with many braces, quotation marks and backslashes."""
    parts = draw(
        st.lists(
            st.sampled_from(
                ["{", "}", '"', "\\", ",", "[", "]", ":", " ", "a", '"a":', '{"b":1},', "x" * 61]
            ),
            max_size=60,
        )
    )
    return ('{"items":[' + "".join(parts)).encode()


@SOME
@given(broken_json(), st.integers(1, 130), st.booleans())
@example(b'{"items":[{"a":"' + b"\\" * 64 + b'"},{}]}', 64, False)
@example(b'{"items":[{"a":"' + b"\\" * 63 + b'"},{}]}', 16, False)
def test_records_are_found_in_the_same_places(data: bytes, window: int, bare: bool) -> None:
    def read() -> Any:
        scanner = RecordScanner(io.BytesIO(data), "f", ("items",), bare, window)
        found, error = [], None
        try:
            for part in scanner.records():
                base = part.base
                found += [
                    (part.section, int(s) + base, int(e) + base, int(q))
                    for s, e, q in zip(part.starts, part.ends, part.quotes, strict=True)
                ]
        except DataError as e:
            error = str(e)
        return found, error, scanner.skeleton

    with_it, without = both(read)
    assert with_it == without


def test_places_outside_the_data_are_refused() -> None:
    scanner: Any = _compiled.jsonscan
    for starts, ends in [([0], [5]), ([-1], [2]), ([3], [2])]:
        for read in (scanner.annotations, scanner.images):
            with pytest.raises(ValueError, match="not in the data"):
                read(b"{}{}", np.array(starts), np.array(ends))
    with pytest.raises(ValueError, match="as many"):
        scanner.images(b"{}", np.array([0, 1]), np.array([2]))
    for start, is_open in [(5, -1), (-1, -1), (2, 3)]:
        with pytest.raises(ValueError, match="not in the data"):
            scanner.scan(b"{}{}", start, 1, 0, False, False, is_open, 0)


def test_a_variable_turns_it_off() -> None:
    code = "from rayds.formats import _compiled; from rayds import copying; print(_compiled.jsonscan, copying._files)"
    env = {**os.environ, "RAYDS_PURE_PYTHON": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["None", "None"]
