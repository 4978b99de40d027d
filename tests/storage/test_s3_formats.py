"""Every hot format on S3, images and all: the same files as on the local disk, and the same dataset from them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rayds as dm
from rayds.engine.base import Engine
from rayds.engine.local import LocalEngine
from rayds.remote import MARKER
from rayds.schema import media_field, with_media
from rayds.storage import Storage

HOT = ("coco", "coco_panoptic", "voc", "yolo", "yolo_ultralytics", "datumaro", "image_dir", "rayds")
ON_RAY = ("coco", "voc")


def made(n: int = 6) -> dm.Dataset:
    """Items of two subsets (one where all ids differ) with boxes, polygons and masks; PNGs of different sizes."""
    items = []
    for i in range(n):
        height, width = 24 + i % 7, 32
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, :, 0] = np.arange(width) * 3 + i
        shape = np.zeros((height, width), bool)
        shape[2:9, 3 : 8 + i % 5] = True
        items.append(
            dm.DatasetItem(
                f"{'ab'[i % 2]}/{i:03}",
                subset=("train", "val")[i % 3 == 2],
                image=pixels,
                annotations=[
                    dm.Bbox(4, 5, 10, 8, label=i % 2, id=2 * i + 1, group=2 * i + 1),
                    dm.Mask(shape, label=1, id=2 * i + 2, group=2 * i + 2),
                ],
            )
        )
    return dm.Dataset.from_iterable(items, categories=["background", "cat"])


def files_of(storage: Storage) -> dict[str, bytes]:
    if not storage.local:
        return {n: storage.read_bytes(n) for n in storage.find()}
    top = Path(storage.url)
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def table_of(url: str, format: str | None = None, engine: Engine | None = None) -> pa.Table:
    """The items in order, with image paths relative to the dataset."""
    table = dm.Dataset.import_from(url, format, engine=engine).to_arrow().combine_chunks()
    top = Storage(url).url + "/"
    paths = media_field(table, "path").to_pylist()
    assert all(p is None or p.startswith(top) for p in paths)
    return with_media(table, path=pa.array([p and p[len(top) :] for p in paths], pa.string()))


def same(url: str, local: str, engine: Engine | None = None) -> None:
    """The dataset at a URL is that of the local folder, and its images have the same pixels."""
    found, wanted = table_of(url, engine=engine), table_of(local)
    assert found.num_rows == wanted.num_rows > 0
    assert found.equals(wanted)
    pixels = [[i.image.pixels for i in dm.Dataset.import_from(u)] for u in (url, local)]  # type: ignore[union-attr]
    assert all(map(np.array_equal, *pixels))


CASES = [(f, "local") for f in HOT] + [pytest.param(f, "ray", marks=pytest.mark.ray) for f in ON_RAY]


@pytest.mark.parametrize(("format", "name"), CASES)
def test_every_hot_format(
    format: str, name: str, s3: Storage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    engine = LocalEngine(2) if name == "local" else request.getfixturevalue("ray_engine")
    local = Storage(tmp_path / "local")
    made().export(local.url, format, save_media=True)
    report = made().export(s3.url, format, engine=engine, save_media=True)
    assert (report.items, report.path) == (6, s3.url)
    assert files_of(s3) == files_of(local)
    assert [f.name for f, c in dm.detect(s3.url) if c.score][:1] == [
        f.name for f, c in dm.detect(local.url) if c.score
    ][:1]
    same(s3.url, local.url, engine)
    # from S3 to S3: images are copied by the server, sizes are read from headers
    again = s3.parent.sub(s3.name + "-again")
    dm.Dataset.import_from(s3.url, engine=engine).export(again.url, "rayds", save_media=True)
    dm.Dataset.import_from(local.url).export(str(tmp_path / "again"), "rayds", save_media=True)
    same(again.url, str(tmp_path / "again"))
    left = [n for n in Storage("s3://rayds-test").find() if n.startswith(s3.name)]
    assert not [n for n in left if "staging" in n or MARKER in n]


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_overwrite(format: str, s3: Storage, tmp_path: Path) -> None:
    made(6).export(s3.url, format, save_media=True)
    with pytest.raises(dm.OutputExistsError, match="--overwrite"):
        made(3).export(s3.url, format)
    before = files_of(s3)
    with pytest.raises(dm.RaydsError):
        made(3).export(s3.url, "yolo", overwrite=True, strict=True)  # no masks in YOLO
    assert files_of(s3) == before
    made(3).export(s3.url, format, overwrite=True, save_media=True)
    made(3).export(str(tmp_path / "x"), format, save_media=True)
    assert files_of(s3) == files_of(Storage(tmp_path / "x"))


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.filterwarnings("ignore:an interrupted run")
def test_a_replacement_that_breaks_keeps_the_new_output(
    resume: bool, s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage fails for good while the new output takes the place of the old one."""
    made(2).export(s3.url, "coco", save_media=True)

    def broken(*_: Any) -> None:
        raise dm.StorageError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr("rayds.s3.S3Remote.copy_tree", broken)
        with pytest.raises(dm.StorageError, match=r"complete in s3://\S+/data") as told:
            made(6).export(s3.url, "coco", overwrite=True, save_media=True)
    with pytest.raises(dm.StorageError, match="being put in place"):
        dm.Dataset.import_from(s3.url)
    staging = re.search(r"complete in (\S+/data)", str(told.value))
    assert staging is not None
    assert len(dm.Dataset.import_from(staging[1])) == 6
    whole = files_of(Storage(staging[1]))
    made(6).export(s3.url, "coco", overwrite=True, save_media=True, resume=resume)
    assert files_of(s3) == whole


