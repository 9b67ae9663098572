"""Outages of the tracking server and lost responses: in the end everything is recorded exactly once."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import tiny
from killed_driver import InlinePool, units_inline
from mlflow_server import Server
from proxy import Proxy
from rich.console import Console

from ttmoe.errors import InputError

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

STEPS = 6
CONFIG = """\
library: {library}
base: {{folder: base, max_length: 32, dtype: float32}}
adapter: {{rank: 2}}
train: {{steps: {steps}, batch_size: 8, eval_every: 3}}
tasks:
  colours:
    kind: text
    source: {{path: colours.jsonl}}
    columns: {{text: text}}
    label: {{column: label}}
  animals:
    kind: text
    source: {{path: animals.jsonl}}
    columns: {{text: text}}
    label: {{column: label}}
router: {{batch_size: 32, epochs: 2}}
storage: {{cache: ../cache}}
tracking: {{uri: "{uri}"}}
failures: {{tracking_minutes: {minutes}}}
"""


@pytest.fixture(scope="module")
def server(fresh_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh_store, folder)
    server = Server(folder)
    server.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints
        import mlflow.pyfunc  # noqa: F401
    yield server
    server.stop(grace=1)
    server.log.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def home(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, the data, and a cache for all libraries."""
    folder = tmp_path_factory.mktemp("away")
    shutil.copytree(base_folder, folder / "base")
    tiny.write_texts(folder / "colours.jsonl", tiny.COLOURS, "north", 90)
    tiny.write_texts(folder / "animals.jsonl", tiny.ANIMALS, "south", 90)
    return folder


def write_config(home: Path, proxy: Proxy, library: str, minutes: float = 5.0, steps: int = STEPS) -> Path:
    folder = home / library
    folder.mkdir()
    for name in ("base", "colours.jsonl", "animals.jsonl"):
        (folder / name).symlink_to(home / name)
    text = CONFIG.format(library=library, uri=proxy.uri, minutes=minutes, steps=steps)
    (folder / "library.yaml").write_text(text)
    return folder / "library.yaml"


def run(config: Path, pool: type = InlinePool, short_waits: bool = False) -> tuple[int, str]:
    """Run ``ttmoe run`` in this process. Return the exit status and the output."""
    import orchestrator.registry.retrying
    import orchestrator.run.driver
    from orchestrator.config.loading import load_config

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, units_inline(pool):
        patch.chdir(config.parent)
        if short_waits:
            patch.setattr(orchestrator.registry.retrying, "_FIRST_WAIT", 0.02)
            patch.setattr(orchestrator.registry.retrying, "_LONGEST_WAIT", 0.02)
        try:
            orchestrator.run.driver.run_library(load_config(config.name, []), Console(file=out, width=200))
        except InputError as error:
            return error.code, f"{out.getvalue()}\n{error}"
    return 0, out.getvalue()


def before_job(key: str, call: Callable[[], None]) -> type:
    """Return a pool that calls ``call`` once, before its first unit with the job ``key``."""
    done: list[str] = []

    class InterceptingPool(InlinePool):
        def run(
            self, units: Any, reduce_memory: Any = None, resources: Any = None, requests: Any = None
        ) -> Iterator[Any]:
            def watched() -> Iterator[Any]:
                for unit in units:
                    if not done and key in unit.jobs:
                        done.append(key)
                        call()
                    yield unit

            yield from super().run(watched(), reduce_memory)

    return InterceptingPool


def check_whole(server: Server, library: str, steps: int = STEPS, *, curves: bool = True) -> None:
    """Check on the server that every version, metric and file exists once and every run has ended."""
    from orchestrator.registry import Registry

    registry = Registry.open(f"http://127.0.0.1:{server.port}", Path("unused"))
    client = registry.client
    versions = client.search_model_versions(f"tags.`ttmoe.library` = '{library}'", max_results=1000)
    assert sorted((found.name, int(found.version)) for found in versions) == [
        (f"{library}.{name}", 1) for name in ("animals", "colours", "router")
    ]
    found = all_runs(registry, library)
    assert Counter((tags(run).get("task", ""), run.info.status) for run in found if tags(run)["kind"] == "expert") == {
        ("animals", "FINISHED"): 1, ("colours", "FINISHED"): 1, ("router", "FINISHED"): 1}  # fmt: skip
    assert [run.info.run_name for run in found if run.info.status == "RUNNING"] == []
    assert [run.info.status for run in found if tags(run)["kind"] == "run"].count("FINISHED") == 1
    for run in found:
        if tags(run).get("task") in ("animals", "colours"):
            history = client.get_metric_history(run.info.run_id, "train.loss")
            assert not curves or {metric.step for metric in history} == set(range(1, steps + 1))
            assert "expert" in {each.path for each in client.list_artifacts(run.info.run_id)}
            assert run.data.metrics["test.accuracy"] >= 0
            assert run.data.params["adapter.rank"] == "2"
    assert {tuple(version.aliases) for version in registry.experts(library)} == {("candidate", "champion")}
    router = registry.router(library)
    assert set(registry.router_lock(router)) == {"animals", "colours"}
    assert client.list_artifacts(router.run_id, "router")


