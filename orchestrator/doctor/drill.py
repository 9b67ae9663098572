"""``ttmoe doctor --drill``: a tiny library whose worker, driver and MLflow connection are cut off; is anything lost?"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from cluster.attaching import cluster_address
from cluster.driver_processes import WorkerProcess, kill_process, worker_processes
from orchestrator.config.loading import LoadedConfig
from orchestrator.config.runtime_sections import TrackingSettings
from orchestrator.config.schema import Config
from orchestrator.config.store_address import StoreAddress
from orchestrator.doctor.checks import Check, checked, doubtful, faulty, passed, passed_over
from orchestrator.doctor.connection_relay import ConnectionRelay
from orchestrator.doctor.drill_driver import DrillDriver, start_driver
from orchestrator.doctor.drill_evidence import RegisteredExpert, check_evidence, registered_experts
from orchestrator.doctor.machine_checks import check_storage
from orchestrator.doctor.ray_check import check_ray
from orchestrator.doctor.service_checks import check_tracking
from orchestrator.doctor.temporary_folder import TemporaryFolder
from orchestrator.doctor.tiny_library import tiny_config, write_tiny_library
from orchestrator.plan.folders import LibraryFolders
from orchestrator.registry import Registry
from ttmoe.errors import InputError

_TASKS = 4
_TRAIN = {"steps": 600, "eval_every": 100, "patience": 0}
_RESOURCES = {"max_parallel": 2, "experts_per_job": 1, "autoscaling": False}  # so that some wait while others train
WORKER = "Worker"  # class of the pool's workers; a test compares it with the name there
_CUT_SECONDS, _MOST_CUT_SECONDS = 6.0, 60.0  # metrics are sent every 5 seconds
_RETRY_SECONDS = 30.0
_REPEAT = "see its output above or with --keep, and repeat the drill"

StartDriver = Callable[[Path, Path, str | None], DrillDriver]


@dataclass(frozen=True)
class Drill:
    """A drill.

    Attributes:
        loaded: Config of its library.
        folder: Folder of everything that it writes.
        store: The store, as this process reaches it.
        start: Starts a driver: the config, the file for its output, and the URI of the store.
    """

    loaded: LoadedConfig
    folder: TemporaryFolder
    store: StoreAddress
    start: StartDriver

    @property
    def server(self) -> str | None:
        """URI of the store for the driver; None for the one in the storage folder."""
        return None if self.store.source == "storage.root" else self.store.uri

    def open(self) -> Registry:
        """Return the open store."""
        return Registry.open(self.store.uri, self.store.artifacts, self.store.source)


def run_drill(place: Config, *, keep: bool = False, start: StartDriver = start_driver) -> Iterator[Check]:
    """Train a tiny library, cut off its parts in turn, continue it, and check that nothing was lost.

    Args:
        place: Config whose storage, MLflow store and resources are used.
        keep: Keep the library and its files. After a failed drill they are kept in any case.
        start: Starts a driver.
    """
    root = LibraryFolders.of(place).root
    for check in (check_storage(root), check_tracking(place.store)):
        yield check
        if check.verdict == "failed":
            return
    drill, has_failed = _prepare(place, TemporaryFolder.below(root, "ttmoe-drill-"), start), False
    try:
        with closing(_make_checks(drill)) as checks:
            for check in checks:
                has_failed = has_failed or check.verdict == "failed"
                yield check
    except (KeyboardInterrupt, GeneratorExit):  # its driver has ended
        _remove(drill)
        raise
    if keep or has_failed:
        yield checked("left")(
            lambda: passed(f"library {drill.loaded.config.library}, and its files in {drill.folder.path}")
        )()
    else:
        _remove(drill)


def _prepare(place: Config, folder: TemporaryFolder, start: StartDriver) -> Drill:
    config = tiny_config(place, folder.path, "ttmoe-drill", _TASKS, _TRAIN, **_RESOURCES)
    # Drivers get the address of the store by the environment, where it can name the relay.
    config = config.model_copy(update={"tracking": TrackingSettings()})
    root = Path(config.storage.root)
    of_place = place.store
    uri = of_place.uri if of_place.source != "storage.root" else config.store.uri
    return Drill(write_tiny_library(config), folder, StoreAddress(root, uri, of_place.source), start)


def _remove(drill: Drill) -> None:
    if drill.server:
        with suppress(InputError):  # the server is gone
            drill.open().remove_library(drill.loaded.config.library)
    drill.folder.remove()


def _make_checks(drill: Drill) -> Generator[Check]:
    before: dict[str, tuple[RegisteredExpert, ...]] = {}
    with ExitStack() as stack:
        if cluster_address():
            yield (check := check_ray(stack))
            if check.verdict == "failed":
                return
        driver = _start(drill, stack, drill.server, 1)
        yield (check := _check_worker(driver))
        if check.verdict != "failed":
            yield (check := _check_driver(drill, driver, before))
        if check.verdict == "failed":
            return
        relay = _relay(drill.server)
        uri = drill.server
        if relay:
            uri = _through(str(uri), stack.enter_context(relay).port)
        driver = _start(drill, stack, uri, 2)
        yield _check_connection(driver, relay, drill.server)
        yield (check := _check_continued(driver))
    if check.verdict != "failed":
        yield from check_evidence(drill.loaded, drill.store, before)


def _start(drill: Drill, stack: ExitStack, uri: str | None, number: int) -> DrillDriver:
    driver = drill.start(Path(drill.loaded.source_name), drill.folder.path / f"run-{number}.txt", uri)
    stack.callback(driver.kill)
    return driver


@checked("worker killed")
def _check_worker(driver: DrillDriver) -> Check:
    if not driver.wait_for(_has_checkpoint):
        return faulty(f"the run ended before an expert trained: {driver.last_line()}", _REPEAT)
    for _ in range(3):  # one that waits for work has nothing to lose
        if not (found := worker_processes(driver.pid, WORKER)):
            break
        process: WorkerProcess = found[0]
        kill_process(process)
        if driver.wait_for(partial(_any_is, "retrying"), _RETRY_SECONDS):
            return passed(f"process {process.pid} of {process.place}, while an expert trained; it is trained on")
    return faulty("the run did not notice that a worker was killed", _REPEAT)


@checked("driver killed")
def _check_driver(drill: Drill, driver: DrillDriver, before: dict[str, tuple[RegisteredExpert, ...]]) -> Check:
    if not driver.wait_for(partial(_any_is, "registered")):
        return faulty(f"the run ended before an expert was registered: {driver.last_line()}", _REPEAT)
    driver.kill()
    before.update(registered_experts(drill.open(), drill.loaded.config.library))
    found = f"process {driver.pid}, with {len(before)} of {_TASKS} experts registered"
    if len(before) == _TASKS:
        return doubtful(f"{found}: none trained any more", "repeat the drill")
    return passed(found) if before else faulty(f"{found}, though it had said that one was", _REPEAT)


def _any_is(state: str, states: Mapping[str, str]) -> bool:
    return any(text.startswith(state) for text in states.values())


def _has_checkpoint(states: Mapping[str, str]) -> bool:
    """Return whether an expert trains that was evaluated: with each evaluation, a checkpoint is written."""
    return any(text.startswith("training") and ", val " in text for text in states.values())


@checked("connection cut")
def _check_connection(driver: DrillDriver, relay: ConnectionRelay | None, server: str | None) -> Check:
    if relay is None:
        reason = "the record is a file" if server is None else "only that to a server over http can be cut from here"
        return passed_over(reason)
    if not driver.wait_for(partial(_any_is, "training")):
        return faulty(f"the run ended before an expert trained: {driver.last_line()}", _REPEAT)
    began = time.monotonic()
    relay.cut()
    seconds = 0.0
    while seconds < _CUT_SECONDS or (not relay.dropped and seconds < _MOST_CUT_SECONDS):
        time.sleep(0.2)
        seconds = time.monotonic() - began
    relay.restore()
    if not relay.dropped:
        return doubtful(f"for {seconds:.0f} seconds, in which the driver asked for none", "repeat the drill")
    return passed(f"for {seconds:.0f} seconds, in which {relay.dropped} requests of the driver were dropped")


@checked("continued")
def _check_continued(driver: DrillDriver) -> Check:
    code = driver.wait()
    if code is None:
        return faulty(f"the same command does not end: {driver.last_line()}", _REPEAT)
    if code:
        return faulty(f"the same command ended with exit code {code}: {driver.last_line()}", _REPEAT)
    return passed("the same command came to its end")


def _relay(server: str | None) -> ConnectionRelay | None:
    parts = urlsplit(server or "")
    return ConnectionRelay(str(parts.hostname), parts.port or 80) if parts.scheme == "http" else None


def _through(uri: str, port: int) -> str:
    """Return the URI of a server with another host and port; user and path stay."""
    parts = urlsplit(uri)
    user, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{at}127.0.0.1:{port}").geturl()
