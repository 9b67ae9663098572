"""Every call site of files and network fails once, in every command: no traceback reaches the terminal."""

from __future__ import annotations

import traceback
from pathlib import Path

import predict_library
import pytest
import tiny
from commands import here
from fault_injection import CODES, injected, installed

pytestmark = pytest.mark.integration


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
def test_no_fault_ends_in_a_traceback(library, name, capsys):
    injector = installed()
    refresh(library)
    here(library, *COMMANDS[name])  # imports, caches
    refresh(library)
    with injector.recorded() as sites:
        done = here(library, *COMMANDS[name])
    assert done.code == 0, done.err
    assert sites
    wrong = []
    for number, site in enumerate(sorted(sites)):
        refresh(library)
        try:
            with injector.failing(site, injected(number)):
                done = here(library, *COMMANDS[name])
        except BaseException:
            wrong.append((site, traceback.format_exc()[-600:]))
            continue
        text = done.out + done.err
        if done.code not in CODES or "Traceback" in text or (done.code and "error: " not in text):
            wrong.append((site, done.code, text[-600:]))
    with capsys.disabled():
        print(f"\n{name}: {len(sites)} call sites failed once each")
    assert not wrong, "\n".join(map(str, wrong))
    refresh(library)
    assert here(library, *COMMANDS[name]).code == 0  # nothing was lost
