"""`rayds formats` and `rayds detect`: what formats there are, and which one a dataset has."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import Command, opt
from rayds.cli._tables import indented, markdown, table
from rayds.errors import FormatError, UsageError

if TYPE_CHECKING:
    from rayds.format import Capabilities, Format
    from rayds.registry import Found

FORMATS_EXAMPLES = """
    rayds formats
    rayds formats voc            layout, specification, options, what it can hold
    rayds formats --json | jq -r '.[] | select(.write) | .name'
"""
DETECT_EXAMPLES = """
    rayds detect data/
    rayds detect data/ --show-rejections
    rayds detect data/ --json | jq -r '.detected_formats[]'
"""
NEAREST = 8  # rejected formats shown when nothing fits


@click.command(cls=Command, examples=FORMATS_EXAMPLES)
@click.argument("name", required=False)
@opt("--json", "as_json", is_flag=True, section="Output", help="Print JSON.")
@opt("--markdown", "as_markdown", is_flag=True, section="Output", help="Print a Markdown table.")
def formats(name: str | None, as_json: bool, as_markdown: bool) -> None:
    """List the formats, or show all about the format NAME: layout, specification, options, what it can hold."""
    from rayds.registry import all_formats, get_format

    if as_json and as_markdown:
        raise UsageError("--json and --markdown don't go together")
    if name is not None:
        if as_markdown:
            raise UsageError("--markdown prints the table of all formats; leave NAME out")
        fmt = get_format(name)
        click.echo(json.dumps(format_json(fmt, options=True), indent=2) if as_json else format_page(fmt))
        return
    found = list(all_formats())
    if as_json:
        click.echo(json.dumps([format_json(f) for f in found], indent=2))
        return
    headers = ("name", "read", "write", "annotations", "title")
    rows = [(f.name, yes(f.reads), yes(held(f) is not None), kinds(held(f)), f.title) for f in found]
    click.echo(
        markdown(headers, [(f"`{row[0]}`", *row[1:]) for row in rows])
        if as_markdown
        else table(headers, rows)
    )


def yes(value: bool) -> str:
    """A flag as a table cell."""
    return "yes" if value else "-"


def kinds(caps: Capabilities | None) -> str:
    """The annotation types of an output as a table cell."""
    if caps is None or not caps.annotations:
        return "-"
    held = sorted(caps.annotations)
    return "all" if len(held) == len(type(held[0])) else ", ".join(t.name for t in held)


def some(value: bool | frozenset[str]) -> str:
    """A capability that is all, none or some names, as text."""
    return ("any" if value else "no") if isinstance(value, bool) else ", ".join(sorted(value)) or "no"


def format_page(fmt: Format) -> str:
    """All about a format, for people."""
    parts = [f"{fmt.name}: {fmt.title}"]
    if doc := inspect.getdoc(type(fmt)):
        parts += ["", doc]
    if (module := inspect.getmodule(type(fmt))) and module.__doc__ and module.__doc__ != type(fmt).__doc__:
        parts += ["", inspect.cleandoc(module.__doc__)]
    if fmt.reads:
        rows = [(flag.removeprefix("--"), *rest) for flag, *rest in fmt.ReadOptions.describe()]
        parts += ["", "Options of the reader (--read NAME=VALUE):", options_table(rows)]
    return "\n".join([*parts, "", writer_help(fmt)])


def held(fmt: Format, words: Sequence[str] = ()) -> Capabilities | None:
    """What an output holds with the writer options in `words` (default: with none given); None: it can't be written."""
    try:
        return fmt.capabilities(fmt.WriteOptions.parse(words))
    except FormatError:
        return None
    except UsageError:  # some option is required
        return fmt.holds


def writer_help(fmt: Format, words: Sequence[str] = ()) -> str:
    """The options of a format's writer, and what the format can hold with those in `words`."""
    caps = held(fmt, words)
    if caps is None:
        return f"{fmt.name} can't be written."
    lines = [
        f"Options of the writer (rayds convert -f {fmt.name} -- OPTIONS):",
        options_table(fmt.WriteOptions.describe()),
        "",
        f"{fmt.name} can hold, with {' '.join(words) or 'the default options'}:",
        indented(table((), holds_rows(caps))),
    ]
    return "\n".join(lines)


def options_table(rows: Sequence[Sequence[str]]) -> str:
    """Options as (flag, default, help) in a table."""
    return indented(table(("option", "default", "meaning"), rows) if rows else "none")


