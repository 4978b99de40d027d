"""Options: flags and keywords make the same values; mistakes are told with the nearest name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from rayds.errors import UnknownNameError, UsageError
from rayds.options import Options, SaveMedia, option


@dataclass(frozen=True)
class Some(Options):
    name: str = option("x", help="a text", short="n")
    count: int = option(3, help="a number")
    ratio: float = option(0.5, help="a fraction")
    fast: bool = option(False, help="a switch", aliases=("quick",))
    mode: str = option("mask", help="a choice", choices=("mask", "masks=mask", "polygons"))
    limit: int | None = option(None, help="a number or nothing")
    tasks: tuple[str, ...] = option((), help="many", choices=("a", "b"))
    sizes: tuple[float, ...] = option((1.0, 2.0), help="many numbers")


@dataclass(frozen=True)
class Needs(Options):
    label_file: str = option(help="must be given")


def changed(options: Options) -> dict[str, object]:
    """The fields that differ from their defaults."""
    return {
        f.name: getattr(options, f.name)
        for f in dataclasses.fields(options)
        if getattr(options, f.name) != f.default
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--count 7", {"count": 7}),
        ("--count=7", {"count": 7}),
        ("--count -7", {"count": -7}),
        ("--ratio 1e-3 --name -", {"ratio": 0.001, "name": "-"}),
        ("-n y", {"name": "y"}),
        ("--fast", {"fast": True}),
        ("--quick", {"fast": True}),
        ("--fast true", {"fast": True}),
        ("--fast False", {}),
        ("--fast=on --count 1", {"fast": True, "count": 1}),
        ("--fast --count 1", {"fast": True, "count": 1}),
        ("--mode masks", {}),
        ("--mode polygons", {"mode": "polygons"}),
        ("--limit 0", {"limit": 0}),
        ("--tasks a,b", {"tasks": ("a", "b")}),
        ("--tasks a --tasks b", {"tasks": ("a", "b")}),
        ("--sizes=3,4.5", {"sizes": (3.0, 4.5)}),
        ("--name=a=b", {"name": "a=b"}),
        ("--count 1 --count 2", {"count": 2}),
    ],
)
def test_words(words: str, expected: dict[str, object]) -> None:
    assert changed(Some.parse(words.split())) == expected


def test_underscores_and_dashes_are_the_same() -> None:
    assert (
        Needs.parse(["--label_file", "x"])
        == Needs.parse(["--label-file=x"])
        == Needs.make({"label_file": "x"})
    )
    assert (
        SaveMedia.parse(["--save_images"]) == SaveMedia.parse(["--save-media"]) == SaveMedia(save_media=True)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cuont 1", "unknown option '--cuont'. Did you mean '--count'"),
        ("--xyzzy", "Known: --count"),
        ("7", "unexpected argument '7'"),
        ("--count", "--count needs a value"),
        ("--name --fast", "--name needs a value"),
        ("--count many", "--count: 'many' is not an int"),
        ("--count 1.5", "--count: '1.5' is not an int"),
        ("--count=", "--count: '' is not an int"),
        ("--ratio x", "--ratio: 'x' is not a float"),
        ("--fast=maybe", "--fast: 'maybe' is neither true nor false"),
        ("--mode boxes", "--mode: 'boxes' is not one of mask, polygons"),
        ("--tasks a,c", "--tasks: 'c' is not one of a, b"),
    ],
)
def test_mistakes_in_words(words: str, message: str) -> None:
    with pytest.raises(UsageError) as e:
        Some.parse(words.split())
    assert message in str(e.value)


def test_a_required_option() -> None:
    for attempt in (lambda: Needs.parse([]), lambda: Needs.make({})):
        with pytest.raises(UsageError, match="'label-file' is required"):
            attempt()


def test_keywords() -> None:
    assert changed(Some.make({"count": 4, "fast": 1, "tasks": ["a"], "limit": None})) == {
        "count": 4,
        "fast": True,
        "tasks": ("a",),
    }
    assert Some.make({"sizes": 4}).sizes == (4.0,)
    assert Some.make({"count": 4.0}).count == 4
    assert Some.make({"count": None, "fast": None}) == Some()  # None: not given
    assert Some.make({"quick": True}).fast


@pytest.mark.parametrize(
    "values", [{"count": 1.5}, {"count": True}, {"count": "x"}, {"mode": "x"}, {"fast": "x"}]
)
def test_mistakes_in_keywords(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(values))}"):
        Some.make(values)
    with pytest.raises(UnknownNameError, match="Did you mean 'count'"):
        Some.make({"counts": 1})


def test_descriptions_for_help_and_docs() -> None:
    rows = {flag.split()[0].strip(","): (flag, default, text) for flag, default, text in Some.describe()}
    assert rows["-n"] == ("-n, --name STR", "x", "a text")
    assert rows["--fast"][:2] == ("--fast [true|false]", "false")
    assert rows["--mode"][:2] == ("--mode {mask,polygons}", "mask")
    assert rows["--limit"][:2] == ("--limit INT", "-")
    assert rows["--sizes"][:2] == ("--sizes FLOAT[,...]", "1.0,2.0")
    assert Needs.describe() == [("--label-file STR", "required", "must be given")]


@dataclass(frozen=True)
class Words(Options):
    grid: tuple[int, ...] = option((1, 1), help="rows and columns", words=2)
    rename: tuple[str, ...] = option((), help="pairs", split=False, short="l")


def test_an_option_of_several_words() -> None:
    assert Words.parse(["--grid", "2", "3", "-l", "a"]) == Words((2, 3), ("a",))
    assert Words.parse(["--grid", "2,3"]) == Words.make({"grid": (2, 3)}) == Words((2, 3))
    for words in (["--grid", "2"], ["--grid", "2,3,4"]):
        with pytest.raises(UsageError, match="--grid: 2 values are needed"):
            Words.parse(words)


def test_commas_are_kept_where_values_may_have_them() -> None:
    made = Words.parse(["-l", "a,b:c", "--rename", "d:e"])
    assert made.rename == ("a,b:c", "d:e")
    assert Words.make({"rename": "a,b"}).rename == ("a,b",)
    assert [row[0] for row in Words.describe()] == ["--grid INT INT", "-l, --rename STR, repeatable"]
