"""S3 by a real server: objects, listings, large objects, publishing, and what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import rayds.s3 as s3_module
from rayds.connect import connect
from rayds.errors import OutputExistsError, StorageError
from rayds.listing import Listing
from rayds.remote import MARKER
from rayds.storage import Storage, check_output, read_url

MB = 1 << 20


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that are made, by name."""
    made: list[str] = []
    call = s3_module.S3._call_s3

    async def counted(self: Any, method: str, *words: Any, **kwargs: Any) -> Any:
        made.append(method)
        return await call(self, method, *words, **kwargs)

    monkeypatch.setattr(s3_module.S3, "_call_s3", counted)
    return made


def test_write_and_read(s3: Storage) -> None:
    assert (s3.exists(), s3.is_empty(), s3.entries()) == (False, True, ([], []))
    s3.write_bytes("a/b c+ü%41.bin", b"0123456789")
    s3.write_text("t.txt", "ü")
    s3.write_files("f", [("x", b"1"), ("sub/y", memoryview(b"22")), ("empty", b"")])
    assert s3.read_bytes("a/b c+ü%41.bin") == b"0123456789"
    assert s3.head("a/b c+ü%41.bin", 3) == b"012"
    assert (s3.head("t.txt", 100), s3.head("f/empty")) == ("ü".encode(), b"")
    assert [s3.read_range("a/b c+ü%41.bin", *r) for r in ((3, 6), (8, 20), (10, 12), (5, 5))] == [
        b"345",
        b"89",
        b"",
        b"",
    ]
    assert (s3.size("a/b c+ü%41.bin"), s3.size("f/empty")) == (10, 0)
    assert s3.read_many(["f/x", "f/none", "f/sub/y"], missing_ok=True) == [b"1", None, b"22"]
    assert list(s3.read_ahead(["f/x", None, "f/none", "f/sub/y"])) == [b"1", None, None, b"22"]
    assert read_url(s3.path("f/x")) == b"1"
    assert s3.entries() == (["a", "f"], ["t.txt"])
    assert s3.entries("f") == (["sub"], ["empty", "x"])
    assert s3.find("f") == {"empty": 0, "sub/y": 2, "x": 1}
    assert (s3.exists("t.txt"), s3.is_file("a"), s3.is_dir("a"), s3.exists("no"), s3.exists()) == (
        True, False, True, False, True,
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(s3)).read_bytes("f/x") == b"1"
    with s3.open("a/b c+ü%41.bin") as f:
        assert (f.read(2), f.seek(-3, os.SEEK_END), f.read()) == (b"01", 7, b"789")
    s3.remove("f")
    s3.remove("t.txt")
    s3.remove("never there")
    assert list(s3.find()) == ["a/b c+ü%41.bin"]
    for read in (s3.read_bytes, s3.read_text, s3.head, s3.size):
        with pytest.raises(FileNotFoundError, match="s3://.*no/such"):
            read("no/such")


def test_another_process_changes_what_is_there(s3: Storage) -> None:
    """No listing is remembered: what was listed, or missed, before is seen at once."""
    assert not s3.exists("d/x")
    s3.write_bytes("d/y", b"1")
    assert s3.entries("d") == ([], ["y"])
    other = multiprocessing.get_context("spawn").Process(target=_write, args=(s3, "d/x", b"22"))
    other.start()
    other.join(60)
    assert other.exitcode == 0
    assert (s3.exists("d/x"), s3.size("d/x"), s3.entries("d")) == (True, 2, ([], ["x", "y"]))


def _write(storage: Storage, name: str, data: bytes) -> None:
    storage.write_bytes(name, data)


def test_after_a_fork(s3: Storage) -> None:
    """A forked process has connections of its own, though its parent used S3 from threads."""
    s3.write_files("f", [(str(i), b"1") for i in range(40)])
    pid = os.fork()
    if pid == 0:
        try:
            s3.write_bytes("child", s3.read_bytes("f/1") + b"2")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert s3.read_bytes("child") == b"12"


