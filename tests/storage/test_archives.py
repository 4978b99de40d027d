"""zip and tar archives as datasets, local and remote, without unpacking; hostile ones are refused."""

from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import rayds as dm
import rayds.archives as archives
from rayds.cli.main import cli
from rayds.errors import DataError, StorageError, UsageError
from rayds.listing import Listing
from rayds.media import probe
from rayds.schema import media_field, with_media
from rayds.storage import Storage, read_url
from rayds.urls import normal

FORMATS = ("coco", "voc", "yolo", "yolo_ultralytics", "datumaro", "image_dir", "rayds")
KINDS = ("zip", "stored.zip", "tar", "tar.gz")


def pack(files: dict[str, bytes], kind: str) -> bytes:
    out = io.BytesIO()
    if kind.endswith("zip"):
        method = zipfile.ZIP_STORED if "stored" in kind else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(out, "w", method) as z:
            for name, data in files.items():
                z.writestr(name, data)
    else:
        with tarfile.open(fileobj=out, mode="w:" + kind.partition(".")[2]) as t:
            for name, data in files.items():
                info = tarfile.TarInfo("./" + name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    return out.getvalue()


FILES = {
    "a.txt": b"0123456789",
    "empty": b"",
    "d/\N{SNOWMAN} e/deep.bin": random.Random(1).randbytes(300_000),
    "d/plain.txt": b"lines\n" * 50_000,
}


@pytest.fixture(params=KINDS)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    path = tmp_path / f"data.{request.param}"
    path.write_bytes(pack(FILES, request.param))
    return Listing(path).root


def test_an_archive_is_a_folder(packed: Storage) -> None:
    assert packed.url.startswith(("zip+file:///", "tar+file:///"))
    assert packed.entries() == (["d"], ["a.txt", "empty"])
    assert packed.sub("d").entries() == (["\N{SNOWMAN} e"], ["plain.txt"])
    assert packed.find() == {n: len(d) for n, d in FILES.items()}
    assert {n: packed.read_bytes(n) for n in FILES} == FILES
    assert packed.read_many([*FILES, "no"], missing_ok=True) == [*FILES.values(), None]
    assert (packed.size("a.txt"), packed.exists("d"), packed.is_dir("d"), packed.is_file("d"), packed.exists("x")) == (
        10, True, True, False, False,
    )  # fmt: skip
    for name, data in FILES.items():
        for start, end in (
            (0, 5),
            (3, 7),
            (100, 70_000),
            (len(data) - 2, len(data) + 50),
            (len(data), len(data) + 1),
        ):
            assert packed.read_range(name, max(0, start), end) == data[max(0, start) : end]
        with packed.open(name) as f:
            one = min(1, len(data))
            assert (f.read(7), f.seek(one), f.read(3)) == (data[:7], one, data[1:4])
            f.seek(-min(4, len(data)), os.SEEK_END)
            assert f.read() == data[-4:]
    with pytest.raises(FileNotFoundError, match="nothing"):
        packed.read_bytes("nothing")
    assert packed.parent == packed  # nothing above it
    assert packed.sub("d").parent == packed
    with pytest.raises(StorageError, match="only read"):
        packed.write_bytes("x", b"")


def test_many_threads_and_a_copy_of_the_storage(packed: Storage) -> None:
    copy = pickle.loads(pickle.dumps(packed))
    names = list(FILES) * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.read_bytes, names)) == [FILES[n] for n in names]


def test_ways_to_name_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.zip").write_bytes(pack(FILES, "zip"))
    wanted = f"zip+file://{tmp_path}/data.zip!"
    for name in (
        "data.zip",
        f"{tmp_path}/data.zip",
        "zip://::data.zip",
        "zip://data.zip",
        f"zip://::file://{tmp_path}/data.zip",
    ):
        assert Listing(name).root.url == wanted
    assert Listing(f"zip://d::{tmp_path}/data.zip").root.url == f"{wanted}/d"
    assert read_url(f"zip://a.txt::{tmp_path}/data.zip") == read_url(f"{wanted}/a.txt") == b"0123456789"
    assert normal("tar://x/y::s3://b/k.tar") == "tar+s3://b/k.tar!/x/y"
    with pytest.raises(UsageError, match="!/"):
        normal("zip://::/a!/b.zip")
    with pytest.raises(FileNotFoundError):
        Listing("other.zip")


def test_the_folder_that_was_packed(tmp_path: Path) -> None:
    """`zip -r pets.zip pets` has one folder in it: that is the dataset."""
    (tmp_path / "pets.zip").write_bytes(pack({f"pets/{n}": d for n, d in FILES.items()}, "zip"))
    assert Listing(tmp_path / "pets.zip").files() == ["a.txt", "empty"]


