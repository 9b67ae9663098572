"""The links that ``ttmoe ui`` prints are a convenience: a server that does not answer for them goes on running."""

from __future__ import annotations

import io
import urllib.request
from pathlib import Path

import pytest

from orchestrator.config.store_address import sqlite_uri
from orchestrator.progress import mlflow_ui

VIEW = f'"tags": [{{"key": "{mlflow_ui._EXPERTS_VIEW}", "value": "{{}}"}}]'


@pytest.mark.parametrize("body", [OSError("timed out"), "not JSON", "{}"])
def test_without_an_answer_there_are_no_links(monkeypatch: pytest.MonkeyPatch, body: str | OSError) -> None:
    answer(monkeypatch, body)
    assert mlflow_ui._expert_pages(5000) == []


def test_libraries_with_a_view_of_their_experts_have_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, f'{{"experiments": [{{"name": "a [/b]", "experiment_id": "3", {VIEW}}}, '
                        f'{{"name": "older", "experiment_id": "4"}}]}}')  # fmt: skip
    ((name, link),) = mlflow_ui._expert_pages(5000)
    assert name == "a [/b]"
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?")


def test_the_server_gets_no_address_of_which_mlflow_makes_a_second_folder(tmp_path: Path) -> None:
    plain = sqlite_uri(tmp_path / "runs" / "mlflow.db")
    assert mlflow_ui._place(plain)["env"]["MLFLOW_BACKEND_STORE_URI"] == plain
    place = mlflow_ui._place(sqlite_uri(tmp_path / "a%2Fb" / "mlflow.db"))
    assert (place["env"]["MLFLOW_BACKEND_STORE_URI"], place["cwd"]) == ("sqlite:///mlflow.db", tmp_path / "a%2Fb")


def answer(monkeypatch: pytest.MonkeyPatch, body: str | OSError) -> None:
    def urlopen(*args: object, **options: object) -> io.BytesIO:
        if isinstance(body, OSError):
            raise body
        return io.BytesIO(body.encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
