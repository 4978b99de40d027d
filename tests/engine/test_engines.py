"""What every engine must do: the same rows in the same order, whatever runs the stages."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_blocks
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from engine_blocks import Recorder, expected_ids, ids_of, items, read

from rayds.engine.base import Block, Engine
from rayds.errors import DataError, UnknownNameError
from rayds.format import with_errors
from rayds.schema import ERROR_COLUMN, split_errors


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import these modules: send their functions whole."""
    import ray

    for module in (sys.modules[__name__], engine_blocks):
        ray.cloudpickle.register_pickle_by_value(module)


# source and map


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_source_keeps_the_order_and_every_nested_value(engine: Engine, shards: int) -> None:
    table = pa.concat_tables(engine.iterate(engine.source(range(shards), read)))
    want = pa.concat_tables([block for s in range(shards) for block in read(s)])
    assert table.schema.equals(want.schema)
    assert table.equals(want)


def test_no_shards(engine: Engine) -> None:
    blocks = engine.map(engine.source([], read), lambda block: block)
    blocks = engine.by_key(engine.rechunk(blocks, 3), ["id"], lambda block: block)
    blocks = engine.map_stateful(blocks, lambda: lambda block: block)
    assert list(engine.iterate(blocks)) == []
    assert engine.fold(blocks, lambda block: 1, lambda a, b: a + b) is None
    assert engine.write(blocks, Recorder(needs_offsets=True)) == []
    assert list(engine.iterate(engine.adopt(engine.materialize(blocks)))) == []


def test_many_shards(engine: Engine) -> None:
    blocks = engine.source(range(60), lambda s: iter([items([str(s)])]))
    assert ids_of(engine, blocks) == [str(s) for s in range(60)]


def test_a_slow_first_shard_stays_first(engine: Engine) -> None:
    def slow(shard: int) -> Iterator[Block]:
        if shard == 0:
            time.sleep(1)
        yield from read(shard)

    assert ids_of(engine, engine.source(range(6), slow)) == expected_ids(6)


def test_a_slow_block_stays_in_its_place(engine: Engine) -> None:
    def slow(block: Block) -> Block:
        time.sleep(0.5 if block.column("id")[0].as_py().startswith("000") else 0)
        return block

    assert ids_of(engine, engine.map(engine.source(range(4), read), slow)) == expected_ids(4)


def test_blocks_are_a_recipe_that_can_be_used_again_and_forked(engine: Engine) -> None:
    blocks = engine.source(range(3), read)
    few = engine.map(blocks, lambda block: block.slice(0, 0))
    assert ids_of(engine, blocks) == ids_of(engine, blocks) == expected_ids(3)
    assert ids_of(engine, few) == []
    assert engine.fold(blocks, lambda block: block.num_rows, lambda a, b: a + b) == 45


def test_tables_in_memory_as_shards(engine: Engine) -> None:
    tables = [items([f"{i}"]) for i in range(4)]
    assert ids_of(engine, engine.source(tables, lambda table: iter([table]))) == ["0", "1", "2", "3"]


def test_stages_may_drop_all_rows_and_no_stage_sees_an_empty_block(engine: Engine) -> None:
    def keep_train(block: Block) -> Block:
        return block.filter(pc.equal(block.column("subset"), "train"))

    def first_id(block: Block) -> Block:
        block.column("id")[0]
        return block

    blocks = engine.map(engine.map(engine.source(range(4), read), keep_train), first_id)
    want = [i for i in expected_ids(4) if int(i[:3]) % 2]
    assert ids_of(engine, blocks) == want
    assert engine.fold(blocks, lambda block: len(block.column("id")[0].as_py()), max) == 7
    (*_, (_, last, offsets)) = engine.write(blocks, Recorder(needs_offsets=True))
    results = engine.write(blocks, Recorder())
    assert [i for found, _, _ in results for i in found] == want
    assert [index for _, index, _ in results] == list(range(len(results))) == list(range(last + 1))
    assert set(offsets) <= {"items", "train"}


