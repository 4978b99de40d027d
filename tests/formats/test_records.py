"""The streaming scanner of JSON files with big arrays of records: whatever the layout, and however it is cut."""

import io
import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rayds.errors import DataError
from rayds.formats._records import RecordScanner, read_tail

pytestmark = pytest.mark.usefixtures("reading_by")

WANTED = ("items", "images")
MEAN = '{}[]",:\\ \n\té\0{"items":[{'
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(st.one_of(st.sampled_from(MEAN), st.characters(exclude_categories=["Cs"])), max_size=12)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
records = st.dictionaries(st.one_of(texts, st.sampled_from(WANTED)), values, max_size=4)
spaces = st.text(" \t\r\n", max_size=4)


@st.composite
def documents(draw):
    """(bytes, value): a top-level object with wanted lists of records among other keys of any kind."""
    parts = [
        (name, draw(st.lists(records, max_size=5)))
        for name in draw(st.permutations(WANTED))[: draw(st.integers(0, 2))]
    ]
    others = draw(st.lists(st.tuples(texts.filter(lambda t: t not in WANTED), values), max_size=4))
    pairs = draw(st.permutations(parts + others))
    pairs = list(dict(pairs).items())
    space = lambda: draw(spaces)  # noqa: E731
    members = [space() + dump(draw, k) + space() + ":" + space() + dump(draw, v) + space() for k, v in pairs]
    text = space() + "{" + (",".join(members) or space()) + "}" + space()
    bom = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    return bom + text.encode(), dict(pairs)


def dump(draw, value):
    """JSON of a value with white space and escapes wherever they may stand."""
    space = lambda: draw(spaces)  # noqa: E731
    if isinstance(value, dict):
        members = [
            space() + dump(draw, k) + space() + ":" + space() + dump(draw, v) + space()
            for k, v in value.items()
        ]
        return "{" + (",".join(members) or space()) + "}"
    if isinstance(value, list):
        return "[" + (",".join(space() + dump(draw, v) + space() for v in value) or space()) + "]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


def scan(data, window=8 << 20, wanted=WANTED, bare=False):
    """({section: [(parsed, place, quotes)]}, skeleton)"""
    found = {}
    scanner = RecordScanner(io.BytesIO(data), "file.json", wanted, bare, window)
    for part in scanner.records():
        places = [part.place(i) for i in range(len(part))]
        for i, text in enumerate(part.texts().to_pylist()):
            at = int(places[i].split()[1])
            length = int(part.ends[i] - part.starts[i])
            assert data[at : at + length] + b" " * (len(text.encode()) - length) == text.encode()
            found.setdefault(part.section, []).append((json.loads(text), int(part.quotes[i])))
    return found, scanner.skeleton


def quotes(text):
    return text.replace("\\\\", "").replace('\\"', "").count('"')


@FEW
@given(documents(), st.one_of(st.integers(1, 40), st.integers(1, 1000)))
def test_every_record_is_found_and_the_rest_is_the_skeleton(document, window):
    data, value = document
    found, skeleton = scan(data, window)
    for name in WANTED:
        assert [r for r, _ in found.get(name, [])] == value.get(name, [])
    assert skeleton == {k: [] if k in WANTED else v for k, v in value.items()}
    assert list(skeleton) == list(value)
    assert set(found) <= set(WANTED)


@FEW
@given(st.lists(records, max_size=6), st.data(), st.integers(1, 60))
def test_a_bare_list(value, data, window):
    text = data.draw(spaces) + dump(data.draw, value) + data.draw(spaces)
    found, skeleton = scan(text.encode(), window, (), bare=True)
    assert [r for r, _ in found.get("", [])] == value
    assert skeleton == {}


@FEW
@given(documents(), st.data(), st.integers(1, 60))
def test_a_file_cut_off_is_an_error(document, data, window):
    raw = document[0].rstrip()
    end = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DataError, match=r"file\.json"):
        scan_raw(raw[:end], window)


@pytest.mark.parametrize("window", [3, 1000])
def test_a_file_cut_off_at_any_byte_is_an_error(window):
    text = b'{"info":[1,{"a":[]},[{}]],"items":[{"a":"}"},{"b\\"":"\\\\"},\n{"c":[{}]}],"images":[{}], "z":{"q":2.5}}'
    json.loads(text)
    for end in range(len(text)):
        with pytest.raises(DataError, match=r"file\.json"):
            scan_raw(text[:end], window)


def scan_raw(data, window, bare=False):
    for _ in RecordScanner(io.BytesIO(data), "file.json", WANTED, bare, window).records():
        pass


@FEW
@given(st.binary(max_size=60), st.integers(1, 20), st.booleans())
@example(b'{"items":[{}]}\xff', 3, False)
@example(b"[" * 50000, 1000, False)
@example(b'{"a":' + b"[" * 50000 + b"]" * 50000 + b"}", 1000, False)
@example(b"\xff\xfe{\0}\0", 3, False)
def test_any_bytes_are_read_or_a_data_error(data, window, bare):
    try:
        scan_raw(data, window, bare)
    except DataError:
        return
    assert isinstance(json.loads(data), list if bare else dict)


