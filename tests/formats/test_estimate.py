"""The number of items that progress tells of: near the truth, from a few small reads, and none where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

import rayds as dm
from rayds.formats import _estimate
from rayds.formats._estimate import about_records
from rayds.storage import Storage

KEY = b'"file_name"'


def coco(images: int, objects: int, lead: str = "", reverse: bool = False) -> bytes:
    """A COCO file whose images are one region of it; reverse: behind the annotations."""
    listed = [{"id": i, "file_name": f"{i:07d}.jpg", "width": 640, "height": 480} for i in range(images)]
    boxes = [
        {"id": k, "image_id": k % images, "category_id": 1, "bbox": [1, 2, 3, 4], "note": "x" * (k % 90)}
        for k in range(objects)
    ]
    parts = {"info": {"lead": lead}, "images": listed, "annotations": boxes}
    if reverse:
        parts = {"info": {"lead": lead}, "annotations": boxes, "images": listed}
    return json.dumps({**parts, "categories": [{"id": 1, "name": "cat"}]}).encode()


@pytest.mark.parametrize(
    ("images", "objects", "lead", "reverse"),
    [
        (100_000, 0, 0, False),
        (20_000, 80_000, 0, False),
        (20_000, 80_000, 0, True),
        (30_000, 30_000, 3 << 20, False),
    ],
    ids=["images only", "in front", "behind", "in the middle"],
)
def test_big_files_are_estimated(
    storage: Storage, images: int, objects: int, lead: int, reverse: bool
) -> None:
    data = coco(images, objects, "x" * lead, reverse)
    assert len(data) > _estimate.WHOLE
    storage.write_bytes("a.json", data)
    assert about_records(storage, "a.json", KEY) == pytest.approx(images, rel=0.05)


def test_little_of_a_big_file_is_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes("a.json", coco(20_000, 80_000))
    read = 0
    real = Storage.read_range

    def counted(self: Storage, name: str, start: int, end: int) -> bytes:
        nonlocal read
        read += end - start
        return real(self, name, start, end)

    monkeypatch.setattr(Storage, "read_range", counted)
    monkeypatch.setattr(Storage, "read_bytes", None)
    assert about_records(storage, "a.json", KEY)
    assert read < 2.5 * _estimate.WINDOWS * _estimate.WINDOW


def test_small_files_are_counted(storage: Storage) -> None:
    storage.write_bytes("a.json", coco(123, 400))
    assert about_records(storage, "a.json", KEY) == 123


def test_nothing_is_known_of_a_file_without_the_key_or_that_is_gone(storage: Storage) -> None:
    storage.write_bytes("a.json", b" " * (_estimate.WHOLE + 1))
    assert about_records(storage, "a.json", KEY) is None
    assert about_records(storage, "none.json", KEY) is None


class TestExpected:
    """Dataset.expected()."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> dm.Dataset:
        items = [
            dm.DatasetItem(
                f"{i:03d}",
                subset="train" if i % 3 else "val",
                image=dm.Image(path=f"{i:03d}.jpg", size=(10, 20)),
                annotations=[dm.Bbox(1, 2, 3, 4, label=0, group=1), dm.Caption('a "file_name": 3, a cat')],
            )
            for i in range(30)
        ]
        return dm.Dataset.from_iterable(items, ["cat"])

    @pytest.mark.parametrize(
        ("format", "exact"),
        [
            ("coco", False),
            ("datumaro", False),
            ("voc", True),
            ("yolo", True),
            ("yolo_ultralytics", True),
            ("rayds", True),
        ],
    )
    def test_items_of_a_written_dataset(
        self, source: dm.Dataset, tmp_path: Path, format: str, exact: bool
    ) -> None:
        source.export(str(tmp_path / "out"), format)
        assert dm.Dataset.import_from(str(tmp_path / "out"), format).expected() == (30, exact)

    def test_panoptic_has_the_name_twice(self, tmp_path: Path) -> None:
        import numpy as np

        mask = dm.Mask(np.ones((10, 20), bool), label=0, id=1)
        item = dm.DatasetItem("a", image=dm.Image(path="a.jpg", size=(10, 20)), annotations=[mask])
        dm.Dataset.from_iterable([item], ["cat"]).export(str(tmp_path / "out"), "coco_panoptic")
        assert dm.Dataset.import_from(str(tmp_path / "out"), "coco_panoptic").expected() == (1, False)

    def test_detections_do_not_tell_how_many_images_there_are(
        self, source: dm.Dataset, tmp_path: Path
    ) -> None:
        source.export(str(tmp_path / "out"), "coco_results")
        assert dm.Dataset.import_from(str(tmp_path / "out"), "coco_results").expected() is None

    def test_a_dataset_in_memory_has_no_source_to_ask(self, source: dm.Dataset) -> None:
        assert source.expected() is None


def teardown_module() -> None:
    fsspec.filesystem("memory").store.clear()
