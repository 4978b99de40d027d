"""Both YOLO formats: numbers survive, detection tells them apart, options are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yolo_data import LABELS, by_key, darknet, item, put, read, small, write

from rayds.annotations import Bbox
from rayds.errors import UsageError
from rayds.formats.yolo._labels import format_numbers, parse
from rayds.formats.yolo.darknet import Yolo
from rayds.formats.yolo.ultralytics import YoloUltralytics
from rayds.listing import Listing

# ---- numbers


@given(st.lists(st.floats(-20, 20) | st.floats(0, 1), min_size=1, max_size=40))
def test_printed_numbers_are_the_shortest_of_ten_decimals(values):
    text, ends = format_numbers(np.array(values), np.ones(len(values), bool))
    lines = bytes(text).decode().split("\n")[:-1]
    assert [float(x) for x in lines] == [round(v, 10) for v in values]
    assert not any("e" in x or x.endswith(".") or x.startswith("-0.0000000000") or x == "-0" for x in lines)
    assert not any("." in x and x.endswith("0") for x in lines)
    assert ends[-1] == len(text)


@given(
    st.lists(
        st.tuples(*[st.integers(0, 10**10).map(lambda k: k / 10**10)] * 4, st.integers(0, 2)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 9000),
    st.integers(1, 9000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fractions_read_and_written_back_are_the_same_text(tmp_path_factory, boxes, height, width):
    root = tmp_path_factory.mktemp("same")
    lines = "".join(
        f"{c} " + " ".join(f"{v:.10f}".rstrip("0").rstrip(".") for v in b) + "\n" for *b, c in boxes
    )
    put(
        root / "in",
        {
            "obj.data": "names = obj.names\ntrain = data/train.txt\n",
            "obj.names": "\n".join(LABELS),
            "train.txt": "data/obj_train_data/a.jpg\n",
            "obj_train_data/a.txt": lines,
            "images.meta": f"a {height} {width}\n",
        },
    )
    read(root / "in", "yolo").export(str(root / "out"), "yolo")
    assert (root / "out/obj_train_data/a.txt").read_text() == lines


@given(
    st.lists(
        st.builds(
            Bbox,
            *[st.floats(0, 470)] * 2,
            *[st.floats(0.1, 300)] * 2,
            label=st.integers(0, 2),
        ),
        max_size=8,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("format", ["yolo", "yolo_ultralytics"])
def test_boxes_survive(tmp_path_factory, format, boxes):
    out = tmp_path_factory.mktemp("boxes") / "out"
    write([item("a", boxes), item("b")], out, format)
    found = by_key(read(out, format))
    back = found["train", "a"].annotations
    assert [b.label for b in back] == [b.label for b in boxes]
    for b, a in zip(back, boxes, strict=True):
        assert np.allclose(b.get_bbox(), a.get_bbox(), rtol=0, atol=1e-6)
    assert found["train", "b"].annotations == []
    assert found["train", "a"].image.size == (480, 640)


def test_parsing_takes_any_blanks_and_keeps_line_numbers():
    texts = [b"0 1 2\r\n\r\n\t1\t.5e0  0.25 \n", b"", b"2 3", b"\n\n7 8\n"]
    lines, bad = parse(texts)
    assert not bad
    assert lines.values.tolist() == [0, 1, 2, 1, 0.5, 0.25, 2, 3, 7, 8]
    assert lines.counts.tolist() == [3, 3, 2, 2]
    assert lines.file.tolist() == [0, 0, 2, 3]
    assert lines.number.tolist() == [1, 3, 1, 3]
    slow, bad = parse(
        [*texts, b"+1 2\n", b"\xef\xbb\xbf4 5\n", b"1 x\n"]
    )  # words that only the slow way takes
    assert slow.values.tolist() == [*lines.values.tolist(), 1, 2, 4, 5]
    assert slow.number.tolist() == [*lines.number.tolist(), 1, 1]
    assert list(bad) == [6]


# ---- detection


def test_detection(tmp_path):
    darknet(tmp_path / "dark")
    small(tmp_path / "ultra", "", "")
    put(tmp_path / "other", {"data.yaml": "a: 1\n", "x.data": "binary", "readme.txt": "x"})
    dark, ultra, other = (Listing(str(tmp_path / n)) for n in ("dark", "ultra", "other"))
    assert Yolo().detect(dark).score >= 80
    assert "obj.data" in Yolo().detect(dark).reason
    assert YoloUltralytics().detect(dark).score == 0
    assert YoloUltralytics().detect(ultra).score >= 80
    assert Yolo().detect(ultra).score == 0
    for format in (Yolo(), YoloUltralytics()):
        assert format.detect(other).score == 0
        assert format.detect(other).reason
    # a folder around the dataset is found too
    put(
        tmp_path / "around/inner",
        {"obj.data": "names = obj.names\n", "obj.names": "a\n", "obj_train_data/x.txt": ""},
    )
    assert [i.id for i in read(tmp_path / "around")] == ["x"]


def test_options_are_checked():
    with pytest.raises(UsageError, match=r"task.*'cubes' is not one of detect, segment"):
        YoloUltralytics.WriteOptions.make({"task": "cubes"})
    assert YoloUltralytics.ReadOptions.make({}).task == "auto"
    assert Yolo.WriteOptions.parse(["--save-images", "--add-path-prefix=false"]) == Yolo.WriteOptions(
        save_media=True, add_path_prefix=False
    )
