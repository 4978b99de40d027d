"""The darknet layout: obj.data names the lists and the classes, label files lie beside the images."""

from __future__ import annotations

import posixpath
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from rayds.engine.base import Position
from rayds.errors import DataError, OnError
from rayds.format import (
    Capabilities,
    Confidence,
    Format,
    Plan,
    PlanContext,
    ReadContext,
    Shard,
    WriteContext,
)
from rayds.formats._images_meta import FILE as META_FILE
from rayds.formats._meta import write_meta
from rayds.formats.yolo._categories import FAMILY, with_meta, written_names
from rayds.formats.yolo._paths import Resolver, list_shards, name_shards, new_token
from rayds.formats.yolo._reading import read_images
from rayds.formats.yolo._scan import scan
from rayds.formats.yolo._shapes import Setting
from rayds.formats.yolo._writing import (
    FRAGMENTS,
    View,
    box_lines,
    by_subset,
    check_subset,
    fragment_word,
    join_meta,
    usable,
    with_scores,
    write_labels,
    write_meta_part,
)
from rayds.listing import Listing
from rayds.media import is_image
from rayds.options import SaveMedia, option
from rayds.schema import AnnotationType
from rayds.storage import Storage

NOT_SUBSETS = ("classes", "names", "backup")
NAMES_FILE = "obj.names"

_SET_FOLDER = re.compile(r"^obj_(.+)_data$")


@dataclass
class _Fragment:
    """What one block wrote: the fragments of the lists, and of images.meta, by subset."""

    lists: list[tuple[str, str]] = field(default_factory=list)  # (subset of the item, file)
    metas: list[tuple[str, str]] = field(default_factory=list)  # (subset that is written, file)