def tags(run: Any) -> dict[str, str]:
    return {key.removeprefix("ttmoe."): value for key, value in run.data.tags.items()}


def all_runs(registry: Any, library: str) -> list[Any]:
    experiment = registry.client.get_experiment_by_name(library)
    return list(registry.client.search_runs([experiment.experiment_id], max_results=1000))


def test_after_an_outage_the_server_has_everything_and_training_did_not_wait(server, proxy, home):
    config = write_config(home, proxy, "while")
    found: list[Path] = []

    def back() -> None:
        results = lambda: list(config.parent.glob("runs/while/experts/*/result.json"))  # noqa: E731
        tiny.wait_for(lambda: len(results()) == 2, 60)
        time.sleep(1.5)  # the outage is noticed
        found.extend(results())
        proxy.restore()

    code, output = run(config, before_job("animals", lambda: (proxy.cut(), threading.Thread(target=back).start())))
    assert code == 0, output
    assert len(found) == 2  # both were trained during the outage
    assert output.count("does not respond") == 1
    check_whole(server, "while")


def test_a_long_outage_ends_the_run_and_the_next_run_registers_the_trained_experts(server, proxy, home):
    config = write_config(home, proxy, "stays", minutes=0.05)
    began = time.monotonic()
    code, output = run(config, before_job("animals", proxy.cut))
    assert time.monotonic() - began < 30
    assert code == 1
    assert "did not respond for 0.05 minutes" in output
    assert "finished experts are kept" in output
    proxy.restore()
    code, output = run(config)
    assert code == 0, output
    stage1 = output.partition("Stage 2")[0]
    assert "animals: registered: v1" in stage1
    assert "training" not in stage1
    check_whole(server, "stays", curves=False)


@pytest.mark.thorough
def test_stage_2_waits_too(server, proxy, home):
    config = write_config(home, proxy, "stage2")
    timer = threading.Timer(2.5, proxy.restore)
    code, output = run(config, before_job("router", lambda: (proxy.cut(), timer.start())))
    assert code == 0, output
    assert output.count("does not respond; retrying") == 1
    check_whole(server, "stage2")


@pytest.mark.thorough
def test_stage_2_does_not_wait_longer_than_configured(server, proxy, home):
    config = write_config(home, proxy, "stage2-ends", minutes=0.02)
    code, output = run(config, before_job("router", proxy.cut))
    assert code == 1, output
    assert "did not respond for 0.02 minutes" in output
    proxy.restore()
    assert run(config)[0] == 0
    check_whole(server, "stage2-ends")


def test_ctrl_c_does_not_wait_for_an_unavailable_server(server, proxy, home):
    config = write_config(home, proxy, "interrupted")

    def interrupt() -> None:
        proxy.cut()
        cut.append(time.monotonic())
        raise KeyboardInterrupt

    cut: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        run(config, before_job("animals", interrupt))
    assert time.monotonic() - cut[0] < 10
    proxy.restore()
    assert run(config)[0] == 0
    check_whole(server, "interrupted", curves=False)


def test_a_server_that_hangs_is_noticed_and_an_interruption_does_not_wait_for_it(monkeypatch):
    import orchestrator.recording.recorder
    from orchestrator.recording.recorder import Recorder

    monkeypatch.setattr(orchestrator.recording.recorder, "_SLOW_ATTEMPT", 0.3)
    silence = threading.Event()

    def interrupted() -> None:
        with Recorder(60) as recorder:
            recorder.add("quick", lambda: None)
            recorder.add("hangs", lambda: silence.wait(60))
            assert not recorder.is_unresponsive
            assert tiny.wait_for(lambda: recorder.is_unresponsive, 10)
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 20
    silence.set()