def test_shards_that_yield_nothing(engine: Engine) -> None:
    def some(shard: int) -> Iterator[Block]:
        if shard in (1, 4):
            yield from read(shard)
        if shard == 2:
            yield items([])

    blocks = engine.source(range(6), some)
    want = [i for i in expected_ids(6) if i[:3] in ("001", "004")]
    assert ids_of(engine, blocks) == want
    assert ids_of(engine, engine.rechunk(blocks, 4)) == want
    assert sorted(ids_of(engine, engine.by_key(blocks, ["id"], lambda block: block, 3))) == want
    assert [i for found, _, _ in engine.write(blocks, Recorder(4, True)) for i in found] == want


def test_nothing_but_empty_shards(engine: Engine) -> None:
    blocks = engine.source(range(3), lambda shard: iter([]))
    assert list(engine.iterate(engine.by_key(blocks, ["id"], lambda block: block))) == []
    assert engine.fold(blocks, lambda block: 1, lambda a, b: a + b) is None
    assert engine.write(blocks, Recorder(2, True)) == engine.write(blocks, Recorder()) == []


def test_only_the_first_block_is_taken(engine: Engine, tmp_path: Path) -> None:
    def counted(shard: int) -> Iterator[Block]:
        (tmp_path / str(shard)).touch()
        yield items([str(shard)])

    stream = engine.iterate(engine.source(range(400), counted))
    assert next(stream).column("id")[0].as_py() == "0"
    stream.close()
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) < 200


# error rows


def test_error_rows_pass_stages_untouched(engine: Engine) -> None:
    def bad(shard: int) -> Iterator[Block]:
        yield with_errors(
            items([f"{shard}a", f"{shard}b"]), [{"subset": "train", "item": f"{shard}x", "reason": "no"}]
        )

    def rename(block: Block) -> Block:
        assert ERROR_COLUMN not in block.schema.names
        return block.set_column(0, "id", pc.binary_join_element_wise(block.column("id"), "new", "-"))

    blocks = engine.map_stateful(engine.map(engine.source(range(3), bad), rename), lambda: rename)
    table = pa.concat_tables(engine.iterate(blocks))
    good, wrong = split_errors(table)
    assert good.column("id").to_pylist() == [f"{s}{x}-new-new" for s in range(3) for x in "ab"]
    assert wrong is not None
    assert wrong.column("id").to_pylist() == ["0x", "1x", "2x"]
    assert json.loads(wrong.column(ERROR_COLUMN)[0].as_py())["reason"] == "no"
    assert engine.fold(blocks, lambda block: block.num_rows, lambda a, b: a + b) == 9
    keyed = engine.by_key(blocks, ["subset"], lambda block: block.slice(0, 1), 2)
    good, wrong = split_errors(pa.concat_tables(engine.iterate(keyed)))
    assert good.column("id").to_pylist() == ["0a-new-new"]
    assert wrong is not None
    assert wrong.num_rows == 3


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            DataError("no such key", file="a.json", item="7", place="line 3"),
            "a.json, line 3, item '7': no such key",
        ),
        (UnknownNameError("format", "cocoo", ["coco"]), "unknown format 'cocoo'. Did you mean 'coco'?"),
        (KeyError("bbox"), "'bbox'"),
        (
            FileNotFoundError(2, "No such file or directory", "/x/y.jpg"),
            "[Errno 2] No such file or directory: '/x/y.jpg'",
        ),
    ],
)
def test_errors_come_out_as_they_were_raised(engine: Engine, error: Exception, text: str) -> None:
    def fail(_: Any) -> Any:
        raise error

    def fail_later(shard: int) -> Iterator[Block]:
        yield items(["a"])
        raise error

    blocks = engine.source(range(2), read)
    writer = Recorder()
    writer.write = fail_two_arguments(fail)  # type: ignore[method-assign]
    for run in (
        lambda: list(engine.iterate(engine.source(range(2), fail_later))),
        lambda: list(engine.iterate(engine.map(blocks, fail))),
        lambda: engine.fold(blocks, fail, lambda a, b: a),
        lambda: engine.write(blocks, writer),
    ):
        with pytest.raises(type(error)) as caught:
            run()
        assert str(caught.value) == text


