"""The Python examples of the manuals, as far as they are about datasets, items, annotations, categories, import and export.

They run with `import rayds as dm`. What changes a dataset in place there returns the new one here. Where an example writes
a format that rayds does not have yet, another one that holds as much stands in its place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import rayds as dm


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: str) -> list[str]:
    """All files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def voc() -> dm.Dataset:
    """A small VOC dataset, ./VOC2012: train has a box of someone who jumps and a mask, val has a box."""
    mask = np.zeros((10, 20), bool)
    mask[2:5, 3:9] = True
    image = np.ones((10, 20, 3))
    jumps = dm.Bbox(1, 2, 5, 6, label=0, group=1, attributes={"jumping": True, "difficult": False})
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem("a", subset="train", image=image, annotations=[jumps]),
            dm.DatasetItem("b", subset="train", image=image, annotations=[dm.Mask(mask, label=0, group=1)]),
            dm.DatasetItem("c", subset="val", image=image, annotations=[dm.Bbox(1, 1, 4, 4, label=0)]),
        ],
        categories=["person", "sky"],
    )
    Path("labelmap.txt").write_text(
        "background:0,0,0::\nperson:128,0,0:head:jumping,running\nsky:0,128,0::\n"
    )
    dataset.export("VOC2012", "voc", save_media=True, label_map="labelmap.txt")
    return dataset


def test_create_a_custom_coco_like_dataset() -> None:
    dataset = dm.Dataset(
        categories={dm.AnnotationType.label: dm.LabelCategories.from_iterable(["cat", "dog"])}
    )
    dataset = dataset.put(
        dm.DatasetItem(id=0, image=np.ones((5, 5, 3)), annotations=[dm.Bbox(1, 2, 3, 4, label=0)])
    )
    dataset.export("test_dataset", "coco")

    (item,) = dm.Dataset.import_from("test_dataset", "coco")
    assert (item.id, item.annotations[0].get_bbox()) == ("0", (1, 2, 3, 4))


def test_images_of_a_directory() -> None:
    dm.Dataset.from_iterable([dm.DatasetItem("sub/x", image=np.ones((4, 3, 3)))]).export(
        "directory/path/", "image_dir", save_media=True
    )
    dataset = dm.Dataset.import_from("directory/path/", "image_dir")
    assert [item.id for item in dataset] == ["sub/x"]


def test_import_and_export() -> None:
    voc()
    dataset = dm.Dataset.import_from("VOC2012", "voc")
    dataset.export("dst/dir", "coco")
    assert len(dm.Dataset.import_from("dst/dir", "coco")) == 3


@pytest.mark.parametrize("format", ["voc", "coco"])
def test_create_a_dataset_convert_polygons_to_masks_save(format: str) -> None:
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="image1",
                image=np.ones((10, 20, 3)),
                annotations=[
                    dm.Bbox(x=1, y=2, w=3, h=4, label=1),
                    dm.Polygon([1, 2, 3, 2, 4, 4], label=2, attributes={"occluded": True}),
                ],
            )
        ],
        categories=["cat", "dog", "person"],
    )
    report = dataset.export("dst/dir", format)
    assert report.items == 1
    assert names("dst/dir")


def test_create_from_items_and_iterate(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="image1",
                annotations=[
                    dm.Bbox(x=1, y=2, w=3, h=4, label=1),
                    dm.Polygon([1, 2, 3, 2, 4, 4], label=2),
                ],
            )
        ],
        categories=["cat", "dog", "person"],
    )
    # keep only annotated images
    dataset = dataset.select(lambda item: len(item.annotations) != 0)
    # iterate over elements
    for item in dataset:
        print(item.id, item.annotations)
    # iterate over subsets as Datasets
    for subset_name, subset in dataset.subsets().items():
        for item in subset:
            print(item.id, subset_name, item.annotations)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("image1 [Bbox(")
    assert shown[1].startswith("image1 default [Bbox(")


@pytest.mark.parametrize(("name", "shape"), [("cifar", (32, 32, 3)), ("mnist", (28, 28))])
def test_create_a_custom_classification_dataset(name: str, shape: tuple[int, ...]) -> None:
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(id=0, image=np.ones(shape), annotations=[dm.Label(2)]),
            dm.DatasetItem(id=1, image=np.ones(shape), annotations=[dm.Label(7)]),
        ],
        categories=[str(label) for label in range(10)],
    )
    dataset.export("./dataset", format="datumaro", save_media=True)  # for cifar, mnist

    back = list(dm.Dataset.import_from("./dataset"))
    assert [(item.id, item.annotations[0].label) for item in back] == [("0", 2), ("1", 7)]
    assert back[0].image is not None
    assert back[0].image.pixels.shape == shape