def test_the_command_line(tmp_path: Path) -> None:
    """The output is named after the archive, and beside it."""
    made().export(str(tmp_path / "in"), "coco", save_media=True)
    files = {
        str(p.relative_to(tmp_path / "in")): p.read_bytes()
        for p in (tmp_path / "in").rglob("*")
        if p.is_file()
    }
    (tmp_path / "pets.tar.gz").write_bytes(pack(files, "tar.gz"))
    for words in (
        ["-i", str(tmp_path / "pets.tar.gz")],
        ["-i", f"tar://::{tmp_path}/pets.tar.gz", "--overwrite"],
    ):
        done = CliRunner().invoke(cli, ["convert", *words, "-f", "yolo", "--save-media"])
        assert done.exit_code == 0, done.output
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "pets-yolo", "pets.tar.gz"]
        assert len(dm.Dataset.import_from(str(tmp_path / "pets-yolo"))) == 4
    done = CliRunner().invoke(
        cli, ["convert", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "pets.tar.gz"), "-f", "voc"]
    )
    assert (done.exit_code, "is a file" in done.output) == (1, True)


def test_archives_in_archives_and_elsewhere(tmp_path: Path) -> None:
    inner = pack(FILES, "tar.gz")
    out = Storage(f"memory://{tmp_path.name}")
    out.write_bytes("outer.zip", pack({"x/inner.tar.gz": inner}, "zip"))
    found = Listing(f"zip+{out.url}/outer.zip!/x/inner.tar.gz")
    assert found.root.url == f"tar+zip+{out.url}/outer.zip!/x/inner.tar.gz!"
    assert found.root.read_bytes("a.txt") == b"0123456789"


def test_a_changed_archive_is_seen(tmp_path: Path) -> None:
    out = Storage(f"memory://{tmp_path.name}")
    for storage in (out, Storage(tmp_path)):
        for content in (b"1", b"22", b"333"):
            storage.write_bytes("x.zip", pack({"f": content, content.decode(): b""}, "zip"))
            assert Listing(storage.path("x.zip")).root.read_bytes("f") == content


# every hot format


