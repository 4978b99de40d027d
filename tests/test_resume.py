"""An interrupted export goes on where it ended, and ends in the same bytes as one that was not interrupted."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayds
from rayds import storage
from rayds.engine.base import Engine
from rayds.engine.local import LocalEngine
from rayds.errors import OutputExistsError, ResumeError
from rayds.export import ExportWriter
from rayds.formats.coco import Coco
from rayds.partial import Partial
from rayds.reading import ShardReader
from rayds.resume import Job
from rayds.schema import annotation_rows, item_table, media_rows
from rayds.storage import Storage
from rayds.units import UnitWriter

ITEMS, PER_SHARD = 180, 20


def table(n: int, ids: bool = True) -> pa.Table:
    """Items with two boxes each, of known image sizes, in two subsets."""
    rows = annotation_rows(
        2 * n,
        type=6,
        id=list(range(1, 2 * n + 1)) if ids else 0,
        group=list(range(1, 2 * n + 1)),
        label=[i % 3 for i in range(2 * n)],
        points=[[float(i % 50), 5.25, 20.0, 10.5] for i in range(2 * n)],
    )
    media = media_rows(n, path=[f"/nowhere/{i:05d}.jpg" for i in range(n)], height=100, width=200)
    subset = ["val" if i % 10 == 3 else "train" for i in range(n)]
    return item_table(n, rows, [2] * n, id=[f"{i:05d}" for i in range(n)], subset=subset, media=media)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of nine shards, whose annotations have no ids: COCO then numbers them through."""
    path = tmp_path_factory.mktemp("source") / "items"
    dataset = rayds.Dataset.from_arrow(table(ITEMS, ids=False), ["a", "b", "c"])
    dataset.export(str(path), "rayds", shard_size=PER_SHARD)
    return path


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDS_BLOCK_ROWS", "10")


def files(path: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def load(path: Path, engine: Any = None, **options: Any) -> rayds.Dataset:
    return rayds.Dataset.import_from(str(path), "rayds", engine=engine or LocalEngine(2), **options)


class Stop(Exception):  # noqa: N818
    """Ends an export in the middle."""


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of items of each block that is written in this process."""
    found: list[int] = []
    written = ExportWriter.write

    def write(self: Any, block: pa.Table, *args: Any) -> Any:
        found.append(block.num_rows)
        return written(self, block, *args)

    monkeypatch.setattr(ExportWriter, "write", write)
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are read in this process."""
    found: list[str] = []
    read = ShardReader.__call__

    def call(self: Any, shard: Any) -> Any:
        found.append(shard.name)
        return read(self, shard)

    monkeypatch.setattr(ShardReader, "__call__", call)
    return found


def interrupted(dataset: rayds.Dataset, out: Path, format: str, units: int, **options: Any) -> None:
    """Leave an export of a dataset after some units."""
    written, left = ExportWriter.write, [units]

    def write(self: Any, *args: Any) -> Any:
        if left[0] <= 0:
            raise Stop
        left[0] -= 1
        return written(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExportWriter, "write", write)
        with pytest.raises(Stop):
            dataset.export(str(out), format, resume=True, engine=LocalEngine(2), **options)
    assert Partial(Storage(out)).job()


def told(report: rayds.Report) -> dict[str, Any]:
    """What a report says, but where, when and how."""
    return {**report.to_json(), "path": "", "seconds": 0, "resumed": 0, "quarantine": None}


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("coco", {}),
    ("yolo", {}),
    ("yolo_ultralytics", {}),
    ("voc", {}),
    ("datumaro", {}),
    ("rayds", {"shard_size": 17}),
]


@pytest.mark.parametrize(("format", "options"), FORMATS, ids=[f for f, _ in FORMATS])
@pytest.mark.parametrize("units", [0, 7])
def test_the_result_is_that_of_an_uninterrupted_run(
    source: Path, tmp_path: Path, writes: list[int], format: str, options: dict[str, Any], units: int
) -> None:
    whole = load(source).export(str(tmp_path / "whole"), format, **options)
    interrupted(load(source), tmp_path / "out", format, units, **options)
    assert not (tmp_path / "out").exists()
    writes.clear()
    report = load(source).export(str(tmp_path / "out"), format, resume=True, **options)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert report.resumed == ITEMS - sum(writes)
    assert bool(report.resumed) == bool(units)
    assert told(report) == told(whole)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "out.rayds-done.json", "whole"}