def test_one_client_for_all_threads(s3: Storage) -> None:
    s3.write_bytes("x", b"1")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: s3.read_bytes("x"), range(64))) == [b"1"] * 64
        clients = set(pool.map(lambda _: id(connect(s3.url)[0].fs), range(64)))
    assert len(clients) == 1


def test_small_requests(s3: Storage, calls: list[str]) -> None:
    """A small file is one request; a header is a part of the file; a copy within S3 is made by the server."""
    s3.write_bytes("x", b"0" * 100_000)
    assert calls == ["put_object"]
    calls.clear()
    s3.read_bytes("x")
    s3.read_many(["x", "x"])
    assert len(s3.head("x", 1000)) == 1000
    assert calls == ["get_object"] * 4
    calls.clear()
    s3.copy_in(s3.path("x"), "y")
    assert "get_object" not in calls
    assert s3.size("y") == 100_000


# listings


@pytest.fixture(scope="module")
def many(s3_server: Any) -> Storage:
    """2,520 small objects: 20 folders of 125, and 20 others."""
    storage = Storage("s3://rayds-test/many")
    storage.write_files("", [(f"{i % 20:02}/{i:05}.txt", b"%d" % i) for i in range(2500)])
    storage.write_files("", [(f"other/{i}", b"") for i in range(20)])
    return storage


def test_thousands_of_objects(many: Storage, calls: list[str]) -> None:
    files = Listing(many.url)
    found = list(files.walk())
    assert found == sorted(
        [f"{i % 20:02}/{i:05}.txt" for i in range(2500)] + [f"other/{i}" for i in range(20)]
    )
    assert len(files.glob("**/*.txt")) == 2500
    assert len(files.files("07")) == 125
    assert len(calls) < 40  # and not one for each folder and again for each pattern
    calls.clear()
    assert next(Listing(many.url).walk()) == "00/00000.txt"
    assert len(calls) <= 3  # who wants the first only does not wait for all
    calls.clear()
    assert sum(many.find().values()) == sum(len(str(i)) for i in range(2500))
    assert len(many.read_many([f"{i % 20:02}/{i:05}.txt" for i in range(0, 2500, 10)])) == 250


def test_a_large_folder_is_paged(many: Storage, calls: list[str]) -> None:
    flat = Storage("s3://rayds-test/flat")
    connect(flat.url)[0].copy_tree("rayds-test/many", "rayds-test/flat", {})  # nothing to copy is no error
    flat.write_files("", [(f"{i:05}", b"") for i in range(1100)])
    calls.clear()
    assert len(flat.entries()[1]) == len(flat.find()) == 1100
    assert calls == ["list_objects_v2"] * len(calls)
    assert len(calls) >= 4
    flat.remove()
    assert flat.find() == {}


# large objects