def made() -> dm.Dataset:
    items = []
    for i in range(4):
        pixels = np.zeros((20 + i, 30, 3), np.uint8)
        pixels[:, :, 1] = np.arange(30) * 5 + i
        items.append(
            dm.DatasetItem(
                f"{i:03}",
                subset=("train", "val")[i % 2],
                image=pixels,
                annotations=[dm.Bbox(1, 2, 10, 8, label=i % 2)],
            )
        )
    return dm.Dataset.from_iterable(items, categories=["cat", "dog"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("formats")
    for format in FORMATS:
        made().export(str(top / format), format, save_media=True)
    return top


def table_of(url: str, **options: Any) -> Any:
    table = dm.Dataset.import_from(url, **options).to_arrow().combine_chunks()
    top = Listing(url).root.url + "/"
    return with_media(table, path=[p and p.removeprefix(top) for p in media_field(table, "path").to_pylist()])


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_hot_format(format: str, kind: str, folders: Path, tmp_path: Path) -> None:
    source = folders / format
    files = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    path = tmp_path / f"data.{kind}"
    path.write_bytes(pack(files, kind))
    assert dm.detect(str(path))[0][0].name == dm.detect(str(source))[0][0].name
    assert table_of(str(path)).equals(table_of(str(source)))
    for a, b in zip(dm.Dataset.import_from(str(path)), dm.Dataset.import_from(str(source)), strict=True):
        assert np.array_equal(a.image.pixels, b.image.pixels)  # type: ignore[union-attr]
    dm.Dataset.import_from(str(path)).export(str(tmp_path / "again"), format, save_media=True)
    again = {
        str(p.relative_to(tmp_path / "again")): p.read_bytes()
        for p in (tmp_path / "again").rglob("*")
        if p.is_file()
    }
    dm.Dataset.import_from(str(source)).export(str(tmp_path / "plain"), format, save_media=True)
    plain = {
        str(p.relative_to(tmp_path / "plain")): p.read_bytes()
        for p in (tmp_path / "plain").rglob("*")
        if p.is_file()
    }
    assert again == plain


@pytest.mark.parametrize("kind", ["zip", pytest.param("tar.gz", marks=pytest.mark.ray)])
def test_an_archive_on_s3(kind: str, folders: Path, s3: Storage, request: pytest.FixtureRequest) -> None:
    """On the local engine, and in Ray's workers."""
    engine = request.getfixturevalue("ray_engine") if kind == "tar.gz" else "local"
    source = folders / "coco"
    files = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    s3.write_bytes(f"data.{kind}", pack(files, kind))
    url = s3.path(f"data.{kind}")
    assert table_of(url, engine=engine).equals(table_of(str(source)))
    dm.Dataset.import_from(url, engine=engine).export(s3.path("out"), "voc", save_media=True)
    assert len(s3.find("out")) > 8
    dm.Dataset.import_from(str(source)).export(s3.path("out2"), "voc", save_media=True)
    assert {n: s3.read_bytes(f"out/{n}") for n in s3.find("out")} == {
        n: s3.read_bytes(f"out2/{n}") for n in s3.find("out2")
    }


def test_a_zip_is_read_by_ranges(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image of a large zip costs its own bytes, and its header a part of them."""
    images = {f"{i}.png": random.Random(i).randbytes(200_000) for i in range(40)}
    png = dm.media.encode(np.zeros((11, 13, 3), np.uint8), ".png") if hasattr(dm, "media") else None
    from rayds.media import encode

    images["x.png"] = png or encode(np.zeros((11, 13, 3), np.uint8), ".png") + bytes(1_000_000)
    s3.write_bytes("data.zip", pack(images, "stored.zip"))
    root = Listing(s3.path("data.zip")).root
    read = list[int]()
    real = archives._RemoteSource.read_range

    def counted(self: Any, start: int, end: int) -> bytes:
        data = real(self, start, end)
        read.append(len(data))
        return data

    monkeypatch.setattr(archives._RemoteSource, "read_range", counted)
    assert root.read_bytes("7.png") == images["7.png"]
    assert (len(read), sum(read) < 210_000) == (1, True)
    read.clear()
    assert probe(root.path("x.png")) == (11, 13)
    assert sum(read) < 100_000


# untrusted archives


def _tar(*infos: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for info in infos:
            t.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def _member(name: str, type: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = type, link, size
    return info


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:/x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_escape(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_bytes(pack({name: b""}, "zip") if kind == "zip" else _tar(_member(name)))
    with pytest.raises(DataError, match=rf"bad\.{kind}.*(leaves|not relative)"):
        Listing(path)


def test_links_lead_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret").write_text("secret")
    path = tmp_path / "x.tar"
    path.write_bytes(
        _tar(
            _member("d/a", size=3), _member("d/hard", tarfile.LNKTYPE, "d/a"), _member("d/soft", tarfile.SYMTYPE, "a"),
            _member("out", tarfile.SYMTYPE, "../secret"), _member("abs", tarfile.SYMTYPE, str(tmp_path / "secret")),
            _member("round", tarfile.SYMTYPE, "round"), _member("device", tarfile.CHRTYPE), _member("up", tarfile.LNKTYPE, "../secret"),
        )
    )  # fmt: skip
    root = Listing(path).root
    assert sorted(root.find()) == ["d/a", "d/hard", "d/soft"]
    assert root.read_bytes("d/hard") == root.read_bytes("d/soft") == bytes(3)
    assert "left out" in caplog.text
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        z.writestr(info, str(tmp_path / "secret"))
        z.writestr("a", b"")
    assert list(Listing(tmp_path / "x.zip").root.find()) == ["a"]


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "EXPANSION_FREE", 1 << 20)
    for kind in ("zip", "tar.gz"):
        path = tmp_path / f"bomb.{kind}"
        path.write_bytes(pack({"zeros": bytes(20 << 20)}, kind))
        with pytest.raises(DataError, match=rf"bomb\.{kind}.*times its size.*RAYDS_MAX_EXPANSION"):
            Listing(path)
    monkeypatch.setenv("RAYDS_MAX_EXPANSION", "5000")
    assert Listing(tmp_path / "bomb.zip").root.size("zeros") == 20 << 20


def test_members_that_overlap(tmp_path: Path) -> None:
    """Many names for the same compressed bytes: small in the file, huge when read."""
    data = pack({"a": random.Random(1).randbytes(5000), "b": b""}, "stored.zip")
    end = data.rindex(b"PK\5\6")
    directory = data.index(b"PK\1\2")
    entry = data[directory : data.index(b"PK\1\2", directory + 4)]
    entries = b"".join(entry[:46] + bytes([97 + i]) + entry[47:] for i in range(20))
    tail = (
        data[end : end + 8]
        + (20).to_bytes(2, "little") * 2
        + len(entries).to_bytes(4, "little")
        + data[end + 16 :]
    )
    (tmp_path / "x.zip").write_bytes(data[:directory] + entries + tail)
    with pytest.raises(DataError, match=r"x\.zip.*overlap"):
        Listing(tmp_path / "x.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives(kind: str, tmp_path: Path) -> None:
    data = pack(FILES, kind)
    path = tmp_path / f"x.{kind}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"x\..*damaged"):
        Listing(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"x\..*damaged"):
        Listing(path)


def test_a_damaged_file_in_an_archive_is_a_bad_item(tmp_path: Path) -> None:
    data = bytearray(pack(FILES, "zip"))
    at = data.index(b"deep.bin") + 1000
    data[at : at + 50] = bytes(50)
    (tmp_path / "x.zip").write_bytes(data)
    root = Listing(tmp_path / "x.zip").root
    with pytest.raises(DataError, match=r"deep\.bin.*damaged"):
        root.read_bytes("d/\N{SNOWMAN} e/deep.bin")
    with pytest.raises(DataError, match=r"deep\.bin.*damaged"), root.open("d/\N{SNOWMAN} e/deep.bin") as f:
        f.read()
    assert root.read_bytes("a.txt") == b"0123456789"


def test_an_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(pack({"a": b"123"}, "zip"))
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        Listing(tmp_path / "x.zip")
