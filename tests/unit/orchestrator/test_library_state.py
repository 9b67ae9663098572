"""What is cached, changed, missing or orphaned, and why."""

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


def test_without_a_store_everything_is_missing_and_stays_so(planned, tmp_path):
    standing = read_library_state(planned(search=SEARCH), None)
    assert {each.state for each in standing.experts.values()} == {"missing"}
    assert (standing.router.state, standing.search.state) == ("missing", "missing")
    assert (standing.todo, standing.any, standing.orphaned) == (["colours", "animals"], True, ())
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_version_of_the_spec_is_cached_even_where_a_newer_one_is_not(planned):
    plan, other = planned(), planned(train={"steps": 41})
    registry = FakeRegistry([version_of(plan, "colours", 1), version_of(other, "colours", 2)])
    found = read_library_state(plan, registry).experts["colours"]
    assert (found.state, found.version.version) == ("cached", 1)


def test_what_changed_is_named_with_both_values_against_the_newest_version(planned):
    before, newest, plan = planned(train={"steps": 10}), planned(train={"steps": 200}), planned(train={"steps": 120})
    registry = FakeRegistry([version_of(before, "colours", 1), version_of(newest, "colours", 2)])
    found = read_library_state(plan, registry).experts["colours"]
    assert (found.state, found.version.version, found.why) == ("changed", 2, "train.steps 200 -> 120")


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"adapter": {"rank": 2}}, ["adapter.rank 4 -> 2", "adapter.shape.q ", "adapter.shape.v "]),
        ({"adapter": {"rank": 4, "targets": ["q"]}}, ["adapter.targets q,v -> q", "adapter.shape.v ", "-> not set"]),
        ({"head": "frozen"}, ["head trained -> frozen"]),
        ({"tasks": {"colours": {"split": {"validation": 0.2, "test": 0.2, "salt": "x"}}}}, ["data changed"]),
        ({"adapter": {"rank": 4, "layers": "1-"}}, ["adapter.first_layer 0 -> 1"]),
        ({"train": {"steps": 40, "batch_tokens": 64}}, ["train.batch_tokens none -> 64"]),
    ],
    ids=str,
)
def test_each_kind_of_change_is_told(planned, sections, why):
    found = read_library_state(planned(**sections), FakeRegistry([version_of(planned(), "colours")])).experts["colours"]
    for part in why:
        assert part in found.why
    assert found.why.count(";") == len([part for part in why if part != "-> not set"]) - 1  # and nothing else


def test_a_recipe_that_was_raised_is_explained(planned):
    plan = planned()
    old = version_of(plan, "colours")
    spec = json.loads(old.tags["spec"]) | {"recipe": 0}
    old = replace(old, spec_hash="other", tags={**old.tags, "spec": json.dumps(spec)})
    new = plan.experts["colours"].spec["recipe"]
    why = read_library_state(plan, FakeRegistry([old])).experts["colours"].why
    assert why == f"recipe 0 -> {new} (the code trains differently)"


def test_without_its_spec_a_version_is_compared_by_its_tags(planned):
    other = planned(adapter={"rank": 2})
    bare = version_of(planned(), "colours", spec_tag=False)
    assert (
        "adapter.rank 4 -> 2; adapter.shape q="
        in read_library_state(other, FakeRegistry([bare])).experts["colours"].why
    )
    steps = planned(train={"steps": 41})
    assert read_library_state(steps, FakeRegistry([bare])).experts["colours"].why == "its settings changed"
    elsewhere = version("colours", "imported", 1, {"spec": "null"}, {})
    assert read_library_state(steps, FakeRegistry([elsewhere])).experts["colours"].why == "its settings changed"


def test_checkpoints_say_where_it_continues(planned):
    plan = planned()
    folder = Path(plan.experts["colours"].job.folder, "checkpoints")
    folder.mkdir(parents=True)
    for name in ("00000020.checkpoint", "00000100.checkpoint", ".00000300.part"):
        (folder / name).touch()
    assert last_checkpoint_step(folder) == 100
    missing = read_library_state(plan, None).experts
    assert (missing["colours"].why, missing["colours"].step) == ("continues from step 100", 100)
    changed = read_library_state(plan, FakeRegistry([version_of(planned(head="frozen"), "colours")])).experts["colours"]
    assert changed.why == "head frozen -> trained; continues from step 100"


def test_a_finished_expert_is_only_to_be_registered(planned, monkeypatch):
    plan = planned()
    job = plan.experts["animals"].job
    Path(job.folder).mkdir(parents=True)
    result = expert_result.ExpertResult("animals", job.spec_hash, {}, 1, "digest", job.folder)
    Path(job.folder, expert_result.EXPERT_RESULT_FILE).write_text(json.dumps(asdict(result)))
    assert not read_library_state(plan, None).experts["animals"].trained  # a result without its expert is none
    monkeypatch.setattr("orchestrator.plan.library_state.finished_result", lambda folder, spec_hash: result)
    found = read_library_state(plan, None).experts["animals"]
    assert (found.trained, found.why) == (True, "trained, to be registered")


def test_what_the_config_does_not_name_is_orphaned(planned):
    plan = planned()
    registry = FakeRegistry(
        [version_of(plan, "colours"), version("old", "x", 1, {}, {}), version("old", "y", 2, {}, {})]
    )
    assert read_library_state(plan, registry).orphaned == ("old",)


def test_the_registry_is_asked_once_for_all_experts(planned):
    registry = FakeRegistry()
    read_library_state(planned(), registry)
    assert registry.asked == 1


def test_the_router_is_cached_stale_or_missing(planned):
    plan, other = planned(), planned(tasks={"animals": {"train": {"steps": 41}}})
    assert read_library_state(plan, FakeRegistry()).router.state == "missing"
    own = version("router", plan.router_hash, 3, {}, {})
    assert read_library_state(plan, FakeRegistry(champion=own)).router.state == "cached"
    stale = read_library_state(other, FakeRegistry(champion=own, lock=plan.lock)).router
    assert (stale.state, stale.differs, stale.why) == ("stale", ("animals",), "v3 is for other experts (animals)")
    settings = read_library_state(planned(router={"epochs": 3}), FakeRegistry(champion=own, lock=plan.lock)).router
    assert (settings.differs, settings.why) == ((), "v3 is for the same experts and other settings")
    assert (
        read_library_state(other, FakeRegistry(champion=own)).router.why
        == "v3 is of another spec, and its lock is gone"
    )


def test_a_task_that_was_taken_out_makes_the_router_stale(planned):
    plan = planned()
    lock = {**plan.lock, "gone": "x"}
    assert read_library_state(
        plan, FakeRegistry(champion=version("router", "r", 1, {}, {}), lock=lock)
    ).router.differs == ("gone",)


def test_a_library_that_is_there_leaves_nothing_to_do(planned, tmp_path):
    plan = planned(search=SEARCH)
    registry = FakeRegistry(
        [version_of(plan, task) for task in plan.experts],
        champion=version("router", plan.router_hash, 1, {}, {}),
        search=tmp_path,
    )
    assert not read_library_state(plan, registry).any
    registry.search = None
    assert read_library_state(plan, registry).any
