"""COCO: what is read is written back; files that other tools read; real datasets."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayds.annotations import Annotation, Bbox, Caption, Label, Mask, Points, Polygon, decode_rle
from rayds.categories import Categories, LabelCategories, PointsCategories
from rayds.dataset import Dataset
from rayds.engine.local import LocalEngine
from rayds.item import DatasetItem, to_table
from rayds.losses import summarize
from rayds.media import Image
from rayds.registry import detect_format
from rayds.schema import AnnotationType

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "coco_mini").is_dir(), reason="no real data here")
SIZE = 16

Json = dict[str, Any]


def read(path: Path | str, format: str = "coco", **options: Any) -> list[DatasetItem]:
    return list(Dataset.import_from(str(path), format, engine="local", **options))


def parsed(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def pycoco(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


# Items that COCO can hold: ids from 1, each object in a group of its own id.

coordinate = st.floats(0, SIZE, allow_nan=False).map(lambda v: round(v, 3)) | st.integers(0, SIZE).map(float)
name = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:.\0"), min_size=1, max_size=8
)
value = st.none() | st.booleans() | st.integers(-5, 2**40) | coordinate | st.text(max_size=5)
attributes = st.dictionaries(st.sampled_from(["colour", "ü \"q'", "a.b", "x"]), value, max_size=2)
score = st.fixed_dictionaries({}, optional={"score": st.floats(0, 1)})


@st.composite
def objects(draw: st.DrawFn, id: int) -> list[Annotation]:
    """The rows of one COCO annotation."""
    base: Json = {"id": id, "attributes": {**draw(attributes), **draw(score)}}
    label = draw(st.integers(0, 2))
    kind = draw(st.sampled_from(["caption", "label", "box", "polygons", "mask", "points"]))
    if kind == "caption":
        return [Caption(draw(st.text(max_size=20)), **base)]
    if kind == "label":
        return [Label(label, **base)]
    base |= {"label": label, "group": id}
    base["attributes"]["is_crowd"] = draw(st.booleans())
    rows: list[Annotation] = [Bbox(*(draw(coordinate) for _ in range(4)), **base)]
    if kind == "polygons":
        n = st.integers(3, 5)
        for _ in range(draw(st.integers(1, 3))):
            rows.append(Polygon([draw(coordinate) for _ in range(2 * draw(n))], **base))
    elif kind == "mask":
        rows.append(
            Mask(np.array(draw(st.lists(st.booleans(), min_size=20, max_size=20))).reshape(4, 5), **base)
        )
    elif kind == "points":
        n_points = draw(st.integers(1, 3))
        points = [draw(coordinate) for _ in range(2 * n_points)]
        rows.append(Points(points, [draw(st.integers(0, 2)) for _ in range(n_points)], **base))
    return rows


@st.composite
def datasets(draw: st.DrawFn) -> list[DatasetItem]:
    items, next_id = [], 1
    for i, id in enumerate(draw(st.lists(name, unique=True, min_size=1, max_size=4))):
        rows: list[Annotation] = []
        for _ in range(draw(st.integers(0, 3))):
            rows += draw(objects(next_id))
            next_id += draw(st.integers(1, 3))
        rows.sort(key=lambda r: {"label": 1, "caption": 2}.get(r.type.name, 0))  # as the tasks are read
        image = Image(path=f"images/{id}{draw(st.sampled_from(['.jpg', '.png']))}", size=(SIZE, SIZE))
        items.append(
            DatasetItem(
                id,
                subset=draw(st.sampled_from(["train", "val"])),
                media=image,
                annotations=rows,
                attributes={"id": 100 + i, **draw(attributes)},
            )
        )
    return sorted(items, key=lambda item: item.subset)


def made(items: list[DatasetItem]) -> Dataset:
    labels = LabelCategories.from_iterable(["cat", ("dog", "animal"), 'a "q" ü'])
    points = PointsCategories.from_iterable([(i, ["nose", "eye", "ear"], [(1, 2)]) for i in range(3)])
    categories = Categories({AnnotationType.label: labels, AnnotationType.points: points})
    return Dataset.from_iterable(items, categories, engine="local")


def plain(item: DatasetItem) -> Any:
    """An item without what a file adds (area, the place of the image) and with points after shapes."""
    rows = [a.wrap(extra={}) for a in item.annotations]
    return item.id, item.subset, item.attributes, rows, item.image.size if item.image else None


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(items=datasets())
def test_round_trip(items: list[DatasetItem], tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("coco") / "out"
    source = made(items)
    report = source.export(str(out), "coco")
    assert report.losses == {}
    back = Dataset.import_from(str(out), "coco", engine="local")
    assert [plain(i) for i in back] == [plain(i) for i in items]
    assert [(c.name, c.parent) for c in back.categories().labels] == [
        (c.name, c.parent) for c in source.categories().labels
    ]
    again = out.parent / "again"
    back.export(str(again), "coco")
    assert files_of(again) == files_of(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
