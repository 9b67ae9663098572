"""A training that is stopped and goes on is, to the last bit, the one that was never disturbed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.base import load_body
from workers import stopwatch
from workers.expert_job import ExpertJob
from workers.expert_runner import run_experts
from workers.failure import Failure
from workers.stopping import stopped_by
from workers.stopwatch import ACTIVITIES
from workers.training import session
from workers.training.settings import TrainSettings

ROOT = Path(__file__).parents[3]
DROPPING = AdapterSpec(rank=4, alpha=8.0, dropout=0.2)
PLAIN = TrainSettings(
    steps=60, batch_size=16, eval_every=20, lr=1e-2, head_lr=1e-2, seed=5, head_dropout=0.0, patience=0
)
TIMED = {metric: 0.0 for metric in ("seconds.training", "seconds.job", "tokens.per_second", "base_loads")}
TIMED |= {f"seconds.{activity}": 0.0 for activity in ACTIVITIES}


@pytest.fixture
def job_of(base, colours, animals, tmp_path):
    def make(task, adapter, train):
        data = animals if task == "animals" else colours
        count = count_parameters(plan_groups(load_body(base), adapter))
        return ExpertJob(task, base, data, adapter, "trained", train, task.encode().hex().ljust(64, "0"), count,
                         str(tmp_path / task), cache=str(tmp_path / "cache"))  # fmt: skip

    return make


class Stop(BaseException):
    """A stop from outside: no error of the training."""


class Record:
    """Keeps what was measured at each step, the last time it was taken; stops at one step of one task."""

    def __init__(self, stop=(), how=Stop):
        self.stop, self.how, self.metrics, self.began = stop, how, {}, {}

    def __call__(self, progress):
        if progress.state == "training":
            self.began.setdefault(progress.key, progress.step)
            self.metrics[progress.key, progress.step] = progress.metrics
            if (progress.key, progress.step) == self.stop:
                raise self.how


def untimed(results):
    return {task: replace(r, folder="", metrics=r.metrics | TIMED) for task, r in results.items()}


def elsewhere(jobs):
    return [replace(job, folder=f"{job.folder}-undisturbed") for job in jobs]


def check_same(jobs, record, expected_record, expected):
    found = run_experts(jobs, record)
    assert not [result for result in found.values() if isinstance(result, Failure)]
    assert untimed(found) == untimed(expected)  # the weights' digests among it
    assert record.metrics == expected_record.metrics
    assert not any(Path(job.folder, "checkpoints").exists() for job in jobs)


SHORT = {"steps": 40, "eval_every": 10, "batch_size": 5, "seed": 1}
CASES = {
    "plain": [("colours", AdapterSpec(rank=4, alpha=8.0), PLAIN)],
    "dropout": [("colours", DROPPING, PLAIN.model_copy(update={"head_dropout": 0.2}))],
    "tokens": [("colours", DROPPING, PLAIN.model_copy(update={"batch_tokens": 100, "micro_batch": 4}))],
    "several": [
        ("colours", DROPPING, PLAIN.model_copy(update={"head_dropout": 0.2})),
        ("animals", AdapterSpec(rank=2, targets=("k", "down")), PLAIN.model_copy(update=SHORT)),
        ("upper", AdapterSpec(rank=2, dropout=0.1, first_layer=1), PLAIN.model_copy(update={"steps": 50})),
    ],
}


@pytest.fixture(scope="module")
def undisturbed():
    """What an undisturbed run of a case gives, trained once."""
    kept = {}

    def give(case, jobs):
        if case not in kept:
            record = Record()
            kept[case] = run_experts(elsewhere(jobs), record), record
        return kept[case]

    return give


STOPS = [("several", [20, 33])]
MORE_STOPS = [
    ("dropout", [33, 47]),
    ("several", [45]),
    ("plain", [33]),
    ("dropout", [20]),
    ("tokens", [33]),
    ("several", [7]),
]


@pytest.mark.parametrize(
    ("case", "stops"), [*STOPS, *(pytest.param(*each, marks=pytest.mark.thorough) for each in MORE_STOPS)], ids=str
)
def test_stopped_between_checkpoints(job_of, undisturbed, case, stops):
    jobs = [job_of(*each) for each in CASES[case]]
    expected, expected_record = undisturbed(case, jobs)
    record = Record()
    for stop in stops:
        record.stop = ("colours", stop)
        with pytest.raises(Stop):
            run_experts(jobs, record)
    resumed = Record()
    resumed.metrics = record.metrics
    check_same(jobs, resumed, expected_record, expected)
    every = 10 if case == "several" else 20  # when one is measured, all are saved
    saved = (stops[-1] - 1) // every * every  # a step is reported before it is saved
    assert resumed.began["colours"] == saved + 1
    if case == "several" and saved >= 40:
        assert "animals" not in resumed.began  # it had ended by then


@pytest.mark.parametrize("case", ["dropout", "several"])
def test_stopped_on_request_loses_no_step(job_of, undisturbed, case):
    jobs = [job_of(*each) for each in CASES[case]]
    expected, expected_record = undisturbed(case, jobs)
    record = Record()
    with stopped_by(lambda: ("colours", 33) in record.metrics):
        assert {result.error for result in run_experts(jobs, record).values()} == {"StoppedError"}
    resumed = Record()
    resumed.metrics = record.metrics
    check_same(jobs, resumed, expected_record, expected)
    assert resumed.began["colours"] == 34


@pytest.mark.parametrize(("step", "common"), [(20, 10), (10, 0)])
def test_stopped_between_the_saves_of_two(job_of, undisturbed, monkeypatch, step, common):
    jobs = [job_of(*each) for each in CASES["several"]]
    expected, expected_record = undisturbed("several", jobs)
    record, honest, saves = Record(), session.TrainingState.save, []

    def save(state):
        saves.append(state.result.steps)
        if saves.count(step) == 2:
            raise Stop
        honest(state)

    with monkeypatch.context() as patch:
        patch.setattr(session.TrainingState, "save", save)
        with pytest.raises(Stop):
            run_experts(jobs, record)
    resumed = Record()
    resumed.metrics = record.metrics
    check_same(jobs, resumed, expected_record, expected)
    assert set(resumed.began.values()) == {common + 1}  # one is saved, two are not: all go back


def test_a_failure_goes_on_from_its_checkpoint_too(job_of, undisturbed):
    jobs = [job_of(*each) for each in CASES["dropout"]]
    expected, expected_record = undisturbed("dropout", jobs)
    record = Record(("colours", 33), RuntimeError)
    assert run_experts(jobs, record)["colours"].error == "RuntimeError"
    record.stop = ()
    check_same(jobs, record, expected_record, expected)


def test_the_seconds_of_the_steps_are_those_of_all_attempts(job_of, monkeypatch):
    """A clock that ticks at each reading: every block that is measured takes a second."""
    (job,) = (job_of(*each) for each in CASES["plain"])
    monkeypatch.setattr(session, "CHECKPOINT_AT_END_SECONDS", 0.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=partial(next, count())))
    with pytest.raises(Stop):
        run_experts([job], Record(("colours", 33)))
    metrics = run_experts([job], Record())["colours"].metrics
    assert {activity: metrics[f"seconds.{activity}"] for activity in ACTIVITIES if activity != "trunk"} == {
        "loading": 2,
        "tokens": 2 + 3,  # splits
        "steps": 3 * 60,  # gradients, the losses, then the optimizer
        "evaluation": 3 + 1,
        "saving": 2 + 1,  # a checkpoint does not know how long it took itself: the one at step 20 is not counted
    }


@pytest.mark.parametrize(("seconds", "case", "saved"), [
    (1e9, "plain", [20, 40]), (0.0, "plain", [20, 40, 60]),
    (1e9, "several", [0, 10, 20, 30, 40, 50]),  # "animals" ends at 40 and is saved: the others go on
])  # fmt: skip
def test_a_training_that_ends_is_saved_if_that_took_long(job_of, monkeypatch, seconds, case, saved):
    """The time counts from the save before. What is lost otherwise, between the last step and the result, is short."""
    saves, honest = {}, session.TrainingState.save
    monkeypatch.setattr(session, "CHECKPOINT_AT_END_SECONDS", seconds)
    monkeypatch.setattr(session.TrainingState, "save", lambda state: (
        saves.setdefault(state.training.name, []).append(state.result.steps), honest(state)))  # fmt: skip
    run_experts([job_of(*each) for each in CASES[case]], Record())
    assert saves["colours"] == saved


def test_checkpoints_come_by_time_too(job_of, undisturbed, monkeypatch):
    (job,) = (job_of(*each) for each in CASES["dropout"])
    expected, expected_record = undisturbed("dropout", [job])
    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    record = Record(("colours", 33))
    with pytest.raises(Stop):
        run_experts([job], record)
    assert sorted(path.name for path in Path(job.folder, "checkpoints").iterdir()) == [
        "00000031.checkpoint", "00000032.checkpoint"]  # fmt: skip
    again = Record()
    again.metrics = record.metrics
    check_same([job], again, expected_record, expected)
    assert again.began == {"colours": 33}


def test_early_stopping_counts_the_evaluations_before_the_stop(job_of, monkeypatch):
    (job,) = (job_of(*each) for each in CASES["plain"])
    job = replace(job, train=job.train.model_copy(update={"eval_every": 5, "patience": 3}))
    monkeypatch.setattr(session, "evaluate", lambda *_: {"accuracy": 0.5, "loss": 1.0})
    expected = run_experts(elsewhere([job]), expected_record := Record())
    assert expected["colours"].metrics["steps"] == 20
    record = Record(("colours", 13))
    with pytest.raises(Stop):
        run_experts([job], record)
    record.stop = ()
    check_same([job], record, expected_record, expected)


def test_checkpoints_of_another_form_are_passed_over(job_of, undisturbed, caplog):
    """Other code may have named weights otherwise under the same spec: the training starts anew."""
    (job,) = (job_of(*each) for each in CASES["plain"])
    with pytest.raises(Stop):
        run_experts([replace(job, adapter=replace(job.adapter, rank=3))], Record(("colours", 33)))
    expected, expected_record = undisturbed("plain", [job])
    record = Record()
    check_same([job], record, expected_record, expected)
    assert record.began == {"colours": 1}
    assert "do not fit" in caplog.text


KILLED = """
import os, pickle, signal, sys

from workers.expert_runner import run_experts

jobs = pickle.load(open(sys.argv[1], "rb"))

def report(progress):
    if (progress.key, progress.step) == ("colours", 33):
        os.kill(os.getpid(), signal.SIGKILL)

run_experts(jobs, report)
"""


def test_killed(job_of, undisturbed, tmp_path):
    jobs = [job_of(*each) for each in CASES["several"]]
    expected, expected_record = undisturbed("several", jobs)
    (tmp_path / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "jobs.pickle")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    record = Record()
    found = run_experts(jobs, record)
    assert untimed(found) == untimed(expected)
    assert record.metrics == {key: m for key, m in expected_record.metrics.items() if key[1] > 30}