def holds_rows(caps: Capabilities) -> list[tuple[str, str]]:
    """What an output can hold, in words."""
    return [
        ("annotations", kinds(caps)),
        ("attributes", some(caps.attributes)),
        ("item attributes", some(caps.item_attributes)),
        ("annotation ids", some(caps.ids)),
        ("groups", some(caps.groups)),
        ("z_order", some(caps.z_order)),
        ("without label", some(caps.unlabeled)),
        ("subsets", some(caps.subsets)),
        ("media", some(caps.media)),
    ]


def format_json(fmt: Format, options: bool = False) -> dict[str, Any]:
    """A format as data."""
    made: dict[str, Any] = {
        "name": fmt.name,
        "title": fmt.title,
        "read": fmt.reads,
        "write": (caps := held(fmt)) is not None,
    }
    made["holds"] = caps and {
        "annotations": [t.name for t in sorted(caps.annotations)],
        **{n: plain(getattr(caps, n)) for n in ("attributes", "item_attributes", "subsets", "media")},
        **{n: getattr(caps, n) for n in ("ids", "groups", "z_order", "unlabeled")},
    }
    if options:
        names = ("option", "default", "help")
        made["description"] = inspect.getdoc(type(fmt))
        made["read_options"] = [dict(zip(names, row, strict=True)) for row in fmt.ReadOptions.describe()]
        made["write_options"] = [dict(zip(names, row, strict=True)) for row in fmt.WriteOptions.describe()]
    return made


def plain(value: bool | frozenset[str]) -> bool | list[str]:
    """A capability as JSON-like data."""
    return value if isinstance(value, bool) else sorted(value)


@click.command(cls=Command, examples=DETECT_EXAMPLES)
@click.argument("path", default=".")
@opt(
    "--depth",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    section="Search",
    help="How many levels of folders to search when PATH itself is no dataset.",
)
@opt(
    "--show-rejections",
    is_flag=True,
    aliases=("--rejected",),
    section="Output",
    help="Also say why not the other formats.",
)
@opt("--json", "as_json", is_flag=True, section="Output", help="Print JSON on stdout.")
@click.pass_context
def detect(ctx: click.Context, path: str, depth: int, show_rejections: bool, as_json: bool) -> None:
    """Tell which format the dataset at PATH (a folder, file or URL; default: here) has, and why.

    Exit code: 0 one format fits, 1 none or several do.
    """
    from rayds.registry import search

    here, below = search(path, depth)
    clear = len(here.best) == 1 or (bool(below) and all(len(found.best) == 1 for found in below))
    if as_json:
        click.echo(json.dumps(detect_json(here, below), indent=2))
    else:
        click.echo("\n".join(detect_lines(here, below, show_rejections)))
    if not clear:
        ctx.exit(1)


def detect_lines(here: Found, below: Sequence[Found], show_rejections: bool) -> list[str]:
    """What detection found, for people."""
    lines: list[str] = []
    for found in below or [here]:
        place = f" in {found.path}" if below else ""
        if len(found.best) > 1:
            lines.append(f"Ambiguous dataset{place}; it fits several formats, name one with -if:")
            lines += [f"  {fmt.name}: {conf.reason}" for fmt, conf in found.best]
        elif found.best:
            lines.append(f"Detected format: {found.best[0][0].name}{place}")
            lines.append(f"  {found.best[0][1].reason}")
    if not lines:
        lines.append(f"Unable to detect the format of {here.path}")
    if show_rejections or not (here.best or below):
        shown = here.rejected if show_rejections else here.by_family()[:NEAREST]
        if shown:
            lines += ["", table(("not", "because"), [(fmt.name, conf.reason) for fmt, conf in shown])]
        if len(shown) < len(here.rejected):
            lines.append(f"... and {len(here.rejected) - len(shown)} more: --show-rejections")
    return lines


def detect_json(here: Found, below: Sequence[Found]) -> dict[str, Any]:
    """What detection found, as data: rejections are those at the path itself."""
    found = below or ([here] if here.best else [])
    return {
        "path": here.path,
        "detected_formats": sorted({fmt.name for f in found for fmt, _ in f.best}),
        "found": [
            {"path": f.path, "formats": [{"name": fmt.name, "message": conf.reason} for fmt, conf in f.best]}
            for f in found
        ],
        "rejected_formats": {
            fmt.name: {"reason": here.reason_code(fmt, conf), "message": conf.reason}
            for fmt, conf in here.rejected
        },
    }
