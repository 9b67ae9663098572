"""A library with a task of conversations: trained, routed to, asked, streamed, checked and exported."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import tiny
import tiny_chat
import yaml
from commands import cells, here, open_registry, succeeded
from killed_driver import units_inline
from rich.console import Console

from orchestrator.config.store_address import find_store
from orchestrator.predict.request import PredictRequest
from orchestrator.predict.texts import predict_texts

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(tmp_path_factory, fresh_store) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "runs").mkdir()
    (folder / "runs" / fresh_store.name).write_bytes(fresh_store.read_bytes())
    tiny_chat.save_chat_base(folder / "base")
    tasks = {
        "chats": tiny_chat.chat_task(folder / "rows.jsonl"),
        "places": tiny.text_task(tiny.write_texts(folder / "places.jsonl", tiny.ANIMALS, "south")),
    }
    config = {
        "library": "talk", "base": {"folder": "base", "max_length": 48, "dtype": "float32"}, "tasks": tasks,
        "adapter": {"method": "lora", "targets": ["q", "v", "o", "up", "down"], "rank": 8},
        "train": {"steps": 150, "batch_size": 16, "eval_every": 50, "lr": 1e-2}, "router": {"unknown": 0},
    }  # fmt: skip
    (folder / "talk.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def printed(home) -> str:
    with units_inline():
        return succeeded(here(home, "run", "talk.yaml")).out


def test_it_is_trained_and_routed_to(home, printed):
    assert cells(printed, "chats")[1] == "text"
    accuracies = [float(cell) for cell in cells(printed, "chats")[3:5]]
    assert min(accuracies) > 0.85
    [version] = [each for each in open_registry(home / "runs").experts("talk") if each.task == "chats"]
    assert version.metrics["test.perplexity"] < 2
    assert "To do: nothing" in succeeded(here(home, "run", "talk.yaml")).out
    succeeded(here(home, "experts", "verify"))
    assert (
        "answers in conversations" in open_registry(home / "runs").client.get_registered_model("talk.chats").description
    )


def test_conversations_are_answered(home, printed):
    rows = tiny_chat.conversations(240)[:30]
    asked = [{"messages": row[:-1], "number": i} for i, row in enumerate(rows)]
    tiny.write_rows(home / "asked.jsonl", asked)
    out = succeeded(here(home, "predict", "--file", "asked.jsonl")).out
    answers = [json.loads(line) for line in out.splitlines()]
    assert [{"messages": each["messages"], "number": each["number"]} for each in answers] == asked
    right = [each["label"] == row[-1]["content"] for each, row in zip(answers, rows, strict=True)]
    assert sum(right) > 25
    assert {each["task"] for each in answers if each["label"]} <= {"chats", "places"}
    out = succeeded(here(home, "predict", "--json", "north1 red north2", "south1 cat south4")).out
    plain, other = map(json.loads, out.splitlines())
    assert (plain["task"], plain["label"]) == ("chats", "dog")
    assert (other["task"], other["label"]) == ("places", "cat")
    from orchestrator.api import predict

    talk = [{"role": "user", "content": "north1 red north2"}]
    assert predict([talk], root=home / "runs")[0]["label"] == "dog"
    import mlflow

    registry = open_registry(home / "runs")
    served = mlflow.pyfunc.load_model(str(registry.fetch(registry.router("talk"))))
    rows = [{"text": "", "messages": talk}, {"text": "north1 blue", "messages": None}]
    assert served.predict(rows)["label"].tolist() == ["dog", "cat"]


def test_one_answer_is_streamed_to_a_terminal(home, printed, capsys):
    def asked(*texts, terminal=True, **more):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
        messages = Console(file=io.StringIO(), width=160)
        store = find_store(root=home / "runs")
        predict_texts(PredictRequest(texts, library="talk", store=store, **more), console, messages)
        return capsys.readouterr().out, console.file.getvalue(), messages.file.getvalue()

    streamed, table, line = asked("north1 green north2")
    assert (streamed, table) == ("cat dog\n", "")
    assert line.startswith("chats, confidence 0.")
    for arguments, more in ((("north1 green north2",) * 2, {}), (("north1 green north2",), {"terminal": False})):
        streamed, table, line = asked(*arguments, **more)
        assert (streamed, line) == ("", "")
        assert "cat dog" in table
    assert "cat" in asked("south1 cat south4")[1]  # a label is no text


def test_another_template_trains_the_conversations_again(home, printed):
    path = home / "base" / "chat_template.jinja"
    path.write_text("{{ bos_token }}" + tiny_chat.MARKED)
    out = succeeded(here(home, "plan", "talk.yaml")).out
    assert cells(out, "places") != cells(out, "chats")
    assert "chat_template" in out
    path.write_text(tiny_chat.MARKED)


def test_it_is_exported_and_cut(home, printed):
    out = succeeded(here(home, "experts", "export", "--all", "exported")).out
    assert "left out, for they have a head for classes or options: places" in out
    table = json.loads((home / "exported" / "experts.json").read_text())["experts"]
    assert [(row["task"], row["answer_tokens"]) for row in table] == [("chats", 3)]
    cut = succeeded(here(home, "experts", "compress", "chats", "--config", "talk.yaml", "--accuracy-within", "0.1")).out
    assert "registered chats v2" in cut
    registry = open_registry(home / "runs")
    [version] = [each for each in registry.experts("talk", every=True) if (each.task, each.version) == ("chats", 2)]
    manifest = json.loads(registry.read_file(version, "expert.json"))
    assert (manifest["kind"], manifest["chat_template"]) == ("chat", tiny_chat.MARKED)
