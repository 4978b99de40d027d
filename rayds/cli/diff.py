"""`rayds diff` (and `compare`): what differs between two datasets or projects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from rayds.cli._common import Command, choose_engine, note, opt, run_options
from rayds.cli._progress import progress
from rayds.cli.merge import open_part
from rayds.errors import OutputExistsError, UsageError

if TYPE_CHECKING:
    from rayds.dataset import Dataset

EXAMPLES = """
    rayds diff truth:coco predictions:coco -o diff/
    rayds diff a/ b/ -m equality -if id -if group -if z_order --exit-code
    rayds diff other_project/
    rayds compare a/ b/
"""
METHODS = ("distance", "equality")


def check(ctx: click.Context) -> None:
    """The options, without the data."""
    if len(ctx.params["paths"]) not in (1, 2):
        raise UsageError("name two datasets; or one, to compare with the project around the current folder")


@click.command(cls=Command, check=check, examples=EXAMPLES)
@click.argument("paths", nargs=-1, metavar="PATH[:FORMAT] [PATH[:FORMAT]]")
@opt(
    "-m",
    "--method",
    type=click.Choice(METHODS),
    default="distance",
    show_default=True,
    section="Comparison",
    help="Match annotations by IoU; or compare everything as it is.",
)
@opt(
    "--iou-thresh",
    type=float,
    default=0.5,
    show_default=True,
    section="Comparison",
    help="distance: how alike annotations that match are, at least.",
)
@opt(
    "--conf-thresh",
    type=float,
    default=0.5,
    show_default=True,
    section="Comparison",
    help="distance: leave out predictions of a lower score.",
)
@opt(
    "-iia",
    "--ignore-item-attr",
    multiple=True,
    metavar="NAME",
    section="Comparison",
    help="equality: an item attribute that does not count, repeatable.",
)
@opt(
    "-ia",
    "--ignore-attr",
    multiple=True,
    metavar="NAME",
    section="Comparison",
    help="equality: an attribute of annotations that does not count, repeatable.",
)
@opt(
    "-if",
    "--ignore-field",
    multiple=True,
    metavar="NAME",
    default=("id", "group"),
    show_default=True,
    section="Comparison",
    help="equality: a field of annotations that does not count, repeatable; '' for none.",
)
@opt(
    "--match-images",
    is_flag=True,
    section="Comparison",
    help="equality: match items by their images, not by their ids.",
)
@opt(
    "--all", "all_", is_flag=True, section="Comparison", help="equality: list the items that are equal, too."
)
@opt(
    "-p",
    "--project",
    metavar="PROJECT",
    section="Input",
    help="With one PATH: the project to compare it with.",
)
@opt(
    "-o",
    "--output-dir",
    metavar="DIR",
    aliases=("--output",),
    section="Output",
    help="Folder for diff.json and pictures; without it the summary is printed only.",
)
@opt(
    "-f",
    "-v",
    "--format",
    "--visualizer",
    "output_format",
    type=click.Choice(("simple", "json", "tensorboard")),
    default="simple",
    show_default=True,
    section="Output",
    help="Pictures and diff.json; diff.json only; or TensorBoard logs as well.",
)
@opt(
    "--max-pictures",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    section="Output",
    help="Draw so many of the items that differ.",
)
@opt("--overwrite", is_flag=True, section="Output", help="Replace the output folder when it is there.")
@opt("--exit-code", is_flag=True, section="Output", help="Exit with 1 when there is a difference.")
@opt("--json", "as_json", is_flag=True, section="Output", help="Print the result as JSON on stdout.")
@opt("--quiet", "-q", is_flag=True, section="Output", help="No progress and no messages; errors still show.")
@run_options
@click.pass_context
def diff(ctx: click.Context, /, **given: Any) -> None:  # fmt: skip
    """Tell what differs between two datasets or projects.

    distance: boxes, polygons, masks, points and lines of the two are matched by their likeness, labels are counted; where the
    second has scores it is taken for predictions, and COCO's average precision, precision and recall are told, too.
    equality: items and annotations are compared as they are.
    """
    check(ctx)
    engine = choose_engine(given["engine"], given["address"])
    datasets: list[Dataset] = []
    with progress("looking at the datasets", given["quiet"]):
        if len(given["paths"]) == 1:
            datasets.append(_of_project(given["project"], engine, given["on_error"]))
        datasets += [open_part(p, None, engine, given["on_error"], given["quiet"]) for p in given["paths"]]
    options = {
        k: given[k]
        for k in ("method", "iou_thresh", "conf_thresh", "ignore_item_attr", "ignore_attr", "match_images")
    }
    fields = tuple(f for f in given["ignore_field"] if f)
    with progress("comparing", given["quiet"]):
        result = datasets[0].diff(datasets[1], **options, ignore_field=fields, all=given["all_"])
    click.echo(
        json.dumps(result.to_json(), indent=2, ensure_ascii=False) if given["as_json"] else str(result)
    )
    if given["output_dir"]:
        _save(datasets, result, given)
    if given["exit_code"] and result.differs:
        ctx.exit(1)


def _of_project(path: str | None, engine: Any, on_error: str) -> Dataset:
    from rayds.project import Project

    found = Project.load(path) if path else Project.find()
    if found is None:
        raise UsageError("name a second dataset, or a project with -p")
    return found.dataset(engine=engine, on_error=on_error)


def _save(datasets: list[Dataset], result: Any, given: dict[str, Any]) -> None:
    from rayds.storage import Storage

    out = Storage(given["output_dir"])
    if not out.is_empty():
        if not given["overwrite"]:
            raise OutputExistsError(f"{out.url} exists and is not empty (pass --overwrite to replace it)")
        if not out.exists("diff.json"):
            raise OutputExistsError(f"{out.url} has no diff.json: it is not replaced")
        out.remove()
    pictures = (
        {}
        if given["output_format"] == "json"
        else datasets[0].diff_pictures(datasets[1], result, given["max_pictures"])
    )
    if given["output_format"] == "tensorboard":
        result.log(out, pictures)
    for name, data in pictures.items():
        out.write_bytes(name, data)
    out.write_text("diff.json", json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    note(f"{len(pictures):,} pictures and diff.json in {out.url}", given["quiet"])


compare = diff
