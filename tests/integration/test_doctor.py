"""``ttmoe doctor`` on this machine: all checks, and an expert that really trains."""

from __future__ import annotations

import json

import commands
import pytest

pytestmark = pytest.mark.integration


def test_a_machine_that_runs_these_tests_passes_and_nothing_is_left(tmp_path):
    done = commands.here(tmp_path, "doctor", "--json")
    content = json.loads(done.out)
    checks = {check["name"]: check for check in content["checks"]}
    assert not [check for check in checks.values() if check["verdict"] == "failed"]
    assert (done.code, content["failed"], done.running) == (0, 0, [])
    assert checks["training"]["found"].startswith("an expert of two steps and its router, registered, in ")
    assert checks["hub"]["found"] == "off by choice (HF_HUB_OFFLINE)"
    assert list(tmp_path.iterdir()) == []
