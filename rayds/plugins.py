"""Plug-ins of a project: Python files that define formats, operations and launchers, loaded when the user allows it."""

from __future__ import annotations

import hashlib
import os
import sys
import types
from typing import Any

from rayds import registry
from rayds.engine import by_value
from rayds.errors import FormatError
from rayds.format import Format
from rayds.launcher import Launcher
from rayds.op import Op
from rayds.storage import Storage

ALLOW = "RAYDS_ALLOW_PLUGINS"
KINDS: dict[str, type] = {"formats": Format, "ops": Op, "launchers": Launcher}

_modules: dict[str, types.ModuleType] = {}


def allowed() -> bool:
    """Whether the environment allows to run the plug-ins of projects."""
    return os.environ.get(ALLOW, "").lower() in ("1", "true", "yes", "on")


def files(folder: Storage) -> list[str]:
    """The names of a project's plug-in files."""
    from rayds.project import PLUGINS

    place = folder.sub(PLUGINS)
    return sorted(n for n in place.entries()[1] if n.endswith(".py")) if folder.exists(PLUGINS) else []


def load(folder: Storage) -> list[str]:
    """Run the plug-in files of a project, which are code, and register what they define; returns the names, as "ops NAME".

    They are known under their names from then on, before those of installed packages. Workers of a cluster get them by
    content.
    """
    from rayds.project import PLUGINS

    found = []
    for name in files(folder):
        text = folder.read_bytes(f"{PLUGINS}/{name}")
        module = _module(folder.path(f"{PLUGINS}/{name}"), text)
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        for value in own:
            for kind, base in KINDS.items():
                called = str(vars(value).get("name") or "")
                if issubclass(value, base) and called:
                    if called in registry.installed(kind):
                        raise FormatError(
                            f"the plug-in {module.__file__}: {called!r} is one of the {kind} already; choose another name"
                        )
                    registry.register(kind, called, value)
                    found.append(f"{kind} {called}")
    return found


def _module(path: str, text: bytes) -> types.ModuleType:
    name = "rayds_project_" + hashlib.blake2b(path.encode() + text, digest_size=8).hexdigest()
    if name in _modules:
        return _modules[name]
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as e:
        del sys.modules[name]
        line = _line(e, path)
        raise FormatError(f"the plug-in {path}{line} does not load: {type(e).__name__}: {e}") from e
    _modules[name] = module
    by_value.append(module)  # workers of a cluster get it by content
    return module


def _line(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    at: Any = error.__traceback__
    lines = []
    while at is not None:
        if at.tb_frame.f_code.co_filename == path:
            lines.append(at.tb_lineno)
        at = at.tb_next
    return f", line {lines[-1]}" if lines else ""
