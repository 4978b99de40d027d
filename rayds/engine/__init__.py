"""Engines: what runs stages over blocks, in this process (local) or on Ray.

``rayds.engine("ray", address=...)`` chooses the engine for what follows; as a context manager, for a block.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from rayds.engine.base import Engine
from rayds.errors import UnknownNameError

ENGINES = ("auto", "local", "ray")
# From this size of annotation files on, `auto` takes Ray also where none is running yet.
AUTO_RAY_BYTES = 16 << 30

_default: Engine | str = "auto"


def make_engine(
    engine: Engine | str | None = None, *, address: str | None = None, size: int = 0, **options: Any
) -> Engine:
    """An engine from its name ("auto", "local", "ray"), or the given one itself; None: the one chosen before.

    auto takes Ray when it runs in this process already, when an address is given (or RAY_ADDRESS is set), or
    when the input has AUTO_RAY_BYTES or more; else local.
    """
    engine = _default if engine is None else engine
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "auto":
        wanted = address or os.environ.get("RAY_ADDRESS") or size >= AUTO_RAY_BYTES or _ray_runs()
        engine = "ray" if wanted else "local"
    if engine == "ray":
        from rayds.engine.ray import RayEngine

        return RayEngine(address=address, **options)
    from rayds.engine.local import LocalEngine

    return LocalEngine(**options)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return bool(ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized())


class _Choice:
    """What `rayds.engine(...)` returns: the choice stands; as a context manager it ends with the block."""

    def __init__(self, before: Engine | str) -> None:
        self.before = before

    def __enter__(self) -> Engine:
        return make_engine()

    def __exit__(self, *error: object) -> None:
        global _default
        _default = self.before


class _CallableModule(ModuleType):
    def __call__(self, engine: Engine | str = "auto", **options: Any) -> _Choice:
        """Choose the engine of all that follows (or of a `with` block): "auto", "local" or "ray"."""
        global _default
        before = _default
        _default = make_engine(engine, **options) if options or engine != "auto" else "auto"
        return _Choice(before)


sys.modules[__name__].__class__ = _CallableModule


by_value: list[
    ModuleType
] = []  # modules that workers elsewhere can't import: what they define goes along, whole
