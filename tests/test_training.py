"""Batches, targets and shards for training: what a loop gets, on both engines, and what happens with bad items."""

from __future__ import annotations

import io
from collections.abc import Iterable
from itertools import chain
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_data import LABELS, numbered, png

import rayds
from rayds import Bbox, Dataset, DatasetItem, Ellipse, Image, Label, Mask, Polygon, RotatedBbox


def one(item: DatasetItem, labels: list[str] = LABELS, **options: Any) -> dict[str, Any]:
    """The sample of a dataset of one item."""
    [batch] = Dataset.from_iterable([item], labels, engine="local").iter_batches(1, **options)
    return {name: values[0] for name, values in batch.items()}


def ids_of(batches: Iterable[dict[str, Any]]) -> list[str]:
    return list(chain.from_iterable(b["id"] for b in batches))


class TestImages:
    def test_are_rgb(self):
        blue = np.zeros((4, 5, 3), np.uint8)
        blue[:, :, 0] = 200  # OpenCV writes BGR
        for ext in (".png", ".bmp", ".webp", ".tif"):
            sample = one(DatasetItem("a", media=png(blue, ext)))
            assert sample["image"].dtype == np.uint8
            assert sample["image"].shape == (4, 5, 3)
            assert abs(sample["image"].astype(int) - [0, 0, 200]).max() <= 3, ext
        assert (
            abs(one(DatasetItem("a", media=png(blue, ".jpg")))["image"].astype(int) - [0, 0, 200]).max() <= 6
        )

    def test_of_any_depth_become_three_bytes(self):
        deep = np.full((4, 5), 0x80F0, np.uint16)
        assert (one(DatasetItem("a", media=png(deep)))["image"] == 0x80).all()
        alpha = np.full((4, 5, 4), 7, np.uint8)
        assert one(DatasetItem("a", media=png(alpha)))["image"].tolist() == np.full((4, 5, 3), 7).tolist()
        gray = np.full((4, 5), 9, np.uint8)
        assert one(DatasetItem("a", media=png(gray)))["image"].tolist() == np.full((4, 5, 3), 9).tolist()
        for shape in ((4, 5), (4, 5, 3)):
            floats = one(DatasetItem("a", media=png(np.full(shape, 0.5, np.float32), ".tif")))["image"]
            assert floats.tolist() == np.full((4, 5, 3), 128).tolist()

    def test_are_not_turned_by_exif(self):
        from PIL import Image as Pillow

        exif = Pillow.Exif()
        exif[0x0112] = 6
        out = io.BytesIO()
        Pillow.new("RGB", (30, 20)).save(out, "JPEG", exif=exif)
        for options in ({}, {"resize": (10, 10)}):
            item = DatasetItem(
                "a", media=Image.from_bytes(out.getvalue()), annotations=[Bbox(0, 0, 15, 20, label=0)]
            )
            sample = one(item, targets="detection", **options)
            assert sample["image"].shape == ((10, 10, 3) if options else (20, 30, 3))
            assert sample["boxes"].tolist() == ([[0, 0, 5, 10]] if options else [[0, 0, 15, 20]])

    @pytest.mark.parametrize(("side", "reduced"), [(32, 8), (40, 4), (64, 4), (130, 2), (200, 1), (400, 1)])
    def test_a_large_jpeg_is_decoded_small_and_looks_the_same(self, monkeypatch, side, reduced):
        rng = np.random.default_rng(0)
        pixels = cv2.GaussianBlur(rng.integers(0, 256, (260, 300, 3), np.uint8), (0, 0), 16)
        pixels = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX)
        flags: list[int] = []
        own = cv2.imdecode
        monkeypatch.setattr(cv2, "imdecode", lambda data, flag: flags.append(flag) or own(data, flag))
        made = one(DatasetItem("a", media=png(pixels, ".jpg")), resize=side)["image"]
        wanted = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
        assert [f & ~cv2.IMREAD_IGNORE_ORIENTATION for f in flags] == [wanted.get(reduced, cv2.IMREAD_COLOR)]
        how = cv2.INTER_AREA if side < 260 else cv2.INTER_LINEAR
        plain = cv2.resize(pixels, (side, side), interpolation=how)[:, :, ::-1]
        assert made.shape == (side, side, 3)
        assert abs(made.astype(int) - plain).mean() < 4

    def test_in_a_letterbox_keep_their_proportions(self):
        white = np.full((20, 40, 3), 255, np.uint8)
        mask = np.zeros((20, 40), bool)
        mask[:10, 20:] = True
        item = DatasetItem(
            "a", media=png(white), annotations=[Bbox(20, 0, 20, 10, label=1), Mask(mask, label=1)]
        )
        sample = one(item, resize=(60, 80), fit="letterbox", targets="detection")
        rows = (sample["image"] == 255).all(axis=(1, 2))
        assert np.flatnonzero(rows).tolist() == list(range(10, 50))
        assert (sample["image"][~rows] == 114).all()
        assert sample["boxes"].tolist() == [[40, 10, 80, 30], [40, 10, 80, 30]]
        drawn = one(item, resize=(60, 80), fit="letterbox", targets="segmentation")["mask"]
        assert np.argwhere(drawn).min(0).tolist() == [10, 40]
        assert np.argwhere(drawn).max(0).tolist() == [29, 79]
        assert (drawn[10:30, 40:] == 2).all()


