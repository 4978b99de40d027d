"""What a write did: counts, losses, errors, seconds; as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rayds.losses import NOTE, Summary


@dataclass
class Report:
    """The result of an export.

    objects, annotations: what was read, also where the format can't hold it.
    losses: what the format could not hold, kind -> (number, example); notes: fields that only the source format
    knows. errors: bad items left out (under skip and quarantine), each with reason, file, item, place.
    resumed: how many of the items an earlier, interrupted run had written.
    """

    format: str
    path: str
    items: int
    objects: int
    annotations: dict[str, int]
    subsets: dict[str, int]
    losses: dict[str, tuple[int, str]]
    notes: dict[str, tuple[int, str]]
    errors: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    quarantine: str | None = None
    resumed: int = 0

    @classmethod
    def of(cls, summary: Summary, format: str, path: str) -> Report:
        """The report of a summary."""
        losses = {k: v for k, v in sorted(summary.losses.items()) if not k.startswith(NOTE)}
        notes = {k.removeprefix(NOTE): v for k, v in sorted(summary.losses.items()) if k.startswith(NOTE)}
        return cls(
            format=format,
            path=path,
            items=summary.items,
            objects=summary.objects,
            annotations=summary.annotations,
            subsets=summary.subsets,
            losses=losses,
            notes=notes,
            errors=summary.errors,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-like data, for programs."""

        def listed(found: dict[str, tuple[int, str]]) -> list[dict[str, Any]]:
            return [{"kind": k, "count": n, "example": e} for k, (n, e) in found.items()]

        return {
            "format": self.format,
            "path": self.path,
            "items": self.items,
            "objects": self.objects,
            "annotations": self.annotations,
            "subsets": self.subsets,
            "losses": listed(self.losses),
            "notes": listed(self.notes),
            "skipped": len(self.errors),
            "errors": self.errors,
            "quarantine": self.quarantine,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        kinds = ", ".join(f"{n:,} {k}" for k, n in self.annotations.items()) or "no annotations"
        lines = [
            f"{self.items:,} items -> {self.path} ({self.format}) in {self.seconds:.1f} s",
            f"annotations read: {kinds}",
        ]
        if self.resumed:
            lines.append(f"resumed: {self.resumed:,} of the items were written by an earlier run")
        if len(self.subsets) > 1:
            lines.append("subsets: " + ", ".join(f"{s} {n:,}" for s, n in self.subsets.items()))
        if self.losses:
            lines.append(f"{self.format} can't hold:")
            lines += [f"  {n:>9,}  {kind}  (e.g. {example})" for kind, (n, example) in self.losses.items()]
        lines += [f"note: {n:,} {kind}, e.g. {example}" for kind, (n, example) in self.notes.items()]
        if self.errors:
            where = f", see {self.quarantine}" if self.quarantine else ""
            lines.append(f"{len(self.errors):,} bad items left out{where}:")
            for e in self.errors[:5]:
                place = ", ".join(str(e[k]) for k in ("file", "place", "item") if e.get(k))
                lines.append(f"  {place}: {e['reason']}")
        return "\n".join(lines)
