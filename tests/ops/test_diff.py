"""diff: what matches, what is confused, what is only in one; as it is, by images; figures of detections."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import rayds as dm
from rayds.cli.main import cli
from rayds.errors import UsageError


def made(engine: Any, labels: list[str], *items: dm.DatasetItem) -> dm.Dataset:
    return dm.Dataset.from_iterable(items, labels, engine=engine)


def box(x: float, label: int = 0, **more: Any) -> dm.Bbox:
    return dm.Bbox(x, 0, 10, 10, label=label, **more)


@pytest.fixture
def truth(engine: Any) -> dm.Dataset:
    return made(
        engine, ["cat", "dog", "cow"],
        dm.DatasetItem("1", [box(0, 0), box(50, 1), box(100, 2), dm.Label(0)]),
        dm.DatasetItem("2", [box(0, 0)], subset="s"),
        dm.DatasetItem("a"),
    )  # fmt: skip


@pytest.fixture
def guess(engine: Any) -> dm.Dataset:
    """The same labels in another order, and one more."""
    return made(
        engine, ["dog", "cat", "hen"],
        dm.DatasetItem("2", [box(1, 1, attributes={"score": 0.9}), box(2, 1, attributes={"score": 0.2})], subset="s"),
        dm.DatasetItem("1", [box(1, 1, attributes={"score": 0.8}), box(50, 2, attributes={"score": 0.7}), dm.Label(1), dm.Label(0)]),
        dm.DatasetItem("b"),
    )  # fmt: skip


class TestDistance:
    def test_annotations_are_matched_and_counted(self, truth: dm.Dataset, guess: dm.Dataset) -> None:
        told = truth.diff(guess).to_json()
        assert told["items"] == {"common": 2, "only in a": 1, "only in b": 1, "different": 1}
        assert told["annotations"] == {
            "bbox": {"matches": 2, "mispred": 1, "a_only": 1, "b_only": 0},
            "label": {"matches": 1, "mispred": 0, "a_only": 0, "b_only": 1},
        }
        assert told["confusion"]["bbox"] == [
            {"a": "cat", "b": "cat", "count": 2}, {"a": "dog", "b": "hen", "count": 1}, {"a": "cow", "b": None, "count": 1},
        ]  # fmt: skip
        assert told["categories"] == [
            {"type": "labels", "message": "only in the first: cow"},
            {"type": "labels", "message": "only in the second: hen"},
        ]
        one = {(i["subset"], i["id"]): i for i in told["differences"]}
        assert one["default", "1"]["bbox"]["mispred"] == [
            {
                "a": {"label": "dog", "bbox": [50, 0, 10, 10]},
                "b": {"label": "hen", "bbox": [50, 0, 10, 10], "score": 0.7},
            }
        ]
        assert one["default", "a"]["only in"] == "a"
        assert one["default", "b"]["only in"] == "b"

    def test_thresholds_count(self, truth: dm.Dataset, guess: dm.Dataset) -> None:
        counts = truth.diff(guess, conf_thresh=0.1).to_json()["annotations"]["bbox"]
        assert counts == {"matches": 2, "mispred": 1, "a_only": 1, "b_only": 1}
        counts = truth.diff(guess, iou_thresh=0.9).to_json()["annotations"]["bbox"]
        assert counts == {"matches": 0, "mispred": 1, "a_only": 3, "b_only": 2}

    def test_the_mirror_image(self, truth: dm.Dataset, guess: dm.Dataset) -> None:
        one, other = truth.diff(guess).to_json(), guess.diff(truth).to_json()
        for kind, counts in one["annotations"].items():
            back = other["annotations"][kind]
            assert (counts["a_only"], counts["b_only"], counts["matches"]) == (
                back["b_only"],
                back["a_only"],
                back["matches"],
            )

    def test_a_dataset_and_itself(self, truth: dm.Dataset) -> None:
        for method in ("distance", "equality"):
            result = truth.diff(truth, method=method)
            assert not result.differs
            assert result.to_json()["differences"] == []

    def test_all_shapes(self, engine: Any) -> None:
        image = np.zeros((20, 20), bool)
        image[3:9, 4:12] = True
        shapes = [
            dm.Mask(image, label=0), dm.Polygon([0, 0, 9, 0, 9, 9], label=0), dm.PolyLine([0, 0, 9, 3], label=0),
            dm.Points([1, 1, 5, 9], label=0), dm.RotatedBbox(5, 5, 4, 2, 30, label=0), dm.Ellipse(0, 0, 6, 8, label=0),
        ]  # fmt: skip
        one = made(engine, ["x"], dm.DatasetItem("1", shapes))
        found = one.diff(one).to_json()["annotations"]
        assert {k: v["matches"] for k, v in found.items()} == {
            "mask": 1, "polygon": 1, "polyline": 1, "points": 1, "rotated_bbox": 1, "ellipse": 1,
        }  # fmt: skip


class TestEvaluation:
    def test_perfect_predictions(self, engine: Any) -> None:
        items = [dm.DatasetItem(str(i), [box(20 * k, k % 2) for k in range(3)]) for i in range(4)]
        scored = [
            i.wrap(annotations=[a.wrap(attributes={"score": 0.9}) for a in i.annotations]) for i in items
        ]
        told = (
            made(engine, ["x", "y"], *items).diff(made(engine, ["x", "y"], *scored)).to_json()["evaluation"]
        )
        assert told["bbox"]["AP"] == told["bbox"]["AP50"] == told["bbox"]["AR 100"] == pytest.approx(1)
        assert told["labels"]["x"] == {"precision": 1, "recall": 1, "truths": 8, "predictions": 8}

    def test_half_of_them(self, engine: Any) -> None:
        """Of two boxes one is found, and there is a false one of a lower score: precision 1 up to a recall of one half."""
        truth = made(engine, ["x"], dm.DatasetItem("1", [box(0), box(50)]))
        guess = made(
            engine,
            ["x"],
            dm.DatasetItem("1", [box(0, attributes={"score": 0.9}), box(200, attributes={"score": 0.6})]),
        )
        told = truth.diff(guess).to_json()["evaluation"]
        assert told["bbox"]["AP50"] == pytest.approx(51 / 101)
        assert told["labels"]["x"] == {"precision": 0.5, "recall": 0.5, "truths": 2, "predictions": 2}

    def test_no_scores_no_figures(self, truth: dm.Dataset) -> None:
        assert "evaluation" not in truth.diff(truth).to_json()


class TestEquality:
    def test_equal_annotations_are_counted(self, engine: Any) -> None:
        a = made(engine, ["x"], dm.DatasetItem("1", [box(0), box(0), box(5)]))
        b = made(engine, ["x"], dm.DatasetItem("1", [box(0, id=4, group=2), box(6)]))
        (told,) = a.diff(b, method="equality").to_json()["differences"]
        assert (len(told["a"]), len(told["b"])) == (2, 1)

    def test_what_is_ignored(self, engine: Any) -> None:
        a = made(
            engine,
            ["x"],
            dm.DatasetItem("1", [box(0, id=1, attributes={"k": 1})], attributes={"v": 1, "w": 1}),
        )
        b = made(
            engine,
            ["x"],
            dm.DatasetItem("1", [box(0, id=2, attributes={"k": 2})], attributes={"v": 2, "w": 1}),
        )
        told = a.diff(b, method="equality").to_json()["differences"][0]
        assert told["attributes"] == ["'v': 1 != 2"]
        assert not a.diff(b, method="equality", ignore_attr=("k",), ignore_item_attr=("v",)).differs
        assert a.diff(
            b, method="equality", ignore_attr=("k",), ignore_item_attr=("v",), ignore_field=()
        ).differs

    def test_items_by_their_images(self, engine: Any, tmp_path: Path) -> None:
        def of(names: str) -> dm.Dataset:
            items = []
            for i, name in enumerate(names):
                pixels = np.full((4, 4, 3), 10 * i, np.uint8)
                items.append(dm.DatasetItem(name, [box(i)], media=dm.Image.from_numpy(pixels)))
            return made(engine, ["x"], *items)

        assert of("abc").diff(of("xyz"), method="equality").found.extra == (3, 3)
        assert not of("abc").diff(of("xyz"), method="equality", match_images=True).differs
        told = of("ab").diff(of("xyz"), method="equality", match_images=True, all=True).to_json()
        assert told["items"] == {"common": 2, "only in a": 0, "only in b": 1, "different": 0}
        assert [d.get("same") for d in told["differences"]] == [True, True, None]


class TestCommand:
    @pytest.fixture
    def two(self, tmp_path: Path) -> list[str]:
        for name, x in (("a", 0), ("b", 30)):
            pixels = np.full((40, 60, 3), 90, np.uint8)
            items = [
                dm.DatasetItem("same", [box(0)], media=dm.Image.from_numpy(pixels)),
                dm.DatasetItem("moved", [box(x, label=1), dm.Polygon([x, 0, x + 9, 0, x + 9, 9], label=0)],
                               subset="s", media=dm.Image.from_numpy(pixels)),
            ]  # fmt: skip
            made("local", ["cat", "dog"], *items).export(str(tmp_path / name), "datumaro", save_media=True)
        return [str(tmp_path / "a"), str(tmp_path / "b")]

    def run(self, *words: str) -> Any:
        return CliRunner().invoke(cli, ["diff", *words])

    def test_pictures_and_json(self, two: list[str], tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = self.run(*two, "-o", str(out), "-q")
        assert done.exit_code == 0, done.output
        assert "bbox: 1 match, 0 with another label, 1 only in the first, 1 only in the second" in done.stdout
        assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
            "diff.json", "bbox_confusion.png", "polygon_confusion.png", "label_distribution.png", "s/moved.png",
        }  # fmt: skip
        width, height = struct.unpack(">II", (out / "s/moved.png").read_bytes()[16:24])
        assert (width, height) == (126, 40)
        import cv2

        pixels = cv2.imread(str(out / "s/moved.png"))
        assert (pixels[20, 20] == 90).all()
        assert not (pixels[0, 5] == 90).all()  # the box at the left of the left half
        assert (pixels[0, 66 + 5] == 90).all()
        assert not (pixels[0, 66 + 35] == 90).all()
        assert self.run(*two, "-o", str(out)).exit_code == 1
        assert self.run(*two, "-o", str(out), "--overwrite", "-f", "json").exit_code == 0
        assert [p.name for p in out.iterdir()] == ["diff.json"]

    def test_exit_codes_and_json(self, two: list[str]) -> None:
        done = self.run(*two, "-m", "equality", "--json", "--exit-code", "-q")
        assert done.exit_code == 1
        assert json.loads(done.stdout)["items"]["different"] == 1
        assert self.run(two[0], two[0], "--exit-code").exit_code == 0
        assert self.run(two[0] + ":datumaro").exit_code == 2
        assert CliRunner().invoke(cli, ["compare", *two]).exit_code == 0

    def test_a_dataset_and_a_project(self, two: list[str], tmp_path: Path) -> None:
        project = str(tmp_path / "p")
        assert CliRunner().invoke(cli, ["import", "-i", two[0], "-o", project]).exit_code == 0
        assert self.run(two[1], "-p", project, "--exit-code").exit_code == 1
        assert self.run(project, "-p", project, "--exit-code").exit_code == 0

    def test_logs_need_their_package(self, two: list[str], tmp_path: Path) -> None:
        done = self.run(*two, "-o", str(tmp_path / "out"), "-f", "tensorboard")
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            assert done.exit_code == 2
            assert "rayds[tensorboard]" in done.stderr
        else:
            assert list((tmp_path / "out/logs/diff").glob("events*"))


def test_bad_options() -> None:
    one = made("local", ["x"])
    with pytest.raises(UsageError, match="--method"):
        one.diff(one, method="table")
