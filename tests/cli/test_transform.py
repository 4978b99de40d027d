"""`rayds transform` as a user sees it."""

import json

import pytest

from rayds import Dataset
from rayds.op import Op
from rayds.registry import load, names


def test_a_transform_is_written_in_the_format_of_the_input(rayds, data, tmp_path):
    result = rayds(
        "transform", "-i", data, "-t", "remap_labels", "-o", tmp_path / "out", "--", "-l", "cat:pet"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out/tiny.txt").read_text() == "a pet 1 2 3 4\nb dog 5 6 7 8\n"
    assert (data / "tiny.txt").read_text().startswith("a cat")


def test_all_options_of_reading_running_and_writing(rayds, data, tmp_path):
    result = rayds(
        "transform", "-i", data, "-if", "tiny", "-t", "random_split", "-o", tmp_path / "out", "-f", "datumaro",
        "--engine", "local", "--json", "--", "--subset", "train:.5", "--subset", "val:.5",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["items"] == 3
    assert sorted(report["subsets"]) == ["train", "val"]
    assert sum(len(s) for s in Dataset.import_from(str(tmp_path / "out"), "datumaro").subsets().values()) == 3


def test_options_of_the_output_format_are_given_by_write(rayds, data, tmp_path):
    line = ("transform", "-i", data, "-t", "reindex", "-o", tmp_path / "out", "--write", "upper")
    assert rayds(*line).exit_code == 0
    assert (tmp_path / "out/tiny.txt").read_text() == "1 CAT 1 2 3 4\n2 DOG 5 6 7 8\n"
    assert rayds(*line, "--overwrite", "--write", "uper").exit_code == 2


def test_the_default_output_stands_beside_the_input(rayds, data):
    assert rayds("transform", "-i", data, "-t", "reindex").exit_code == 0
    assert (data.parent / "pets-reindex/tiny.txt").exists()


def test_list_tells_each_transform_in_a_line(rayds):
    result = rayds("transform", "--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {n for n in names("ops") if issubclass(load("ops", n), Op)}
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize(
    "words",
    [("--list", "reindex"), ("-t", "reindex", "--list"), ("-t", "reindex", "--", "-h"), ("-t", "reindex", "--", "--help")],
)  # fmt: skip
def test_the_options_of_one(rayds, words):
    result = rayds("transform", *words)
    assert result.exit_code == 0
    assert result.stdout.startswith("reindex: number the items")
    assert "-s, --start INT" in result.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name a transform with -t"),
        (("-t", "reindx"), "unknown transform 'reindx'. Did you mean 'reindex'"),
        (("--list", "reindx"), "Did you mean 'reindex'"),
        (("-t", "reindex", "--", "--strt", "5"), "Did you mean '--start'"),
        (("-t", "reindex", "--", "--start", "five"), "'five' is not an int"),
        (("-t", "remap_labels"), "give --label"),
    ],
)
def test_mistakes(rayds, data, tmp_path, words, told):
    result = rayds("transform", "-i", data, "-o", tmp_path / "out", *words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert not (tmp_path / "out").exists()


def test_every_option_of_every_transform_is_explained():
    for name in names("ops"):
        found = load("ops", name)
        assert found.title, name
        assert all(text for _, _, text in found.Options.describe()), name
