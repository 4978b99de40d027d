"""Write the generated parts of README.md and the pages of docs/ again: tables of formats and options, help pages.

usage: python docs/update.py [--check]

A generated part stands between `<!-- generated: KIND [NAME] -->` and `<!-- end -->`. KIND: `table` (of all formats),
`format NAME` (options and what it can hold), `transforms` (all, with their options), `transform NAME` (options), `help COMMAND` (help page). --check writes nothing and fails where one
is out of step; tests/docs/test_docs.py does the same.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rayds.cli._tables import markdown
from rayds.cli.formats import formats, held, holds_rows
from rayds.cli.main import cli
from rayds.cli.transform import transforms
from rayds.op import transform_class
from rayds.registry import get_format, names

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- generated: (\w+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that may have generated parts."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def updated(text: str) -> str:
    """A page with its generated parts made anew."""

    def again(m: re.Match[str]) -> str:
        try:
            return f"{m[1]}{generated(m[2], m[3])}\n{m[4]}"
        except Exception as e:  # a format that needs an extra which is not installed here
            warnings.warn(f"{m[2]} {m[3]} stays as it is: {e}", stacklevel=2)
            return m[0]

    return PART.sub(again, text)


def generated(kind: str, name: str | None) -> str:
    """The text of one part."""
    if kind == "table":
        return table_of_formats()
    if kind == "format":
        return format_options(name or "")
    if kind == "transforms":
        return table_of_transforms()
    if kind == "transform":
        return options_table(transform_class(name or "").Options.describe())
    if kind == "help":
        return f"```text\n{help_page(name)}\n```"
    raise ValueError(f"no such generated part: {kind}")


def table_of_formats() -> str:
    """What `rayds formats --markdown` prints."""
    from click.testing import CliRunner

    return CliRunner().invoke(formats, ["--markdown"]).stdout.strip()


def table_of_transforms() -> str:
    """All transforms that are built in, with their options."""
    rows = []
    for name, found in transforms().items():
        if not found.__module__.startswith("rayds.ops."):
            continue
        options = ", ".join(f"`{flag.partition(' [')[0]}`" for flag, _, _ in found.Options.describe())
        rows.append((f"`{name}`", found.title, options or "-"))
    return markdown(("transform", "what it does", "options"), rows)


def format_options(name: str) -> str:
    """The options of a format's reader and writer, and what it can hold; short where the family's main format has the same."""
    fmt = get_format(name)
    main = get_format(fmt.family) if fmt.family in names("formats") and fmt.family != name else None
    parts = []
    if fmt.reads:
        rows = fmt.ReadOptions.describe()
        same = as_in(rows, main.ReadOptions.describe()) if main else None
        if same and main:
            parts.append(f"Reading: {same} `{main.name}`.")
        elif rows:
            rows = [(flag.removeprefix("--"), *rest) for flag, *rest in rows]
            parts += ["Reading (`--read NAME=VALUE`):", options_table(rows)]
    if (caps := held(fmt)) is not None:
        rows = fmt.WriteOptions.describe()
        same = as_in(rows, main.WriteOptions.describe()) if main else None
        parts += (
            [f"Writing: {same} `{main.name}`."]
            if same and main
            else ["Writing (after `--`):", options_table(rows)]
        )
        holds = "; ".join(f"{what}: {value}" for what, value in holds_rows(caps))
        parts.append(f"Holds by default: {holds}.")
    return "\n\n".join(parts)


def as_in(rows: Sequence[tuple[str, str, str]], main: Sequence[tuple[str, str, str]]) -> str | None:
    """How options are those of another format; None when some are not, or where there are none."""
    if not rows or not set(rows) <= set(main):
        return None
    less = ", ".join(f"`{flag.split()[0]}`" for flag, *_ in main if (flag, *_) not in rows)
    return f"the options but {less} of" if less else "the options of"


def options_table(rows: Sequence[Sequence[str]]) -> str:
    """Options as a Markdown table."""
    return markdown(("option", "default", "meaning"), [(f"`{flag}`", f"`{d}`", h) for flag, d, h in rows])


def help_page(command: str | None) -> str:
    """What `rayds [COMMAND] --help` prints on a terminal of 80 columns."""
    root = cli.make_context("rayds", [], resilient_parsing=True, terminal_width=80)
    found = cli.get_command(root, command) if command else cli
    if found is None:
        raise ValueError(f"no such command: {command}")
    ctx = (
        found.make_context(command, [], parent=root, resilient_parsing=True, terminal_width=80)
        if command
        else root
    )
    text = found.get_help(ctx)
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def main() -> int:
    """Update the pages, or check them; returns the exit code."""
    stale = [page for page in pages() if page.exists() and updated(page.read_text()) != page.read_text()]
    for page in stale:
        if "--check" not in sys.argv:
            page.write_text(updated(page.read_text()))
        print(f"{page.relative_to(ROOT)}: {'out of step' if '--check' in sys.argv else 'updated'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
