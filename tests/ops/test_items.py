"""Operations on items and their ids: names, numbers, order; two items never get one key."""

from __future__ import annotations

import random
from typing import Any

import pytest

import rayds as dm
from rayds import numbering
from rayds.errors import DataError, UnknownNameError, UsageError


def made_of(ids: list[tuple[str, str]], engine: Any, **more: Any) -> dm.Dataset:
    return dm.Dataset.from_iterable([dm.DatasetItem(i, subset=s, **more) for i, s in ids], engine=engine)


def keys(dataset: dm.Dataset) -> list[tuple[str, str]]:
    return [(item.id, item.subset) for item in dataset]


@pytest.fixture
def small(engine: Any) -> dm.Dataset:
    return made_of([("x/a_1", "train"), ("x/b_2", "train"), ("y/a_3", "val"), ("c", "test")], engine)


def test_subsets_are_renamed_and_joined(small: dm.Dataset) -> None:
    made = small.transform("map_subsets", subset=("train:t", "val:t", "test:"))
    assert [s for _, s in keys(made)] == ["t", "t", "t", "default"]
    assert list(small.transform("map_subsets", mapping={"train": "a"}).subsets()) == ["a", "val", "test"]


def test_items_that_would_get_one_key_are_an_error(engine: Any) -> None:
    dataset = made_of([("a", "train"), ("b", "train"), ("a", "val")], engine)
    with pytest.raises(
        DataError, match=r"1 items would.*'a' of 'train' and 'a' of 'val' would both be 'a' in 't'"
    ):
        list(dataset.transform("map_subsets", subset=("train:t", "val:t")))
    with pytest.raises(DataError, match="would both be 'same' in 'train'"):
        list(dataset.transform("rename", regex="|^.*$|same|"))


@pytest.mark.parametrize(
    ("regex", "first"),
    [
        (r"|x/|z/|", "z/a_1"),
        (r"#(\w)_(\d)#\2_\1#", "x/1_a"),
        (r"|^.*$|{item.subset}-{item.name}|", "train-a_1"),
        (r"|_(\d)|_{item.id}_\1|", "x/a_x/a_1_1"),
        (r"|a|{}|", "x/{}_1"),
    ],
)
def test_items_are_renamed_by_a_regular_expression(small: dm.Dataset, regex: str, first: str) -> None:
    assert keys(small.transform("rename", regex=regex))[0] == (first, "train")


def test_fields_are_text_whatever_they_hold(engine: Any) -> None:
    dataset = made_of([("a{item.subset}{}", "s")], engine, attributes={"k": 5})
    assert keys(dataset.transform("rename", regex="|^(.).*|{item.id}{item.attributes[k]}|"))[0][0] == (
        "a{item.subset}{}5"
    )


@pytest.mark.parametrize("regex", ["", "|", "abc", "|a|b", "|(|b|", r"|a|\1|", "||x|"])
def test_bad_regular_expressions(small: dm.Dataset, regex: str) -> None:
    with pytest.raises(UsageError, match="--regex"):
        small.transform("rename", regex=regex)
    with pytest.raises(UnknownNameError, match=r"item\.id"):
        small.transform("rename", regex="|a|{item.ids}|")


def test_items_are_numbered_over_all_blocks(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "CHUNK", 7)
    ids = [(f"{i:03d}", "ab"[i % 3 == 0]) for i in range(50)]
    dataset = dm.Dataset.from_arrow(
        [made_of(ids[:20], "local").to_arrow(), made_of(ids[20:], "local").to_arrow()], engine=engine
    )
    made = keys(dataset.transform("reindex", start=5))
    assert made == [(str(i + 5), s) for i, (_, s) in enumerate(ids)]


def test_numbers_need_unique_keys(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbering, "CHUNK", 1)
    one = made_of([("a", "s")], "local").to_arrow()
    dataset = dm.Dataset.from_arrow([one, one], engine=engine)
    with pytest.raises(DataError, match="occurs twice"):
        list(dataset.transform("reindex"))


def test_ids_from_names_of_images(engine: Any) -> None:
    items = [
        dm.DatasetItem("1", media=dm.Image(path="/d/one/a.b.jpg")),
        dm.DatasetItem("2", media=dm.Image(path="c.png")),
        dm.DatasetItem("none"),
    ]
    dataset = dm.Dataset.from_iterable(items, engine=engine)
    assert [i for i, _ in keys(dataset.transform("id_from_image_name"))] == ["a.b", "c", "none"]
    made = [i for i, _ in keys(dataset.transform("id_from_image_name", ensure_unique=True, suffix_length=4))]
    assert [i.split("__")[0] for i in made] == ["a.b", "c", "none"]
    assert len({i.split("__")[1] for i in made}) == 3
    assert {len(i.split("__")[1]) for i in made} == {4}
    twice = dm.Dataset.from_iterable(
        [dm.DatasetItem(str(i), media=dm.Image(path=f"{i}/a.jpg")) for i in range(2)], engine=engine
    )
    with pytest.raises(DataError, match="would both be 'a'"):
        list(twice.transform("id_from_image_name"))
    assert len(keys(twice.transform("id_from_image_name", ensure_unique=True))) == 2


def test_items_are_removed(small: dm.Dataset) -> None:
    made = small.transform("remove_items", id=("x/a_1:train", "c", "y/a_3:train"))
    assert keys(made) == [("x/b_2", "train"), ("y/a_3", "val")]
    assert keys(small.transform("remove_items", ids=[("c", "test")])) == keys(small)[:3]


@pytest.mark.parametrize("descending", [False, True])
def test_order_by_a_value_keeps_the_order_of_equals(
    engine: Any, monkeypatch: pytest.MonkeyPatch, descending: bool
) -> None:
    monkeypatch.setattr(numbering, "PARTS", 4)
    chance = random.Random(1)
    items = [
        dm.DatasetItem(
            f"{i}", media=dm.Image(path=f"{i}.jpg", size=(chance.randrange(1, 9), 5)) if i % 5 else None
        )
        for i in range(60)
    ]
    made = dm.Dataset.from_iterable(items, engine=engine).transform(
        "sort", key="height", descending=descending
    )
    heights = {item.id: item.media.size[0] if item.media else None for item in items}
    known = [item.id for item in items if heights[item.id] is not None]
    expected = sorted(known, key=lambda i: -heights[i] if descending else heights[i])
    assert [item.id for item in made] == expected + [i.id for i in items if heights[i.id] is None]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("id", "0123"),
        ("subset", "1302"),
        ("n_annotations", "3210"),
        ("attribute:v", "2103"),
        ("name", "0123"),
    ],
)
def test_keys_of_order(engine: Any, key: str, expected: str) -> None:
    values = [10, -3, -20.5, "x"]
    items = [
        dm.DatasetItem(str(i), [dm.Label(0)] * (3 - i), subset="ba"[i % 2], attributes={"v": values[i]})
        for i in range(4)
    ]
    dataset = dm.Dataset.from_iterable(items, ["l"], engine=engine)
    assert "".join(item.id for item in dataset.transform("sort", key=key)) == expected
    with pytest.raises(UnknownNameError, match="height"):
        dataset.transform("sort", key="heigth")


def test_facts_about_the_dataset(tmp_path: Any) -> None:
    dataset = made_of([("a", "s")], "local").transform("project_infos", infos={"author": "me"})
    dataset.export(str(tmp_path / "d"), "datumaro")
    assert '"infos":{"author":"me"}' in (tmp_path / "d/annotations/s.json").read_text()
    with pytest.raises(UsageError, match="NAME:VALUE"):
        dataset.transform("project_infos", infos=("x",))
