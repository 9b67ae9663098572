"""Tasks of conversations: from the config over prepared data and tokens to a verified expert."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import tiny_causal
import tiny_chat
from pydantic import ValidationError

from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.bank import Bank
from ttmoe.base import empty_body, load_body, load_tokenizer
from ttmoe.conversation import Conversation, Message
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert
from ttmoe.generation import generate
from workers.base.base_sources import base_on_this_node, resolve_base
from workers.cache.tokens import load_tokenized_rows, token_path
from workers.data.deduplication import deduplicate
from workers.data.examples import Example, to_examples
from workers.data.prepared import load_split, prepare_task
from workers.data.task import Task
from workers.data.text_forms import strip_case_and_punctuation, strip_formatting
from workers.expert_job import ExpertJob
from workers.expert_runner import run_expert, run_experts
from workers.generated_score import load_scorer
from workers.training.batches import to_input
from workers.training.settings import TrainSettings

TASK = {"kind": "chat", "source": {"path": "a.jsonl"}, "columns": {"messages": "m"}}
SPEC = AdapterSpec(method="lora", targets=("q", "k", "v", "o", "up", "down"), rank=8, alpha=8.0)
HELLO = [{"role": "user", "content": "Red"}, {"role": "assistant", "content": "dog"}]


@pytest.fixture(scope="module", params=["MARKED", "THINKING"])
def base(request, tmp_path_factory):
    folder = tiny_chat.save_chat_base(tmp_path_factory.mktemp("chat"), getattr(tiny_chat, request.param))
    return resolve_base(folder=str(folder), cache=folder / "cache", dtype="float32", max_length=48)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    return prepare_task("chats", Task.model_validate(tiny_chat.chat_task(folder / "rows.jsonl", 300)), folder)


def examples(*rows, **changes):
    return to_examples([{"m": row} for row in rows], Task.model_validate({**TASK, **changes}), "t")[0]


def test_a_chat_task_has_messages_and_no_label():
    task = Task.model_validate(TASK)
    assert Task.model_validate(task.model_dump(mode="json", exclude_none=True)) == task
    with pytest.raises(ValidationError, match="a task of kind chat has no label"):
        Task.model_validate({**TASK, "label": {"column": "y"}})
    with pytest.raises(ValidationError, match="messages"):
        Task.model_validate({**TASK, "columns": {"prompt": "p", "answer": "a"}})


def test_rows_become_conversations():
    more = [*HELLO, {"role": "user", "content": "blue"}]
    assert examples(more) == examples(json.dumps(more)) == examples(HELLO)  # what follows the last answer is dropped
    [found] = examples([{"role": "system", "content": "s"}, *more, {"from": "gpt", "value": " cat "}])
    assert (found.texts, found.answer, found.label, found.choices) == (("Red\nblue",), "cat", 0, ())
    assert found.messages[-1] == Message("assistant", "cat")
    assert to_input(found) == Conversation(found.messages)
    assert found.key == "system\x1fs\x1fuser\x1fred\x1fassistant\x1fdog\x1fuser\x1fblue"
    for form in (strip_formatting, strip_case_and_punctuation):  # rows that the router alone reads
        assert to_input(form(found)) == "red blue"
    [unanswered] = to_examples([{"m": HELLO}], Task.model_validate(
        {"kind": "chat", "routing_rows": {"path": "a.jsonl"}, "columns": {"messages": "m"}}), "t")[0]  # fmt: skip
    assert (unanswered.answer, to_input(unanswered).messages) == ("", (Message("user", "Red"),))


@pytest.mark.parametrize(
    ("row", "what"),
    [("red", "it is not a list of messages"), ([{"role": "tool", "content": "x"}, *HELLO], "has the role 'tool'"),
     ([*HELLO[:1], {"role": "assistant", "content": ""}], "message 2 is empty"),
     (HELLO[:1], "no message of the assistant follows one of the user"),
     (HELLO[::-1], "no message of the assistant follows one of the user")],
)  # fmt: skip
def test_rows_that_are_no_conversation_are_refused(row, what):
    with pytest.raises(InputError, match=what) as caught:
        examples(HELLO, row)
    assert "row 2" in caught.value.what
    assert caught.value.where == "tasks.t.columns.messages"
    assert "`where`" in caught.value.fix


def test_a_prompt_with_several_answers_keeps_the_commonest():
    def with_answer(answer):
        return [*HELLO, {"role": "user", "content": "blue"}, {"role": "assistant", "content": answer}]

    unique, removed = deduplicate(examples(*map(with_answer, ("b", "a", "b")), HELLO))
    assert sorted(each.answer for each in unique) == ["b", "dog"]  # the shorter conversation is another prompt
    assert removed == {"duplicates": 2, "conflicts": 0}


def test_prepared_data_keep_conversations(chats, tmp_path):
    assert (chats.kind, chats.label_names, chats.counts["train"]) == ("chat", (), {"answers": 180})
    test = load_split(chats, "test")
    known = [Conversation.of(row).messages for row in tiny_chat.conversations(300)]
    assert all(each.messages in known for each in test)
    assert {len(each.messages) for each in test} == {2, 3, 4, 5}
    assert {each.answer for each in test} == set(tiny_causal.ANSWERS.values())
    prints = set()
    for row in (HELLO, [*HELLO[:1], {"role": "assistant", "content": "cat"}]):
        rows = [*tiny_chat.conversations(30), row]
        path = tiny.write_rows(tmp_path / f"{row[-1]['content']}.jsonl", ({"m": each} for each in rows))
        task = Task.model_validate({**TASK, "source": {"path": str(path)}})
        prints.add(prepare_task("t", task, tmp_path).fingerprint)
    assert len(prints) == 2


def test_tokens_come_out_of_the_store_as_they_went_in(base, chats, tmp_path):
    tokenizer = load_tokenizer(base)
    made, kept = (load_tokenized_rows(base, tokenizer, chats, "test", tmp_path) for _ in range(2))
    assert token_path(base, chats, "test", tmp_path).is_file()
    assert (made.items, made.labels) == (kept.items, kept.labels)
    assert {len(item.answers) for item in kept.items} == {1, 2}
    other = replace(base, chat_template=tiny_chat.PLAIN)
    assert token_path(other, chats, "test", tmp_path) != token_path(base, chats, "test", tmp_path)
    assert replace(base, chat_template="") == base  # it is no part of what a base is


def test_another_copy_of_the_base_writes_as_the_drivers_does(base, tmp_path):
    copy = tiny_chat.save_chat_base(tmp_path, None)
    there = replace(base, folder="/nowhere", asked=(("folder", str(copy)), ("cache", tmp_path)))
    found = base_on_this_node(there)
    assert (found.folder, found.chat_template) == (str(copy), base.chat_template)
    assert load_tokenizer(found).chat_template == base.chat_template


def test_an_expert_learns_to_answer_and_answers_what_was_measured(base, chats, tmp_path):
    train = TrainSettings(steps=120, batch_size=16, eval_every=40, lr=1e-2, seed=5)
    count = count_parameters(plan_groups(empty_body(base), SPEC))
    job = ExpertJob("chats", base, chats, SPEC, "trained", train, "ab" * 32, count, str(tmp_path / "expert"))
    job = replace(job, scorer="tiny_chat:same_length", scorer_rows=40)
    result = run_expert(job, lambda progress: None)
    assert result.metrics["test.accuracy"] > 0.9 > 0.6 > chats.majority
    assert 1 < result.metrics["test.perplexity"] < 1.5
    assert result.metrics["validation.perplexity"] < 1.5
    bank, tokenizer = Bank(load_body(base), base.pooling).eval(), load_tokenizer(base)
    manifest = load_expert(bank, tmp_path / "expert", base.digest)
    longest = 5 if base.chat_template == tiny_chat.THINKING else 3  # with what precedes the answer
    assert (manifest.kind, manifest.answer_tokens, manifest.chat_template) == ("chat", longest, base.chat_template)
    test = load_split(chats, "test")
    prompts = [Conversation(each.messages).prompt for each in test]
    written = generate(bank, tokenizer, prompts, "chats", manifest.answer_tokens, max_length=base.max_length)
    right = sum(one.text == each.answer for one, each in zip(written, test, strict=True)) / len(test)
    assert right == result.metrics["test.accuracy"]
    pairs = [(one.text, each.answer) for one, each in zip(written, test, strict=True)][:40]
    assert result.metrics["test.score"] == pytest.approx(sum(tiny_chat.same_length(*pair) for pair in pairs) / 40)


def test_the_cache_of_trunk_states_changes_no_answer(base, chats, colours, tmp_path):
    """Also together with an expert that judges, in one pass."""
    upper = replace(SPEC, first_layer=1)
    count = count_parameters(plan_groups(empty_body(base), upper))
    train = TrainSettings(steps=20, batch_size=8, eval_every=10, lr=1e-2, seed=5)
    job = ExpertJob("chats", base, chats, upper, "trained", train, "ab" * 32, count, str(tmp_path / "one"))
    kept = replace(job, trunk_bytes=10**9, folder=str(tmp_path / "kept"), cache=str(tmp_path / "cache"))
    judge = replace(job, task="colours", data=colours, spec_hash="cd" * 32, folder=str(tmp_path / "judge"))
    one, cached = run_expert(job, lambda progress: None), run_expert(kept, lambda progress: None)
    together = run_experts((replace(job, folder=str(tmp_path / "two")), judge), lambda progress: None)["chats"]
    for other in (cached, together):
        for key in ("validation.loss", "test.loss", "test.perplexity", "test.accuracy"):
            assert other.metrics[key] == pytest.approx(one.metrics[key], abs=1e-4)
    assert (tmp_path / "cache" / "trunk").is_dir()


def test_examples_of_other_kinds_are_as_they_were():
    assert Example(("a",), (), 0, "").messages == ()


@pytest.mark.parametrize(
    ("name", "what"),
    [("tiny_chat", "does not name a function"), ("tiny_chat:nothing", "AttributeError"), (":f", "does not name"),
     ("no.such:f", "ModuleNotFoundError"), ("tiny_chat:WORDS", "cannot be called")],
)  # fmt: skip
def test_a_scorer_that_is_not_there_is_refused(name, what):
    with pytest.raises(InputError, match=what) as caught:
        load_scorer(name, "tasks.t.scorer")
    assert caught.value.where == "tasks.t.scorer"
