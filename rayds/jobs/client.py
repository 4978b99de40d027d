"""The jobs of a cluster, by Ray's Jobs client: send, follow, stop, list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shlex
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayds.errors import EngineError, UnknownNameError, UsageError
from rayds.jobs import _probe
from rayds.jobs.auth import Access, without_variables
from rayds.jobs.packing import Package, requirements, runtime_env
from rayds.jobs.stream import in_thread

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

PATIENCE = 300.0  # seconds without an answer after which a job is no longer followed
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LOGGERS = (
    "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging",
)  # fmt: skip
_EXIT = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


# The interpreter of Ray's workers, from the command line of its daemon (the parent of the process that starts jobs):
# the `python` on the PATH may be another one. Where that does not work, as on macOS, it is taken.
FIND_PYTHON = r"""
raylet=$(sed 's/.*) //' /proc/$PPID/stat 2>/dev/null | cut -d' ' -f2)
python=$(tr '\0' '\n' </proc/$raylet/cmdline 2>/dev/null | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
[ -x "$python" ] || python=python
""".strip()


@dataclass(frozen=True)
class Job:
    """What is known of a job. start, end: seconds since 1970; code: what its process returned.
    ours: rayds sent it; probe: to look at the cluster."""

    id: str
    status: str
    message: str
    command: str
    name: str
    start: float | None
    end: float | None
    code: int | None
    ours: bool = False
    probe: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in _ENDED

    def to_json(self) -> dict[str, Any]:
        """As data."""
        return {**vars(self), "exit_code": exit_code(self) if self.ended else None}


def exit_code(job: Job) -> int:
    """The exit code of a command that ran as a job: its own for bad usage, else 0, 1, or 130 when it was stopped."""
    return 2 if job.status == "FAILED" and job.code == 2 else _EXIT[job.status]


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, access: Access) -> None:
        self.access = access
        with _reporting(access.url), without_variables():
            from ray.job_submission import JobSubmissionClient

            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)  # it logs what is told here better
            # Under RAY_AUTH_MODE=token Ray's client adds the token by itself, also where nobody asked for it and over
            # plain http, unless the header is there.
            headers = {"Authorization": "", **access.headers}
            self._client: JobSubmissionClient = JobSubmissionClient(access.url, headers=headers)

    def submit(
        self,
        entrypoint: str,
        package: Package,
        variables: Mapping[str, str],
        *,
        kind: str,
        metadata: Mapping[str, str],
        num_cpus: float | None = None,
    ) -> str:
        """Send a job; returns its id, which begins with `rayds-<kind>`."""
        slug = re.sub(r"[^a-zA-Z0-9]+", "-", kind).strip("-")[:40] or "job"
        job = f"rayds-{slug}-{uuid.uuid4().hex[:8]}"
        with _reporting(self.access.url):
            return self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env=runtime_env(package, variables),
                metadata=dict(metadata),
                entrypoint_num_cpus=num_cpus,
            )

    def job(self, id: str) -> Job:
        """A job by its id; raises UnknownNameError with the nearest ids."""
        try:
            with _reporting(self.access.url):
                return _job(self._client.get_job_info(id))
        except EngineError as e:
            if "404" not in str(e):
                raise
        raise UnknownNameError("job", id, [j.id for j in self.list()])

    def list(self) -> list[Job]:
        """All jobs sent to the cluster, the latest first."""
        with _reporting(self.access.url):
            found = [_job(j) for j in self._client.list_jobs() if j.submission_id]
        return sorted(found, key=lambda j: -(j.start or 0))

    def logs(self, id: str) -> str:
        """All that a job has printed."""
        with _reporting(self.access.url):
            return self._client.get_job_logs(id)

    def stop(self, id: str) -> bool:
        """Ask a job to stop; False when it has ended already."""
        if self.job(id).ended:
            return False
        with _reporting(self.access.url):
            return self._client.stop_job(id)

    def follow(self, id: str, patience: float = PATIENCE) -> Iterator[str]:
        """What a job prints, from the beginning to its end, in pieces.

        A connection that breaks is made again, and what was told before is left out; raises EngineError when the
        cluster has not answered for `patience` seconds.
        """
        told, last, pause = 0, time.monotonic(), 0.5
        while True:
            skip = told
            try:
                for piece in self._tail(id):
                    last, pause = time.monotonic(), 0.5
                    if len(piece) > skip:
                        yield piece[skip:]
                        told += len(piece) - skip
                    skip = max(0, skip - len(piece))
                job = self.job(id)
                last = time.monotonic()
                if job.ended:
                    with contextlib.suppress(
                        EngineError
                    ):  # what was printed between the last look and the end
                        if rest := self.logs(id)[told:]:
                            yield rest
                    return
            except EngineError as e:
                if time.monotonic() - last > patience:
                    raise EngineError(
                        f"{self.access.url} has not answered for {patience:.0f} s; the job may go on: {follow_command(id, self.access.url)}"
                    ) from e
            time.sleep(pause)
            pause = min(pause * 2, 15)

    def _tail(self, id: str) -> Iterator[str]:
        """The log by one connection, until that ends."""
        with _reporting(self.access.url):
            yield from in_thread(lambda: self._client.tail_job_logs(id))

    def probe(
        self,
        python: str | None,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        seconds: float = 120.0,
    ) -> dict[str, Any]:
        """What the cluster has (see _probe), told by a job that uses nothing of rayds there.

        python: the program that runs it; None: the one that runs Ray's workers.
        """
        asked = json.dumps(
            {"inputs": list(inputs), "outputs": list(outputs), "needs": requirements(), "seconds": seconds}
        )
        with tempfile.TemporaryDirectory() as folder:
            package = Package(folder)
            package.add_script(_probe.__file__)
            program = f'{FIND_PYTHON}\n"$python"' if python is None else shlex.quote(python)
            entrypoint = f"{program} {Path(_probe.__file__).name} {shlex.quote(asked)}"
            id = self.submit(entrypoint, package, {}, kind="probe", metadata={"rayds": "probe"})
        end = time.monotonic() + 2 * seconds + 60
        while not (job := self.job(id)).ended:
            if time.monotonic() > end:
                self.stop(id)
                raise EngineError(
                    f"the probe job {id} did not end on {self.access.url}; see 'rayds jobs logs {id}'"
                )
            time.sleep(0.2)
        log = self.logs(id)
        for line in log.splitlines():
            if line.startswith(_probe.MARK):
                told: dict[str, Any] = json.loads(line.removeprefix(_probe.MARK))
                return told
        last = log.strip().splitlines()[-1:] or [job.message]
        raise EngineError(
            f"the cluster can't run {python or 'its Python'!r} ({last[0]}); name the Python of its Ray by --python, or start Ray with its "
            "environment first on PATH"
        )


def follow_command(id: str, url: str) -> str:
    """The command line that shows how a job goes on."""
    return f"rayds jobs logs -f {id} --address {url}"


def stop_command(id: str, url: str) -> str:
    """The command line that stops a job."""
    return f"rayds jobs stop {id} --address {url}"


def _job(found: JobDetails) -> Job:
    data = found.metadata or {}
    command = data.get("rayds_command") or found.entrypoint
    return Job(
        id=found.submission_id or "",
        status=str(found.status.value),
        message=found.message or "",
        command=command,
        name=data.get("name", ""),
        start=found.start_time / 1000 if found.start_time else None,
        end=found.end_time / 1000 if found.end_time else None,
        code=found.driver_exit_code,
        ours="rayds_command" in data or data.get("rayds") == "probe",
        probe=data.get("rayds") == "probe",
    )


@contextlib.contextmanager
def _reporting(url: str) -> Iterator[None]:
    """Turn what Ray's client raises, which is of many kinds, into an EngineError of one line."""
    import aiohttp
    import requests

    try:
        yield
    except (
        RuntimeError,
        ConnectionError,
        requests.RequestException,
        aiohttp.ClientError,
        asyncio.TimeoutError,
    ) as e:
        text = str(e).strip().splitlines()
        raise EngineError(f"{url}: {text[0] if text else type(e).__name__}") from e


def check_versions(told: Mapping[str, Any], here: tuple[int, ...], ray: str, url: str) -> None:
    """Raise UsageError unless Python's minor version and Ray's version are those of the cluster."""
    there = tuple(told["python"])
    if told["ray"] is None:
        raise UsageError(
            f"{told['executable']} on the cluster has no Ray; name the Python that has it by --python"
        )
    if told["missing"]:
        raise UsageError(
            f"{told['executable']} on the cluster lacks {', '.join(told['missing'])}, which rayds needs: install them on every "
            "node, or an image that has them (see docs/cluster.md)"
        )
    if there[:2] != here[:2]:
        raise UsageError(
            f"the cluster runs Python {'.'.join(map(str, there))}, this is {'.'.join(map(str, here))}; rayds's tasks are "
            f"sent as Python objects: submit with Python {there[0]}.{there[1]}"
        )
    if told["ray"] != ray:
        raise UsageError(
            f"the cluster at {url} runs Ray {told['ray']}, this is {ray}: pip install 'ray[data,default]=={told['ray']}'"
        )
