"""The format rayds: everything comes back; files, row groups and statistics that Ray, DuckDB and pandas read; images."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parquet_data import CATEGORIES, boxes, files, read, written

from rayds.annotations import (
    Annotation,
    Bbox,
    Caption,
    Cuboid3d,
    Ellipse,
    Label,
    Mask,
    Points,
    Polygon,
    PolyLine,
    RotatedBbox,
)
from rayds.dataset import Dataset
from rayds.engine.base import Engine
from rayds.errors import DataError
from rayds.formats import rayds_parquet
from rayds.formats.rayds_parquet import RaydsParquet
from rayds.item import DatasetItem, from_table, to_table
from rayds.listing import Listing
from rayds.media import Image, PointCloud, encode
from rayds.schema import ITEM_SCHEMA

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos_skimage"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
attributes = st.dictionaries(text, values, max_size=3)
int64 = st.integers(-(2**63), 2**63 - 1)
common = {
    "label": st.none() | st.integers(0, 2),
    "id": int64,
    "group": int64,
    "attributes": attributes,
    "z_order": st.integers(-(2**31), 2**31 - 1),
    "extra": attributes,
}


def coordinates(points: int, least: int = 0) -> st.SearchStrategy[list[float]]:
    pairs = st.lists(st.tuples(numbers, numbers), min_size=least, max_size=points)
    return pairs.map(lambda ps: [c for p in ps for c in p])


def masks(seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.random((seed % 5, seed % 7)) < 0.5


unit, lengths = st.floats(0, 1), st.floats(0, allow_infinity=False)
triple = st.lists(numbers, min_size=3, max_size=3)
annotations: st.SearchStrategy[Annotation] = st.one_of(
    st.builds(Label, **common),
    st.builds(Caption, text, **common),
    st.builds(Bbox, unit, unit, lengths, lengths, **common),  # none lies outside an image
    st.builds(RotatedBbox, numbers, numbers, numbers, numbers, numbers, **common),
    st.builds(Ellipse, numbers, numbers, numbers, numbers, **common),
    st.builds(Polygon, coordinates(5, 3), **common),
    st.builds(PolyLine, coordinates(4), **common),
    st.builds(lambda p, **kw: Points(p, [i % 3 for i in range(len(p) // 2)], **kw), coordinates(4), **common),
    st.builds(Cuboid3d, triple, triple, triple, **common),
    st.builds(Mask, st.integers(0, 1000).map(masks), **common),
)
sizes = st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999))
media = st.one_of(
    st.none(),
    st.builds(Image, path=text, size=sizes),
    st.builds(lambda d, s: Image(data=d, size=s, encoding=".jpg"), st.binary(min_size=1, max_size=20), sizes),
    st.builds(PointCloud, path=text, related=st.lists(text, max_size=2)),
)
items = st.builds(
    DatasetItem,
    id=text.filter(bool),
    subset=text,
    media=media,
    annotations=st.lists(annotations, max_size=4),
    attributes=attributes,
    extra=attributes,
)
datasets = st.lists(items, max_size=6, unique_by=lambda i: (i.id, i.subset))
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# round trips


@quick
@given(datasets)
def test_everything_comes_back(made: list[DatasetItem]) -> None:
    table = to_table(made)
    with tempfile.TemporaryDirectory() as folder:
        path = written(table, Path(folder, "out"), shard_size=2)
        got = read(path)
        assert got.equals(table)
        assert list(from_table(got)) == made
        ds = Dataset.import_from(str(path), "rayds", engine="local")
        assert ds.categories() == CATEGORIES
        assert len(ds) == len(made)


@quick
@given(datasets, st.data())
def test_the_bytes_do_not_depend_on_the_blocks(made: list[DatasetItem], data: st.DataObject) -> None:
    table = to_table(made)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(made)), max_size=4)))
    blocks = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        one = written(table, Path(folder, "one"), shard_size=3)
        other = written(blocks, Path(folder, "other"), shard_size=3)
        assert files(one) == files(other)


def test_shard_size_is_the_number_of_items_a_file(tmp_path: Path) -> None:
    path = written(boxes(25), tmp_path / "out", shard_size=10)
    rows = [pq.read_metadata(p).num_rows for p in sorted((path / "data").iterdir())]
    assert rows == [10, 10, 5]
    index = json.loads((path / "rayds.json").read_text())
    assert [s["items"] for s in index["shards"]] == rows
    assert index["items"] == 25
    assert index["annotations"] == sum(i % 3 for i in range(25))
    assert index["subsets"] == {"train": 25}


def test_an_empty_dataset_is_a_dataset(tmp_path: Path) -> None:
    path = written(boxes(0), tmp_path / "out")
    assert read(path).num_rows == 0
    assert pq.read_table(path / "data").schema.equals(ITEM_SCHEMA)


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_compression(tmp_path: Path, compression: str) -> None:
    table = boxes(50)
    path = written(table, tmp_path / "out", compression=compression)
    column = pq.read_metadata(path / "data" / "part-00000.parquet").row_group(0).column(0)
    assert column.compression == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())
    assert read(path).equals(table)


def test_statistics_on_id_and_subset(tmp_path: Path) -> None:
    path = written(boxes(7), tmp_path / "out")
    group = pq.read_metadata(path / "data" / "part-00000.parquet").row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}
    assert (found["id"].min, found["id"].max) == ("00000", "00006")
    assert (found["subset"].min, found["subset"].max) == ("train", "train")


def test_row_groups_allow_parallel_reading(tmp_path: Path) -> None:
    path = written(boxes(6000), tmp_path / "out")
    meta = pq.read_metadata(path / "data" / "part-00000.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [2500, 2500, 1000]


def test_big_files_are_read_by_several_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = boxes(6000)
    path = written(table, tmp_path / "out")
    monkeypatch.setattr(
        rayds_parquet, "SHARD_BYTES", 1 + (path / "data/part-00000.parquet").stat().st_size // 2
    )
    fmt = RaydsParquet()
    ctx = rayds_parquet.PlanContext(fmt.ReadOptions())
    assert len(fmt.plan(Listing(path), ctx).shards) == 2
    assert read(path).equals(table)


def test_only_some_columns(tmp_path: Path) -> None:
    table = boxes(9)
    got = read(written(table, tmp_path / "out"), columns="media")
    assert got.schema.equals(ITEM_SCHEMA)
    assert got.column("id").equals(table.column("id"))
    assert got.column("annotations").null_count == 0
    assert sum(map(len, got.column("annotations").to_pylist())) == 0


def test_facts_about_the_whole_dataset_come_back(tmp_path: Path) -> None:
    infos = {"coco": {"info": {"year": 2017}}}
    ds = Dataset(Dataset.from_arrow(boxes(1))._build, CATEGORIES, ids="unique", infos=infos, format="coco")
    ds.export(str(tmp_path / "out"), "rayds")
    got = Dataset.import_from(str(tmp_path / "out"), "rayds")
    assert (got._ids, got.infos) == ("unique", infos)
    assert json.loads((tmp_path / "out/rayds.json").read_text())["source_format"] == "coco"


# other readers


def test_duckdb_and_pandas_read_it_with_no_help(tmp_path: Path) -> None:
    import duckdb
    import pandas as pd

    table = boxes(30)
    path = written(table, tmp_path / "out", shard_size=7)
    found = duckdb.sql(
        f"""SELECT a.label AS label, count(*) AS n, sum(a.points[1]) AS x
            FROM (SELECT unnest(annotations) AS a FROM '{path}/data/*.parquet') GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    assert found == [(0, 20, sum(i for i in range(30) if i % 3)), (1, 10, sum(range(2, 30, 3)))]
    frame = pd.read_parquet(path / "data")
    assert list(frame["id"]) == [f"{i:05d}" for i in range(30)]
    assert frame["annotations"][2][1]["points"].tolist() == [2.0, 1.0, 1.5, 2.25]


