"""Every call site of files and network fails once in ``ttmoe run``, in driver and workers: the next command completes.

Units run in the driver's process, so that one hook sees the sites of both; then sites of workers fail on Ray.
"""

from __future__ import annotations

import gc
import secrets
import shutil
import sqlite3
import tempfile
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import scripted_jobs
import tiny
from commands import Done, here, open_registry, statuses, versions
from fault_injection import CODES, Site, injected, installed
from killed_driver import units_inline
from test_driver_killed import CONFIG

from orchestrator.run import stage1
from workers.base import resident

pytestmark = pytest.mark.integration

VERSIONS = {"tiny.colours": 1, "tiny.animals": 1, "tiny.router": 1}
OF_RAY = ("cluster/", "orchestrator/pool/")


@pytest.fixture(scope="module")
def start(base_folder, fresh_store, tmp_path_factory):
    """A folder with the base, the data, the config and an empty registry."""
    folder = tmp_path_factory.mktemp("run-faults") / "start"
    return tiny.write_two_tasks(folder, base_folder, fresh_store, CONFIG)


class Faults:
    """Runs of the command in copies of a folder, with a fault at one site each."""

    def __init__(self, start: Path, patch: pytest.MonkeyPatch) -> None:
        self.start, self.patch, self.injector = start, patch, installed()
        self.trained: list[str] = []
        self.kept: dict[Path, set[str]] = {}  # read after a run only, because a store stays open once it was read
        train = stage1.run_experts

        def run_experts(jobs: Any, report: Any) -> Any:
            self.trained += [job.task for job in jobs]
            return train(jobs, report)

        patch.setattr(stage1, "run_experts", run_experts)

    def copy(self) -> Path:
        """A new copy of the folder, because this process keeps each store open."""
        return Path(shutil.copytree(self.start, self.start.parent / secrets.token_hex(4)))

    def run(self, folder: Path) -> Done:
        """``ttmoe run`` in this process, which has not loaded the base yet."""
        self.patch.setattr(resident, "_resident", None)
        self.patch.setattr(resident, "_began_loading", False)  # nor collects what an earlier run left
        self.trained.clear()
        with units_inline():
            return here(folder, "run", "tiny.yaml")

    def sites(self) -> list[Site]:
        """The sites of a run without faults, in the order in which it reaches them."""
        self.run(self.copy())  # imports
        gc.freeze()  # what they left is in no collection of the many runs
        with self.injector.recorded() as sites:
            done = self.run(self.copy())
        assert done.code == 0, done.err
        return list(sites)

    def fail(self, folder: Path, site: Site, number: int) -> Done:
        """Run with a fault; what had been registered is not trained again."""
        with self.injector.failing(site, number):
            done = self.run(folder)
        check_end(done)
        self.check_kept(folder)
        return done

    def complete(self, folder: Path) -> None:
        """Run without a fault, until everything is registered once."""
        done = self.run(folder)
        check_end(done)
        assert done.code == 0, done.err
        self.check_kept(folder)
        check_complete(folder)

    def check_kept(self, folder: Path) -> None:
        """Check that the run kept the experts that were registered before it, and did not train them."""
        found = {version.task for version in open_registry(folder / "runs").experts("tiny")}
        kept = self.kept.get(folder, set())
        assert kept <= found
        assert kept.isdisjoint(self.trained)
        self.kept[folder] = found


def check_end(done: Done) -> None:
    """The code is one of the README's, and an error is a message."""
    text = done.out + done.err
    assert done.code in CODES, text
    assert "Traceback" not in text, text
    assert done.code == 0 or "error: " in done.err, text


def check_complete(folder: Path) -> None:
    """One version of everything, and nothing that seems to go on."""
    assert versions(folder / "runs") == VERSIONS
    assert "RUNNING" not in {status for _, status in statuses(folder / "runs")}


@pytest.fixture
def faults(start, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for the tracebacks of errors without a message
    return Faults(start, monkeypatch)


def test_a_command_that_is_repeated_after_each_fault_comes_to_the_end(faults, capsys):
    """Every 24th site fails, in the order in which a run reaches them: each run comes as far as the next one."""
    order = faults.sites()
    # Which operation opens another connection to the database depends on the threads.
    sites = sorted(site for site in order if site[0] != "sqlite3.connect")
    chosen = sorted(sites[::24], key=order.index)
    folder = faults.copy()
    for number, site in enumerate(chosen):
        done = faults.fail(folder, site, injected(number))
        if not faults.injector.failed:  # what it would have read or written is there
            folder = faults.copy()
            done = faults.fail(folder, site, injected(number))
        assert faults.injector.failed, site
        if done.code == 0:  # it did without the file
            check_complete(folder)
            folder = faults.copy()
    faults.complete(folder)
    with capsys.disabled():
        print(f"\nrun: {len(chosen)} of {len(order)} call sites failed once each")


def test_an_operation_that_the_database_refuses_is_an_error_without_a_traceback(fresh_store, tmp_path, capsys):
    """MLflow prints one before it raises, also where the operation is retried."""
    shutil.copy(fresh_store, tmp_path)
    registry = open_registry(tmp_path)
    assert registry.experts("tiny", every=True) == []
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("DROP TABLE model_versions")
    with pytest.raises(Exception, match="no such table: model_versions"):
        registry.experts("tiny", every=True)
    assert capsys.readouterr().err == ""


@pytest.mark.thorough
def test_after_a_fault_at_any_site_the_next_command_completes(faults, capsys):
    wrong, unreached, sites = [], [], sorted(faults.sites())
    for number, site in enumerate(sites):
        folder = faults.copy()
        try:
            faults.fail(folder, site, injected(number))
            faults.complete(folder)
        except Exception:
            wrong.append(f"{site}, errno {injected(number)}: {traceback.format_exc()[-900:]}")
        if not faults.injector.failed:
            unreached.append(site)
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\nrun: {len(sites) - len(unreached)} of {len(sites)} call sites failed once each")
    assert not wrong, "\n".join(wrong)
    assert {event for event, *_ in unreached} <= {"sqlite3.connect"}


@pytest.mark.thorough
def test_faults_while_ray_starts_works_and_ends(base_folder, fresh_store, tmp_path, capsys):
    """The expert is a scripted one, and each command has a Ray of its own."""
    start = tmp_path / "start"
    start.mkdir()
    config = scripted_jobs.write_library(start, base_folder, 1).name
    (start / "runs").mkdir()
    shutil.copy(fresh_store, start / "runs")

    def run(folder: Path) -> Done:
        with scripted_jobs.in_place_of_training({}, folder / "marks"):
            return here(folder, "run", config)

    with installed().recorded() as reached:
        assert run(Path(shutil.copytree(start, tmp_path / "recorded"))).code == 0
    sites = sorted(site for site in reached if any(line.startswith(OF_RAY) for line in site[1:]))
    wrong = []
    for number, site in enumerate(sites):
        folder = Path(shutil.copytree(start, tmp_path / str(number)))
        try:
            with installed().failing(site, injected(number)):
                done = run(folder)
            check_end(done)
            assert done.code == 0 or run(folder).code == 0
            assert versions(folder / "runs") == {"many.t0000": 1, "many.router": 1}
        except Exception:
            wrong.append(f"{site}, errno {injected(number)}: {traceback.format_exc()[-900:]}")
    with capsys.disabled():
        print(f"\nRay: {len(sites)} call sites failed once each")
    assert not wrong, "\n".join(wrong)