def fail_two_arguments(fail: Any) -> Any:
    return lambda block, position: fail(block)


def test_an_error_in_a_model(engine: Engine) -> None:
    def broken() -> Any:
        raise DataError("the model is broken", file="model.xml")

    with pytest.raises(DataError, match="the model is broken"):
        list(engine.iterate(engine.map_stateful(engine.source(range(2), read), broken)))


def test_a_stage_that_raises_stop_iteration_is_an_error(engine: Engine) -> None:
    def stop(block: Block) -> Block:
        raise StopIteration

    with pytest.raises(RuntimeError):
        list(engine.iterate(engine.map(engine.source(range(2), read), stop)))


# map_stateful, by_key, fold


def test_map_stateful_makes_a_stage_once_a_worker(engine: Engine, tmp_path: Path) -> None:
    def factory() -> Any:
        (tmp_path / f"{os.getpid()}-{time.time_ns()}").touch()

        def stage(block: Block) -> Block:
            assert block.num_rows <= 4
            return block

        return stage

    blocks = engine.map_stateful(engine.source(range(4), read), factory, batch_rows=4, workers=2)
    assert ids_of(engine, blocks) == expected_ids(4)
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


@pytest.mark.parametrize("partitions", [None, 1, 5])
def test_by_key_brings_rows_together_in_order(engine: Engine, partitions: int | None) -> None:
    def scattered(shard: int) -> Iterator[Block]:
        for block in range(3):
            table = items([f"{shard}/{block}/{k}" for k in range(6)])
            yield table.append_column("key", pa.array([(k * 7 + block) % 6 for k in range(6)]))

    def mark(block: Block) -> Block:
        keys = block.column("key").to_pylist()
        assert keys == sorted(keys)
        return block.append_column(
            "call", pa.repeat(f"{keys[0]}-{keys[-1]}-{block.num_rows}", block.num_rows)
        )

    keyed = engine.by_key(engine.source(range(5), scattered), ["key"], mark, partitions)
    table = pa.concat_tables(engine.iterate(keyed))
    assert table.column_names == [*items([]).column_names, "key", "call"]
    source = pa.concat_tables([block for shard in range(5) for block in scattered(shard)])
    for key in range(6):
        got, want = (t.filter(pc.equal(t.column("key"), key)) for t in (table, source))
        assert got.drop_columns(["call"]).equals(want)
        assert len(set(got.column("call").to_pylist())) == 1  # one call saw the whole key


def test_by_several_keys_after_stages_that_drop_rows(engine: Engine) -> None:
    def odd(block: Block) -> Block:
        return block.filter(pc.match_substring_regex(block.column("id"), "[13]$"))

    blocks = engine.map(engine.source(range(6), read), odd)
    keyed = engine.by_key(blocks, ["subset", "id"], lambda block: block, 3)
    assert sorted(ids_of(engine, engine.map(keyed, odd))) == [i for i in expected_ids(6) if i[-1] in "13"]


def test_fold_merges_in_order(engine: Engine) -> None:
    blocks = engine.source(range(9), read)
    assert engine.fold(blocks, lambda b: b.column("id").to_pylist(), lambda a, b: a + b) == expected_ids(9)


# write


def test_write_in_order_with_numbers_that_follow_it(engine: Engine) -> None:
    results = engine.write(engine.source(range(6), read), Recorder())
    assert [i for found, _, _ in results for i in found] == expected_ids(6)
    assert [index for _, index, _ in results] == list(range(len(results)))


def test_offsets_are_the_sums_before(engine: Engine) -> None:
    results = engine.write(engine.source(range(6), read), Recorder(needs_offsets=True))
    seen: list[str] = []
    for n, (found, index, offsets) in enumerate(results):
        assert index == n
        assert offsets.get("items", 0) == len(seen)
        assert offsets.get("train", 0) == sum(int(i[:3]) % 2 for i in seen)
        seen += found
    assert seen == expected_ids(6)


