"""The `rayds` command itself: help, errors, exit codes, interruption, progress. Mostly in its own process."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from rayds import Bbox, Dataset, DatasetItem, Image, __version__
from rayds.cli.main import COMMANDS
from rayds.errors import DataError
from rayds.format import Expected


def test_help_lists_all_commands(rayds):
    for words in (["--help"], ["-h"], []):
        result = rayds(*words)
        assert result.exit_code == 0
        for name, entry in COMMANDS.items():
            assert f"  {name} " in result.stdout
            assert entry.help in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_fits_a_terminal_and_shows_examples(rayds, name):
    result = rayds(name, "--help")
    assert result.exit_code == 0
    assert f"rayds {name}" in result.stdout.split("Examples:")[1]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_version(rayds):
    assert rayds("--version").stdout == f"rayds {__version__}\n"


def test_an_unknown_command_suggests_the_nearest(rayds):
    result = rayds("convrt")
    assert result.exit_code == 2
    assert (
        result.stderr == "error: unknown command 'convrt'. Did you mean 'convert' or 'import' or 'export'?\n"
    )


def test_an_unknown_option_names_the_page_with_all(rayds):
    result = rayds("convert", "--nope")
    assert result.exit_code == 2
    assert "Try 'rayds convert --help'" in result.stderr.replace("cli ", "rayds ")


def test_in_its_own_process_results_and_messages_are_apart(start, data):
    process = start("convert", "-i", "pets", "-f", "tiny", "-o", "out", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["path"] == str(data.parent / "out")
    assert err == "detected format: tiny\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["convert", "-i", "nothing", "-f", "tiny"], 1),
        (["convert", "-i", "pets", "-f", "nothing"], 2),
        (["nothing"], 2),
    ],
)
def test_exit_codes(start, data, words, code):
    process = start(*words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_mistake_in_a_plugin_is_told_in_one_line_and_with_its_traceback_when_asked(
    rayds, data, monkeypatch
):
    (data / "tiny.txt").write_text("a bug\n")
    words = ["convert", "-i", data, "-f", "tiny"]
    result = rayds(*words)
    assert result.exit_code == 1
    assert "error: internal error: RuntimeError: a mistake in the plug-in" in result.stderr
    assert "Traceback" not in result.stderr
    for result in (rayds("--debug", *words), rayds(*words, "--debug")):
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert "error: internal error" in result.stderr
    monkeypatch.setenv("RAYDS_DEBUG", "1")
    assert "Traceback" in rayds(*words).stderr


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_job_leaves_nothing(start, data, stop, code):
    (data / "tiny.txt").write_text("".join(f"{i} cat 1 2 3 4\n" for i in range(10_000)))
    process = start("convert", "-i", "pets", "-f", "tiny", "-o", "out", "--read", "delay=0.01")
    deadline = time.monotonic() + 60
    while not list(data.parent.glob("out.*/data/.parts/*")):  # it writes
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert stop != signal.SIGINT or "error: interrupted" in err
    assert "Traceback" not in err
    assert out == ""
    assert [p.name for p in data.parent.iterdir()] == ["pets"]


def test_a_reader_that_goes_away_ends_it_quietly(start, data):
    process = start("formats", "tiny", "--json")
    process.stdout.close()
    assert process.wait(timeout=60) != 0
    assert process.stderr.read() == ""


def test_a_broken_plugin_warns_in_one_line(rayds, tmp_path, monkeypatch):
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rayds.formats]\nbroken = nowhere:Broken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = rayds("formats")
    assert result.exit_code == 0
    warning = next(line for line in result.stderr.splitlines() if "'broken'" in line)
    assert warning.startswith("warning: ")
    assert "nowhere" in warning


class TestProgress:
    def test_lines_where_stderr_is_no_terminal(self, capsys, monkeypatch):
        from rayds.cli import _progress

        monkeypatch.setattr(_progress, "INTERVAL", 0.05)
        with _progress.progress("writing", total=Expected(400, exact=True)) as advance:
            advance(100)
            time.sleep(0.2)
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert lines[0].startswith("writing: 100 of 400 items, ")
        assert "items/s" in lines[0]
        assert lines[0].endswith(" left")
        assert "about" not in lines[0]

    def test_what_is_estimated_is_called_about(self, capsys, monkeypatch):
        from rayds.cli import _progress

        monkeypatch.setattr(_progress, "INTERVAL", 0.05)
        with _progress.progress("writing", total=Expected(400, exact=False)) as advance:
            advance(100)
            time.sleep(0.2)
            advance(350)
            time.sleep(0.2)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("writing: 100 of about 400 items, ")
        assert re.search(r", about \d+:\d\d left$", lines[0])
        assert lines[-1].startswith("writing: 450 items, ")  # more than expected: no more is claimed
        assert "left" not in lines[-1]

    def test_a_line_shows_that_the_job_lives_before_the_first_item(self, capsys, monkeypatch):
        from rayds.cli import _progress

        monkeypatch.setattr(_progress, "INTERVAL", 0.05)
        with _progress.progress("writing"):
            time.sleep(0.2)
        assert capsys.readouterr().err.startswith("writing: no items yet, 0:00 elapsed\n")

    def test_no_lines_when_quiet_or_soon_done(self, capsys):
        from rayds.cli._progress import progress

        for quiet in (True, False):
            with progress("writing", quiet) as advance:
                advance(100)
        assert capsys.readouterr().err == ""

    def test_a_bar_on_a_terminal(self, data):
        (data / "tiny.txt").write_text("".join(f"{i} cat 1 2 3 4\n" for i in range(60)))
        shown, code = in_terminal("convert", "-i", data, "-f", "tiny", "--read", "delay=0.02")
        assert code == 0
        assert "converting to tiny" in shown
        assert "items/s" in shown
        assert "60 items -> " in shown

    def test_the_time_left_of_coco_on_a_terminal(self, tmp_path):
        items = [
            DatasetItem(i, [Bbox(1, 2, 3, 4, label=0)], image=Image(f"{i}.jpg", size=(9, 9)))
            for i in range(30)
        ]
        Dataset.from_iterable(items, ["cat"]).export(str(tmp_path / "in"), "coco")
        shown, code = in_terminal("convert", "-i", tmp_path / "in", "-if", "coco", "-f", "tiny")
        assert code == 0
        assert "left, about" in shown

    def test_nothing_is_estimated_when_quiet(self, rayds, data, monkeypatch):
        monkeypatch.setattr(Dataset, "expected", None)  # can't be called
        assert rayds("convert", "-i", data, "-f", "tiny", "--quiet").exit_code == 0

    def test_no_bar_on_a_terminal_when_quiet(self, data):
        shown, code = in_terminal("convert", "-i", data, "-f", "tiny", "--quiet")
        assert code == 0
        assert "converting" not in shown

    def test_no_colours_when_not_wanted(self, data):
        shown, code = in_terminal("convert", "-f", "nothing", NO_COLOR="1")
        assert code == 2
        assert shown.startswith("error: unknown format")
        coloured, _ = in_terminal("convert", "-f", "nothing")
        assert coloured.startswith("\x1b[")


def in_terminal(*words: object, **env: str) -> tuple[str, int]:
    """What a command line shows on a terminal, and its exit code."""
    plugin = os.path.join(os.path.dirname(__file__), "plugin")
    keep = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rayds", *map(str, words)],
        env={**keep, "PYTHONPATH": plugin, "TERM": "xterm", "COLUMNS": "100", **env},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    return shown.decode(), process.wait(timeout=60)


def test_an_error_of_the_data_keeps_all_it_knows():
    from rayds.cli.main import failure

    error = DataError("bad", file="f.json", item="a", place="line 3", remedy="Repair it")
    assert failure(error).format_message() == "f.json, line 3, item 'a': bad. Repair it"


def test_a_plugin_that_needs_a_package_says_which(rayds, tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import no_such_package_xyz\n")
    info = tmp_path / "needy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: needy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rayds.formats]\nneedy = needy:Needy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = rayds("formats", "needy")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the format 'needy' needs a package that is not installed: ")
    assert "no_such_package_xyz" in result.stderr