def blob(n: int, seed: int) -> bytes:
    return (seed.to_bytes(4, "little") * (n // 4 + 1))[:n]


def test_concatenation_copies_on_the_server(s3: Storage, calls: list[str]) -> None:
    sizes = {"p/0": 12 * MB, "p/1": 5 * MB, "p/2": 1000, "p/3": 3 * MB, "p/4": 11 * MB, "p/5": 0, "p/6": 7}
    for i, (name, size) in enumerate(sizes.items()):
        s3.write_bytes(name, blob(size, i))
    calls.clear()
    parts = [b"[", "p/0", b",", "p/1", "p/2", "p/3", "p/4", "p/5", b"", "p/6", b"]"]
    s3.concatenate(parts, "whole.json")
    assert calls.count("upload_part_copy") >= 2
    wanted = b"".join(p if isinstance(p, bytes) else blob(sizes[p], int(p[-1])) for p in parts)
    assert s3.read_bytes("whole.json") == wanted
    s3.concatenate([], "none")
    s3.concatenate([b"a", "p/6"], "small")
    assert (s3.read_bytes("none"), s3.read_bytes("small")) == (b"", b"a" + blob(7, 6))
    with pytest.raises(FileNotFoundError, match="missing"):
        s3.concatenate(["p/0", "missing"], "out")
    assert not s3.exists("out")


def test_concatenation_where_the_server_copies_no_parts(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    call = s3_module.S3._call_s3

    async def without(self: Any, method: str, *words: Any, **kwargs: Any) -> Any:
        if method == "upload_part_copy":
            s3_module._raise(
                ClientError({"Error": {"Code": "NotImplemented", "Message": "no"}}, method), "s3://x"
            )
        return await call(self, method, *words, **kwargs)

    monkeypatch.setattr(s3_module.S3, "_call_s3", without)
    s3.write_bytes("p", blob(6 * MB, 1))
    s3.concatenate([b"[", "p", "p"], "whole")
    assert s3.read_bytes("whole") == b"[" + 2 * blob(6 * MB, 1)
    assert not _uploads()


def test_a_failed_stream_leaves_nothing(s3: Storage) -> None:
    with s3.create("good") as f:
        for i in range(5):
            f.write(blob(9 * MB, i))
    assert s3.size("good") == 45 * MB
    with pytest.raises(KeyError), s3.create("bad") as f:  # noqa: PT012 (it is the body that fails)
        for i in range(5):
            f.write(blob(9 * MB, i))
        raise KeyError
    assert not s3.exists("bad")
    assert not _uploads()


def _uploads() -> list[Any]:
    return connect("s3://rayds-test")[0].call("list_multipart_uploads", "rayds-test").get("Uploads") or []


# publishing


def test_publish(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "MAX_SIMPLE_COPY", 5 * MB)
    staging = Storage(s3.url + ".staging")
    s3.write_files("", [("same", b"old"), ("old/x", b"1"), ("old/y", b"1")])
    staging.write_files("", [("same", b"new"), ("new/z", b"2")])
    staging.write_bytes("large", blob(12 * MB, 1))
    s3.publish(staging)
    assert s3.find() == {"same": 3, "new/z": 1, "large": 12 * MB}
    assert (s3.read_bytes("same"), s3.read_bytes("large")) == (b"new", blob(12 * MB, 1))
    assert not staging.exists()


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying ends with an error after the first file."""
    copy = s3_module.S3Remote.copy
    lock, done = threading.Lock(), list[str]()

    def broken(self: Any, source: str, target: str, size: int | None = None) -> None:
        with lock:
            done.append(target)
            if len(done) > 1:
                raise StorageError("the line is cut")
        copy(self, source, target, size)

    monkeypatch.setattr(s3_module.S3Remote, "copy", broken)


def test_publishing_that_breaks_leaves_nothing(s3: Storage, breaks: None) -> None:
    staging = Storage(s3.url + ".staging")
    staging.write_files("", [(str(i), b"") for i in range(9)])
    with pytest.raises(StorageError, match="the line is cut") as told:
        s3.publish(staging)
    assert not getattr(told.value, "keeps_staging", False)
    assert s3.find() == {}


def test_replacing_that_breaks_is_seen_and_can_be_repeated(
    s3: Storage, breaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new output is whole in the staging folder; readers are told; writing again repairs it."""
    staging = Storage(s3.url + ".staging")
    s3.write_files("", [("a.jpg", b"old"), ("b.jpg", b"old")])
    staging.write_files("", [(f"{c}.jpg", b"new") for c in "abc"])
    with pytest.raises(StorageError, match=r"complete in s3://.*\.staging.*--overwrite") as told:
        s3.publish(staging)
    assert told.value.keeps_staging  # type: ignore[attr-defined]
    assert len(staging.find()) == 3
    assert MARKER in s3.find()
    with pytest.raises(StorageError, match=r"being put in place.*--overwrite"):
        Listing(s3.url)
    with pytest.raises(OutputExistsError):
        check_output(s3, [], overwrite=False)
    check_output(s3, [], overwrite=True)
    monkeypatch.undo()
    s3.publish(staging)
    assert s3.find() == {"a.jpg": 3, "b.jpg": 3, "c.jpg": 3}
    assert Listing(s3.url).files() == ["a.jpg", "b.jpg", "c.jpg"]


# what goes wrong


@pytest.fixture
def variables(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The usual variables name server and credentials, and no file does."""
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SKTESTSECRET")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return monkeypatch


def test_the_usual_variables(s3: Storage, variables: pytest.MonkeyPatch) -> None:
    s3.write_bytes("x", b"1")
    assert s3.read_bytes("x") == b"1"
    variables.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL_S3"])
    variables.delenv("AWS_ENDPOINT_URL_S3")
    assert s3.read_bytes("x") == b"1"


def test_wrong_credentials_are_told_at_once(s3: Storage, variables: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    variables.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for attempt in (s3.entries, s3.is_empty, lambda: s3.read_bytes("x"), lambda: s3.write_bytes("x", b"")):
        with pytest.raises(StorageError, match=r"^s3://rayds-test/.*AWS_SECRET_ACCESS_KEY"):
            attempt()
    with pytest.raises(StorageError, match=r"403.*credentials"):
        s3.size("x")
    variables.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        s3.entries()
    variables.delenv("AWS_ACCESS_KEY_ID")
    variables.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="Set AWS_ACCESS_KEY_ID"):
        s3.entries()
    assert time.monotonic() - start < 5


def test_a_missing_bucket(s3_server: Any) -> None:
    missing = Storage("s3://rayds-missing/x")
    for attempt in (
        missing.entries,
        missing.is_empty,
        lambda: Listing(missing.url),
        lambda: check_output(missing, [], False),
    ):
        with pytest.raises(StorageError, match=r"s3://rayds-missing.*no such bucket"):
            attempt()
    assert not any(b == "rayds-missing" for b in connect("s3://")[0].entries("")[0])


def test_nothing_answers(s3: Storage, variables: pytest.MonkeyPatch) -> None:
    """Refused connections are tried again, as often as asked for; the message names URL and remedy."""
    variables.setattr("rayds.remote.FIRST_WAIT", 0.1)
    variables.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    variables.setenv("RAYDS_STORAGE_RETRIES", "0")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://rayds-test.*AWS_ENDPOINT_URL"):
        s3.read_bytes("x")
    at_once = time.monotonic() - start
    variables.setenv("RAYDS_STORAGE_RETRIES", "3")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://rayds-test.*AWS_ENDPOINT_URL"):
        s3.read_bytes("x")
    waited = time.monotonic() - start
    assert (
        0.1 * 7 / 2 < waited < 0.1 * 7 + at_once + 3
    )  # three waits, and not three of each of three libraries


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "503"])
def test_a_busy_server_is_asked_again(s3: Storage, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    from botocore.exceptions import ClientError

    monkeypatch.setattr("rayds.remote.FIRST_WAIT", 0.1)
    s3.write_bytes("x", b"1")
    connect(s3.url)[0].fs.connect()
    client = connect(s3.url)[0].fs._s3
    real, tries = client.get_object, list[float]()

    async def busy(**kwargs: Any) -> Any:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise ClientError({"Error": {"Code": code, "Message": "later"}}, "GetObject")
        return await real(**kwargs)

    busy.__name__ = "get_object"
    monkeypatch.setattr(client, "get_object", busy)
    assert s3.read_bytes("x") == b"1"
    waits = [b - a for a, b in pairwise(tries)]
    assert len(waits) == 3
    assert waits[0] < waits[1] < waits[2] * 1.2
    monkeypatch.setenv("RAYDS_STORAGE_RETRIES", "2")
    tries.clear()
    with pytest.raises(StorageError, match=f"s3://.*/x: later.*({code}|HTTP).*run again"):
        s3.read_bytes("x")
    assert len(tries) == 3


def test_output_to_the_bucket_that_holds_the_input(s3: Storage, tmp_path: Path) -> None:
    s3.write_bytes("data.zip", b"x")
    with pytest.raises(OutputExistsError, match="can't be replaced"):
        check_output(s3, [f"zip+{s3.url}/data.zip!"], overwrite=True)
    with pytest.raises(OutputExistsError, match="only read"):
        check_output(Storage(f"zip+{s3.url}/data.zip!"), [], overwrite=True)
