"""Options as frozen dataclasses: the command-line flags, their help, the Python keywords and the docs tables
of every format, op and launcher come from them."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar, get_args, get_origin

from rayds.errors import UnknownNameError, UsageError

Made = TypeVar("Made", bound="Options")

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


def option(
    default: Any = MISSING,
    *,
    help: str,
    choices: Sequence[str] = (),
    aliases: Sequence[str] = (),
    short: str = "",
    split: bool = True,
    words: int = 1,
    file: bool = False,
) -> Any:
    """A field of an Options class. aliases: other spellings of the flag; choices: the allowed texts.

    A choice may be spelled "masks=mask" to accept masks for mask. short: a flag that is written with one dash, e.g. "s".
    split=False: commas are part of a value, which is given many times instead. words: how many values, of a tuple,
    follow the flag. file: the value is the path or URL of a file.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "aliases": tuple(aliases),
        "short": short,
        "split": split,
        "words": words,
        "file": file,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of option classes. Fields are bool, int, float, str, X | None or tuple[X, ...]."""

    @classmethod
    def make(cls: type[Made], values: Mapping[str, Any]) -> Made:
        """Options from Python keywords; raises UnknownNameError for a name that is none, UsageError for a bad value."""
        flags = cls._flags()
        made: dict[str, Any] = {}
        for name, value in values.items():
            f = flags.get(name.replace("_", "-"))
            if f is None:
                raise UnknownNameError("option", name, {f.name for f in dataclasses.fields(cls)})
            hint = typing.get_type_hints(cls)[f.name]
            if value is not None or _optional(hint):  # None for an option that can't be so: its default
                made[f.name] = _coerce(f, value, hint)
        missing = [f.name for f in dataclasses.fields(cls) if f.default is MISSING and f.name not in made]
        if missing:
            raise UsageError(f"the option {missing[0].replace('_', '-')!r} is required")
        return cls(**made)

    @classmethod
    def parse(cls: type[Made], args: Sequence[str]) -> Made:
        """Options from command-line words: --name VALUE, --name=VALUE, --flag. "-" and "_" are the same."""
        flags = cls._flags()
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        words = list(args)
        while words:
            word = words.pop(0)
            if not word.startswith("-") or word == "-":
                raise UsageError(f"unexpected argument {word!r}; options look like --name VALUE")
            name, eq, value = word.lstrip("-").partition("=")
            f = flags.get(name.replace("_", "-"))
            if f is None:
                raise UnknownNameError(
                    "option", word.partition("=")[0], [f"--{n}" for n in flags if len(n) > 1]
                )
            base, many = _base(hints[f.name])
            if not eq:
                if base is bool and (not words or words[0].lower() not in _TRUE | _FALSE):
                    value = "true"
                elif not words or _flag_name(words[0]) in flags:
                    raise UsageError(f"the option {word} needs a value")
                else:
                    value = words.pop(0)
                    more = f.metadata.get("words", 1) - 1
                    if more and "," not in value:  # 2 3, or 2,3
                        value = ",".join([value, *words[:more]])
                        del words[:more]
            if many and f.name in values and f.metadata.get("words", 1) == 1:
                values[f.name] = (*values[f.name], *_coerce(f, value, hints[f.name]))
            else:
                values[f.name] = _coerce(f, value, hints[f.name])
        return cls.make(values)

    @classmethod
    def _flags(cls) -> dict[str, dataclasses.Field[Any]]:
        found = {}
        for f in dataclasses.fields(cls):
            for name in (
                f.name.replace("_", "-"),
                *f.metadata.get("aliases", ()),
                f.metadata.get("short") or "",
            ):
                if name:
                    found[name] = f
        return found

    @classmethod
    def file_names(cls) -> set[str]:
        """All spellings of the options whose value is a file, with "_" for "-"."""
        return {name.replace("-", "_") for name, f in cls._flags().items() if f.metadata.get("file")}

    @classmethod
    def describe(cls) -> list[tuple[str, str, str]]:
        """(flag with its kind of value, default, help) of every option, for help pages and docs."""
        rows = []
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            base, many = _base(hints[f.name])
            flag = f"--{f.name.replace('_', '-')}"
            if f.metadata.get("short"):
                flag = f"-{f.metadata['short']}, {flag}"
            choices = [c.split("=")[-1] for c in f.metadata.get("choices", ())]
            if choices:
                flag += " {" + ",".join(dict.fromkeys(choices)) + "}" + ("[,...]" if many else "")
            elif base is bool:
                flag += " [true|false]"
            else:
                kind, n = base.__name__.upper(), f.metadata.get("words", 1)
                more = "[,...]" if f.metadata.get("split", True) else ", repeatable"
                flag += " " + (" ".join([kind] * n) if n > 1 else f"{kind}{more if many else ''}")
            default = "required" if f.default is MISSING else _show(f.default)
            rows.append((flag, default, f.metadata.get("help", "")))
        return rows


def _flag_name(word: str) -> str | None:
    """The name in a word that looks like --name or --name=VALUE."""
    return word[2:].partition("=")[0].replace("_", "-") if word.startswith("--") else None


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _show(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _base(hint: Any) -> tuple[type, bool]:
    """(the type of one value, whether the option takes many) of a field's type."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in get_args(hint) if a is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def _coerce(f: dataclasses.Field[Any], value: Any, hint: Any) -> Any:
    base, many = _base(hint)
    flag = f"--{f.name.replace('_', '-')}"
    if value is None:
        return None
    if many:
        if isinstance(value, Mapping):  # pairs
            value = [f"{a}:{b}" for a, b in value.items()]
        if not isinstance(value, (str, list, tuple, set, frozenset)):
            value = [value]
        splits = f.metadata.get("split", True)
        parts = (value.split(",") if splits else [value]) if isinstance(value, str) else list(value)
        expected = f.metadata.get("words", 1)
        if expected > 1 and len(parts) != expected:
            raise UsageError(f"{flag}: {expected} values are needed, not {len(parts)}")
        return tuple(_one(f, flag, p.strip() if isinstance(p, str) else p, base) for p in parts if p != "")
    return _one(f, flag, value, base)


def _one(f: dataclasses.Field[Any], flag: str, value: Any, base: type) -> Any:
    choices = {c.split("=")[0]: c.split("=")[-1] for c in f.metadata.get("choices", ())}
    if base is bool:
        if isinstance(value, (bool, int)):
            return bool(value)
        if str(value).lower() in _TRUE | _FALSE:
            return str(value).lower() in _TRUE
        raise UsageError(f"{flag}: {value!r} is neither true nor false")
    if choices:
        if str(value) not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {choices[near[0]]!r}?" if near else ""
            raise UsageError(
                f"{flag}: {value!r} is not one of {', '.join(dict.fromkeys(choices.values()))}{hint}"
            )
        return choices[str(value)]
    if isinstance(value, base) and not isinstance(value, bool):
        return value
    if base is int and (isinstance(value, bool) or (isinstance(value, float) and not value.is_integer())):
        raise UsageError(f"{flag}: {value!r} is not an int")
    try:
        return base(value)
    except (TypeError, ValueError) as e:
        raise UsageError(f"{flag}: {value!r} is not {'an' if base is int else 'a'} {base.__name__}") from e


@dataclass(frozen=True)
class SaveMedia(Options):
    """The options that every writer has."""

    save_media: bool = option(
        False, aliases=("save-images",), help="write the images too, not only annotations"
    )
    image_ext: str | None = option(
        None, help="extension of the images, e.g. .png (default: that of the source, else the format's own)"
    )
    save_dataset_meta: bool = option(False, help="write dataset_meta.json with the labels and their colours")