class TestTargets:
    def test_a_class(self):
        item = DatasetItem("a", annotations=[Bbox(0, 0, 1, 1, label=0), Label(2), Label(2)])
        sample = one(item, decode=False, targets="classification")
        assert sample == {"id": "a", "subset": "default", "label": 2}

    @pytest.mark.parametrize("labels", [[], [0, 1]])
    def test_no_class_or_two_are_told(self, labels):
        item = DatasetItem("a", annotations=[Label(i) for i in labels])
        with pytest.raises(
            rayds.DataError, match=r"item 'a'.*(no Label annotation|2 different labels).*multi_label"
        ):
            one(item, decode=False, targets="classification")
        many = one(item, decode=False, targets="classification", multi_label=True)["labels"]
        assert many.dtype == np.float32
        assert many.tolist() == [float(i in labels) for i in range(3)]

    def test_objects_are_groups(self):
        mask = np.zeros((50, 60), bool)
        mask[10:20, 30:50] = True
        annotations = [
            Polygon([0, 0, 10, 0, 10, 10], label=1, group=4),
            Bbox(1, 2, 30, 40, label=0, group=5, attributes={"is_crowd": True}),
            Mask(mask, label=0, group=5),
            Polygon([0, 0, 0, 20, 10, 20], label=1, group=4),
            Bbox(5, 6, 7, 8, label=2),
            Label(1),
            Ellipse(0, 0, 10, 20, label=1),
            RotatedBbox(20, 20, 10, 4, 90, label=2),
        ]
        item = DatasetItem("a", annotations=annotations)
        sample = one(item, decode=False, targets="detection")
        wanted = [[0, 0, 10, 20], [1, 2, 31, 42], [5, 6, 12, 14], [0, 0, 10, 20], [18, 15, 22, 25]]
        np.testing.assert_allclose(sample["boxes"], wanted)
        assert sample["boxes"].dtype == np.float32
        assert sample["labels"].tolist() == [1, 0, 2, 1, 2]
        np.testing.assert_allclose(sample["area"], [50 + 100, 200, 56, np.pi * 50, 40], rtol=1e-6)
        assert sample["iscrowd"].tolist() == [0, 1, 0, 0, 0]

    def test_objects_are_scaled_with_the_image(self):
        item = DatasetItem(
            "a", media=png(np.zeros((50, 100, 3), np.uint8)), annotations=[Bbox(10, 10, 20, 30, label=0)]
        )
        for decode in (True, False):
            sample = one(item, decode=decode, resize=(100, 50), targets="detection")
            assert sample["boxes"].tolist() == [[5, 20, 15, 80]]
            assert sample["area"].tolist() == [600]

    def test_an_image_without_objects_has_empty_boxes(self):
        sample = one(DatasetItem("a"), decode=False, targets="detection")
        assert sample["boxes"].shape == (0, 4)
        assert sample["labels"].shape == (0,)

    def test_a_mask_of_classes_is_drawn_by_z_order(self):
        low = np.zeros((20, 30), bool)
        low[:, :15] = True
        annotations = [
            Polygon([0, 0, 30, 0, 30, 10, 0, 10], label=2, z_order=1),
            Mask(low, label=0, z_order=0),
            Polygon([0, 0, 4, 0, 4, 20, 0, 20], label=1, z_order=0),
        ]
        item = DatasetItem("a", media=png(np.zeros((20, 30, 3), np.uint8)), annotations=annotations)
        drawn = one(item, targets="segmentation")["mask"]
        assert drawn.dtype == np.uint8
        assert (drawn[:10] == 3).all()
        assert (drawn[10:, :4] == 2).all()
        assert (drawn[10:, 4:15] == 1).all()
        assert (drawn[10:, 15:] == 0).all()
        for decode in (True, False):
            half = one(item, decode=decode, resize=(10, 15), targets="segmentation")["mask"]
            assert half.tolist() == drawn[1::2, 1::2].tolist()

    def test_many_classes_need_a_wider_mask(self):
        item = DatasetItem(
            "a", media=Image(path="no.png", size=(4, 4)), annotations=[Mask(np.ones((4, 4)), label=299)]
        )
        drawn = one(item, [f"c{i}" for i in range(300)], decode=False, targets="segmentation")["mask"]
        assert drawn.dtype == np.int32
        assert (drawn == 300).all()

    @pytest.mark.parametrize(
        ("annotation", "targets", "message"),
        [
            (Bbox(0, 0, 1, 1), "detection", "an object has no label"),
            (Polygon([0, 0, 9, 0, 9, 9]), "segmentation", "an object has no label"),
            (
                Mask(np.ones((3, 3)), label=0),
                "segmentation",
                "a mask has 3x3 pixels, but the image has 30x20",
            ),
            (
                Mask(rle={"size": [20, 30], "counts": "zzz"}, label=0),
                "detection",
                "run lengths of a mask are broken",
            ),
            (
                Mask(rle={"size": [20, 30], "counts": "zzz"}, label=0),
                "segmentation",
                "run lengths of a mask are broken",
            ),
        ],
    )
    def test_what_can_not_be_learnt_is_told(self, annotation, targets, message):
        item = DatasetItem("it", media=png(np.zeros((20, 30, 3), np.uint8)), annotations=[annotation])
        with pytest.raises(rayds.DataError, match=f"item 'it'.*{message}"):
            one(item, targets=targets)


