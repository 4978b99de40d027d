"""`rayds convert` as a user sees it."""

import json
from pathlib import Path

import pytest

from rayds import Bbox, Dataset, DatasetItem, Image

WRITTEN = "a cat 1 2 3 4\nb dog 5 6 7 8\n"


def test_the_short_flags_of_the_manuals(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-if", "tiny", "-o", tmp_path / "out", "-f", "tiny")
    assert result.exit_code == 0
    assert (tmp_path / "out/tiny.txt").read_text() == WRITTEN


@pytest.mark.parametrize("out", ["--output-dir", "--output"])
@pytest.mark.parametrize("format", ["--output-format", "--format"])
def test_the_long_flags_of_the_manuals(rayds, data, tmp_path, out, format):
    result = rayds(
        "convert", "--input-path", data, "--input-format", "tiny", out, tmp_path / "out", format, "tiny"
    )
    assert result.exit_code == 0
    assert (tmp_path / "out/tiny.txt").read_text() == WRITTEN


def test_the_format_of_the_input_is_detected_and_told_on_stderr(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny")
    assert result.exit_code == 0
    assert "detected format: tiny" in result.stderr
    assert "detected" not in result.stdout


def test_the_summary_tells_items_annotations_and_losses_on_stdout(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny")
    assert "3 items" in result.stdout
    assert "2 bbox" in result.stdout
    assert "caption annotations" in result.stdout
    assert "item 'c'" in result.stdout


def test_json_is_all_of_stdout(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny", "--json")
    report = json.loads(result.stdout)
    assert report["items"] == 3
    assert report["annotations"] == {"bbox": 2, "caption": 1}
    assert report["losses"] == [{"kind": "caption annotations", "count": 1, "example": "item 'c'"}]


def test_quiet_leaves_only_the_result(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny", "--quiet")
    assert "3 items" in result.stdout
    assert result.stderr == ""


def test_options_of_the_writer_follow_after_two_dashes(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny", "--", "--upper")
    assert result.exit_code == 0
    assert (tmp_path / "out/tiny.txt").read_text().startswith("a CAT")


def test_options_of_the_reader(rayds, data, tmp_path):
    result = rayds(
        "convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny", "--read", "only=b", "--read", "delay=0"
    )
    assert result.exit_code == 0
    assert (tmp_path / "out/tiny.txt").read_text() == "b dog 5 6 7 8\n"


@pytest.mark.parametrize(
    "words",
    [["--save-media"], ["--save-images"], ["--", "--save-media"], ["--", "--save-images"]],
)
def test_saving_images_before_and_after_two_dashes(rayds, tmp_path, words):
    folder = images(tmp_path)
    result = rayds("convert", "-i", folder, "-o", tmp_path / "out", "-f", "rayds", *words)
    assert result.exit_code == 0, result.stderr
    assert [p.suffix for p in (tmp_path / "out/images").rglob("x.*")] == [".png"]


@pytest.mark.parametrize(
    "words", [["--image-ext", ".bmp"], ["--image-ext=bmp"], ["--", "--image-ext", "bmp"]]
)
def test_the_extension_of_written_images(rayds, tmp_path, words):
    result = rayds("convert", "-i", images(tmp_path), "-o", tmp_path / "out", "-f", "image_dir", *words)
    assert result.exit_code == 0, result.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.bmp"]
    assert (tmp_path / "out/x.bmp").read_bytes()[:2] == b"BM"


def images(tmp_path: Path) -> Path:
    from PIL import Image as Pillow

    folder = tmp_path / "images"
    folder.mkdir()
    Pillow.new("RGB", (4, 3)).save(folder / "x.png")
    return folder


def test_help_after_options_shows_what_the_format_holds_with_them(rayds):
    out = rayds("convert", "-f", "yolo_ultralytics", "--", "--task", "segment", "--help").stdout
    assert "with --task segment" in out
    assert "polygon" in out.split("with --task segment")[1]


def test_help_after_two_dashes_shows_the_options_of_the_format(rayds):
    for word in ("-h", "--help"):
        result = rayds("convert", "-f", "tiny", "--", word)
        assert result.exit_code == 0
        assert "--upper" in result.stdout
        assert "write labels in capitals" in result.stdout
        assert "bbox" in result.stdout


def test_the_default_output_stands_beside_the_input_and_never_replaces(rayds, data, tmp_path):
    for name in ("pets-tiny", "pets-tiny.1", "pets-tiny.2"):
        assert rayds("convert", "-i", data, "-f", "tiny").exit_code == 0
        assert (tmp_path / name / "tiny.txt").exists()
    assert rayds("convert", "-i", data, "-f", "tiny", "--overwrite").exit_code == 0
    assert not (tmp_path / "pets-tiny.3").exists()


def test_the_default_input_is_the_working_folder(rayds, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    assert rayds("convert", "-f", "tiny").exit_code == 0
    assert (tmp_path / "pets-tiny/tiny.txt").exists()


def test_an_output_that_is_there_needs_overwrite(rayds, data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    result = rayds("convert", "-i", data, "-o", out, "-f", "tiny")
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert (out / "mine.txt").read_text() == "keep"
    assert rayds("convert", "-i", data, "-o", out, "-f", "tiny", "--overwrite").exit_code == 0
    assert [p.name for p in out.iterdir()] == ["tiny.txt"]


def test_an_output_inside_the_input_is_no_part_of_it(rayds, tmp_path):
    folder = images(tmp_path)
    for name in ("out", "again"):  # image_dir looks into all folders
        words = (
            "convert",
            "-i",
            folder,
            "-if",
            "image_dir",
            "-o",
            folder / name,
            "-f",
            "image_dir",
            "--save-media",
        )
        assert rayds(*words).exit_code == 0
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png")) == [
        "again/out/x.png",
        "again/x.png",
        "out/x.png",
        "x.png",
    ]
    result = rayds(*words, "--overwrite")  # or it would hold itself, once more each time
    assert result.exit_code == 1
    assert f"{folder / 'again'} is inside the input {folder}" in result.stderr
    assert (folder / "again/x.png").exists()


def test_strict_writes_nothing_when_something_would_be_lost(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-o", tmp_path / "out", "-f", "tiny", "--strict")
    assert result.exit_code == 1
    assert "1  caption annotations" in result.stderr
    assert not (tmp_path / "out").exists()


class TestShards:
    @pytest.fixture
    def source(self, tmp_path):
        items = [
            DatasetItem(
                f"i{n}", [Bbox(1, 2, 3, 4, label=0)], subset="abc"[n % 3], image=Image("x.jpg", size=(9, 9))
            )
            for n in range(30)
        ]
        Dataset.from_iterable(items, ["cat"]).export(str(tmp_path / "in"), "rayds")
        return tmp_path / "in"

    def ids(self, path):
        return [(item.id, item.subset) for item in Dataset.import_from(str(path), "rayds")]

    @pytest.mark.parametrize("by", ["id", "subset"])
    def test_items_are_written_shard_by_shard(self, rayds, source, tmp_path, by):
        result = rayds(
            "convert", "-i", source, "-f", "rayds", "-o", tmp_path / "out", "--shards", 64, "--shard-by", by
        )
        assert result.exit_code == 0, result.stderr
        found = self.ids(tmp_path / "out")
        assert sorted(found) == sorted(self.ids(source))
        wanted = Dataset.import_from(str(source)).repartition(64, by)
        assert found == [(item.id, item.subset) for item in wanted]
        if by == "subset":
            subsets = [s for _, s in found]
            assert subsets == sorted(subsets, key=subsets.index)  # each in one piece: their hashes differ
        else:
            assert found != self.ids(source)

    def test_an_item_is_the_default(self, rayds, source, tmp_path):
        for name, words in (("a", []), ("b", ["--shard-by", "id"])):
            assert (
                rayds(
                    "convert", "-i", source, "-f", "rayds", "-o", tmp_path / name, "--shards", 4, *words
                ).exit_code
                == 0
            )
        assert self.ids(tmp_path / "a") == self.ids(tmp_path / "b")


class TestBadItems:
    @pytest.fixture
    def bad(self, data):
        with open(data / "tiny.txt", "a") as f:
            f.write("d broken\n")
        return data

    def test_raise_is_the_default_and_leaves_nothing(self, rayds, bad, tmp_path):
        result = rayds("convert", "-i", bad, "-o", tmp_path / "out", "-f", "tiny")
        assert result.exit_code == 1
        assert f"{bad / 'tiny.txt'}, line 4, item 'd': the box is missing" in result.stderr
        assert result.stdout == ""
        assert [p.name for p in tmp_path.iterdir()] == ["pets"]

    def test_skip_leaves_out_and_tells_how_many(self, rayds, bad, tmp_path):
        result = rayds("convert", "-i", bad, "-o", tmp_path / "out", "-f", "tiny", "--on-error", "skip")
        assert result.exit_code == 0
        assert "3 items" in result.stdout
        assert "1 bad items left out" in result.stdout
        assert "line 4" in result.stdout
        assert (tmp_path / "out/tiny.txt").read_text() == WRITTEN

    def test_quarantine_tells_where(self, rayds, bad, tmp_path):
        import pyarrow.parquet as pq

        result = rayds(
            "convert", "-i", bad, "-o", tmp_path / "out", "-f", "tiny", "--on-error", "quarantine", "--json"
        )
        report = json.loads(result.stdout)
        assert result.exit_code == 0
        assert report["skipped"] == 1
        assert report["quarantine"] == str(tmp_path / "out/quarantine.parquet")
        assert pq.read_table(report["quarantine"]).column("item").to_pylist() == ["d"]


class TestUsage:
    """Each is exit code 2, one message on stderr, nothing written."""

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["-f", "tinny"], "Did you mean 'tiny'"),
            (["-f", "tiny", "-if", "tinny"], "Did you mean 'tiny'"),
            ([], "--output-format"),
            (["-f", "tiny", "--strikt"], "--strict"),
            (["-f", "tiny", "--on-error", "ignore"], "quarantine"),
            (["-f", "tiny", "--", "--uper"], "Did you mean '--upper'"),
            (["-f", "tiny", "--", "--uper"], "rayds convert -f tiny -- --help"),
            (["-f", "tiny", "--read", "dellay=1"], "rayds formats tiny"),
            (["-f", "tiny", "--read", "delay=soon"], "'soon' is not a float"),
            (["-f", "tiny", "--engine", "local", "--address", "auto"], "--address"),
            (["-f", "tiny", "--shards", "0"], "--shards"),
            (["-f", "tiny", "--shards", "2", "--shard-by", "label"], "subset"),
            (["-f", "tiny", "--shard-by", "subset"], "give --shards N"),
        ],
    )
    def test_is_told(self, rayds, data, tmp_path, words, told):
        result = rayds("convert", "-i", data, "-o", tmp_path / "out", *words)
        assert result.exit_code == 2
        assert told in result.stderr
        assert result.stderr.count("error:") == 1
        assert result.stdout == ""
        assert not (tmp_path / "out").exists()


def test_an_input_that_is_not_there(rayds, tmp_path):
    result = rayds("convert", "-i", tmp_path / "none", "-f", "tiny")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {tmp_path}/none: no such file or folder")


def test_an_input_of_no_known_format_names_the_datasets_below(rayds, data, tmp_path):
    result = rayds("convert", "-i", tmp_path, "-f", "tiny")
    assert result.exit_code == 1
    assert f"{data} (tiny)" in result.stderr


def test_a_format_that_is_only_read_can_not_be_written(rayds, data, tmp_path):
    result = rayds("convert", "-i", data, "-f", "tiny_result")
    assert result.exit_code == 1
    assert "can't be written" in result.stderr
    result = rayds("convert", "-f", "tiny_result", "--", "--help")
    assert result.exit_code == 0
    assert "can't be written" in result.stdout


def test_resume_keeps_what_is_complete_and_goes_on(rayds, data, tmp_path):
    bad, out = data / "tiny.txt", tmp_path / "out"
    good = bad.read_text()
    bad.write_text(good + "d bug\n")
    words = ("convert", "-i", data, "-f", "tiny", "-o", out, "--engine", "local", "--resume")
    failed = rayds(*words)
    assert failed.exit_code == 1
    assert (
        f"What is complete is kept in {out}.rayds-partial; the same command goes on with it." in failed.stderr
    )
    assert not out.exists()
    other = rayds(*words, "--on-error", "skip")
    assert other.exit_code == 1
    assert 'on error: "raise" before, "skip" now' in other.stderr
    assert "with --overwrite, or without --resume" in other.stderr
    assert "What is complete is kept" not in other.stderr
    bad.write_text(good)
    changed = rayds(*words)
    assert changed.exit_code == 1
    assert "changed since the run began (" in changed.stderr
    assert "tiny.txt" in changed.stderr
    assert rayds(*words, "--overwrite").exit_code == 0
    again = rayds(*words, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["items"] == 3


def test_resume_without_an_output_finds_the_one_it_named(rayds, data):
    words = ("convert", "-i", data, "-f", "tiny", "--engine", "local", "--resume", "-q")
    for _ in range(2):
        assert rayds(*words).exit_code == 0
        assert sorted(p.name for p in data.parent.iterdir()) == [
            "pets",
            "pets-tiny",
            "pets-tiny.rayds-done.json",
        ]
    assert rayds(*words[:-2], "-q").exit_code == 0
    assert (data.parent / "pets-tiny.1").is_dir()
