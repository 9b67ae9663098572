from dataclasses import replace

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.encoding import collate
from workers import trial as module
from workers.expert_job import ExpertJob
from workers.expert_runner import run_expert
from workers.training import state
from workers.training.settings import TrainSettings
from workers.trial import TrialRunner


@pytest.fixture(scope="module")
def job(base, colours, tmp_path_factory):
    train = TrainSettings(steps=30, batch_size=16, eval_every=10, lr=1e-2, head_lr=1e-2, seed=2)
    folder = str(tmp_path_factory.mktemp("trial"))
    return ExpertJob("colours", base, colours, AdapterSpec(rank=4), "trained", train, "aa" * 32, 1152, folder)


@pytest.fixture(scope="module")
def runner(job):
    return TrialRunner.load(job)


def quality(metrics):
    return metrics["accuracy"], metrics["loss"]


def test_a_trial_measures_the_validation_split_as_the_job_would(runner, job):
    found = runner.run(job)
    assert set(found) == {"accuracy", "loss", "parameters", "seconds"}
    assert found["parameters"] == 1152
    assert found["accuracy"] > 0.8
    kept = {path.name.rsplit("-", 1)[1] for path in (job.cache_folder / "tokens").iterdir()}
    assert kept == {"train", "validation"}  # the test split is not even read


def test_a_trial_is_not_disturbed_by_those_before_it(runner, job):
    alone = quality(runner.run(job))
    runner.run(replace(job, adapter=AdapterSpec(rank=8, targets=("q", "v", "o"), init="paper")))
    assert quality(runner.run(job)) == alone
    assert quality(TrialRunner.load(job).run(job)) == alone
    assert not runner.resident_base.bank.experts


def test_trials_on_the_same_rows_share_the_bases_states_of_them(runner, job, animals, monkeypatch):
    read = []
    monkeypatch.setattr(state, "collate", lambda *args: read.append(1) or collate(*args))
    few = replace(job, train=job.train.model_copy(update={"steps": 2, "eval_every": 2}))
    alone = runner.run(few)
    read.clear()
    runner.run(replace(few, adapter=AdapterSpec(rank=8, targets=("q", "v", "o"))))
    assert quality(runner.run(few)) == quality(alone)
    assert not read
    runner.run(replace(few, task="animals", data=animals))
    assert read
    assert quality(TrialRunner.load(job).run(few)) == quality(alone)


def test_a_trial_that_fails_leaves_the_runner_usable(runner, job, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit_expert", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.run(job)
    assert runner.run(job)["accuracy"] > 0.8


def test_a_trial_trains_as_the_expert_job_does(runner, job, base):
    from ttmoe.adapter import count_parameters, plan_groups

    count = count_parameters(plan_groups(runner.resident_base.bank.model, job.adapter))
    result = run_expert(replace(job, parameters=count, folder=f"{job.folder}-expert"), lambda progress: None)
    found = runner.run(job)
    assert quality(found) == (result.metrics["validation.accuracy"], result.metrics["validation.loss"])
    assert torch.get_num_threads() == job.threads
