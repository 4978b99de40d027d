"""Workers that die, and data that kills them: the work goes on, or ends in an error that names the data."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

import rayds
from rayds.engine.base import Engine, Position
from rayds.errors import DataError, EngineError
from rayds.format import ReadContext, Shard, WriteContext
from rayds.formats.image_dir import ImageDir
from rayds.formats.rayds_parquet import RaydsParquet
from rayds.formats.yolo.ultralytics import YoloUltralytics
from rayds.schema import annotation_rows, item_table, media_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import this module: send its functions whole."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def ray(ray_engine: Engine) -> Engine:
    from rayds.engine.ray import RayEngine

    return RayEngine(retries=2)


def items(start: int, n: int) -> pa.Table:
    rows = annotation_rows(n, type=6, group=1, label=0, points=[[1.0, 2.0, 3.0, 4.0]] * n)
    media = media_rows(n, path=[f"/nowhere/{i}.jpg" for i in range(start, start + n)], height=10, width=10)
    return item_table(n, rows, [1] * n, id=[f"{i:03}" for i in range(start, start + n)], media=media)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 items in four shards."""
    path = tmp_path_factory.mktemp("faults") / "items"
    rayds.Dataset.from_arrow(items(0, 40), ["a"]).export(str(path), "rayds", shard_size=10, engine="local")
    return path


def crash() -> None:
    ctypes.string_at(0)


class DiesInTheThirdShard(RaydsParquet):
    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        ctx.block_rows = 4
        for n, block in enumerate(super().read(shard, ctx)):
            if "00002" in shard.name and n == 1:
                crash()
            yield block


def test_a_shard_that_kills_its_reader(
    ray: Engine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayds.dataset.get_format", lambda name: DiesInTheThirdShard())
    options, out = RaydsParquet.WriteOptions(), tmp_path / "out"
    dataset = rayds.Dataset.import_from(str(source), "poison", engine=ray)
    with pytest.raises(
        EngineError, match=r"data/part-00002\.parquet .*after 4 items, the last '023'.*SIGSEGV"
    ):
        dataset.write(str(out), RaydsParquet(), options)
    assert list(tmp_path.iterdir()) == []
    dataset = rayds.Dataset.import_from(str(source), "poison", engine=ray, on_error="quarantine")
    report = dataset.write(str(out), RaydsParquet(), options)
    assert report.items == 34
    assert [e["place"] for e in report.errors] == ["shard data/part-00002.parquet"]
    assert (out / "quarantine.parquet").exists()
    monkeypatch.undo()
    ids = rayds.Dataset.import_from(str(out), "rayds", engine="local").to_arrow().column("id").to_pylist()
    assert ids == [f"{i:03}" for i in range(40) if not 24 <= i < 30]


class DiesAtItem17(YoloUltralytics):
    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> Any:
        if "017" in block.column("id").to_pylist():
            crash()
        return super().write(block, position, ctx)


def test_an_item_that_kills_its_writer(ray: Engine, source: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", YoloUltralytics.WriteOptions()
    dataset = rayds.Dataset.import_from(str(source), "rayds", engine=ray)
    report = dataset.write(str(out), DiesAtItem17(), options, on_error="skip")
    assert report.items == 39
    assert [e["item"] for e in report.errors] == ["017"]
    assert "SIGSEGV" in report.errors[0]["reason"]
    written = sorted(f.stem for f in (out / "labels").rglob("*.txt"))
    assert written == [f"{i:03}" for i in range(40) if i != 17]


class FragileDecoder(ImageDir):
    """As if OpenCV had a mistake: its decoder dies of images with a certain text in them."""

    def media_names(self, block: pa.Table, ctx: WriteContext) -> pa.Array:
        if not hasattr(cv2, "sound"):
            cv2.sound = cv2.imdecode

            def decode(data: Any, flags: int) -> Any:
                if b"POISON" in data.tobytes():
                    crash()
                return cv2.sound(data, flags)

            cv2.imdecode = decode
        return super().media_names(block, ctx)


def test_an_image_that_kills_its_decoder(ray: Engine, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    image = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for i in range(30):
        (photos / f"{i:02}.png").write_bytes(image + (b"POISON" + bytes([i]) if i in (7, 21) else b""))
    dataset = rayds.Dataset.import_from(str(photos), "image_dir", engine=ray)
    options = ImageDir.WriteOptions(image_ext=".bmp")
    with pytest.raises(DataError, match=r"07\.png.*the image decoder crashes on it \(signal SIGSEGV\)"):
        dataset.write(str(tmp_path / "out"), FragileDecoder(), options)
    report = dataset.write(str(tmp_path / "out"), FragileDecoder(), options, on_error="skip")
    assert report.items == 28
    assert [e["item"] for e in report.errors] == ["07", "21"]
    assert len(list((tmp_path / "out").iterdir())) == 28
