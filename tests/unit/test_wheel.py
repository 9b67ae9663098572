"""The wheel: it has every file that runs, and works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from quickstart import ROOT, few_steps

PACKAGES = ("ttmoe", "workers", "orchestrator", "cluster")
NOT_RUN = "cluster/images/"  # what images are built from


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built in a copy of it: a build leaves files behind."""
    folder, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("tree")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, "."], cwd=copy, check=True)
    (built,) = folder.glob("ttmoe-*.whl")
    return built


def test_the_wheel_has_every_file_that_runs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entries,) = (archive.read(name) for name in archive.namelist() if name.endswith("/entry_points.txt"))
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    there = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert packed == {name for name in there if not name.startswith(NOT_RUN)}
    assert {"orchestrator/recipes/quickstart.yaml", "orchestrator/report/page.html.j2"} <= packed
    assert b"ttmoe = orchestrator.cli:main" in entries


@pytest.mark.thorough
def test_the_wheel_runs_the_quickstart_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    """Minutes: everything that it needs is installed at the pins."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, env=env)
    python, script = (tmp_path / "env" / "bin" / name for name in ("python", "ttmoe"))
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*command, f"{wheel}[quickstart]"], check=True, env=env)
    done = subprocess.run([script, "run", "quickstart", *few_steps()], cwd=tmp_path, env=env, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Routing accuracy" in done.stdout
