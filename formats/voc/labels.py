"""labelmap.txt: `label:color_rgb:parts:actions` lines, and the label map of Pascal VOC itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rayds.categories import Categories, Category, LabelCategories, MaskCategories, Rgb, voc_colormap
from rayds.errors import DataError
from rayds.formats._colormap import fill_colors
from rayds.listing import Listing
from rayds.schema import AnnotationType

LABEL_MAP_FILES = ("labelmap.txt", "label_map.txt")
BACKGROUND = "background"
NATIVE = ("truncated", "occluded", "difficult", "pose")  # attributes that have their own XML element

VOC_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
    "ignored",
]
VOC_PARTS = ("head", "hand", "foot")
VOC_ACTIONS = [
    "other",
    "jumping",
    "phoning",
    "playinginstrument",
    "reading",
    "ridingbike",
    "ridinghorse",
    "running",
    "takingphoto",
    "usingcomputer",
    "walking",
]


@dataclass(frozen=True)
class Entry:
    """One label of a label map."""

    name: str
    color: Rgb | None = None
    parts: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


def voc_entries() -> list[Entry]:
    """The label map of Pascal VOC: background, 20 classes, ignored; the parts and actions of a person."""
    colors = [(int(r), int(g), int(b)) for r, g, b in voc_colormap(256)]
    made = [Entry(name, colors[i]) for i, name in enumerate(VOC_NAMES)]
    made[-1] = replace(made[-1], color=colors[255])
    person = VOC_NAMES.index("person")
    made[person] = replace(made[person], parts=VOC_PARTS, actions=tuple(VOC_ACTIONS))
    return made


_FIELD = re.compile(r'"(?:[^"\\]|\\.)*"|[^,:]*')


def parse_label_map(text: str, file: str | None = None) -> list[Entry]:
    """The entries of a label map file; raises DataError with the line of one that can't be understood.

    A name may stand in JSON quotes (rayds writes so those with a colon, comma, quote or #).
    """
    made: dict[str, Entry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = _parse_line(line.strip())
        except ValueError as e:
            raise DataError(
                f"not a label map line ({e}): {line.strip()!r}",
                file=file,
                place=f"line {number}",
                remedy="Lines look like label:r,g,b:parts:actions",
            ) from e
        if entry.name in made:
            raise DataError(f"the label {entry.name!r} occurs twice", file=file, place=f"line {number}")
        made[entry.name] = entry
    return list(made.values())


def _parse_line(line: str) -> Entry:
    if line.startswith('"'):
        name, end = json.JSONDecoder().raw_decode(line)
        rest = line[end:].lstrip()
        if rest and not rest.startswith((":", "#")):
            raise ValueError("text after the quoted name")
    else:
        line = re.sub(r"\s+#.*$", "", line)
        fields = line.split(":")
        keep = max(1, len(fields) - 3)
        name, rest = ":".join(fields[:keep]).strip(), "".join(f":{f}" for f in fields[keep:])
    if not name:
        raise ValueError("the label has no name")
    color, parts, actions = [*_split(rest), [], [], []][:3]
    return Entry(name, _color(color), tuple(parts), tuple(actions))


def _split(rest: str) -> list[list[str]]:
    """The values of every field of ":a,b:c:d", a quoted value whole; what follows " #" is a comment."""
    fields: list[list[str]] = []
    position = 0
    while position < len(rest):
        separator = rest[position]
        if separator == ":":
            fields.append([])
        elif separator != ",":
            if rest[position:].lstrip().startswith("#"):
                break
            raise ValueError(f"unexpected {rest[position:]!r}")
        found = _FIELD.match(rest, position + 1)
        assert found is not None
        text, position = found.group().strip(), found.end()
        text, _, comment = (text, "", "") if text.startswith('"') else text.partition(" #")
        if text:
            fields[-1].append(json.loads(text) if text.startswith('"') else text.strip())
        if comment:
            break
    return fields


def _color(values: Sequence[str]) -> Rgb | None:
    if not values:
        return None
    if len(values) != 3:
        raise ValueError(f"a colour has 3 numbers, got {len(values)}")
    try:
        r, g, b = (int(v) for v in values)
    except ValueError:
        raise ValueError(f"{','.join(values)!r} is not a colour") from None
    if not all(0 <= c <= 255 for c in (r, g, b)):
        raise ValueError(f"{','.join(values)!r} is not a colour of numbers from 0 to 255")
    return r, g, b


def format_label_map(entries: Iterable[Entry]) -> str:
    """The text of a label map file."""
    lines = ["# label:color_rgb:parts:actions"]
    for e in entries:
        color = ",".join(map(str, e.color)) if e.color else ""
        lines.append(
            ":".join(
                [_quoted(e.name), color, ",".join(map(_quoted, e.parts)), ",".join(map(_quoted, e.actions))]
            )
        )
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    plain = name == name.strip() and len(name.splitlines()) == 1 and not re.search(r'[:,#"]', name)
    return name if plain else json.dumps(name)


def find_label_map(files: Listing) -> list[Entry] | None:
    """The entries of the dataset's label map file; None when there is none."""
    for name in LABEL_MAP_FILES:
        if files.exists(name):
            return parse_label_map(files.root.read_text(name), files.root.path(name))
    return None


def to_categories(entries: Sequence[Entry], colored: bool = True) -> Categories:
    """Categories: the labels, then the parts that are no labels themselves; actions are attributes of a label.

    A part has its label as parent. colored: give mask colours too (missing ones are made up).
    """
    names = {e.name for e in entries}
    parent = {part: e.name for e in reversed(entries) for part in e.parts if part != e.name}
    items = [Category(e.name, parent.get(e.name, ""), set(e.actions)) for e in entries]
    items += [
        Category(p, parent[p]) for p in dict.fromkeys(p for e in entries for p in e.parts) if p not in names
    ]
    made = Categories({AnnotationType.label: LabelCategories(items)})
    if colored:
        made[AnnotationType.mask] = MaskCategories(dict(enumerate(colors_of(entries))))
    return made


def colors_of(entries: Sequence[Entry]) -> list[Rgb]:
    """The mask colour of every entry, missing ones made up; only the background is black then."""
    background = next((i for i, e in enumerate(entries) if e.name == BACKGROUND), None)
    return fill_colors([e.color for e in entries], background)


def from_categories(categories: Categories) -> list[Entry]:
    """The label map of any categories: its labels, their colours (made up where there are none), parts, actions.

    A label whose parent is a label is a part of it. Parts that stand after all labels get no line of their
    own, as in Pascal VOC, so that reading the map gives the same labels in the same order.
    """
    labels, masks = categories.labels, categories.masks
    known = masks.colormap if masks is not None else {}
    parts: dict[str, list[str]] = {}
    for c in labels:
        if c.parent in labels and c.parent != c.name:
            parts.setdefault(c.parent, []).append(c.name)
    made = [
        Entry(c.name, known.get(i), tuple(parts.get(c.name, ())), tuple(sorted(c.attributes - set(NATIVE))))
        for i, c in enumerate(labels)
    ]
    actions = {c.name: c.attributes for c in labels}
    short = [
        e for e in made if not (labels[labels.index(e.name)].parent in parts and not e.color and not e.parts)
    ]
    if to_categories(short).labels.names() == labels.names() and not any(
        actions[e.name] for e in made if e not in short
    ):
        made = short
    made = [replace(e, actions=_voc_order(e.actions)) for e in made]
    colors = colors_of(made)
    return [replace(e, color=color) for e, color in zip(made, colors, strict=True)]


def _voc_order(actions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(VOC_ACTIONS) if set(actions) == set(VOC_ACTIONS) else actions
