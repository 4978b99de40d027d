"""Storage: local folders and URLs alike; nothing leaves its folder; nothing is half written or replaced by mistake."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from rayds import copying
from rayds.errors import DataError, OutputExistsError, StorageError
from rayds.storage import Storage, check_output, is_url, read_url, safe_output, safe_relative

# paths from untrusted data


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a.jpg", "a.jpg"),
        ("././a.jpg", "a.jpg"),
        ("a/../b.jpg", "b.jpg"),
        ("a//b.jpg", "a/b.jpg"),
        ("a\\b.jpg", "a/b.jpg"),
        (".//etc/passwd", "etc/passwd"),
        ("..a/b", "..a/b"),
        ("a/../..b", "..b"),
        ("a b/\N{SNOWMAN}.jpg", "a b/\N{SNOWMAN}.jpg"),
        ("", ""),
    ],
)
def test_safe_relative(path: str, expected: str) -> None:
    assert safe_relative(path) == expected
    assert not os.path.isabs(os.path.join("x", safe_relative(path)))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "./../x",
        "..\\x",
        "\\x",
        "C:\\x",
        "c:/x",
        "a\0b",
        "//host/x",
        "a/../..",
    ],
)
def test_paths_that_leave_the_folder(path: str) -> None:
    with pytest.raises(DataError, match=r"list\.txt, item 'i'"):
        safe_relative(path, file="list.txt", item="i")


@pytest.mark.parametrize("name", ["/x", "../x", "a/../x", "a\\..\\x"])
def test_names_that_leave_the_output(name: str, storage: Storage) -> None:
    with pytest.raises(DataError, match="leaves its folder"):
        safe_output(name)
    if storage.local:
        with pytest.raises(DataError, match="leaves its folder"):
            storage.write_files("f", {name: b""})
    assert safe_output("a..b/c...d") == "a..b/c...d"


# urls


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("s3://b/x", True),
        ("memory://x", True),
        ("simplecache::s3://b", True),
        ("/a/b", False),
        ("a:b", False),
    ],
)
def test_is_url(path: str, remote: bool) -> None:
    assert is_url(path) is remote
    assert not is_url("file:///a")


@pytest.mark.parametrize(
    ("url", "above", "inside"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a", "s3://bucket/a/b/x"),
        ("s3://bucket", "s3://", "s3://bucket/x"),
        ("memory://", "memory://", "memory://x"),
        ("/a/b", "/a", "/a/b/x"),
        ("/a", "/", "/a/x"),
        ("/", "/", "/x"),
    ],
)
def test_neighbours_of_a_path(url: str, above: str, inside: str) -> None:
    assert Storage(url).parent.url == above
    assert Storage(url).path("x") == Storage(url).sub("x").url == inside


def test_file_urls_are_local(tmp_path: Path) -> None:
    assert Storage(f"file://{tmp_path}") == Storage(tmp_path)
    (tmp_path / "x").write_bytes(b"1")
    assert read_url(f"file://{tmp_path}/x") == b"1"
    Storage(tmp_path).copy_in(f"file://{tmp_path}/x", "y")
    assert (tmp_path / "y").read_bytes() == b"1"


# reading and writing


@pytest.fixture(params=["compiled", "Python"])
def _written_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written by the compiled part, and by Python."""
    if request.param == "Python":
        monkeypatch.setattr(copying, "_files", None)
    elif copying._files is None:
        pytest.skip("rayds was not compiled here")


@pytest.mark.usefixtures("_written_by")
def test_many_files_of_a_folder(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    wanted = {f"{i % 7}/{i}é.txt": bytes([i % 256]) * (i * 31) for i in range(300)} | {
        "big": b"x" * (3 << 20)
    }
    storage.write_files("f", {name: b"old and longer" for name in wanted if name.startswith("3")})
    storage.write_files("f", wanted)
    assert {n: storage.read_bytes(f"f/{n}") for n in wanted} == wanted
    storage.write_files("f", [("array", np.arange(4)), ("view", memoryview(b"0123")[1:3])])
    assert storage.read_bytes("f/array") == np.arange(4).tobytes()
    assert storage.read_bytes("f/view") == b"12"
    assert os.stat(tmp_path / "f/view").st_mode & 0o777 == 0o644 & ~_umask()


def _umask() -> int:
    os.umask(now := os.umask(0))
    return now


@pytest.mark.usefixtures("_written_by")
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    (tmp_path / "f/folder").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"f/folder: Is a directory"):
        storage.write_files("f", [("before", b"1"), ("folder", b"2"), ("after", b"3")])
    assert sorted(os.listdir(tmp_path / "f")) == ["before", "folder"]
    with pytest.raises(StorageError, match=r"/f/before: File exists"):
        storage.write_files("f", [("before/x", b"1")])
    if Path("/dev/full").exists():
        (tmp_path / "f/full").symlink_to("/dev/full")
        with pytest.raises(StorageError, match=r"f/full: No space left on device"):
            storage.write_files("f", [("full", b"1")])
    with pytest.raises(TypeError):
        storage.write_files("f", [("text", "no bytes")])
    with pytest.raises(ValueError, match="null"):
        storage.write_files("f", [("a\0b", b"")])


