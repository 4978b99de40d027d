"""What stands in an annotation file beside the objects."""

from __future__ import annotations

import posixpath
from typing import Any

from rayds.errors import DataError
from rayds.formats.voc.layout import MAIN, SEGMENTATION
from rayds.formats.voc.xml import place_of, text_of
from rayds.item import dump_json

DEFAULT_FOLDER = "JPEGImages"
_ORDER = ("root", "folder", "segmented", "depth")
DEFAULT_SOURCE = "<source><database>Unknown</database></source>"


class ItemHead:
    """What stands in an annotation file beside the objects."""

    def __init__(self) -> None:
        self.size: tuple[int | None, int | None] = (None, None)
        self.filename = ""
        self.rest: dict[str, Any] = {}
        self.xml: list[str] = []

    def take(self, child: Any) -> None:
        """One child element of the root that is no object."""
        tag = child.tag
        if tag == "size":
            self._size(child)
        elif tag == "filename" and not len(child):
            self.filename = (child.text or "").strip()
        elif tag == "folder" and not len(child):
            if child.text != DEFAULT_FOLDER:
                self.rest["folder"] = child.text or ""
        elif tag == "segmented" and not len(child):
            self.rest["segmented"] = (child.text or "").strip()
        elif (text := text_of(child)) and "".join(text.split()) != DEFAULT_SOURCE:
            self.xml.append(text)

    def _size(self, element: Any) -> None:
        found = {e.tag: (e.text or "").strip() for e in element}
        try:
            size = [int(float(found.get(k) or 0)) for k in ("width", "height")]
        except (ValueError, OverflowError):
            raise DataError(
                f"the size is no number: width={found.get('width')!r}, height={found.get('height')!r}",
                place=place_of(element),
            ) from None
        if min(size) > 0:
            self.size = (size[0], size[1])
        if found.get("depth", "3") != "3":
            self.rest["depth"] = found["depth"]

    def extra(self, id: str, path: str | None, flags: int, masks: bool) -> str | None:
        """`extra` of the item as JSON; None when there is nothing unusual."""
        rest = {k: self.rest[k] for k in _ORDER if k in self.rest}
        if self.filename:
            base = posixpath.basename(path) if path else ""
            stem = posixpath.splitext(self.filename)[0]
            if self.filename != base and stem != id:
                rest["filename"] = self.filename
        if rest.get("segmented") == ("1" if masks else "0"):
            del rest["segmented"]
        if self.xml:
            rest["xml"] = "\n\t".join(self.xml)
        if flags != (MAIN | SEGMENTATION if masks else MAIN):
            rest["lists"] = flags
        return dump_json({"voc": rest}) if rest else None
