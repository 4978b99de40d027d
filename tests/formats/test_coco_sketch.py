"""COCO files of which only some bytes are looked at before they are read: the output is that of the reader of whole files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rayds
from rayds.errors import DataError
from rayds.formats import _sketch
from rayds.formats.coco import cuts, ranged
from rayds.formats.coco.order import Ids

LOOK = 600  # bytes, a few records
RANGE = "1300"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks, spans and blocks so small that files of a few images have many."""
    for module in (_sketch, cuts):
        monkeypatch.setattr(module, "GLIMPSE", LOOK)
    monkeypatch.setattr(cuts, "SPAN_BYTES", 2000)
    monkeypatch.setattr("rayds.dataset.ReadContext", _small_context)


def _small_context(*args: Any, **kwargs: Any) -> Any:
    from rayds.format import ReadContext

    return ReadContext(*args, **kwargs, block_rows=5)


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ranges each sketch did not scan."""
    found: list[int] = []

    def counted(*args: Any) -> Any:
        made = _sketch.sketch_marks(*args)
        found.append(sum(p.count < 0 for p in made[0].pieces) if made else 0)
        return made

    monkeypatch.setattr(ranged, "sketch_marks", counted)
    return found


def many(n: int = 60, each: int = 3) -> tuple[list[Any], list[Any]]:
    images = [{"id": i + 1, "file_name": f"{i}.jpg", "width": 50, "height": 50} for i in range(n)]
    annotations = [
        {
            "id": k + 1,
            "image_id": k // each + 1,
            "category_id": 1,
            "bbox": [k % 40, 1, 2, 3],
            "area": 6,
            "iscrowd": 0,
        }
        for k in range(each * n)
    ]
    return images, annotations


def text_of(images: list[Any], annotations: list[Any], **separators: Any) -> str:
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    return json.dumps(content, **separators)


def exported(path: Path, name: str, range_size: str, format: str = "coco", **options: Any) -> Any:
    """The files of the exported dataset, or the error it ends with."""
    out = path.with_name(name)
    try:
        dataset = rayds.Dataset.import_from(
            str(path), "coco_instances", range_size=range_size, **{"engine": "local", **options}
        )
        # files of few items, so that there are several and spans begin with them
        dataset.export(str(out), format, overwrite=True, **({"shard_size": 7} if format == "rayds" else {}))
    except DataError as e:
        return str(e)
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def check(path: Path, text: str | bytes, format: str = "coco") -> Any:
    """That both readers give the same; what the one of whole files gives."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    whole, sketched = exported(path, "whole", "none", format), exported(path, "ranges", RANGE, format)
    if isinstance(whole, str):
        assert isinstance(sketched, str)
    else:
        assert sketched == whole
    return whole


@pytest.mark.parametrize("format", ["coco", "rayds", "voc"])
@pytest.mark.parametrize("separators", [{}, {"separators": (",", ":")}, {"indent": 1}])
def test_files_in_order_are_not_scanned(
    format: str, separators: Any, tmp_path: Path, sketches: list[int]
) -> None:
    found = check(tmp_path / "instances_train.json", text_of(*many(), **separators), format)
    assert not isinstance(found, str)
    assert sketches
    assert min(sketches) > 3


def test_spans_begin_with_the_files_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[ranged.Span] = []
    made = ranged._in_order

    def noted(*args: Any) -> Any:
        spans.extend(found := made(*args) or [])
        return found

    monkeypatch.setattr(ranged, "_in_order", noted)
    check(tmp_path / "instances_train.json", text_of(*many()), "rayds")
    assert len(spans) > 3
    assert [s.first_item for s in spans] == [s.lo for s in spans]
    assert all(s.lo % 7 == 0 for s in spans)


def test_the_reader_of_whole_ranges_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*_: Any) -> None:
        raise AssertionError("all ranges were scanned")

    path = tmp_path / "instances_train.json"
    path.write_text(text_of(*many()))
    monkeypatch.setattr(ranged, "find_marks", scan)
    assert not isinstance(exported(path, "out", RANGE), str)
    with pytest.raises(AssertionError, match="all ranges"):  # nothing may start again here
        list(rayds.Dataset.import_from(str(path), "coco_instances", engine="local", range_size=RANGE))


def test_where_bad_items_may_be_skipped_all_ranges_are_scanned(tmp_path: Path, sketches: list[int]) -> None:
    path = tmp_path / "instances_train.json"
    path.write_text(text_of(*many()))
    assert not isinstance(exported(path, "out", RANGE, on_error="skip"), str)
    assert sketches == []


def moved(items: list[Any], a: int, b: int) -> list[Any]:
    made = list(items)
    made.insert(b, made.pop(a))
    return made


