"""Claim: a COCO file of 1,000,000 images (3 GB) is converted in bounded memory, locally and on Ray, and nothing is lost.

For each number of images, output format and engine: seconds, peak memory of the driver and of the largest other
process (workers; without what they map of the object store), objects in the store, tasks; the rows of input and
output are counted apart from rayds and must be equal. Peers run under a memory limit, as they hold everything.

--shuffled: with the annotations of the file in random order, which have to be brought together by image.

usage: python benchmarks/scale.py [--images 10000,100000,1000000] [--engines local,ray] [--peers datumaro,panlabel] [--shuffled] [rayds coco]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import coco_dataset, peer

PEER_BYTES = 16 << 30
PEER_SECONDS = 1800
DATUMARO = (
    "import sys, datumaro as dm; ds = dm.Dataset.import_from(sys.argv[1], 'coco');"
    "ds.export(sys.argv[2], 'coco', save_media=False)"
)


class Watch:
    """Peak memory of a process and of all below it, read from /proc a few times a second. Linux only."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.driver = self.worker = self.store = 0  # MiB
        self.shared = shared_memory()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(0.2):
            self.store = max(self.store, shared_memory() - self.shared)
            for pid in descendants(self.pid):
                own, name = memory_of(pid)
                if pid == self.pid:
                    self.driver = max(self.driver, own)
                elif name.startswith("ray::"):
                    self.worker = max(self.worker, own)

    def stop(self) -> None:
        self.done.set()
        self.thread.join()


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def shared_memory() -> int:
    """MiB in /dev/shm, where Ray's object store is."""
    found = os.statvfs("/dev/shm")
    return ((found.f_blocks - found.f_bfree) * found.f_frsize) >> 20


def memory_of(pid: int) -> tuple[int, str]:
    """(own memory, MiB; name) of a process; zero for one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0, ""
    sizes = {k: int(v) >> 10 for k, v in re.findall(r"^(Rss\w+):\s+(\d+) kB", status, re.MULTILINE)}
    return sizes.get("RssAnon", 0), os.path.basename(words[0].decode())


def warm(value: int) -> int:
    """What a worker does first."""
    import rayds.formats.coco.ranged
    import rayds.formats.rayds_parquet  # noqa: F401

    time.sleep(0.3)
    return value


def run_one(source: str, out: str, format: str, engine: str) -> None:
    """Convert in this process and print what is known of it as JSON: what `run` starts."""
    import rayds

    start = time.perf_counter()
    if engine == "ray":  # started before, so that the two engines can be compared
        from rayds.engine.ray import RayEngine, connect

        connect()
        RayEngine().fold_inputs(
            range(8), warm, max
        )  # the workers, too, have started and imported what they need
    began = time.perf_counter()
    dataset = rayds.Dataset.import_from(source, "coco", engine=engine)
    report = dataset.export(out, format)
    found = {
        "start": round(began - start, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "items": report.items,
        "annotations": sum(report.annotations.values()),
    }
    if engine == "ray":
        import ray

        found["tasks"] = len(
            {
                e["args"].get("task_id")
                for e in ray.timeline()
                if e["cat"].startswith("task::") and "Actor" not in e["cat"]
            }
        )
    print(json.dumps(found))


def run(source: Path, out: str, format: str, engine: str) -> str:
    """One conversion in a process of its own, watched; a line of figures."""
    words = [sys.executable, __file__, "--one", str(source), out, format, engine]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    text = process.communicate()[0]
    watch.stop()
    if process.returncode:
        raise RuntimeError(f"{format} on {engine} failed")
    found = json.loads(text.splitlines()[-1])
    line = f"{found['seconds']:7.1f} s  driver {watch.driver:,} MiB"
    if engine == "ray":
        line += f"  largest worker {watch.worker:,} MiB  object store {watch.store:,} MiB  {found['tasks']:,} tasks"
    return line


def counted(path: Path) -> tuple[int, int]:
    """(images, annotations) of COCO files or of Parquet, by DuckDB or by searching the bytes."""
    import duckdb

    parquet = [str(p) for p in path.rglob("*.parquet")]
    if parquet:
        images = duckdb.execute("SELECT count(*) FROM read_parquet($1)", [parquet]).fetchone() or (0,)
        # An object is its box; its polygon is a row of its own.
        rows = "SELECT unnest(annotations).type AS type FROM read_parquet($1)"
        objects = duckdb.execute(f"SELECT count(*) FROM ({rows}) WHERE type = 6", [parquet]).fetchone() or (
            0,
        )
        return int(images[0]), int(objects[0])
    keys = (b'"file_name"', b'"category_id"')
    counts = [0, 0]
    for file in path.rglob("*.json"):
        before = b""
        with open(file, "rb") as f:
            while chunk := f.read(64 << 20):
                for i, key in enumerate(keys):
                    seam = before[1 - len(key) :] + chunk[: len(key) - 1]
                    counts[i] += chunk.count(key) + seam.count(key)
                before = chunk
    return counts[0], counts[1]


def limited(tool: str, source: Path, out: str) -> str:
    """A peer's conversion to COCO under PEER_BYTES of memory and PEER_SECONDS."""
    program = peer("python" if tool == "datumaro" else "panlabel")
    if program is None:
        return "not installed"
    file = str(source / "annotations/instances_train.json")
    words = (
        [program, "-W", "ignore", "-c", DATUMARO, str(source), out]
        if tool == "datumaro"
        else [program, *f"convert -f coco -t coco -i {file} -o {out}.json --allow-lossy".split()]
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (PEER_BYTES, PEER_BYTES))

    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, preexec_fn=limit)
        watch = Watch(process.pid)
        try:
            code: int | str = process.wait(PEER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = f"stopped after {PEER_SECONDS} s"
        watch.stop()
        log.seek(0)
        last = log.read()[-200:].decode(errors="replace").strip().splitlines()
    end = "" if code == 0 else f"  FAILED ({code}) with {PEER_BYTES >> 30} GiB: {last[-1] if last else ''}"
    return f"{time.perf_counter() - start:7.1f} s  peak {watch.driver:,} MiB{end}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="10000,100000,1000000")
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--peers", default="")
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("formats", nargs="*", default=["rayds", "coco"])
    args = parser.parse_args()
    if args.one:
        run_one(*args.one)
        return
    for images in map(int, args.images.split(",")):
        source = coco_dataset(images, shuffled=args.shuffled)
        expected = counted(source / "annotations")
        print(
            f"{images:,} images, {expected[1]:,} annotations{' in random order' if args.shuffled else ''}",
            flush=True,
        )
        for format in args.formats:
            for engine in args.engines.split(","):
                with tempfile.TemporaryDirectory() as folder:
                    line = run(source, f"{folder}/out", format, engine)
                    found = counted(Path(folder) / "out")
                same = "rows equal" if found == expected else f"ROWS DIFFER: {found}"
                print(f"  {format:6s} {engine:6s} {line}  {same}", flush=True)
        for tool in filter(None, args.peers.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                print(f"  coco   {tool:9s} {limited(tool, source, f'{folder}/out')}", flush=True)


if __name__ == "__main__":
    main()
