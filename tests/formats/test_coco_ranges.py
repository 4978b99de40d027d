"""COCO files read by byte ranges: equal to the reader of whole files, whatever the file and wherever the ranges begin."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rayds
from rayds.engine.local import LocalEngine
from rayds.errors import DataError, UsageError
from rayds.formats import coco
from rayds.formats.coco import layout, ranged, top

DATA = Path(__file__).parents[2].parent / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data is not here")
FEW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
REAL = [
    ("coco_mini", "coco", "20KB"),
    ("coco_mini", "coco_person_keypoints", "3KB"),
    ("coco_panoptic/sample_data/panoptic_examples.json", "coco_panoptic", "1KB"),
    ("coco_panoptic/sample_data/panoptic_coco_detection_format.json", "coco_instances", "1KB"),
    ("coco_panoptic/sample_data/images_info_examples.json", "coco_image_info", "1KB"),
    ("coco_stuff", "coco_stuff", "1KB"),
    ("roboflow_coco_bloodcells", "roboflow_coco", "64KB"),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few items, so that files of a few images are several."""
    monkeypatch.setattr("rayds.dataset.ReadContext", _small_context)


def _small_context(*args: Any, **kwargs: Any) -> Any:
    from rayds.format import ReadContext

    return ReadContext(*args, **kwargs, block_rows=5)


