"""Chains of operations on images over real datasets, and what formats make of their results."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayds

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data is not here")

SOURCES = {
    "coco_mini": ("coco_mini", "coco"),
    "coco_panoptic": ("coco_panoptic/sample_data/panoptic_examples.json", "coco_panoptic"),
    "bccd": ("bccd_voc/BCCD", "voc"),
    "roboflow": ("roboflow_coco_bloodcells", "roboflow_coco"),
}


@cache
def source(name: str) -> rayds.Dataset:
    path, format = SOURCES[name]
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not here")
    made = rayds.Dataset.import_from(str(DATA / path), format)
    return rayds.Dataset.from_arrow(made.to_arrow(), made.categories())


def kinds(item: rayds.DatasetItem) -> Counter[Any]:
    return Counter((a.type.name, a.label, a.id, a.group) for a in item.annotations)


@pytest.mark.parametrize("name", SOURCES)
def test_tiles_are_joined_to_what_they_were(name: str) -> None:
    before = source(name)
    made = before.transform("tile", grid_size=(3, 2), overlap=(0.2, 0.1), threshold_drop_ann=0)
    for was, item in zip(before, made.transform("merge_tile"), strict=True):
        assert (item.id, item.subset, item.attributes, item.extra) == (
            was.id,
            was.subset,
            was.attributes,
            was.extra,
        )
        assert (item.media.path, item.media.edits) == (was.media.path, [])
        assert kinds(item) == kinds(was)
        for a, b in zip(was.annotations, item.annotations, strict=True):
            if a.type.name == "bbox":
                assert b.get_bbox() == pytest.approx(a.get_bbox(), abs=1e-9)
            elif a.type.name == "polygon":
                assert b.get_area() == pytest.approx(a.get_area(), abs=1e-6)
            else:
                assert b.wrap(extra={}) == a.wrap(extra={})


@pytest.mark.parametrize("name", SOURCES)
def test_halves_are_half_of_everything(name: str) -> None:
    before = source(name)
    for was, item in zip(before, before.transform("resize", width=100), strict=True):
        height, width = item.media.size
        assert width == 100
        fx, fy = 100 / was.media.size[1], height / was.media.size[0]
        assert kinds(item) == kinds(was)
        for a, b in zip(was.annotations, item.annotations, strict=True):
            if a.type.name in ("bbox", "polygon"):
                want = np.multiply(a.get_bbox(), [fx, fy, fx, fy])
                assert b.get_bbox() == pytest.approx(want, abs=1e-9)
            elif a.type.name == "mask":
                assert b.image.shape == (height, 100)


def test_a_chain_into_every_format(tmp_path: Path) -> None:
    before = source("coco_mini")
    chain = (
        before.transform("resize", width=320)
        .transform("tile", grid_size=(2, 2))
        .transform("crop", x=4, y=4, width=120, height=90)
        .transform("anonymize", label="person", method="fill")
    )
    counts = Counter(a.type.name for i in chain for a in i.annotations)
    for format in ("coco", "voc", "yolo", "datumaro", "rayds"):
        report = chain.export(str(tmp_path / format), format)
        assert report.items == 4 * len(before)
        assert report.annotations == counts
        assert ("image edits: not written without --save-media" in report.losses) == (format != "rayds")
    back = rayds.Dataset.import_from(str(tmp_path / "rayds"))
    assert back.to_arrow().equals(chain.to_arrow())


@pytest.mark.ray
def test_the_ray_engine_gives_the_same(ray_engine: Any) -> None:
    table = source("coco_mini").to_arrow()
    blocks = [table.slice(i, 20) for i in range(0, table.num_rows, 20)]

    def chain(engine: Any) -> Any:
        made = rayds.Dataset.from_arrow(blocks, source("coco_mini").categories(), engine=engine)
        made = made.transform("crop", x=10, y=10, width=400, height=300).transform("tile", grid_size=(2, 2))
        return made.transform("anonymize", label="person").transform("merge_tile").to_arrow()

    assert chain(ray_engine).equals(chain("local"))


def test_photos_are_cut_and_joined(tmp_path: Path) -> None:
    if not (DATA / "photos_skimage").is_dir():
        pytest.skip("photos_skimage is not here")
    photos = rayds.Dataset.import_from(str(DATA / "photos_skimage"), "image_dir")
    names = {i.id for i in list(photos)[:3]}
    before = photos.select(lambda i: i.id in names)
    tiles = before.transform("tile", grid_size=(2, 3))
    tiles.export(str(tmp_path / "tiles"), "datumaro", save_media=True, image_ext=".png")
    joined = rayds.Dataset.import_from(str(tmp_path / "tiles")).transform("merge_tile")
    for was, item in zip(before, joined, strict=True):
        assert np.array_equal(item.media.pixels, was.media.pixels)
