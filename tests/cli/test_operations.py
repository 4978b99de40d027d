"""filter, transform, info and the commands of projects, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rayds as dm


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A COCO dataset of 10 items in a folder that is the current one's neighbour."""
    items = [
        dm.DatasetItem(
            f"{i:02d}", [dm.Bbox(0, 0, i + 1, 2, label=i % 2, id=i + 1)], subset="train",
            media=dm.Image(path=f"{i:02d}.jpg", size=(20, 30)),
        )
        for i in range(10)
    ]  # fmt: skip
    dm.Dataset.from_iterable(items, ["cat", "dog"], engine="local").export(str(tmp_path / "coco"), "coco")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "coco"


def read(path: Any) -> dm.Dataset:
    return dm.Dataset.import_from(str(path), engine="local")


class TestFilter:
    def test_items_are_written_in_the_format_of_the_input(self, rayds: Any, coco: Path) -> None:
        done = rayds("filter", "-i", coco, "-e", '/item[annotation/label="cat"]', "-o", "out")
        assert done.exit_code == 0, done.output
        made = read("out")
        assert made.format == "coco"
        assert [item.id for item in made] == ["00", "02", "04", "06", "08"]

    def test_annotations_and_another_format(self, rayds: Any, coco: Path) -> None:
        done = rayds("filter", "-i", coco, "-m", "i+a", "-e", "/item/annotation[area > 15]", "-f", "datumaro",
                     "-o", "out", "--json", "-q")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["items"] == 3

    def test_sql(self, rayds: Any, coco: Path) -> None:
        assert rayds("filter", "-i", coco, "--where", "id > '07'", "-o", "out").exit_code == 0
        assert len(read("out")) == 2

    def test_a_dry_run_prints_and_writes_nothing(self, rayds: Any, coco: Path) -> None:
        done = rayds("filter", "-i", coco, "-e", '/item[id="03"]', "--dry-run", "-q")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("<item>\n  <id>03</id>")
        assert done.stdout.count("<item>") == 1
        assert rayds("filter", "-i", coco, "--dry-run", "-q").stdout.count("<item>") == 10
        assert not list(Path().iterdir())

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["-e", "/item["], "is no XPath"),
            (["-e", "/item", "-m", "x"], "filter mode"),
            (["--where", "x >"], "--where"),
            (["-e", "/item", "--where", "true"], "give an XPath expression, or --where"),
            ([], "give an XPath expression"),
        ],
    )
    def test_mistakes_are_told_before_the_data_is_read(
        self, rayds: Any, words: list[str], told: str, tmp_path: Path
    ) -> None:
        done = rayds("filter", "-i", tmp_path / "missing", *words)
        assert done.exit_code == 2
        assert told in done.stderr

    def test_convert_filters_too(self, rayds: Any, coco: Path) -> None:
        done = rayds("convert", "-i", coco, "-f", "voc", "-o", "out", "-e", "/item/annotation[label='dog']",
                     "--filter-mode", "i+a")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert len(read("out")) == 5
        assert rayds("convert", "-i", coco, "-f", "voc", "-e", "/item[").exit_code == 2