@pytest.mark.parametrize("early", [True, False])
def test_a_failure_leaves_nothing(early: bool, s3: Storage) -> None:
    """Be it seen before anything is written (strict), or in the middle of it (an image that is not there)."""
    if early:
        with pytest.raises(dm.LossError):
            made().export(s3.url, "yolo", strict=True)
    else:
        items = [dm.DatasetItem(str(i), image=s3.path(f"no{i}.jpg")) for i in range(4)]
        with pytest.raises(dm.DataError, match=r"s3://.*no\d.jpg"):
            dm.Dataset.from_iterable(items).export(s3.url, "image_dir")
    assert not [n for n in Storage("s3://rayds-test").find() if n.startswith(s3.name)]


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayds", *words],
        env={**os.environ, "NO_COLOR": "1", **env}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_command_line(s3: Storage, s3_server: Any, tmp_path: Path) -> None:
    """With the usual variables, which Ray's workers get as well."""
    env = {
        "AWS_CONFIG_FILE": "/nowhere", "AWS_ENDPOINT_URL": s3_server.url, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKTEST", "AWS_SECRET_ACCESS_KEY": "SKTESTSECRET",
    }  # fmt: skip
    made().export(s3.path("in"), "coco", save_media=True)
    done = run("convert", "-i", s3.path("in"), "-o", s3.path("out"), "-f", "voc", "--save-media", **env)
    assert done.returncode == 0, done.stderr
    dm.Dataset.import_from(s3.path("in")).export(str(tmp_path / "x"), "voc", save_media=True)
    assert files_of(s3.sub("out")) == files_of(Storage(tmp_path / "x"))
    assert "coco" in run("detect", s3.path("in"), **env).stdout
    done = run("convert", "-i", s3.path("in"), "-o", s3.path("out"), "-f", "voc", **env)
    assert (done.returncode, "--overwrite" in done.stderr) == (1, True)
    done = run(
        "convert",
        "-i",
        s3.path("in"),
        "-o",
        s3.path("x"),
        "-f",
        "voc",
        **env | {"AWS_SECRET_ACCESS_KEY": "no"},
    )
    assert done.returncode == 1
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert (
        "no such bucket"
        in run("convert", "-i", s3.path("in"), "-o", "s3://rayds-nowhere/x", "-f", "voc", **env).stderr
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_variables_reach_the_workers(s3: Storage, s3_server: Any, tmp_path: Path) -> None:
    env = {
        "AWS_CONFIG_FILE": "/nowhere", "AWS_ENDPOINT_URL": s3_server.url, "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKTEST", "AWS_SECRET_ACCESS_KEY": "SKTESTSECRET",
    }  # fmt: skip
    made().export(s3.path("in"), "coco", save_media=True)
    done = run(
        "convert",
        "-i",
        s3.path("in"),
        "-o",
        s3.path("out"),
        "-f",
        "coco",
        "--save-media",
        "--engine",
        "ray",
        **env,
    )
    assert done.returncode == 0, done.stderr
    same(s3.path("out"), s3.path("in"))


@pytest.mark.slow
def test_the_server_stops_and_starts_again(s3: Storage, s3_server: Any, tmp_path: Path) -> None:
    """A conversion in the middle of which the storage is away for some seconds ends as if nothing had been."""
    made(200).export(str(tmp_path / "in"), "coco", save_media=True)
    stopped: list[float] = []

    def interrupt() -> None:
        while len(Storage("s3://rayds-test").find()) < 100 + had:
            time.sleep(0.05)
        s3_server.stop(kill=True)
        stopped.append(time.monotonic())
        time.sleep(1)
        s3_server.start()

    had = len(Storage("s3://rayds-test").find())
    thread = threading.Thread(target=interrupt)
    thread.start()
    dm.Dataset.import_from(str(tmp_path / "in")).export(s3.url, "coco", save_media=True)
    ended = time.monotonic()
    thread.join()
    s3_server.wait()
    assert stopped[0] < ended - 1
    dm.Dataset.import_from(str(tmp_path / "in")).export(str(tmp_path / "out"), "coco", save_media=True)
    assert files_of(s3) == files_of(Storage(tmp_path / "out"))