@pytest.mark.ray
@pytest.mark.parametrize(("format", "options"), [FORMATS[0], FORMATS[-1]], ids=["coco", "rayds"])
def test_begun_on_one_engine_finished_on_the_other(
    ray_engine: Engine, source: Path, tmp_path: Path, format: str, options: dict[str, Any]
) -> None:
    load(source).export(str(tmp_path / "whole"), format, **options)
    interrupted(load(source), tmp_path / "out", format, 7, **options)
    report = load(source, ray_engine).export(str(tmp_path / "out"), format, resume=True, **options)
    assert 0 < report.resumed < ITEMS
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.ray
def test_begun_on_ray_finished_in_this_process(ray_engine: Engine, source: Path, tmp_path: Path) -> None:
    load(source).export(str(tmp_path / "whole"), "yolo")
    out = tmp_path / "out"
    # as a driver leaves it that dies before the end: all is written, nothing is joined
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayds.export.finish", _stop)
        with pytest.raises(Stop):
            load(source, ray_engine).export(str(out), "yolo", resume=True)
    units = sorted((tmp_path / "out.rayds-partial/units").iterdir())
    for unit in units[1::2]:
        unit.unlink()
    report = load(source).export(str(out), "yolo", resume=True)
    assert 0 < report.resumed < ITEMS
    assert files(out) == files(tmp_path / "whole")


def _stop(*args: Any, **options: Any) -> None:
    raise Stop


