"""The format `image_dir`: ids from paths; nothing is lost or overwritten silently."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rayds.annotations import Bbox, Label
from rayds.dataset import Dataset
from rayds.errors import DataError, UsageError
from rayds.formats import image_dir
from rayds.formats.image_dir import ImageDir
from rayds.item import DatasetItem
from rayds.listing import Listing
from rayds.media import PointCloud, encode

PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos_skimage"
PIXELS = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(PIXELS ^ shade, path.suffix))
    return path


def read(path: Path | str, **options: object) -> list[DatasetItem]:
    return list(Dataset.import_from(str(path), "image_dir", engine="local", **options))


def test_ids_are_paths_without_extension(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "sub/dir/x.y.JPG", "sub/ü \N{SNOWMAN}.bmp", ".hidden/c.png", ".d.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    got = read(tmp_path)
    assert [(i.id, i.subset) for i in got] == [
        ("a", "default"),
        ("b", "default"),
        ("sub/dir/x.y", "default"),
        ("sub/ü \N{SNOWMAN}", "default"),
    ]
    assert all(i.image and i.image.size is None and not i.annotations for i in got)
    assert got[2].image is not None
    assert got[2].image.path == str(tmp_path / "sub/dir/x.y.JPG")
    assert got[2].image.pixels.shape == PIXELS.shape


def test_subset_option(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert [i.subset for i in read(tmp_path, subset="val")] == ["val"]


def test_one_image_is_a_dataset(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    assert [i.id for i in read(tmp_path / "a.png")] == ["a"]


def test_images_are_not_opened_for_reading(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    assert [i.id for i in read(tmp_path)] == ["broken"]


def test_many_files_make_several_shards_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_dir, "SHARD_FILES", 7)
    for i in range(20):
        (tmp_path / f"{i:02d}.png").write_bytes(b"")
    fmt = ImageDir()
    plan = fmt.plan(Listing(tmp_path), image_dir.PlanContext(fmt.ReadOptions()))
    assert len(plan.shards) == 3
    assert [i.id for i in read(tmp_path)] == [f"{i:02d}" for i in range(20)]


def test_two_images_with_one_id(tmp_path: Path) -> None:
    for name in ("s/a.jpg", "s/a-b.jpg", "s/a.png", "a.png"):
        picture(tmp_path / name)
    with pytest.raises(DataError, match=r"s/a\.png and s/a\.jpg.*Rename one"):
        read(tmp_path)
    ds = Dataset.import_from(str(tmp_path), "image_dir", engine="local", on_error="skip")
    assert [i.id for i in ds] == ["a", "s/a-b", "s/a"]
    report = ds.export(str(tmp_path.with_name("out")), "image_dir")
    assert (report.items, [e["item"] for e in report.errors]) == (3, ["s/a"])


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    picture(tmp_path / "a/b.png")
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)
    assert [i.id for i in read(tmp_path)] == ["a/b"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(DataError, match=r"bad\\udcff.png: the file name is not UTF-8. Rename"):
        read(tmp_path)
    assert [i.id for i in read(tmp_path, on_error="skip")] == ["good"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")


def test_detection(tmp_path: Path) -> None:
    fmt = ImageDir()
    assert fmt.detect(Listing(tmp_path)).score == 0
    picture(tmp_path / "sub/a.png")
    (tmp_path / ".DS_Store").write_text("")
    assert fmt.detect(Listing(tmp_path)).score == 5
    (tmp_path / "sub/labels.txt").write_text("")
    found = fmt.detect(Listing(tmp_path))
    assert (found.score, found.reason) == (0, "sub/labels.txt is not an image")


# writing


def test_copies_keep_their_bytes_and_conversions_their_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "in/s/a.jpg")
    picture(tmp_path / "in/b.png")
    ds = Dataset.import_from(str(tmp_path / "in"), "image_dir", engine="local")
    report = ds.export(str(tmp_path / "out"), "image_dir")
    assert (report.items, report.losses) == (2, {})
    assert (tmp_path / "out/s/a.jpg").read_bytes() == (tmp_path / "in/s/a.jpg").read_bytes()
    ds.export(str(tmp_path / "png"), "image_dir", image_ext="png")
    assert sorted(p.name for p in (tmp_path / "png").rglob("*.*")) == ["a.png", "b.png"]
    for before, after in zip(ds, read(tmp_path / "png"), strict=True):
        assert np.array_equal(before.image.pixels, after.image.pixels)  # type: ignore[union-attr]


def test_what_it_can_not_hold_is_told(tmp_path: Path) -> None:
    path = str(picture(tmp_path / "a.png"))
    items = [
        DatasetItem("a", [Label(0), Bbox(1, 2, 3, 4)], "train", image=path, attributes={"x": 1}),
        DatasetItem("b", subset="train"),
        DatasetItem("c", subset="train", media=PointCloud(path)),
    ]
    report = Dataset.from_iterable(items, ["cat"], engine="local").export(str(tmp_path / "out"), "image_dir")
    assert {k: n for k, (n, _) in report.losses.items()} == {
        "bbox annotations": 1,
        "label annotations": 1,
        "item attribute 'x'": 1,
        "subset names": 3,
        "point_cloud media": 1,
        "items without an image": 1,
    }
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize("ext", [".png", ".jpg"])
def test_one_id_in_two_subsets_is_an_error(tmp_path: Path, ext: str) -> None:
    one, two = picture(tmp_path / "1.png"), picture(tmp_path / f"2{ext}", 7)
    items = [
        DatasetItem("x/a", subset="train", image=str(one)),
        DatasetItem("x/a", subset="val", image=str(two)),
    ]
    items.append(DatasetItem("b", subset="val", image=str(two)))
    ds = Dataset.from_iterable(items, engine="local")
    with pytest.raises(DataError, match=r"'x/a': 1 ids occur in more than one subset.*one subset at a time"):
        ds.export(str(tmp_path / "out"), "image_dir")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"1.png", f"2{ext}"})
    ds.get_subset("val").export(str(tmp_path / "out"), "image_dir")
    assert len(list((tmp_path / "out").rglob("*.*"))) == 2


def test_without_images_there_is_nothing_to_write(tmp_path: Path) -> None:
    ds = Dataset.from_iterable([DatasetItem("a", image=str(picture(tmp_path / "a.png")))])
    with pytest.raises(UsageError, match="holds images only"):
        ds.export(str(tmp_path / "out"), "image_dir", save_media=False)


def test_an_id_can_not_leave_the_output(tmp_path: Path) -> None:
    ds = Dataset.from_iterable(
        [DatasetItem("../evil", image=str(picture(tmp_path / "a.png")))], engine="local"
    )
    with pytest.raises(DataError, match="leaves its folder"):
        ds.export(str(tmp_path / "deep/out"), "image_dir")
    assert not list(tmp_path.rglob("evil*"))


def test_memory_urls(tmp_path: Path) -> None:
    picture(tmp_path / "s/a.png")
    url = f"memory://{tmp_path.name}"
    Dataset.import_from(str(tmp_path), "image_dir", engine="local").export(url, "image_dir")
    got = read(url)
    assert [(i.id, i.image.path) for i in got if i.image] == [("s/a", f"{url}/s/a.png")]
    assert np.array_equal(got[0].image.pixels, PIXELS)  # type: ignore[union-attr]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_real_photos() -> None:
    got = read(PHOTOS)
    assert "rocket" in {i.id for i in got}
    sizes = {i.id: i.image.get_size() for i in got if i.image}
    assert sizes["astronaut"] == (512, 512)
    for item in got:
        assert item.image is not None
        assert item.image.pixels.shape[:2] == sizes[item.id]


def test_blocks_written_at_one_time_by_the_command(tmp_path: Path) -> None:
    """What a worker loads at its first block must not stop another worker that does the same."""
    items = [
        DatasetItem(f"{subset}-{i}", subset=subset, image=np.ones((4, 4, 3)))
        for subset in ("train", "val", "test")
        for i in range(3)
    ]
    Dataset.from_iterable(items).export(str(tmp_path / "in"), "coco_image_info", save_media=True)
    words = ["convert", "-i", "in", "-if", "coco", "-f", "image_dir", "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "rayds", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "RAYDS_CPUS": "4"},
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 9
