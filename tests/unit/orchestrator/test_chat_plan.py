"""Tasks of kind chat: plan, forecast and errors before any work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
import tiny_causal
import tiny_chat
import yaml

from orchestrator.config.loading import resolved_yaml
from orchestrator.config.schema import Config
from orchestrator.config.yaml_document import read_yaml
from orchestrator.plan.planning import make_plan
from orchestrator.plan.trunk_forecast import count_tokens
from ttmoe.chat_template import ChatTemplate
from ttmoe.errors import InputError

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def config(tmp_path):
    def make(folder, **chats):
        tasks = {"colours": tiny.text_task(tiny.write_texts(tmp_path / "colours.jsonl", tiny.COLOURS, "south")),
                 "chats": tiny_chat.chat_task(tmp_path / "chats.jsonl") | chats}  # fmt: skip
        base = {"folder": str(folder), "dtype": "float32", "max_length": 14}
        return Config.model_validate({"library": "tiny", "base": base, "tasks": tasks,
                                      "storage": {"root": str(tmp_path / "runs")}})  # fmt: skip

    return make


def test_a_chat_task_is_planned(config, tmp_path, monkeypatch):
    library = config(tiny_chat.save_chat_base(tmp_path / "base"))
    plan = make_plan(library)
    job = plan.experts["chats"].job
    assert (job.classes, job.data.label_names, job.options) == (0, (), 1)
    assert 0.2 < plan.experts["chats"].cut_share < 0.9  # conversations of two turns are longer
    assert Config.model_validate(read_yaml(resolved_yaml(library), "resolved").data) == library
    tokens, sequences = count_tokens(job.data, 128)
    assert sequences == 240
    assert 240 * 6 < tokens < 240 * 40
    monkeypatch.setattr(ChatTemplate, "__init__", lambda *args: pytest.fail("what was found is remembered"))
    assert make_plan(library).lock == plan.lock


def test_the_template_is_part_of_the_spec_of_conversations_alone(config, tmp_path):
    folder = tiny_chat.save_chat_base(tmp_path / "base")
    plan = make_plan(config(folder))
    assert ["chat_template" in expert.spec for expert in plan.experts.values()] == [False, True]
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + tiny_chat.MARKED)
    other = make_plan(config(folder))
    assert [plan.lock[task] == other.lock[task] for task in ("colours", "chats")] == [True, False]
    assert plan.base == other.base


def test_a_base_without_a_template_is_refused(config, tmp_path):
    folder = tiny_causal.save_causal_base(tmp_path / "base")
    with pytest.raises(InputError, match="no chat template") as caught:
        make_plan(config(folder))
    assert caught.value.where == "tasks.chats.kind"
    assert not (tmp_path / "runs" / "tiny").exists()
    plan = make_plan(config(folder, source=None, columns=None, declared={"rows": 100, "tokens": 9}))
    assert plan.experts["chats"].job.data.rows["train"] == 60


def test_a_base_that_is_not_causal_is_refused(config, base_folder):
    with pytest.raises(InputError, match=r"\(bert\) is not a causal language model"):
        make_plan(config(base_folder))


def test_conversations_that_cannot_be_written_are_refused_before_any_work(config, tmp_path):
    strict = tiny_chat.save_chat_base(tmp_path / "strict", tiny_chat.STRICT)
    with pytest.raises(InputError, match="turns must alternate") as caught:  # some have a message of the system
        make_plan(config(strict))
    assert "tasks.chats" in caught.value.where
    path = tiny.write_rows(tmp_path / "long.jsonl", (
        {"messages": [{"role": "user", "content": f"red north{i}"}, {"role": "assistant", "content": "cat " * 20}]}
        for i in range(20)))  # fmt: skip
    with pytest.raises(InputError, match="an answer has 21 tokens, but prompt and answer together are limited to 14"):
        make_plan(config(tiny_chat.save_chat_base(tmp_path / "base"), source={"path": str(path)}))


def test_head_settings_and_groups_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="a task of kind chat has no head"):
        config(tmp_path, train={"label_smoothing": 0.1})
    values = config(tmp_path).model_dump(mode="json", exclude_none=True)
    with pytest.raises(ValueError, match="generated texts cannot be mixed"):
        Config.model_validate(values | {"router": {"groups": [["colours", "chats"]]}})


def test_a_scorer_is_imported_before_any_work_and_decides_no_weights(config, tmp_path):
    folder = tiny_chat.save_chat_base(tmp_path / "base")
    plan, scored = make_plan(config(folder)), make_plan(config(folder, scorer="tiny_chat:same_length", scorer_rows=7))
    assert (scored.lock, scored.experts["chats"].job.scorer_rows) == (plan.lock, 7)
    assert (plan.experts["chats"].job.scorer, scored.experts["chats"].job.scorer) == ("", "tiny_chat:same_length")
    with pytest.raises(InputError, match="cannot be imported") as caught:
        make_plan(config(folder, scorer="no.such:function"))
    assert caught.value.where == "tasks.chats.scorer"
    task = tiny.text_task(tmp_path / "colours.jsonl") | {"scorer": "tiny_chat:same_length"}
    with pytest.raises(ValueError, match="a task of kind text generates no text to score"):
        config(folder, **task)


def test_the_readmes_task_is_valid():
    [block] = [each for each in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "kind: chat" in each]
    tasks = yaml.safe_load(block)["tasks"]
    found = Config.model_validate({"library": "tiny", "base": {"folder": "base"}, "tasks": tasks})
    assert found.tasks["support"].kind == "chat"
