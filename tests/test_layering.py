"""The architecture: imports go one way, heavy packages load where they are used, the public API is what it says."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import rayds

REPO = Path(__file__).parents[1]
FOLDERS = {"rayds": "rayds", "formats": "rayds.formats", "ops": "rayds.ops", "launchers": "rayds.launchers"}
PLUGINS = ("rayds.formats", "rayds.ops", "rayds.launchers")
HEAVY = ("ray", "cv2", "openvino", "duckdb", "matplotlib", "pandas", "s3fs")
USERS = ("rayds.dataset", "rayds.export", "rayds.registry", "rayds.project", "rayds.jobs", "rayds.cli")

# What stands at the bottom; each may import only what is left of it, and its own kind.
BASE = (
    "rayds.errors",
    "rayds.parallel",
    "rayds.sql",
    "rayds.urls",
    "rayds.compiled",
    "rayds.copying",
    "rayds.multipart",
    "rayds.remote",
    "rayds.s3",
    "rayds.archives",
    "rayds.connect",
    "rayds.storage",
    "rayds.listing",
    "rayds.options",
    "rayds.schema",
)
CLI_API = (
    "rayds", "rayds.categories", "rayds.dataset", "rayds.engine", "rayds.errors", "rayds.format", "rayds.jobs", "rayds.op", "rayds.options",
    "rayds.pipeline", "rayds.plugins", "rayds.project", "rayds.registry", "rayds.report", "rayds.storage",
)  # fmt: skip


def _modules() -> dict[str, Path]:
    """All modules of the package by import name."""
    found = {}
    for folder, name in FOLDERS.items():
        for path in sorted((REPO / folder).rglob("*.py")):
            parts = path.relative_to(REPO / folder).with_suffix("").parts
            found[".".join([name, *(p for p in parts if p != "__init__")])] = path
    return found


MODULES = _modules()


def imports(name: str) -> set[str]:
    """The modules of rayds that a module imports, anywhere in it, but not those for type checkers only."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in _nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            members = {f"{base}.{alias.name}" for alias in node.names}
            found |= {m for m in members if m in MODULES}
            if any(m not in MODULES for m in members):
                found.add(base)
    return {m for m in found if m.split(".")[0] == "rayds" and m != name}


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node)


def within(module: str, *packages: str) -> bool:
    """Whether a module is one of the packages or in one."""
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def test_the_modules_are_found():
    assert {"rayds.errors", "rayds.cli.main", "rayds.formats.image_dir"} <= set(MODULES)
    assert "rayds.errors" in imports("rayds.storage")
    assert "rayds.cli._common" in imports("rayds.cli.main")


@pytest.mark.parametrize("name", BASE)
def test_the_base_imports_only_what_is_below_it(name):
    below = BASE[: BASE.index(name)]
    assert imports(name) <= set(below)


@pytest.mark.parametrize("name", [m for m in MODULES if not within(m, *PLUGINS)])
def test_the_core_imports_no_plugin(name):
    assert not [m for m in imports(name) if within(m, *PLUGINS)]
    # nor by its name: the registry finds plug-ins by their entry points
    strings = [n.value for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Constant)]
    assert not [
        s
        for s in strings
        if isinstance(s, str) and re.fullmatch(r"rayds\.(formats|ops|launchers)\.[\w.:]+", s)
    ]


@pytest.mark.parametrize(
    "name",
    [m for m in MODULES if within(m, "rayds.engine", "rayds.schema", "rayds.media", "rayds.storage", "rayds.item",
                                  "rayds.annotations", "rayds.categories", "rayds.format", *PLUGINS)],
)  # fmt: skip
def test_what_datasets_stand_on_does_not_import_them(name):
    assert not [m for m in imports(name) if within(m, *USERS)]


@pytest.mark.parametrize("name", [m for m in MODULES if within(m, *PLUGINS)])
def test_a_plugin_imports_the_core_and_its_own_helpers_only(name):
    kind = next(p for p in PLUGINS if within(name, p))
    own = ".".join(name.split(".")[:3])  # rayds.formats.coco, of rayds.formats.coco.reader
    for module in imports(name):
        if within(module, *PLUGINS):
            helper = within(module, kind) and (module == kind or module.split(".")[2].startswith("_"))
            assert helper or within(module, own), f"{name} imports {module}"


@pytest.mark.parametrize("name", [m for m in MODULES if within(m, "rayds.cli")])
def test_the_command_line_uses_the_api_only(name):
    for module in imports(name):
        assert within(module, "rayds.cli") or module in CLI_API, f"{name} imports {module}"


@pytest.mark.parametrize("name", [m for m in MODULES if not within(m, "rayds.cli") and m != "rayds.__main__"])
def test_nothing_imports_the_command_line(name):
    assert not [m for m in imports(name) if within(m, "rayds.cli")]


def loaded_after(code: str) -> set[str]:
    """The top-level packages loaded after some code ran in a new process."""
    code = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_rayds_loads_nothing_heavy():
    assert loaded_after("import rayds").isdisjoint({*HEAVY, "pyarrow", "numpy", "fsspec", "rich", "click"})


def test_the_api_loads_no_engine_and_no_pixels():
    names = ["Dataset", "DatasetItem", "Image", "Bbox", "LabelCategories", "detect"]
    assert loaded_after("import rayds\n" + "\n".join(f"rayds.{n}" for n in names)).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["convert", "--help"], ["detect", "-h"], ["formats", "-h"]]
)
def test_help_loads_nothing_heavy(words):
    code = f"from rayds.cli.main import cli\ntry:\n    cli({words!r})\nexcept SystemExit as e:\n    assert not e.code"
    assert loaded_after(code).isdisjoint({*HEAVY, "pyarrow", "numpy", "fsspec", "rich"})


class TestPublicApi:
    def test_is_sorted_and_listed(self):
        assert len(rayds.__all__) == len(set(rayds.__all__))  # ruff keeps them in order
        assert dir(rayds) == sorted(rayds.__all__)

    @pytest.mark.parametrize("name", rayds.__all__)
    def test_every_name_is_there(self, name):
        assert getattr(rayds, name) is not None

    @pytest.mark.parametrize("module", ["rayds.errors", "rayds.annotations", "rayds.item", "rayds.dataset"])
    def test_every_public_class_of_what_users_hold_is_exported(self, module):
        made = vars(import_module(module)).items()
        classes = {
            n for n, v in made if isinstance(v, type) and v.__module__ == module and not n.startswith("_")
        }
        assert classes <= set(rayds.__all__)

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="Datasett"):
            rayds.Datasett  # noqa: B018