@pytest.mark.parametrize("needs_offsets", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 7, 45, 1000])
def test_blocks_of_exactly_so_many_rows(engine: Engine, rows: int, needs_offsets: bool) -> None:
    results = engine.write(engine.source(range(3), read), Recorder(rows, needs_offsets))
    ids = expected_ids(3)
    want = [ids[i : i + rows] for i in range(0, len(ids), rows)]
    assert [found for found, _, _ in results] == want
    assert [index for _, index, _ in results] == list(range(len(want)))
    if needs_offsets:
        assert [o.get("items", 0) for _, _, o in results] == [i * rows for i in range(len(want))]


def test_writers_hear_error_rows_and_progress_adds_up(engine: Engine) -> None:
    told: list[int] = []
    blocks = engine.source(
        range(3), lambda s: iter([with_errors(items([str(s)]), [{"subset": "a", "reason": "no"}])])
    )
    results = engine.write(blocks, Recorder(), told.append)
    assert sum(len(found) for found, _, _ in results) == sum(told) == 6


def test_rechunk_and_materialize(engine: Engine) -> None:
    blocks = engine.rechunk(engine.source(range(4), read), 7)
    assert [block.num_rows for block in engine.iterate(blocks)] == [7] * 8 + [4]
    held = engine.materialize(blocks)
    assert ids_of(engine, engine.adopt(held)) == ids_of(engine, engine.adopt(held)) == expected_ids(4)
    renamed = engine.map(engine.adopt(held), lambda block: block.slice(0, 1))
    assert ids_of(engine, renamed)[0] == "000/0/0"


def numbers(shard: int) -> Iterator[Block]:
    """Rows of 40 numbers, in blocks that are big to an engine of small ones."""
    for block in range(3):
        n = [(7 * row + shard + block) % 40 for row in range(200)]
        place = [shard * 1000 + block * 200 + row for row in range(200)]
        yield pa.table({"n": n, "place": place, "text": ["x" * 50] * 200})


def whole_numbers(block: Block) -> Block:
    """One row for each number of a block: the number and the places of its rows."""
    found = block.to_pydict()
    places: dict[int, list[int]] = {}
    for n, place in zip(found["n"], found["place"], strict=True):
        places.setdefault(n, []).append(place)
    assert list(places) == sorted(places)
    return pa.table({"id": [str(n) for n in places], "places": list(places.values())})


@pytest.mark.parametrize("small", [False, True])
def test_by_number_with_a_stage_sees_each_number_whole(engine: Engine, small: bool) -> None:
    if small and engine.name == "ray":
        from rayds.engine.ray import RayEngine

        engine = RayEngine(block_bytes=5000)
    made = engine.by_number(engine.source(range(4), numbers), "n", 40, whole_numbers)
    rows = [row for block in engine.iterate(made) for row in block.to_pylist()]
    assert [row["id"] for row in rows] == [str(n) for n in range(40)]
    assert all(row["places"] == sorted(row["places"]) for row in rows)
    assert sum(len(row["places"]) for row in rows) == 4 * 3 * 200


def test_chain_gives_one_after_the_other(engine: Engine) -> None:
    parts = [engine.source(shards, read) for shards in ([0, 1, 2], [3], [4, 5])]
    assert ids_of(engine, engine.chain(parts)) == expected_ids(6)


def test_fold_inputs_keeps_the_order_of_the_inputs(engine: Engine) -> None:
    assert engine.fold_inputs(range(5), lambda n: [n * n], list.__add__) == [0, 1, 4, 9, 16]
    assert engine.fold_inputs([], lambda n: [n], list.__add__) is None


@pytest.mark.ray
def test_only_the_console_of_ray_is_quiet(ray_engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Ray Data's messages stay off the terminal; what others capture of the log, they still get."""
    from rayds.engine.ray import connect

    assert list(ray_engine.iterate(ray_engine.source([1], one_block)))
    connect()
    logging.getLogger("rayds").warning("told")
    assert "told" in caplog.text
    consoles = [h for h in logging.getLogger("ray.data").handlers if h.name == "console"]
    assert [h.level for h in consoles] == [logging.CRITICAL]


def one_block(shard: int) -> Iterator[pa.Table]:
    yield pa.table({"id": [str(shard)]})
