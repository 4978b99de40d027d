"""What every engine must do: the same rows in the same order, whatever runs the stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayds.engine.base import Block, Engine, Position
from rayds.engine.local import LocalEngine
from rayds.errors import DataError, EngineError, UnknownNameError
from rayds.format import Shard, with_errors
from rayds.schema import ERROR_COLUMN, annotation_rows, item_table, mask_rows, split_errors

BLOCKS, ROWS = 3, 5


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import this module: send its functions whole."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def items(ids: list[str], subset: str = "train") -> Block:
    """A block of items with one box and one mask each."""
    n = len(ids)
    masks = mask_rows(2 * n, 4, 6, [None, "PP1"] * n)
    points = [[float(i), 0.1, 2.5, 1e-9] if i % 2 == 0 else None for i in range(2 * n)]
    rows = annotation_rows(2 * n, type=[6, 2] * n, id=list(range(2 * n)), label=0, points=points, mask=masks)
    return item_table(n, rows, [2] * n, id=ids, subset=subset)


def read(shard: int) -> Iterator[Block]:
    for block in range(BLOCKS):
        yield items([f"{shard:03}/{block}/{row}" for row in range(ROWS)], "train" if shard % 2 else "val")


def ids_of(engine: Engine, blocks: Any) -> list[str]:
    return [i for block in engine.iterate(blocks) for i in block.column("id").to_pylist()]


def expected_ids(shards: int) -> list[str]:
    return [f"{s:03}/{b}/{r}" for s in range(shards) for b in range(BLOCKS) for r in range(ROWS)]


class Recorder:
    """A writer that returns the ids and the position that it got."""

    def __init__(self, rows: int | None = None, needs_offsets: bool = False) -> None:
        self.rows, self.needs_offsets = rows, needs_offsets

    def count(self, block: Block) -> dict[str, int]:
        return {"items": block.num_rows, **split_subsets(block)}

    def write(self, block: Block, position: Position) -> Any:
        return block.column("id").to_pylist(), position.index, dict(position.offsets)


def split_subsets(block: Block) -> dict[str, int]:
    return {v["values"]: v["counts"] for v in pc.value_counts(block.column("subset")).to_pylist()}


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


# local only


def test_local_by_key_spills_to_disk() -> None:
    small, large = LocalEngine(2, spill_bytes=200), LocalEngine(2)
    tables = [
        pa.concat_tables(e.iterate(e.by_key(e.source(range(5), read), ["id"], lambda b: b, 3)))
        for e in (small, large)
    ]
    assert tables[0].equals(tables[1])
    assert sorted(tables[0].column("id").to_pylist()) == expected_ids(5)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_local_reads_only_a_few_blocks_ahead(workers: int) -> None:
    made = 0

    def endless(shard: int) -> Iterator[Block]:
        nonlocal made
        while True:
            made += 1
            yield items([str(made)])

    engine = LocalEngine(workers)
    stream = engine.iterate(engine.map(engine.source([0], endless), lambda block: block))
    next(stream)
    time.sleep(0.3)
    assert made <= 2 * workers + 5
    stream.close()
    seen = made
    time.sleep(0.3)
    assert made == seen


# Ray only


@pytest.mark.ray
@pytest.mark.slow
def test_both_engines_write_the_same_for_any_number_of_cpus(ray_engine: Engine) -> None:
    from rayds.engine.ray import RayEngine

    def job(engine: Engine) -> Any:
        blocks = engine.map(engine.source(range(8), read), lambda block: block.slice(0, block.num_rows))
        keyed = engine.by_key(blocks, ["subset"], lambda block: block, 1)
        model = engine.map_stateful(blocks, lambda: lambda block: block, batch_rows=4)
        writer = Recorder(7, needs_offsets=True)
        return [engine.write(b, writer) for b in (blocks, keyed, model)]

    want = job(LocalEngine(1))
    for engine in (LocalEngine(4), RayEngine(num_cpus=1), RayEngine(num_cpus=2), ray_engine):
        assert job(engine) == want


@pytest.mark.ray
def test_small_blocks_give_the_same(ray_engine: Engine) -> None:
    from rayds.engine.ray import RayEngine

    engine = RayEngine(block_bytes=500)
    blocks = engine.source(range(4), read)
    assert ids_of(engine, blocks) == expected_ids(4)
    keyed = engine.by_key(blocks, ["subset"], lambda block: block.slice(0, 1), 1)
    assert ids_of(engine, keyed) == ["001/0/0"]  # a partition is never cut
    assert engine.write(blocks, Recorder(7, True)) == LocalEngine().write(
        LocalEngine().source(range(4), read), Recorder(7, True)
    )
    results = engine.write(blocks, Recorder(needs_offsets=True))
    assert len(results) > 4
    assert [o.get("items", 0) for _, _, o in results] == [
        sum(len(f) for f, _, _ in results[:i]) for i in range(len(results))
    ]


@pytest.mark.ray
def test_a_dataset_of_the_users_own(ray_engine: Any) -> None:
    import ray

    native = ray.data.from_arrow([items(["a", "b"]), items(["c"])])
    blocks = ray_engine.map(ray_engine.adopt(native), lambda block: block.slice(0, 1))
    assert ids_of(ray_engine, blocks) == ["a", "c"]
    assert ray_engine.to_native(blocks).count() == 2
    assert ray_engine.to_native(ray_engine.source([], read)).count() == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_dies_once_changes_nothing(ray_engine: Engine, tmp_path: Path) -> None:
    def die_once(block: Block) -> Block:
        flag = tmp_path / "died"
        if block.column("id")[0].as_py().startswith("001") and not flag.exists():
            flag.touch()
            os._exit(1)
        return block

    blocks = ray_engine.map(ray_engine.source(range(4), read), die_once)
    results = ray_engine.write(blocks, Recorder(7, True))
    assert (tmp_path / "died").exists()
    assert [i for found, _, _ in results for i in found] == expected_ids(4)


@pytest.mark.ray
@pytest.mark.slow
def test_a_poison_item_ends_in_an_error_that_names_it(ray_engine: Engine) -> None:
    def poison(block: Block) -> Block:
        if "001/0/0" in block.column("id").to_pylist():
            os._exit(1)
        return block

    class Poison(Recorder):
        def write(self, block: Block, position: Position) -> Any:
            poison(block)

    from rayds.engine.ray import RayEngine

    engine = RayEngine(retries=1)
    shards = [Shard(f"annotations-{i}.json", i) for i in range(3)]
    blocks = engine.source(shards, lambda shard: read(shard.data))
    with pytest.raises(EngineError, match=r"shard annotations-1\.json: the worker process died 2 times"):
        list(engine.iterate(engine.map(blocks, poison)))
    with pytest.raises(EngineError, match=r"items '001/0/0' to '001/2/4': the worker process died 2 times"):
        list(engine.iterate(engine.map_stateful(blocks, lambda: poison)))
    with pytest.raises(EngineError):
        engine.write(blocks, Poison())
    with pytest.raises(EngineError, match=r"poison, .*items .* the worker process died 2 times"):
        list(engine.iterate(engine.by_key(blocks, ["id"], poison, 2)))


@pytest.mark.ray
@pytest.mark.slow
def test_a_private_cluster_is_quiet_and_leaves_no_token(tmp_path: Path) -> None:
    script = """
from rayds.engine import make_engine
from rayds.schema import item_table
engine = make_engine("ray", num_cpus=1)
blocks = engine.source(range(3), lambda s: iter([item_table(2, id=[f"{s}a", f"{s}b"])]))
blocks = engine.map_stateful(engine.by_key(blocks, ["id"], lambda b: b), lambda: lambda b: b)
print(sum(b.num_rows for b in engine.iterate(blocks)))
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**env, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")
    assert not (tmp_path / ".ray").exists()


def test_a_cluster_that_does_not_answer_is_told_at_once():
    engine_module = pytest.importorskip("rayds.engine.ray")
    with pytest.raises(EngineError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'"):
        engine_module._check_reachable("127.0.0.1:9")
    engine_module._check_reachable("auto")
