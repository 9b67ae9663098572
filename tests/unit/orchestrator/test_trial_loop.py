"""Trials on their way through the worker pool into MLflow, with a runner and a registry that are stand-ins."""

from collections import Counter
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_sampler import Grid, accuracy, key
from test_task_search import record_of

from orchestrator.pool.work_units import JobEvent, WorkUnit
from orchestrator.progress.live_view import LiveView
from orchestrator.search.cut_search import CutSearch
from orchestrator.search.finalists import choose_winner
from orchestrator.search.halving import Halving
from orchestrator.search.repetitions import SearchSize
from orchestrator.search.sampler import Sampler
from orchestrator.search.shared_point import find_shared_point
from orchestrator.search.task_search import TaskSearch
from orchestrator.search.trial import RungResult, Trial
from orchestrator.search.trial_loop import SearchBudget, TrialLoop
from orchestrator.search.trial_runs import TrialRuns
from workers.failure import Failure
from workers.tuning.trial_job import TrialJob, TrialResult


class Runs:
    """A registry that keeps the runs of trials."""

    def __init__(self):
        self.runs, self.status, self.metrics = {}, {}, {}

    def expert_run(self, library, parent, task, spec_hash, params, *, search, is_new, name, tags):
        run_id = f"run {parent} {task} {spec_hash}"  # each search has its own
        assert search
        assert is_new == (run_id not in self.runs)
        before = self.runs.get(run_id, {})
        assert params == {}
        self.runs[run_id] = before | {"run": parent, "task": task, "spec_hash": spec_hash} | tags
        self.status[run_id] = "RUNNING"
        return run_id

    def log_metrics(self, run_id, rows, tags, params):
        self.runs[run_id] |= tags
        assert params["parameters"] > 0
        self.metrics.setdefault(run_id, []).extend((key, step, value) for key, value, step, _ in rows)

    def tag_run(self, run_id, tags):
        self.runs[run_id] |= tags

    def finish_run(self, run_id, status):
        self.status[run_id] = status

    def trial_runs(self, library):
        found = []
        for run_id, tags in self.runs.items():
            record = record_of(Trial(tags["task"], 1, {}, tags["spec_hash"], 0), **tags)
            found.append(SimpleNamespace(tags=record.tags, params=record.params, run_id=run_id))
        return found


class Runner:
    """A runner with so many workers, which train nothing.

    Attributes:
        packs: The keys and rungs of each unit, in order.
    """

    def __init__(self, workers=2, fails=lambda trial: None, stop_after=None, value=lambda name, point: 0.0):
        self.workers, self.fails, self.stop_after, self.packs, self.value = workers, fails, stop_after, [], value

    def run(self, units, reduce_memory=None, resources=None, requests=tuple, more_units=None):
        running = list(units)
        while running := running + list(more_units(self.workers - len(running))):
            unit, *running = running
            self.packs.append(tuple((name, job.rung) for name, job in unit.jobs.items()))
            for name, job in unit.jobs.items():
                if failure := self.fails(job):
                    yield JobEvent(name, failure=failure, done=True)
                    continue
                value = accuracy(job.expert.point) - 0.1 / job.rung + self.value(name, job.expert.point)
                result = TrialResult(job.rung, value, 1 - value, 1.0, job.rung == 90)
                yield JobEvent(name, result=result, done=True)
            if self.stop_after is not None and len(self.packs) >= self.stop_after:
                raise KeyboardInterrupt
            yield None


class Trials:
    """Makes the trials of a task, whose jobs have only what the runner reads."""

    def __init__(self, task):
        self.task, self.removed = task, []

    def make(self, number, point, origin, seed=0):
        described = {"rank": point["rank"], "factors": point["factors"]}
        hash_ = f"{key(point)} {seed}" + " without rungs" * (origin == "shared")
        return Trial(self.task, number, point, hash_, 10 * point["rank"], origin, seed, description=described)

    def job(self, trial, rung):
        return TrialJob(SimpleNamespace(task=trial.key, point=trial.point, folder="/tmp/none"), rung)

    def remove_files(self, trial):
        self.removed.append(trial.key)


SIX, NO_LIMIT = SearchSize(6), SearchBudget()


def make_loop(registry, tasks=("trec",), size=SIX, rungs=(90,), budget=NO_LIMIT, run_id="search 1"):
    runs = TrialRuns("lib", run_id, registry)
    earlier = runs.read()
    searches = {}
    for task in tasks:
        space, trials = Grid(), Trials(task)
        sampler = Sampler(space, "tpe", ["accuracy"], 0, 3, lambda point: f"{key(point)} 0")
        own = [trial for trial in earlier if trial.task == task]
        search = TaskSearch(task, sampler, Halving(rungs, 3, ["accuracy"]), size, trials.make, own)
        searches[task] = search, trials
    return TrialLoop(searches, runs, budget, LiveView(Console(file=StringIO(), width=100)))


