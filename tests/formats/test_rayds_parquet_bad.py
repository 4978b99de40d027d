"""The format rayds: detection, options, and damaged datasets, which name file and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_data import boxes, files, read, written

from rayds.annotations import (
    Bbox,
    Caption,
)
from rayds.dataset import Dataset
from rayds.errors import DataError, FormatError, OutputExistsError, UsageError
from rayds.formats.rayds_parquet import RaydsParquet
from rayds.item import DatasetItem, to_table
from rayds.listing import Listing
from rayds.media import Image, encode
from rayds.registry import get_format
from rayds.schema import ITEM_SCHEMA

# media


@pytest.fixture
def pictures(tmp_path: Path) -> list[DatasetItem]:
    folder = tmp_path / "source"
    folder.mkdir()
    made = []
    for i, (ext, subset) in enumerate([(".png", "train"), (".jpg", "val"), (".JPEG", "train")]):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        path = folder / f"p{i}{ext}"
        path.write_bytes(encode(pixels, ext))
        made.append(DatasetItem(f"sub/p{i}", subset=subset, image=Image(str(path), size=(20 + i, 30))))
    return made


# detection and bad input


def test_detection(tmp_path: Path) -> None:
    path = written(boxes(3), tmp_path / "out")
    fmt = RaydsParquet()
    assert fmt.detect(Listing(path)).score == 95
    assert fmt.detect(Listing(path / "rayds.json")).score == 95
    assert fmt.detect(Listing(path / "data")).score == 0
    assert read(path / "rayds.json").num_rows == 3
    (path / "rayds.json").write_text("{")
    assert 0 < fmt.detect(Listing(path)).score < 95
    (path / "rayds.json").unlink()
    assert 0 < fmt.detect(Listing(path)).score < 95
    assert type(get_format("rayds")) is RaydsParquet


def test_without_the_index_it_is_not_complete(tmp_path: Path) -> None:
    path = written(boxes(3), tmp_path / "out")
    (path / "rayds.json").unlink()
    with pytest.raises(DataError, match=r"out: rayds\.json is missing: the dataset is not complete.*Run"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i | {"version": 99}, r"rayds\.json: it has version 99.*newer release"),
        (lambda i: i | {"version": "1"}, "format"),
        (lambda i: i | {"format": "other"}, "format"),
        (lambda i: {k: v for k, v in i.items() if k != "shards"}, "lacks 'shards'"),
        (lambda i: i | {"shards": 3}, "damaged"),
        (lambda i: i | {"shards": [{}]}, "damaged"),
        (lambda i: i | {"shards": [i["shards"][0] | {"file": "../x.parquet"}]}, "leaves the dataset"),
        (lambda i: i | {"shards": [i["shards"][0] | {"file": "/etc/passwd"}]}, "not relative"),
        (lambda i: i | {"categories": {"label": {"labels": [{}]}}}, "damaged"),
        (
            lambda i: i | {"categories": {"label": {"labels": [{"name": "a"}]}}},
            r"part-00000.*a label is not one of",
        ),
        (lambda i: i | {"shards": [i["shards"][0] | {"items": 4}]}, "3 items, but rayds.json says 4"),
        (lambda i: [], "format"),
    ],
)
def test_a_bad_index(tmp_path: Path, change: Any, message: str) -> None:
    path = written(boxes(3), tmp_path / "out")
    index = json.loads((path / "rayds.json").read_text())
    (path / "rayds.json").write_text(json.dumps(change(index)))
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_missing_file_of_the_list(tmp_path: Path) -> None:
    path = written(boxes(9), tmp_path / "out", shard_size=3)
    (path / "data/part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00001\.parquet: 1 of the files in rayds\.json"):
        read(path)


@pytest.mark.parametrize("size", [0, 3, 8, 500, -1])
def test_a_truncated_file(tmp_path: Path, size: int) -> None:
    path = written(boxes(9), tmp_path / "out", shard_size=5)
    file = path / "data/part-00001.parquet"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        DataError, match=r"part-00001\.parquet: not a whole Parquet file.*Copy the file again"
    ):
        read(path)
    assert read(path, on_error="skip").num_rows == 5


def test_damage_in_the_middle_of_a_file(tmp_path: Path) -> None:
    path = written(boxes(3000), tmp_path / "out")
    file = path / "data/part-00000.parquet"
    good = file.read_bytes()
    caught = 0
    for at in range(50, len(good), len(good) // 40):
        file.write_bytes(good[:at] + bytes(b ^ 0x5A for b in good[at : at + 16]) + good[at + 16 :])
        try:
            read(path)
        except DataError as e:  # any other error fails the test
            caught += "part-00000.parquet" in str(e)
    assert caught > 10


def test_a_file_that_is_no_item_table(tmp_path: Path) -> None:
    path = written(boxes(3), tmp_path / "out")
    for columns in (
        {"x": [1, 2, 3]},
        {"id": ["a", None, "b"], "subset": ["a"] * 3},
        {"id": ["a"] * 3, "media": [1] * 3},
    ):
        pq.write_table(pa.table(columns), path / "data/part-00000.parquet")
        with pytest.raises(DataError, match="part-00000"):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [1.0, 2.0, 3.0]}, "too many or too few numbers"),
        ({"points": None}, "too many or too few numbers"),
        ({"type": 4, "points": [1.0] * 7}, "too many or too few numbers"),
        ({"type": 2, "points": None}, "too many or too few numbers"),
        ({"type": 99}, "type that is not known"),
        ({"type": None}, "type that is not known"),
        ({"label": 3}, "a label is not one of the 3"),
    ],
)
def test_annotations_that_are_none(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(boxes(9), tmp_path / "out")
    rows = pq.read_table(path / "data/part-00000.parquet").to_pylist()
    rows[5]["annotations"][1].update(change)
    pq.write_table(pa.Table.from_pylist(rows, ITEM_SCHEMA), path / "data/part-00000.parquet")
    with pytest.raises(DataError, match=f"part-00000.parquet, item '00005': .*{message}"):
        read(path)


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/passwd", "a/../../../x", "..\\..\\x"])
def test_an_image_path_can_not_leave_the_dataset(
    tmp_path: Path, pictures: list[DatasetItem], path: str
) -> None:
    out = written(to_table(pictures[:1]), tmp_path / "out", save_media=True)
    table = pq.read_table(out / "data/part-00000.parquet")
    row = table.to_pylist()
    row[0]["media"]["path"] = path
    pq.write_table(pa.Table.from_pylist(row, ITEM_SCHEMA), out / "data/part-00000.parquet")
    with pytest.raises(DataError, match=r"part-00000.*'sub/p0'"):
        read(out)


def test_bad_options(tmp_path: Path) -> None:
    for options in ({"shard_size": 0}, {"compression": "brotli"}, {"shard_size": "many"}):
        with pytest.raises(UsageError):
            written(boxes(1), tmp_path / "out", **options)
    with pytest.raises(UsageError):
        read(written(boxes(1), tmp_path / "out"), columns="ids")
    with pytest.raises(FormatError, match="give the dataset's folder"):
        read(tmp_path / "out/data/part-00000.parquet")


def test_no_loss_is_reported(tmp_path: Path) -> None:
    item = DatasetItem(
        "a",
        [
            Bbox(1, 2, 3, 4, id=5, group=6, z_order=7, attributes={"a": 1}, extra={"coco": {"area": 1}}),
            Caption("x"),
        ],
        subset="s",
        point_cloud="a.pcd",
        attributes={"b": 2},
        extra={"coco": {"license": 1}},
    )
    report = Dataset.from_iterable([item], engine="local").export(str(tmp_path / "out"), "rayds", strict=True)
    assert (report.losses, report.notes) == ({}, {})


def test_an_existing_output_stays(tmp_path: Path) -> None:
    path = written(boxes(3), tmp_path / "out")
    before = files(path)
    with pytest.raises(OutputExistsError):
        written(boxes(1), path)
    assert files(path) == before
    written(boxes(1), path, overwrite=True)
    assert read(path).num_rows == 1
