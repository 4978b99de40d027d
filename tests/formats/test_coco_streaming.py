"""Blocks of a COCO file go out before it is read to its end, where that is safe; else the export starts again."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayds
from rayds.format import PlanContext, ReadContext, Restart
from rayds.formats.coco import Coco
from rayds.formats.coco import read as coco_read
from rayds.listing import Listing

IMAGES = 200


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_read, "RecordScanner", functools.partial(coco_read.RecordScanner, window=1500))


def dataset(tmp_path: Path, images_of: list[int], **changes: Any) -> Path:
    """A COCO file of IMAGES images whose n-th annotation belongs to image images_of[n]."""
    annotations = [
        {"id": n + 1, "image_id": image, "category_id": 1, "bbox": [n, 1, 2, 3], "area": 6, "iscrowd": 0}
        for n, image in enumerate(images_of)
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 5000, "height": 10} for i in range(IMAGES)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
        **changes,
    }
    path = tmp_path / "in/annotations/instances_train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return tmp_path / "in"


def blocks(root: Path, *, restartable: bool) -> Iterator[pa.Table]:
    fmt, files = Coco(), Listing(root)
    options = fmt.ReadOptions()
    plan = fmt.plan(files, PlanContext(options))
    ctx = ReadContext(fmt.root(files), options, plan.categories, block_rows=16, restartable=restartable)
    return fmt.read(plan.shards[0], ctx)


IN_ORDER = [i // 3 for i in range(3 * IMAGES)]


def test_blocks_that_go_out_early_are_the_same(tmp_path: Path) -> None:
    root = dataset(tmp_path, IN_ORDER)
    expected = pa.concat_tables(blocks(root, restartable=False))
    stream = blocks(root, restartable=True)
    first = next(stream)
    assert first.equals(expected.slice(0, 16))
    assert pa.concat_tables([first, *stream]).equals(expected)


def test_a_file_that_is_cut_off_still_gives_its_first_blocks(tmp_path: Path) -> None:
    """Only streaming can: the proof that blocks do not wait for the end."""
    root = dataset(tmp_path, IN_ORDER)
    stream = blocks(root, restartable=True)
    held = blocks(root, restartable=False)
    file = root / "annotations/instances_train.json"
    file.write_bytes(file.read_bytes()[:-3000])
    assert next(stream).num_rows == 16
    with pytest.raises(rayds.DataError, match="cut off"):
        list(stream)
    with pytest.raises(rayds.DataError, match="cut off"):
        next(held)


@pytest.mark.parametrize("late", [0, 100])
def test_a_late_annotation_starts_the_export_again(tmp_path: Path, late: int) -> None:
    root = dataset(tmp_path, [*IN_ORDER, late])
    with pytest.raises(Restart):
        list(blocks(root, restartable=True))
    plain = pa.concat_tables(blocks(root, restartable=False))
    report = rayds.Dataset.import_from(str(root), "coco").export(
        str(tmp_path / "out"), "coco", engine="local"
    )
    assert report.annotations == {"bbox": 3 * IMAGES + 1}
    back = rayds.Dataset.import_from(str(tmp_path / "out"), "coco").to_arrow()
    assert back.column("annotations").combine_chunks().equals(plain.column("annotations").combine_chunks())
    assert not list(tmp_path.glob("out.*")), "the first try left its staging folder"


def test_annotations_in_no_order_are_never_sent_early(tmp_path: Path) -> None:
    root = dataset(tmp_path, [IMAGES - 1 - i for i in IN_ORDER])
    shuffled = pa.concat_tables(blocks(root, restartable=True))
    assert shuffled.equals(pa.concat_tables(blocks(root, restartable=False)))


def test_annotations_before_the_images(tmp_path: Path) -> None:
    root = dataset(tmp_path, IN_ORDER)
    file = root / "annotations/instances_train.json"
    expected = pa.concat_tables(blocks(root, restartable=False))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: content[k] for k in ("annotations", "categories", "images")}))
    assert pa.concat_tables(blocks(root, restartable=True)).equals(expected)
