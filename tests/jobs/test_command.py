"""What a job's command line becomes: checked by the command itself, paths made absolute, files found, secrets refused."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import ray
from click.exceptions import UsageError as ClickUsageError
from click.testing import CliRunner

from rayds.cli._remote import check_command
from rayds.cli.main import cli
from rayds.errors import UnknownNameError, UsageError
from rayds.jobs import Package, check_secrets, env_file, local_plugins
from rayds.jobs._probe import look

CONVERT = ["convert", "-i", "s3://b/coco", "-if", "coco", "-f", "voc", "-o", "s3://b/voc"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def words(*command):
    return check_command(command, cli).shipped(lambda path: f"files/{Path(path).name}")


class TestCheck:
    @pytest.mark.parametrize(
        ("command", "error", "text"),
        [
            (["convrt"], UnknownNameError, "convert"),
            (["convert", "-i", "s3://b/x"], ClickUsageError, "-f"),
            (["convert", "-i", "s3://b/x", "-f", "coc"], UnknownNameError, "coco"),
            (["convert", "-i", "s3://b/x", "-f", "coco", "-if", "vok"], UnknownNameError, "voc"),
            ([*CONVERT, "--nope"], ClickUsageError, "--nope"),
            ([*CONVERT, "--on-error", "explode"], ClickUsageError, "explode"),
            ([*CONVERT, "--read", "nope=1"], UsageError, "nope"),
            ([*CONVERT, "--shard-by", "id"], UsageError, "--shards"),
            ([*CONVERT, "--engine", "local", "--address", "auto"], UsageError, "local"),
            ([*CONVERT, "--", "--labl-map", "x"], UsageError, "label-map"),
            ([*CONVERT, "--", "--help"], UsageError, "without submit"),
            (["convert", "-i", "memory://x", "-f", "coco"], UsageError, "memory://"),
            (["submit", "--", "formats"], UsageError, "no job"),
            (["jobs", "list"], UsageError, "no job"),
            ([], UsageError, "after --"),
        ],
    )
    def test_mistakes_are_those_of_the_command(self, command, error, text):
        with pytest.raises(error) as e:
            words(*command)
        assert text in (e.value.format_message() if isinstance(e.value, ClickUsageError) else str(e.value))

    def test_submit_tells_them_as_bad_usage_before_it_asks_the_cluster(self):
        nobody = "http://127.0.0.1:9"
        result = CliRunner().invoke(cli, ["submit", "--address", nobody, "--", "convert", "-f", "coc"])
        assert result.exit_code == 2
        assert "Did you mean 'coco'" in result.stderr
        assert CliRunner().invoke(cli, ["submit", "--address", nobody, "--", *CONVERT]).exit_code == 1

    def test_a_typo_takes_about_a_second(self):
        command = [sys.executable, "-m", "rayds", "submit", "--", "convert", "-f", "coc"]
        done = subprocess.run(
            [*command[:1], "-X", "importtime", *command[1:]], capture_output=True, text=True
        )
        assert done.returncode == 2
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert loaded.isdisjoint({"ray", "requests", "aiohttp", "duckdb"})  # what takes the time


class TestWords:
    def test_the_cluster_is_the_one_that_the_job_runs_on(self):
        assert words(*CONVERT)[-2:] == ["--address", "auto"]
        assert "auto" not in words(*CONVERT, "--engine", "local")
        assert words(*CONVERT, "--address", "10.0.0.1:6379").count("--address") == 1
        assert words("formats", "coco") == ["formats", "coco"]

    def test_local_paths_are_absolute_and_known(self, tmp_path):
        remote = check_command(["convert", "-i", "coco", "-f", "voc", "-o", "../out"], cli)
        assert remote.inputs == [str(tmp_path / "coco")]
        assert [os.path.normpath(p) for p in remote.outputs] == [str(tmp_path.parent / "out")]
        assert remote.words[:3] == ["convert", "--input-path", str(tmp_path / "coco")]

    def test_the_default_folder_is_the_one_here(self, tmp_path):
        remote = check_command(["convert", "-f", "voc"], cli)
        assert remote.inputs == [str(tmp_path)]
        assert str(tmp_path) in remote.words
        assert check_command(["detect"], cli).words == ["detect", str(tmp_path)]

    def test_an_archive_in_the_file_system_is_a_local_path(self, tmp_path):
        remote = check_command(["convert", "-i", "zip://coco::data.zip", "-f", "voc"], cli)
        assert remote.inputs == [str(tmp_path / "data.zip")]
        assert f"zip://coco::{tmp_path / 'data.zip'}" in remote.words
        assert check_command(["detect", "zip://coco::s3://b/data.zip"], cli).inputs == []

    def test_repeated_options_flags_and_words_after_dashes_stay(self):
        got = words(*CONVERT, "--save-media", "--", "--label-map", "voc", "--allow-attributes=false")
        assert "--save-media" in got
        assert got[-4:] == ["--", "--label-map", "voc", "--allow-attributes=false"]
        assert check_command(got, cli).words == got  # and they mean the same there

    def test_named_files_go_along(self, tmp_path):
        (tmp_path / "labels.txt").write_text("a\n")
        (tmp_path / "source").write_text("a file of the name of a choice")
        assert words(*CONVERT, "--", "--label-map", "labels.txt")[-1] == "files/labels.txt"
        assert words(*CONVERT, "--", "--label-map=./labels.txt")[-1] == "--label-map=files/labels.txt"
        assert words(*CONVERT, "--", "--label-map", "source")[-1] == "source"


@pytest.mark.parametrize(
    "command",
    [
        ["-i", "s3://me:hunter2@b/x"],
        ["-i", "https://b.example/x?X-Amz-Signature=hunter2"],
        ["--secret-key", "hunter2"],
        ["--read", "secret=hunter2"],
        ["--", "--api-key=hunter2"],
        ["--read", "key=hunter2"],
        ["--read", "access_key=hunter2"],
        ["--", "--auth-token", "hunter2"],
    ],
)
def test_secrets_on_the_command_line_are_refused_and_not_repeated(command):
    with pytest.raises(UsageError, match="--env-file") as e:
        check_secrets(command)
    assert "hunter2" not in str(e.value)


def test_what_is_no_secret_goes():
    check_secrets(
        [
            *CONVERT,
            "--",
            "--keypoints",
            "--key-points=x",
            "--tokens-file",
            "a",
            "--save-media",
            "s3://b/key/x",
        ]
    )


class TestEnvFile:
    def test_lines(self, tmp_path):
        path = tmp_path / "env"
        path.write_text("# a comment\nA=1\n\nexport B = 'two words'\nC=x=y\n")
        assert env_file(path) == {"A": "1", "B": "two words", "C": "x=y"}

    def test_a_bad_line_is_named_without_what_it_says(self, tmp_path):
        path = tmp_path / "env"
        path.write_text("A=1\nhunter2\n")
        with pytest.raises(UsageError, match="line 2") as e:
            env_file(path)
        assert "hunter2" not in str(e.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(UsageError, match="nothing"):
            env_file(tmp_path / "nothing")


class TestPackage:
    def run(self, root, code):
        """Run code where only this folder and the packages beside Ray are on the path."""
        path = [str(root), str(Path(ray.__file__).parents[1])]
        code = f"import sys\nsys.path[:0] = {path!r}\n{code}"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()

    def test_rayds_works_from_it_with_its_entry_points(self, tmp_path):
        package = Package(tmp_path / "job")
        assert package.add_rayds() == metadata.version("rayds")
        assert not list((tmp_path / "job").rglob("__pycache__"))
        code = "import rayds\nfrom rayds.registry import get_format\nprint(rayds.__file__, get_format('coco').title, sep='\\n')"
        file, title = self.run(tmp_path / "job", code).splitlines()
        assert file == str(tmp_path / "job" / "rayds" / "__init__.py")
        assert title
        for kind in ("formats", "ops", "launchers"):
            assert (tmp_path / "job" / "rayds" / kind / "__init__.py").is_file()

    def test_its_content_is_the_same_as_where_it_came_from(self, tmp_path):
        from rayds.jobs import _probe, rayds_digest

        Package(tmp_path / "job").add_rayds()
        (tmp_path / "job/rayds/_files.cpython-399-darwin.so").write_bytes(b"of another platform")
        assert _probe.digest({"rayds": str(tmp_path / "job" / "rayds")}) == rayds_digest()
        (tmp_path / "job/rayds/item.py").write_text("")
        assert _probe.digest({"rayds": str(tmp_path / "job" / "rayds")}) != rayds_digest()

    def test_local_plugins_go_along(self, tmp_path, monkeypatch):
        plugin = Path(__file__).parents[1] / "cli" / "plugin"
        monkeypatch.syspath_prepend(str(plugin))
        dists = {d.name: d for d in local_plugins()}
        assert "tiny" in dists
        assert "rayds" not in dists
        package = Package(tmp_path / "job")
        package.add_rayds()
        package.add_plugin(dists["tiny"])
        code = "from rayds.registry import get_format\nprint(get_format('tiny').title)"
        assert "made for tests" in self.run(tmp_path / "job", code)

    def test_files_keep_their_names_and_a_model_its_weights(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "m.xml").write_text(folder)
            (tmp_path / folder / "m.bin").write_text("weights")
        package = Package(tmp_path / "job")
        first, second = (package.add_file(tmp_path / f / "m.xml") for f in ("a", "b"))
        assert first != second
        assert (tmp_path / "job" / second).read_text() == "b"
        assert (tmp_path / "job" / second).with_name("m.bin").read_text() == "weights"
        assert package.add_file(tmp_path / "a" / "m.xml") == first

    def test_large_files_are_refused_with_the_way_out(self, tmp_path, monkeypatch):
        monkeypatch.setattr("rayds.jobs.packing.MAX_BYTES", 1000)
        (tmp_path / "large.onnx").write_bytes(bytes(1001))
        with pytest.raises(UsageError, match=r"large\.onnx.*bucket"):
            Package(tmp_path / "job").add_file(tmp_path / "large.onnx")


def test_look_tells_changed_data_from_the_same(tmp_path):
    assert look(str(tmp_path / "nothing")) is None
    (tmp_path / "a").write_text("1")
    first = look(str(tmp_path))
    assert look(str(tmp_path)) == first
    (tmp_path / "a").write_text("12")
    assert look(str(tmp_path)) != first


def test_commands_of_several_datasets_and_of_projects(tmp_path):
    from rayds.project import Project

    made = check_command(["merge", "a:coco", "s3://b/x:voc", "-m", "exact", "-o", "all", "-f", "rayds"], cli)
    assert made.inputs == [str(tmp_path / "a")]
    assert made.outputs == [str(tmp_path / "all")]
    assert made.words[-2:] == [f"{tmp_path / 'a'}:coco", "s3://b/x:voc"]
    made = check_command(["diff", "a", "b:datumaro", "--json"], cli)
    assert made.inputs == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert "--address" in made.words
    with pytest.raises(UsageError, match="at least two"):
        check_command(["merge", "a"], cli)
    Project.create(str(tmp_path / "p"))
    made = check_command(["export", "-p", "p", "-f", "voc", "-o", "s3://b/out"], cli)
    assert made.inputs == [str(tmp_path / "p")]
    assert str(tmp_path / "p") in made.words


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("add -f cocoo x", "Did you mean"),
        ("add -f coco x -- --keep-original-category", "unknown option"),
        ("source add -f coco a b", "name one dataset"),
        ("import -f coco", "name the dataset"),
        ("import -i x -f vocc -o p", "Did you mean"),
        ("import x -o p", "make a new project"),
        ("project import -i x -f coco -o p -- --nothing", "unknown option"),
        ("remove -p p", "name the source"),
        ("info -i x -if cocoo", "Did you mean"),
        ("project merge other -f vocc", "Did you mean"),
    ],
)
def test_mistakes_in_commands_of_projects_are_found_here(command, text):
    with pytest.raises((UsageError, ClickUsageError, UnknownNameError), match=text):
        check_command(command.split(), cli)


def test_the_input_that_is_not_named_is_the_project_around(tmp_path, monkeypatch):
    from rayds.project import Project

    assert words("convert", "-f", "voc", "-o", "s3://b/v")[-4:] == ["-i", str(tmp_path), "--address", "auto"]
    Project.create(str(tmp_path))
    assert words("filter", "-e", "/item[id = 1]", "-o", "s3://b/v")[-4:-2] == ["-p", str(tmp_path)]
    with pytest.raises(UsageError, match="is no XPath"):
        words("filter", "-e", "/item[")
    with pytest.raises(UsageError, match="unknown option"):
        words("transform", "-t", "rename", "--", "--regx", "x")
