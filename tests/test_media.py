"""Media: sizes from headers agree with decoding; conversions keep what the target can hold; errors say what to do."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from rayds import media
from rayds.errors import DataError
from rayds.media import (
    Image,
    PointCloud,
    decode,
    encode,
    guess_encoding,
    is_image,
    load,
    probe,
    probe_bytes,
    save,
)
from rayds.storage import Storage

PHOTOS = Path(__file__).parents[1].parent / "shared" / "data" / "photos_skimage"
H, W = 37, 53
RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
GRAY = COLOR[:, :, 0].copy()
ALPHA = np.dstack([COLOR, GRAY])
DEEP = RNG.integers(0, 65536, (H, W), dtype=np.uint16)
SMOOTH = np.add.outer(np.arange(H), np.arange(W)).astype(np.uint8)
# what OpenCV writes of the image extensions (it has no encoder for .tga and .pxm, and .exr must be enabled)
WRITABLE = sorted(media.IMAGE_EXTENSIONS - {".tga", ".pxm", ".exr"})
LOSSLESS = [".png", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pnm", ".ras", ".sr"]


def pillow_bytes(format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(COLOR[:, :, ::-1]).save(out, format, **options)
    return out.getvalue()


def exif(orientation: int) -> Any:
    made = Pillow.Exif()
    made[0x0112] = orientation
    return made


def row(path: str | None = None, data: bytes | None = None, **more: Any) -> dict[str, Any]:
    return {"kind": "image", "path": path, "data": data, "encoding": None, **more}


# sizes


@pytest.mark.parametrize("ext", WRITABLE)
def test_the_size_of_every_format(ext: str, tmp_path: Path) -> None:
    data = encode(GRAY if ext in (".pbm", ".pgm") else COLOR, ext)
    assert probe_bytes(data) == (H, W) == decode(data).shape[:2]
    (tmp_path / f"x{ext}").write_bytes(data)
    assert probe(str(tmp_path / f"x{ext}")) == (H, W)
    assert Image(str(tmp_path / f"x{ext}")).get_size() == (H, W)
    assert is_image(f"a/b.c{ext.upper()}")


def test_the_size_of_an_exr() -> None:
    header = b"v/1\x01\x02\0\0\0channels\0chlist\0\x01\0\0\0\0dataWindow\0box2i\0\x10\0\0\0"
    assert probe_bytes(header + struct.pack("<4i", 10, 20, 10 + W - 1, 20 + H - 1)) == (H, W)


def test_the_size_of_a_bitmap_stored_top_down() -> None:
    data = bytearray(encode(COLOR, ".bmp"))
    data[22:26] = struct.pack("<i", -H)
    assert probe_bytes(bytes(data)) == (H, W)


@pytest.mark.parametrize(
    "text", [b"P5 53 37 255\n", b"P5\n# a comment 1 2\n53\n#\n37\n255\n", b"P5\t53 \r\n 37 255 "]
)
def test_comments_in_a_netpbm_header(text: bytes) -> None:
    assert probe_bytes(text + bytes(53 * 37)) == (37, 53)


@pytest.mark.parametrize(
    "ext", [".jpg", ".png", ".bmp", ".tif", ".webp", ".jp2", ".ppm", ".ras", ".hdr", ".pfm"]
)
def test_cut_and_damaged_headers(ext: str) -> None:
    data = encode(COLOR, ext)
    for n in range(min(len(data), 300)):
        try:
            assert probe_bytes(data[:n]) == (H, W), n
        except DataError as e:
            assert "not an image" in str(e)  # noqa: PT017 (either is right)
    rng = np.random.default_rng(1)
    for _ in range(300):
        bad = bytearray(data[:200])
        for at in rng.integers(0, len(bad), 4):
            bad[at] = rng.integers(0, 256)
        with contextlib.suppress(DataError):
            assert min(probe_bytes(bytes(bad))) > 0


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"text", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"P6\n53 3", b"#?RADIANCE\n\n"]
)
def test_no_image(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.jpg: not an image, or its header is damaged"):
        probe_bytes(data, "x.jpg")
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(DataError, match=str(tmp_path)):
        probe(str(tmp_path / "x.jpg"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_size_is_that_of_the_pixels_whatever_exif_says(format: str, orientation: int) -> None:
    data = pillow_bytes(format, exif=exif(orientation))
    assert probe_bytes(data) == decode(data).shape[:2]
    if format == "JPEG":
        assert probe_bytes(data) == (H, W)


def test_a_header_longer_than_what_is_read_first(tmp_path: Path) -> None:
    data = pillow_bytes("JPEG", icc_profile=b"x" * 200_000)
    (tmp_path / "long.jpg").write_bytes(data)
    assert probe(str(tmp_path / "long.jpg")) == (H, W)


def test_a_missing_file_has_no_size(tmp_path: Path) -> None:
    assert probe(str(tmp_path / "no.jpg")) is None
    assert Image(str(tmp_path / "no.jpg")).get_size() is None
    assert not Image(str(tmp_path / "no.jpg")).has_data


def test_sizes_of_urls(tmp_path: Path) -> None:
    storage = Storage(f"memory://{tmp_path.name}")
    storage.write_bytes("a/x.png", encode(COLOR, ".png"))
    assert probe(storage.path("a/x.png")) == (H, W)
    assert probe(storage.path("a/no.png")) is None
    assert np.array_equal(Image(storage.path("a/x.png")).pixels, COLOR)
    assert Image(storage.path("a/x.png")).has_data


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_sizes_of_real_photos() -> None:
    names = [p for p in PHOTOS.iterdir() if is_image(p.name)]
    assert len(names) > 20
    for path in names:
        data = path.read_bytes()
        assert probe(str(path)) == decode(data, str(path)).shape[:2]
        assert media.same_encoding(guess_encoding(data), path.suffix)


# decoding and encoding


@pytest.mark.parametrize("ext", LOSSLESS)
@pytest.mark.parametrize("pixels", [COLOR, GRAY], ids=["color", "gray"])
def test_lossless_formats(ext: str, pixels: np.ndarray[Any, Any]) -> None:
    back = decode(encode(pixels, ext))
    if back.ndim > pixels.ndim:  # a format without gray
        assert np.array_equal(back, np.repeat(pixels[:, :, None], 3, 2))
    else:
        assert np.array_equal(back, pixels)


@pytest.mark.parametrize("ext", [".png", ".tif", ".pgm", ".pnm"])
def test_16_bits_are_kept_where_they_can_be(ext: str) -> None:
    back = decode(encode(DEEP, ext))
    assert back.dtype == np.uint16
    assert np.array_equal(back, DEEP)


@pytest.mark.parametrize("ext", [".jpg", ".bmp", ".webp", ".ras"])
def test_16_bits_become_the_upper_8_elsewhere(ext: str) -> None:
    back = decode(encode(SMOOTH.astype(np.uint16) * 256 + 255, ext))
    assert back.dtype == np.uint8
    assert np.abs(back.reshape(H, W, -1)[:, :, 0].astype(int) - SMOOTH).max() <= 4


@pytest.mark.parametrize("ext", [".png", ".tif", ".bmp"])
def test_alpha_is_kept_where_it_can_be(ext: str) -> None:
    assert np.array_equal(decode(encode(ALPHA, ext)), ALPHA)


@pytest.mark.parametrize("ext", [".jpg", ".JPEG", ".ppm", ".ras", ".hdr"])
def test_alpha_is_left_out_elsewhere(ext: str) -> None:
    assert decode(encode(ALPHA, ext)).shape == (H, W, 3)


def test_other_types_of_numbers() -> None:
    assert np.array_equal(
        decode(encode(SMOOTH.astype(np.int64) * 10 - 100, ".png")), np.clip(SMOOTH * 10.0 - 100, 0, 255)
    )
    assert np.array_equal(decode(encode(SMOOTH + 0.4, ".png")), SMOOTH)
    assert np.array_equal(decode(encode(SMOOTH > 30, ".png")), SMOOTH > 30)
    assert np.array_equal(decode(encode(COLOR / np.float64(7), ".tif")), (COLOR / 7.0).astype(np.float32))


def test_jpeg_quality() -> None:
    assert len(encode(COLOR, ".jpg", quality=30)) < len(encode(COLOR, ".jpg")) / 2


@pytest.mark.parametrize(
    ("pixels", "ext"),
    [
        (COLOR, ".xyz"),
        (COLOR, ".pgm"),
        (COLOR[:, :, :2], ".jpg"),
        (COLOR[:0], ".png"),
        (np.zeros((2, 2, 2, 2)), ".png"),
    ],
)
def test_pixels_that_a_format_can_not_hold(pixels: np.ndarray[Any, Any], ext: str) -> None:
    with pytest.raises(DataError, match=f"can't write .* as {ext}"):
        encode(pixels, ext)


@pytest.mark.parametrize("data", [b"", b"not an image", encode(COLOR, ".png")[:60]])
def test_bytes_that_can_not_be_decoded(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^x\.png: "):
        decode(data, "x.png")


def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", H * W)
    assert decode(encode(COLOR, ".png")).shape == (H, W, 3)
    monkeypatch.setattr(media, "MAX_PIXELS", H * W - 1)
    with pytest.raises(DataError, match=rf"x: the image has {W}x{H} pixels, more than.*RAYDS_MAX_PIXELS"):
        decode(encode(COLOR, ".png"), "x")
    tail = bytearray(encode(np.zeros((300, 300), np.uint16), ".tif"))  # a TIFF whose header stands at its end
    assert struct.unpack_from("<I", tail, 4)[0] > 1000
    with pytest.raises(DataError, match="300x300"):
        decode(bytes(tail))


def test_the_pixel_limit_comes_from_the_environment() -> None:
    code = "from rayds import media; print(media.MAX_PIXELS)"
    env = {**os.environ, "RAYDS_MAX_PIXELS": "1234"}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout
        == "1234\n"
    )


# saving


def test_the_same_encoding_is_a_copy(tmp_path: Path) -> None:
    data = encode(COLOR, ".jpg")
    (tmp_path / "a.JPEG").write_bytes(data)
    out = Storage(tmp_path / "out")
    save(row(str(tmp_path / "a.JPEG")), out, "s/b.jpg")
    save(row(data=data, encoding=".jpeg"), out, "c.jpg")
    save(row("wrong.png", data=data, encoding=".jpg"), out, "d.jpg")  # the bytes count, not the path
    assert out.read_bytes("s/b.jpg") == out.read_bytes("c.jpg") == out.read_bytes("d.jpg") == data
    (tmp_path / "broken.jpg").write_bytes(b"as it is")
    save(row(str(tmp_path / "broken.jpg")), out, "broken.jpg")
    assert out.read_bytes("broken.jpg") == b"as it is"


def test_another_encoding_is_a_conversion(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(COLOR, ".png"))
    out = Storage(tmp_path / "out")
    save(row(str(tmp_path / "a.png")), out, "a.bmp")
    assert out.read_bytes("a.bmp").startswith(b"BM")
    assert np.array_equal(decode(out.read_bytes("a.bmp")), COLOR)
    save(row(str(tmp_path / "a.png")), out, "half.png", make=lambda p: p[::2])
    assert np.array_equal(decode(out.read_bytes("half.png")), COLOR[::2])


def test_bright_pixels_of_hdr_images_stay_bright(tmp_path: Path) -> None:
    data = encode(np.full((4, 4, 3), 0.5, np.float32), ".hdr")
    assert abs(int(decode(load(row(data=data, encoding=".hdr"), ".png"))[0, 0, 0]) - 128) <= 2


def test_point_clouds_are_copied(tmp_path: Path) -> None:
    (tmp_path / "a.pcd").write_bytes(b"points")
    save(row(str(tmp_path / "a.pcd"), kind="point_cloud"), Storage(tmp_path), "b.pcd")
    assert (tmp_path / "b.pcd").read_bytes() == b"points"


@pytest.mark.parametrize("ext", [".jpg", ".png"])
def test_a_missing_image_says_what_to_do(tmp_path: Path, ext: str) -> None:
    with pytest.raises(DataError, match=r"no\.jpg: the image file is missing. Check the path of the images"):
        save(row(str(tmp_path / "no.jpg")), Storage(tmp_path), f"out{ext}")
    with pytest.raises(DataError, match="no media to save"):
        save(row(), Storage(tmp_path), f"out{ext}")
    assert os.listdir(tmp_path) == []


def test_a_name_can_not_leave_the_output(tmp_path: Path) -> None:
    for name in ("../x.png", "a/../../x.png", "/x.png"):
        with pytest.raises(DataError, match="leaves its folder"):
            save(row(data=b"1", encoding=".png"), Storage(tmp_path / "out"), name)


# media as objects


def test_images_of_all_kinds(tmp_path: Path) -> None:
    data = encode(COLOR, ".png")
    (tmp_path / "a.png").write_bytes(data)
    calls = []

    def lazy() -> np.ndarray[Any, Any]:
        calls.append(1)
        return COLOR

    made = [Image.of(v) for v in (str(tmp_path / "a.png"), tmp_path / "a.png", data, COLOR, lazy)]
    assert not calls
    for image in made:
        assert np.array_equal(image.pixels, COLOR)
        assert image.get_size() == (H, W)
        assert image.has_data
    assert made[2] == made[3] == made[4]
    assert made[0] == made[1]
    assert made[0] != Image("other.png")
    assert Image("a.png", size=(1, 2)) != Image("a.png", size=(2, 2))
    assert Image("a.png", size=(1, 2)) == Image("a.png")
    assert Image.of(made[0]) is made[0]


def test_rows_of_media() -> None:
    calls = []

    def lazy() -> np.ndarray[Any, Any]:
        calls.append(1)
        return COLOR

    for value in (COLOR, lazy):
        made = Image(data=value).to_row()
        assert (made["encoding"], made["height"], made["width"]) == (".png", H, W)
        assert np.array_equal(decode(made["data"]), COLOR)
    assert len(calls) == 1
    jpeg = Image(data=encode(COLOR, ".jpg")).to_row()
    assert (jpeg["encoding"], jpeg["height"], jpeg["width"], jpeg["path"]) == (".jpg", H, W, None)
    broken = Image(data=b"\xff\xd8\xff nothing more").to_row()  # told when somebody needs the pixels
    assert (broken["encoding"], broken["height"]) == (".jpg", None)
    cloud = PointCloud("a.pcd", ["1.png"])
    assert media.Media.from_row({**dict.fromkeys(("data", "height")), **cloud.to_row()}) == cloud


@pytest.mark.parametrize(
    ("data", "ext"),
    [(encode(COLOR, e), e) for e in (".jpg", ".png", ".bmp", ".tif", ".webp", ".ppm", ".hdr")]
    + [(b"?", ".bin")],
)
def test_encodings_by_their_first_bytes(data: bytes, ext: str) -> None:
    assert guess_encoding(data) == ext
