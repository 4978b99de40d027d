"""The documentation: its examples run, its generated parts are in step, its links lead somewhere.

Blocks of ```python run in order in one namespace a page; a ```text block right after one is what it prints.
In ```console blocks the lines `$ rayds ...` run, and what follows them is what they print (`...`: anything). All in a
folder that holds the demonstration's dataset as coco/, and that the pages call /data. `<!-- no-run -->` before a block leaves it out.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import rayds
import rayds.engine
from rayds.cli.main import cli
from rayds.schema import ANNOTATION_TYPE, ITEM_SCHEMA, MEDIA_TYPE

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"(<!-- no-run -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.yaml)\n")  # a file that the examples after it use
SECONDS = re.compile(r"\b\d+\.\d s\b")


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that run."""
    text = page.read_text()
    found: list[Block] = []
    end = -1
    for m in BLOCK.finditer(text):
        block = Block(m[2], m[3], text.count("\n", 0, m.start(2)) + 1)
        if block.language == "text" and found and not text[end : m.start()].strip():
            found[-1] = Block(found[-1].language, found[-1].text, found[-1].line, block.text)
        elif not m[1] and (
            block.language in ("python", "console") or (block.language == "yaml" and FILE.match(block.text))
        ):
            found.append(block)
        end = m.end()
    return found


def check(wanted: str, got: str, where: str) -> None:
    """Fail unless the output is the wanted one; seconds may differ."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    wanted, got = (SECONDS.sub("0.0 s", text.strip()) + "\n" for text in (wanted, got))
    if wanted == "...\n" or doctest.OutputChecker().check_output(wanted, got, flags):
        return
    pytest.fail(f"{where}: the page says\n{wanted}\nbut it is\n{got}", pytrace=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset of the demonstration as coco/."""
    folder = tmp_path_factory.mktemp("docs")
    load(ROOT / "examples" / "demo.py").make_coco(folder / "coco")
    return folder


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy of it, the current folder; `auto` takes the local engine even if other tests started Ray."""
    shutil.copytree(data, tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setattr(rayds.engine, "_ray_runs", lambda: False)
    return tmp_path / "data"


def run_python(block: Block, namespace: dict[str, Any], folder: Path, where: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile("\n" * block.line + block.text, where, "exec", dont_inherit=True), namespace)
    if block.output is not None:
        check(block.output, out.getvalue().replace(str(folder), "/data"), where)


def run_console(block: Block, folder: Path, where: str) -> None:
    for part in re.split(r"^\$ ", block.text.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        words = shlex.split(command.replace("/data", str(folder)), comments=True)
        if words[0] != "rayds":
            continue
        result = CliRunner().invoke(cli, words[1:], prog_name="rayds")
        got = result.output.replace(str(folder), "/data")
        assert result.exit_code == (1 if "\nerror:" in f"\n{got}" else 0), got
        if wanted.strip():
            check(wanted, got, f"{where}: {command}")
        assert wanted.strip() == "..." or ("error:" in wanted) == ("error:" in got), got


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_examples_run(page, folder):
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "python":
            run_python(block, namespace, folder, where)
        elif file := FILE.match(block.text):
            (folder / file[1]).write_text(block.text)
        else:
            run_console(block, folder, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
@pytest.mark.filterwarnings("ignore:the format plug-in")
def test_generated_parts_are_in_step(page):
    update = load(ROOT / "docs" / "update.py")
    assert page.read_text() == update.updated(page.read_text()), "run: python docs/update.py"


def test_every_format_has_its_section():
    text = (ROOT / "docs" / "formats.md").read_text()
    for name in rayds.registry.names("formats"):
        assert re.search(rf"^<!-- generated: format {name} -->$", text, re.MULTILINE), (
            f"no section for {name}"
        )


def test_every_command_has_its_help():
    from rayds.cli.main import COMMANDS

    text = (ROOT / "docs" / "command-line.md").read_text()
    for name in COMMANDS:
        assert f"<!-- generated: help {name} -->" in text


def test_the_schema_is_the_documented_one():
    text = (ROOT / "docs" / "data-model.md").read_text()
    for schema in (ITEM_SCHEMA, ANNOTATION_TYPE, MEDIA_TYPE):
        for field in schema:
            kind = re.sub(r"<.*", "", str(field.type)).replace("double", "float64")
            assert re.search(rf"^\| `{field.name}` \| {kind}\b", text, re.MULTILINE), f"{field.name} {kind}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_name_no_machine(page):
    assert not re.search(r"/root\b|/work\b|/home/\w", page.read_text())
