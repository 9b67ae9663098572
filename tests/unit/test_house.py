"""The house: who may import whom, and what a package must hold. Imports are read, not run."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "ttmoe": {"ttmoe"},
    "workers": {"workers", "ttmoe"},
    "cluster": {"cluster"},
    "orchestrator": {"orchestrator", "workers", "ttmoe", "cluster"},
}
PLACES = {
    "ray": (
        "cluster/",
        "orchestrator/pool/ray_workers.py",
        "orchestrator/pool/worker_actor.py",
        "orchestrator/pool/worker_failure.py",
        "orchestrator/pool/worker_group.py",
        "orchestrator/predict/ray_data.py",
        "orchestrator/search/",
    ),
    "deepspeed": ("workers/training/engines/",),
    "mlflow": ("orchestrator/registry/",),
    "tenacity": ("orchestrator/registry/retrying.py",),
    "typer": ("orchestrator/cli/",),
    "rich": ("orchestrator/",),
    "optuna": ("orchestrator/search/",),
    "matplotlib": ("orchestrator/report/",),
    "jinja2": ("orchestrator/report/", "cluster/"),
    "requests": ("orchestrator/registry/",),
    "sqlalchemy": ("orchestrator/registry/",),
    "yaml": ("orchestrator/", "cluster/kuberay_manifest.py", "cluster/launcher.py"),  # files of others that are YAML
    "jsonschema": ("cluster/kuberay_manifest.py", "cluster/launcher.py"),
    "pydantic": ("orchestrator/", "workers/", "cluster/"),
    "humanize": ("orchestrator/plan/quantities.py", "orchestrator/pool/capacity.py"),
    "psutil": (
        "cluster/",
        "orchestrator/registry/process_identity.py",
        "workers/system_metrics.py",
        "workers/training/engines/",
        "workers/training/memory_limit.py",
    ),
    "pip": (),
}
# The type variables of decorators; a suite and the module of the same name in another package.
SHARED_NAMES = {"P", "R"}
SOURCES = sorted(path for house in MAY_IMPORT for path in (ROOT / house).rglob("*.py"))


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and whole name of every import in the file, those inside functions included."""
    return tuple(read_imports(path))


def read_imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: an import that cannot be read"
            yield node.lineno, str(name.value)


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_read() -> None:
    names = {where(path) for path in SOURCES}
    assert {"orchestrator/cli/commands.py", "workers/training/loop.py", "ttmoe/bank.py", "cluster/local.py"} <= names


@pytest.mark.parametrize("house", MAY_IMPORT)
def test_imports_run_one_way(house: str) -> None:
    stray = [
        f"{where(path)}:{line} imports {name}"
        for path in SOURCES
        if path.is_relative_to(ROOT / house)
        for line, name in imports(path)
        if name.split(".")[0] in MAY_IMPORT.keys() - MAY_IMPORT[house]
    ]
    assert not stray


def suites() -> dict[str, list[str]]:
    """The suites of each package from the top down, as CONTRIBUTING's map lists them."""
    found: dict[str, list[str]] = {}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for line in text.split("```")[1].splitlines():
        if top := re.match(r"(\w+)/", line):
            found[top[1]] = []
        elif name := re.match(r"  (\w+)", line):
            list(found.values())[-1].append(name[1])
    return found


@pytest.mark.parametrize("house", ["orchestrator", "workers"])
def test_the_map_names_every_suite(house: str) -> None:
    there = {path.stem for path in (ROOT / house).iterdir() if path.is_dir() or path.suffix == ".py"}
    assert set(suites()[house]) == there - {"__init__", "__pycache__", "recipes" if house == "orchestrator" else ""}


@pytest.mark.parametrize("house", ["orchestrator", "workers"])
def test_imports_run_downwards_between_suites(house: str) -> None:
    order = suites()[house]
    stray = [
        f"{where(path)}:{line} imports {name}"
        for path in SOURCES
        if path.is_relative_to(ROOT / house) and (suite := where(path).split("/")[1].removesuffix(".py")) in order
        for line, name in imports(path)
        if name.startswith(f"{house}.") and order.index(name.split(".")[1]) < order.index(suite)
    ]
    assert not stray


def test_no_imports_run_in_a_circle() -> None:
    """Imports inside functions and those for type checkers count."""
    module_of = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES
    }
    graph = {
        module: {name for _, name in imports(path)} & set(module_of.values()) for path, module in module_of.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def public_names(path: Path) -> Iterator[str]:
    """Every public name that a module defines at its top level."""
    for node in ast.parse(path.read_text()).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def test_no_two_modules_define_the_same_name() -> None:
    """One name for one thing, in all packages; a module's name stands for one thing too."""
    found: dict[str, list[str]] = {}
    for path in SOURCES:
        for name in {*public_names(path), f"module {path.stem}"} - {"module __init__"}:
            found.setdefault(name, []).append(where(path))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_NAMES}


@pytest.mark.parametrize("library", PLACES)
def test_a_library_is_imported_in_its_places_alone(library: str) -> None:
    stray = [
        f"{where(path)}:{line} imports {name}"
        for path in SOURCES
        for line, name in imports(path)
        if name.split(".")[0] == library and not where(path).startswith(PLACES[library])
    ]
    assert not stray


def test_a_line_that_runs_back_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "sneaky.py"
    path.write_text(
        "def f():\n    if True:\n        from orchestrator.plan.planning import Plan\n    import ray.tune as t\n"
    )
    assert sorted(imports(path)) == [(3, "orchestrator.plan.planning"), (4, "ray.tune")]


def test_the_import_names_resolve_to_this_tree(tmp_path: Path) -> None:
    """They are generic words; another distribution could bring packages of the same names."""
    code = (
        "import cluster, orchestrator, ttmoe, workers\n"
        "for m in (cluster, orchestrator, ttmoe, workers): print(m.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    names = ("cluster", "orchestrator", "ttmoe", "workers")
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in names]


def test_what_is_installed_holds_every_module_and_recipe() -> None:
    """Setuptools takes folders with an ``__init__.py``, and of other files those that pyproject.toml names."""
    packages = {path.parent for path in SOURCES}
    assert not [where(folder) for folder in packages if not (folder / "__init__.py").is_file()]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    taken = settings["packages"]["find"]["include"]
    dotted = [where(folder).replace("/", ".") for folder in packages]
    assert not [name for name in dotted if not any(fnmatch.fnmatch(name, pattern) for pattern in taken)]
    patterns = [f"{package}/{glob}" for package, globs in settings["package-data"].items() for glob in globs]
    files = [
        where(path)
        for house in MAY_IMPORT
        for path in (ROOT / house).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.parent.name != "images"  # they build it
    ]
    assert "orchestrator/recipes/quickstart.yaml" in files
    assert not [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
