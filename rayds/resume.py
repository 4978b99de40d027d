"""Going on with an interrupted job: what makes a job the same, what is taken over from an earlier run, what ends it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rayds import __version__
from rayds.encoding import EncodingError, decode, encode
from rayds.errors import OutputExistsError, ResumeError
from rayds.format import Format, Restart, Shard, WriteContext
from rayds.partial import FINISHED, PUBLISHED, PUBLISHING, UNITS, Partial, changed_since, differences
from rayds.reading import Source
from rayds.report import Report
from rayds.storage import DONE, Storage, check_output
from rayds.units import Unit, load_shards, load_units


class Keeping(Storage):
    """A storage that only notes what it is asked to remove: so that `Format.finish` can run again.

    For a job that nobody will go on with, use_up: then what is joined goes at once.
    """

    def __init__(self, storage: Storage, use_up: bool = False) -> None:
        super().__init__(storage.url, storage.scratch)
        self.use_up = use_up
        self.removed: list[str] = []

    def remove(self, name: str = "") -> None:
        """Note the name."""
        self.removed.append(name)

    def concatenate(self, parts: Sequence[bytes | str], name: str, used_up: bool = False) -> None:
        """Join, without use of what was used up when that can happen again."""
        whole = Storage(self.url, self.scratch)
        whole.concatenate(parts, name, used_up and self.use_up)


def identity(
    fmt: Format, ctx: WriteContext, sources: Sequence[Source], steps: Sequence[str]
) -> dict[str, Any]:
    """What makes an output what it is, as JSON: two jobs with the same may share their work."""
    made: dict[str, Any] = {
        "rayds_version": __version__,
        "output": ctx.out.url,
        "output_format": fmt.name,
        "output_options": _options(ctx.options),
        "on_error": str(ctx.on_error),
        "categories": _hash(ctx.categories.to_json()),
        "facts_about_the_source": _hash([ctx.ids, ctx.infos, ctx.source_format]),
        "input": [Storage(s.path).url for s in sources],
        "operations": list(steps),
    }
    if sources:
        made |= {
            "input_format": _each([s.name for s in sources]),
            "input_options": _each([_options(s.options) for s in sources]),
            "input_on_error": _each([str(s.on_error) for s in sources]),
            "shards_of_the_input": _each([len(s.shards) for s in sources]),
            "names_and_sizes_of_the_shards": _hash([[_shard(one) for one in s.shards] for s in sources]),
        }
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def _each(values: list[Any]) -> Any:
    """The only value as it is, several by their numbers: so that what differs can be told of each."""
    return values[0] if len(values) == 1 else {str(i): value for i, value in enumerate(values)}


def _options(options: Any) -> dict[str, Any]:
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}


def _shard(shard: Shard) -> list[Any]:
    return [shard.name, shard.size, shard.items, shard.file]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Job:
    """One export: its folder, and what earlier runs of it left.

    units: those that are written already. report: set when nothing is left to do.
    """

    def __init__(self, target: Storage, fmt: Format, identity: Mapping[str, Any], *, resume: bool) -> None:
        packages = {"rayds", type(fmt).__module__.partition(".")[0]}
        self.partial = Partial(target, packages)
        self.target, self.identity, self.resume = target, dict(identity), resume
        self.units: dict[int, Unit] = {}
        self.report: Report | None = None
        self.run = ""

    @contextmanager
    def held(self, inputs: Sequence[str], *, overwrite: bool, restartable: bool) -> Iterator[None]:
        """Hold the output's folder; what goes wrong inside leaves it for a later run, or nothing.

        Raises OutputExistsError, and ResumeError when there is a run to go on with that was another job's.
        """
        found = self._finished_before() if self.resume else None
        if found is not None:
            self.report = found
            yield
            return
        if not (self.resume and Partial(self.target).job()):
            check_output(self.target, inputs, overwrite)
        self.partial.lock()
        try:
            self._open(inputs, overwrite=overwrite, restartable=restartable)
            yield
        except ResumeError:
            if overwrite:
                self._leave(keep=False)
            raise
        except OutputExistsError:
            if self._own():
                self._leave(keep=self.resume)
            raise
        except BaseException as e:
            # what a publish says to keep is the only whole one: see Storage.publish
            keep = self.resume or getattr(e, "keeps_staging", False)
            self._leave(keep=keep and not isinstance(e, Restart))
            raise
        finally:
            self.partial.unlock()

    def _own(self) -> bool:
        return bool(self.run) and (self.partial.job() or {}).get("run") == self.run

    def _leave(self, *, keep: bool) -> None:
        if not keep or self.partial.job() is None:
            self.partial.remove()

    def _open(self, inputs: Sequence[str], *, overwrite: bool, restartable: bool) -> None:
        """Take over an earlier run under resume; else begin, from nothing."""
        job = self.partial.job()
        if self.resume and job is not None:
            differs = self._differs(job, inputs)
            if not differs:
                self._take_over(job, inputs, overwrite=overwrite, restartable=restartable)
                return
            if not overwrite:
                raise ResumeError(
                    f"the interrupted run in {self.partial.root.url} was another job:\n"
                    + "\n".join(f"  {d}" for d in differs)
                    + "\nRun it as it was to go on, or start anew: with --overwrite, or without --resume"
                )
        if not self.resume and job is not None:
            warnings.warn(
                f"an interrupted run of {self.target.url} was found and removed; --resume would go on with one",
                stacklevel=2,
            )
        check_output(self.target, inputs, overwrite)
        self._forget_done()
        self.partial.begin(self.identity, restartable=restartable)
        self.run = (self.partial.job() or {})["run"]

    def _differs(self, job: Mapping[str, Any], inputs: Sequence[str]) -> list[str]:
        lines = differences(job.get("job"), self.identity)
        if lines:
            return lines
        folder, name = self._done_file()
        skip = [self.partial.root.url, self.target.url, folder.path(name)]
        began = float(job["began"])
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began))
        return [
            f"changed since the run began ({when}): {path}"
            for i in inputs
            for path in changed_since(i, began, skip)
        ]

    def _take_over(
        self, job: Mapping[str, Any], inputs: Sequence[str], *, overwrite: bool, restartable: bool
    ) -> None:
        finished = self.partial.read(FINISHED)
        if finished is not None:
            published = self.partial.read(PUBLISHED) is not None or not self.partial.data.exists()
            if not published and self.partial.read(PUBLISHING) is None:
                check_output(self.target, inputs, overwrite)
            self.run = job["run"]
            self.report = decode(finished["report"], self.partial.packages)
            self.publish(finished["remove"], published=published)
            return
        check_output(self.target, inputs, overwrite)
        self.units = load_units(self.partial)
        if job["restartable"] and not restartable:
            self._drop_guesses()
        started = {**job, "restartable": bool(job["restartable"] and restartable)}
        started["run"] = self.run = hashlib.blake2b(
            f"{job['run']} {time.time_ns()}".encode(), digest_size=8
        ).hexdigest()
        self.partial.write_job(started)
        self.partial.data.makedirs()

    def _drop_guesses(self) -> None:
        """Forget units of shards that were not read to the end by a reader that may have guessed wrong."""
        known = load_shards(self.partial)
        drop = [n for n, u in self.units.items() if not _ends_in(u, known)]
        self.partial.drop_units(drop)
        for number in drop:
            del self.units[number]

    # the end

    def give_up_units(self) -> bool:
        """Whether the units may be used up, as no later run is to take them over; if so, none can any more.

        Only on a local disk is there something to be gained by it.
        """
        if self.resume or not self.target.local:
            return False
        self.partial.root.remove(UNITS)
        return True

    def finish(self, report: Report, remove: Sequence[str]) -> None:
        """The output is complete but for the names to remove: publish it."""
        self.partial.check_own(self.run)
        self.report = report
        self.partial.write(FINISHED, {"report": encode(report), "remove": list(remove)})
        self.publish(remove)

    def publish(self, remove: Sequence[str], *, published: bool = False) -> None:
        """Put the finished data in the output's place, and remove the folder."""
        if not published:
            for name in remove:
                self.partial.data.remove(name)
            self.partial.write(PUBLISHING, {})
            old = self.partial.root.path("old") if self.target.local else None
            self.target.publish(self.partial.data, old=old, keep=True)
            self.partial.write(PUBLISHED, {})
        if self.resume:
            self._write_done()
        self.partial.remove()

    # what is left of a finished job

    def _done_file(self) -> tuple[Storage, str]:
        return self.target.parent, self.target.name + DONE

    def _write_done(self) -> None:
        folder, name = self._done_file()
        record = {"job": self.identity, "content": self.target.entries(), "report": encode(self.report)}
        folder.write_bytes(name, json.dumps(record).encode())

    def _forget_done(self) -> None:
        folder, name = self._done_file()
        folder.remove(name)

    def _finished_before(self) -> Report | None:
        """The report of this job, when its output is there, complete, by its record."""
        folder, name = self._done_file()
        if not folder.exists(name) or self.partial.root.exists(FINISHED):
            return None
        try:
            record = json.loads(folder.read_bytes(name))
            if differences(record["job"], self.identity):
                return None
            if [list(n) for n in self.target.entries()] != record["content"]:
                return None
            report = decode(record["report"], self.partial.packages)
        except (EncodingError, ValueError, KeyError, TypeError, FileNotFoundError):
            return None
        return report if isinstance(report, Report) else None


def _ends_in(unit: Unit, known: Mapping[int, Any]) -> bool:
    """Whether all shards that a unit has items of were read to their end."""
    shard, end = unit.shard, unit.end
    while shard in known:
        if end <= known[shard].items:
            return True
        end -= known[shard].items
        shard += 1
    return False


def was_restarted(target: Storage) -> bool:
    """Whether an interrupted run of an output found that its reader must not go ahead of what it knows."""
    job = Partial(target).job()
    return job is not None and not job.get("restartable", True)
