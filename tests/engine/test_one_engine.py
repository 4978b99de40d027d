"""What is of one engine only: memory and spilling in the process; CPUs, dying workers and clusters on Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_blocks
import pyarrow as pa
import pytest
from engine_blocks import Recorder, expected_ids, ids_of, items, read

from rayds.engine import local
from rayds.engine.base import Block, Engine, Position
from rayds.engine.local import LocalEngine
from rayds.errors import EngineError
from rayds.format import Shard


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> None:
    """Ray's workers can't import these modules: send their functions whole."""
    import ray

    for module in (sys.modules[__name__], engine_blocks):
        ray.cloudpickle.register_pickle_by_value(module)


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


def test_local_keeps_small_blocks_for_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def counted(shard: int) -> Iterator[Block]:
        reads.append(shard)
        return read(shard)

    engine = LocalEngine(2)

    def passes(n: int) -> list[list[str]]:
        reads.clear()
        kept = engine.kept(engine.map(engine.source(range(3), counted), lambda block: block), 0)
        assert kept is not None
        return [ids_of(engine, kept) for _ in range(n)]

    assert passes(2) == [expected_ids(3)] * 2
    assert len(reads) == 3
    assert passes(3) == [expected_ids(3)] * 3  # the second pass lets go of what it had
    assert len(reads) == 6
    monkeypatch.setattr(local, "KEPT_BYTES", 10)
    assert passes(2) == [expected_ids(3)] * 2
    assert len(reads) == 6
    assert engine.kept(engine.source(range(3), counted), 11) is None


def test_local_keeps_nothing_of_a_pass_that_did_not_end() -> None:
    engine = LocalEngine(1)
    kept = engine.kept(engine.source(range(3), read), 0)
    stream = engine.iterate(kept)
    next(stream)
    stream.close()
    assert ids_of(engine, kept) == expected_ids(3)


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


def _sized(shard: Shard) -> Iterator[Block]:
    return read(shard.data)


class _Started(Shard):
    """A shard that tells its first item."""

    @property
    def first_item(self) -> int:
        return int(self.data) * len(expected_ids(1))


@pytest.mark.ray
@pytest.mark.parametrize("rows", [None, 5, 3])
def test_small_shards_are_written_where_they_are_read(ray_engine: Engine, rows: int | None) -> None:
    from rayds.engine.ray import TASK_STRIDE

    shards = [_Started(str(n), n, size=100) for n in range(9)]
    stages = ray_engine.map(ray_engine.source(shards, _sized), lambda block: block)
    writer = Recorder(rows)
    writer.in_place = True  # type: ignore[attr-defined]
    results = ray_engine.write(stages, writer)
    assert [i for found, _, _ in results for i in found] == expected_ids(9)
    numbers = [index for _, index, _ in results]
    assert numbers == sorted(set(numbers))
    if rows:
        assert numbers == list(range(len(results)))
        assert {len(found) for found, _, _ in results} == {rows}
    else:  # every task has numbers of its own
        assert {n // TASK_STRIDE for n in numbers} == set(range(9))


@pytest.mark.ray
def test_shards_that_are_not_known_to_be_small_are_not(ray_engine: Engine) -> None:
    for shards in ([Shard(str(n), n) for n in range(9)], [Shard(str(n), n, size=1 << 30) for n in range(9)]):
        results = ray_engine.write(ray_engine.source(shards, _sized), Recorder())
        assert [index for _, index, _ in results] == list(range(len(results)))
        assert [i for found, _, _ in results for i in found] == expected_ids(9)
    shards = [_Started(str(n), n, size=100) for n in range(9)]  # but not of so many items as is asked for
    results = ray_engine.write(ray_engine.source(shards, _sized), Recorder(7))
    assert [index for _, index, _ in results] == list(range(len(results)))
    assert [i for found, _, _ in results for i in found] == expected_ids(9)


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
    engine_module = pytest.importorskip("rayds.engine._ray_cluster")
    with pytest.raises(EngineError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'"):
        engine_module._check_reachable("127.0.0.1:9")
    engine_module._check_reachable("auto")


@pytest.mark.ray
def test_ray_data_still_reads_what_is_set_past_its_settings(ray_engine: Any) -> None:
    """A Ray that has renamed these would be slow without a word."""
    import inspect

    import ray.data
    from ray.data._internal.execution import resource_manager, streaming_executor_state

    waits = inspect.getsource(streaming_executor_state.process_completed_tasks)
    assert "timeout=WAIT_FOR_TASK_COMPLETION_TIMEOUT_S" in waits
    assert streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S < 0.1
    assert "self.GLOBAL_LIMITS_UPDATE_INTERVAL_S" in inspect.getsource(resource_manager.ResourceManager)
    assert resource_manager.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S < 1
    blocks = ray_engine.source([pa.table({"id": ["a"]})], lambda table: iter([table]))
    operator = ray_engine.rechunk(blocks, 5).dataset._logical_plan.dag
    assert operator.ray_remote_args["num_cpus"] == 0
    planner = inspect.getsource(ray.data._internal.planner.plan_udf_map_op.plan_streaming_repartition_op)
    assert "ray_remote_args=op.ray_remote_args" in planner