class TestBatches:
    def test_are_the_same_on_every_engine(self, engine):
        wanted = list(numbered(50).iter_batches(16, resize=8, targets="detection", shuffle="global", seed=3))
        made = list(
            numbered(50, engine).iter_batches(16, resize=8, targets="detection", shuffle="global", seed=3)
        )
        assert [len(b["id"]) for b in made] == [16, 16, 16, 2]
        for a, b in zip(wanted, made, strict=True):
            assert a["id"] == b["id"]
            assert a["image"].tobytes() == b["image"].tobytes()
            assert [x.tolist() for x in a["boxes"]] == [x.tolist() for x in b["boxes"]]
            assert (b["image"][:, 0, 0, 0] == [int(i) for i in b["id"]]).all()

    def test_keep_the_order_and_shapes_of_the_source(self, engine):
        made = list(numbered(10, engine).iter_batches(4, targets="classification", drop_last=True))
        assert ids_of(made) == [f"{i:03d}" for i in range(8)]
        assert [im.shape for im in made[0]["image"]] == [(20, 30, 3), (21, 30, 3), (22, 30, 3), (20, 30, 3)]
        assert made[1]["label"].tolist() == [1, 2, 0, 1]
        made[0]["image"][0][:] = 0  # belongs to the loop, which may write to it

    def test_shuffled_in_windows(self, engine):
        data = numbered(40, engine)

        def ids(**options: Any) -> list[str]:
            return ids_of(data.iter_batches(7, decode=False, **options))

        first = ids(shuffle=10, epoch=1)
        for start in range(0, 40, 10):
            part = first[start : start + 10]
            assert sorted(part) == [f"{i:03d}" for i in range(start, start + 10)]
            assert part != sorted(part)
        assert ids(shuffle=10, epoch=1) == first

    def test_every_epoch_and_seed_has_its_own_order(self):
        data = numbered(40)
        orders = [
            tuple(ids_of(data.iter_batches(9, decode=False, shuffle="global", seed=s, epoch=e)))
            for s, e in ((0, 0), (0, 1), (1, 0))
        ]
        assert len(set(orders)) == 3
        assert {tuple(sorted(o)) for o in orders} == {tuple(f"{i:03d}" for i in range(40))}

    def test_a_shuffle_of_more_than_fits_in_memory_is_the_same(self):
        from rayds.engine.local import LocalEngine

        orders = [
            [
                b["id"]
                for b in numbered(200, LocalEngine(2, spill_bytes=n)).iter_batches(
                    50, decode=False, shuffle="global"
                )
            ]
            for n in (1, 1 << 30)
        ]
        assert orders[0] == orders[1]

    def test_leave_bad_items_out_when_asked_and_tell(self, engine, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
        items = list(numbered(20))
        items.insert(3, DatasetItem("none"))
        items.insert(5, DatasetItem("missing", media=Image(path=str(tmp_path / "missing.jpg"))))
        items.insert(9, DatasetItem("broken", media=Image(path=str(tmp_path / "broken.jpg"))))
        data = Dataset.from_iterable(items, LABELS, engine=engine)
        with pytest.raises(rayds.DataError, match="item 'none'.*the item has no image"):
            list(data.iter_batches(8, resize=8))
        data._on_error = rayds.OnError.SKIP
        with pytest.warns(UserWarning, match="3 bad items were left out of the batches.*'none'"):
            made = list(data.iter_batches(8, resize=8))
        assert [len(b["id"]) for b in made] == [8, 8, 4]
        assert ids_of(made) == [f"{i:03d}" for i in range(20)]

    def test_a_storage_that_does_not_answer_is_no_bad_item(self, monkeypatch):
        """Else a whole dataset would be left out while it is away."""

        def away(path: str) -> bytes:
            raise rayds.StorageError(f"{path}: nobody answers")

        monkeypatch.setattr("rayds.samples.read_url", away)
        items = [DatasetItem(str(i), media=Image(path=f"s3://bucket/{i}.jpg")) for i in range(9)]
        data = Dataset.from_iterable(items, LABELS, engine="local")
        data._on_error = rayds.OnError.SKIP
        with pytest.raises(rayds.StorageError, match="s3://bucket/0.jpg: nobody answers"):
            list(data.iter_batches(4))

    def test_errors_of_the_reader_and_shuffles_go_together(self, engine, tmp_path):
        """Error rows that a reader made pass through a shuffle, and are counted."""
        (tmp_path / "train").mkdir()
        for i in range(6):
            cv2.imwrite(str(tmp_path / "train" / f"{i}.png"), np.full((4, 4, 3), i, np.uint8))
        data = Dataset.import_from(str(tmp_path), "image_dir", engine=engine, on_error="skip").map(
            lambda item: item if item.id[-1] != "2" else 1 / 0
        )
        with pytest.warns(UserWarning, match="1 bad items.*ZeroDivisionError"):
            made = list(data.iter_batches(10, resize=4, shuffle="global"))
        assert sorted(made[0]["image"][:, 0, 0, 0].tolist()) == [0, 1, 3, 4, 5]
        assert len(data.repartition(2)) == 5

    def test_can_be_left_in_the_middle(self, engine):
        for batch in numbered(50, engine).iter_batches(4, resize=8):
            assert len(batch["id"]) == 4
            break

    def test_of_nothing_are_none(self, engine):
        assert list(Dataset.from_iterable([], LABELS, engine=engine).iter_batches(4)) == []

    def test_read_only_what_they_need(self, tmp_path, monkeypatch):
        numbered(12).export(str(tmp_path / "out"), "rayds", embed=True)
        data = Dataset.import_from(str(tmp_path / "out"), engine="local")
        read: list[list[str]] = []
        own = pq.ParquetFile.read_row_group
        monkeypatch.setattr(
            pq.ParquetFile,
            "read_row_group",
            lambda self, *a, columns=None, **k: read.append(columns) or own(self, *a, columns=columns, **k),
        )
        data.get_subset("train").shard_sizes(2)
        assert read.pop() == ["id", "subset"]
        [batch] = data.shard(0, 1).iter_batches(12, decode=False, targets="classification")
        assert read.pop() == ["id", "subset", "annotations"]
        assert batch["label"].tolist() == [i % 3 for i in range(12)]
        [batch] = data.iter_batches(12, columns=("id",), resize=4)
        assert read.pop() == ["id", "subset", "media"]
        assert list(batch) == ["id", "image"]
        assert len(data.map(lambda item: item).get("001").annotations) == 2  # a function sees all

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"columns": ("idd",)}, "unknown column 'idd'. Did you mean 'id'"),
            ({"targets": "boxes"}, "unknown kind of targets 'boxes'"),
            ({"resize": (0, 3)}, "resize is"),
            ({"resize": 3.5}, "resize is"),
            ({"fit": "letterbox"}, "needs resize"),
            ({"fit": "crop", "resize": 4}, "unknown fit 'crop'"),
            ({"resize": 4, "decode": False, "targets": "classification"}, "nothing to resize"),
            ({"multi_label": True}, "targets='classification'"),
            ({"shuffle": True}, "shuffle is"),
            ({"shuffle": 0}, "shuffle is"),
            ({"batch_size": 0}, "batch_size"),
        ],
    )
    def test_bad_options_are_told_at_once(self, options, message):
        with pytest.raises(rayds.UsageError, match=message):
            numbered(1).iter_batches(**options)


