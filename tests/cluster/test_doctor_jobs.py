"""``ttmoe doctor --cluster``: the checks and the drill, as jobs of a cluster of two nodes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from quickstart import ROOT
from ray_cluster import free_port, running_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.thorough]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a file of clusters, of which ``two`` runs."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    storage = tmp_path_factory.mktemp("shared")
    profile = {"kind": "ray", "address": f"http://127.0.0.2:{port}", "storage": str(storage), "python": sys.executable}
    (home / "ttmoe").mkdir()
    (home / "ttmoe" / "clusters.yaml").write_text(json.dumps({"clusters": {"two": profile}}))
    node = ["--num-cpus=1"]
    with running_cluster(node, node, dashboard_port=port, HOME=str(home), PYTHONPATH=str(ROOT)):
        yield home


@pytest.fixture(autouse=True)
def clusters_of_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place))


def test_both_nodes_are_checked_and_an_expert_is_trained(place, tmp_path):
    done = commands.ttmoe(tmp_path, "doctor", "--cluster", "two", "--json")
    assert done.code == 0, done.out + done.err
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    assert checks["Ray"]["found"].split("; ")[1].startswith("2 nodes of the cluster at 127.0.0.2:")
    assert checks["nodes"]["found"] == "127.0.0.2, 127.0.0.3"
    assert checks["versions"]["found"].startswith("the same on 2 nodes and this machine: ")
    assert checks["shared storage"]["found"].startswith("2 nodes read and write ")
    assert checks["training"]["verdict"] == "ok"
    assert "ports" not in checks


def test_checks_that_fail_there_are_shown_and_so_is_the_exit_code(place, tmp_path):
    config = tmp_path / "mine.yaml"
    task = {"kind": "text", "source": {"path": "none.jsonl"}, "columns": {"text": "text"}, "label": {"column": "label"}}
    tracking = {"uri": "http://127.0.0.1:1"}
    config.write_text(json.dumps({"library": "a", "base": {"hub": "a/b"}, "tasks": {"t": task}, "tracking": tracking}))
    done = commands.ttmoe(tmp_path, "doctor", "mine.yaml", "--cluster", "two")
    assert done.code == 1, done.out + done.err
    assert "no MLflow server responds at http://127.0.0.1:1" in " ".join(done.out.split())
    assert "checks failed" in done.out


def test_the_drill_loses_nothing_there(place, tmp_path):
    done = commands.ttmoe(tmp_path, "doctor", "--drill", "--cluster", "two")
    assert done.code == 0, done.out + done.err
    assert "of 127.0.0." in done.out  # the worker was killed on its node
    assert "Nothing failed" in done.out