M = 90  # an annotation in the middle
CHANGES: dict[str, Any] = {
    "two of one image in another order": lambda i, a: (i, moved(a, M, M + 1)),
    "an annotation that is late": lambda i, a: (i, moved(a, M, M + 40)),
    "annotations in no order": lambda i, a: (i, random.Random(1).sample(a, len(a))),
    "images in no order": lambda i, a: (random.Random(1).sample(i, len(i)), a),
    "an id twice": lambda i, a: (i, [*a[:M], {**a[M], "id": a[M - 60]["id"]}, *a[M + 1 :]]),
    "the same id twice in turn": lambda i, a: (i, [*a[:M], {**a[M], "id": a[M - 1]["id"]}, *a[M + 1 :]]),
    "an id missing": lambda i, a: (i, [*a[:M], {k: v for k, v in a[M].items() if k != "id"}, *a[M + 1 :]]),
    "an id that is no integer": lambda i, a: (i, [*a[:M], {**a[M], "id": 91.5}, *a[M + 1 :]]),
    "an unknown image": lambda i, a: (i, [*a[:M], {**a[M], "image_id": 7000}, *a[M + 1 :]]),
    "an image that is not listed": lambda i, a: ([*i[:30], *i[31:]], a),
    "an unknown category": lambda i, a: (i, [*a[:M], {**a[M], "category_id": 9}, *a[M + 1 :]]),
    "a bad box": lambda i, a: (i, [*a[:M], {**a[M], "bbox": [1, 2]}, *a[M + 1 :]]),
    "a box outside": lambda i, a: (i, [*a[:M], {**a[M], "bbox": [99, 2, 3, 4]}, *a[M + 1 :]]),
    "an unknown key": lambda i, a: (i, [*a[:M], {**a[M], "note": {"deep": ['}{",[', 1]}}, *a[M + 1 :]]),
    "images without annotations": lambda i, a: (i, [*a[:30], *a[66:120]]),
    "an image with all annotations": lambda i, a: (i, [{**x, "image_id": 5} for x in a]),
    "a record over many ranges": lambda i, a: (i, [*a[:M], {**a[M], "note": '{"\\' * 3000}, *a[M + 1 :]]),
    "looks like another file": lambda i, a: (
        i, [*a[:M], {**a[M], "note": json.dumps(a)[:4000]}, *a[M + 1 :]]
    ),
    "images twice": lambda i, a: ([*i, i[3]], a),
}  # fmt: skip


@pytest.mark.parametrize("format", ["coco", "rayds"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_as_it_seemed(change: str, format: str, tmp_path: Path) -> None:
    check(tmp_path / "instances_train.json", text_of(*CHANGES[change](*many())), format)


@pytest.mark.parametrize(
    "inserted",
    [
        '], "hidden": [{"id": 3, "image_id": 4}], "more": [',
        '], "info": {"hidden": 1}, "annotations": [',
        "] , [",
        ", ",
        "}",
        "{",
        '"',
        "\\",
        '{"images": [{"id": 1, "image_id": 2}]},',
        "1, ",
    ],
)
def test_what_stands_between_records(inserted: str, tmp_path: Path) -> None:
    text = text_of(*many())
    start = text.index('{"id": 91, "image_id"')
    check(tmp_path / "instances_train.json", text[:start] + inserted + text[start:])


def test_a_missing_comma(tmp_path: Path) -> None:
    for n in range(85, 100):
        record = f'{{"id": {n}, "image_id"'
        text = text_of(*many()).replace("}, " + record, "}" + record)
        assert isinstance(check(tmp_path / "instances_train.json", text), str)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    at=st.floats(0, 1),
    length=st.integers(0, 40),
    new=st.one_of(
        st.text(st.sampled_from('{}[]",:\\ 0123456789'), max_size=12),
        st.sampled_from(['"id": 5', '"image_id": 7', "},{", '{"id": 1}', '"images":[]', "null", "1e3"]),
    ),
    indent=st.sampled_from([None, 0]),
)
def test_any_damage(at: float, length: int, new: str, indent: int | None, tmp_path: Path) -> None:
    text = text_of(*many(40), indent=indent)
    place = int(at * len(text))
    check(tmp_path / "instances_train.json", text[:place] + new + text[place + length :])


@given(st.lists(st.integers(0, 6), min_size=3, max_size=60), st.data())
def test_a_cut_is_where_the_annotations_of_an_item_begin(counts: list[int], data: Any) -> None:
    images = np.arange(len(counts)) * 3 + 5
    owner = np.repeat(images, counts)
    if not len(owner):
        return
    places = 100 + np.cumsum(np.full(len(owner), 40)) - 40
    end = int(places[-1]) + 40

    def look(at: int) -> Ids | None:
        seen = np.flatnonzero((places >= at) & (places < at + LOOK))
        return Ids(places[seen], seen, owner[seen]) if len(seen) else None

    item = data.draw(st.integers(1, len(counts) - 1))
    found = cuts.find_cut(look, (100, 0), (end, len(counts)), images, item)
    later = np.flatnonzero(owner >= images[item])
    if found is not None:
        assert (found[0], found[2]) == (int(places[later[0]]), int(later[0]))
    else:
        assert not len(later) or later[0] <= 1 or end <= 100 + 2 * LOOK


@pytest.mark.ray
@pytest.mark.parametrize("change", ["in order", "an annotation that is late"])
@pytest.mark.parametrize("format", ["coco", "rayds", "yolo", "voc", "datumaro"])
def test_on_ray(format: str, change: str, tmp_path: Path, ray_engine: Any) -> None:
    path = tmp_path / "instances_train.json"
    path.write_text(text_of(*CHANGES.get(change, lambda i, a: (i, a))(*many())))
    whole = exported(path, "whole", "none", format)
    assert exported(path, "ray", RANGE, format, engine=ray_engine) == whole
