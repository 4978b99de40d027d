"""Where a VOC dataset keeps what: ImageSets lists, or flat folders of XML files beside images; shards and labels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any
from urllib.parse import unquote

from rayds.categories import Categories
from rayds.errors import DataError
from rayds.format import PlanContext, Shard
from rayds.formats._meta import read_meta
from rayds.formats.voc.labels import (
    BACKGROUND,
    Entry,
    to_categories,
    voc_entries,
)
from rayds.formats.voc.xml import new_parser, parse_xml
from rayds.listing import Listing
from rayds.media import is_image
from rayds.schema import DEFAULT_SUBSET
from rayds.storage import Storage, safe_relative

SHARD_IDS = 2000
IMAGE_SETS = "ImageSets"
MAIN, LAYOUT, ACTION, SEGMENTATION = 1, 2, 4, 8
FOLDERS = {"Main": MAIN, "Layout": LAYOUT, "Action": ACTION, "Segmentation": SEGMENTATION}
CLASS_DIR, OBJECT_DIR = "SegmentationClass", "SegmentationObject"
_XML_DIRS = ("Annotations", "annotations", "xmls", "Xmls")
_IMAGE_DIRS = ("JPEGImages", "images", "Images", "imgs", "JPEGimages")
_SUBSET_DIRS = ("train", "valid", "val", "validation", "test")


@dataclass(frozen=True)
class Part:
    """Items of one subset that one task reads: the data of a Shard.

    images: file name in `image_dir` of each id, "" when there is none; flags: the lists (MAIN, ...) that name
    each id; labels: {position: [(label name, difficult)]} of the classification lists; bad: {position: reason}.
    """

    subset: str
    xml_dir: str
    image_dir: str
    ids: str  # joined by "\0", as are the images: one text is cheaper to send than a list
    images: str
    flags: bytes
    flat: bool = False
    labels: dict[int, list[tuple[str, bool]]] = field(default_factory=dict)
    bad: dict[int, tuple[str, str, str]] = field(default_factory=dict)  # reason, file, place

    def id_list(self) -> list[str]:
        """The ids."""
        return self.ids.split("\0")

    def xml_name(self, id: str) -> str:
        """The name of the XML file of an id."""
        return f"{self.xml_dir}/{id}.xml" if self.xml_dir else f"{id}.xml"


@dataclass
class _Subset:
    flags: dict[str, int] = field(default_factory=dict)
    labels: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)
    bad: dict[str, tuple[str, str, str]] = field(default_factory=dict)


class Images:
    """Finds the image of an id by the listing of its folder."""

    def __init__(self, files: Listing, folder: str) -> None:
        self.files, self.folder = files, folder
        self._known: dict[str, dict[str, str]] = {}

    def _stems(self, sub: str) -> dict[str, str]:
        if sub not in self._known:
            names = self.files.files(posixpath.join(self.folder, sub))
            self._known[sub] = {posixpath.splitext(n)[0]: n for n in reversed(names) if is_image(n)}
        return self._known[sub]

    def find(self, id: str) -> str:
        """The name of the image relative to the folder, or ""."""
        sub, base = posixpath.split(id)
        name = self._stems(sub).get(base, "")
        return f"{sub}/{name}" if sub and name else name

    def id_of(self, line: str) -> str:
        """The id that a line of a list means: the line, its first word, or either without image extension."""
        if self.find(line):
            return line
        word = re.sub(r"(\s+-?\d+)+$", "", line)
        for candidate in (word, line):
            stem, ext = posixpath.splitext(candidate)
            if (
                ext
                and is_image(candidate)
                and posixpath.basename(self.find(stem)) == posixpath.basename(candidate)
            ):
                return stem
        return word


def task_lists(files: Listing, wanted: int) -> dict[str, list[str]]:
    """The stems of the .txt files in the ImageSets folder of every wanted task."""
    if IMAGE_SETS not in files.dirs():
        return {}
    found = {}
    for folder, flag in FOLDERS.items():
        if flag & wanted and folder in files.dirs(IMAGE_SETS):
            stems = [n[:-4] for n in files.files(f"{IMAGE_SETS}/{folder}") if n.endswith(".txt")]
            if stems:
                found[folder] = stems
    return found


def dataset_root(files: Listing) -> Listing:
    """The listing of the dataset folder, also when the path is a list file in ImageSets/<task>."""
    if files.file is None:
        return files
    top = files.up(2)
    parts = (top.file or "").split("/")
    if len(parts) == 3 and parts[0] == IMAGE_SETS and parts[1] in FOLDERS and parts[2].endswith(".txt"):
        return top
    raise DataError(
        "not a list of a VOC dataset",
        file=files.root.path(files.file),
        remedy="Give the dataset folder, or a list such as ImageSets/Main/train.txt",
    )


def _class_lists(
    files: Listing, folder: str, stems: Sequence[str], labels: frozenset[str]
) -> dict[str, tuple[str, str]]:
    """{stem: (label, subset)} of the lists <label>_<subset> with a number for each item, when <subset> is a list."""
    known, found = set(stems), {}
    for stem in stems:
        cuts = [
            (unquote(stem[:i]), stem[i + 1 :])
            for i, c in enumerate(stem)
            if c == "_" and i and stem[i + 1 :] in known
        ]
        if cuts and re.match(
            rb"\s*(\S.*?)\s-?[01]\s*$", files.root.head(f"{folder}/{stem}.txt"), re.MULTILINE
        ):
            found[stem] = next((c for c in cuts if c[0] in labels), cuts[-1])
    return found


def read_lists(
    files: Listing, wanted: int, labels: frozenset[str], image_dir: str, classes: bool
) -> dict[str, _Subset]:
    """The subsets by name, in the order of the lists; each id once, whatever number of lists name it."""
    images, subsets = Images(files, image_dir), dict[str, _Subset]()
    for folder, stems in task_lists(files, wanted).items():
        lists = _class_lists(files, f"{IMAGE_SETS}/{folder}", stems, labels)
        if files.file:
            task, base = files.file.split("/")[1:]
            stems = [base[:-4]] if task == folder else []
            if base[:-4] in lists:
                raise DataError(
                    "a classification list is not a subset",
                    file=files.root.path(files.file),
                    remedy=f"Give {lists[base[:-4]][1]}.txt",
                )
        for stem in stems:
            if stem not in lists:
                _add_list(
                    files,
                    f"{IMAGE_SETS}/{folder}/{stem}.txt",
                    FOLDERS[folder],
                    subsets.setdefault(stem, _Subset()),
                    images,
                )
        if folder == "Main" and classes:
            for stem, (label, subset) in lists.items():
                if subset in subsets:
                    _add_classes(files, f"{IMAGE_SETS}/{folder}/{stem}.txt", label, subsets[subset], images)
    return subsets


_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(number, text, whether it was quoted) of the lines that name items."""
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if quoted := _QUOTED.match(line):
            yield number, quoted[1].replace('\\"', '"'), True
        else:
            yield number, line, False


