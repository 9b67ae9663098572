"""Recording of experts: few requests for each, what the store gets, and curves while an expert trains."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import tiny
from scripted_jobs import write_library

pytestmark = pytest.mark.integration

DIGEST = hashlib.sha256(b"weights").hexdigest()
METRICS = {"test.accuracy": 0.75, "steps": 4.0, "seconds.job": 2.0, "seconds.loading": 0.5, "tokens.real_share": 0.9}


class CountedClient:
    """An MlflowClient that counts its calls by name."""

    def __init__(self, client):
        self.client, self.calls = client, Counter()

    def __getattr__(self, name):
        self.calls[name] += 1
        return getattr(self.client, name)


@pytest.fixture(scope="module")
def plan(base_folder, tmp_path_factory):
    """The plan of a library of six experts."""
    from orchestrator.config.loading import load_config
    from orchestrator.plan.planning import make_plan

    folder = tmp_path_factory.mktemp("recording")
    settings = [f"storage.root={folder / 'runs'}"]
    return make_plan(load_config(str(write_library(folder, base_folder, 6)), settings).config)


@pytest.fixture
def recording(plan, fresh_store, tmp_path):
    """Return a function that records the first experts of a library and returns the registry."""
    from commands import open_registry

    from orchestrator.recording.expert_operations import ExpertOperations
    from workers.expert_result import ExpertResult

    folder = tiny.write_expert_files(tmp_path / "expert", b"weights")
    (tmp_path / "runs").mkdir()
    shutil.copy(fresh_store, tmp_path / "runs")
    registry = open_registry(tmp_path / "runs")
    parent = registry.start_run("many", "run", {}, "", {})

    def record(tasks, gone=()):
        client = CountedClient(registry.client)
        operations = ExpertOperations(plan, replace(registry, client=client), parent)
        operations.read_state(tasks, gone)
        for task in tasks:
            job = plan.experts[task].job
            result = ExpertResult(task, job.spec_hash, METRICS, job.parameters, DIGEST, str(folder))
            operations.register(task, result, [("train.loss", 0.5, 1, 1000)])
        return client.calls

    record.registry, record.plan, record.parent, record.folder = registry, plan, parent, folder
    return record


def test_an_expert_takes_eight_requests_however_many_there_are(recording):
    tasks = list(recording.plan.experts)
    few, many = recording(tasks[:2]), recording(tasks[2:])
    calls = {
        "create_run": 1, "log_batch": 2, "log_inputs": 1, "create_registered_model": 1, "create_model_version": 1,
        "set_registered_model_alias": 1, "set_terminated": 1,
    }  # fmt: skip  # the second log_batch has no rows and sends no request
    assert few == {"search_runs": 1} | {name: 2 * count for name, count in calls.items()}
    assert many == {"search_runs": 1} | {name: 4 * count for name, count in calls.items()}


def test_a_registered_expert_has_its_metrics_data_and_descriptions(recording):
    task, expert = next(iter(recording.plan.experts.items()))
    recording([task])
    (version,) = recording.registry.experts("many")
    # What no code reads of a version is only in its run: every tag costs time.
    assert version.metrics == {"test.accuracy": 0.75, "steps": 4.0, "seconds.job": 2.0}
    (run,) = recording.registry.child_runs("many", recording.parent)
    assert run.metrics == METRICS | {"train.loss": 0.5}
    client = recording.registry.client
    described = client.get_model_version(version.name, "1").description
    assert f"Test accuracy 0.750 on {sum(expert.job.data.counts['test'].values())} rows" in described
    assert "TT-LoRA of rank 2" in described
    assert "classifies one text as" in client.get_registered_model(version.name).description
    (entry,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert entry.dataset.name == task
    assert expert.job.data.fingerprint.startswith(entry.dataset.digest)


def test_what_a_lost_response_created_is_found_by_the_next_attempt(recording):
    """The first attempt does not search; the second does, so nothing is created twice."""
    from orchestrator.recording.expert_operations import ExpertOperations
    from workers.expert_result import ExpertResult

    task, expert = next(iter(recording.plan.experts.items()))
    client, lost = recording.registry.client, ["create_run", "create_model_version"]

    class LosesResponses(CountedClient):
        def __getattr__(self, name):
            call = getattr(client, name)

            def lose(*args, **kwargs):
                call(*args, **kwargs)
                lost.remove(name)
                raise ConnectionError(name)

            return lose if name in lost else call

    registry = replace(recording.registry, client=LosesResponses(client))
    operations = ExpertOperations(recording.plan, registry, recording.parent)
    operations.read_state([task])
    result = ExpertResult(task, expert.job.spec_hash, METRICS, expert.job.parameters, DIGEST, str(recording.folder))
    for _ in range(2):
        with pytest.raises(ConnectionError):
            operations.register(task, result)
    assert operations.register(task, result).version == 1
    assert len(recording.registry.experts("many", every=True)) == 1
    assert [run.status for run in recording.registry.child_runs("many", recording.parent)] == ["FINISHED"]


def test_a_run_that_an_earlier_driver_left_is_continued(recording):
    task = next(iter(recording.plan.experts))
    registry, spec_hash = recording.registry, recording.plan.experts[task].job.spec_hash
    left = registry.expert_run("many", "earlier", task, spec_hash, {})
    registry.finish_run(left, "KILLED")
    recording([task])
    assert [run.run_id for run in registry.child_runs("many", recording.parent)] == [left]


def test_a_version_whose_files_are_gone_is_made_again_in_its_run(recording):
    task, registry = next(iter(recording.plan.experts)), recording.registry
    recording([task])
    (old,) = registry.experts("many", every=True)
    shutil.rmtree(registry.fetch(old))
    recording([task], [task])
    (new,) = registry.experts("many", every=True)
    assert (new.version, new.spec_hash, new.run_id) == (2, old.spec_hash, old.run_id)
    assert (registry.fetch(new) / "expert.safetensors").read_bytes() == b"weights"
    assert [run.run_id for run in registry.child_runs("many", recording.parent)] == [old.run_id]


def test_a_description_of_a_user_is_kept_and_a_missing_one_added(recording):
    client, (first, second) = recording.registry.client, list(recording.plan.experts)[:2]
    recording([first, second])
    for task, text in ((first, "ours"), (second, "")):
        client.update_registered_model(f"many.{task}", text)
        client.delete_model_version(f"many.{task}", "1")
    recording([first, second])
    assert client.get_registered_model(f"many.{first}").description == "ours"
    assert client.get_registered_model(f"many.{second}").description.startswith("Expert of the library many")


def test_the_log_of_experts_that_failed_together_is_named_and_uploaded_for_each(recording):
    """It is in the folder of the first one."""
    from rich.console import Console

    from orchestrator.pool.work_units import JobEvent
    from orchestrator.progress.live_view import LiveView
    from orchestrator.recording.registrar import Stage1Result
    from orchestrator.run.outcome import experts_failed_error
    from orchestrator.run.stage1 import train_experts
    from ttmoe.errors import PartFailedError
    from workers.failure import Failure

    class FailsTogether:
        def run(self, units, reduce_memory=None, resources=None, requests=None):
            (unit,) = units
            unit.log.parent.mkdir(parents=True)
            unit.log.write_text("a traceback")
            for task in unit.jobs:
                yield JobEvent(task, failure=Failure("data", "ValueError", task), done=True)

    registry, plan, tasks, result = recording.registry, recording.plan, list(recording.plan.experts)[:2], Stage1Result()
    with LiveView(Console(quiet=True)) as view:
        train_experts(plan, tasks, registry, recording.parent, FailsTogether(), view, 2, result)
    assert set(result.failed) == set(tasks)
    (log,) = set(result.logs.values())
    error = experts_failed_error(plan, result, "", PartFailedError)
    assert error.fix.startswith(f"see {log}; repeat")
    assert error.code == 4
    assert log.is_file()
    runs = registry.child_runs("many", recording.parent)
    assert {run.status for run in runs} == {"FAILED"}
    uploaded = [registry.client.list_artifacts(run.run_id) for run in runs]
    assert [[file.path for file in files] for files in uploaded] == [["log.txt"], ["log.txt"]]