def states(loop, task="trec"):
    return [(trial.number, trial.steps, trial.state) for trial in loop.searches[task][0].trials]


def test_each_rung_is_recorded_when_it_is_reached():
    registry = Runs()
    make_loop(registry, rungs=(10, 30, 90)).run(Runner(), None)
    assert set(registry.status.values()) == {"FINISHED"}
    steps = [[step for name, step, _ in rows if name == "accuracy"] for rows in registry.metrics.values()]
    assert [10, 30, 90] in steps
    assert any(each in ([10], [10, 30]) for each in steps)  # stopped
    assert {tags["state"] for tags in registry.runs.values()} == {"finished", "stopped"}
    assert all(tags["run"] == "search 1" for tags in registry.runs.values())


def test_trials_of_a_task_share_a_unit_and_tasks_take_turns():
    runner = Runner()
    make_loop(Runs(), ("trec", "mrpc"), SearchSize(3), budget=SearchBudget(trials_per_unit=2)).run(runner, None)
    assert [[name for name, _ in pack] for pack in runner.packs] == [
        ["trec 1", "trec 2"], ["mrpc 1", "mrpc 2"], ["trec 3"], ["mrpc 3"]]  # fmt: skip


def shared(loop):
    """Each task's complete points of the first seed, the winners of all, and the trials of another task's winner."""
    searches = {task: search for task, (search, _) in loop.searches.items()}
    points = {task: {key(t.point) for t in search.trials if t.state == "finished" and not t.seed}
              for task, search in searches.items()}  # fmt: skip
    winners = {key(choose_winner(search.trials, 0.005).trials[0].point) for search in searches.values()}
    return (
        points,
        winners,
        [trial for search in searches.values() for trial in search.trials if trial.origin == "shared"],
    )


def test_every_task_tries_what_is_recommended_for_the_others():
    registry, tasks = Runs(), ("trec", "mrpc", "sst2")
    runner = Runner(value=lambda name, point: 0.1 * (point["rank"] == {"t": 1, "m": 2, "s": 4}[name[0]]))
    loop = make_loop(registry, tasks, SearchSize(3, confirm=1), rungs=(10, 90))
    loop.run(runner, None)
    points, winners, added = shared(loop)
    assert all(winners <= of_task for of_task in points.values())
    assert added
    assert all(trial.rungs[0].steps == 90 for trial in added)
    assert find_shared_point({task: search.trials for task, (search, _) in loop.searches.items()}, 0.005)
    again = make_loop(registry, tasks, SearchSize(3, confirm=1), rungs=(10, 90))
    runner.packs.clear()
    again.run(runner, None)
    assert runner.packs == []


def test_an_interrupted_search_tries_the_same_points_of_other_tasks():
    tasks = ("trec", "mrpc")
    whole = make_loop(Runs(), tasks, SearchSize(2))
    whole.run(Runner(workers=1), None)
    count = sum(len(search.trials) for search, _ in whole.searches.values())
    for stop_after in range(1, count):
        registry = Runs()
        with pytest.raises(KeyboardInterrupt):
            make_loop(registry, tasks, SearchSize(2)).run(Runner(workers=1, stop_after=stop_after), None)
        again = make_loop(registry, tasks, SearchSize(2))
        again.run(Runner(workers=1), None)
        assert shared(again)[:2] == shared(whole)[:2]


@pytest.mark.parametrize(("budget", "trained"), [
    (SearchBudget(steps=180, parallel=1), 2), (SearchBudget(seconds=1e-9), 0), (SearchBudget(steps=10**6), 6),
])  # fmt: skip
def test_a_budget_ends_the_search(budget, trained):
    runner = Runner()
    make_loop(Runs(), budget=budget).run(runner, None)
    assert len(runner.packs) == trained


def test_no_more_units_run_at_the_same_time_than_allowed():
    running = []

    class Counting(Runner):
        def run(self, units, reduce_memory=None, resources=None, requests=tuple, more_units=None):
            running.append(list(more_units(5)))
            assert list(more_units(5)) == []
            yield from ()

    make_loop(Runs(), budget=SearchBudget(parallel=2)).run(Counting(), None)
    assert len(running[0]) == 2
    assert all(isinstance(unit, WorkUnit) for unit in running[0])


def test_a_failed_trial_does_not_affect_the_others_and_loses_its_files():
    registry = Runs()
    fails = lambda job: Failure("code", "ValueError", "no") if job.expert.task == "trec 2" else None  # noqa: E731
    loop = make_loop(registry)
    loop.run(Runner(fails=fails), None)
    assert [state for *_, state in states(loop)] == ["finished", "failed", *["finished"] * 4]
    failed = [run for run, status in registry.status.items() if status == "FAILED"]
    assert ["ValueError: no" in registry.runs[run]["error"] for run in failed] == [True]
    assert loop.searches["trec"][1].removed == ["trec 2"]