class Yolo(Format):
    """YOLO as darknet has it: `obj.data`, `obj.names`, lists of images, and a .txt of boxes beside each image.

    Specification: https://github.com/AlexeyAB/darknet#how-to-train-to-detect-your-custom-objects. images.meta with
    the image sizes (one `<ID> <height> <width>` a line) is an extension that lets a dataset be read without its images.
    """

    name = "yolo"
    title = "YOLO (darknet): obj.data, obj.names, lists of images, boxes in .txt files"
    family = FAMILY
    holds: ClassVar[Capabilities | None] = Capabilities(
        annotations=frozenset({AnnotationType.bbox}), unlabeled=False, needs_size=True
    )

    @dataclass(frozen=True)
    class WriteOptions(SaveMedia):
        """Options of the writer."""

        add_path_prefix: bool = option(True, help="begin the paths in obj.data and the lists with data/")
        save_conf: bool = option(
            False, help="write the attribute 'score' as a 6th number, as predictions have it"
        )

    # reading

    def detect(self, files: Listing) -> Confidence:
        if files.file is not None and not files.file.endswith((".data", ".names")):
            return Confidence.no("the file is no .data file")
        found = _data_file(files)
        if found is not None:
            return Confidence(90, f"{posixpath.join(*found)} names the classes and lists")
        names = [n for n in files.files() if n.endswith(".names")]
        if names and any(_SET_FOLDER.match(d) for d in files.dirs()):
            return Confidence(80, f"{names[0]} and folders obj_<subset>_data")
        if names and (any(n.endswith(".txt") for n in files.files()) or "labels" in files.dirs()):
            return Confidence(50, f"{names[0]} and label files, but no .data file")
        return Confidence.no(
            "no .data file that names the classes (names = ...), no .names file with label files"
        )

    def root(self, files: Listing) -> Storage:
        found = _data_file(files)
        return files.root.sub(found[0]) if found else files.root

    def plan(self, files: Listing, ctx: PlanContext) -> Plan:
        found = _data_file(files)
        if found and found[0]:
            files = Listing(files.root.path(posixpath.join(*found)))
        root = files.root
        settings = _settings(root, found[1]) if found else {}
        resolver = Resolver(root)
        categories = with_meta(_names(files, settings, resolver, found[1] if found else None), files)
        token = new_token() if files.exists(META_FILE) else ""
        shards: list[Shard] = []
        for subset, name in _lists(files, settings, resolver, found[1] if found else "", ctx).items():
            shards += list_shards(root, subset, name, resolver, token)
        if not shards:
            shards = _scanned(files, token)
        return Plan(categories, shards, ids="none")

    def read(self, shard: Shard, ctx: ReadContext) -> Iterator[pa.Table]:
        yield from read_images(shard.data, ctx, Setting("detect", (0, 0), len(ctx.categories.labels)))

    # writing

    def capabilities(self, options: Any) -> Capabilities:
        caps = super().capabilities(options)
        return (
            Capabilities(**{**vars(caps), "attributes": frozenset({"score"})}) if options.save_conf else caps
        )

    def prepare(self, ctx: WriteContext) -> None:
        written_names(ctx.categories.labels)

    def media_folder(self, subset: str, ctx: WriteContext) -> str:
        del ctx
        return f"obj_{_written(subset)}_data"

    def write(self, block: pa.Table, position: Position, ctx: WriteContext) -> _Fragment:
        block = usable(block, ctx, (AnnotationType.bbox,))
        made = _Fragment()
        if not block.num_rows:
            return made
        view = View(block)
        text = box_lines(view)
        if ctx.options.save_conf:
            text = with_scores(text, view)
        parts = by_subset(block)
        for subset, _ in parts:
            check_subset(subset, NOT_SUBSETS)
        write_labels(block, text, {s: self.media_folder(s, ctx) for s, _ in parts}, ctx)
        prefix = "data/" if ctx.options.add_path_prefix else ""
        for subset, part in parts:
            entries = pc.binary_join_element_wise(prefix, self.media_names(part, ctx), "\n", "")
            name = f"{FRAGMENTS}/list-{fragment_word(subset)}-{position.index:08d}"
            ctx.out.write_bytes(name, "".join(entries.to_pylist()).encode())
            made.lists.append((subset, name))
            if meta := write_meta_part(part, subset, position.index, ctx):
                made.metas.append((_written(subset), meta))
        return made

    def finish(self, fragments: Sequence[_Fragment], ctx: WriteContext) -> None:
        lists: dict[str, list[str]] = {}
        sources: dict[str, set[str]] = {}
        metas: dict[str, list[str]] = {}
        for fragment in fragments:
            for subset, name in fragment.lists:
                lists.setdefault(_written(subset), []).append(name)
                sources.setdefault(_written(subset), set()).add(subset)
            for subset, name in fragment.metas:
                metas.setdefault(subset, []).append(name)
        prefix = "data/" if ctx.options.add_path_prefix else ""
        names = written_names(ctx.categories.labels)
        lines = [f"classes = {len(names)}"]
        for subset, parts in sorted(lists.items(), key=lambda kv: _order(kv[0])):
            if len(sources[subset]) > 1:
                _check_merged(parts, ctx)
            ctx.out.concatenate(parts, f"{subset}.txt")
            lines.append(f"{subset} = {prefix}{subset}.txt")
        lines += [f"names = {prefix}{NAMES_FILE}", "backup = backup/"]
        ctx.out.write_text("obj.data", "\n".join(lines) + "\n")
        ctx.out.write_text(NAMES_FILE, "".join(f"{n}\n" for n in names))
        join_meta(metas, ctx)
        if ctx.options.save_dataset_meta:
            write_meta(ctx.out, ctx.categories)
        ctx.out.remove(FRAGMENTS)


def _written(subset: str) -> str:
    """The subset that an item is written to: the format has no items outside subsets."""
    return "train" if subset == "default" else subset


def _order(subset: str) -> tuple[int, str]:
    known = ("train", "valid")
    return (known.index(subset) if subset in known else len(known), subset)