class TestTransform:
    def test_a_split(self, rayds: Any, coco: Path) -> None:
        done = rayds(
            "transform", "-i", coco, "-t", "random_split", "-o", "out", "--", "-s", "train:.8", "-s", "val:.2"
        )
        assert done.exit_code == 0, done.output
        assert "subsets: " in done.stdout
        assert {s: len(d) for s, d in read("out").subsets().items()} == {"train": 8, "val": 2}

    def test_labels_of_a_split_are_told(self, rayds: Any, coco: Path) -> None:
        words = ["transform", "-i", coco, "-t", "split", "-o", "out", "--overwrite"]
        options = ["--", "-t", "detection", "-s", "a:.6", "-s", "b:.4"]
        done = rayds(*words, *options)
        assert done.exit_code == 0, done.output
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[-3:] == [["label", "a", "b"], ["cat", "3", "2"], ["dog", "3", "2"]]
        told = json.loads(rayds(*words, "--json", "-q", *options).stdout)
        assert told["labels"] == {"a": {"cat": 3, "dog": 3}, "b": {"cat": 2, "dog": 2}}

    def test_the_default_output_is_named_after_the_transform(self, rayds: Any, coco: Path) -> None:
        assert rayds("transform", "-i", coco, "-t", "shapes_to_boxes", "-f", "datumaro").exit_code == 0
        assert len(read(coco.parent / "coco-shapes_to_boxes")) == 10

    def test_options_of_both_sides(self, rayds: Any, coco: Path) -> None:
        done = rayds("transform", "-i", coco, "-t", "remap_labels", "-f", "voc", "--write", "allow-attributes=false",
                     "-o", "out", "--", "-l", "cat:pet", "-l", "dog:pet")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "pet" in read("out").categories().labels

    def test_the_list_and_the_help(self, rayds: Any) -> None:
        listed = rayds("transform", "--list").stdout
        for name in ("split ", "random_split ", "resize ", "rename ", "polygons_to_masks "):
            assert f"\n{name}" in f"\n{listed}"
        shown = rayds("transform", "-t", "random_split", "--", "--help").stdout
        assert "--subset" in shown
        assert "train:0.67" in shown

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ([], "name a transform with -t"),
            (["-t", "randomsplit"], "random_split"),
            (["-t", "rename", "--", "--regexp", "x"], "Did you mean '--regex'"),
            (["-t", "rename"], "'regex' is required"),
        ],
    )
    def test_mistakes_are_told_before_the_data_is_read(
        self, rayds: Any, words: list[str], told: str, tmp_path: Path
    ) -> None:
        done = rayds("transform", "-i", tmp_path / "missing", *words)
        assert done.exit_code == 2
        assert told in done.stderr


