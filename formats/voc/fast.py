"""Reading of annotation files of the usual shape without a tree: four to five times as fast.

One expression finds every object of a file. A file is read so only when the expressions account for each of its
tags (every "<" is counted), so that the result is what the parser would give; any other file goes to the parser.
What an object has beside name and bndbox is parsed once for each text that occurs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rayds.formats.voc.columns import BOX, Columns
from rayds.formats.voc.head import DEFAULT_FOLDER, DEFAULT_SOURCE, ItemHead

Kind = tuple[str, "str | None"]
MAX_KINDS = 20_000

_TEXT = rb"([^<&]*)"
_NUMBER = rb"\s*([^<&\s]+)\s*"
_HEAD = re.compile(
    rb"""\s*(?:<\?xml\ version=["']1.0["'](?:\ encoding=["'](?:utf|UTF)-8["'])?\s*\?>\s*)?
    <annotation(?:\ verified="([^"<&]*)")?>\s*
    (?:<folder>TEXT</folder>\s*)?(?:<filename>TEXT</filename>\s*)?
    (<path>[^<&]*</path>)?\s*
    (?:<source>\s*<database>TEXT</database>\s*</source>\s*)?
    (<path>[^<&]*</path>)?\s*
    (?:<size>\s*<width>NUMBER</width>\s*<height>NUMBER</height>\s*(?:<depth>NUMBER</depth>\s*)?</size>\s*)?
    (?:<segmented>TEXT</segmented>\s*)?
    (?=<object>|</annotation>)""".replace(b"TEXT", _TEXT).replace(b"NUMBER", _NUMBER),
    re.VERBOSE,
)
_OBJECT = re.compile(
    rb"<object>\s*<name>([^<&]*)</name>(.*?)<bndbox>\s*<xmin>N</xmin>\s*<ymin>N</ymin>\s*<xmax>N</xmax>\s*"
    rb"<ymax>N</ymax>\s*</bndbox>(.*?)</object>".replace(b"N", _NUMBER),
    re.DOTALL,
)
_OWN_TAGS = 14  # "<" in the tags of an object, its name, bndbox and numbers


class Fast:
    """index: label of each name; make: (attributes, extra) of an object from the XML beside name and bndbox, or None."""

    def __init__(self, index: Mapping[str, int], make: Callable[[bytes], Kind | None]) -> None:
        self.index = {name.encode(): i for name, i in index.items()}
        self.make = make
        self.kinds: dict[tuple[bytes, bytes], tuple[str, str | None, int] | None] = {}

    def read(self, data: bytes, head: ItemHead, columns: Columns) -> bool:
        """Append the objects of a file; False, and nothing done, when the file has an unusual shape."""
        start = _HEAD.match(data)
        end = data.rfind(b"</annotation>")
        if start is None or data[end + 13 :].strip() or b"\0" in data:
            return False
        found = _OBJECT.findall(data, start.end(), end)
        tags = data.count(b"<", start.end(), end)
        labels: list[int] = []
        texts: list[str | None] = []
        notes: list[str | None] = []
        corners: list[bytes] = []
        for name, before, xmin, ymin, xmax, ymax, after in found:
            label = self.index.get(name)
            kind = self.kinds.get((before, after)) or self._kind(before, after)
            if label is None or kind is None:
                return False
            text, note, inner = kind
            tags -= inner
            labels.append(label)
            texts.append(text)
            notes.append(note)
            corners += (xmin, ymin, xmax, ymax)
        if tags or not self._head(start, head):
            return False
        n = len(labels)
        columns.types += [BOX] * n
        columns.groups += range(1, n + 1)
        columns.labels += labels
        columns.attributes += texts
        columns.notes += notes
        columns.corners += corners
        return True

    def _kind(self, before: bytes, after: bytes) -> tuple[str, str | None, int] | None:
        key = (before, after)
        if key in self.kinds:
            return None
        inner = before + after
        made = self.make(inner)
        kind = None if made is None else (*made, _OWN_TAGS + inner.count(b"<"))
        if len(self.kinds) < MAX_KINDS:
            self.kinds[key] = kind
        return kind

    def _head(self, match: re.Match[bytes], head: ItemHead) -> bool:
        """Take what the file says beside its objects; False when it needs the parser."""
        try:
            groups = [g.decode() if g is not None else None for g in match.groups()]
        except UnicodeDecodeError:
            return False
        verified, folder, filename, path, source, later_path, width, height, depth, segmented = groups
        try:
            size = int(width or 0), int(height or 0)
        except ValueError:
            return False
        if path and later_path:
            return False
        if verified is not None:
            head.rest["root"] = {"verified": verified}
        if folder is not None and folder != DEFAULT_FOLDER:
            head.rest["folder"] = folder
        head.filename = (filename or "").strip()
        if segmented is not None:
            head.rest["segmented"] = segmented.strip()
        if min(size) > 0:
            head.size = size
        if depth is not None and depth != "3":
            head.rest["depth"] = depth
        if path:
            head.xml.append(path)
        if source is not None:
            text = f"<source>\n\t\t<database>{source}</database>\n\t</source>"
            if "".join(text.split()) != DEFAULT_SOURCE:
                head.xml.append(text)
        if later_path:
            head.xml.append(later_path)
        return True