def test_every_operation_of_the_registry_is_retried():
    from orchestrator.registry import Registry

    others = {"open", "with_retries", "without_retries", "end_run_on_exit", "has_files"}  # no requests
    members = {name: member for name, member in vars(Registry).items() if not name.startswith("_")}
    operations = {name: members[name] for name in members.keys() - others}
    assert len(operations) > 20
    assert [name for name, call in operations.items() if not hasattr(call, "__wrapped__")] == []


KINDS = (
    "POST experiments/create", "POST experiments/set-experiment-tag", "POST runs/create", "POST runs/log-batch",
    "POST runs/log-inputs", "POST runs/update", "POST registered-models/create", "POST registered-models/alias",
    "POST model-versions/create", "PUT artifacts", "POST experiments/delete-experiment-tag",
)  # fmt: skip


def kind_of(change: str) -> str:
    method, _, path = change.partition(" ")
    path = path.removeprefix("/api/2.0/mlflow/")
    return f"{method} {'artifacts' if 'mlflow-artifacts' in path else path}"


def loser(wanted: Callable[[str, bytes], bool], times: int) -> Callable[[str, bytes], bool]:
    """Lose the first ``times`` responses to each wanted request. Numbers and ids do not distinguish requests."""
    lost: Counter[tuple[str, bytes]] = Counter()

    def loses(change: str, body: bytes) -> bool:
        name = change.rpartition("/artifacts/")[2]  # without the run id, which may differ at the retry
        key = name, re.sub(rb"[0-9a-f]{32}|\d+", b"", body) if change.startswith("POST") else b""
        lost[key] += wanted(change, body)
        return wanted(change, body) and lost[key] <= times

    return loses


def starts_run(change: str, body: bytes) -> bool:
    """Return whether it is one of the requests of ``start_run``."""
    made = change.endswith("runs/create") and b'"ttmoe.kind"' in body and b'"expert"' not in body
    return made or change.endswith(("/config.yaml", "/plan.json"))


# Of two lost responses the first is handled by MLflow's client, which repeats the request, the second by the retries.
@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_responses_of_one_kind_are_lost(server, proxy, home, kind):
    library = re.sub(r"\W", "-", kind.lower())
    proxy.loses = loser(lambda change, body: kind_of(change) == kind and not starts_run(change, body), 2)
    code, output = run(write_config(home, proxy, library), short_waits=True)
    assert code == 0, output
    assert kind in map(kind_of, proxy.changes)
    assert {*map(kind_of, proxy.changes)} <= {*KINDS, "POST runs/delete", "DELETE model-versions/delete"}
    check_whole(server, library)


@pytest.mark.thorough
def test_every_response_is_lost_once(server, proxy, home):
    proxy.loses = loser(lambda change, body: not starts_run(change, body) and not change.endswith("/delete"), 1)
    code, output = run(write_config(home, proxy, "each"), short_waits=True)
    assert code == 0, output
    check_whole(server, "each")


def test_the_responses_to_a_creation_and_to_its_repair_are_lost(server, proxy, home):
    """A version that was created twice is deleted, and deleted again by MLflow's client, which finds none."""
    proxy.loses = loser(lambda change, body: "/model-versions/" in change, 1)
    code, output = run(write_config(home, proxy, "repair"), short_waits=True)
    assert code == 0, output
    check_whole(server, "repair")


@pytest.mark.thorough
@pytest.mark.parametrize("times", [1, 2])
def test_the_responses_to_the_start_of_the_run_are_lost(server, proxy, home, times):
    proxy.loses = loser(starts_run, times)
    code, output = run(write_config(home, proxy, f"parent{times}"), short_waits=True)
    assert code == 0, output
    check_whole(server, f"parent{times}")


@pytest.mark.thorough
def test_a_restart_of_the_server_under_a_run_on_ray(server, proxy, home):
    """The whole command on Ray; while the server is down, the proxy responds with 502, as a gateway does."""
    config = write_config(home, proxy, "restarted", steps=200)
    out = config.parent / "out.txt"
    with out.open("w") as file:
        process = subprocess.Popen([commands.SCRIPT, "run", config.name], cwd=config.parent, stdout=file,
                                   stderr=subprocess.STDOUT, env=commands.environment())  # fmt: skip
    try:
        assert tiny.wait_for(lambda: "training, step" in out.read_text() or process.poll() is not None, 90)
        server.stop()
        server.start()
        assert process.wait(120) == 0, out.read_text()
    finally:
        process.kill()
        process.wait()
    assert out.read_text().count("does not respond; work continues") == 1
    check_whole(server, "restarted", steps=200)
