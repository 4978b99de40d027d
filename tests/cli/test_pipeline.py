"""`rayds pipeline` as a user sees it: what a job file may say, what is told of mistakes, that it is one pass."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import rayds as dm
from rayds.cli._remote import check_command
from rayds.cli.main import cli
from rayds.errors import UsageError
from rayds.pipeline import Pipeline

JOB = """
input: {path: pets, format: tiny}
steps:
  - where: n_annotations > 0
  - remap_labels: {label: {cat: pet, dog: pet}}
  - filter: {expression: '/item/annotation[x > 1]', mode: items+annotations}
  - reindex
output:
  path: out
  format: tiny
  options: {upper: true}
"""


@pytest.fixture
def job(data: Path) -> Path:
    path = data.parent / "job.yaml"
    path.write_text(JOB)
    return path


def test_the_steps_of_a_job_in_their_order(rayds, job, monkeypatch):
    monkeypatch.chdir("/")
    result = rayds("pipeline", job)
    assert result.exit_code == 0, result.output
    assert (job.parent / "out/tiny.txt").read_text() == "1 PET 5 6 7 8\n"


def test_the_command_line_goes_before_the_file(rayds, job, tmp_path):
    line = ("pipeline", job, "-o", tmp_path / "other", "--write", "upper=false", "--read", "only=b", "--json")
    result = rayds(*line)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["items"] == 1
    assert (tmp_path / "other/tiny.txt").read_text() == "1 pet 5 6 7 8\n"
    assert not (job.parent / "out").exists()
    assert rayds("pipeline", job, "-f", "datumaro").exit_code == 0  # the options are those of tiny
    assert (job.parent / "out/annotations").is_dir()


def test_a_check_and_tells(rayds, job):
    result = rayds("pipeline", job, "--check")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"read   {job.parent / 'pets'} (tiny)"
    assert lines[2] == "2      RemapLabels(label=('cat:pet', 'dog:pet'), default='keep')"
    assert lines[-1] == f"write  {job.parent / 'out'} (tiny)"
    assert not (job.parent / "out").exists()


OUT = "output: {path: o, format: tiny}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("input: {path: 5}\n" + OUT, "input.path: 5 is not a text"),
        ("input: {path: x, format: coc}\n" + OUT, "input.format: unknown format 'coc'. Did you mean 'coco'"),
        ("input: {path: x, format: tiny, options: {onli: b}}\n" + OUT, "input.options: unknown option 'onli'"),
        ("input: {path: x}\noutput: {path: o, format: tiny, strict: 1}", "output.strict: 1 is not true or false"),
        ("input: {path: x}\noutput: {path: o, format: tiny, options: {upper: maybe}}", "--upper: 'maybe' is neither"),
        (f"input: {{path: x}}\n{OUT}\nrun: {{shards: 0}}", "run.shards: 0 is not at least 1"),
        (f"input: {{path: x}}\n{OUT}\nrun: {{engine: rai}}", "run.engine: unknown value 'rai'. Did you mean 'ray'"),
        (f"input: {{path: x}}\n{OUT}\nsteps: [sort, {{reindex: {{strt: 5}}}}]", "steps, 2. reindex: unknown option"),
        (f"input: {{path: x}}\n{OUT}\nsteps: [{{reindex: {{start: a}}}}]", "steps, 1. reindex: --start: 'a' is not"),
        ("steps: [{reindex: {start: 1, start: 2}}]", "line 1: the key 'start' stands twice"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(rayds, tmp_path, text, told):
    (tmp_path / "job.yaml").write_text(text)
    result = rayds("pipeline", tmp_path / "job.yaml")
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["job.yaml"]


def test_labels_that_are_not_there_name_the_step(rayds, data):
    path = data.parent / "job.yaml"
    path.write_text(
        "input: {path: pets}\nsteps: [sort, {project_labels: {label: []}}]\noutput: {path: out, format: tiny}\n"
    )
    result = rayds("pipeline", path)
    assert result.exit_code == 2
    assert "steps, 2. project_labels: project_labels: give the labels" in result.stderr
    assert rayds("pipeline", data.parent / "none.yaml").exit_code == 1


def test_texts_of_yaml_are_taken_as_they_stand(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "input: {path: x}\noutput: {path: o, format: coco}\nsteps:\n- remap_labels: {label: {no: yes, off: , 1:30: 010}}\n- map_subsets: {subset: [a:b, 2001-01-01:c]}\n"
        "- project_infos: {infos: {url: 'http://x'}}\n- random_split: {subset: {train: .5, val: 0.5}}\n"
    )
    options = [step.op.options for step in Pipeline.load(str(path)).steps]
    assert options[0].label == ("no:yes", "off:", "1\\:30:010")
    assert options[1].subset == ("a:b", "2001-01-01:c")
    assert options[2].infos == ("url:http://x",)
    assert options[3].subset == ("train:0.5", "val:0.5")


def test_files_of_steps_are_beside_the_job(rayds, data):
    report = {"validation_reports": [
        {"anomaly_type": "MissingAnnotation", "description": "", "item_id": "c", "subset": "default"}
    ]}  # fmt: skip
    (data.parent / "report.json").write_text(json.dumps(report))
    path = data.parent / "job.yaml"
    path.write_text(
        "input: {path: pets}\nsteps: [{correct: {report: report.json}}]\noutput: {path: out, format: tiny}\n"
    )
    assert rayds("pipeline", path, "--json").exit_code == 0
    assert (data.parent / "out/tiny.txt").read_text().count("\n") == 2
    with pytest.raises(UsageError, match=r"steps, 1\. correct.*report.json is a local file"):
        check_command(["pipeline", str(path)], cli)


def test_a_job_goes_to_a_cluster_with_its_paths(rayds, job, monkeypatch):
    monkeypatch.chdir(job.parent)
    del rayds  # the format is installed while it is there
    remote = check_command(["pipeline", "job.yaml"], cli)
    assert remote.files == ["job.yaml"]
    assert remote.inputs == [str(job.parent / "pets")]
    assert remote.outputs == [str(job.parent / "out")]
    words = remote.shipped(lambda path: f"sent/{path}")
    assert "sent/job.yaml" in words
    assert words[words.index("--address") + 1] == "auto"
    job.write_text(JOB + "run: {engine: local}\n")
    assert "--address" not in check_command(["pipeline", "job.yaml"], cli).words


def test_one_pass_over_the_data(tmp_path: Path, engine: Any) -> None:
    """Steps that need no look before them are applied to each block as it is read."""
    seen: list[str] = []

    def read(block: Any) -> Any:
        seen.extend(block.column("id").to_pylist())
        return block

    items = [dm.DatasetItem(f"{i}", [dm.Bbox(0, 0, 5, 5, label=i % 2)]) for i in range(20)]
    dataset = dm.Dataset.from_iterable(items, ["cat", "dog"], engine=engine)
    (tmp_path / "job.yaml").write_text(
        "input: {path: x}\noutput: {path: o, format: coco}\n"
        "steps: [{remap_labels: {label: {cat: pet}}}, {filter: {where: label = 'pet', mode: i+a}}, shapes_to_boxes, anns_to_labels]\n"
    )
    made = Pipeline.load(str(tmp_path / "job.yaml")).apply(
        dataset.map_batches(read) if engine.name == "local" else dataset
    )
    assert [len(i.annotations) for i in made] == [1] * 10
    if engine.name == "local":
        assert sorted(seen) == sorted(i.id for i in items)
