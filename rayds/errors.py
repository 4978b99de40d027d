"""Every error that rayds raises on purpose, and the policy for bad items.

RaydsError
├── UsageError            a bad option, name or argument (exit code 2)
│   └── UnknownNameError  no such format, op, launcher, option; suggests the nearest
├── FormatError           the format of an input can't be told, or it can't be used so
├── DataError             the data is bad: names file, item, place and remedy
├── LossError             ``--strict`` and the output format can't hold everything
├── OutputExistsError     the output is there already, or must not be replaced
├── ResumeError           an interrupted run can't be gone on with: it was another job
├── StorageError          a path can't be read or written
└── EngineError           the engine could not finish the work
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import Enum
from typing import Any


class RaydsError(Exception):
    """Base of all errors that rayds raises on purpose; its text is meant for the user."""


class UsageError(RaydsError, ValueError):
    """A bad option, name or argument."""


class UnknownNameError(UsageError):
    """No such name among the known ones; the message suggests the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        listing = "" if near else f" Known: {', '.join(self.known[:40])}."
        super().__init__(f"unknown {kind} {name!r}.{hint}{listing}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.name, self.known)


class FormatError(RaydsError):
    """The format of an input can't be told, or can't be used in this way."""


class DataError(RaydsError, ValueError):
    """Bad data: what is wrong, in which file and item, at which line or byte, and what to do.

    file: path or URL; item: item id; place: "line 3" or "byte 1024"; remedy: what the user can do.
    """

    def __init__(
        self,
        reason: str,
        *,
        file: str | None = None,
        item: str | None = None,
        place: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reason, self.file, self.item, self.place, self.remedy = reason, file, item, place, remedy
        where = ", ".join(filter(None, (file, place, f"item {item!r}" if item else None)))
        super().__init__((f"{where}: " if where else "") + reason + (f". {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return _data_error, (self.reason, self.file, self.item, self.place, self.remedy)

    def record(self) -> dict[str, str | None]:
        """The error as a row of ``quarantine.parquet`` (without the subset)."""
        return {"reason": self.reason, "file": self.file, "item": self.item, "place": self.place}


def _data_error(
    reason: str, file: str | None, item: str | None, place: str | None, remedy: str | None
) -> DataError:
    return DataError(reason, file=file, item=item, place=place, remedy=remedy)


class LossError(RaydsError):
    """The output format can't hold everything, and the user asked for nothing to be lost."""


class OutputExistsError(RaydsError, FileExistsError):
    """The output exists already, or is a place that must not be replaced."""


class ResumeError(RaydsError):
    """An interrupted run can't be gone on with: it was another job, or its input changed since."""


class StorageError(RaydsError, OSError):
    """A path or URL can't be read or written."""


class EngineError(RaydsError, RuntimeError):
    """The engine could not finish: a stage failed, a worker died too often."""


class OnError(str, Enum):
    """What to do with a bad item: stop (raise), leave it out and count it (skip), or also write it
    with its reason to ``quarantine.parquet`` beside the output (quarantine)."""

    RAISE = "raise"
    SKIP = "skip"
    QUARANTINE = "quarantine"

    @classmethod
    def _missing_(cls, value: object) -> OnError:
        raise UnknownNameError("policy for bad items", str(value), [policy.value for policy in cls])

    def __str__(self) -> str:
        return self.value