@FEW
@given(documents(), st.data())
def test_a_byte_more_or_less_is_an_error_or_harmless(document, data):
    """A damaged gap never makes records vanish or appear: all that json.loads refuses outside records is refused."""
    raw, _ = document
    at = data.draw(st.integers(0, len(raw) - 1))
    mended = data.draw(
        st.sampled_from(
            [raw[:at] + raw[at + 1 :], *(raw[:at] + c + raw[at:] for c in (b",", b"]", b"{", b'"'))]
        )
    )
    try:
        found, skeleton = scan(mended)
    except (DataError, ValueError):  # ValueError: of the test's own json.loads, a record is broken
        return
    try:
        value = json.loads(mended)
    except ValueError:
        return
    for name in WANTED:
        if isinstance(value.get(name), list) and all(isinstance(r, dict) for r in value[name]):
            assert len(found.get(name, [])) >= len(value[name])
        elif name in value:
            assert skeleton[name] == value[name]


@given(records)
def test_the_quotation_marks_of_a_record_are_counted(record):
    text = json.dumps(record)
    found, _ = scan(b'{"items": [' + text.encode() + b"]}", 7)
    assert found["items"][0][1] == quotes(text)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ('{"items":[{} {}]}', "expected one comma between records, found ' '", "byte 12"),
        ('{"items":[{},,{}]}', "expected one comma between records, found ',,'", "byte 12"),
        ('{"items":[{},5,{}]}', "expected one comma between records, found ',5,'", "byte 12"),
        ('{"items":[{},"a",{}]}', "expected one comma", "byte 12"),
        ('{"items":[{}]}}', "a closing brace too many", "byte 14"),
        ('{"items":[{}}', "not valid JSON", None),
        ('{"items":[{"a', "cut off inside a string", "byte 13"),
        ('{"items":[{"a":1', "cut off inside an object", "byte 16"),
        ('{"items":[{}],}', "not valid JSON", None),
        ('{"items":[,{}]}', "not valid JSON", None),
        ('{"items":[{},]}', "not valid JSON", None),
        ('[{"items":[{}]}]', "a JSON object was expected", None),
        ("5", "a JSON object was expected", None),
        ("  \n", "the file is empty", None),
        ("", "the file is empty", None),
    ],
)
@pytest.mark.parametrize("window", [1, 5, 1000])
def test_the_message_says_what_is_wrong_and_where(text, message, place, window):
    with pytest.raises(DataError) as e:
        scan_raw(text.encode(), window)
    assert message in str(e.value)
    assert e.value.place == place or place is None


def test_a_bare_scanner_refuses_an_object():
    with pytest.raises(DataError, match="a JSON list of objects was expected"):
        scan_raw(b'{"items": [{}]}', 100, bare=True)
    with pytest.raises(DataError, match="expected one comma"):
        scan_raw(b"[{}, 1, {}]", 100, bare=True)


def test_only_lists_of_objects_directly_under_a_wanted_top_level_key_are_records():
    text = (
        b'{"a": [1, {"items": [{"x": 1}]}, [{}], "s", {}], "items": [[{"y": 2}]], "images": {"items": [{}]}}'
    )
    found, skeleton = scan(text)
    assert found == {}
    assert skeleton == json.loads(text)


def test_records_may_hold_the_names_of_sections():
    text = (
        b'{"items": [{"items": [{"a": 1}], "images": {}}], "x": {"images": [{"b": 2}]}, "images": [{"c": 3}]}'
    )
    found, skeleton = scan(text)
    assert [r for r, _ in found["items"]] == [{"items": [{"a": 1}], "images": {}}]
    assert [r for r, _ in found["images"]] == [{"c": 3}]
    assert skeleton == {"items": [], "x": {"images": [{"b": 2}]}, "images": []}


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b'"x":1}],"categories":[{"id":1}]}', {"categories": [{"id": 1}]}),
        (
            b'1}]}],"b":[{"c":[[1]]},{"d":[{}],"e":1}] , "z": 2 }\n',
            {"b": [{"c": [[1]]}, {"d": [{}], "e": 1}], "z": 2},
        ),
        (b'"categories":1}],"d":0},{"e":1}], "z": 2}', {"z": 2}),
        (b'"annotations":[],"z":"],\\"y\\":1}"}', {"z": '],"y":1}'}),
        (b'"x": "\\"categories\\": 1"}', {}),
        (b"", {}),
    ],
)
def test_keys_at_the_end(tail, expected):
    assert read_tail(tail) == expected


@pytest.mark.slow
def test_speed_does_not_depend_on_the_layout():
    """Real files are gigabytes: the scanner keeps about disk speed, with and without white space."""
    numbers = np.random.default_rng(0).uniform(0, 640, 60).round(2).tolist()
    record = {"id": 1, "segmentation": [numbers], "name": 'a "quoted" \\ {name}'}
    compact, pretty = (json.dumps(record, separators=s) for s in ((",", ":"), (", ", ": ")))
    for text, between in ((compact, ","), (pretty, ",\n  ")):
        data = ('{"items": [' + between.join([text] * 60_000) + "]}").encode()
        best = min(_timed(data) for _ in range(3))
        assert best < len(data) / 40e6, f"{len(data) / best / 1e6:.0f} MB/s"


def _timed(data):
    start = time.process_time()
    n = sum(len(p.texts()) for p in RecordScanner(io.BytesIO(data), "f", ("items",)).records())
    assert n == 60_000
    return time.process_time() - start
