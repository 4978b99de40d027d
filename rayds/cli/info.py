"""`rayds info`: what a dataset or a project is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import (
    Command,
    check_input,
    chosen_project,
    input_options,
    open_dataset,
    opt,
    run_options,
)

if TYPE_CHECKING:
    from rayds.operations import Info

EXAMPLES = """
    rayds info -i coco/
    rayds info -p my_project --all
    rayds info -i s3://bucket/items --json
"""
FIRST = 10


@click.command(cls=Command, check=check_input, examples=EXAMPLES)
@input_options
@opt("--all", "all_", is_flag=True, section="Output", help=f"All labels, not the first {FIRST} only.")
@opt("--json", "as_json", is_flag=True, section="Output", help="Print the result as JSON on stdout.")
@opt("--quiet", "-q", is_flag=True, section="Output", help="No progress and no messages; errors still show.")
@run_options
def info(**given: Any) -> None:
    """Tell what a dataset is: its format, subsets, number of items, labels. Of a project its sources, too.

    Images and annotations are not read where the format can leave them: ids and subsets are enough.
    """
    project = chosen_project(given)
    if project is not None:
        given["project"] = project.folder.url
    found = open_dataset(given).info() if project is None or project.sources else None
    facts: dict[str, Any] = {}
    if project is not None:
        sources = {n: {"format": s.format, "url": project.place(n)} for n, s in project.sources.items()}
        facts = {"name": project.name, "location": project.folder.url, "sources": sources}
    told = {**facts, **({} if found is None else found.to_json())}
    if project is not None:
        told["models"] = project.models
        told.pop("path", None)
    if given["as_json"]:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for line in project_lines(facts) + (
        [] if found is None else lines(found, project is not None, given["all_"])
    ):
        click.echo(line)


def project_lines(facts: dict[str, Any]) -> list[str]:
    """The lines of a project."""
    if not facts:
        return []
    made = [f"name: {facts['name']}", f"location: {facts['location']}"]
    for name, source in facts["sources"].items():
        made += [f"source {name!r}:", f"  format: {source['format']}", f"  url: {source['url']}"]
    return made or ["no sources"]


def lines(found: Info, of_project: bool, all_labels: bool) -> list[str]:
    """The lines of a dataset."""
    made = [] if of_project else [f"format: {found.format}", f"location: {found.path}"]
    made.append(f"length: {found.items:,}")
    made.append(f"categories: {', '.join(found.categories) or 'none'}")
    labels = found.labels if all_labels else found.labels[:FIRST]
    more = f" (and {len(found.labels) - FIRST:,} more)" if len(labels) < len(found.labels) else ""
    made += [f"  count: {len(found.labels):,}", f"  labels: {', '.join(labels)}{more}"] if labels else []
    made.append(f"subsets: {', '.join(found.subsets) or 'none'}")
    made += [f"  {name!r}: {n:,}" for name, n in found.subsets.items()]
    return made
