"""Projects on S3, by a real server: their file, copies of sources, what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import rayds as dm
from rayds.cli.main import cli
from rayds.errors import UsageError
from rayds.project import Project
from rayds.storage import Storage

pytestmark = pytest.mark.slow


@pytest.fixture
def days(tmp_path: Path, s3: Storage) -> list[str]:
    """Two COCO datasets of two items each on S3, with images."""
    from PIL import Image

    urls = []
    for day, labels in enumerate((["cat", "dog"], ["dog", "owl"])):
        items = []
        for n in (0, 1):
            path = tmp_path / f"{day}{n}.png"
            Image.new("RGB", (30, 20), (50 * n, 80, 90)).save(path)
            box = dm.Bbox(1, 2, 3 + n, 4, label=n)
            items.append(dm.DatasetItem(f"{day}{n}", [box], subset="train", media=dm.Image(path=str(path))))
        url = s3.path(f"day{day}")
        dm.Dataset.from_iterable(items, labels, engine="local").export(url, "coco", save_media=True)
        urls.append(url)
    return urls


def run(*words: str) -> str:
    done = CliRunner().invoke(cli, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def ids(path: str, format: str) -> list[str]:
    return sorted(i.id for i in dm.Dataset.import_from(path, format, engine="local"))


def test_all_that_is_done_to_a_project(days: list[str], s3: Storage, tmp_path: Path) -> None:
    zoo, cats, small = (s3.path(n) for n in ("zoo", "cats", "small"))
    run("create", "-o", zoo)
    run("add", "-p", zoo, "-f", "coco", "-n", "one", days[0])
    run("import", "-p", zoo, "-f", "coco", "-n", "two", days[1])  # copied into the project
    assert Storage(zoo).exists("two/annotations/instances_train.json")
    assert Storage(zoo).exists("two/images/train/10.png")
    project = Project.load(zoo)
    assert {n: s.copied for n, s in project.sources.items()} == {"one": False, "two": True}
    assert sorted(i.id for i in project.dataset(engine="local")) == ["00", "01", "10", "11"]
    assert project.dataset(engine="local").categories().labels.names() == ["cat", "dog", "owl"]

    run("filter", "-p", zoo, "-e", '/item[annotation/label="dog"]', "-o", cats, "-q")
    assert sorted(i.id for i in Project.load(cats).dataset(engine="local")) == ["01", "10"]
    words = ["--", "--width", "15", "--height", "10"]
    run("transform", "-p", zoo, "-t", "resize", "-o", small, "-f", "voc", "--save-media", "-q", *words)
    sizes = [i.media.size for i in dm.Dataset.import_from(small, "voc", engine="local") if i.media]
    assert sizes == [(10, 15)] * 4
    run("export", "-p", zoo, "-f", "yolo", "-o", s3.path("yolo"), "-q")
    assert ids(s3.path("yolo"), "yolo") == ["00", "01", "10", "11"]
    run("export", "-p", zoo, "-f", "datumaro", "-o", str(tmp_path / "here"), "-q")
    assert ids(str(tmp_path / "here"), "datumaro") == ["00", "01", "10", "11"]
    assert "two" in run("project", "info", "-p", zoo)

    run("remove", "-p", zoo, "two")
    assert not Storage(zoo).find("two")
    run("remove", "-p", zoo, "one")
    assert Storage(days[0]).exists("annotations/instances_train.json")
    assert Project.load(zoo).sources == {}


def test_a_source_that_does_not_read_is_refused(days: list[str], s3: Storage) -> None:
    Storage(days[0]).write_bytes("annotations/instances_train.json", b'{"images": [')
    zoo = s3.path("zoo")
    run("create", "-o", zoo)
    done = CliRunner().invoke(cli, ["import", "-p", zoo, "-f", "coco", days[0]])
    assert done.exit_code != 0
    assert "instances_train.json" in str(done.output) + str(done.exception)
    assert sorted(Storage(zoo).find()) == [".rayds/project.yaml"]
    assert Project.load(zoo).sources == {}


def test_two_that_change_one_project(days: list[str], s3: Storage) -> None:
    zoo = s3.path("zoo")
    Project.create(zoo)
    one, other = Project.load(zoo), Project.load(zoo)
    one.add(days[0], "coco", "one")
    with pytest.raises(UsageError, match="meanwhile"):
        other.add(days[1], "coco", "two")
    assert list(Project.load(zoo).sources) == ["one"]