def test_write_and_read(storage: Storage) -> None:
    storage.write_bytes("a/b/c.bin", b"0123456789")
    storage.write_text("t.txt", "ü\N{SNOWMAN}")
    storage.write_files("f", [("x", b"1"), ("sub/y", memoryview(b"22")), ("empty", b"")])
    assert storage.read_bytes("a/b/c.bin") == b"0123456789"
    assert storage.head("a/b/c.bin", 3) == b"012"
    assert storage.read_range("a/b/c.bin", 3, 6) == b"345"
    assert storage.read_text("t.txt") == "ü\N{SNOWMAN}"
    assert (storage.size("a/b/c.bin"), storage.size("f/empty")) == (10, 0)
    assert storage.read_many(["f/x", "f/none", "f/sub/y"], missing_ok=True) == [b"1", None, b"22"]
    assert read_url(storage.path("a/b/c.bin")) == b"0123456789"
    assert storage.entries() == (["a", "f"], ["t.txt"])
    assert storage.entries("f") == (["sub"], ["empty", "x"])
    assert storage.entries("nothing") == ([], [])
    assert (storage.exists("t.txt"), storage.is_file("a"), storage.is_dir("a"), storage.exists("no")) == (
        True,
        False,
        True,
        False,
    )
    assert pickle.loads(pickle.dumps(storage)).read_bytes("f/x") == b"1"
    storage.remove("f")
    storage.remove("t.txt")
    storage.remove("never there")
    assert storage.entries() == (["a"], [])


def test_a_missing_file_is_a_missing_file(storage: Storage) -> None:
    storage.write_bytes("x", b"")
    for read in (storage.read_bytes, storage.read_text, storage.head):
        with pytest.raises(FileNotFoundError):
            read("no/such")
    with pytest.raises(FileNotFoundError):
        storage.read_many(["x", "no"])
    with pytest.raises(FileNotFoundError):
        storage.copy_in(storage.path("no"), "y")


def test_text_that_is_not_utf8_names_the_byte(storage: Storage) -> None:
    storage.write_bytes("x.txt", b"abc\xff")
    with pytest.raises(DataError, match=r"x\.txt, byte 3: not UTF-8.*Save"):
        storage.read_text("x.txt")
    storage.write_bytes("bom.txt", b"\xef\xbb\xbfabc")
    assert storage.read_text("bom.txt") == "abc"


def test_concatenate(storage: Storage) -> None:
    storage.write_bytes("parts/1", b"b" * 100_000)
    storage.write_bytes("parts/2", b"")
    storage.write_bytes("parts/3", b"d")
    storage.concatenate([b"a", "parts/1", "parts/2", b"", b"c", "parts/3"], "whole/x.json")
    assert storage.read_bytes("whole/x.json") == b"a" + b"b" * 100_000 + b"cd"
    storage.concatenate([], "whole/none")
    assert storage.read_bytes("whole/none") == b""


