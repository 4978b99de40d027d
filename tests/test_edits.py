"""Edits of images: told in the table, made whenever pixels are read or saved, lost by nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayds
from rayds.edits import apply_edits, dump_edits, edited_size, load_edits
from rayds.errors import DataError, LossError
from rayds.media import Image, decode, encode, load, row_pixels, save
from rayds.schema import MEDIA_TYPE, conform, media_field, with_media
from rayds.storage import Storage

H, W = 24, 40
COLOR = np.random.default_rng(1).integers(0, 256, (H, W, 3), dtype=np.uint8)
CROP = [{"crop": [10, 4, 20, 12]}]
PART = COLOR[4:16, 10:30]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    path.write_bytes(encode(COLOR, ".png"))
    return str(path)


def dataset(photo: str, edits: Any = CROP, **options: Any) -> rayds.Dataset:
    image = Image(photo, size=edited_size((H, W), edits), edits=edits)
    item = rayds.DatasetItem("a", [rayds.Bbox(1, 2, 3, 4, label=0)], image=image)
    return rayds.Dataset.from_iterable([item], ["cat"], **options)


def test_steps_are_made_in_order() -> None:
    steps = [*CROP, {"resize": [10, 6]}, {"crop": [1, 1, 4, 3]}]
    assert edited_size((H, W), steps) == (3, 4)
    whole = apply_edits(COLOR, steps[:2])
    assert whole.shape == (6, 10, 3)
    # a half by averaging areas: each pixel is the mean of four
    means = PART.reshape(6, 2, 10, 2, 3).mean((1, 3))
    assert np.abs(whole - means).max() <= 0.5
    assert np.array_equal(apply_edits(COLOR, steps), whole[1:4, 1:5])
    assert np.array_equal(load_edits(dump_edits(steps)), steps)
    assert dump_edits([]) is None


def test_a_side_may_shrink_while_the_other_grows() -> None:
    flat = np.full((H, W), 77, np.uint8)
    made = apply_edits(flat, [{"resize": [80, 6]}])
    assert made.shape == (6, 80)
    assert (made == 77).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(H, W), (H, W, 3), (H, W, 4)])
def test_depth_and_channels_stay(dtype: Any, shape: tuple[int, ...]) -> None:
    pixels = np.full(shape, 5, dtype)
    hide = {"hide": {"method": "pixelate", "strength": 0.5, "margin": 1, "regions": [{"bbox": [2, 2, 9, 9]}]}}
    made = apply_edits(pixels, [{"resize": [30, 30]}, hide])
    assert made.dtype == dtype
    assert made.shape == (30, 30, *shape[2:])
    assert np.allclose(made, 5, atol=1e-5 if dtype is np.float32 else 0)


def test_every_reader_of_pixels_sees_the_edits(photo: str, tmp_path: Path) -> None:
    made = dataset(photo)
    item = made.get("a")
    assert item is not None
    assert item.image is not None
    assert item.image.size == (12, 20)
    assert np.array_equal(item.image.pixels, PART)
    [batch] = made.iter_batches(batch_size=1)
    assert np.array_equal(batch["image"][0], PART[:, :, ::-1])
    [small] = made.iter_batches(batch_size=1, resize=(6, 10), targets="detection")
    assert small["image"].shape == (1, 6, 10, 3)
    assert np.allclose(small["boxes"][0], [[0.5, 1, 2, 3]])


class Mean(rayds.Launcher):
    name = "mean"

    def infer(self, images: Any) -> Any:
        return [[rayds.Caption(f"{image.shape}")] for image in images]


def test_models_see_the_edits(photo: str) -> None:
    item = dataset(photo).run_model(Mean()).get("a")
    assert item is not None
    assert item.annotations == [rayds.Caption("(12, 20, 3)")]


def test_an_edited_image_is_never_copied_as_bytes(photo: str, tmp_path: Path) -> None:
    row = Image(photo, edits=CROP).to_row()
    out = Storage(tmp_path / "out")
    save(row, out, "x.png")
    assert np.array_equal(decode(out.read_bytes("x.png")), PART)
    assert np.array_equal(decode(load(row, ".bmp")), PART)
    assert np.array_equal(row_pixels(row), PART)


def test_saved_images_have_their_edits_made(photo: str, tmp_path: Path) -> None:
    for format in ("coco", "voc", "yolo", "datumaro", "rayds"):
        out = str(tmp_path / format)
        report = dataset(photo).export(out, format, save_media=True, strict=format == "rayds")
        assert not any("edits" in kind for kind in report.losses)
        [item] = rayds.Dataset.import_from(out)
        assert item.image is not None
        assert item.image.edits == []
        assert np.array_equal(item.image.pixels, PART)
    dataset(photo).export(str(tmp_path / "packed"), "rayds", embed=True)
    [item] = rayds.Dataset.import_from(str(tmp_path / "packed"))
    assert item.image.edits == []
    assert np.array_equal(item.image.pixels, PART)


def test_edits_that_are_not_written_are_a_loss(photo: str, tmp_path: Path) -> None:
    report = dataset(photo).export(str(tmp_path / "out"), "coco")
    assert report.losses["image edits: not written without --save-media"] == (1, "item 'a'")
    told = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())
    assert (told["images"][0]["width"], told["images"][0]["height"]) == (20, 12)
    with pytest.raises(LossError, match="image edits"):
        dataset(photo).export(str(tmp_path / "strict"), "coco", strict=True)


def test_strict_allows_edits_that_are_saved(photo: str, tmp_path: Path) -> None:
    made = rayds.Dataset.from_iterable([rayds.DatasetItem("a", image=Image(photo, edits=CROP))])
    made.export(str(tmp_path / "out"), "image_dir", save_media=True, strict=True)
    assert decode((tmp_path / "out/a.png").read_bytes()).shape == PART.shape


def test_the_rayds_format_keeps_the_edits(photo: str, tmp_path: Path) -> None:
    dataset(photo).export(str(tmp_path / "out"), "rayds", strict=True)
    [item] = rayds.Dataset.import_from(str(tmp_path / "out"))
    assert item.image.edits == CROP
    assert np.array_equal(item.image.pixels, PART)
    [again] = rayds.Dataset.from_iterable([item])
    assert again == item


def test_tables_from_before_the_field_are_read(photo: str, tmp_path: Path) -> None:
    dataset(photo, []).export(str(tmp_path / "out"), "rayds")
    [file] = (tmp_path / "out/data").glob("*.parquet")
    table = pq.read_table(file)
    old = pa.struct([f for f in MEDIA_TYPE if f.name != "edits"])
    media = table.column("media").combine_chunks()
    media = media.chunk(0) if isinstance(media, pa.ChunkedArray) else media
    parts = pa.StructArray.from_arrays([media.field(f.name) for f in old], fields=list(old))
    table = table.set_column(table.schema.get_field_index("media"), "media", parts)
    pq.write_table(table, file)
    [item] = rayds.Dataset.import_from(str(tmp_path / "out"))
    assert item.image == Image(photo, size=(H, W))
    assert conform(table).column("media").type == MEDIA_TYPE
    [item] = rayds.Dataset.from_arrow(table)
    assert item.image.edits == []


def test_sizes_are_those_after_the_edits(photo: str) -> None:
    assert Image(photo, edits=CROP).get_size() == (12, 20)
    assert Image(data=COLOR, edits=CROP).get_size() == (12, 20)
    row = Image(data=COLOR, edits=CROP).to_row()  # in memory: made at once
    assert (row["height"], row["width"], row["edits"]) == (12, 20, None)
    bytes_row = Image(data=encode(COLOR, ".png"), edits=CROP).to_row()
    assert (bytes_row["height"], bytes_row["width"]) == (12, 20)
    assert Image(photo, edits=CROP) != Image(photo)
    unknown = Image(photo, edits=CROP).to_row() | {"width": None, "height": None}
    table = rayds.Dataset.from_arrow(pa.table({"id": ["a"], "media": pa.array([unknown], MEDIA_TYPE)}))
    [batch] = table.iter_batches(batch_size=1, decode=False, resize=(6, 10), targets="detection")
    assert list(batch["id"]) == ["a"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[1]",
        '[{"turn":90}]',
        '[{"resize":[0,4]}]',
        '[{"resize":[4.5,4]}]',
        '[{"crop":[-1,0,4,4]}]',
        '[{"crop":[1,0,4]}]',
        '[{"hide":{"method":"paint","regions":[]}}]',
        '[{"hide":{"method":"blur","regions":[{"sphere":[1]}]}}]',
        '[{"hide":{"method":"blur","regions":[{"bbox":[NaN,1,2,3]}]}}]',
    ],
)
def test_damaged_edits_are_told(text: str) -> None:
    with pytest.raises(DataError, match="edits of the image are not known or damaged"):
        load_edits(text)


def test_edits_that_do_not_fit_are_told(photo: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: the image has 40x24 pixels: the part 30, 0, 20, 10"):
        row_pixels(Image(photo, edits=[{"crop": [30, 0, 20, 10]}]).to_row())
    with pytest.raises(DataError, match="more than the limit"):
        load_edits('[{"resize":[1000000,1000000]}]')
    bad = with_media(dataset(photo).to_arrow(), edits='[{"crop":[30,0,20,10]}]')
    assert media_field(bad, "edits").null_count == 0
    with pytest.raises(DataError, match="item 'a'"):
        rayds.Dataset.from_arrow(bad, ["cat"]).export(str(tmp_path / "out"), "coco", save_media=True)


def test_parts_of_an_image_are_made_of_one_decoding(photo: str, tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[Any] = []
    real = rayds.media.decode

    def counted(*args: Any) -> Any:
        calls.append(args[1])
        return real(*args)

    monkeypatch.setattr(rayds.media, "decode", counted)
    other = tmp_path / "in" / "b.png"
    other.write_bytes(encode(COLOR[::-1], ".png"))
    items = [
        rayds.DatasetItem(f"{name}{x}", image=Image(path, size=(24, 20), edits=[{"crop": [x, 0, 20, 24]}]))
        for name, path in (("a", photo), ("b", str(other)))
        for x in (0, 5, 20)
    ]
    rayds.Dataset.from_iterable(items).export(str(tmp_path / "out"), "image_dir")
    assert sorted(calls) == [photo, str(other)]
    for item in rayds.Dataset.import_from(str(tmp_path / "out")):
        x, whole = int(item.id[1:]), COLOR if item.id[0] == "a" else COLOR[::-1]
        assert np.array_equal(item.image.pixels, whole[:, x : x + 20])
