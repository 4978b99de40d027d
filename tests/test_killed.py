"""kill -9 at any moment, and a full disk: what is left is gone on with, and ends complete, in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import rayds
from rayds.engine.base import Engine
from rayds.errors import StorageError
from rayds.schema import annotation_rows, item_table, media_rows

pytestmark = pytest.mark.slow

ITEMS = 1000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 items in ten shards."""
    path = tmp_path_factory.mktemp("killed") / "items"
    rows = annotation_rows(ITEMS, type=6, group=1, label=0, points=[[1.0, 2.0, 3.0, 4.0]] * ITEMS)
    media = media_rows(ITEMS, path=[f"/nowhere/{i}.jpg" for i in range(ITEMS)], height=10, width=10)
    ids, subsets = [f"{i:05}" for i in range(ITEMS)], ["a" if i % 7 else "b" for i in range(ITEMS)]
    table = item_table(ITEMS, rows, [1] * ITEMS, id=ids, subset=subsets, media=media)
    rayds.Dataset.from_arrow(table, ["x"]).export(str(path), "rayds", shard_size=100, engine="local")
    return path


def files(path: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def start(source: Path, out: Path, format: str, *words: str, **env: str) -> subprocess.Popen[str]:
    """`rayds convert --resume` in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "rayds",
        "convert",
        "-i",
        source,
        "-f",
        format,
        "-o",
        out,
        "--resume",
        "-q",
    ]
    return subprocess.Popen(
        [*map(str, command), *words],
        env={**os.environ, "RAYDS_BLOCK_ROWS": "20", "NO_COLOR": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end, which must be good."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"{ITEMS:,} items" in out


def kill_at_random(process: subprocess.Popen[str], out: Path, chance: random.Random, longest: float) -> str:
    """kill -9 at some moment of the writing; says in which state that left it."""
    partial = out.with_name(out.name + ".rayds-partial")
    deadline = time.monotonic() + 60
    while not (partial / "job.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(chance.random() * longest)
    process.kill()
    process.communicate()
    if not partial.exists():
        return "done"
    if (partial / "finished.json").exists():
        return "published"
    return "some" if any((partial / "units").glob("*")) else "none"


@pytest.mark.parametrize("format", ["coco", "voc", "rayds", "yolo"])
def test_a_driver_killed_at_random_moments(source: Path, tmp_path: Path, format: str) -> None:
    chance = random.Random(format)
    words = ["--", "--shard-size", "15"] if format == "rayds" else []
    began = time.monotonic()
    finish(start(source, tmp_path / "whole", format, "--engine", "local", *words))
    longest = max(0.1, time.monotonic() - began - 0.6)
    whole = files(tmp_path / "whole")
    states = []
    for n in range(5):
        out = tmp_path / str(n)
        states.append(
            kill_at_random(start(source, out, format, "--engine", "local", *words), out, chance, longest)
        )
        assert states[-1] in ("done", "published") or not out.exists()
        if n:  # in this process, as starting one takes longer than the work
            options = {"shard_size": 15} if format == "rayds" else {}
            dataset = rayds.Dataset.import_from(str(source), "rayds", engine="local")
            assert dataset.export(str(out), format, resume=True, **options).items == ITEMS
        else:
            finish(start(source, out, format, "--engine", "local", *words))
        assert files(out) == whole, f"after {states}"
        assert not out.with_name(f"{n}.rayds-partial").exists()


def processes_with(mark: str) -> dict[int, str]:
    """The processes of this machine that have a text in their environment: what they are called."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                )
    return {pid: name for pid, name in found.items() if name}


@pytest.mark.ray
def test_a_driver_killed_on_ray(source: Path, tmp_path: Path) -> None:
    """Its private cluster goes with it; the rest is begun on Ray, and done in the process."""
    chance = random.Random(3)
    finish(start(source, tmp_path / "whole", "yolo", "--engine", "local"))
    mark, out = f"mark-{uuid.uuid4().hex}", tmp_path / "out"
    for _ in range(2):
        kill_at_random(start(source, out, "yolo", "--engine", "ray", MARK=mark), out, chance, 1.5)
        assert not out.exists()
    deadline = time.monotonic() + 30
    while working(left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:  # Ray's agents look a minute for the cluster before they end
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not working(left), f"what outlived its driver: {left}"
    finish(start(source, out, "yolo", "--engine", "local"))
    assert files(out) == files(tmp_path / "whole")


def working(processes: dict[int, str]) -> list[str]:
    """The processes that hold data or memory: a cluster's head, node, and workers."""
    return [p for p in processes.values() if "Agent" not in p and "agent" not in p]


NODES = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
import rayds

source, out, temp = sys.argv[1:]
args = {"num_cpus": 1, "object_store_memory": 80 << 20}
fast = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={**args, "temp_dir": temp, "_system_config": fast})
node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
units = Path(out + ".rayds-partial/units")

def remove():
    while not units.exists() or len(list(units.iterdir())) < 3:
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    print("removed")

thread = threading.Thread(target=remove)
thread.start()
dataset = rayds.Dataset.import_from(source, "rayds", engine="ray")

def slowly(block):
    time.sleep(0.5)
    return block

report = dataset.map_batches(slowly).export(out, "yolo")
thread.join()
print(f"\\n{report.items} items, {sum(n['Alive'] for n in ray.nodes())} of {len(ray.nodes())} nodes alive")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
def test_a_node_is_removed(source: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    rayds.Dataset.import_from(str(source), "rayds", engine="local").export(str(tmp_path / "whole"), "yolo")
    temp = f"/tmp/rn{uuid.uuid4().hex[:6]}"  # sockets have short names
    try:
        done = subprocess.run(
            [sys.executable, "-c", NODES, str(source), str(tmp_path / "out"), temp],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
                "RAY_AUTH_MODE": "disabled",
            },
            capture_output=True,
            text=True,
            timeout=150,
        )
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert "removed\n" in done.stdout
    assert f"\n{ITEMS} items, 1 of 2 nodes alive\n" in done.stdout
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk(
    engine: Engine,
    source: Path,
    disk: Path,
    tmp_path: Path,
    overwrite: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYDS_BLOCK_ROWS", "20")
    dataset = rayds.Dataset.import_from(str(source), "rayds", engine=engine)
    dataset.export(str(tmp_path / "whole"), "yolo")
    out = disk / "out"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("old")
    before = files(disk)
    with pytest.raises(StorageError, match=rf"{disk}/out\.rayds-partial/.*: No space left on device"):
        dataset.export(str(out), "yolo", overwrite=overwrite)
    assert files(disk) == before
    assert [p.name for p in disk.iterdir()] == (["out"] if overwrite else [])
    with pytest.raises(StorageError, match="No space left on device"):
        dataset.export(str(out), "yolo", overwrite=overwrite, resume=True)
    assert out.exists() == overwrite
    assert not overwrite or files(out) == {"old": b"old"}
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    report = dataset.export(str(out), "yolo", overwrite=overwrite, resume=True)
    assert 0 < report.resumed < ITEMS
    assert files(out) == files(tmp_path / "whole")
    assert not Path(f"{out}.rayds-partial").exists()
