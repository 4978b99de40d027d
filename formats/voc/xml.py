"""Parsing of VOC annotation files: no DTD, no entities, no network."""

from __future__ import annotations

from typing import Any

from rayds.errors import DataError


def new_parser() -> Any:
    """A parser for untrusted files; one a thread, as a shared one would make threads wait."""
    from lxml import etree

    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def parse_xml(data: bytes, parser: Any) -> Any:
    """The root element; raises DataError with the line where the file is broken, or is no VOC annotation."""
    from lxml import etree

    if not data.strip():
        raise DataError("the annotation file is empty")
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as e:
        raise DataError(
            f"not well-formed XML ({e.msg})",
            place=f"line {e.lineno}",
            remedy="Repair the file or leave the item out",
        ) from e
    if b"<!DOCTYPE" in data or root.getroottree().docinfo.doctype:
        raise DataError(
            "a document type definition is not allowed", remedy="Remove the <!DOCTYPE ...> declaration"
        )
    if root.tag != "annotation":
        raise DataError(
            f"the root element is <{root.tag}>, not <annotation>", place=f"line {root.sourceline}"
        )
    return root


def parse_element(data: bytes, parser: Any) -> Any:
    """A piece of XML as an element; raises DataError when it is not well-formed."""
    from lxml import etree

    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as e:
        raise DataError(f"not well-formed XML ({e.msg})") from e


def place_of(element: Any) -> str | None:
    """Where an element stands, for messages."""
    return f"line {element.sourceline}" if element is not None else None


def text_of(element: Any) -> str:
    """An element as text, with all that is in it."""
    from lxml import etree

    text: str = etree.tostring(element, encoding="unicode", with_tail=False)
    return text
