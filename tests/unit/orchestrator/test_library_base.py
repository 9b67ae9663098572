"""The base of a library: the same wherever it lies, and in the number format that its experts have."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import timedelta

import pytest
import tiny
from hub_cache import COMMITS, MODEL, write_hub_cache
from library_plan import FakeRegistry, plan_of, version, version_of

from orchestrator.plan.library_state import OTHER_IDENTITY, read_library_state
from orchestrator.pool.capacity import GB, Node
from workers.hardware import Hardware

FAST, SLOW = ([Node("n", 4, 0, 64 * GB, hardware=Hardware((), bf16, {}))] for bf16 in (True, False))
SEARCH = {"task": "colours", "trials": 2, "steps": 10}
AUTO = {"dtype": "auto", "max_length": 32}


@pytest.fixture
def planned(base_folder, tmp_path):
    """Make the plan of a library whose base is that of the settings, by default the folder of the tiny base."""

    def plan(base=None, **more):
        settings = {"max_length": 32, "dtype": "float32"} | (base or {})
        if not settings.keys() & {"package", "hub", "folder"}:
            settings["folder"] = str(base_folder)
        return plan_of(base_folder, tmp_path, base=settings, search=SEARCH, **more)

    return plan


def registered(plan, tmp_path):
    """Return a registry with everything of the plan."""
    router = version("router", plan.router_hash, 1, {}, {})
    return FakeRegistry([version_of(plan, task) for task in plan.experts], router, plan.lock, tmp_path)


def package(base_folder, site):
    """Install the base as a package into a folder of ``sys.path``."""
    shutil.copytree(base_folder, site / "tiny_model" / "weights", ignore=shutil.ignore_patterns("cache"))
    info = site / "tiny_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


class TestPlace:
    @pytest.mark.parametrize("place", ["folder", "package", "hub"])
    def test_the_same_base_elsewhere_trains_nothing(self, planned, base_folder, tmp_path, monkeypatch, place):
        registry = registered(planned(), tmp_path)
        if place == "folder":
            settings = {"folder": str(shutil.copytree(base_folder, tmp_path / "elsewhere" / "renamed"))}
        elif place == "package":
            package(base_folder, tmp_path / "site")
            monkeypatch.syspath_prepend(tmp_path / "site")
            settings = {"package": "tiny-model==1.0"}
        else:
            write_hub_cache(tmp_path, base_folder, monkeypatch)
            settings = {"hub": MODEL}
        plan = planned(settings)
        assert plan.base.source == place
        assert not read_library_state(plan, registry).has_work

    def test_a_branch_is_shown_with_its_commit_and_its_move_is_explained(
        self, planned, base_folder, tmp_path, monkeypatch
    ):
        hub = write_hub_cache(tmp_path, base_folder, monkeypatch)
        before = planned({"hub": MODEL, "revision": "main"})
        assert before.base_text.startswith("some/model at 111111111111 (main, float32, sha256 ")
        assert planned({"hub": MODEL, "revision": COMMITS[0]}).base_text == before.base_text.replace("main, ", "")
        registry = registered(before, tmp_path)
        hub.move("main", COMMITS[1])
        state = read_library_state(planned({"hub": MODEL}), registry)
        reason = "base.digest changed; base hub:some/model at 111111111111 -> hub:some/model at 222222222222"
        assert [expert.reason for expert in state.experts.values()] == [reason] * 2
        assert state.router.changed_tasks == ("animals", "colours")
        # A version without a spec, such as an imported one, is compared by its tags.
        bare = FakeRegistry([version_of(before, "colours", spec_tag=False)])
        assert read_library_state(planned({"hub": MODEL}), bare).experts["colours"].reason == reason


class TestDtype:
    def test_auto_is_what_the_nodes_of_the_first_run_compute_in(self, planned):
        for nodes, dtype in ((FAST, "bfloat16"), (SLOW, "float32")):
            plan = planned(AUTO, nodes=nodes, registry=FakeRegistry())
            assert plan.base.dtype == dtype
            assert f"({dtype}, sha256" in plan.base_text

    def test_then_it_is_kept_wherever_the_command_runs(self, planned, tmp_path):
        for first, then, text in (
            (FAST, SLOW, "(bfloat16, kept as the library's experts have it, slow because not every node computes"),
            (SLOW, FAST, "(float32, kept as the library's experts have it, sha256"),
            (FAST, FAST, "(bfloat16, kept as the library's experts have it, sha256"),
        ):
            before = planned(AUTO, nodes=first)
            registry = registered(before, tmp_path)
            plan = planned(AUTO, nodes=then, registry=registry)
            assert plan.base == before.base
            assert text in plan.base_text
            assert not read_library_state(plan, registry).has_work

    def test_a_number_format_in_the_config_holds_and_asks_nothing(self, planned, tmp_path):
        registry = registered(planned(AUTO, nodes=FAST), tmp_path)
        plan = planned({"dtype": "float32"}, nodes=FAST, registry=registry)
        assert (plan.base.dtype, "kept" in plan.base_text, registry.queries) == ("float32", False, 0)
        reason = read_library_state(plan, registry).experts["colours"].reason
        assert reason == "base.dtype bfloat16 -> float32"

    def test_the_champions_come_before_newer_experts(self, planned):
        fast, slow = (version_of(planned(AUTO, nodes=nodes), "colours") for nodes in (FAST, SLOW))
        newer = replace(slow, created=slow.created + timedelta(hours=1))
        assert planned(AUTO, nodes=SLOW, registry=FakeRegistry([fast, newer])).base.dtype == "float32"
        champion = replace(fast, aliases=("champion",))
        assert planned(AUTO, nodes=SLOW, registry=FakeRegistry([champion, newer])).base.dtype == "bfloat16"

    def test_experts_of_another_base_or_without_a_spec_do_not_count(self, planned, base_folder, tmp_path):
        old = version_of(planned(AUTO, nodes=SLOW), "colours")
        other = {"folder": str(tiny.save_base(tmp_path / "other", seed=1))}
        versions = [old, version("animals", "imported", 1, {"spec": "null"}, {}), version("x", "y", 1, {}, {})]
        assert planned(AUTO | other, nodes=FAST, registry=FakeRegistry(versions)).base.dtype == "bfloat16"


class TestEarlierIdentity:
    """Specs of earlier versions contain where the base lies."""

    def reason(self, plan, **old):
        spec = json.loads(json.dumps(plan.experts["colours"].spec))
        spec["base"] |= {"source": "folder", "id": "there", "revision": ""}
        own = version_of(plan, "colours")
        past = replace(own, spec_hash="past", tags={**own.tags, "spec": json.dumps(spec | old)})
        return read_library_state(plan, FakeRegistry([past])).experts["colours"].reason

    def test_the_reason_is_not_that_the_base_changed(self, planned):
        assert self.reason(planned()) == OTHER_IDENTITY

    def test_real_changes_are_named_alone(self, planned):
        plan = planned()
        assert self.reason(plan, head="frozen") == "head frozen -> trained"
        number = plan.experts["colours"].spec["recipe"]
        assert self.reason(plan, recipe=0) == f"recipe 0 -> {number} (the code trains differently)"
