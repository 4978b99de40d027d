"""Pipelines: the same as the steps one by one, in one pass; mistakes are told before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import rayds as dm
from rayds.cli.main import cli
from rayds.errors import RaydsError
from rayds.pipeline import Pipeline

STEPS = [
    {"filter": "/item[annotation/label='cat']"},
    {"remap_labels": {"label": ["cat:pet", "dog:pet"]}},
    {"random_split": {"subset": ["train:0.5", "val:0.5"]}},
    "boxes_to_polygons",
    {"filter": {"where": "area > 4", "mode": "items+annotations"}},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = [
        dm.DatasetItem(
            f"{i}", [dm.Bbox(0, 0, i + 1, 2, label=i % 3), dm.Bbox(0, 0, 9, 9, label=1)], subset="s"
        )
        for i in range(12)
    ]
    dm.Dataset.from_iterable(items, ["cat", "dog", "cow"], engine="local").export(
        str(tmp_path / "in"), "datumaro"
    )
    return tmp_path


def write(folder: Path, **changes: Any) -> str:
    told = {
        "input": {"path": "in", "format": "datumaro"},
        "steps": STEPS,
        "output": {"path": "out", "format": "datumaro"},
        **changes,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump({k: v for k, v in told.items() if v is not None}))
    return str(folder / "job.yaml")


def test_a_pipeline_does_its_steps_in_order(folder: Path, engine: Any) -> None:
    report = Pipeline.load(write(folder)).run(engine)
    assert report.items == 4
    dataset = dm.Dataset.import_from(str(folder / "in"), "datumaro", engine="local")
    by_hand = (
        dataset.filter("/item[annotation/label='cat']")
        .transform("remap_labels", label=("cat:pet", "dog:pet"))
        .transform("random_split", subset=("train:0.5", "val:0.5"))
        .transform("boxes_to_polygons")
        .filter(where="area > 4", mode="items+annotations")
    )
    made = dm.Dataset.import_from(str(folder / "out"), "datumaro", engine="local")
    order = lambda items: sorted(items, key=lambda i: i.id)  # noqa: E731
    assert order(made) == order(by_hand)
    assert made.categories().labels.names() == ["pet", "cow"]


def test_stages_are_fused(folder: Path) -> None:
    """A chain of maps is one pass: each block goes through all steps before the next is read."""
    seen: list[str] = []

    def told(name: str) -> Any:
        def stage(block: Any) -> Any:
            seen.append(f"{name}{block.num_rows}")
            return block

        return stage

    table = dm.Dataset.import_from(str(folder / "in"), "datumaro", engine="local").to_arrow().combine_chunks()
    dataset = dm.Dataset.from_arrow([table.slice(0, 5), table.slice(5)], engine="local")
    for _ in dataset.map_batches(told("a")).map_batches(told("b")).blocks():
        pass
    assert seen == ["a5", "b5", "a7", "b7"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": None}, "input: no mapping of path, format"),
        ({"input": {"path": "a", "project": "b"}}, "give a path, or a project"),
        ({"input": {"path": "a", "fromat": "coco"}}, "Did you mean 'format'"),
        ({"input": {"path": "in", "format": "coco", "options": {"no": 1}}}, "input.options: unknown option"),
        ({"output": {"path": "x"}}, "output: format is missing"),
        (
            {"output": {"path": "x", "format": "cocoo"}},
            "output.format: unknown format 'cocoo'. Did you mean 'coco'",
        ),
        ({"output": {"path": "x", "format": "voc", "options": {"tasks": "x"}}}, "output"),
        ({"steps": {"a": 1}}, "steps: no list"),
        (
            {"steps": [{"split": {}}, {"renam": {}}]},
            "steps, 2. renam: unknown transform 'renam'. Did you mean 'rename'",
        ),
        ({"steps": [{"rename": {"regx": "|a|b|"}}]}, "steps, 1. rename: unknown option"),
        ({"steps": [{"rename": "x"}]}, "steps, 1. rename: the options are no mapping"),
        ({"steps": [{"a": 1, "b": 2}]}, "steps, 1.: a step is one name"),
        ({"run": {"on_error": "never"}}, "run.on_error"),
        ({"run": {"shard_by": "id"}}, "give shards, too"),
        ({"stpes": []}, "Did you mean 'steps'"),
    ],
)
def test_mistakes_are_told_with_their_place(folder: Path, changes: Any, said: str) -> None:
    with pytest.raises(RaydsError) as error:
        Pipeline.load(write(folder, **changes))
    assert said in str(error.value)
    assert "job.yaml: " in str(error.value)
    assert not (folder / "out").exists()


def test_options_that_need_the_categories_name_their_step(folder: Path) -> None:
    with pytest.raises(RaydsError, match=r"steps, 1\. random_split: --subset: the ratios sum to 0.5"):
        Pipeline.load(write(folder, steps=[{"random_split": {"subset": ["a:0.5"]}}])).dataset()


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    file = write(folder, run={"engine": "local", "shards": 3})
    run = lambda *words: CliRunner().invoke(cli, ["pipeline", file, *words])  # noqa: E731
    assert run("--check").stderr.endswith("5 steps, no mistake\n")
    done = run("-q", "--json")
    assert done.exit_code == 0, done.output
    assert '"items": 4' in done.stdout
    assert run().exit_code == 1
    assert run("--overwrite").exit_code == 0
    (folder / "job.yaml").write_text("steps: [\n")
    done = run()
    assert done.exit_code == 1
    assert "job.yaml, line 2: no YAML" in done.stderr
