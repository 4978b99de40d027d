"""Facts about a whole dataset, by format family: what a reader finds for the writer of the same family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

DATASET = "dataset"  # key of the facts about a dataset that are of no format family


class Later:
    """A value that takes long to find and is often not needed: made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def value(self) -> Any:
        """The value."""
        return self._make()

    def __repr__(self) -> str:
        return f"<later: {self.__dict__.get('value', 'not made yet')}>"


def settled(infos: Mapping[str, Any], families: Collection[str] | None = None) -> dict[str, Any]:
    """Facts about a dataset, those of some families only or all, as they are: none left for later."""
    chosen = {k: v for k, v in infos.items() if families is None or k in families}
    return {k: v.value if isinstance(v, Later) else v for k, v in chosen.items()}