def _add_list(files: Listing, name: str, flag: int, subset: _Subset, images: Images) -> None:
    text = files.root.read_text(name)
    flags = subset.flags
    if not re.search(r'[ \t"\\/#]|\.\.|\.[A-Za-z]{3,4}$', text, re.MULTILINE):  # plain names: the usual case
        for id in text.split():
            flags[id] = flags.get(id, 0) | flag
        return
    for number, line, quoted in _lines(text):
        id = line if quoted else images.id_of(line.replace("\\", "/"))
        try:
            id = safe_relative(id, file=files.root.path(name), item=id)
        except DataError as e:
            subset.bad[id] = (e.reason, files.root.path(name), f"line {number}")
        flags[id] = flags.get(id, 0) | flag


def _add_classes(files: Listing, name: str, label: str, subset: _Subset, images: Images) -> None:
    text = files.root.read_text(name)
    for line in re.findall(r"^.*\s(?:1|0)[ \t\r]*$", text, re.MULTILINE):
        item, value = line.rsplit(maxsplit=1)
        item = item.strip()
        named = _QUOTED.match(item)
        id = named[1].replace('\\"', '"') if named else images.id_of(item.replace("\\", "/"))
        if id in subset.flags:
            subset.labels.setdefault(id, []).append((label, value == "0"))


def first_dir(files: Listing, names: Iterable[str], default: str) -> str:
    """The first of the folders that is there."""
    there = set(files.dirs())
    return next((n for n in names if n in there), default)


def listed_shards(files: Listing, wanted: int, labels: frozenset[str], classes: bool) -> list[Shard]:
    """The shards of a dataset with ImageSets lists."""
    image_dir = first_dir(files, _IMAGE_DIRS, "JPEGImages")
    xml_dir = first_dir(files, _XML_DIRS, "Annotations")
    images = Images(files, image_dir)
    shards: list[Shard] = []
    for name, subset in read_lists(files, wanted, labels, image_dir, classes).items():
        shards += _shards(name, subset, xml_dir, image_dir, images)
    return shards


def _shards(
    name: str, subset: _Subset, xml_dir: str, image_dir: str, images: Images, flat: bool = False
) -> Iterator[Shard]:
    ids = list(subset.flags)
    for start in range(0, len(ids), SHARD_IDS):
        part = ids[start : start + SHARD_IDS]
        at = {id: i for i, id in enumerate(part)} if subset.labels or subset.bad else {}
        data = Part(
            name,
            xml_dir,
            image_dir,
            "\0".join(part),
            "\0".join("" if id in subset.bad else images.find(id) for id in part),
            bytes(subset.flags[id] for id in part),
            flat,
            {at[id]: v for id, v in subset.labels.items() if id in at},
            {at[id]: v for id, v in subset.bad.items() if id in at},
        )
        yield Shard(f"{name}/{part[0]}", data, size=len(part) * 1500, items=len(part))


