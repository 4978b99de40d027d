"""Operations on items: map_subsets, rename, reindex, id_from_image_name, remove_items, sort, project_infos."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayds.categories import Categories
from rayds.engine.base import Block, Blocks, Engine, Stage
from rayds.errors import UnknownNameError, UsageError
from rayds.infos import DATASET
from rayds.numbering import check_unique, ordered, with_starts
from rayds.op import Op, Surveying
from rayds.ops._pairs import parse_pairs
from rayds.options import Options as Base
from rayds.options import option
from rayds.schema import DEFAULT_SUBSET, flat, media_field, single_chunk, with_column
from rayds.sharding import hashed


class Renaming(Surveying):
    """An operation that gives items other ids or subsets; two items must not get the same."""

    columns = frozenset({"id", "subset", "media", "attributes"})

    def look(self, engine: Engine, blocks: Blocks) -> None:
        check_unique(engine, blocks, self.apply, self.name)

    def use(self, found: None) -> Stage:
        return self._checked


class MapSubsets(Renaming):
    """Renames subsets; several may become one."""

    name = "map_subsets"
    title = "rename or join subsets"

    @dataclass(frozen=True)
    class Options(Base):
        subset: tuple[str, ...] = option(
            short="s", split=False, aliases=("mapping",),
            help=f"SOURCE:DESTINATION, repeatable; with nothing after the colon it becomes {DEFAULT_SUBSET!r}",
        )  # fmt: skip

    def __init__(self, **options: Any) -> None:
        for name in ("mapping", "subset"):
            if isinstance(given := options.get(name), Mapping):
                options[name] = tuple(f"{a}:{b}" for a, b in given.items())
        super().__init__(**options)

    def prepare(self, categories: Categories) -> Categories:
        pairs = parse_pairs(self.options.subset, "--subset")
        self.mapping = {(a or DEFAULT_SUBSET): (b or DEFAULT_SUBSET) for a, b in pairs.items()}
        return categories

    def apply(self, block: Block) -> Block:
        encoded = single_chunk(block, "subset").dictionary_encode()
        names = [self.mapping.get(name, name) for name in encoded.dictionary.to_pylist()]
        return with_column(block, "subset", pa.array(names, pa.string()).take(encoded.indices))


_FIELD = re.compile(r"\{item\.(id|subset|name|attributes\[([^\]]+)\])\}")


class Rename(Renaming):
    """Renames items by a regular expression."""

    name = "rename"
    title = "rename items by a regular expression"

    @dataclass(frozen=True)
    class Options(Base):
        regex: str = option(
            short="e",
            help="|PATTERN|REPLACEMENT|, where | may be any character; \\1 is the first group, {item.id}, {item.subset}, "
            "{item.name} (the last part of the id) and {item.attributes[NAME]} are what the item has",
        )

    def prepare(self, categories: Categories) -> Categories:
        text = self.options.regex
        parts = text[1:].split(text[0]) if text else []
        if len(parts) != 3 or parts[2] or not parts[0]:
            raise UsageError(f"--regex: {text!r} is not |PATTERN|REPLACEMENT|")
        try:
            self.pattern, self.replacement = re.compile(parts[0]), parts[1].replace("\\\\", "\\")
            self.pattern.sub(self.replacement, "")
        except (re.error, IndexError) as e:
            raise UsageError(f"--regex: {text!r}: {e}") from e
        groups = [int(n) for n in re.findall(r"\\(\d+)", self.replacement)]
        if max(groups, default=0) > self.pattern.groups:
            raise UsageError(f"--regex: {text!r}: there is no group {max(groups)}")
        if unknown := [
            f for f in re.findall(r"\{item\.[^}]*\}", self.replacement) if not _FIELD.fullmatch(f)
        ]:
            raise UnknownNameError("field", unknown[0], ["{item.id}", "{item.subset}", "{item.name}"])
        return categories

    def apply(self, block: Block) -> Block:
        ids = single_chunk(block, "id").to_pylist()
        if not _FIELD.search(self.replacement):
            made = [self.pattern.sub(self.replacement, i) for i in ids]
        else:
            subsets = single_chunk(block, "subset").to_pylist()
            attributes = single_chunk(block, "attributes").to_pylist()
            made = [
                self._named(i, s, json.loads(a) if a else {})
                for i, s, a in zip(ids, subsets, attributes, strict=True)
            ]
        return with_column(block, "id", pa.array(made, pa.string()))

    def _named(self, id: str, subset: str, attributes: Mapping[str, Any]) -> str:
        def value(match: re.Match[str]) -> str:
            if match.group(2):
                return str(attributes.get(match.group(2), ""))
            return {"id": id, "subset": subset, "name": posixpath.basename(id)}[match.group(1)]

        def expand(match: re.Match[str]) -> str:  # fields after groups, so that ids with braces stay text
            parts = _FIELD.split(self.replacement)
            fields = list(_FIELD.finditer(self.replacement))
            texts = [match.expand(part) for part in parts[:: _FIELD.groups + 1]]
            return "".join(t + value(f) for t, f in zip(texts, fields, strict=False)) + texts[-1]

        return self.pattern.sub(expand, id)


class Reindex(Op):
    """Numbers the items: the ids become START, START + 1, ... in the order of the dataset."""

    name = "reindex"
    title = "number the items"

    @dataclass(frozen=True)
    class Options(Base):
        start: int = option(1, short="s", help="the first number")

    def run(self, engine: Engine, blocks: Blocks) -> Blocks:
        return with_starts(engine, blocks, len, partial(_numbered, self.options.start))

    def apply(self, block: Block) -> Block:
        raise NotImplementedError("the number of an item follows from all before it")


def _numbered(start: int, block: Block, before: int) -> Block:
    numbers = pa.array(np.arange(before + start, before + start + block.num_rows))
    return with_column(block, "id", numbers.cast(pa.string()))


class IdFromImageName(Renaming):
    """Makes the name of the image, without folders and extension, the id."""

    name = "id_from_image_name"
    title = "make the names of the images the ids"

    @dataclass(frozen=True)
    class Options(Base):
        ensure_unique: bool = option(
            False, short="u", help="append `__` and a suffix that follows from the item's key"
        )
        suffix_length: int = option(3, short="l", help="characters of the suffix")

    def prepare(self, categories: Categories) -> Categories:
        if not 1 <= self.options.suffix_length <= 12:
            raise UsageError("--suffix-length: choose 1 to 12")
        return categories

    def apply(self, block: Block) -> Block:
        paths = media_field(block, "path").to_pylist()
        ids = single_chunk(block, "id").to_pylist()
        made = [
            posixpath.splitext(posixpath.basename(p.replace("\\", "/")))[0] if p else i
            for p, i in zip(paths, ids, strict=True)
        ]
        if self.options.ensure_unique:
            length = self.options.suffix_length
            numbers = hashed(block, "subset || '/' || id", 36**length).to_pylist()
            made = [f"{name}__{_base36(n, length)}" for name, n in zip(made, numbers, strict=True)]
        return with_column(block, "id", pa.array(made, pa.string()))


def _base36(n: int, length: int) -> str:
    text = ""
    for _ in range(length):
        n, digit = divmod(n, 36)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + text
    return text


class RemoveItems(Op):
    """Removes items by their ids."""

    name = "remove_items"
    title = "remove items by id"
    keeps_items = False

    @dataclass(frozen=True)
    class Options(Base):
        id: tuple[str, ...] = option(
            split=False, aliases=("ids",), help="ID:SUBSET, or ID for all subsets, repeatable"
        )

    def __init__(self, **options: Any) -> None:
        for name in ("id", "ids"):
            if isinstance(given := options.get(name), (list, tuple)):
                options[name] = tuple(":".join(i) if isinstance(i, tuple) else i for i in given)
        super().__init__(**options)

    def apply(self, block: Block) -> Block:
        ids, subsets = single_chunk(block, "id"), single_chunk(block, "subset")
        keys = pc.binary_join_element_wise(ids, subsets, ":")
        wanted = pa.array(self.options.id, pa.string())
        return block.filter(pc.invert(pc.or_(pc.is_in(keys, wanted), pc.is_in(ids, wanted))))


SORT_KEYS = ("id", "subset", "name", "path", "width", "height", "area", "n_annotations", "attribute:NAME")


class Sort(Op):
    """Orders the items by a value; those of the same value keep their order, those without come last."""

    name = "sort"
    title = "order the items by id, subset, size, number of annotations or an attribute"

    @dataclass(frozen=True)
    class Options(Base):
        key: str = option("id", short="k", help=f"what to order by: {', '.join(SORT_KEYS)}")
        descending: bool = option(False, help="the largest first")

    def prepare(self, categories: Categories) -> Categories:
        if self.options.key not in SORT_KEYS[:-1] and not self.options.key.startswith("attribute:"):
            raise UnknownNameError("sort key", self.options.key, SORT_KEYS)
        return categories

    def run(self, engine: Engine, blocks: Blocks) -> Blocks:
        return ordered(engine, blocks, partial(sort_key, self.options.key), self.options.descending)

    def apply(self, block: Block) -> Block:
        raise NotImplementedError("the place of an item depends on all others")


def sort_key(name: str, block: Block) -> pa.Array:
    """The value of each item by which it is ordered."""
    if name in ("id", "subset"):
        return single_chunk(block, name)
    if name == "name":
        return pc.replace_substring_regex(single_chunk(block, "id"), ".*/", "")
    if name == "path":
        return media_field(block, "path")
    if name in ("width", "height"):
        return media_field(block, name).cast(pa.int64())
    if name == "area":
        return pc.multiply(media_field(block, "width").cast(pa.int64()), media_field(block, "height"))
    if name == "n_annotations":
        return pa.array(np.diff(flat(block).offsets))
    attribute = name.removeprefix("attribute:")
    found = [
        json.loads(a).get(attribute) if a else None for a in single_chunk(block, "attributes").to_pylist()
    ]
    return pa.array([None if v is None else _sortable(v) for v in found], pa.string())


def _sortable(value: Any) -> str:
    """A text in whose order numbers stand by their value, before other texts."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        bits = int(np.float64(value).view(np.int64))
        return f"0{(bits if bits >= 0 else ~bits - (1 << 63)) + (1 << 63):020d}"
    return f"1{value}"


class ProjectInfos(Op):
    """Sets what the dataset says of itself."""

    name = "project_infos"
    title = "set facts about the whole dataset"

    @dataclass(frozen=True)
    class Options(Base):
        infos: tuple[str, ...] = option(
            short="i", split=False, aliases=("dst-infos",), help="NAME:VALUE, repeatable"
        )
        overwrite: bool = option(False, short="o", help="forget what was there")

    def __init__(self, **options: Any) -> None:
        for name in ("infos", "dst_infos"):
            if isinstance(given := options.get(name), Mapping):
                options[name] = tuple(f"{a}:{b}" for a, b in given.items())
        super().__init__(**options)

    def prepare(self, categories: Categories) -> Categories:
        if bad := [text for text in self.options.infos if ":" not in text]:
            raise UsageError(f"--infos: {bad[0]!r} is not NAME:VALUE")
        return categories

    def infos(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        made = {} if self.options.overwrite else dict(infos)
        facts = dict(made.get(DATASET) or {})
        for text in self.options.infos:
            name, _, value = text.partition(":")
            facts[name.strip()] = value
        return {**made, DATASET: facts}

    def apply(self, block: Block) -> Block:
        return block