@pytest.mark.slow
@pytest.mark.ray
def test_ray_data_reads_it_with_no_help(tmp_path: Path, ray_engine: Engine) -> None:
    import ray

    path = written(boxes(30), tmp_path / "out", shard_size=7)
    rows = ray.data.read_parquet(str(path / "data")).sort("id").take_all()
    assert [r["id"] for r in rows] == [f"{i:05d}" for i in range(30)]
    assert rows[2]["annotations"][1]["points"] == [2.0, 1.0, 1.5, 2.25]


@pytest.mark.slow
@pytest.mark.ray
def test_the_engines_write_the_same_bytes(
    tmp_path: Path, ray_engine: Engine, pictures: list[DatasetItem]
) -> None:
    for name, options in {"embed": {"embed": True}, "saved": {"save_media": True}, "plain": {}}.items():
        table = to_table(pictures * 5)
        for engine in ("local", ray_engine):
            Dataset.from_arrow([table.slice(0, 4), table.slice(4)], CATEGORIES, engine=engine).export(
                str(tmp_path / name / getattr(engine, "name", engine)), "rayds", shard_size=7, **options
            )
        assert files(tmp_path / name / "local") == files(tmp_path / name / "ray")
        got = Dataset.import_from(str(tmp_path / name / "ray"), "rayds", engine=ray_engine).to_arrow()
        assert got.column("id").to_pylist() == table.column("id").to_pylist()


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


def test_images_by_path_keep_their_path(tmp_path: Path, pictures: list[DatasetItem]) -> None:
    path = written(to_table(pictures), tmp_path / "out")
    assert [i.image.path for i in from_table(read(path)) if i.image] == [
        i.image.path for i in pictures if i.image
    ]
    assert not (path / "images").exists()


