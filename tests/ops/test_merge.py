"""merge: one dataset of several, by each policy; answers computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import rayds as dm
from rayds.categories import Categories, LabelCategories, MaskCategories, PointsCategories
from rayds.cli.main import cli
from rayds.errors import DataError, UsageError
from rayds.ops import _iou
from rayds.ops._iou import (
    alike_pairs,
    box_iou,
    likeness,
    line_likeness,
    mask_iou,
    points_oks,
    polygon_iou,
    two_boxes_iou,
)
from rayds.schema import AnnotationType as T

SHARED = Path(__file__).parents[3] / "shared" / "data"


def made(engine: Any, labels: Any, *items: dm.DatasetItem) -> dm.Dataset:
    return dm.Dataset.from_iterable(items, labels, engine=engine)


def box(x: float, label: int | None = 0, **more: Any) -> dm.Bbox:
    return dm.Bbox(x, 0, 10, 10, label=label, **more)


def told(dataset: dm.Dataset) -> list[tuple[str, str, list[Any]]]:
    names = dataset.categories().labels.names()
    return [
        (i.id, i.subset, [(a.type.name, names[a.label] if getattr(a, "label", None) is not None else None) for a in i.annotations])
        for i in dataset
    ]  # fmt: skip


def filled(x: int, y: int, w: int, h: int) -> Any:
    image = np.zeros((60, 60), bool)
    image[y : y + h, x : x + w] = True
    return image


class TestLikeness:
    def test_boxes(self) -> None:
        assert box_iou(
            [[0, 0, 10, 10]], [[5, 0, 10, 10], [0, 0, 10, 10], [20, 0, 1, 1], [0, 0, 0, 0]]
        ) == pytest.approx(np.array([[50 / 150, 1, 0, 0]]))

    def test_small_in_large_is_small(self) -> None:
        large, small = dm.Polygon([0, 0, 100, 0, 100, 100, 0, 100]), dm.Polygon([0, 0, 20, 0, 20, 20, 0, 20])
        assert polygon_iou([large], [small])[0, 0] == pytest.approx(0.04, rel=0.05)
        image = np.zeros((100, 100), bool)
        image[:20, :20] = True
        found = mask_iou(
            [dm.Mask(np.ones((100, 100), bool)).rle], [dm.Mask(image).rle, dm.Mask(np.ones((5, 5), bool)).rle]
        )
        assert found == pytest.approx(np.array([[0.04, 0]]))

    def test_polygons_that_share_a_box_only(self) -> None:
        a, b = dm.Polygon([0, 0, 10, 0, 0, 10]), dm.Polygon([10, 10, 10, 0, 0, 10])
        assert polygon_iou([a], [a, b])[0] == pytest.approx([1, 0], abs=0.03)

    def test_points_and_lines(self) -> None:
        a, b = dm.Points([0, 0, 10, 10]), dm.Points([0, 0, 10, 12])
        assert points_oks([a], [a])[0, 0] == 1
        assert points_oks([a], [b])[0, 0] == pytest.approx((1 + np.exp(-4 / (2 * 100 * 0.04))) / 2)
        assert points_oks([a], [dm.Points([0, 0])])[0, 0] == 0
        line = dm.PolyLine([0, 0, 10, 0])
        found = line_likeness([line], [line, dm.PolyLine([10, 0, 0, 0]), dm.PolyLine([0, 2, 10, 2])])
        assert found[0] == pytest.approx([1, 1, 0.8])

    @given(
        kind=st.sampled_from(["box", "polygon", "mask", "points"]),
        corners=st.lists(st.tuples(*[st.integers(0, 30)] * 4), max_size=12),
        least=st.sampled_from([0.0, 0.25, 0.75]),
        few=st.booleans(),
    )
    @settings(deadline=None)
    def test_pairs_that_are_alike_are_those_of_all_pairs(
        self, kind: str, corners: list[Any], least: float, few: bool
    ) -> None:
        make = {
            "box": lambda x, y, w, h: dm.Bbox(x, y, w, h),
            "polygon": lambda x, y, w, h: dm.Polygon([x, y, x + w + 1, y, x + w + 1, y + h + 1]),
            "mask": lambda x, y, w, h: dm.Mask(filled(x, y, w, h)),
            "points": lambda x, y, w, h: dm.Points([x, y, x + w, y + h]),
        }[kind]
        shapes: list[Any] = [make(*c) for c in corners]
        with pytest.MonkeyPatch.context() as patch:
            if few:
                patch.setattr(_iou, "PAIRS", 3)
            i, j, value = alike_pairs(shapes[0].type, shapes, least) if shapes else ([], [], [])
        dense = np.triu(likeness(shapes[0].type, shapes, shapes), 1) if shapes else np.zeros((0, 0))
        expected = [tuple(p) for p in np.argwhere((dense >= least) & (dense > 0))]
        assert list(zip(i, j, strict=True)) == expected
        assert value == pytest.approx([dense[p] for p in expected])

    @given(st.tuples(*[st.floats(0, 20)] * 4), st.tuples(*[st.floats(0, 20)] * 4))
    def test_two_boxes_are_as_alike_alone(self, a: Any, b: Any) -> None:
        assert two_boxes_iou(a, b) == pytest.approx(box_iou([a], [b])[0, 0])


class TestPolicies:
    @pytest.fixture
    def two(self, engine: Any) -> tuple[dm.Dataset, dm.Dataset]:
        a = made(engine, ["cat", "dog"], dm.DatasetItem("1", [box(0, 0), box(9, 1)]), dm.DatasetItem("2"))
        b = made(
            engine,
            ["dog", "cow"],
            dm.DatasetItem("3", [box(1, 1)]),
            dm.DatasetItem("1", [box(9, 0), box(2, 0)]),
        )
        return a, b

    def test_labels_are_joined_by_name_and_items_keep_their_order(self, two: Any) -> None:
        merged = two[0].merge(two[1], policy="update")
        assert merged.categories().labels.names() == ["cat", "dog", "cow"]
        assert told(merged) == [
            ("1", "default", [("bbox", "dog"), ("bbox", "dog")]),
            ("2", "default", []),
            ("3", "default", [("bbox", "cow")]),
        ]
        assert told(two[0].update(two[1])) == told(merged)

    def test_exact_has_the_annotations_of_all_and_equal_ones_once(self, two: Any) -> None:
        merged = two[0].merge(two[1], policy="exact")
        assert merged.get("1").annotations == [box(0, 0), box(9, 1), box(2, 1)]
        assert [i.id for i in merged] == ["1", "2", "3"]

    def test_union_keeps_both(self, two: Any) -> None:
        merged = two[0].merge(two[1])
        assert [i.id for i in merged] == ["1-0", "2", "3", "1-1"]
        assert len(merged) == len(two[0]) + len(two[1])

    def test_a_dataset_with_itself(self, engine: Any) -> None:
        items = [
            dm.DatasetItem(str(i), [box(0), box(0), box(20 * i, 1, attributes={"a": i})], attributes={"k": i}, subset="ab"[i % 2])
            for i in range(9)
        ]  # fmt: skip
        one = made(engine, ["x", "y"], *items)
        assert list(one.merge(one, policy="exact")) == items
        assert list(one.merge(one, one, policy="update")) == items

    def test_versions_that_contradict_each_other_are_bad_items(self, engine: Any) -> None:
        def of(size: Any, **attributes: Any) -> dm.Dataset:
            media = dm.Image(path="x.jpg", size=size)
            return made(
                engine,
                [],
                dm.DatasetItem("1", media=media, attributes=attributes),
                dm.DatasetItem(str(attributes)),
            )

        merged = of((2, 3), a=1).merge(of(None, b=2), policy="exact").get("1")
        assert merged.attributes == {"a": 1, "b": 2}
        assert merged.media.size == (2, 3)
        for other, said in (
            (of((2, 4)), "the width of the image is 3 and 4"),
            (of(None, a=5), "attribute 'a' is 1 and 5"),
        ):
            with pytest.raises(DataError, match=f"'1'.*{said}"):
                list(of((2, 3), a=1).merge(other, policy="exact"))

    def test_categories_that_contradict_each_other(self, engine: Any) -> None:
        def of(parent: str = "", color: Any = None, points: Any = None) -> dm.Dataset:
            found = {T.label: LabelCategories.from_iterable([("a", parent)])}
            if color:
                found[T.mask] = MaskCategories({0: color})
            if points:
                found[T.points] = PointsCategories.from_iterable([(0, points, [])])
            return made(engine, Categories(found))

        assert of("p").merge(of()).categories().labels[0].parent == "p"
        assert of(color=(1, 2, 3)).merge(of(points=["n"])).categories().masks.colormap == {0: (1, 2, 3)}
        for a, b, said in (
            (of("p"), of("q"), "the parent of the label 'a' is 'p' in one dataset and 'q'"),
            (of(color=(1, 2, 3)), of(color=(1, 2, 4)), "the mask colour of the label 'a'"),
            (of(points=["n"]), of(points=["m"]), "the key points of the label 'a'"),
        ):
            with pytest.raises(UsageError, match=said):
                a.merge(b)


class TestIntersect:
    def merged(
        self, engine: Any, *versions: list[dm.Annotation], **options: Any
    ) -> tuple[list[dm.Annotation], dict[str, Any]]:
        parts = [made(engine, ["a", "b", "c"], dm.DatasetItem("i", v)) for v in versions]
        out = parts[0].merge(*parts[1:], policy="intersect", **options)
        return next(iter(out)).annotations, out.merge_report(**options)

    def test_alike_boxes_become_the_one_nearest_to_their_mean(self, engine: Any) -> None:
        found, report = self.merged(engine, [box(0)], [box(1)], [box(3)])
        (one,) = found
        assert one.x == 1
        mean = 4 / 3
        expected = np.mean([(10 - d) / (10 + d) for d in (mean, mean - 1, 3 - mean)])
        assert one.attributes["score"] == pytest.approx(expected)
        assert report == {"Item errors": {}, "Source errors": {}, "All errors": []}

    def test_what_one_does_not_have_is_reported(self, engine: Any) -> None:
        found, report = self.merged(engine, [box(0), box(50)], [box(1)])
        assert len(found) == 2
        assert report["Item errors"] == {"('i', 'default')": 1}
        assert report["Source errors"] == {"1": 1}
        assert report["All errors"][0].startswith(
            "Item ('i', 'default'): can't find matching annotation in sources [1]"
        )

    def test_a_source_has_one_annotation_in_a_cluster(self, engine: Any) -> None:
        found, _ = self.merged(engine, [box(0), box(1)], [box(0)])
        assert [a.x for a in found] == [0, 1]

    def test_labels_are_voted_for(self, engine: Any) -> None:
        found, _ = self.merged(engine, [box(0, 0)], [box(0, 1)], [box(0, 1)])
        assert found[0].label == 1
        assert found[0].attributes["score"] == pytest.approx(2 / 3)
        found, _ = self.merged(
            engine, [box(0, 0, attributes={"score": 0.9})], [box(0, 1, attributes={"score": 0.3})]
        )
        assert found[0].label == 0
        found, report = self.merged(engine, [box(0, 0)], [box(0, 1)], [box(0, 2)], quorum=2)
        assert found[0].label is None
        assert "label voting failed" in report["All errors"][0]
        assert report["Source errors"] == {"0": 1, "1": 1, "2": 1}

    def test_attributes_are_voted_for(self, engine: Any) -> None:
        versions = [[box(0, attributes={"k": v, "only": 1} if v == 1 else {"k": v})] for v in (1, 2, 2)]
        found, report = self.merged(engine, *versions, quorum=2)
        assert found[0].attributes == {"k": 2, "score": 1.0}
        assert any("attribute voting failed" in text for text in report["All errors"])

    def test_labels_and_captions_of_images(self, engine: Any) -> None:
        found, _ = self.merged(
            engine, [dm.Label(0), dm.Caption("x")], [dm.Label(0), dm.Label(1)], [dm.Label(0)], quorum=2
        )
        assert [(type(a), a.attributes["score"]) for a in found] == [(dm.Label, 1.0)]
        found, _ = self.merged(engine, [dm.Label(0)], [dm.Label(1)], [dm.Label(0)], output_conf_thresh=0.5)
        assert [(a.label, a.attributes["score"]) for a in found] == [(0, pytest.approx(2 / 3))]

    def test_every_shape_of_itself(self, engine: Any) -> None:
        image = np.zeros((20, 20), bool)
        image[3:9, 4:12] = True
        shapes = [
            dm.Mask(image, label=0), dm.Polygon([0, 0, 9, 0, 9, 9], label=1), dm.Bbox(1, 2, 3, 4, label=2),
            dm.RotatedBbox(5, 5, 4, 2, 30, label=0), dm.Ellipse(0, 0, 6, 8, label=1), dm.PolyLine([0, 0, 9, 3], label=2),
            dm.Points([1, 1, 5, 9], [2, 0], label=0), dm.Cuboid3d([1, 2, 3], [0, 0, 0], [1, 1, 1], label=1),
        ]  # fmt: skip
        found, report = self.merged(engine, shapes, shapes, shapes)
        assert [a.wrap(attributes={}) for a in found] == shapes
        assert all(a.attributes == {"score": pytest.approx(1)} for a in found)
        assert report["All errors"] == []

    def test_groups_of_any_source_become_groups(self, engine: Any) -> None:
        a = [box(0, 0, group=5), box(100, 1, group=5), box(200, 2)]
        b = [box(0, 0), box(100, 1, group=1), box(200, 2, group=1)]
        found, report = self.merged(engine, a, b, groups=("a,b,c?", "b,missing?") if False else ("a,b,c?",))
        assert [x.group for x in found] == [1, 1, 1]
        assert report["All errors"] == []
        found, report = self.merged(engine, a, a, groups=("a,c",))
        assert (
            "annotation group has wrong labels: found ['a', 'b'], expected ['a', 'c'], group 1"
            in report["All errors"][0]
        )

    def test_results_that_are_too_close(self, engine: Any) -> None:
        _, report = self.merged(engine, [box(0), box(1)], [box(0), box(1)])
        assert any("annotations are too close" in text for text in report["All errors"])

    def test_items_that_not_all_have(self, engine: Any) -> None:
        a = made(engine, ["x"], dm.DatasetItem("1", [box(0)]), dm.DatasetItem("2", [box(0)]))
        merged = a.merge(made(engine, ["x"], dm.DatasetItem("2", [box(0)])), policy="intersect")
        assert [i.id for i in merged] == ["1", "2"]
        assert merged.merge_report()["All errors"] == [
            "Item ('1', 'default'): can't find matching item in sources [1]"
        ]
        assert "rayds" not in json.dumps([i.extra for i in merged])


class TestCommand:
    @pytest.fixture
    def three(self, tmp_path: Path) -> list[str]:
        paths = []
        for k, x in enumerate((0, 1, 40)):
            path = tmp_path / f"d{k}"
            made("local", ["cat"], dm.DatasetItem("1", [box(x)])).export(
                str(path), ("coco", "datumaro", "coco")[k]
            )
            paths.append(str(path))
        return paths

    def test_policies(self, three: list[str], tmp_path: Path) -> None:
        for policy, items, boxes in (("union", 3, 3), ("exact", 1, 3), ("update", 1, 1), ("intersect", 1, 2)):
            out = tmp_path / policy
            done = CliRunner().invoke(
                cli, ["merge", three[0] + ":coco", *three[1:], "-m", policy, "-o", str(out), "-f", "datumaro"]
            )
            assert done.exit_code == 0, done.output
            found = list(dm.Dataset.import_from(str(out), "datumaro", engine="local"))
            assert (len(found), sum(len(i.annotations) for i in found)) == (items, boxes)
        report = json.loads((tmp_path / "intersect/merge_report.json").read_text())
        assert report["Source errors"] == {"0": 1, "1": 1, "2": 1}
        assert "disagreements in 1 items" in done.stderr

    def test_mistakes(self, three: list[str]) -> None:
        for words, said in (([three[0]], "at least two"), ([*three, "-m", "x"], "'x' is not one of"), (
            [*three[:2], "-if", "coco", "-if", "voc", "-if", "voc"], "-if is given 3 times")):  # fmt: skip
            done = CliRunner().invoke(cli, ["merge", *words])
            assert done.exit_code == 2
            assert said in done.output + done.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data here")
def test_two_formats_of_one_dataset_are_one_dataset(tmp_path: Path) -> None:
    coco = dm.Dataset.import_from(str(SHARED / "coco_mini"), "coco", engine="local")
    coco.export(str(tmp_path / "d"), "datumaro")
    other = dm.Dataset.import_from(str(tmp_path / "d"), "datumaro", engine="local")
    merged = {(i.id, i.subset): i for i in coco.merge(other, policy="update")}
    assert len(merged) == len(coco)
    both = coco.transform("remove_attributes").merge(coco.transform("remove_attributes"), policy="exact")
    assert [i.annotations for i in both] == [i.annotations for i in coco.transform("remove_attributes")]