def test_create_a_custom_panoptic_dataset() -> None:
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="1",
                subset="val",
                image=np.ones((1, 5, 3)),
                attributes={"id": 40},
                annotations=[
                    dm.Mask(
                        image=np.array([[0, 0, 1, 1, 0]]),
                        label=3,
                        id=7,
                        group=7,
                        attributes={"is_crowd": False},
                    ),
                    dm.Mask(
                        image=np.array([[0, 1, 0, 0, 1]]),
                        label=1,
                        id=20,
                        group=20,
                        attributes={"is_crowd": True},
                    ),
                ],
            ),
        ],
        categories=["a", "b", "c", "d"],
    )
    dataset.export("./dataset", format="coco_panoptic", save_media=True)

    (back,) = dm.Dataset.import_from("./dataset", "coco_panoptic")
    assert back.attributes["id"] == 40
    assert [(a.id, a.label, a.image.tolist()) for a in back.annotations] == [
        (7, 3, [[0, 0, 1, 1, 0]]),
        (20, 1, [[0, 1, 0, 0, 1]]),
    ]


def test_roboflow_coco() -> None:
    voc().export("robo", "roboflow_coco", save_media=True)
    dataset = dm.Dataset.import_from("robo", "roboflow_coco")
    assert list(dataset.subsets()) == ["train", "val"]


def test_masks_with_scores_and_ids() -> None:
    """The examples of Cityscapes, KITTI and Open Images, but for their categories."""
    colors = {0: (0, 0, 0), 1: (1, 2, 3), 2: (3, 2, 1)}
    categories = {
        dm.AnnotationType.label: dm.LabelCategories.from_iterable(["background", "label_1", "label_2"]),
        dm.AnnotationType.mask: dm.MaskCategories(colors),
    }
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="1_2",
                subset="test",
                image=np.ones((1, 5, 3)),
                annotations=[
                    dm.Mask(image=np.array([[1, 0, 0, 1, 1]]), label=1, id=0),
                    dm.Mask(image=np.array([[0, 1, 1, 0, 0]]), label=2, id=2, attributes={"is_crowd": False}),
                    dm.Label(0, attributes={"score": 1}),
                ],
            )
        ],
        categories=categories,
    )
    dataset.export("./dataset", format="datumaro")

    back = dm.Dataset.import_from("./dataset")
    assert back.categories()[dm.AnnotationType.mask].colormap == colors
    (item,) = back
    assert [a.image.tolist() for a in item.annotations if a.type == dm.AnnotationType.mask] == [
        [[1, 0, 0, 1, 1]],
        [[0, 1, 1, 0, 0]],
    ]
    assert item.annotations[2].attributes == {"score": 1}


def test_create_a_custom_voc_dataset() -> None:
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="image1",
                image=dm.Image(path="image1.jpg", size=(10, 20)),
                annotations=[
                    dm.Label(3),
                    dm.Bbox(1.0, 1.0, 10.0, 8.0, label=0, attributes={"difficult": True, "running": True}),
                    dm.Polygon([1, 2, 3, 2, 4, 4], label=2, attributes={"occluded": True}),
                    dm.Polygon([6, 7, 8, 8, 9, 7, 9, 6], label=2),
                ],
            ),
        ],
        categories=["person", "sky", "water", "lion"],
    )
    Path("my_labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nperson:10,20,30:head,hand,foot:running,walking\n"
        "sky:0,1,2::\nwater:3,4,5::\nlion:5,6,7::\n"
    )
    dataset.export("./mydataset", format="voc", label_map="my_labelmap.txt")

    back = dm.Dataset.import_from("./mydataset", format="voc")
    boxes = [a for item in back for a in item.annotations if a.type == dm.AnnotationType.bbox]
    assert boxes[0].attributes["running"] is True
    assert back.categories()[dm.AnnotationType.label][boxes[0].label].name == "person"


def test_load_filter_and_convert_from_code() -> None:
    voc()
    dataset = dm.Dataset.import_from("./VOC2012", format="voc")

    train_dataset = dataset.get_subset("train").as_dataset()

    def only_jumping(item: dm.DatasetItem) -> bool:
        return any(ann.attributes.get("jumping") for ann in item.annotations)

    train_dataset = train_dataset.select(only_jumping)
    train_dataset.export("./jumping", format="yolo_ultralytics", save_images=True)  # for label_me
    assert [n for n in names("./jumping") if n.startswith("labels")] == ["labels/train/a.txt"]


def test_items_of_voc_for_the_segmentation_task(capsys: pytest.CaptureFixture[str]) -> None:
    voc()
    dataset = dm.Dataset.import_from("./VOC2012", format="voc")

    def has_mask(item: dm.DatasetItem) -> bool:
        return any(ann.type == dm.AnnotationType.mask for ann in item.annotations)

    dataset = dataset.select(has_mask)
    print(f"Pascal VOC 2012 has {len(dataset)} images for segmentation task:")
    for subset_name, subset in dataset.subsets().items():
        for item in subset:
            print(item.id, subset_name, end=";")
    assert capsys.readouterr().out == "Pascal VOC 2012 has 1 images for segmentation task:\nb train;"