class TestProjects:
    def test_from_nothing_to_an_export(self, rayds: Any, coco: Path) -> None:
        for words in (["create", "-n", "pets"], ["add", "path", "-f", "coco", coco], ["info"]):
            done = rayds(*words)
            assert done.exit_code == 0, done.output
        assert "name: pets" in done.stdout
        assert "length: 10" in done.stdout
        assert "labels: cat, dog" in done.stdout
        done = rayds(
            "export", "-f", "voc", "-o", "../voc", "-e", "/item[annotation/label='cat']", "--", "--keep-empty"
        )
        assert done.exit_code == 0, done.output
        assert len(read("../voc")) == 5

    def test_both_ways_to_import(self, rayds: Any, coco: Path) -> None:
        assert rayds("import", "-i", coco, "-f", "coco", "-o", "one", "-n", "first").exit_code == 0
        assert json.loads(rayds("info", "-p", "one", "--json").stdout)["name"] == "first"
        assert rayds("create", "-o", "two").exit_code == 0
        assert rayds("import", "-p", "two", "-n", "copied", coco).exit_code == 0
        assert Path("two/copied/annotations").is_dir()
        assert rayds("remove", "-p", "two", "copied").exit_code == 0
        assert not Path("two/copied").exists()

    def test_what_can_not_be_imported_leaves_the_project_that_was_there(
        self, rayds: Any, coco: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        assert rayds("import", "-i", coco, "-o", "p").exit_code == 0
        Path("p/.rayds/plugins").mkdir()
        Path("p/.rayds/plugins/a.py").write_text("x = 1\n")
        before = Path("p/.rayds/project.yaml").read_text()
        assert rayds("import", "-i", tmp_path / "empty", "-o", "p", "--overwrite").exit_code == 1
        assert Path("p/.rayds/project.yaml").read_text() == before
        assert Path("p/.rayds/plugins/a.py").exists()

    def test_a_project_is_updated_with_another(self, rayds: Any, coco: Path) -> None:
        rayds("import", "-i", coco, "-o", "p")
        rayds("filter", "-p", "p", "-e", "/item[id < 3]", "-o", "few")
        done = rayds("project", "merge", "few", "-p", "p", "-o", "both")
        assert done.exit_code == 0, done.output
        assert json.loads(rayds("info", "-p", "both", "--json").stdout)["items"] == 10

    def test_a_dataset_inside_of_a_folder(self, rayds: Any, coco: Path) -> None:
        rayds("create")
        assert rayds("add", "-f", "coco", "-r", "coco", coco.parent).exit_code == 0
        assert json.loads(rayds("info", "--json").stdout)["items"] == 10

    def test_what_can_not_be_imported_leaves_no_project(self, rayds: Any, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        done = rayds("import", "-i", tmp_path / "empty", "-o", tmp_path / "made")
        assert done.exit_code == 1
        assert not (tmp_path / "made").exists()

    def test_a_filtered_project_is_a_project(self, rayds: Any, coco: Path) -> None:
        assert rayds("import", "-i", coco, "-o", "p").exit_code == 0
        assert rayds("filter", "-p", "p", "-e", "/item[id < 3]", "-o", "few").exit_code == 0
        told = json.loads(rayds("project", "info", "-p", "few", "--json").stdout)
        assert told["items"] == 3
        assert told["sources"]["dataset"]["format"] == "rayds"
        done = rayds("transform", "-p", "few", "-t", "reindex", "-o", "few")
        assert done.exit_code == 1
        assert "is there already" in done.stderr
        assert rayds("project", "transform", "-p", "few", "-t", "reindex", "-o", "numbered").exit_code == 0
        assert json.loads(rayds("info", "-p", "numbered", "--json").stdout)["items"] == 3

    def test_sources_by_their_group(self, rayds: Any, coco: Path) -> None:
        assert rayds("project", "create").exit_code == 0
        assert rayds("source", "add", "path", "-f", "coco", "-n", "mine", coco).exit_code == 0
        assert "source 'mine':\n  format: coco\n" in rayds("source", "info").stdout
        assert rayds("source", "remove", "-n", "mine").exit_code == 0
        assert "source" not in rayds("source", "info").stdout

    def test_the_project_around_is_the_input(self, rayds: Any, coco: Path) -> None:
        rayds("import", "-i", coco, "-o", ".")
        done = rayds("convert", "-f", "voc", "-o", "../voc")
        assert done.exit_code == 0, done.output
        assert "project: here" in done.stderr
        done = rayds("convert", "-p", ".", "-i", coco, "-f", "voc", "-o", "../x")
        assert done.exit_code == 2

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["export", "-f", "voc"], "no project around"),
            (["add", "x"], "no project around"),
            (["info", "-p", "nowhere"], "no project here"),
            (["add", "git", "url"], "clone the repository"),
            (["import"], "name the dataset"),
        ],
    )
    def test_mistakes(self, rayds: Any, coco: Path, words: list[str], told: str) -> None:
        done = rayds(*words)
        assert done.exit_code in (1, 2)
        assert told in done.stderr

    def test_plugins_run_when_that_is_allowed(self, rayds: Any, coco: Path) -> None:
        from rayds import registry

        rayds("import", "-i", coco, "-o", ".")
        Path(".rayds/plugins").mkdir()
        Path(".rayds/plugins/a.py").write_text(
            "import rayds\n\nclass Nothing(rayds.Op):\n    '''Changes nothing.'''\n    name = 'nothing'\n"
            "    title = 'nothing'\n\n    def apply(self, block):\n        return block\n"
        )
        done = rayds("transform", "-t", "nothing", "-o", "../out")
        assert done.exit_code == 2
        assert "unknown transform 'nothing'" in done.stderr
        done = rayds("info")
        assert "not run without --allow-plugins" in done.stderr
        done = rayds("transform", "-t", "nothing", "-o", "../out", "--allow-plugins")
        assert done.exit_code == 0, done.output
        registry._registered.clear()


def test_info_of_a_dataset(rayds: Any, coco: Path) -> None:
    done = rayds("info", "-i", coco, "-q")
    assert done.stdout.splitlines() == [
        "format: coco", f"location: {coco}", "length: 10", "categories: label", "  count: 2", "  labels: cat, dog",
        "subsets: train", "  'train': 10",
    ]  # fmt: skip
