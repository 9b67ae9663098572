"""Every call site of files and network fails once, in every command: no traceback reaches the terminal.

Python's audit hooks see each file that is opened, renamed, listed or removed and each connection, in libraries too. A
call site is the innermost line of this project in the stack. A fault there is an error of the system (a full disk, a
broken network) in place of the call.
"""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from types import FrameType

import predict_library
import pytest
import tiny
from commands import here

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("ttmoe", "workers", "orchestrator", "cluster"))
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate",
          "os.link", "os.symlink", "shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp",
          "tempfile.mkdtemp", "socket.connect", "socket.bind", "socket.getaddrinfo", "sqlite3.connect"}  # fmt: skip
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)
CODES = {0, 1, 2, 3}  # as the README says; 0 where the work does without the file
Site = tuple[str, int, str]


class Injector:
    """An audit hook, which cannot be removed: it does nothing unless a test asks it to."""

    def __init__(self) -> None:
        self.sites: dict[Site, int] | None = None
        self.fails_at: Site | None = None
        self.error = errno.EIO
        self.failed = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in EVENTS or (self.sites is None and self.fails_at is None):
            return
        if (site := self._site(event, sys._getframe(1))) is None:
            return
        if self.sites is not None:
            self.sites[site] = self.sites.get(site, 0) + 1
        elif site == self.fails_at and not self.failed:
            self.failed = True
            raise OSError(self.error, f"injected: {event}")

    def _site(self, event: str, frame: FrameType | None) -> Site | None:
        while frame is not None:
            name = frame.f_code.co_filename
            if "importlib" in name or name.endswith(("linecache.py", "traceback.py", "pytest/")):
                return None  # modules, and the printing of errors
            if name.startswith(PACKAGES):
                return name.removeprefix(f"{ROOT}/"), frame.f_lineno, event
            frame = frame.f_back
        return None


@pytest.fixture(scope="module")
def injector():
    hook = Injector()
    sys.addaudithook(hook)
    return hook


@pytest.fixture(scope="module")
def library(tmp_path_factory, base_folder, fresh_store):
    """A folder with a library, its config, and rows to predict."""
    folder = tmp_path_factory.mktemp("faults")
    predict_library.register_library(folder / "runs", base_folder, folder / "scratch", fresh_store)
    tiny.write_rows(folder / "rows.jsonl", [{"text": "red north1"}, {"text": "cat south2"}])
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north", 60)
    config = {"library": "new", "base": {"folder": str(base_folder), "max_length": 32},
              "tasks": {"colours": tiny.text_task(Path("colours.jsonl"))}}  # fmt: skip
    import yaml

    (folder / "ttmoe.yaml").write_text(yaml.safe_dump(config))
    return folder


COMMANDS = {
    "plan": ("plan", "ttmoe.yaml"),
    "predict": ("predict", "--file", "rows.jsonl", "--out", "answers.csv"),
    "experts ls": ("experts", "ls"),
    "experts show": ("experts", "show", "colours"),
    "experts export": ("experts", "export", "colours", "exported"),
    "status": ("status",),
    "init": ("init", "written/here.yaml", "--force"),
}


def refresh(folder: Path) -> None:
    """Remove what a command writes, so that each call takes the same steps."""
    import shutil

    for name in ("answers.csv", "exported", "written"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_fault_ends_in_a_traceback(library, injector, name, capsys):
    refresh(library)
    here(library, *COMMANDS[name])  # imports, caches
    refresh(library)
    injector.sites = {}
    done = here(library, *COMMANDS[name])
    sites, injector.sites = sorted(injector.sites), None
    assert done.code == 0, done.err
    assert sites
    wrong = []
    for number, site in enumerate(sites):
        refresh(library)
        injector.fails_at, injector.failed, injector.error = site, False, ERRORS[number % len(ERRORS)]
        try:
            done = here(library, *COMMANDS[name])
        except BaseException:
            wrong.append((site, traceback.format_exc()[-600:]))
            continue
        finally:
            injector.fails_at = None
        text = done.out + done.err
        if done.code not in CODES or "Traceback" in text or (done.code and "error: " not in text):
            wrong.append((site, done.code, text[-600:]))
    with capsys.disabled():
        print(f"\n{name}: {len(sites)} call sites failed once each")
    assert not wrong, "\n".join(map(str, wrong))
    refresh(library)
    assert here(library, *COMMANDS[name]).code == 0  # nothing was lost
