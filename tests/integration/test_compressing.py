"""``ttmoe experts compress`` on a trained expert in a real store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from commands import here, open_registry, succeeded
from test_run import CONFIG, write_library

from orchestrator.config.loading import load_config
from orchestrator.plan.planning import make_plan
from orchestrator.recording.expert_tags import version_tags
from ttmoe.expert_files import read_manifest
from workers.expert_runner import run_expert

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(base_folder, fresh_store, tmp_path_factory) -> Path:
    """A library with one expert, as stage 1 registers it."""
    folder = write_library(tmp_path_factory.mktemp("compress"), base_folder, CONFIG, fresh_store)
    before = Path.cwd()
    os.chdir(folder)
    try:
        planned = make_plan(load_config("tiny.yaml").config).experts["colours"]
        result = run_expert(planned.job, lambda progress: None)
    finally:
        os.chdir(before)
    registry = open_registry(folder / "runs")
    parent = registry.start_run("tiny", "run", {}, "a: 1\n", {})
    run = registry.expert_run("tiny", parent, "colours", result.spec_hash, {})
    registry.register_expert("tiny", "colours", result.spec_hash, Path(result.folder), run,
                             version_tags(planned, result), metrics=result.metrics, promote=True)  # fmt: skip
    registry.finish_run(run, "FINISHED")
    registry.finish_run(parent, "FINISHED")
    return folder


def versions(home: Path) -> list[Any]:
    return open_registry(home / "runs").experts("tiny", every=True)


def compress(home: Path, *options: str) -> Any:
    return here(home, "experts", "compress", "colours", "--config", "tiny.yaml", *options)


def test_the_small_expert_is_a_candidate_that_names_its_origin(home):
    out = succeeded(compress(home, "--parameters", "600")).out
    whole, small = versions(home)
    assert "registered colours v2: colours v1 cut to rank" in out
    assert "name it in the config (tasks.colours.expert: {version: 2})" in out
    assert (whole.aliases, small.aliases) == (("champion",), ("candidate",))
    assert int(small.tags["parameters"]) <= 600 < int(whole.tags["parameters"])
    assert small.tags["origin"] == "compressed"
    assert (small.tags["origin_version"], small.tags["origin_spec_hash"]) == ("1", whole.spec_hash)
    assert small.tags["compression"].startswith("truncate")
    registry = open_registry(home / "runs")
    manifest = read_manifest(registry.fetch(small))
    assert (manifest.spec_hash, manifest.labels) == (small.spec_hash, ("blue", "green", "red"))
    # Again: the same version.
    succeeded(compress(home, "--parameters", "600"))
    assert len(versions(home)) == 2
    registry.check_files(small)


def test_the_smallest_expert_that_loses_little(home):
    succeeded(compress(home, "--accuracy-within", "1"))
    assert versions(home)[-1].tags["rank"] == "1"


@pytest.mark.parametrize(("options", "said"), [
    ((), "give --parameters N"),
    (("--parameters", "1"), "the smallest has"),
    (("--parameters", "9", "--accuracy-within", "0.1"), "given twice"),
    (("--accuracy-within", "-1"), "raise the bound"),
    (("--parameters", "900", "--set", "tasks.colours.split.test=0.3"), "trained on other rows"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(home, options, said):
    before = len(versions(home))
    done = compress(home, *options)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert len(versions(home)) == before
