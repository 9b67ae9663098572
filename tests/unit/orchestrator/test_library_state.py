"""States of experts, router and search: cached, changed, stale, missing or orphaned, and the reasons."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from library_plan import FakeRegistry, plan_of, version, version_of

from orchestrator.plan.library_state import last_checkpoint_step, read_library_state
from workers import expert_result

SEARCH = {"task": "colours", "trials": 2, "steps": 10}


@pytest.fixture
def planned(base_folder, tmp_path):
    return lambda **sections: plan_of(base_folder, tmp_path, **sections)


def test_without_a_registry_everything_is_missing_and_none_is_created(planned, tmp_path):
    state = read_library_state(planned(search=SEARCH), None)
    assert {expert.state for expert in state.experts.values()} == {"missing"}
    assert (state.router.state, state.search.state) == ("missing", "missing")
    assert (state.todo, state.has_work, state.orphaned) == (["colours", "animals"], True, ())
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_version_of_the_spec_is_cached_even_if_a_newer_version_has_another_spec(planned):
    plan, other = planned(), planned(train={"steps": 41})
    registry = FakeRegistry([version_of(plan, "colours", 1), version_of(other, "colours", 2)])
    expert = read_library_state(plan, registry).experts["colours"]
    assert (expert.state, expert.version.version) == ("cached", 1)


def test_an_expert_or_router_whose_files_are_gone_is_missing(planned):
    plan = planned()
    own, router = version_of(plan, "colours", 3), version("router", plan.router_hash, 4, {}, {})
    intact = FakeRegistry([own, version_of(plan, "animals")], champion=router)
    assert not read_library_state(plan, intact).has_work
    state = read_library_state(plan, replace(intact, gone=(own, router)))
    expert = state.experts["colours"]
    assert (expert.state, expert.reason, state.todo) == ("missing", "the files of v3 are gone or damaged", ["colours"])
    assert (state.router.state, state.router.reason) == ("missing", "the files of v4 are gone or damaged")
    assert state.gone == ["colours"]


def test_changes_to_the_newest_version_are_named_with_both_values(planned):
    before, newest, plan = planned(train={"steps": 10}), planned(train={"steps": 200}), planned(train={"steps": 120})
    registry = FakeRegistry([version_of(before, "colours", 1), version_of(newest, "colours", 2)])
    expert = read_library_state(plan, registry).experts["colours"]
    assert (expert.state, expert.version.version, expert.reason) == ("changed", 2, "train.steps 200 -> 120")


@pytest.mark.parametrize(
    ("sections", "changes"),
    [
        ({"adapter": {"rank": 2}}, ["adapter.rank 4 -> 2", "adapter.shape.q ", "adapter.shape.v "]),
        ({"adapter": {"rank": 4, "targets": ["q"]}}, ["adapter.targets q,v -> q", "adapter.shape.v ", "-> not set"]),
        ({"head": "frozen"}, ["head trained -> frozen"]),
        ({"tasks": {"colours": {"split": {"validation": 0.2, "test": 0.2, "salt": "x"}}}}, ["data changed"]),
        ({"adapter": {"rank": 4, "layers": "1-"}}, ["adapter.first_layer 0 -> 1"]),
        ({"train": {"steps": 40, "batch_tokens": 64}}, ["train.batch_tokens none -> 64"]),
        ({"train": {"steps": 40, "validation_rows": 20}}, ["train.validation_rows not set -> 20"]),
    ],
    ids=str,
)
def test_each_kind_of_change_is_named(planned, sections, changes):
    registry = FakeRegistry([version_of(planned(), "colours")])
    reason = read_library_state(planned(**sections), registry).experts["colours"].reason
    for change in changes:
        assert change in reason
    assert reason.count(";") == len([change for change in changes if change != "-> not set"]) - 1  # no other change


def test_a_new_recipe_number_is_explained(planned):
    plan = planned()
    old = version_of(plan, "colours")
    spec = json.loads(old.tags["spec"]) | {"recipe": 0}
    old = replace(old, spec_hash="other", tags={**old.tags, "spec": json.dumps(spec)})
    new = plan.experts["colours"].spec["recipe"]
    reason = read_library_state(plan, FakeRegistry([old])).experts["colours"].reason
    assert reason == f"recipe 0 -> {new} (the code trains differently)"


def test_a_version_without_a_spec_is_compared_by_its_tags(planned):
    other = planned(adapter={"rank": 2})
    bare = version_of(planned(), "colours", spec_tag=False)
    reason = read_library_state(other, FakeRegistry([bare])).experts["colours"].reason
    assert "adapter.rank 4 -> 2; adapter.shape q=" in reason
    steps = planned(train={"steps": 41})
    assert read_library_state(steps, FakeRegistry([bare])).experts["colours"].reason == "settings changed"
    elsewhere = version("colours", "imported", 1, {"spec": "null"}, {})
    assert read_library_state(steps, FakeRegistry([elsewhere])).experts["colours"].reason == "settings changed"


def test_training_continues_from_the_last_checkpoint(planned):
    plan = planned()
    folder = Path(plan.experts["colours"].job.folder, "checkpoints")
    folder.mkdir(parents=True)
    for name in ("00000020.checkpoint", "00000100.checkpoint", ".00000300.part"):
        (folder / name).touch()
    assert last_checkpoint_step(folder) == 100
    missing = read_library_state(plan, None).experts
    assert (missing["colours"].reason, missing["colours"].step) == ("continues from step 100", 100)
    changed = read_library_state(plan, FakeRegistry([version_of(planned(head="frozen"), "colours")])).experts["colours"]
    assert changed.reason == "head frozen -> trained; continues from step 100"


def test_a_trained_expert_is_only_registered(planned, monkeypatch):
    plan = planned()
    job = plan.experts["animals"].job
    Path(job.folder).mkdir(parents=True)
    result = expert_result.ExpertResult("animals", job.spec_hash, {}, 1, "digest", job.folder)
    Path(job.folder, expert_result.EXPERT_RESULT_FILE).write_text(json.dumps(asdict(result)))
    assert not read_library_state(plan, None).experts["animals"].trained  # a result without its weights does not count
    monkeypatch.setattr("orchestrator.plan.library_state.finished_result", lambda folder, spec_hash: result)
    expert = read_library_state(plan, None).experts["animals"]
    assert (expert.trained, expert.reason) == (True, "trained, not yet registered")


def test_tasks_that_are_not_in_the_config_are_orphaned(planned):
    plan = planned()
    registry = FakeRegistry(
        [version_of(plan, "colours"), version("old", "x", 1, {}, {}), version("old", "y", 2, {}, {})]
    )
    assert read_library_state(plan, registry).orphaned == ("old",)


def test_one_query_reads_all_experts(planned):
    registry = FakeRegistry()
    read_library_state(planned(), registry)
    assert registry.queries == 1


def test_the_router_is_cached_stale_or_missing(planned):
    plan, other = planned(), planned(tasks={"animals": {"train": {"steps": 41}}})
    assert read_library_state(plan, FakeRegistry()).router.state == "missing"
    own = version("router", plan.router_hash, 3, {}, {})
    assert read_library_state(plan, FakeRegistry(champion=own)).router.state == "cached"
    stale = read_library_state(other, FakeRegistry(champion=own, lock=plan.lock)).router
    assert (stale.state, stale.changed_tasks) == ("stale", ("animals",))
    assert stale.reason == "v3 was trained for other experts (animals)"
    settings = read_library_state(planned(router={"epochs": 3}), FakeRegistry(champion=own, lock=plan.lock)).router
    assert (settings.changed_tasks, settings.reason) == ((), "v3 was trained with other settings")
    without_lock = read_library_state(other, FakeRegistry(champion=own)).router
    assert without_lock.reason == "v3 has another spec, and its lock cannot be read"


def test_a_removed_task_makes_the_router_stale(planned):
    plan = planned()
    lock = {**plan.lock, "gone": "x"}
    registry = FakeRegistry(champion=version("router", "r", 1, {}, {}), lock=lock)
    assert read_library_state(plan, registry).router.changed_tasks == ("gone",)


def test_a_complete_library_has_no_work(planned, tmp_path):
    plan = planned(search=SEARCH)
    registry = FakeRegistry(
        [version_of(plan, task) for task in plan.experts],
        champion=version("router", plan.router_hash, 1, {}, {}),
        search=tmp_path,
    )
    assert not read_library_state(plan, registry).has_work
    registry.search = None
    assert read_library_state(plan, registry).has_work
