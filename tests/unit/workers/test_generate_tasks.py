"""Tasks whose answers are written: from the config over prepared data and tokens to a verified expert."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import tiny_causal
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.bank import Bank
from ttmoe.base import empty_body, load_body, load_tokenizer
from ttmoe.encoding import Completion, encode_inputs
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert
from ttmoe.generation import generate
from ttmoe.scoring import score
from workers import expert_job
from workers.base.base_sources import resolve_base
from workers.cache.tokens import load_tokenized_rows, token_path
from workers.data.deduplication import deduplicate
from workers.data.examples import Example, to_examples
from workers.data.prepared import load_split, prepare_task
from workers.data.task import Task
from workers.expert_job import ExpertJob
from workers.expert_runner import run_expert, run_experts
from workers.failure import Failure
from workers.training.batches import TokenizedRows, to_input
from workers.training.evaluation import evaluate
from workers.training.gradients import ExpertBatch, add_gradients
from workers.training.memory import estimate_job_memory
from workers.training.settings import TrainSettings

TASK = {"kind": "generate", "source": {"path": "a.jsonl"}, "columns": {"prompt": "p", "answer": "a"}}
SPEC = AdapterSpec(method="lora", targets=("q", "k", "v", "o", "up", "down"), rank=8, alpha=8.0)
UPPER = replace(SPEC, first_layer=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny_causal.save_causal_base(tmp_path_factory.mktemp("causal"))
    return resolve_base(folder=str(folder), cache=folder / "cache", dtype="float32", max_length=32)


@pytest.fixture(scope="module")
def replies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replies")
    return prepare_task("replies", Task.model_validate(tiny_causal.writing_task(folder / "rows.jsonl", 300)), folder)


@pytest.fixture
def job(base, replies, tmp_path):
    train = TrainSettings(steps=90, batch_size=16, eval_every=30, lr=1e-2, seed=5)
    count = count_parameters(plan_groups(empty_body(base), SPEC))
    return ExpertJob("replies", base, replies, SPEC, "trained", train, "ab" * 32, count, str(tmp_path / "expert"))


def nothing(progress):
    pass


def said(**changes):
    with pytest.raises(ValidationError) as caught:
        Task.model_validate({**TASK, **changes})
    return {".".join(map(str, e["loc"])): e for e in caught.value.errors()}


def test_a_label_belongs_to_every_kind_but_this():
    assert Task.model_validate(TASK).label is None
    assert "columns.answer" in said(label={"column": "y"})["label"]["ctx"]["fix"]
    for kind, columns in (("text", {"text": "t"}), ("pair", {"first": "a", "second": "b"}),
                          ("choice", {"text": "t", "choices": "c"})):  # fmt: skip
        assert said(kind=kind, columns=columns)["label"]["type"] == "missing"
    assert set(said(columns={"text": "t"})) == {"columns.prompt", "columns.answer", "columns.text"}
    task = Task.model_validate(TASK)
    assert Task.model_validate(task.model_dump(mode="json", exclude_none=True)) == task


def test_rows_become_prompts_and_answers():
    rows = [{"p": " say it ", "a": "cat\n"}, {"p": "count", "a": 7}]
    found, names = to_examples(rows, Task.model_validate(TASK), "t")
    assert (found, names) == ([Example(("say it",), (), 0, "", "cat"), Example(("count",), (), 0, "", "7")], ())
    assert [to_input(each) for each in found] == [Completion("say it", "cat"), Completion("count", "7")]
    for row, key in (({"p": "", "a": "x"}, "prompt"), ({"p": "x", "a": None}, "answer"), ({"p": "x"}, "answer")):
        with pytest.raises(InputError) as caught:
            to_examples([row], Task.model_validate(TASK), "t")
        assert caught.value.where == f"tasks.t.columns.{key}"


def test_a_prompt_with_several_answers_keeps_the_commonest():
    def rows(*answers):
        return [Example(("p",), (), 0, "", answer) for answer in answers]

    for answers, kept in ((("b", "a", "b"), "b"), (("b", "a"), "a"), (("a", "b"), "a")):
        unique, removed = deduplicate(rows(*answers))
        assert [each.answer for each in unique] == [kept]
        assert removed == {"duplicates": len(answers) - 1, "conflicts": 0}


def test_prepared_data_keep_answers_and_other_kinds_their_fingerprints(replies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (replies.kind, replies.label_names, replies.counts["train"]) == ("generate", (), {"answers": 180})
    test = load_split(replies, "test")
    answers = [each.answer for each in test]
    assert set(answers) == set(tiny_causal.ANSWERS.values())
    assert all(each.answer == tiny_causal.ANSWERS[next(w for w in each.texts[0].split() if w in tiny.COLOURS)]
               for each in test)  # fmt: skip
    assert replies.majority == max(map(answers.count, answers)) / len(answers)
    path = tiny.write_texts(tmp_path / "rows.jsonl", tiny.COLOURS, "north", 60)
    text = prepare_task("t", Task.model_validate(tiny.text_task(path.relative_to(tmp_path))), tmp_path)
    # As it was before there were answers: trained experts are found by it.
    assert text.fingerprint == "ad9679b331d33f2f8b36e9aeff50d8415b470206841650f23f573551be2b26de"
    rows = tiny_causal.completions(30)
    prints = []
    for change in ("dog", "cow"):
        lines = ({"p": prompt, "a": answer.replace("dog", change)} for prompt, answer in rows)
        path = tiny.write_rows(tmp_path / f"{change}.jsonl", lines)
        prints.append(
            prepare_task("t", Task.model_validate({**TASK, "source": {"path": str(path)}}), tmp_path).fingerprint
        )
    assert prints[0] != prints[1]


def test_tokens_come_out_of_the_store_as_they_went_in(base, replies, tmp_path):
    tokenizer = load_tokenizer(base)
    made, kept = (load_tokenized_rows(base, tokenizer, replies, "test", tmp_path) for _ in range(2))
    assert token_path(base, replies, "test", tmp_path).is_file()
    assert (made.items, made.labels) == (kept.items, kept.labels)
    assert {item.answer_length for item in kept.items} == {2, 3}
    assert all(item.options[0]["input_ids"][-1] == 3 for item in kept.items)


def test_the_loss_is_that_of_the_answers_tokens(base):
    bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
    expert = bank.add("e", SPEC, 0, torch.Generator().manual_seed(0))
    items = encode_inputs(tokenizer, [Completion("red", "dog"), Completion("green north1", "cat dog")], 32)
    rows, expected = TokenizedRows(items, [0, 0]), []
    for item in items:
        ids = torch.tensor([item.options[0]["input_ids"]])
        with bank.active("e"):
            logits = bank.language_head.logits(bank.model(input_ids=ids).last_hidden_state[0])
        start = ids.shape[1] - item.answer_length
        expected.append(F.cross_entropy(logits[start - 1 : -1], ids[0, start:]))
    loss = torch.stack(expected).mean()
    for at_once in (None, 1):
        expert.zero_grad()
        passed = add_gradients(
            bank, [ExpertBatch("e", rows, [0, 1], 0.1, seed=0, step=0)], 0, depth=0, micro_batch=at_once
        )[0]
        assert passed.loss == pytest.approx(loss.item(), rel=1e-5)
        wanted = torch.autograd.grad(loss, list(expert.adapter.parameters()), retain_graph=True)
        for parameter, grad in zip(expert.adapter.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
    found = evaluate(bank, "e", rows, 0)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_row_is_right_where_every_token_is_the_likeliest(monkeypatch):
    def scores(*rows):
        return [torch.tensor(row) for row in rows]

    found = scores([[-0.1, -0.1], [-0.2, -0.2]], [[-0.1, -0.1], [-2.0, -0.2]], [[-0.5, -0.5]])
    monkeypatch.setattr("workers.training.evaluation.expert_scores", lambda *args, **more: found)
    measured = evaluate(torch.nn.Module(), "e", TokenizedRows([], []), 0)
    perplexity = math.exp((0.3 + 2.1 + 0.5) / 5)
    assert measured == pytest.approx({"accuracy": 2 / 3, "loss": (0.15 + 1.05 + 0.5) / 3, "perplexity": perplexity})


def test_an_expert_learns_to_write_and_writes_what_was_measured(job, base, replies, tmp_path):
    result = run_expert(job, nothing)
    assert result.metrics["test.accuracy"] > 0.9
    assert replies.majority < 0.5
    bank, tokenizer = Bank(load_body(base), base.pooling).eval(), load_tokenizer(base)
    manifest = load_expert(bank, tmp_path / "expert", base.digest)
    assert (manifest.kind, manifest.labels, manifest.classes, manifest.answer_tokens) == ("generate", (), 0, 3)
    test = load_split(replies, "test")
    written = generate(bank, tokenizer, [each.texts[0] for each in test], "replies", manifest.answer_tokens,
                       max_length=base.max_length)  # fmt: skip
    right = sum(one.text == each.answer for one, each in zip(written, test, strict=True)) / len(test)
    assert right == result.metrics["test.accuracy"]
    bank.add("untrained", job.adapter, 0, torch.Generator().manual_seed(5))
    rows = load_tokenized_rows(base, tokenizer, replies, "test", tmp_path)
    assert evaluate(bank, "untrained", rows, 0)["accuracy"] < 0.1


def test_the_cache_of_trunk_states_changes_no_answer(job, base, tmp_path):
    count = count_parameters(plan_groups(empty_body(base), UPPER))
    job = replace(job, adapter=UPPER, parameters=count)
    kept = replace(job, trunk_bytes=10**9, folder=f"{job.folder}-kept", cache=str(tmp_path / "cache"))
    one, other = run_expert(job, nothing), run_expert(kept, nothing)
    assert (tmp_path / "cache" / "trunk").is_dir()
    assert not (job.cache_folder / "trunk").exists()
    for key in ("validation.accuracy", "validation.loss", "test.accuracy", "test.loss", "best_step"):
        assert other.metrics[key] == pytest.approx(one.metrics[key], abs=1e-4)
    assert one.metrics["test.loss"] < 1.5  # it was above 3


def test_writing_and_judging_are_trained_in_one_process_and_one_pass(job, base, colours, tmp_path):
    count = count_parameters(plan_groups(empty_body(base), SPEC))
    other = replace(job, task="colours", data=colours, spec_hash="cd" * 32, parameters=count,
                    folder=str(tmp_path / "colours"))  # fmt: skip
    assert (job.classes, other.classes) == (0, 3)
    found = run_experts((job, other), nothing)
    assert [found[task].metrics["test.accuracy"] > 0.9 for task in ("replies", "colours")] == [True, True]
    alone = run_experts((replace(job, folder=f"{job.folder}-alone"),), nothing)["replies"]
    assert alone.metrics["test.accuracy"] == pytest.approx(found["replies"].metrics["test.accuracy"], abs=0.1)


def test_a_head_setting_means_nothing_where_there_is_no_head(job):
    short = job.train.model_copy(update={"steps": 5})
    found = [run_expert(replace(job, head=head, train=short, folder=f"{job.folder}-{head}"), nothing)
             for head in ("trained", "frozen")]  # fmt: skip
    assert found[0].weights_digest == found[1].weights_digest


def test_a_copy_that_writes_otherwise_is_noticed(job, monkeypatch):
    honest = expert_job.save_expert

    def save(expert, *args, **more):
        core = next(iter(expert.adapter.parameters()))
        with torch.no_grad():
            core.mul_(1.1)
            manifest = honest(expert, *args, **more)
            core.div_(1.1)
        return manifest

    monkeypatch.setattr(expert_job, "save_expert", save)
    found = run_experts((replace(job, train=job.train.model_copy(update={"steps": 20})),), nothing)["replies"]
    assert isinstance(found, Failure)
    assert found.error == "VerificationError"


def test_an_answer_that_fills_the_row_fails_the_expert_and_says_why(job, base):
    found = run_experts((replace(job, base=replace(base, max_length=3)),), nothing)["replies"]
    assert isinstance(found, Failure)
    assert "an answer has 3 tokens, but prompt and answer together are limited to 3" in found.message


def test_memory_counts_the_language_head(base, tmp_path):
    model, train = empty_body(base), TrainSettings(batch_size=8)
    writes, judges = (estimate_job_memory(model, base, SPEC, classes, train) for classes in (0, 3))
    assert writes.logits > judges.logits == 0
    assert writes.base == judges.base  # tied
    folder = tiny_causal.save_causal_base(tmp_path, tie_word_embeddings=False)
    other = resolve_base(folder=str(folder), cache=tmp_path / "cache", dtype="float32", max_length=32)
    body = empty_body(other)
    more = estimate_job_memory(body, other, SPEC, 0, train).base - estimate_job_memory(body, other, SPEC, 3, train).base
    assert more == body.config.vocab_size * tiny_causal.WIDTH * 4


def test_a_plain_prompt_has_no_scores(base):
    bank, tokenizer = Bank(load_body(base), base.pooling).eval(), load_tokenizer(base)
    bank.add("e", SPEC, 0, torch.Generator().manual_seed(0))
    assert score(bank, encode_inputs(tokenizer, ["red"], 32), "e", 0)[0].shape == (0, 2)
