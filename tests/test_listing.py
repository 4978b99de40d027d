"""Listing: what is under a path, local folders and URLs alike, each folder asked for once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayds.listing import Listing
from rayds.storage import Storage


@pytest.fixture
def tree(storage: Storage) -> Storage:
    for name in ("a.txt", "b.TXT", "s/a.txt", "s/t/a.txt", "s/t/c.xml", ".h/a.txt", "u/t/a.txt"):
        storage.write_bytes(name, b"")
    return storage


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("a.txt", ["a.txt"]),
        ("[ab].*", ["a.txt", "b.TXT"]),
        ("*/*.txt", [".h/a.txt", "s/a.txt"]),
        ("s/t/?.xml", ["s/t/c.xml"]),
        ("*/t/*.txt", ["s/t/a.txt", "u/t/a.txt"]),
        ("**/*.txt", ["a.txt", "s/a.txt", "s/t/a.txt", "u/t/a.txt"]),
        ("**/t/*.txt", ["s/t/a.txt", "u/t/a.txt"]),
        ("s/**/a.txt", ["s/a.txt", "s/t/a.txt"]),
        ("s/**", ["s/a.txt", "s/t/a.txt", "s/t/c.xml"]),
        ("**/**/c.xml", ["s/t/c.xml"]),
        ("no/*", []),
        ("a.txt/*", []),
    ],
)
def test_glob(tree: Storage, pattern: str, expected: list[str]) -> None:
    assert Listing(tree.url).glob(pattern) == expected


def test_walk_and_exists(tree: Storage) -> None:
    files = Listing(tree.url)
    assert list(files.walk()) == ["a.txt", "b.TXT", "s/a.txt", "s/t/a.txt", "s/t/c.xml", "u/t/a.txt"]
    assert list(files.walk("s/t")) == ["s/t/a.txt", "s/t/c.xml"]
    assert files.exists("s/t/c.xml")
    assert not files.exists("s/t")
    assert not files.exists("s/no/c.xml")


def test_listing_of_a_file(tree: Storage) -> None:
    files = Listing(tree.path("s/t/c.xml"))
    assert (files.root.url, files.file) == (tree.path("s/t"), "c.xml")
    above = files.up(2)
    assert (above.root.url, above.file) == (tree.url, "s/t/c.xml")
    assert above.files() == ["a.txt", "b.TXT"]


def test_a_folder_is_listed_once(tree: Storage) -> None:
    files = Listing(tree.url)
    assert files.files("u/t") == ["a.txt"]
    tree.write_bytes("u/t/later.txt", b"")
    assert files.glob("u/t/*") == ["u/t/a.txt"]


def test_listing_of_nothing(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Listing(storage.path("nowhere"))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_bytes(b"")
    (tmp_path / "a/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "b").symlink_to(
        tmp_path / "a", target_is_directory=True
    )  # a link that is no circle is followed
    assert list(Listing(tmp_path).walk()) == ["a/x", "b/x"]
    assert Listing(tmp_path).glob("**/x") == ["a/x", "b/x"]
