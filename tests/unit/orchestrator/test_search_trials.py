"""The trials of a search: what is suggested, what is recorded as they end, and what they reserve. No Ray starts."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from library_plan import plan_of

from orchestrator.config.schema import SearchSettings
from orchestrator.plan.forecast import check_search_fits, estimate_memory, trial_resources
from orchestrator.plan.library_state import StageState
from orchestrator.pool.capacity import GB, Node
from orchestrator.search import tuning
from orchestrator.search.suggestions import Suggestions
from orchestrator.search.trial_records import TrialRecords
from orchestrator.search.tune_trial import TrialCallback
from orchestrator.search.tuning import max_parallel_trials, run_search
from ttmoe.base import empty_body
from ttmoe.errors import InfeasibleError, WorkFailedError

SPACE = {"rank": [2, 4, 8], "factors": ["2+2", "2+3"]}


def settings(**more):
    return SearchSettings(task="colours", **more)


def trial(rank, factors="2+2", accuracy=0.9):
    return {"rank": rank, "factors": factors, "shapes": "{}", "cores": 4, "spec_hash": f"{rank:02}{factors}",
            "accuracy": accuracy, "loss": 0.5, "parameters": rank * 10.0, "seconds": 1.0}  # fmt: skip


def suggest_all(suggestions, fails=()):
    """Return the choices of all trials, each of which ends before the next; those with a rank in ``fails`` fail."""
    choices = []
    while choice := suggestions.suggest(str(len(choices))):
        suggestions.finish(str(len(choices)), None if choice["rank"] in fails else trial(**choice))
        choices.append(choice)
    return choices


def pairs(choices):
    return [(choice["rank"], choice["factors"]) for choice in choices]


@pytest.mark.parametrize("fails", [(), (4,)])
@pytest.mark.parametrize(("trials", "count"), [(3, 3), (6, 6), (50, 6)])
def test_each_choice_is_suggested_once(trials, count, fails):
    found = pairs(suggest_all(Suggestions(SPACE, settings(trials=trials)), fails))
    assert len(found) == len(set(found)) == count


def test_choices_that_are_asked_for_at_one_time_differ_too():
    suggestions = Suggestions(SPACE, settings(trials=6))
    assert len(set(pairs(suggestions.suggest(str(i)) for i in range(6)))) == 6
    assert suggestions.suggest("more") is None


def test_trials_that_finished_earlier_count_and_are_not_suggested_again():
    earlier = [trial(2), trial(4, "2+3")]
    found = pairs(suggest_all(Suggestions(SPACE, settings(trials=5), earlier)))
    assert len(found) == 3
    assert not set(found) & set(pairs(earlier))
    assert Suggestions(SPACE, settings(trials=2), earlier).left == 0


def test_the_same_seed_suggests_the_same_choices():
    first, second, other = (suggest_all(Suggestions(SPACE, settings(trials=5, seed=seed))) for seed in (3, 3, 4))
    assert first == second != other


class Runs:
    """Registry that keeps how the runs of trials ended: spec hash, metrics, status and error."""

    def __init__(self):
        self.runs = {}

    def expert_run(self, library, parent, task, spec_hash, params, *, search, metrics):
        assert search
        self.runs[spec_hash] = {"parent": parent, "metrics": {key: value for key, value, *_ in metrics}}
        return spec_hash

    def tag_run(self, run, tags):
        self.runs[run] |= tags

    def finish_run(self, run, status):
        self.runs[run]["status"] = status


@pytest.fixture
def records(tmp_path):
    return lambda run="first", registry=None: TrialRecords(tmp_path, "lib", "colours", registry or Runs(), run)


def test_a_trial_is_recorded_when_it_ends_and_found_by_the_next_search(records):
    before = records()
    before.add(trial(2) | {"training_iteration": 1})
    assert before.registry.runs["022+2"]["status"] == "FINISHED"
    assert before.registry.runs["022+2"]["metrics"]["accuracy"] == 0.9
    before.add_failed({key: trial(4)[key] for key in ("rank", "factors", "shapes", "spec_hash")}, "ValueError: [/b]")
    failed = before.registry.runs["042+2"]
    assert (failed["status"], failed["error"], failed["metrics"]) == ("FAILED", "ValueError: [/b]", {})
    again = records("second")
    assert again.read_earlier(SPACE) == again.finished == [trial(2)]  # a failed trial is tried again
    assert again.registry.runs["022+2"]["parent"] == "second"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"rank": 2}'])
def test_a_damaged_record_is_no_trial(records, damage):
    before = records()
    before.add(trial(2))
    (before.folder / "022+2.json").write_text(damage)
    assert records().read_earlier(SPACE) == []


@pytest.mark.parametrize(
    "change", [{"rank": 3}, {"factors": "3+3"}, {"rank": [2]}, {"accuracy": math.nan}, {"parameters": math.inf},
               {"accuracy": None}, {"accuracy": "0.9"}]
)  # fmt: skip
def test_a_record_that_the_search_cannot_use_is_no_trial(records, change):
    before = records()
    for content in (trial(2), trial(4)):
        before.add(content)
    (before.folder / "022+2.json").write_text(json.dumps(trial(2) | change))
    assert (earlier := records().read_earlier(SPACE)) == [trial(4)]
    assert (2, "2+2") in pairs(suggest_all(Suggestions(SPACE, settings(trials=6), earlier)))


def test_two_records_of_a_choice_are_one_trial(records):
    before = records()
    for content in (trial(2), trial(2) | {"spec_hash": "other"}):
        before.add(content)
    earlier = records().read_earlier(SPACE)
    assert pairs(earlier) == [(2, "2+2")]
    assert Suggestions(SPACE, settings(trials=2), earlier).left == 1


def test_a_trial_on_disk_is_found_although_the_store_failed(records):
    class Broken(Runs):
        def expert_run(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records(registry=Broken()).add(trial(2))
    assert records().read_earlier(SPACE) == [trial(2)]


def test_the_error_of_a_failed_trial_is_shown_and_recorded(records, tmp_path):
    (tmp_path / "error.txt").write_text("Failure # 1\nTraceback\n  File ...\nValueError: no [/such] value\n")
    states, kept = [], records()
    view = SimpleNamespace(set_state=lambda *state: states.append(state))
    callback = TrialCallback(view, kept, lambda choice: trial(**choice))
    ended = SimpleNamespace(trial_id="ab_00001", config={"rank": 4, "factors": "2+2"},
                            error_file=str(tmp_path / "error.txt"))  # fmt: skip
    callback.on_trial_error(0, [], ended)
    assert states == [("00001", "failed", "ValueError: no [/such] value")]
    assert kept.failed[0]["error"] == "ValueError: no [/such] value"
    ended.error_file = None
    callback.on_trial_error(0, [], ended)
    assert states[1][2] == "no error message is recorded"


@pytest.fixture
def planned(base_folder, tmp_path):
    def make(search=None, **sections):
        return plan_of(base_folder, tmp_path, search={"task": "colours", "steps": 10} | (search or {}), **sections)

    return make


@pytest.mark.parametrize(
    ("search", "resources", "limit"), [(None, None, None), (3, None, 3), (None, 2, 2), (3, 2, 2), (1, 2, 1)]
)
def test_the_smaller_limit_of_parallel_trials_holds(planned, search, resources, limit):
    plan = planned({"max_parallel": search}, resources={"max_parallel": resources})
    assert max_parallel_trials(plan) == limit


def test_a_trial_reserves_the_memory_of_an_expert_with_its_own_training(planned):
    plan = planned({"ranks": [4]})
    own = estimate_memory(plan, empty_body(plan.base), ["colours"], 1)["colours"].host
    assert trial_resources(plan).memory == pytest.approx(own, rel=0.01)
    large = {"train": {"batch_size": 20000}}
    assert trial_resources(planned({"ranks": [4], **large})).memory > 2 * own
    assert trial_resources(planned({"ranks": [2, 64]})).memory > own
    layers = {"adapter": {"layers": "1-"}}
    more = trial_resources(planned({"ranks": [4], "space": {"layers": ["1-", "all"]}}, **layers)).memory
    assert more > trial_resources(planned({"ranks": [4]}, **layers)).memory
    several = planned({"ranks": [4], "task": None, "tasks": "all"}, tasks={"animals": {"train": {"batch_size": 20000}}})
    assert trial_resources(several).memory > 2 * own
    assert trial_resources(planned(resources={"cpus_per_expert": 2})).cpus == 2


def test_a_search_whose_trials_no_node_holds_is_refused_unless_it_is_cached(planned):
    plan = planned({"train": {"batch_size": 20000}})
    nodes = [Node("small", 4, 0, GB)]
    with pytest.raises(InfeasibleError, match="a trial of the search requires"):
        check_search_fits(plan, SimpleNamespace(search_is_missing=True), nodes)
    check_search_fits(plan, SimpleNamespace(search_is_missing=False), nodes)


class SearchRegistry(Runs):
    """Registry of a whole search."""

    def __init__(self):
        super().__init__()
        self.files = []

    def start_run(self, *_, **__):
        return "search"

    def end_run_on_exit(self, run):
        from contextlib import nullcontext

        return nullcontext()

    def log_file(self, run, path):
        self.files.append(path.name)


@pytest.fixture
def searched(planned, monkeypatch):
    """Run a search whose trials are answered in this process by a function of the choice; it may raise."""
    view = SimpleNamespace(start_stage=lambda *_: None, set_state=lambda *_, **__: None)

    def search(answer, **more):
        def tune(plan, job, suggestions, records, view):
            number = 0
            while choice := suggestions.suggest(str(number)):
                try:
                    result = answer(choice)
                    records.add(result)
                except ValueError as error:
                    result = None
                    records.add_failed(trial(**choice), str(error))
                suggestions.finish(str(number), result)
                number += 1

        monkeypatch.setattr(tuning, "_tune", tune)
        plan, registry = planned({"trials": 5, **more}), SearchRegistry()
        run_search(plan, registry, view)
        return json.loads((plan.work_folder("search", "colours", plan.search_hash) / "trials.json").read_text())

    return search


def test_one_failed_trial_costs_no_other(searched):
    asked = []

    def answer(choice):
        asked.append(choice)
        if len(asked) == 2:
            raise ValueError("no")
        return trial(**choice)

    record = searched(answer)
    assert (len(record["trials"]), len(record["failed"])) == (4, 1)
    assert record["failed"][0]["error"] == "no"
    assert record["front"]


def test_a_search_that_was_interrupted_at_its_last_trial_makes_that_one_alone(searched):
    asked = []

    def answer(choice, last=5):
        asked.append(pairs([choice])[0])
        if len(asked) == last:
            raise KeyboardInterrupt
        return trial(**choice)

    with pytest.raises(KeyboardInterrupt):
        searched(answer)
    record = searched(lambda choice: answer(choice, last=None))
    assert len(asked) == 6
    assert set(asked[5:]).isdisjoint(asked[:4])
    assert len(record["trials"]) == 5


def test_a_search_without_any_finished_trial_fails_with_the_first_error(searched):
    def answer(choice):
        raise ValueError(f"rank {choice['rank']} is wrong")

    with pytest.raises(WorkFailedError, match="none of the 5 trials of the search finished; the first: rank"):
        searched(answer)


def test_the_state_says_whether_a_search_is_missing(planned):
    from library_plan import FakeRegistry

    from orchestrator.plan.library_state import read_library_state

    state = read_library_state(planned(), FakeRegistry())
    assert state.search == StageState("missing", reason="no finished search")
    assert state.search_is_missing


def test_a_run_without_git_has_no_commit(monkeypatch):
    from orchestrator.run import driver

    monkeypatch.setenv("PATH", "")
    assert set(driver._code_version()) == {"version"}


@pytest.mark.parametrize(
    ("train", "halves"),
    [
        ({"batch_size": 32}, [16, 8]),
        ({"batch_size": 32, "batch_tokens": 256}, [4, 2]),  # 8 rows of 32 tokens
        ({"batch_size": 32, "micro_batch": 64}, [16, 8]),
        ({"batch_size": 1}, [None]),
        ({"batch_size": 32, "batch_tokens": 40}, [None]),
    ],
)
def test_what_is_in_the_model_at_once_is_halved_whatever_sets_it(planned, train, halves):
    from orchestrator.run.less_memory import with_half_micro_batch

    job = planned(train=train).experts["colours"].job
    for half in halves:
        job = with_half_micro_batch(job)
        assert (job and job.train.micro_batch) == half


def test_a_search_without_a_shape_is_refused_by_the_plan(planned):
    from orchestrator.plan.search_space import check_search_space
    from ttmoe.errors import InputError

    plan = planned({"cores": [14, 15]})
    with pytest.raises(InputError, match="no shape with 14 to 15 cores"):
        check_search_space(plan, SimpleNamespace(search_is_missing=True))
    check_search_space(plan, SimpleNamespace(search_is_missing=False))
    several = planned({"task": None, "tasks": "all"}, tasks={"animals": {"adapter": {"targets": ["q", "up"]}}})
    check_search_space(several, SimpleNamespace(search_is_missing=True))
    with pytest.raises(InputError, match="no point has at most 1 parameters"):
        check_search_space(planned({"max_parameters": 1}), SimpleNamespace(search_is_missing=True))