def _check_merged(parts: Sequence[str], ctx: WriteContext) -> None:
    """Raise DataError when items of the subsets `default` and `train`, which become one, have the same id."""
    texts = [line for name in parts for line in ctx.out.read_bytes(name).decode().splitlines()]
    stems = pc.replace_substring_regex(pa.array(texts), r"\.[^./]*$", "")
    counts = pc.value_counts(stems)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        example = posixpath.basename(twice[0]["values"].as_py())
        raise DataError(
            f"{len(twice)} items of the subset 'default' have ids of items of 'train', and this format writes both "
            "to 'train'",
            item=example,
            remedy="Rename the subset (transform map_subsets) or the items (transform rename)",
        )


def _data_file(files: Listing) -> tuple[str, str] | None:
    """(folder, name) of the settings file: the one that was named, else one in the folder or just below it."""
    if files.file is not None:
        return (
            ("", files.file)
            if files.file.endswith(".data") and _names_classes(files.root, files.file)
            else None
        )
    # a folder with nothing but folders may be one around the dataset; others are not searched, they can be huge
    for pattern in ("*.data",) if files.files() else ("*/*.data",):
        found = [n for n in files.glob(pattern) if _names_classes(files.root, n)]
        if found:
            best = next((n for n in found if posixpath.basename(n) == "obj.data"), found[0])
            folder, name = posixpath.split(best)
            return folder, name
    return None


def _names_classes(root: Storage, name: str) -> bool:
    return re.search(rb"^\s*names\s*=", root.head(name), re.MULTILINE) is not None


def _settings(root: Storage, name: str) -> dict[str, str]:
    """The `key = value` lines of a settings file."""
    made = {}
    for line in root.read_text(name).splitlines():
        key, eq, value = line.partition("=")
        if eq and not line.lstrip().startswith("#"):
            made[key.strip()] = value.strip().strip("\"'")
    return made


def _names(files: Listing, settings: dict[str, str], resolver: Resolver, data: str | None) -> list[str]:
    """The label names by the settings, else by the .names file in the folder, else numbers."""
    name = resolver.file(settings["names"]) if settings.get("names") else None
    if name is None:
        found = [n for n in files.files() if n.endswith(".names")]
        name = NAMES_FILE if NAMES_FILE in found else found[0] if len(found) == 1 else None
    if name is not None:
        names = [line.strip() for line in files.root.read_text(name).split("\n")]
        while names and not names[-1]:
            names.pop()
        return names
    if files.exists("dataset_meta.json"):
        return []
    if settings.get("classes", "").isdigit():
        return [f"class_{i}" for i in range(int(settings["classes"]))]
    raise DataError(
        f"the list of classes {settings.get('names', NAMES_FILE)!r} is missing",
        file=files.root.path(data or ""),
        remedy=f"Put a file {NAMES_FILE} with one class name a line into the dataset folder",
    )


def _lists(
    files: Listing, settings: dict[str, str], resolver: Resolver, data: str, ctx: PlanContext
) -> dict[str, str]:
    """The list files by subset."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if key in NOT_SUBSETS or not value.endswith(".txt"):
            continue
        name = resolver.file(value)
        if name is not None:
            found[key] = name
        else:
            error = DataError(
                f"the list {value!r} of the subset {key!r} is missing",
                file=files.root.path(data),
                remedy="Put it into the dataset folder, or take the line out",
            )
            if ctx.on_error is OnError.RAISE:
                raise error
            warnings.warn(f"{error}; the subset is left out", stacklevel=2)
    if not found:
        for name in files.files():
            if name.endswith(".txt") and is_image(
                files.root.head(name, 4096).split(b"\n")[0].strip().decode("utf-8", "replace")
            ):
                found[posixpath.splitext(name)[0]] = name
    return found


def _scanned(files: Listing, token: str) -> list[Shard]:
    """Shards of a dataset without lists: folders obj_<subset>_data, else everything as one subset."""
    sets = [(m.group(1), folder) for folder in files.dirs() if (m := _SET_FOLDER.match(folder))]
    shards: list[Shard] = []
    for subset, folder in sets or [("train", "")]:
        found = scan(files, folder)
        shards += name_shards(subset, folder or found.base, found, token)
    return shards
