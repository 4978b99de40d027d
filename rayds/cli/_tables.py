"""Tables for people: on a terminal as wide as it is, elsewhere one line a row, so that grep and cut work on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def table(headers: Sequence[str], rows: Rows) -> str:
    """Rows in aligned columns, without a frame; no line of headers when they are empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=bool(headers)
    )
    for i in range(len(rows[0]) if rows else len(headers)):
        shown.add_column(headers[i] if headers else "", no_wrap=i == 0)
    for row in rows:
        shown.add_row(*map(Text, row))
    width = None if sys.stdout.isatty() else 10_000
    console = Console(width=width)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def markdown(headers: Sequence[str], rows: Rows) -> str:
    """Rows as a Markdown table."""
    lines = [list(headers), ["---"] * len(headers), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def indented(text: str, by: int = 2) -> str:
    """Every line of a text moved right."""
    return "\n".join(f"{' ' * by}{line}".rstrip() for line in text.splitlines())