def test_saved_images_move_with_the_dataset(tmp_path: Path, pictures: list[DatasetItem]) -> None:
    path = written(to_table(pictures), tmp_path / "out", save_media=True)
    moved = tmp_path / "moved"
    path.rename(moved)
    expected = {i.id: Path(i.image.path).read_bytes() for i in pictures if i.image}
    shutil.rmtree(tmp_path / "source")
    got = list(from_table(read(moved)))
    assert [Path(i.image.path).relative_to(moved).as_posix() for i in got if i.image] == [
        "images/train/sub/p0.png",
        "images/val/sub/p1.jpg",
        "images/train/sub/p2.JPEG",
    ]
    assert {i.id: Path(i.image.path).read_bytes() for i in got if i.image} == expected
    assert [i.image.size for i in got if i.image] == [(20, 30), (21, 30), (22, 30)]
    stored = pq.read_table(moved / "data").column("media").to_pylist()
    assert stored[0]["path"] == "images/train/sub/p0.png"


def test_embedded_images_are_the_bytes_of_the_files(tmp_path: Path, pictures: list[DatasetItem]) -> None:
    path = written(to_table(pictures), tmp_path / "out", embed=True, save_media=True)
    assert not (path / "images").exists()
    expected = [Path(i.image.path).read_bytes() for i in pictures if i.image]
    shutil.rmtree(tmp_path / "source")
    got = [i.image for i in from_table(read(path))]
    assert [(g.data, g.path, g.encoding) for g in got if g] == [
        (e, "", x) for e, x in zip(expected, [".png", ".jpg", ".JPEG"], strict=True)
    ]
    # and out again: the same files
    again = written(read(path), tmp_path / "again", save_media=True)
    assert (again / "images/train/sub/p2.JPEG").read_bytes() == expected[2]
    assert read(again).column("media").combine_chunks().field("data").null_count == 3


def test_image_ext_changes_the_encoding(tmp_path: Path, pictures: list[DatasetItem]) -> None:
    for name, options in {"saved": {"save_media": True}, "embedded": {"embed": True}}.items():
        path = written(to_table(pictures), tmp_path / name, image_ext="png", **options)
        for before, after in zip(pictures, from_table(read(path)), strict=True):
            assert before.image is not None
            assert after.image is not None
            assert np.array_equal(before.image.pixels, after.image.pixels)
            data = after.image.data or Path(after.image.path).read_bytes()
            assert data.startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["embed", "save_media"])
def test_a_missing_image_is_named_or_left_out(
    tmp_path: Path, pictures: list[DatasetItem], option: str
) -> None:
    gone = Path(pictures[1].image.path)  # type: ignore[union-attr]
    gone.unlink()
    ds = Dataset.from_iterable(pictures, CATEGORIES, engine="local")
    with pytest.raises(DataError, match=r"p1\.jpg.*'sub/p1'.*missing.*Check"):
        ds.export(str(tmp_path / "out"), "rayds", **{option: True})
    assert not (tmp_path / "out").exists()
    report = ds.export(str(tmp_path / "out"), "rayds", on_error="skip", **{option: True})
    assert (report.items, len(report.errors)) == (2, 1)
    assert read(tmp_path / "out").column("id").to_pylist() == ["sub/p0", "sub/p2"]
    assert json.loads((tmp_path / "out/rayds.json").read_text())["items"] == 2


def test_row_groups_of_embedded_images_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayds_parquet, "ROW_GROUP_BYTES", 1000)
    made = [DatasetItem(str(i), image=Image(data=bytes([i]) * 300, encoding=".jpg")) for i in range(20)]
    path = written(to_table(made), tmp_path / "out")
    meta = pq.read_metadata(path / "data/part-00000.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [4] * 5
    assert read(path).equals(to_table(made))


def test_an_id_can_not_leave_the_output(tmp_path: Path, pictures: list[DatasetItem]) -> None:
    item = pictures[0].wrap(id="../../../escaped")
    with pytest.raises(DataError, match="leaves its folder"):
        Dataset.from_iterable([item]).export(str(tmp_path / "a/b/out"), "rayds", save_media=True)
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_real_photos(tmp_path: Path) -> None:
    photos = Dataset.import_from(str(PHOTOS), "image_dir", engine="local")
    photos.export(str(tmp_path / "out"), "rayds", embed=True)
    got = Dataset.import_from(str(tmp_path / "out"), "rayds", engine="local")
    got.export(str(tmp_path / "again"), "image_dir")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (PHOTOS / path.name).read_bytes()
    assert len(list((tmp_path / "again").iterdir())) == len(photos) > 20


# other storages


def test_memory_urls(tmp_path: Path, pictures: list[DatasetItem]) -> None:
    url = f"memory://{tmp_path.name}/out"
    Dataset.from_iterable(pictures, CATEGORIES, engine="local").export(
        url, "rayds", save_media=True, shard_size=2
    )
    got = list(Dataset.import_from(url, "rayds", engine="local"))
    assert [i.image.path for i in got if i.image][1] == f"{url}/images/val/sub/p1.jpg"
    for before, after in zip(pictures, got, strict=True):
        assert before.image is not None
        assert after.image is not None
        assert np.array_equal(before.image.pixels, after.image.pixels)
