"""One expert from data to verified files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer
from ttmoe.encoding import pad_id_of
from ttmoe.expert_files import load_expert, read_manifest
from workers import expert_job
from workers.batches import tokenise
from workers.evaluation import evaluate
from workers.expert_job import RESULT, ExpertJob, VerificationError, finished_result, run_expert
from workers.prepared import load_split
from workers.settings import Train


@pytest.fixture
def job(base, colours, tmp_path):
    spec = AdapterSpec(rank=4, alpha=8.0)
    count = count_parameters(plan_groups(load_body(base), spec))
    train = Train(steps=60, batch_size=16, eval_every=20, lr=1e-2, head_lr=1e-2, seed=5)
    return ExpertJob("colours", base, colours, spec, "trained", train, "ab" * 32, count, str(tmp_path / "expert"))


def folder_of(job, tmp_path):
    return tmp_path / "expert"


def nothing(progress):
    pass


def tampering(monkeypatch, change):
    """``save_expert`` writes other weights than those in memory, with a digest that fits them."""
    honest = expert_job.save_expert

    def save(expert, *args, **more):
        kept = {key: value.clone() for key, value in expert.state_dict().items()}
        with torch.no_grad():
            change(expert)
        manifest = honest(expert, *args, **more)
        expert.load_state_dict(kept)
        return manifest

    monkeypatch.setattr(expert_job, "save_expert", save)


def test_the_files_hold_the_trained_expert(job, base, colours, tmp_path):
    reports = []
    result = run_expert(job, reports.append)
    assert result.metrics["test.accuracy"] > 0.95
    assert result.parameters == job.parameters
    assert {"validation.accuracy", "validation.loss", "test.loss", "steps", "best_step"} < result.metrics.keys()
    states = [r.state for r in reports]
    assert list(dict.fromkeys(states)) == ["loading", "training", "testing", "verifying"]

    folder = tmp_path / "expert"
    bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
    manifest = load_expert(bank, folder, base.digest)
    assert (manifest.task, manifest.labels, manifest.spec_hash) == ("colours", ("blue", "green", "red"), "ab" * 32)
    assert manifest.weights_digest == result.weights_digest
    rows = tokenise(tokenizer, load_split(colours, "test"), base.max_length)
    found = evaluate(bank, "colours", rows, pad_id_of(tokenizer))
    assert found == {key: result.metrics[f"test.{key}"] for key in ("accuracy", "loss")}


def test_the_test_split_is_not_used_before_training_has_ended(job, monkeypatch):
    seen, honest = [], expert_job.fit

    def fit(bank, name, train, validation, *args, **more):
        seen.append((len(train), len(validation)))
        return honest(bank, name, train, validation, *args, **more)

    monkeypatch.setattr(expert_job, "fit", fit)
    run_expert(job, nothing)
    counts = job.data.counts
    assert seen == [(sum(counts["train"].values()), sum(counts["validation"].values()))]


def test_the_same_job_gives_the_same_weights(job, tmp_path):
    other = replace(job, folder=str(tmp_path / "other"))
    assert run_expert(job, nothing).weights_digest == run_expert(other, nothing).weights_digest


def test_the_result_is_written_last(job, tmp_path, monkeypatch):
    honest, folder = expert_job.load_expert, tmp_path / "expert"

    def load(*args, **more):
        assert not (folder / RESULT).exists()
        assert read_manifest(folder)
        return honest(*args, **more)

    monkeypatch.setattr(expert_job, "load_expert", load)
    result = run_expert(job, nothing)
    assert (folder / RESULT).is_file()
    assert finished_result(folder, job.spec_hash) == result
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "change",
    [
        lambda expert: expert.head.bias.add_(1e-3),
        lambda expert: next(iter(expert.adapter.parameters())).mul_(1.01),
        lambda expert: expert.head.weight.fill_(float("nan")),
    ],
    ids=["head", "core", "nan"],
)
def test_a_save_that_lost_something_is_noticed(job, tmp_path, monkeypatch, change):
    tampering(monkeypatch, change)
    with pytest.raises(Exception, match=r"colours|finite") as caught:
        run_expert(job, nothing)
    assert type(caught.value).__name__ in ("VerificationError", "InputError")
    assert finished_result(tmp_path / "expert", job.spec_hash) is None


def test_another_number_of_parameters_than_planned_is_noticed(job, tmp_path):
    with pytest.raises(VerificationError, match=rf"{job.parameters} parameters were trained, 7 planned"):
        run_expert(replace(job, parameters=7), nothing)
    assert finished_result(tmp_path / "expert", job.spec_hash) is None


def test_answers_that_are_not_finite_are_noticed(job, monkeypatch):
    monkeypatch.setattr(expert_job, "scores_of", lambda *_: [torch.tensor([float("inf"), 0.0])])
    with pytest.raises(VerificationError, match="not finitely"):
        run_expert(job, nothing)


def test_only_a_result_of_this_spec_counts(job, tmp_path):
    folder = tmp_path / "expert"
    assert finished_result(folder, job.spec_hash) is None
    result = run_expert(job, nothing)
    assert finished_result(folder, "cd" * 32) is None
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert finished_result(moved, job.spec_hash) == replace(result, folder=str(moved))
    whole = (moved / RESULT).read_text()
    for broken in (whole[:-10], "[]", "null", json.dumps({"task": "colours"})):
        (moved / RESULT).write_text(broken)
        assert finished_result(moved, job.spec_hash) is None


def test_a_choice_has_one_output_and_a_frozen_head_a_random_start(job, colours, monkeypatch):
    assert (job.classes, replace(job, data=replace(colours, kind="choice")).classes) == (3, 1)
    starts, honest = [], expert_job.fit

    def fit(bank, name, *args, **more):
        starts.append(bank.experts[name].head.weight.abs().max().item())
        return honest(bank, name, *args, **more)

    monkeypatch.setattr(expert_job, "fit", fit)
    for head in ("trained", "frozen"):
        run_expert(replace(job, head=head, train=job.train.model_copy(update={"steps": 1})), nothing)
    assert starts[0] == 0 < starts[1]