@pytest.fixture
def only_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the reader of whole files is taken instead."""

    def read(self: Any, shard: Any, ctx: Any) -> Any:
        raise AssertionError("read by one task")

    monkeypatch.setattr(coco.Coco, "read", read)


def outcome(path: Path, format: str, on_error: str = "raise", engine: Any = "local", **options: Any) -> Any:
    """The items and errors that reading gives, or the message it ends with."""
    try:
        dataset = rayds.Dataset.import_from(str(path), format, engine=engine, on_error=on_error, **options)
        runner, made = dataset._run()
        blocks = list(runner.iterate(made))
        errors = [e for b in blocks if "error" in b.schema.names for e in b.column("error").to_pylist() if e]
        return dataset.to_arrow(), sorted(errors), dataset.infos
    except DataError as e:
        return str(e)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    return bool(a[0].equals(b[0]) and a[1:] == b[1:])


@real_data
@pytest.mark.parametrize(("path", "format", "size"), REAL)
def test_real_files(path: str, format: str, size: str, only_ranges: None) -> None:
    by_ranges = rayds.Dataset.import_from(
        str(DATA / path), format, engine="local", range_size=size
    ).to_arrow()
    with pytest.MonkeyPatch.context() as patch:
        patch.undo()
        patch.setattr(coco.Coco, "read", lambda self, shard, ctx: _whole(shard, ctx))
        whole = rayds.Dataset.import_from(str(DATA / path), format, engine="local").to_arrow()
    assert whole.num_rows > 1
    assert whole.equals(by_ranges)


def _whole(shard: Any, ctx: Any) -> Any:
    from rayds.formats.coco.read import SubsetReader

    return SubsetReader(shard, ctx).read()


@real_data
@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("coco_mini/annotations/instances_val2017.json", "coco_instances"),
        ("roboflow_coco_bloodcells", "roboflow_coco"),
    ],
)
def test_real_files_on_ray(name: str, format: str, ray_engine: Any) -> None:
    path = str(DATA / name)
    whole = rayds.Dataset.import_from(path, format, engine="local").to_arrow()
    made = rayds.Dataset.import_from(path, format, engine=ray_engine, range_size="100KB").to_arrow()
    assert whole.equals(made)


# adversarial files

MEAN = '{}[]",:\\ \n\té\0ü"images":[{'
texts = st.text(st.one_of(st.sampled_from(MEAN), st.characters(exclude_categories=["Cs"])), max_size=10)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(0, 9), texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(texts, st.sampled_from(["id", "image_id"])), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def images(draw: Any) -> dict[str, Any]:
    return {
        "id": draw(st.integers(-1, 12)),
        "file_name": draw(st.sampled_from(["a", "b/c", "d", "é", "f g"]))
        + draw(st.sampled_from([".jpg", ".png", "1.jpg"])),
        **draw(
            st.dictionaries(
                texts.filter(lambda t: t not in ("id", "file_name", "width", "height", "attributes")),
                values,
                max_size=2,
            )
        ),
    }


@st.composite
def annotations(draw: Any) -> dict[str, Any]:
    known = {
        "id": draw(st.integers(0, 12)),
        "image_id": draw(st.integers(-1, 12)),
        "category_id": draw(st.sampled_from([1, 1, 1, 2, 9])),
        "bbox": draw(st.sampled_from([[1, 2, 3, 4], [1, 2, 3, 4.5], [1, 2]])),
    }
    if draw(st.integers(0, 5)) == 0:
        del known["id"]
    if draw(st.integers(0, 3)) == 0:
        known["attributes"] = draw(st.dictionaries(texts, values, max_size=2))
    others = draw(
        st.dictionaries(texts.filter(lambda t: t not in known and t != "attributes"), values, max_size=2)
    )
    pairs = list({**known, **others}.items())
    return dict(draw(st.permutations(pairs)))


@st.composite
def documents(draw: Any) -> bytes:
    """A COCO file in mean JSON: any order, white space, escapes; sometimes broken."""
    made_images = draw(st.lists(images(), max_size=8))
    made = draw(st.lists(annotations(), max_size=12))
    if draw(st.booleans()):  # a file in order, which needs no exchange
        made_images = [{**i, "id": k, "file_name": f"{k}.jpg"} for k, i in enumerate(made_images)]
        made = sorted(made, key=lambda a: a["image_id"])
        made = [{**a, "id": k + 1} for k, a in enumerate(made)]
    parts: dict[str, Any] = {
        "images": made_images,
        "annotations": made,
        "categories": [{"id": 1, "name": "}],["}, {"id": 2, "name": "b"}],
        **draw(st.dictionaries(texts.filter(lambda t: t not in layout.SECTIONS), values, max_size=2)),
    }
    pairs = draw(st.permutations(list(parts.items())))
    space = draw(st.sampled_from(["", " ", "\n  ", "\r\n\t"]))
    ascii_ = draw(st.booleans())
    text = json.dumps(
        dict(pairs),
        ensure_ascii=ascii_,
        separators=("," + space, space + ":" + space),
        indent=draw(st.sampled_from([None, 1])),
    )
    if draw(st.integers(0, 4)) == 0:
        text = text.replace('"image_id"', '"image\\u005fid"', 1)
    data = (b"\xef\xbb\xbf" if draw(st.booleans()) else b"") + (space + text + space).encode()
    match draw(st.integers(0, 12)):
        case 0:
            return data[: draw(st.integers(0, len(data)))]
        case 1:
            return data + draw(st.sampled_from([b"}", b"]", b"{}", b"x"]))
        case 2:
            return data.replace(b"},", b"} ", 1)
    return data


@FEW
@given(data=documents(), size=st.integers(16, 200), on_error=st.sampled_from(["raise", "skip"]))
def test_mean_files(data: bytes, size: int, on_error: str, tmp_path: Path) -> None:
    path = tmp_path / "instances_train.json"
    path.write_bytes(data)
    whole = outcome(path, "coco_instances", "skip")
    if on_error == "skip" or isinstance(whole, str) or not whole[1]:
        assert same(
            outcome(path, "coco_instances", on_error),
            outcome(path, "coco_instances", on_error, range_size=str(size)),
        )
        return
    # Of several errors, whichever is met first is raised.
    told = outcome(path, "coco_instances", "raise", range_size=str(size))
    assert isinstance(told, str)
    assert any(json.loads(e)["reason"] in told for e in whole[1])


def coco_file(folder: Path, images: list[Any], annotations: list[Any], **top: Any) -> Path:
    path = folder / "instances_train.json"
    content = {"images": images, **top, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    path.write_text(json.dumps(content))
    return path


def many(n: int = 40) -> tuple[list[Any], list[Any]]:
    found = [{"id": i, "file_name": f"{i}.jpg", "width": 50, "height": 50} for i in range(n)]
    made = [
        {"id": k, "image_id": k // 3, "category_id": 1, "bbox": [k % 40, 1, 2, 3], "area": 6, "iscrowd": 0}
        for k in range(3 * n)
    ]
    return found, made


def shuffled(items: list[Any]) -> list[Any]:
    return random.Random(1).sample(items, len(items))


CHANGES = {
    "in order": lambda i, a: (i, a),
    "annotations in no order": lambda i, a: (i, shuffled(a)),
    "images in no order": lambda i, a: (shuffled(i), a),
    "an image id twice": lambda i, a: ([*i, {**i[3], "file_name": "other.jpg"}], a),
    "a name twice": lambda i, a: ([*i, {**i[3], "id": 1000}], [*a, {**a[0], "id": 999, "image_id": 1000}]),
    "an annotation id twice": lambda i, a: (i, [*a, {**a[5], "image_id": 2}]),
    "an annotation id twice, one of them bad": lambda i, a: (i, [{**a[9], "bbox": [1]}, *a]),
    "ids missing": lambda i, a: (i, [{k: v for k, v in x.items() if k != "id" or x["id"] % 7} for x in a]),
    "ids of another type": lambda i, a: (i, [{**x, "id": float(x["id"])} for x in a]),
    "an unknown image": lambda i, a: (i, [*a, {**a[0], "id": 999, "image_id": 777}]),
    "an image id in an object only": lambda i, a: (
        i, [*a, {"id": 999, "category_id": 1, "bbox": [1, 1, 1, 1], "attributes": {"image_id": 3}}]
    ),
    "a bad box": lambda i, a: (i, [*a[:50], {**a[50], "bbox": [1, 2]}, *a[51:]]),
    "a box outside its image": lambda i, a: (i, [*a[:50], {**a[50], "bbox": [99, 2, 3, 4]}, *a[51:]]),
    "no annotations": lambda i, a: (i, []),
    "no images": lambda i, a: ([], a[:2]),
    "a record bigger than many ranges": lambda i, a: (i, [*a, {**a[0], "id": 999, "note": '{"\\' * 900}]),
}  # fmt: skip


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_checked_over_all_of_a_file(change: str, on_error: str, tmp_path: Path) -> None:
    path = coco_file(tmp_path, *CHANGES[change](*many()))
    whole = outcome(path, "coco_instances", on_error)
    assert same(outcome(path, "coco_instances", on_error, range_size="900"), whole)


@pytest.mark.ray
def test_exchange_and_errors_on_ray(tmp_path: Path, ray_engine: Any) -> None:
    images, annotations = many()
    path = coco_file(
        tmp_path, images, shuffled([*annotations, {**annotations[5], "image_id": 2}, {"id": 5000}])
    )
    reports = [
        rayds.Dataset.import_from(
            str(path), "coco_instances", engine=e, on_error="skip", range_size=s
        ).export(str(tmp_path / name), "coco")
        for e, s, name in (("local", "none", "a"), (ray_engine, "6kB", "b"))
    ]
    assert len(reports[0].errors) == 2
    key = json.dumps
    assert sorted(reports[0].errors, key=key) == sorted(reports[1].errors, key=key)
    whole, by_ranges = ((tmp_path / n / "annotations/instances_train.json").read_bytes() for n in "ab")
    assert whole == by_ranges


def test_several_files_of_a_subset_where_one_has_more_images(tmp_path: Path) -> None:
    images, annotations = many(20)
    folder = tmp_path / "annotations"
    folder.mkdir()
    coco_file(folder, images[:15], shuffled(annotations[:45]))
    captions = [{"id": k, "image_id": k, "caption": f"text {k} }}],"} for k in range(20)]
    content = {"images": images[::-1], "annotations": captions}
    (folder / "captions_train.json").write_text(json.dumps(content))
    whole = outcome(tmp_path, "coco", "raise")
    assert whole[0].num_rows == 20
    assert same(outcome(tmp_path, "coco", "raise", range_size="300"), whole)


def test_annotations_in_order_need_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(*_: Any) -> None:
        raise AssertionError("rows were exchanged")

    monkeypatch.setattr(ranged, "_exchange", exchange)
    path = coco_file(tmp_path, *many())
    assert rayds.Dataset.import_from(str(path), "coco_instances", range_size="500").to_arrow().num_rows == 40
    path = coco_file(tmp_path, many()[0], shuffled(many()[1]))
    with pytest.raises(AssertionError):
        rayds.Dataset.import_from(str(path), "coco_instances", range_size="500").to_arrow()


def test_a_storage_elsewhere(tmp_path: Path, only_ranges: None) -> None:
    import fsspec

    path = coco_file(tmp_path, *many())
    url = f"memory://{tmp_path.name}/instances_train.json"
    with fsspec.open(url, "wb") as f:
        f.write(path.read_bytes())
    made = rayds.Dataset.import_from(url, "coco_instances", range_size="700").to_arrow()
    here = rayds.Dataset.import_from(str(path), "coco_instances", range_size="700").to_arrow()
    assert made.column("annotations").equals(here.column("annotations"))


def test_the_reader_of_whole_files_takes_over_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "instances_train.json"
    images, annotations = many(5)
    half = json.dumps(
        {"images": images[:2], "annotations": annotations[:6], "categories": [{"id": 1, "name": "a"}]}
    )
    path.write_text(half[:-1] + ',"images":' + json.dumps(images[2:]) + "}")
    with pytest.warns(UserWarning, match="section occurs twice"):
        made = rayds.Dataset.import_from(
            str(path), "coco_instances", engine=LocalEngine(2), range_size="99"
        ).to_arrow()
    assert made.num_rows == 5


def test_a_member_of_an_archive_is_read_by_one_task(tmp_path: Path) -> None:
    (tmp_path / "in/annotations").mkdir(parents=True)
    coco_file(tmp_path / "in/annotations", *many())
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "in")
    with pytest.warns(UserWarning, match="a member of an archive"):
        made = rayds.Dataset.import_from(archive, "coco", engine="local", range_size="900").to_arrow()
    assert made.num_rows == 40


def test_ranges_for_big_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = coco_file(tmp_path, *many())
    seen: list[int] = []
    real = ranged.read_by_ranges
    monkeypatch.setattr(ranged, "read_by_ranges", lambda *a: (seen.append(a[3]), real(*a))[1])
    assert rayds.Dataset.import_from(str(path), "coco_instances").to_arrow().num_rows == 40
    assert not seen
    monkeypatch.setattr(layout, "RANGES_FROM", 1000)
    monkeypatch.setattr(layout, "MANY_RANGES_FROM", 1000)
    assert rayds.Dataset.import_from(str(path), "coco_instances").to_arrow().num_rows == 40
    assert not seen  # one process reads with one task what fits its memory
    monkeypatch.setattr(layout, "memory_bytes", lambda: 1000)
    assert rayds.Dataset.import_from(str(path), "coco_instances").to_arrow().num_rows == 40
    assert seen == [layout.RANGE]
    assert rayds.Dataset.import_from(str(path), "coco_instances", range_size="none").to_arrow().num_rows == 40
    assert len(seen) == 1


def test_a_size_that_is_none(tmp_path: Path) -> None:
    path = coco_file(tmp_path, *many())
    for text in ("big", "-4", "3"):
        with pytest.raises(UsageError, match="range size"):
            rayds.Dataset.import_from(str(path), "coco_instances", range_size=text)


@pytest.mark.parametrize("where", ["between", "end", "nested"])
def test_keys_anywhere_in_a_big_file_are_found(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head and the tail of a big file are parsed; a key between the sections is in neither."""
    monkeypatch.setattr(top, "HEAD", 600)
    monkeypatch.setattr(top, "TAIL", 800)
    images, annotations = many()
    if where == "nested":
        annotations[40]["parts"] = [{"x": 1}]
        annotations[40]["more"] = 2
    content: dict[str, Any] = {"categories": [{"id": 1, "name": "a"}], "info": {"a": 1}, "images": images}
    if where == "between":
        content["foo"] = {"x": [1, {"y": "}],"}]}
    content |= {"annotations": annotations, "bar": 5}
    path = tmp_path / "instances_train.json"
    path.write_text(json.dumps(content))
    infos = rayds.Dataset.import_from(str(path), "coco_instances").infos["coco"]["train"]["instances"]["top"]
    expected = {k: v for k, v in content.items() if k not in ("images", "annotations", "categories")}
    assert infos == expected


