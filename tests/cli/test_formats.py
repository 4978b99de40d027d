"""`rayds formats` and `rayds detect` as a user sees them."""

import json

import pytest


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.split()[:1] == [name])


class TestFormats:
    def test_lists_what_each_reads_writes_and_holds(self, rayds):
        out = rayds("formats").stdout
        assert row(out, "tiny").split(maxsplit=4) == [
            "tiny",
            "yes",
            "yes",
            "bbox",
            "one line an item | made for tests",
        ]
        assert row(out, "tiny_result").split()[:4] == ["tiny_result", "yes", "-", "-"]

    def test_as_markdown(self, rayds):
        lines = rayds("formats", "--markdown").stdout.splitlines()
        assert lines[:2] == [
            "| name | read | write | annotations | title |",
            "| --- | --- | --- | --- | --- |",
        ]
        assert "| `tiny` | yes | yes | bbox | one line an item \\| made for tests |" in lines

    def test_as_json(self, rayds):
        found = {f["name"]: f for f in json.loads(rayds("formats", "--json").stdout)}
        assert found["tiny"]["write"] is True
        assert found["tiny"]["holds"]["annotations"] == ["bbox"]
        assert found["tiny_result"]["write"] is False
        assert found["tiny_result"]["holds"] is None

    def test_all_about_one(self, rayds):
        out = rayds("formats", "tiny").stdout
        for text in ("one line an item", "Specification: these tests.", "delay FLOAT", "seconds before every item",
                     "--upper", "write labels in capitals", "annotations      bbox"):  # fmt: skip
            assert text in out

    def test_all_about_one_as_json(self, rayds):
        found = json.loads(rayds("formats", "tiny", "--json").stdout)
        assert {"option": "--delay FLOAT", "default": "0.0", "help": "seconds before every item"} in found[
            "read_options"
        ]
        assert any(o["option"].startswith("--upper") for o in found["write_options"])

    def test_an_unknown_one_suggests_the_nearest(self, rayds):
        result = rayds("formats", "tinny")
        assert result.exit_code == 2
        assert "Did you mean 'tiny'" in result.stderr

    @pytest.mark.parametrize("words", [["--json", "--markdown"], ["tiny", "--markdown"]])
    def test_options_that_do_not_go_together(self, rayds, words):
        assert rayds("formats", *words).exit_code == 2


class TestDetect:
    def test_names_the_format_and_the_reason(self, rayds, data):
        result = rayds("detect", data)
        assert result.exit_code == 0
        assert result.stdout == "Detected format: tiny\n  tiny.txt is there\n"

    @pytest.mark.parametrize("flag", ["--show-rejections", "--rejected"])
    def test_says_why_not_the_others(self, rayds, data, flag):
        out = rayds("detect", data, flag).stdout
        assert out.startswith("Detected format: tiny")
        assert row(out, "rayds").split(maxsplit=1)[1] == "no rayds.json"
        assert "name it" in row(out, "tiny_result")

    def test_nothing_fits(self, rayds, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        result = rayds("detect", tmp_path)
        assert result.exit_code == 1
        assert f"Unable to detect the format of {tmp_path}" in result.stdout
        assert "more: --show-rejections" in result.stdout

    def test_several_fit(self, rayds, data, monkeypatch):
        from rayds.format import Confidence

        twin = type(rayds_format("tiny_result"))
        monkeypatch.setattr(twin, "detect", lambda self, files: Confidence(50, "looks the same"))
        result = rayds("detect", data)
        assert result.exit_code == 1
        assert "Ambiguous" in result.stdout
        assert "tiny: tiny.txt is there" in result.stdout
        assert "tiny_result: looks the same" in result.stdout
        failed = rayds("convert", "-i", data, "-f", "tiny")
        assert failed.exit_code == 1
        assert "tiny, tiny_result" in failed.stderr

    def test_in_folders_below(self, rayds, data, tmp_path):
        result = rayds("detect", tmp_path)
        assert result.exit_code == 0
        assert f"Detected format: tiny in {data}" in result.stdout

    def test_no_deeper_than_asked(self, rayds, tmp_path):
        deep = tmp_path / "a/b/c"
        deep.mkdir(parents=True)
        (deep / "tiny.txt").write_text("")
        assert rayds("detect", tmp_path).exit_code == 1
        assert rayds("detect", tmp_path, "--depth", "2").exit_code == 1
        result = rayds("detect", tmp_path, "--depth", "3")
        assert result.exit_code == 0
        assert f"in {deep}" in result.stdout
        assert rayds("detect", deep.parent, "--depth", "0").exit_code == 1

    def test_json(self, rayds, data):
        found = json.loads(rayds("detect", data, "--json").stdout)
        assert found["detected_formats"] == ["tiny"]
        assert found["rejected_formats"]["rayds"] == {
            "reason": "unmet_requirements",
            "message": "no rayds.json",
        }
        assert found["rejected_formats"]["tiny_result"]["reason"] == "detection_unsupported"
        assert found["found"][0]["path"] == str(data)

    def test_json_when_nothing_fits(self, rayds, tmp_path):
        result = rayds("detect", tmp_path, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["detected_formats"] == []

    def test_a_path_that_is_not_there(self, rayds, tmp_path):
        result = rayds("detect", tmp_path / "none")
        assert result.exit_code == 1
        assert "no such file or folder" in result.stderr


def rayds_format(name: str):
    from rayds.registry import get_format

    return get_format(name)