class TestShards:
    @pytest.mark.parametrize("by", ["id", "subset"])
    def test_hold_each_item_once(self, by, engine):
        data = numbered(40, engine)
        shards = [[i.id for i in data.shard(k, 3, by)] for k in range(3)]
        assert sorted(chain(*shards)) == [f"{i:03d}" for i in range(40)]
        assert all(s == sorted(s) for s in shards)
        assert [len(s) for s in shards] == data.shard_sizes(3, by)
        if by == "id":
            assert min(map(len, shards)) > 5
            assert list(chain(*shards)) == [i.id for i in data.repartition(3)]

    def test_do_not_depend_on_the_release(self):
        assert [[i.id for i in numbered(12).shard(k, 3)] for k in range(3)] == SHARDS

    @pytest.mark.parametrize("count", [1, 2, 7, 60])
    def test_any_number_of_them(self, count):
        data = numbered(30)
        assert sorted(i.id for k in range(count) for i in data.shard(k, count)) == [
            f"{i:03d}" for i in range(30)
        ]

    @pytest.mark.parametrize(
        ("index", "count", "by"), [(3, 3, "id"), (-1, 3, "id"), (0, 0, "id"), (0, 2, "name")]
    )
    def test_wrong_ones_are_told(self, index, count, by):
        with pytest.raises(rayds.UsageError):
            numbered(1).shard(index, count, by)

    def test_outside_of_ray_train_a_worker_has_everything(self):
        assert len(numbered(9).worker_shard()) == 9

    def test_inside_a_worker_has_the_shard_of_its_rank(self, monkeypatch):
        import ray.train

        for rank in range(3):
            context = SimpleNamespace(get_world_rank=lambda rank=rank: rank, get_world_size=lambda: 3)
            monkeypatch.setattr(ray.train, "get_context", lambda context=context: context)
            assert [i.id for i in numbered(12).worker_shard()] == SHARDS[rank]


