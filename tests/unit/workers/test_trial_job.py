from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.encoding import collate
from workers import expert_job as job_module
from workers.base.resident import load_resident_base
from workers.expert_job import ExpertJob
from workers.expert_runner import run_expert
from workers.failure import Failure
from workers.training import state
from workers.training.settings import TrainSettings
from workers.tuning.trial_job import TrialJob, run_trials

STEPS = 30


@pytest.fixture
def job(base, colours, tmp_path):
    train = TrainSettings(steps=STEPS, batch_size=16, eval_every=10, lr=1e-2, head_lr=1e-2, seed=2)
    return ExpertJob(
        "first", base, colours, AdapterSpec(rank=4), "trained", train, "aa" * 32, 1280, str(tmp_path / "first"),
        cache=str(tmp_path / "cache"), trainings=9,
    )  # fmt: skip


def other(job, name, **changes):
    """Return a trial of other settings beside ``job``."""
    folder = str(Path(job.folder).with_name(name))
    return replace(job, task=name, spec_hash=name.encode().hex().ljust(64, "0"), folder=folder, **changes)


def run(*trials, rung=STEPS):
    return run_trials([TrialJob(job, rung) for job in trials], lambda progress: None)


def quality(result):
    return result.accuracy, result.loss


def test_a_trial_trains_as_the_expert_job_does_and_reads_no_test_split(job, base):
    found = run(job)["first"]
    assert (found.steps, found.ended) == (STEPS, True)
    assert found.accuracy > 0.8
    assert {path.name.rsplit("-", 1)[1] for path in (job.cache_folder / "tokens").iterdir()} == {"train", "validation"}
    result = run_expert(other(job, "expert"), lambda progress: None)
    assert quality(found) == (result.metrics["validation.accuracy"], result.metrics["validation.loss"])
    assert torch.get_num_threads() == job.threads


def test_a_trial_that_is_continued_rung_by_rung_ends_as_one_that_is_not(job):
    whole = run(other(job, "whole"))["whole"]
    found = [run(job, rung=rung)["first"] for rung in (10, 20, 20, STEPS)]  # the second 20: a unit that is run again
    assert [(each.steps, each.ended) for each in found] == [(10, False), (20, False), (20, False), (STEPS, True)]
    assert quality(found[-1]) == quality(whole)
    assert found[0].seconds < found[1].seconds < found[-1].seconds
    assert not Path(job.folder, "checkpoints").exists()  # nothing can continue it any more


def test_trials_of_a_pack_come_from_different_rungs(job):
    young, old = job, other(job, "old", adapter=AdapterSpec(rank=2))
    run(old, rung=20)
    together = run_trials([TrialJob(young, 10), TrialJob(old, STEPS)], lambda progress: None)
    assert [(together[name].steps, together[name].ended) for name in ("first", "old")] == [(10, False), (STEPS, True)]
    alone = run(other(job, "alone", adapter=AdapterSpec(rank=2)))["alone"]
    assert together["old"].accuracy == alone.accuracy
    assert together["old"].loss == pytest.approx(alone.loss, abs=1e-4)


def test_early_stopping_ends_a_trial_before_its_rung(job):
    impatient = replace(job, train=job.train.model_copy(update={"patience": 1, "lr": 1e-9, "head_lr": 1e-9}))
    found = run(impatient, rung=STEPS)["first"]
    assert found.steps < STEPS
    assert found.ended


def test_a_trial_that_diverges_is_a_failure_of_its_own(job, monkeypatch):
    doomed = other(job, "doomed", train=job.train.model_copy(update={"lr": 1e30}))
    found = run(doomed, job)
    assert isinstance(found["doomed"], Failure)
    assert "lower train.lr" in found["doomed"].message
    assert found["first"].accuracy > 0.8
    assert not load_resident_base(job.base, "cpu").bank.experts


def test_trials_on_the_same_rows_read_them_once(job, animals, monkeypatch):
    passed, read = [], []
    monkeypatch.setattr(state, "collate", lambda *args: passed.append(1) or collate(*args))
    load = job_module.load_tokenized_rows
    monkeypatch.setattr(job_module, "load_tokenized_rows", lambda *args: read.append(args[3]) or load(*args))
    few = replace(job, train=job.train.model_copy(update={"steps": 2, "eval_every": 2}))
    run(few, other(few, "second", adapter=AdapterSpec(rank=8, targets=("q", "v", "o"))))
    assert read == ["train", "validation"]
    passed.clear()
    read.clear()
    run(other(few, "third"))
    assert (read, passed) == ([], [])
    run(other(few, "animals", data=animals))
    assert (read, bool(passed)) == (["train", "validation"], True)
    run(replace(other(few, "alone"), trainings=1))
    run(replace(other(few, "again"), trainings=1))
    assert read == ["train", "validation"] * 3  # a training by itself keeps nothing
