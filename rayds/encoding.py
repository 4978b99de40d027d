"""Small Python values as JSON and back, without unpickling: for records that lie in folders others can write to.

Known are None, numbers, texts, bytes, lists, tuples, sets, dictionaries, NumPy arrays and numbers, and dataclasses of
packages that the caller names. Reading makes nothing else, whatever a file says.
"""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Collection
from enum import Enum
from typing import Any

_KIND, _VALUE = "!", "value"


class EncodingError(TypeError):
    """A value of a kind that has no place in a record, or a record that says something else."""


def encode(value: Any) -> Any:
    """A value as JSON-like data; raises EncodingError for what `decode` could not make again."""
    if value is None or (type(value) in (bool, int, float, str)):
        return value
    if type(value) is list:
        return [encode(v) for v in value]
    if type(value) is dict:
        if _KIND not in value and all(type(k) is str for k in value):
            return {k: encode(v) for k, v in value.items()}
        return _tagged("dict", [[encode(k), encode(v)] for k, v in value.items()])
    for kind, made in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if type(value) is made:
            return _tagged(kind, [encode(v) for v in value])
    if type(value) is bytes:
        return _tagged("bytes", base64.b64encode(value).decode())
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Enum):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return _tagged(f"{type(value).__module__}:{type(value).__qualname__}", fields)
    return _encode_numpy(value)


def _encode_numpy(value: Any) -> Any:
    np = sys.modules.get("numpy")
    if np is not None and isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        array = np.ascontiguousarray(value)
        data = base64.b64encode(array.tobytes()).decode()
        return _tagged("array" if isinstance(value, np.ndarray) else "number",
                       [array.dtype.str, list(value.shape), data])  # fmt: skip
    raise EncodingError(f"{type(value).__module__}.{type(value).__qualname__} can't stand in a record")


def _tagged(kind: str, value: Any) -> dict[str, Any]:
    return {_KIND: kind, _VALUE: value}


def decode(data: Any, packages: Collection[str] = ()) -> Any:
    """The value that was encoded; dataclasses only of these (loaded) packages. Raises EncodingError for anything else."""
    if isinstance(data, list):
        return [decode(v, packages) for v in data]
    if not isinstance(data, dict):
        return data
    if _KIND not in data:
        return {k: decode(v, packages) for k, v in data.items()}
    try:
        return _decode_tagged(data[_KIND], data[_VALUE], packages)
    except EncodingError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise EncodingError(f"not a record: {e}") from e


def _decode_tagged(kind: str, value: Any, packages: Collection[str]) -> Any:
    if kind in ("tuple", "set", "frozenset"):
        made = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
        return made(decode(v, packages) for v in value)
    if kind == "dict":
        return {decode(k, packages): decode(v, packages) for k, v in value}
    if kind == "bytes":
        return base64.b64decode(value, validate=True)
    if kind in ("array", "number"):
        import numpy as np

        dtype, shape, text = value
        array = np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype)).reshape(shape)
        return array.copy() if kind == "array" else array[()]
    return _class(kind, packages)(**{k: decode(v, packages) for k, v in value.items()})


def _class(name: str, packages: Collection[str]) -> Any:
    module, _, qualname = name.partition(":")
    if module.partition(".")[0] not in packages or module not in sys.modules:
        raise EncodingError(f"the class {name} is not one of this program")
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise EncodingError(f"{name} is no dataclass")
    return found