def test_create_a_custom_yolo_dataset_and_print_its_labels() -> None:
    dataset = dm.Dataset.from_iterable(
        [
            dm.DatasetItem(
                id="image_001",
                subset="train",
                image=np.ones((20, 20, 3)),
                annotations=[
                    dm.Bbox(3.0, 1.0, 8.0, 5.0, label=1),
                    dm.Bbox(1.0, 1.0, 10.0, 1.0, label=2),
                ],
            ),
            dm.DatasetItem(
                id="image_002",
                subset="train",
                image=np.ones((15, 10, 3)),
                annotations=[dm.Bbox(4.0, 4.0, 4.0, 4.0, label=3)],
            ),
        ],
        categories=["house", "bridge", "crosswalk", "traffic_light"],
    )
    dataset.export("../yolo_dataset", format="yolo", save_images=True)

    dataset = dm.Dataset.import_from("../yolo_dataset", format="yolo")
    cats = dataset.categories()[dm.AnnotationType.label]
    found = [(item.id, cats[ann.label].name) for item in dataset for ann in item.annotations]
    assert found == [("image_001", "bridge"), ("image_001", "crosswalk"), ("image_002", "traffic_light")]
    shutil.rmtree("../yolo_dataset")


class TestPointClouds:
    """The examples of KITTI Raw and of Supervisely's point clouds."""

    @pytest.fixture
    def dataset(self) -> dm.Dataset:
        for name in ("path/to/pcd1.pcd", "path/to/pcd2.pcd"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(b"points of " + name.encode())
        for name in ("path/to/image2.png", "image3.jpg"):
            Path(name).write_bytes(b"pixels of " + name.encode())
        return dm.Dataset.from_iterable(
            [
                dm.DatasetItem(
                    id="frame_000000",
                    annotations=[
                        dm.Cuboid3d(
                            position=[13.54, -9.41, 0.24],
                            label=0,
                            attributes={"occluded": False, "track_id": 1},
                        ),
                        dm.Cuboid3d(
                            id=206,
                            position=[3.4, -2.11, 4.4],
                            label=1,
                            attributes={"occluded": True, "track_id": 2},
                        ),
                    ],
                    pcd="path/to/pcd1.pcd",
                    related_images=[np.ones((10, 10)), "path/to/image2.png", "image3.jpg"],
                    attributes={"frame": 0},
                ),
                dm.DatasetItem(
                    id="frm2",
                    annotations=[dm.Cuboid3d(id=208, label=1, position=[23.04, 8.75, -0.78])],
                    pcd="path/to/pcd2.pcd",
                    related_images=["image3.jpg"],
                    attributes={"frame": 1},
                ),
            ],
            categories=["cat", "dog"],
        )

    @pytest.mark.parametrize("format", ["datumaro", "rayds"])  # for kitti_raw, sly_pointcloud
    def test_are_written_and_read(self, dataset: dm.Dataset, format: str) -> None:
        dataset.export("my_dataset/", format=format, save_images=True)
        shutil.rmtree("path")
        first, second = dm.Dataset.import_from("my_dataset/")
        assert [list(a.position) for a in first.annotations] == [[13.54, -9.41, 0.24], [3.4, -2.11, 4.4]]
        assert (first.attributes, second.attributes) == ({"frame": 0}, {"frame": 1})
        assert first.point_cloud is not None
        assert Path(first.point_cloud.path).read_bytes() == b"points of path/to/pcd1.pcd"

    def test_their_images_are_saved_with_them(self, dataset: dm.Dataset) -> None:
        dataset.export("my_dataset/", format="datumaro", save_images=True)
        shutil.rmtree("path")
        first, second = dm.Dataset.import_from("my_dataset/")
        made, given, third = first.related_images
        assert np.array_equal(made.pixels, np.ones((10, 10)))
        assert Path(given.path).read_bytes() == b"pixels of path/to/image2.png"
        assert Path(third.path).read_bytes() == b"pixels of image3.jpg"
        assert len(second.related_images) == 1

    def test_are_shown_short(self, dataset: dm.Dataset) -> None:
        first = next(iter(dataset))
        assert repr(first) == (
            "DatasetItem('frame_000000', subset='default', "
            "PointCloud(path/to/pcd1.pcd, 3 related images), 2 cuboid_3d)"
        )

    def test_images_without_a_cloud_to_belong_to(self) -> None:
        with pytest.raises(ValueError, match="item 'a': related_images belong to a point cloud"):
            dm.DatasetItem("a", related_images=["x.png"])
        with pytest.raises(ValueError, match="give one of"):
            dm.DatasetItem("a", pcd="a.pcd", point_cloud="b.pcd")