def flat_xml(files: Listing, limit: int = 0) -> dict[str, list[str]]:
    """XML files of a dataset without lists: {folder that ids are relative to: [ids]}.

    They stand in Annotations (or annotations), in the root, or in folders named as subsets are.
    """
    for folder in (*_XML_DIRS, ""):
        if folder and folder not in files.dirs():
            continue
        names = files.walk(folder) if folder else iter(files.files())
        ids = []
        for n in names:
            if n.endswith(".xml"):
                ids.append(posixpath.relpath(n, folder)[:-4] if folder else n[:-4])
                if len(ids) == limit:
                    break
        if ids:
            return {folder: ids}
    found = {}
    for d in files.dirs():
        if d.lower() in _SUBSET_DIRS and (ids := [n[:-4] for n in files.files(d) if n.endswith(".xml")]):
            found[d] = ids
    return found


def flat_shards(files: Listing) -> list[Shard]:
    """The shards of a dataset without ImageSets: XML files beside images or in a folder of their own."""
    shards: list[Shard] = []
    for folder, ids in flat_xml(files).items():
        is_subset = folder.lower() in _SUBSET_DIRS
        image_dir = folder if is_subset else first_dir(files, _IMAGE_DIRS, folder)
        if folder == "" and not any(is_image(n) for n in files.files()):
            image_dir = first_dir(files, _IMAGE_DIRS, "")
        subset = _Subset(dict.fromkeys(ids, MAIN))
        shards += _shards(
            folder if is_subset else DEFAULT_SUBSET, subset, folder, image_dir, Images(files, image_dir), True
        )
    return shards


def find_categories(
    files: Listing, shards: Sequence[Shard], entries: list[Entry] | None, ctx: PlanContext, objects: bool
) -> Categories:
    """The categories: dataset_meta.json, else the label map, else that of VOC where it has all names, else those found.

    objects: whether the XML files are read, so that their names count.
    """
    meta = read_meta(files)
    if meta is not None:
        known = {e.name: e for e in entries or voc_entries()}
        plain = Entry("")
        made = [
            Entry(n, meta.colors.get(i), known.get(n, plain).parts, known.get(n, plain).actions)
            for i, n in enumerate(meta.names)
        ]
        listed = set(meta.names)
        return to_categories(
            [Entry(e.name, e.color, tuple(p for p in e.parts if p in listed), e.actions) for e in made]
        )
    if entries is not None:
        return to_categories(entries)
    found = _Found()
    if objects and shards:
        found = ctx.fold([(files.root, s.data) for s in shards], _scan_task, _Found.merge)
    found.names |= {label for s in shards for values in s.data.labels.values() for label, _ in values}
    return _categories_found(found, masks=CLASS_DIR in files.dirs())


@dataclass
class _Found:
    names: set[str] = field(default_factory=set)
    parts: set[tuple[str, str]] = field(default_factory=set)
    actions: set[tuple[str, str]] = field(default_factory=set)

    @staticmethod
    def merge(a: _Found, b: _Found) -> _Found:
        return _Found(a.names | b.names, a.parts | b.parts, a.actions | b.actions)


def _categories_found(found: _Found, masks: bool) -> Categories:
    default = voc_entries()
    part_names = {p for _, p in found.parts}
    known = {e.name for e in default}
    if found.names <= known and part_names <= known | {p for e in default for p in e.parts}:
        return to_categories(default)
    names = sorted(found.names)
    if masks and BACKGROUND not in names:
        names.insert(0, BACKGROUND)
    entries = [
        Entry(
            n,
            parts=tuple(sorted(p for owner, p in found.parts if owner == n)),
            actions=tuple(sorted(a for owner, a in found.actions if owner == n)),
        )
        for n in names
    ]
    return to_categories(entries, colored=masks)


_NAME = re.compile(rb"<object>\s*<name>([^<]*)</name>")
_HARD = re.compile(rb"<part|<actions|<!")


def _scan_task(task: tuple[Storage, Part]) -> _Found:
    """The names of objects, their parts and actions in XML files, by a scan of the bytes where that is enough.

    Files that can't be read are left to the reader, which reports them.
    """
    root, part = task
    names = [part.xml_name(id) for i, id in enumerate(part.id_list()) if i not in part.bad]
    found, raw = _Found(), set[bytes]()
    parser = new_parser()
    for start in range(0, len(names), 256):
        for data in root.read_many(names[start : start + 256], missing_ok=True):
            if data is None:
                continue
            names_in = _NAME.findall(data)
            if len(names_in) != data.count(b"<object") or _HARD.search(data) or not data.isascii():
                try:
                    _scan_tree(parse_xml(data, parser), found)
                except DataError:
                    continue
            else:
                raw.update(names_in)
    found.names |= {t for r in raw if (t := unescape(r.decode("ascii")).strip())}
    return found


def _scan_tree(root: Any, found: _Found) -> None:
    for obj in root.iterfind("object"):
        name = (obj.findtext("name") or "").strip()
        if not name:
            continue
        found.names.add(name)
        found.parts |= {(name, p.strip()) for p in obj.xpath("part/name/text()") if p.strip()}
        found.actions |= {(name, a.tag) for a in obj.iterfind("actions/*")}
