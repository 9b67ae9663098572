"""The parts of a drill: the relay that drops connections, and the driver's process."""

from __future__ import annotations

import socket
import threading

import psutil
import pytest
import tiny

from cluster import driver_processes
from orchestrator.config.loading import load_config
from orchestrator.config.store_address import TRACKING_VARIABLE
from orchestrator.doctor import drill, drill_driver
from orchestrator.doctor.connection_relay import ConnectionRelay
from orchestrator.doctor.machine_checks import check_storage
from orchestrator.doctor.place import place_of
from orchestrator.doctor.temporary_folder import TemporaryFolder
from orchestrator.doctor.tiny_library import tiny_config, write_tiny_library


@pytest.fixture
def echo():
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    while data := client.recv(100):
                        client.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_a_relay_drops_open_and_new_connections_until_it_is_restored(echo):
    with ConnectionRelay("127.0.0.1", echo) as relay:
        with connect(relay.port) as client:
            client.sendall(b"one")
            assert client.recv(3) == b"one"
            relay.cut()
            assert client.recv(3) == b""
        with connect(relay.port) as client:
            assert client.recv(3) == b""
        assert relay.dropped == 1
        relay.restore()
        with connect(relay.port) as client:
            client.sendall(b"two")
            assert client.recv(3) == b"two"
        port = relay.port
    with pytest.raises(OSError, match="refused"):
        connect(port)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A function that starts a driver that runs a script instead of ``ttmoe run``."""

    def start(text, uri=None):
        (tmp_path / "driver").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "driver").chmod(0o755)
        monkeypatch.setattr(drill_driver.sys, "executable", str(tmp_path / "driver"))
        return drill_driver.start_driver(tmp_path / "library.yaml", tmp_path / "log.txt", uri)

    return start


def test_a_driver_is_waited_for_by_what_it_prints(script, monkeypatch):
    monkeypatch.setenv(TRACKING_VARIABLE, "http://elsewhere")
    driver = script("echo '  t0: training, step 5'; echo '  t0: registered: v1'; exec sleep 60")
    assert driver.wait_for(lambda states: states == {"t0": "registered: v1"}, 30)
    assert not driver.wait_for(lambda states: "t1" in states, 0.1)
    driver.kill()
    assert not driver.wait_for(lambda states: "t1" in states, 30)
    ended = script(f'echo "uri: ${TRACKING_VARIABLE}"; exit 3')
    assert (ended.wait(), ended.last_line()) == (3, "uri:")
    named = script(f'echo "uri: ${TRACKING_VARIABLE}"; echo "$@"', "http://ann:pw@host")
    assert (named.wait(), named.last_line().endswith("library.yaml")) == (0, True)
    assert "uri: http://ann:pw@host" in named.log.read_text()


def test_workers_are_found_among_the_processes_of_the_driver_alone(script, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    driver = script("bash -c 'exec -a ray::Worker.run sleep 60' & bash -c 'exec -a other sleep 60' & wait")

    def found():
        return driver_processes.worker_processes(driver.pid, drill.WORKER)

    assert tiny.wait_for(lambda: len(found()) == 1, 30)
    (other,) = {each.pid for each in psutil.Process(driver.pid).children()} - {found()[0].pid}
    for _ in range(2):  # the second time, it has ended
        driver_processes.kill_process(found()[0] if found() else driver_processes.WorkerProcess(2**22))
        assert tiny.wait_for(lambda: not found(), 30)
    driver_processes.kill_process(driver_processes.WorkerProcess(other))
    driver.kill()
    assert found() == []


def test_the_relay_takes_the_place_of_the_server():
    assert drill._through("http://ann:p%40w@host:5000/mlflow", 7) == "http://ann:p%40w@127.0.0.1:7/mlflow"
    for uri in (None, "https://host", "postgresql://host/db"):
        assert drill._relay(uri) is None
        found = drill._check_connection(None, None, uri)
        assert found.verdict == "skipped"


def test_a_drill_in_a_storage_that_cannot_be_written_does_nothing(tmp_path):
    (tmp_path / "file").touch()
    place = place_of(None, str(tmp_path / "file" / "below"))
    assert [(check.name, check.verdict) for check in drill.run_drill(place)] == [("storage", "failed")]


def test_a_driver_that_ends_early_ends_the_drill_with_its_last_line(tmp_path, script):
    place = place_of(None, str(tmp_path / "runs"))
    checks = list(drill.run_drill(place, start=lambda *_: script("echo 'no memory'; exit 1")))
    assert checks[0] == check_storage(tmp_path / "runs")
    assert checks[2].found == "the run ended before an expert trained: no memory"
    assert [check.name for check in checks] == ["storage", "MLflow server", "worker killed", "left"]


def test_a_temporary_folder_goes_with_the_folders_made_for_it(tmp_path):
    made = TemporaryFolder.below(tmp_path / "a" / "b", "x-")
    made.remove()
    assert list(tmp_path.iterdir()) == []
    made = TemporaryFolder.below(tmp_path / "a", "x-")
    (tmp_path / "a" / "other").touch()
    made.remove()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["other"]


def test_a_tiny_library_is_written_without_the_password_of_its_store(tmp_path):
    place = place_of(None)
    place = place.model_copy(update={"tracking": type(place.tracking)(uri="http://ann:s3cret@host")})
    config = tiny_config(place, tmp_path, "ttmoe-x", 2, {"steps": 2})
    loaded = write_tiny_library(config)
    assert config.store.uri == "http://ann:s3cret@host"
    assert "s3cret" not in loaded.text
    again = load_config(loaded.source_name).config
    assert again.model_copy(update={"tracking": config.tracking}) == config
    assert config.library != tiny_config(place, tmp_path, "ttmoe-x", 2, {"steps": 2}).library


def test_the_drill_looks_for_the_class_of_the_pools_workers():
    from orchestrator.pool.worker_actor import Worker

    name = Worker.__ray_metadata__.class_name.rpartition(".")[2]
    assert name == drill.WORKER