def test_concatenate_uses_up_local_parts(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("parts/1", b"b")
    storage.write_bytes("parts/2", b"c")
    storage.concatenate([b"a", "parts/1", "parts/2"], "x", used_up=True)
    assert storage.read_bytes("x") == b"abc"
    assert storage.entries("parts") == ([], [])


@pytest.mark.parametrize("after", [0, 1])
def test_concatenate_where_the_kernel_copies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    calls = []

    def copy(source: int, out: int, count: int) -> int:
        calls.append(count)
        if len(calls) > after:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return os.write(out, os.read(source, 3))

    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    storage = Storage(tmp_path)
    storage.write_bytes("1", b"bcdef")
    storage.concatenate([b"a", "1", b"g"], "x")
    assert storage.read_bytes("x") == b"abcdefg"
    assert len(calls) == after + 1


def test_concatenate_tells_of_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*args: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    storage = Storage(tmp_path)
    storage.write_bytes("1", b"b")
    with pytest.raises(StorageError, match="x: No space left"):
        storage.concatenate(["1"], "x")


def test_a_missing_part_is_not_an_error_of_the_output(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError, match="part-1"):
        storage.concatenate([b"a", "part-1"], "out.json")


def test_copy_in(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"123")
    storage.copy_in(str(tmp_path / "source"), "deep/er/copy")
    storage.copy_in(storage.path("deep/er/copy"), "again")
    assert storage.read_bytes("again") == b"123"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("x", b"old")
    with pytest.raises(TypeError):
        storage.write_bytes("x", object())
    assert storage.read_bytes("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_long_names(tmp_path: Path) -> None:
    Storage(tmp_path).write_bytes("n" * 255, b"1")
    assert os.listdir(tmp_path) == ["n" * 255]


def test_system_errors_name_the_path(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("file", b"")
    for attempt in (
        lambda: storage.write_bytes("file/x", b""),
        lambda: storage.copy_in(storage.path("file"), "file/x"),
        lambda: storage.read_bytes(""),
        lambda: read_url(str(tmp_path)),
    ):
        with pytest.raises(StorageError, match=str(tmp_path)):
            attempt()


# publishing


def test_publish_replaces_the_whole_folder(storage: Storage) -> None:
    storage.write_bytes("old/x", b"1")
    staging = Storage(storage.url + ".staging")
    staging.write_bytes("new/y", b"2")
    storage.publish(staging)
    assert storage.entries() == (["new"], [])
    assert storage.read_bytes("new/y") == b"2"
    assert not staging.exists()
    assert storage.parent.entries()[0] == ["data"]


def test_publish_to_a_new_place(storage: Storage) -> None:
    staging = Storage(storage.url + ".staging")
    staging.write_bytes("y", b"2")
    storage.publish(staging)
    assert storage.read_bytes("y") == b"2"


def test_publish_of_a_folder_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files are copied (on object stores, and into a folder that can't be renamed)."""
    monkeypatch.chdir(tmp_path)
    for out in (Storage(f"memory://{tmp_path.name}/out"), Storage(".")):
        staging = Storage(tmp_path.parent / f"{tmp_path.name}.staging" if out.local else out.url + ".staging")
        staging.write_bytes("sub/y", b"2")
        out.write_bytes("old", b"1")
        out.publish(staging, keep=True)
        assert (staging.read_bytes("sub/y"), out.read_bytes("sub/y"), out.exists("old")) == (
            b"2",
            b"2",
            False,
        )


def test_publish_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    staging = Storage(tmp_path / "staging")
    staging.write_bytes("sub/y", b"2")
    Storage(".").publish(staging)
    assert Path("sub/y").read_bytes() == b"2"  # the shell's folder is still this one
    assert not staging.exists()


def test_publish_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk2").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk2", target_is_directory=True)
    staging = Storage(tmp_path / "staging")
    staging.write_bytes("y", b"2")
    Storage(tmp_path / "out").publish(staging)
    assert (tmp_path / "disk2/y").read_bytes() == b"2"
    assert (tmp_path / "out").is_symlink()


def test_outputs_that_must_not_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "x").write_bytes(b"")
    out = Storage(data)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_output(out, [], overwrite=False)
    check_output(out, [], overwrite=True)
    check_output(Storage(tmp_path / "new"), [str(data)], overwrite=False)
    check_output(Storage(data / "sub"), [str(data)], overwrite=False)  # an empty folder in the input
    (data / "sub/y").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="is inside the input .*; remove it first"):
        check_output(Storage(data / "sub"), [str(data)], overwrite=True)
    check_output(Storage(data / "sub"), [str(tmp_path / "dat")], overwrite=True)  # only the name begins alike
    for source in (str(data), str(data / "sub"), str(data / "sub" / "..")):
        with pytest.raises(OutputExistsError, match="can't be replaced"):
            check_output(out, [source], overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(data, target_is_directory=True)
    with pytest.raises(OutputExistsError, match="can't be replaced"):
        check_output(Storage(link), [str(data)], overwrite=True)
    with pytest.raises(OutputExistsError, match="is a file"):
        check_output(Storage(data / "x"), [], overwrite=True)
    monkeypatch.chdir(data / "sub")
    with pytest.raises(OutputExistsError, match="can't be replaced"):
        check_output(out, [], overwrite=True)
    monkeypatch.setenv("HOME", str(data))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExistsError, match="can't be replaced"):
        check_output(out, [], overwrite=True)


def test_an_existing_url_needs_overwrite(tmp_path: Path) -> None:
    out = Storage(f"memory://{tmp_path.name}/out")
    check_output(out, [], overwrite=False)
    out.write_bytes("x", b"")
    with pytest.raises(OutputExistsError):
        check_output(out, [], overwrite=False)
    with pytest.raises(OutputExistsError):
        check_output(out, [out.url], overwrite=True)
    check_output(out, [out.url + "2"], overwrite=True)