def test_shards_that_are_done_are_not_read_again(source: Path, tmp_path: Path, reads: list[str]) -> None:
    for format, options in (("yolo", {}), ("coco", {}), ("rayds", {"shard_size": 17})):
        out = tmp_path / format
        interrupted(load(source), out, format, 7, **options)
        reads.clear()
        load(source).export(str(out), format, resume=True, **options)
        done = 7 * options.get("shard_size", 10) // PER_SHARD
        assert reads == [f"data/part-{i:05d}.parquet" for i in range(done, ITEMS // PER_SHARD)]


def test_nothing_is_done_again_once_all_is_written(
    source: Path, tmp_path: Path, reads: list[str], writes: list[int]
) -> None:
    """Joining the fragments is done again; what it removes is still there."""
    load(source).export(str(tmp_path / "whole"), "coco")
    finish = Coco.finish

    def fail(self: Any, fragments: Any, ctx: Any) -> None:
        finish(self, fragments, ctx)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coco, "finish", fail)
        with pytest.raises(Stop):
            load(source).export(str(tmp_path / "out"), "coco", resume=True)
    reads.clear()
    writes.clear()
    load(source).export(str(tmp_path / "out"), "coco", resume=True)
    assert (reads, writes) == ([], [])
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_publishing_that_was_broken_off(source: Path, tmp_path: Path, moment: str, overwrite: bool) -> None:
    load(source).export(str(tmp_path / "whole"), "yolo")
    out = tmp_path / "out"
    if overwrite:
        load(source).export(str(out), "rayds")
    publish, rename = Storage.publish, os.rename

    def before(self: Storage, *args: Any, **options: Any) -> None:
        raise Stop

    def after(self: Storage, *args: Any, **options: Any) -> None:
        publish(self, *args, **options)
        raise Stop

    def second(a: str, b: str) -> None:
        if str(b) == str(out):
            raise Stop
        rename(a, b)

    with pytest.MonkeyPatch.context() as patch:
        if moment == "between":
            patch.setattr(os, "rename", second)
        else:
            patch.setattr(Storage, "publish", before if moment == "before" else after)
        with pytest.raises(Stop):
            load(source).export(str(out), "yolo", resume=True, overwrite=overwrite)
    report = load(source).export(str(out), "yolo", resume=True, overwrite=overwrite)
    assert report.items == ITEMS
    assert files(out) == files(tmp_path / "whole")
    assert not (tmp_path / "out.rayds-partial").exists()


def test_another_job_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(load(source), out, "rayds", 3, shard_size=17)
    kept = files(tmp_path / "out.rayds-partial")
    with pytest.raises(ResumeError, match="output options shard size: 17 before, 18 now") as error:
        load(source).export(str(out), "rayds", shard_size=18, resume=True)
    assert "--overwrite, or without --resume" in str(error.value)
    with pytest.raises(ResumeError, match='output format: "rayds" before, "yolo" now'):
        load(source).export(str(out), "yolo", resume=True)
    with pytest.raises(ResumeError, match='on error: "raise" before, "skip" now'):
        load(source, on_error="skip").export(str(out), "rayds", shard_size=17, resume=True)
    with pytest.raises(ResumeError, match="input options columns"):
        load(source, columns=("media",)).export(str(out), "rayds", shard_size=17, resume=True)
    assert files(tmp_path / "out.rayds-partial") == kept
    report = load(source).export(str(out), "rayds", shard_size=18, resume=True, overwrite=True)
    assert report.resumed == 0
    whole = load(source).export(str(tmp_path / "whole"), "rayds", shard_size=18)
    assert told(whole) == told(report)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("change", ["touch", "replace", "add", "remove"])
def test_a_changed_input_is_refused(source: Path, tmp_path: Path, change: str) -> None:
    items, out = tmp_path / "items", tmp_path / "out"
    shutil.copytree(source, items)
    time.sleep(0.02)  # the clock of files is coarse
    interrupted(load(items), out, "yolo", 3)
    part = items / "data/part-00001.parquet"
    time.sleep(0.02)
    if change == "touch":
        part.touch()
    elif change == "replace":  # with a time of long ago
        shutil.copy2(source / "data/part-00001.parquet", items / "copy")
        os.replace(items / "copy", part)
    elif change == "add":
        (items / "data/readme.txt").write_text("new")
    else:
        (items / "data/readme.txt").write_text("new")
        (items / "data/readme.txt").unlink()
    with pytest.raises(ResumeError, match=r"changed since the run began \(.*/items"):
        load(items).export(str(out), "yolo", resume=True)
    assert load(items).export(str(out), "yolo", resume=True, overwrite=True).resumed == 0


def test_an_output_in_the_inputs_folder_is_no_change_of_the_input(source: Path, tmp_path: Path) -> None:
    items = tmp_path / "items"
    shutil.copytree(source, items)
    time.sleep(0.02)
    interrupted(load(items), items / "out", "yolo", 3)
    time.sleep(0.02)
    assert load(items).export(str(items / "out"), "yolo", resume=True).resumed > 0


def test_without_resume_an_export_begins_anew_and_says_so(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(load(source), out, "yolo", 3)
    with pytest.warns(UserWarning, match="an interrupted run of .*out was found and removed"):
        assert load(source).export(str(out), "yolo").resumed == 0
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("format", ["coco", "datumaro"])
def test_killed_while_files_are_joined_and_used_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    load(source).export(str(tmp_path / "whole"), format)
    out, append, calls = tmp_path / "out", storage.append_file, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 4:
            raise Stop
        append(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "append_file", killed)
        patch.setattr(Job, "_leave", lambda *args, **options: None)  # it would have had no time
        with pytest.raises(Stop):
            load(source).export(str(out), format)
    assert load(source).export(str(out), format, resume=True).resumed == 0
    assert files(out) == files(tmp_path / "whole")


def test_a_failure_without_resume_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayds.export.finish", _stop)
    with pytest.raises(Stop):
        load(source).export(str(tmp_path / "out"), "yolo")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_job_is_not_done_again(source: Path, tmp_path: Path, writes: list[int]) -> None:
    out = tmp_path / "out"
    first = load(source).export(str(out), "yolo", resume=True)
    writes.clear()
    again = load(source).export(str(out), "yolo", resume=True)
    assert (told(again), writes) == (told(first), [])
    with pytest.raises(OutputExistsError):
        load(source).export(str(out), "yolo", save_conf=True, resume=True)
    shutil.rmtree(out)  # the record alone is no output
    load(source).export(str(out), "yolo", resume=True)
    assert sum(writes) == ITEMS


def test_two_processes_do_not_write_one_output(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = Partial(Storage(out))
    other.lock()
    for resume in (False, True):
        with pytest.raises(OutputExistsError, match="another process is writing"):
            load(source).export(str(out), "yolo", resume=resume)
    other.unlock()
    load(source).export(str(out), "yolo")


def test_a_process_whose_output_another_took_over_stops(source: Path, tmp_path: Path) -> None:
    """As on object stores, which have no locks."""
    write = UnitWriter.write
    taken = []

    def take_over(self: Any, *args: Any) -> Any:
        if len(taken) < 1:
            taken.append(self.partial)
            self.partial.write_job({**self.partial.job(), "run": "other"})
        return write(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnitWriter, "write", take_over)
        with pytest.raises(OutputExistsError, match="another process began to write"):
            load(source).export(str(tmp_path / "out"), "yolo")
    assert Partial(Storage(tmp_path / "out")).job()["run"] == "other"


def test_bad_items_are_told_once(source: Path, tmp_path: Path) -> None:
    """Those of finished shards by their records, those of other shards by reading them again."""

    def dataset() -> rayds.Dataset:
        return load(bad, on_error="quarantine")

    bad = tmp_path / "bad"
    shutil.copytree(source, bad)
    for name in ("part-00000", "part-00001", "part-00008"):
        file = bad / f"data/{name}.parquet"
        file.write_bytes(file.read_bytes()[:-100])
    whole = dataset().export(str(tmp_path / "whole"), "yolo")
    assert len(whole.errors) == 3
    time.sleep(0.02)
    interrupted(dataset(), tmp_path / "out", "yolo", 4)
    report = dataset().export(str(tmp_path / "out"), "yolo", resume=True)
    assert told(report) == told(whole)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def even(item: rayds.DatasetItem) -> bool:
    return int(item.id) % 2 == 0


def test_a_derived_dataset_writes_only_what_is_missing(
    source: Path, tmp_path: Path, writes: list[int]
) -> None:
    """Functions can't be compared, items can: they are made again, but not written again."""
    load(source).select(even).export(str(tmp_path / "whole"), "yolo")
    interrupted(load(source).select(even), tmp_path / "out", "yolo", 7)
    writes.clear()
    report = load(source).select(even).export(str(tmp_path / "out"), "yolo", resume=True)
    assert (report.resumed, sum(writes)) == (35, ITEMS // 2 - 35)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("keep", [lambda i: i % 3 == 0, lambda i: i % 2 == 0 and i < 60])
def test_a_derived_dataset_of_other_items_is_refused(source: Path, tmp_path: Path, keep: Any) -> None:
    interrupted(load(source).select(even), tmp_path / "out", "yolo", 7)

    def changed(item: rayds.DatasetItem) -> bool:
        return bool(keep(int(item.id)))

    with pytest.raises(ResumeError, match="operations"):
        load(source).select(changed).export(str(tmp_path / "out"), "yolo", resume=True)
    changed.__qualname__ = even.__qualname__  # the same by all that can be told before it runs
    other = load(source).select(changed)
    with pytest.raises(ResumeError, match="are not those of the interrupted run"):
        other.export(str(tmp_path / "out"), "yolo", resume=True)
    other.export(str(tmp_path / "out"), "yolo", resume=True, overwrite=True)
    other.export(str(tmp_path / "whole"), "yolo")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


class TestRestart:
    """A COCO file whose annotations are out of order: the reader goes ahead, is wrong, and all begins again."""

    @pytest.fixture
    def coco(self, tmp_path: Path) -> Path:
        n = 200
        order = [*range(20, n), *range(20)]
        content = {
            "images": [{"id": i + 1, "file_name": f"{i:03}.jpg", "width": 90, "height": 90} for i in range(n)],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {"id": k + 1, "image_id": i + 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
                for k, i in enumerate([*range(150), *order])
            ],
        }  # fmt: skip
        path = tmp_path / "in/annotations/instances_train.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
        time.sleep(0.02)
        return tmp_path / "in"

    def run(self, coco: Path, out: Path, engine: Any = None) -> rayds.Report:
        dataset = rayds.Dataset.import_from(str(coco), "coco", engine=engine or LocalEngine(2))
        return dataset.export(str(out), "yolo", resume=True)

    @pytest.mark.parametrize("units", [3, 16])
    def test_an_interruption_before_and_after_it(self, coco: Path, tmp_path: Path, units: int) -> None:
        self.run(coco, tmp_path / "whole")
        dataset = rayds.Dataset.import_from(str(coco), "coco", engine=LocalEngine(2))
        interrupted(dataset, tmp_path / "out", "yolo", units)
        self.run(coco, tmp_path / "out")
        assert files(tmp_path / "out") == files(tmp_path / "whole")

    def test_what_was_guessed_is_not_taken_over_by_a_reader_that_does_not_guess(
        self, coco: Path, tmp_path: Path
    ) -> None:
        self.run(coco, tmp_path / "whole")
        dataset = rayds.Dataset.import_from(str(coco), "coco", engine=LocalEngine(2))
        interrupted(dataset, tmp_path / "out", "yolo", 3)
        assert Partial(Storage(tmp_path / "out")).job()["restartable"]

        class Careful(LocalEngine):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rayds.dataset.LocalEngine", Careful)
            self.run(coco, tmp_path / "out", Careful())
        assert files(tmp_path / "out") == files(tmp_path / "whole")