def big_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, middle: str) -> Path:
    """A file whose head and tail are parsed, with something between images and annotations."""
    monkeypatch.setattr(top, "HEAD", 600)
    monkeypatch.setattr(top, "TAIL", 800)
    images, annotations = many()
    categories = json.dumps([{"id": 1, "name": "a", "score": float("nan")}])
    path = tmp_path / "instances_train.json"
    path.write_text(
        f'{{"categories": {categories}, "images": {json.dumps(images)}, {middle}, "annotations": {json.dumps(annotations)}}}'
    )
    return path


@pytest.mark.parametrize("format", ["yolo", "voc", "datumaro"])
def test_what_only_coco_can_hold_is_not_looked_for(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, monkeypatch, '"foo": 1')
    monkeypatch.setattr(top, "_hides_keys", lambda *a: pytest.fail("looked for"))
    assert (
        rayds.Dataset.import_from(str(path), "coco_instances").export(str(tmp_path / "out"), format).items
        == 40
    )


@pytest.mark.parametrize("format", ["coco", "rayds"])
def test_what_stands_between_comes_into_outputs_that_hold_it(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, monkeypatch, '"foo": 1')
    dataset = rayds.Dataset.import_from(str(path), "coco_instances").select(lambda item: True)
    dataset.export(str(tmp_path / "out"), format)
    back = rayds.Dataset.import_from(str(tmp_path / "out"), format)
    assert back.infos["coco"]["train"]["instances"]["top"] == {"foo": 1}


@pytest.mark.parametrize("range_size", ["none", "4KB"])
def test_categories_that_stand_twice(
    range_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, monkeypatch, '"categories": [{"id": 1, "name": "b"}]')
    dataset = rayds.Dataset.import_from(str(path), "coco_instances", range_size=range_size)
    with pytest.raises(DataError, match=r"instances_train\.json: 'categories' stands twice.*Make them one"):
        dataset.to_arrow()


def test_an_ordinary_big_file_is_not_scanned_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "HEAD", 600)
    monkeypatch.setattr(top, "TAIL", 800)
    monkeypatch.setattr(top, "find_marks", lambda *a: pytest.fail("scanned"))
    images, annotations = many()
    content = {
        "info": {},
        "categories": [{"id": 1, "name": "a"}],
        "images": images,
        "annotations": annotations,
    }
    for space in (None, 2):
        path = tmp_path / "instances_train.json"
        path.write_text(json.dumps(content, indent=space))
        assert len(rayds.Dataset.import_from(str(path), "coco_instances").categories().labels) == 1
