"""Commands that read a library send as many requests for many experts as for few."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from rich.console import Console
from scripted_jobs import write_library

from orchestrator.config.loading import load_config
from orchestrator.config.store_address import find_store

pytestmark = pytest.mark.integration

FEW, MANY = 2, 5


class CountedClient:
    """MLflow's client that counts its calls; each page of a query is one."""

    def __init__(self, client):
        self.client, self.calls = client, Counter()

    def __getattr__(self, name):
        value = getattr(self.client, name)
        if callable(value):
            self.calls[name] += 1
        return value


@pytest.fixture(scope="module")
def store(tmp_path_factory, base_folder, fresh_store):
    """A store with a complete library for each number of experts, and the configs."""
    from orchestrator.plan.planning import make_plan
    from orchestrator.registry import Registry

    folder = tmp_path_factory.mktemp("requests")
    (folder / "runs").mkdir()
    shutil.copy(fresh_store, folder / "runs")
    path = write_library(folder, base_folder, MANY)
    data = json.loads(path.read_text())
    configs = {}
    for count in (FEW, MANY):
        tasks = dict(list(data["tasks"].items())[:count])
        library = data | {"library": f"lib{count}", "tasks": tasks, "storage": {"root": str(folder / "runs")}}
        path = folder / f"{count}.yaml"
        path.write_text(json.dumps(library))
        configs[count] = load_config(str(path), [])
        plan = make_plan(configs[count].config)
        registry = Registry.open(configs[count].config.store.uri, plan.folders.artifacts)
        _register(plan, registry, folder / f"files{count}")
    return folder / "runs", configs


def _register(plan, registry, files):
    from orchestrator.registry.artifacts import CONFUSION_PLOT, EVALUATION

    library = plan.folders.library
    run = registry.start_run(library, "run", {}, "", {"lock": plan.lock})
    files.mkdir()
    test = {"answered_right": 1, "rows": 2}
    evaluation = {"tasks": dict.fromkeys(plan.experts, test), "routing_accuracy": 0.5,
                  "metrics": {"stripped.routing_accuracy": 0.5}}  # fmt: skip
    (files / EVALUATION).write_text(json.dumps(evaluation))
    (files / CONFUSION_PLOT).touch()
    tiny.write_expert_files(files, b"weights")
    (files / "router.json").write_text(json.dumps({"base": plan.base.record()}))
    for task, spec_hash in plan.lock.items():
        metrics = {"test.accuracy": 0.5}
        registry.register_expert(library, task, spec_hash, files, run, {}, metrics=metrics, promote=True)
    base = Path(plan.base.folder)
    registry.register_router(library, plan.router_hash, files, plan.lock, run, {}, base_folder=base)
    registry.finish_run(run, "FINISHED")


def _run(root, config, library):
    from orchestrator.run.driver import run_library

    run_library(config, QUIET)


def _plan(root, config, library):
    from orchestrator.plan.planned_library import plan_library
    from orchestrator.plan.show import show_plan

    show_plan(plan_library(config), QUIET, as_json=True)


def _list(root, config, library):
    from orchestrator.experts.listing import print_experts

    print_experts(find_store(root=root), library, False, True, QUIET)


def _status(root, config, library):
    from orchestrator.api import status

    status(library, root=root)


def _predict(root, config, library):
    from orchestrator.predict.request import PredictRequest
    from orchestrator.predict.routed_model import open_router

    open_router(PredictRequest(store=find_store(root=root), library=library), QUIET)


QUIET = Console(quiet=True)


@pytest.mark.parametrize("command", [_run, _plan, _list, _status, _predict], ids=lambda command: command.__name__[1:])
def test_requests_do_not_grow_with_the_number_of_experts(store, monkeypatch, command):
    from orchestrator.registry import Registry

    opened = Registry.open
    calls = {}
    for count in (FEW, MANY):
        clients = []

        def counted(*address, clients=clients):
            registry = opened(*address)
            clients.append(CountedClient(registry.client))
            return replace(registry, client=clients[-1])

        monkeypatch.setattr(Registry, "open", counted)
        command(store[0], store[1][count], f"lib{count}")
        calls[count] = sum((client.calls for client in clients), Counter())
    assert calls[FEW].total() > 0
    assert calls[FEW] == calls[MANY]
    assert not calls[FEW]["set_model_version_tag"]  # the base is where it was


def test_a_run_with_nothing_to_do_builds_no_model(store, monkeypatch):
    root, configs = store
    monkeypatch.setattr("transformers.AutoModel.from_config", lambda config: pytest.fail("a model is built"))
    _run(root, configs[FEW], f"lib{FEW}")
