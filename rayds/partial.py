"""The folder of an unfinished output, `<output>.rayds-partial/`: its files so far, and records of what is complete.

    job.json           what the job is made of (input, options, shards), when it began
    data/              the output so far; it takes the output's place in the end
    scratch/           files that are not whole yet
    units/<n>.json     a record for each written unit, made after the unit's files: where it stands, its fragment, its counts
    shards/<n>.json    a record for each shard that was read to its end: its items, its bad items
    notes/<name>.json  results of passes over all items
    finished.json      the report: data/ is complete, and only has to be published
    publishing.json    that has begun
    published.json     it is done

Every record is written whole or not at all, so that a process may die at any moment. On a local disk one process at a
time holds the folder's lock.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Collection, Mapping
from typing import Any

from rayds.encoding import EncodingError, decode, encode
from rayds.errors import OutputExistsError, StorageError
from rayds.storage import PARTIAL, Storage, outermost

VERSION = 1
JOB, FINISHED, PUBLISHING, PUBLISHED = "job.json", "finished.json", "publishing.json", "published.json"
LOCK = "lock"
UNITS, SHARDS, NOTES, DATA, SCRATCH = "units", "shards", "notes", "data", "scratch"


class Partial:
    """The records of one unfinished output. Picklable: tasks write them, too.

    packages: those whose dataclasses records may hold.
    """

    def __init__(self, target: Storage, packages: Collection[str] = ()) -> None:
        self.target, self.packages = target, tuple(packages)
        self.root = Storage(target.url + PARTIAL)
        self._lock: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    @property
    def data(self) -> Storage:
        """The folder of the output so far."""
        return Storage(self.root.path(DATA), self.root.path(SCRATCH) if self.root.local else None)

    # the folder

    def lock(self) -> None:
        """Hold the folder for this process, making it; raises OutputExistsError when another process does."""
        if not self.root.local:
            return
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            self.root.makedirs()
            return
        while self._lock is None:
            self.root.makedirs()
            try:
                fd = os.open(self.root.path(LOCK), os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # another process removed the folder just now
            except OSError as e:
                raise StorageError(f"{self.root.path(LOCK)}: {e.strerror or e}") from e
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise OutputExistsError(
                    f"another process is writing {self.target.url} now{self._who()}; wait for it, or give another folder"
                ) from None
            except OSError:  # a file system without locks
                self._lock = fd
                break
            try:
                if os.stat(self.root.path(LOCK)).st_ino == os.fstat(fd).st_ino:
                    self._lock = fd
                    break
            except FileNotFoundError:
                pass
            os.close(fd)  # the folder was removed between opening and locking

    def _who(self) -> str:
        job = self.job() or {}
        return f" (process {job['process']} on {job['host']})" if {"process", "host"} <= set(job) else ""

    def unlock(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove all but the lock."""
        dirs, files = self.root.entries()
        # first what says that the rest may be used
        for name in sorted(files, key=lambda n: (n != FINISHED, n)):
            if name != LOCK:
                self.root.remove(name)
        for name in dirs:
            self.root.remove(name)

    def remove(self) -> None:
        """Remove the folder."""
        self.clear()
        self.root.remove()

    # the job

    def begin(self, identity: Mapping[str, Any], *, restartable: bool) -> None:
        """Start from nothing."""
        self.clear()
        self.write_job({
            "version": VERSION,
            "began": time.time(),
            "run": os.urandom(8).hex(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "restartable": restartable,
            "job": dict(identity),
        })  # fmt: skip
        self.data.makedirs()

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Write job.json."""
        self.write(JOB, job)

    def job(self) -> dict[str, Any] | None:
        """What job.json says; None when it is not there or is none of this version."""
        found = self.read(JOB)
        return found if isinstance(found, dict) and found.get("version") == VERSION else None

    def check_own(self, run: str) -> None:
        """Raise OutputExistsError when another process took the folder over (where there are no locks)."""
        if (self.job() or {}).get("run") != run:
            raise OutputExistsError(
                f"another process began to write {self.target.url} meanwhile; this one stops, and leaves it alone"
            )

    # records

    def write(self, name: str, record: Any) -> None:
        """Write a record of plain JSON whole."""
        self.root.write_bytes(name, json.dumps(record, separators=(",", ":")).encode())

    def read(self, name: str) -> Any:
        """A record; None when there is none, or none that can be used."""
        try:
            return json.loads(self.root.read_bytes(name))
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def read_all(self, folder: str) -> dict[int, Any]:
        """The records of a folder by number; those that can't be used are left out."""
        names = [n for n in self.root.entries(folder)[1] if n.endswith(".json") and n[:-5].isdigit()]
        made = {}
        for name, data in zip(
            names, self.root.read_many([f"{folder}/{n}" for n in names], missing_ok=True), strict=True
        ):
            try:
                made[int(name[:-5])] = json.loads(data or b"")
            except (ValueError, RecursionError):
                continue
        return made

    def note(self, name: str, value: Any) -> None:
        """Keep the result of a pass, if a record can hold it."""
        try:
            self.write(f"{NOTES}/{name}.json", {"value": encode(value)})
        except EncodingError:
            return

    def noted(self, name: str) -> tuple[Any] | None:
        """(the result of a pass,) or None."""
        found = self.read(f"{NOTES}/{name}.json")
        try:
            return (decode(found["value"], self.packages),) if isinstance(found, dict) else None
        except (EncodingError, KeyError):
            return None

    def write_unit(self, number: int, record: Mapping[str, Any]) -> None:
        """Record a written unit."""
        self.write(f"{UNITS}/{number:020d}.json", record)

    def read_unit(self, number: int) -> Any:
        """The record of a unit, or None."""
        return self.read(f"{UNITS}/{number:020d}.json")

    def drop_units(self, numbers: Collection[int]) -> None:
        """Forget units."""
        for number in numbers:
            self.root.remove(f"{UNITS}/{number:020d}.json")

    def write_shard(self, number: int, items: int, errors: list[dict[str, Any]]) -> None:
        """Record a shard that was read to its end."""
        self.write(f"{SHARDS}/{number:08d}.json", {"items": items, "errors": errors})


def changed_since(path: str, began: float, skip: Collection[str], limit: int = 3) -> list[str]:
    """Files and folders at or below a path that changed after a time, up to `limit`; skip: those that don't count."""
    storage = Storage(outermost(path))  # of what is in an archive, the archive
    if storage.local:
        return _changed_local(storage.url, began, {os.path.realpath(s) for s in skip}, limit)
    return _changed_remote(storage, began, {Storage(s).url for s in skip}, limit)


def _changed_local(top: str, began: float, skip: set[str], limit: int) -> list[str]:
    found: list[str] = []
    holding = {os.path.dirname(s) for s in skip}  # they change when an output appears in them

    def look(path: str, status: os.stat_result) -> None:
        if max(status.st_mtime, status.st_ctime) > began and path not in holding:
            found.append(path)

    top = os.path.realpath(top)
    look(top, os.stat(top))
    folders = [top] if os.path.isdir(top) else []
    seen: set[tuple[int, int]] = set()
    while folders and len(found) < limit:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.path in skip:
                    continue
                try:
                    status = entry.stat()
                except OSError:  # a link to nothing
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                    folders.append(entry.path)
                look(entry.path, status)
    return sorted(found)[:limit]


def _changed_remote(storage: Storage, began: float, skip: set[str], limit: int) -> list[str]:
    inside = [s.partition("://")[2] for s in skip]
    found = []
    remote, root = storage._at()
    if storage.is_dir():
        listed = remote.tried(root, remote.fs.find, root, detail=True)
    else:
        listed = {root: remote.tried(root, remote.fs.info, root)}
    for name, info in listed.items():
        if any(f"{name}/".startswith(f"{s.strip('/')}/") for s in inside):
            continue
        when: Any = (
            info.get("LastModified") or info.get("mtime") or info.get("last_modified") or info.get("created")
        )
        seconds = when.timestamp() if hasattr(when, "timestamp") else when
        if isinstance(seconds, int | float) and seconds > began:
            found.append(str(name))
            if len(found) == limit:
                break
    return found


def differences(before: Any, now: Any, what: str = "") -> list[str]:
    """What differs between two identities, a line each."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = list(dict.fromkeys([*before, *now]))
        return [
            line
            for n in names
            for line in differences(before.get(n), now.get(n), f"{what} {n}".strip().replace("_", " "))
        ]
    if before == now:
        return []
    return [f"{what}: {_short(before)} before, {_short(now)} now"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 80 else f"{text[:77]}..."
