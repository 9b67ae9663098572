"""The files that images are built from: read, and their steps run one by one where no container engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from quickstart import ROOT

IMAGES = ("cpu", "cuda")
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def steps(image: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments."""
    text = (ROOT / "cluster" / "images" / f"Dockerfile.{image}").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines.splitlines() if line]


def arguments(image: str, instruction: str) -> list[str]:
    return [rest for name, rest in steps(image) if name == instruction]


def pip_steps(image: str) -> list[str]:
    return [rest for rest in arguments(image, "RUN") if "pip install" in rest]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_starts_from_a_version_and_ends_as_a_user(image):
    (base,) = arguments(image, "FROM")
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", base)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", arguments(image, "USER")[-1])  # Kubernetes reads no names
    names = [name for name, _ in steps(image)]
    assert "RUN" not in names[names.index("USER") :]
    assert "org.opencontainers.image.title" in arguments(image, "LABEL")[0]


@pytest.mark.parametrize("image", IMAGES)
def test_its_packages_have_the_pinned_versions_and_leave_no_cache(image):
    torch, rest = pip_steps(image)
    for step in (torch, rest):
        assert "--constraint constraints.txt" in step
        assert "--no-cache-dir" in step
    assert torch.endswith(' --index-url "$TORCH_INDEX" torch')  # in the version of the constraints
    assert rest.endswith(' "$(ls ttmoe-*.whl)[quickstart]"')
    assert {"torch", "ray"} <= PINS.keys()
    (apt,) = (step for step in arguments(image, "RUN") if "apt-get" in step)
    assert "rm -rf /var/lib/apt/lists/*" in apt
    assert {"wget", "rsync", "openssh-client"} <= set(apt.split())


def test_the_cuda_of_torch_is_that_of_the_image():
    (base,), (index,) = arguments("cuda", "FROM"), arguments("cuda", "ARG")
    major, minor = re.match(r"nvidia/cuda:(\d+)\.(\d+)\.", base).groups()
    assert index.endswith(f"/cu{major}{minor}")
    assert arguments("cpu", "ARG")[0].endswith("/cpu")


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_exists_and_reaches_the_builder(image):
    shown = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    (copied,) = arguments(image, "COPY")
    constraints, wheel, target = copied.split()
    assert (ROOT / constraints).is_file()
    assert fnmatch("dist/ttmoe-0.1.0-py3-none-any.whl", wheel)  # where `make wheel` puts it
    assert target == "./"
    assert all(any(fnmatch(source, pattern) for pattern in shown) for source in (constraints, wheel))


@pytest.mark.parametrize("image", IMAGES)
def test_its_commands_are_ones_that_a_shell_reads(image):
    for step in arguments(image, "RUN"):
        done = subprocess.run(["sh", "-n"], input=step, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_make_says_what_to_install_where_no_engine_answers(tmp_path):
    """A docker whose daemon does not run is there, but does not answer."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text("#!/bin/sh\nexit 1\n")
    (programs / "docker").chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:/usr/bin:/bin", "MAKEFLAGS": ""}
    command = ["make", "image", "--old-file=wheel", f"VENV={sys.prefix}"]
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "no container engine answers: install docker or podman" in done.stderr
    (programs / "podman").write_text('#!/bin/sh\n[ "$1" = info ] || echo "podman $*"\n')
    (programs / "podman").chmod(0o755)
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, check=True)
    assert "podman build --file cluster/images/Dockerfile.cpu --tag ttmoe:cpu ." in done.stdout


@pytest.mark.thorough
def test_the_steps_of_the_cpu_image_give_ray_and_ttmoe(tmp_path):
    """Its packages, installed step by step into a new environment. Minutes."""
    place = tmp_path / "place"
    place.mkdir()
    env = {**os.environ, "PATH": f"{tmp_path / 'env' / 'bin'}:{os.environ['PATH']}"}
    env.pop("PYTHONPATH", None)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, env=env)
    subprocess.run(["make", "wheel", f"VENV={tmp_path / 'env'}"], cwd=ROOT, check=True, env=env)
    for source in arguments("cpu", "COPY")[0].split()[:-1]:
        for path in ROOT.glob(source):
            shutil.copy(path, place)
    env["TORCH_INDEX"] = os.environ.get("TORCH_INDEX") or arguments("cpu", "ARG")[0].partition("=")[2]
    for step in pip_steps("cpu"):
        subprocess.run(["sh", "-c", step], cwd=place, env=env, check=True)
    for command, answer in {
        "ray --version": PINS["ray"],
        "ttmoe --help": "submit",
        "python -c 'import torch; print(torch.__version__)'": PINS["torch"],
    }.items():
        done = subprocess.run(command, shell=True, cwd=place, env=env, text=True, capture_output=True, check=True)
        assert answer in done.stdout