SHARDS = [["002", "004", "011"], ["001", "006", "009", "010"], ["000", "003", "005", "007", "008"]]


@pytest.mark.ray
class TestRay:
    def test_samples_have_tensor_types(self, ray_engine):
        made = numbered(20, ray_engine).to_ray(
            decode=True, resize=(8, 10), targets="detection", columns=("id",)
        )
        types = dict(zip(made.schema().names, map(str, made.schema().types), strict=True))
        assert list(types) == ["id", "image", "boxes", "labels", "area", "iscrowd"]
        assert types["image"] == "ArrowTensorTypeV2(shape=(8, 10, 3), dtype=uint8)"
        assert types["boxes"].startswith("ArrowVariableShapedTensorType(ndim=2")
        rows = made.take_all()
        assert [r["id"] for r in rows] == [f"{i:03d}" for i in range(20)]
        assert all((r["image"] == int(r["id"])).all() for r in rows)
        assert [len(r["boxes"]) for r in rows] == [i % 2 for i in range(20)]

    def test_images_keep_their_size_without_resize(self, ray_engine):
        made = numbered(9, ray_engine).to_ray(decode=True, targets="segmentation")
        assert [r["image"].shape for r in made.take_all()] == [(20 + i % 3, 30, 3) for i in range(9)]
        assert {r["mask"].shape for r in made.take_all()} == {(20, 30), (21, 30), (22, 30)}

    def test_columns(self, ray_engine):
        data = numbered(9, ray_engine)
        assert data.to_ray().schema().names == rayds.ITEM_SCHEMA.names
        assert data.to_ray(columns=["subset", "id"]).schema().names == ["subset", "id"]
        classes = data.to_ray(columns=(), targets="classification")
        assert classes.schema().types == [pa.int64()]
        assert [r["label"] for r in classes.take_all()] == [i % 3 for i in range(9)]

    def test_bad_items_follow_the_policy(self, ray_engine):
        items = [*numbered(5), DatasetItem("bad", annotations=[Label(0)])]
        data = Dataset.from_iterable(items, LABELS, engine=ray_engine)
        with pytest.raises(Exception, match=r"item 'bad'.*has no image|see the error above"):
            data.to_ray(decode=True).materialize()
        data._on_error = rayds.OnError.SKIP
        assert data.to_ray(decode=True, resize=4).count() == 5

    def test_workers_of_ray_train_can_split_them(self, ray_engine):
        stream = numbered(40, ray_engine).to_ray(columns=("id",), decode=True, resize=4)
        [one] = stream.streaming_split(1, equal=True)
        assert sum(len(b["id"]) for b in one.iter_batches(batch_size=8)) == 40