def test_a_task_whose_first_trials_all_fail_is_given_up():
    runner = Runner(workers=1, fails=lambda job: Failure("code", "ValueError", "no"))
    make_loop(Runs()).run(runner, None)
    assert len(runner.packs) == 3


@pytest.mark.parametrize("rungs", [(90,), (10, 30, 90)])
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_search_that_was_killed_goes_on_from_the_store(rungs, stop_after):
    whole = make_loop(undisturbed := Runs(), rungs=rungs)
    whole.run(Runner(workers=1), None)
    registry = Runs()
    with pytest.raises(KeyboardInterrupt):
        make_loop(registry, rungs=rungs).run(Runner(workers=1, stop_after=stop_after), None)
    again = make_loop(registry, rungs=rungs)
    again.run(Runner(workers=1), None)
    assert states(again) == states(whole)
    points = [[trial.point for trial in loop.searches["trec"][0].trials] for loop in (again, whole)]
    assert points[0] == points[1]
    assert registry.status == undisturbed.status
    assert registry.metrics == undisturbed.metrics


def test_a_trial_that_another_search_has_finished_is_not_trained_again():
    registry = Runs()
    make_loop(registry, size=SearchSize(4)).run(Runner(), None)
    runner = Runner(workers=1)
    loop = make_loop(registry, size=SearchSize(6), run_id="search 2")
    loop.run(runner, None)
    assert len(runner.packs) == 2
    assert [state for *_, state in states(loop)] == ["finished"] * 6
    assert Counter(tags["run"] for tags in registry.runs.values()) == {"search 1": 4, "search 2": 6}


def test_a_search_that_takes_over_results_leaves_an_interrupted_one_whole():
    registry, whole = Runs(), make_loop(Runs(), size=SearchSize(6))
    whole.run(Runner(workers=1), None)
    with pytest.raises(KeyboardInterrupt):
        make_loop(registry, size=SearchSize(6)).run(Runner(workers=1, stop_after=4), None)
    make_loop(registry, size=SearchSize(2), run_id="search 2").run(Runner(workers=1), None)
    again = make_loop(registry, size=SearchSize(6))
    again.run(Runner(workers=1), None)
    assert states(again) == states(whole)


def test_without_any_measured_trial_no_reference_is_trained():
    runner = Runner(workers=1, fails=lambda job: Failure("code", "ValueError", "no"))
    loop = make_loop(Runs(), size=SearchSize(2, references=(1, 4)))
    loop.run(runner, None)
    assert [trial.origin for trial in loop.searches["trec"][0].trials] == ["sampled", "sampled"]


def test_a_number_is_not_given_twice_where_a_run_was_deleted():
    registry = Runs()
    make_loop(registry, size=SearchSize(4)).run(Runner(), None)
    del registry.runs[next(iter(registry.runs))]
    loop = make_loop(registry, size=SearchSize(4))
    loop.run(Runner(), None)
    assert [trial.number for trial in loop.searches["trec"][0].trials] == [2, 3, 4, 5]


def test_a_trial_that_goes_on_after_an_interruption_runs_in_mlflow_again():
    registry = Runs()
    with pytest.raises(KeyboardInterrupt):
        make_loop(registry, rungs=(10, 30, 90)).run(Runner(workers=1, stop_after=1), None)
    registry.status = dict.fromkeys(registry.status, "KILLED")
    assert list(make_loop(registry, rungs=(10, 30, 90))._more_units(1))
    assert list(registry.status.values()) == ["RUNNING"]


def test_a_parent_that_another_search_has_trained_is_cut_all_the_same():
    class Parents:
        def make(self, number, point, origin, seed=0):
            return Trial("trec", number, point, f"{point['rank']} {origin}", 10 * point["rank"], origin, seed)

        def job(self, trial, rung):
            adapter, train = SimpleNamespace(rank=16), SimpleNamespace(steps=rung)
            return TrialJob(SimpleNamespace(task=trial.key, adapter=adapter, train=train, folder="/tmp/none"), rung)

    runs, parents = TrialRuns("lib", "search 1", Runs()), Parents()
    known = parents.make(1, {"rank": 16}, "parent")
    known.rungs = [RungResult(90, 0.9, 0.1, 1.0)]
    runs.known[known.spec_hash] = known
    search = CutSearch("trec", (16, 4), 90, SIX, parents.make)
    loop = TrialLoop({"trec": (search, parents)}, runs, NO_LIMIT, LiveView(Console(file=StringIO())))
    (unit,) = loop._more_units(1)
    assert [job.ranks for job in unit.jobs.values()] == [(4,)]
