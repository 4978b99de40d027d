"""The examples: the demonstration, and a plug-in of each kind, installed as pip does and used by its name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import rayds
import rayds.engine
from rayds import registry
from rayds.cli.main import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test names no engine it is the local one, also when others have started Ray."""
    monkeypatch.setattr(rayds.engine, "_ray_runs", lambda: False)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Puts an example package where Python finds it, as `pip install` does; returns its module."""
    site = tmp_path / "site-packages"
    modules: list[str] = []

    def forget() -> None:
        registry._points.cache_clear()
        registry.load.cache_clear()

    def install(example: str) -> Any:
        import ray

        project = tomllib.loads((EXAMPLES / example / "pyproject.toml").read_text())
        name, version = project["project"]["name"], project["project"]["version"]
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = [
            f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items())
            for group, entries in project["project"]["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n\n".join(points) + "\n")
        for module in project["tool"]["setuptools"]["py-modules"]:
            shutil.copy(EXAMPLES / example / f"{module}.py", site)
            modules.append(module)
        monkeypatch.syspath_prepend(str(site))
        forget()
        loaded = import_module(modules[-1])
        ray.cloudpickle.register_pickle_by_value(loaded)  # workers of the session's Ray don't see this folder
        return loaded

    yield install
    forget()
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def shapes(tmp_path: Path) -> rayds.Dataset:
    """Three images in two subsets: large and small boxes with polygons in their group, and an image without any."""
    images = []
    for i, gray in enumerate((20, 200, 90)):
        path = str(tmp_path / f"{i}.png")
        cv2.imwrite(path, np.full((40, 60, 3), gray, np.uint8))
        images.append(path)
    objects = [
        rayds.Bbox(1.25, 2, 30, 20, label=0, group=1),
        rayds.Polygon([1.25, 2, 31.25, 2, 31.25, 22], label=0, group=1),
        rayds.Bbox(40, 3, 4, 5, label=1, group=2),
        rayds.Polygon([40, 3, 44, 3, 44, 8], label=1, group=2),
        rayds.Bbox(50, 10, 3, 3, label=1),
        rayds.Caption("a wall"),
    ]
    return rayds.Dataset.from_iterable(
        [
            rayds.DatasetItem("a", objects, subset="train", image=images[0]),
            rayds.DatasetItem("folder/b", [objects[2]], subset="train", image=images[1]),
            rayds.DatasetItem("c", subset="val", image=images[2]),
        ],
        ["wall", "door, small"],
    )


def command(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result.stdout


class TestFormat:
    @pytest.fixture(autouse=True)
    def _installed(self, install: Callable[[str], Any]) -> None:
        install("plugin_format")

    @pytest.fixture
    def written(self, shapes: rayds.Dataset, engine: Any, tmp_path: Path) -> Path:
        """The shapes, written."""
        out = tmp_path / "out"
        report = shapes.export(str(out), "csv_boxes", save_media=True, engine=engine)
        assert report.items == 3
        assert report.losses["polygon annotations"][0] == 2
        assert report.losses["caption annotations"][0] == 1
        return out

    def test_files(self, written):
        assert (written / "labels.txt").read_text() == "wall\ndoor, small\n"
        assert (written / "train.csv").read_text() == (
            "image,label,x1,y1,x2,y2\n"
            "a.png,wall,1.25,2.0,31.25,22.0\n"
            'a.png,"door, small",40.0,3.0,44.0,8.0\n'
            'a.png,"door, small",50.0,10.0,53.0,13.0\n'
            'folder/b.png,"door, small",40.0,3.0,44.0,8.0\n'
        )
        assert (written / "val.csv").read_text() == "image,label,x1,y1,x2,y2\nc.png,,,,,\n"
        assert sorted(p.name for p in written.iterdir()) == ["images", "labels.txt", "train.csv", "val.csv"]

    def test_what_is_written_is_read_again(self, written, shapes):
        read = rayds.Dataset.import_from(str(written))
        assert read.format == "csv_boxes"
        assert [(i.id, i.subset) for i in read] == [(i.id, i.subset) for i in shapes]
        boxes = [[(a.label, a.points) for a in i.annotations if isinstance(a, rayds.Bbox)] for i in shapes]
        assert [[(a.label, a.points) for a in i.annotations] for i in read] == boxes
        assert all(i.image.pixels.shape == (40, 60, 3) for i in read)

    def test_on_the_command_line(self, shapes, tmp_path):
        shapes.export(str(tmp_path / "coco"), "coco", save_media=True)
        command(
            "convert", "-i", tmp_path / "coco", "-f", "csv_boxes", "-o", tmp_path / "csv", "--", "--digits", 0
        )
        assert "a.png,wall,1.0,2.0,31.0,22.0" in (tmp_path / "csv" / "train.csv").read_text()
        assert "Detected format: csv_boxes" in command("detect", tmp_path / "csv")
        assert "digits after the point" in command("formats", "csv_boxes")

    def test_a_bad_line_is_named_and_left_out(self, tmp_path):
        (tmp_path / "labels.txt").write_text("cat\n")
        lines = ["image,label,x1,y1,x2,y2", "a.jpg,cat,1,2,x,4", "b.jpg,cow,1,2,3,4", "c.jpg,cat,1,2,3,4"]
        (tmp_path / "train.csv").write_text("\n".join(lines))
        with pytest.raises(rayds.DataError, match=r"train\.csv, item 'a': could not convert"):
            list(rayds.Dataset.import_from(str(tmp_path)))
        made = rayds.Dataset.import_from(str(tmp_path), on_error="skip")
        report = made.export(str(tmp_path / "out"), "rayds")
        assert [i.id for i in made] == ["c"]
        assert [(e["item"], e["subset"]) for e in report.errors] == [("a", "train"), ("b", "train")]
        assert "unknown label 'cow'" in report.errors[1]["reason"]

    def test_a_subset_does_not_leave_the_output(self, tmp_path):
        item = rayds.DatasetItem("a", subset="../out")
        with pytest.raises(rayds.RaydsError):
            rayds.Dataset.from_iterable([item]).export(str(tmp_path / "x"), "csv_boxes")
        assert not list(tmp_path.glob("*.csv"))


class TestOp:
    @pytest.fixture(autouse=True)
    def _installed(self, install: Callable[[str], Any]) -> None:
        install("plugin_op")

    def test_small_objects_go_whole(self, shapes, engine):
        made = rayds.Dataset.from_iterable(shapes, shapes.categories(), engine=engine)
        made = made.transform("drop_small_boxes", min_area=100)
        assert [[a.type.name for a in i.annotations] for i in made] == [
            ["bbox", "polygon", "caption"],
            [],
            [],
        ]
        assert made.get("a").annotations[:2] == shapes.get("a").annotations[:2]

    def test_items_left_empty_go_too_when_asked(self, shapes):
        assert [i.id for i in shapes.transform("drop_small_boxes", min_area=100, drop_empty=True)] == ["a"]
        assert [i.id for i in shapes.transform("drop_small_boxes", min_area=0, drop_empty=True)] == [
            "a",
            "folder/b",
        ]

    def test_bad_options_are_told_at_once(self, shapes):
        with pytest.raises(rayds.UsageError, match="negative"):
            shapes.transform("drop_small_boxes", min_area=-1)
        with pytest.raises(rayds.UnknownNameError, match="drop_small_boxes"):
            shapes.transform("drop_small_boxs", min_area=1)


class TestLauncher:
    @pytest.fixture(autouse=True)
    def _installed(self, install: Callable[[str], Any]) -> None:
        install("plugin_launcher")

    def test_labels(self, shapes, engine):
        made = rayds.Dataset.from_iterable(shapes, shapes.categories(), engine=engine)
        made = made.run_model("brightness", batch_size=2)
        assert [i.annotations for i in made] == [
            [rayds.Label(0, attributes={"mean": 20.0})],
            [rayds.Label(1, attributes={"mean": 200.0})],
            [rayds.Label(0, attributes={"mean": 90.0})],
        ]
        assert made.categories().labels.names() == ["dark", "bright"]

    def test_labels_beside_others(self, shapes):
        made = shapes.run_model("brightness", keep=True, threshold=10)
        assert made.categories().labels.names() == ["wall", "door, small", "dark", "bright"]
        assert made.get("a").annotations[:-1] == shapes.get("a").annotations
        assert [i.annotations[-1].label for i in made] == [3, 3, 3]


@pytest.mark.slow
def test_the_demonstration(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same\n") == 3
    assert cv2.imread(str(tmp_path / "demo" / "annotated.png")).shape == (400, 1280, 3)
