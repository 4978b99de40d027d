"""Options that map names to names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayds.errors import UsageError


def parse_pairs(pairs: Sequence[str] | Mapping[str, str], flag: str) -> dict[str, str]:
    """{source: destination} of texts `source:destination`; a colon in a name is written `\\:`."""
    made: dict[str, str] = {}
    for pair in pairs:
        parts = pair.replace("\\:", "\0").split(":")
        if len(parts) != 2:
            raise UsageError(rf"{flag}: {pair!r} is not SOURCE:DESTINATION (a colon in a name is written \:)")
        source, destination = (p.replace("\0", ":") for p in parts)
        if made.get(source, destination) != destination:
            raise UsageError(f"{flag}: {source!r} has two destinations, {made[source]!r} and {destination!r}")
        made[source] = destination
    return made
