"""Projects: what is written, what is refused, nothing half; on the disk and by URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import rayds as dm
from rayds import plugins, registry
from rayds.errors import DataError, FormatError, RaydsError, UnknownNameError, UsageError
from rayds.project import FILE, Project
from rayds.storage import Storage


@pytest.fixture
def source(storage: Storage) -> str:
    items = [dm.DatasetItem(f"{i}", [dm.Bbox(0, 0, i + 1, 2, label=i % 2)], subset="s") for i in range(6)]
    path = storage.path("data")
    dm.Dataset.from_iterable(items, ["cat", "dog"], engine="local").export(path, "datumaro")
    return path


@pytest.fixture
def project(storage: Storage) -> Project:
    return Project.create(storage.path("my project"))


def told(project: Project) -> Any:
    return yaml.safe_load(project.folder.read_text(FILE))


def test_a_new_project_is_a_small_file(project: Project) -> None:
    assert told(project) == {"version": 1, "name": "my project", "sources": {}, "models": {}}
    with pytest.raises(UsageError, match="a project already"):
        Project.create(project.folder.url)
    assert Project.create(project.folder.url, "other", overwrite=True).name == "other"
    with pytest.raises(UsageError, match="no sources"):
        project.dataset()


def test_a_source_is_read_where_it_is(project: Project, source: str) -> None:
    assert project.add(source) == "data"
    assert told(project)["sources"] == {"data": {"path": Storage(source).url, "format": "datumaro"}}
    again = Project.load(project.folder.url)
    assert len(again.dataset(engine="local")) == 6
    assert again.dataset().categories().labels.names() == ["cat", "dog"]


def test_a_source_inside_is_written_down_relative(project: Project, source: str) -> None:
    dm.Dataset.import_from(source, "datumaro").export(project.folder.path("inside/d"), "rayds")
    project.add(project.folder.path("inside/d"), "rayds", "mine")
    assert told(project)["sources"]["mine"]["path"] == "inside/d"
    assert len(project.dataset(engine="local")) == 6


def test_a_copy_is_in_the_project_and_goes_with_its_source(project: Project, source: str) -> None:
    name = project.add(source, copy=True)
    Storage(source).remove()
    assert len(Project.load(project.folder.url).dataset(engine="local")) == 6
    project.remove(name, keep_data=True)
    assert project.folder.exists(name)
    project.add(project.folder.path(name), name="again")
    project.remove("again")
    assert project.folder.exists(name)  # it was not copied by that source
    assert told(project)["sources"] == {}


def test_data_that_was_not_copied_is_never_removed(project: Project, source: str) -> None:
    dm.Dataset.import_from(source, "datumaro").export(project.folder.path("day1"), "rayds")
    project.add(project.folder.path("day1"), "rayds", "day1")
    project.remove("day1")
    assert project.folder.exists("day1")


def test_a_file_that_was_copied_goes_with_its_source(project: Project, source: str) -> None:
    file = Storage(source).path("annotations/s.json")
    name = project.add(file, "datumaro", copy=True)
    assert len(Project.load(project.folder.url).dataset(engine="local")) == 6
    project.remove(name)
    assert not project.folder.exists(name)


def test_what_another_process_changed_meanwhile_is_not_overwritten(project: Project, source: str) -> None:
    other = Project.load(project.folder.url)
    project.add(source, "datumaro", "first")
    with pytest.raises(UsageError, match="changed the project meanwhile"):
        other.add(source, "datumaro", "second", copy=True)
    assert other.sources == {}
    assert not project.folder.exists("second")
    late = Project.load(project.folder.url)
    project.add(source, "datumaro", "third")
    with pytest.raises(UsageError, match="meanwhile"):
        late.remove("first")
    assert list(late.sources) == ["first"]
    assert list(Project.load(project.folder.url).sources) == ["first", "third"]
    project.remove("third")  # the one that wrote last goes on
    begun = Project.new(project.folder.path("inner"))
    Project.create(project.folder.path("inner"))
    with pytest.raises(UsageError, match="meanwhile"):
        begun.save()


def test_names_are_free_and_safe(project: Project, source: str) -> None:
    assert project.add(source) == "data"
    with pytest.raises(UsageError, match="has a source 'data' already"):
        project.add(source, name="data")
    for name in ("a/b", "..", ""):
        if name:
            with pytest.raises(UsageError, match="letters, digits"):
                project.add(source, name=name)
    with pytest.raises(UnknownNameError, match="'data'"):
        project.remove("dat")
    project.remove("dat", force=True)


@pytest.mark.parametrize("text", ["{", '{"categories": {}, "items": [{"id": "a", "annotations": 5}]}'])
def test_what_does_not_read_is_refused_and_nothing_is_left(
    project: Project, storage: Storage, text: str
) -> None:
    storage.write_text("bad/annotations/train.json", text)
    before = project.folder.read_text(FILE)
    for copy in (False, True):
        with pytest.raises(RaydsError):
            project.add(storage.path("bad"), "datumaro", copy=copy)
        assert project.folder.read_text(FILE) == before
        assert not project.folder.exists("bad")
    assert project.sources == {}
    project.add(storage.path("bad"), "datumaro", check=False)
    with pytest.raises(RaydsError):
        list(Project.load(project.folder.url).dataset(engine="local"))


def test_a_copy_that_fails_leaves_nothing(
    project: Project, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Storage, name: str, data: Any) -> None:
        raise OSError("no space")

    for copy in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Project, "save", lambda self: full(self.folder, "", b""))
            with pytest.raises(OSError, match="no space"):
                project.add(source, name="d", copy=copy)
        assert project.sources == {}
        assert not project.folder.exists("d")
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "publish", lambda self, staging: full(self, "", b""))
        with pytest.raises(OSError, match="no space"):
            project.add(source, copy=True)
    assert project.folder.find(".rayds").keys() == {"project.yaml"}
    assert told(project)["sources"] == {}
    with pytest.raises(FileNotFoundError):
        project.add(source + "-missing", "datumaro")


def test_several_sources_are_one_dataset(project: Project, source: str, storage: Storage) -> None:
    items = [
        dm.DatasetItem("3", [dm.Bbox(0, 0, 9, 9, label=1)], subset="s"),
        dm.DatasetItem("new", subset="t"),
    ]
    dm.Dataset.from_iterable(items, ["cow", "cat"], engine="local").export(storage.path("more"), "rayds")
    project.add(source)
    project.add(storage.path("more"))
    made = Project.load(project.folder.url).dataset(engine="local")
    assert made.categories().labels.names() == ["cat", "dog", "cow"]
    assert [i.id for i in made] == ["0", "1", "2", "3", "4", "5", "new"]
    assert made.get("3").annotations == [dm.Bbox(0, 0, 4, 2, label=1), dm.Bbox(0, 0, 9, 9, label=0)]


def test_a_source_that_does_not_go_with_the_others_is_refused(
    project: Project, source: str, storage: Storage
) -> None:
    for name, parent in (("a", "p"), ("b", "q")):
        dataset = dm.Dataset.from_iterable([dm.DatasetItem("1")], [("cat", parent)], engine="local")
        dataset.export(storage.path(name), "datumaro")
    project.add(storage.path("a"))
    before = project.folder.read_text(FILE)
    with pytest.raises(
        UsageError, match="the source 'b' does not go with the others: the parent of the label 'cat'"
    ):
        project.add(storage.path("b"))
    assert project.folder.read_text(FILE) == before
    project.add(source)


def test_options_of_the_reader_are_kept(project: Project, storage: Storage) -> None:
    items = [dm.DatasetItem("1", [dm.Bbox(0, 0, 1, 2, label=0)], media=dm.Image(path="1.jpg", size=(9, 9)))]
    dm.Dataset.from_iterable(items, ["x"], engine="local").export(storage.path("coco"), "coco")
    project.add(storage.path("coco"), "coco", keep_original_category_ids=True)
    assert told(project)["sources"]["coco"]["options"] == {"keep_original_category_ids": True}
    assert len(Project.load(project.folder.url).dataset(engine="local").categories().labels) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "no mapping"),
        ("a: [", "line"),
        ("name: x", "version is None"),
        ("version: 99", "version is 99; this rayds reads up to 1"),
        ("version: 1\nsources: 3", "line 2: sources is no mapping"),
        ("version: 1\nsources:\n  a: x", "line 3: sources.a is no mapping"),
        ("version: 1\nsources:\n  a:\n    path: 5", "line 4: sources.a.path is missing, or no text"),
        (
            "version: 1\nsources:\n  a: {path: x, format: y, options: 1}",
            "line 3: sources.a.options is no mapping",
        ),
        (
            "version: 1\nsources:\n  a: {path: x, format: y}\n  b:\n    format: y\n    path: 5",
            "line 6: sources.b.path",
        ),
        ("version: true", "line 1: version is True"),
        ("version: 1\nmodels: []\nname: 4\n", None),
    ],
)
def test_mistakes_in_the_file_are_told_with_their_place(
    project: Project, text: str, said: str | None
) -> None:
    project.folder.write_text(FILE, text)
    if said is None:
        assert Project.load(project.folder.url).name == "4"
        return
    with pytest.raises(FormatError, match=said):
        Project.load(project.folder.url)


def test_what_this_version_does_not_know_is_kept(project: Project, source: str) -> None:
    project.folder.write_text(
        FILE, "version: 1\nname: n\ncolour: red\nsources:\n  a: {path: x, format: voc, hash: 5}\n"
    )
    made = Project.load(project.folder.url)
    made.add(source, check=False)
    assert told(made)["colour"] == "red"
    assert told(made)["sources"]["a"] == {"path": "x", "format": "voc", "hash": 5}


def test_the_project_around_a_folder(tmp_path: Path) -> None:
    made = Project.create(str(tmp_path / "p"))
    (tmp_path / "p/a/b").mkdir(parents=True)
    found = Project.find(str(tmp_path / "p/a/b"))
    assert found is not None
    assert found.folder.url == made.folder.url
    with pytest.raises(FormatError, match="no project here"):
        Project.load(str(tmp_path / "p/a"))


PLUGIN = '''
from dataclasses import dataclass
import rayds

SIDE = 3  # a name of the module, which workers need, too


class Grow(rayds.Op):
    """Adds to the widths of boxes."""
    name = "grow"
    title = "wider boxes"

    @dataclass(frozen=True)
    class Options(rayds.Options):
        by: float = rayds.option(1.0, help="pixels")

    def apply(self, block):
        from rayds.item import from_table, to_table
        made = []
        for item in from_table(block):
            made.append(item.wrap(annotations=[a.wrap(w=a.w + self.options.by + SIDE) for a in item.annotations]))
        return to_table(made)


class Lines(rayds.ItemFormat):
    """Ids in a text file."""
    name = "id_lines"
    title = "ids in a text file"
    family = "id_lines"
    holds = rayds.Capabilities(annotations=frozenset())

    def detect(self, files):
        return rayds.Confidence(100 if files.glob("ids.txt") else 0, "no ids.txt")

    def plan(self, files, ctx):
        return rayds.Plan(rayds.Categories(), [rayds.Shard("ids", files.root.url)])

    def read_items(self, shard, ctx):
        for line in ctx.root.read_text("ids.txt").split():
            yield rayds.DatasetItem(line + "!" * SIDE)

    def write_items(self, items, position, ctx):
        return [i.id for i in items]

    def finish(self, fragments, ctx):
        ctx.out.write_text("ids.txt", " ".join(i for f in fragments for i in f))


class Zero(rayds.Launcher):
    """Says nothing of an image, but that it was seen."""
    name = "zero"
    title = "a label for every image"

    def categories(self):
        return rayds.Categories.of(["seen"])

    def load(self):
        pass

    def infer(self, images):
        return [[rayds.Label(0, attributes={"side": SIDE})] for _ in images]
'''


@pytest.fixture
def with_plugins(tmp_path: Path) -> Project:
    made = Project.create(str(tmp_path / "p"))
    made.folder.write_text(".rayds/plugins/mine.py", PLUGIN)
    yield made
    registry._registered.clear()
    registry.load.cache_clear()


def test_plugins_of_a_project_run_where_the_data_is_worked_on(
    with_plugins: Project, engine: Any, tmp_path: Path
) -> None:
    assert plugins.load(with_plugins.folder) == ["ops grow", "formats id_lines", "launchers zero"]
    image = dm.Image.from_numpy(np.zeros((4, 4, 3), np.uint8))
    items = [dm.DatasetItem("a", [dm.Bbox(0, 0, 1, 1, label=0)], media=image)]
    dataset = dm.Dataset.from_iterable(items, ["x"], engine=engine)
    assert [a.w for a in dataset.transform("grow", by=2).get("a").annotations] == [6]
    assert dataset.run_model("zero").get("a").annotations == [dm.Label(0, attributes={"side": 3})]
    dataset.export(str(tmp_path / "out"), "id_lines")
    made = dm.Dataset.import_from(str(tmp_path / "out"), engine=engine)
    assert made.format == "id_lines"
    assert [item.id for item in made] == ["a!!!"]


def test_a_plugin_that_does_not_load_is_told_with_its_line(with_plugins: Project) -> None:
    with_plugins.folder.write_text(".rayds/plugins/mine.py", "import rayds\n\nrayds.nothing_of_this_name\n")
    with pytest.raises(FormatError, match=r"mine\.py, line 3 does not load: AttributeError"):
        plugins.load(with_plugins.folder)
    with_plugins.folder.write_text(".rayds/plugins/mine.py", "def x(:\n")
    with pytest.raises(FormatError, match=r"mine\.py, line 1 does not load: SyntaxError"):
        plugins.load(with_plugins.folder)


def test_a_plugin_does_not_take_the_name_of_a_built_in(with_plugins: Project) -> None:
    with_plugins.folder.write_text(
        ".rayds/plugins/mine.py", PLUGIN.replace('name = "grow"', 'name = "split"')
    )
    with pytest.raises(FormatError, match="'split' is one of the ops already"):
        plugins.load(with_plugins.folder)


def test_bad_items_of_a_source_follow_the_policy(project: Project, storage: Storage) -> None:
    text = '{"categories": {}, "items": [{"id": "a", "annotations": 5}, {"id": "b", "annotations": []}]}'
    storage.write_text("bad/annotations/train.json", text)
    project.add(storage.path("bad"), "datumaro", check=False)
    assert [i.id for i in project.dataset(engine="local", on_error="skip")] == ["b"]
    with pytest.raises(DataError):
        list(project.dataset(engine="local"))


def test_the_examples_of_plugins_work_as_files_of_a_project(tmp_path: Path) -> None:
    """Each kind: the files of examples/ as they stand."""
    made = Project.create(str(tmp_path / "p"))
    for file in (Path(__file__).parents[1] / "examples").glob("plugin_*/rayds_*.py"):
        made.folder.write_text(f".rayds/plugins/{file.name}", file.read_text())
    try:
        found = plugins.load(made.folder)
        assert found == ["launchers brightness", "formats csv_boxes", "ops drop_small_boxes"]
        pixels = np.full((4, 4, 3), 200, np.uint8)
        items = [
            dm.DatasetItem(
                "a",
                [dm.Bbox(0, 0, 3, 3, label=0), dm.Bbox(0, 0, 1, 1, label=0)],
                media=dm.Image.from_numpy(pixels),
            )
        ]
        dataset = dm.Dataset.from_iterable(items, ["x"], engine="local")
        assert len(dataset.transform("drop_small_boxes", min_area=4).get("a").annotations) == 1
        assert [a.type.name for a in dataset.run_model("brightness").get("a").annotations] == ["label"]
        dataset.export(str(tmp_path / "out"), "csv_boxes")
        assert (
            len(
                dm.Dataset.import_from(str(tmp_path / "out"), "csv_boxes", engine="local")
                .get("a")
                .annotations
            )
            == 2
        )
    finally:
        registry._registered.clear()
        registry.load.cache_clear()
