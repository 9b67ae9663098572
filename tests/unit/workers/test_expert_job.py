"""Expert jobs from data to verified files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import InMemory
from torch import nn

from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.architectures import layer_list
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer, quantised_digest
from ttmoe.encoding import collate, pad_id_of
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, read_manifest
from workers import expert_job, expert_runner, joint_training
from workers.base import resident
from workers.base.resident import count_base_loads, load_resident_base, release_resident_base
from workers.data.prepared import load_split
from workers.expert_job import ExpertJob, estimate_jobs_memory
from workers.expert_result import EXPERT_RESULT_FILE, finished_result
from workers.expert_runner import run_expert, run_experts
from workers.failure import Failure
from workers.progress import Progress
from workers.training import gradients, memory_limit
from workers.training.batches import tokenize
from workers.training.evaluation import evaluate
from workers.training.loop import TrainingFailedError
from workers.training.settings import TrainSettings
from workers.tuning.trial_job import TrialJob, run_trials


@pytest.fixture
def job(base, colours, tmp_path):
    spec = AdapterSpec(rank=4, alpha=8.0)
    count = count_parameters(plan_groups(load_body(base), spec))
    train = TrainSettings(steps=60, batch_size=16, eval_every=20, lr=1e-2, head_lr=1e-2, seed=5)
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


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_an_expert_on_a_quantised_base_learns_and_its_files_say_so(job, base, colours, tmp_path, quantize):
    """Evaluations and trainings take turns on the resident base."""
    own = replace(base, digest=quantised_digest(base.digest, quantize))
    result = run_expert(replace(job, base=own), nothing)
    assert result.metrics["test.accuracy"] > 0.9
    assert read_manifest(tmp_path / "expert").base["digest"] == f"{quantize}:{base.digest}"
    with pytest.raises(InputError, match=f"trained on base .* \\({quantize}:"):
        load_expert(Bank(load_body(base), base.pooling), tmp_path / "expert", base.digest)


def test_the_files_hold_the_trained_expert(job, base, colours, tmp_path):
    reports = []
    result = run_expert(job, reports.append)
    assert result.metrics["test.accuracy"] > 0.95
    assert result.parameters == job.parameters
    assert {"validation.accuracy", "validation.loss", "test.loss", "steps", "best_step"} < result.metrics.keys()
    assert 0.85 < result.metrics["tokens.real_share"] <= 1
    assert result.metrics["tokens.per_second"] > 0
    assert {r.key for r in reports} == {"colours"}
    states = [r.state for r in reports]
    assert list(dict.fromkeys(states)) == ["loading", "training", "testing", "verifying"]

    folder = tmp_path / "expert"
    bank, tokenizer = Bank(load_body(base), base.pooling), load_tokenizer(base)
    manifest = load_expert(bank, folder, base.digest)
    assert (manifest.task, manifest.labels, manifest.spec_hash) == ("colours", ("blue", "green", "red"), "ab" * 32)
    assert manifest.weights_digest == result.weights_digest
    rows = tokenize(tokenizer, load_split(colours, "test"), base.max_length)
    found = evaluate(bank, "colours", rows, pad_id_of(tokenizer))
    assert found == {key: result.metrics[f"test.{key}"] for key in ("accuracy", "loss")}


def test_rows_that_fill_the_length_are_counted_in_all_splits(job, colours, monkeypatch):
    shortest = replace(job, base=replace(job.base, max_length=4))
    result = run_expert(shortest, nothing)
    tokenizer = load_tokenizer(job.base)
    texts = [example for split in ("train", "validation", "test") for example in load_split(colours, split)]
    lengths = tokenize(tokenizer, texts, 1000).lengths
    assert result.metrics["rows.cut"] == sum(length >= 4 for length in lengths) > len(load_split(colours, "test"))
    width = Bank(load_body(job.base), job.base.pooling).width
    assert result.metrics["parameters.head"] == 3 * width + 3


def test_the_test_split_is_not_used_before_training_has_ended(job, monkeypatch):
    seen, honest = [], joint_training.fit_experts

    def fit(bank, trainings, **more):
        seen.append("fit")
        found = honest(bank, trainings, **more)
        seen.append("fitted")
        return found

    def load_tokenized_rows(base, tokenizer, data, split, cache, honest=expert_job.load_tokenized_rows):
        seen.append(split)
        return honest(base, tokenizer, data, split, cache)

    monkeypatch.setattr(joint_training, "fit_experts", fit)
    monkeypatch.setattr(expert_job, "load_tokenized_rows", load_tokenized_rows)
    run_expert(job, nothing)
    assert seen == ["train", "validation", "fit", "fitted", "test"]


def test_the_same_job_gives_the_same_weights(job, tmp_path):
    other = replace(job, folder=str(tmp_path / "other"))
    assert run_expert(job, nothing).weights_digest == run_expert(other, nothing).weights_digest


def test_the_result_is_written_last(job, tmp_path, monkeypatch):
    honest, folder = expert_runner.load_expert, tmp_path / "expert"

    def load(*args, **more):
        assert not (folder / EXPERT_RESULT_FILE).exists()
        assert read_manifest(folder)
        return honest(*args, **more)

    monkeypatch.setattr(expert_runner, "load_expert", load)
    result = run_expert(job, nothing)
    assert (folder / EXPERT_RESULT_FILE).is_file()
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
    found = run_experts((job,), nothing)["colours"]
    assert isinstance(found, Failure)
    assert found.error in ("VerificationError", "InputError")
    assert "colours" in found.message or "finite" in found.message
    assert finished_result(tmp_path / "expert", job.spec_hash) is None


def test_another_number_of_parameters_than_planned_is_noticed(job, tmp_path):
    with pytest.raises(TrainingFailedError, match=rf"{job.parameters} parameters were trained, 7 planned") as caught:
        run_expert(replace(job, parameters=7), nothing)
    assert caught.value.failure.error == "VerificationError"
    assert finished_result(tmp_path / "expert", job.spec_hash) is None


def test_answers_that_are_not_finite_are_noticed(job, monkeypatch):
    infinite = torch.tensor([float("inf"), 0.0, 0.0])
    monkeypatch.setattr(expert_runner, "expert_scores", lambda bank, name, rows, *_, **more: [infinite] * len(rows))
    monkeypatch.setattr(expert_runner, "last_batch_scores", lambda *_: {0: infinite})
    with pytest.raises(TrainingFailedError, match=r"VerificationError.*other or non-finite scores"):
        run_expert(job, nothing)


def test_only_a_result_of_this_spec_counts(job, tmp_path):
    folder = tmp_path / "expert"
    assert finished_result(folder, job.spec_hash) is None
    result = run_expert(job, nothing)
    assert finished_result(folder, "cd" * 32) is None
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert finished_result(moved, job.spec_hash) == replace(result, folder=str(moved))
    whole = (moved / EXPERT_RESULT_FILE).read_text()
    for broken in (whole[:-10], "[]", "null", json.dumps({"task": "colours"})):
        (moved / EXPERT_RESULT_FILE).write_text(broken)
        assert finished_result(moved, job.spec_hash) is None


def test_a_choice_has_one_output_and_a_frozen_head_a_random_start(job, colours, monkeypatch):
    assert (job.classes, replace(job, data=replace(colours, kind="choice")).classes) == (3, 1)
    starts, honest = [], joint_training.fit_experts

    def fit(bank, trainings, **more):
        starts.append(bank.experts[trainings[0].name].head.weight.abs().max().item())
        return honest(bank, trainings, **more)

    monkeypatch.setattr(joint_training, "fit_experts", fit)
    for head in ("trained", "frozen"):
        train = job.train.model_copy(update={"steps": 1})
        run_expert(replace(job, head=head, train=train, folder=f"{job.folder}-{head}"), nothing)
    assert starts[0] == 0 < starts[1]


@pytest.fixture
def jobs(job, animals, tmp_path):
    other = replace(job, task="animals", data=animals, spec_hash="cd" * 32, folder=str(tmp_path / "animals"))
    return (job, replace(other, cache=str(tmp_path / "cache")))


def test_several_are_trained_at_once_on_one_load_of_the_base(jobs, tmp_path):
    release_resident_base()
    before, reports = count_base_loads(), []
    found = run_experts(jobs, reports.append)
    assert count_base_loads() == before + 1
    assert [found[task].metrics["base_loads"] for task in ("colours", "animals")] == [1, 0]
    for job in jobs:
        result = found[job.task]
        assert result.metrics["test.accuracy"] > 0.95
        assert finished_result(Path(job.folder), job.spec_hash) == result
        assert not (Path(job.folder) / "checkpoints").exists()
        states = [r.state for r in reports if r.key == job.task]
        assert list(dict.fromkeys(states)) == ["loading", "training", "testing", "verifying"]
    assert not load_resident_base(job.base, "cpu").bank.experts
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tokens"]
    assert Path(f"{jobs[0].folder}.cache").is_dir()  # which shares nothing


def test_a_finished_expert_is_not_trained_again(job, monkeypatch):
    result = run_expert(job, nothing)
    (Path(job.folder) / "checkpoints").mkdir()  # stopped just before they were removed
    monkeypatch.setattr(joint_training, "fit_experts", lambda *_, **__: 1 / 0)
    reports = []
    assert run_experts((job,), reports.append) == {"colours": result}
    assert reports == []
    assert not (Path(job.folder) / "checkpoints").exists()
    found = run_experts((replace(job, spec_hash="cd" * 32),), nothing)["colours"]
    assert (found.error, found.kind) == ("ZeroDivisionError", "code")


@pytest.mark.parametrize("name", ["expert.safetensors", "expert.json"])
def test_a_result_beside_a_damaged_expert_does_not_count(job, name):
    result = run_expert(job, nothing)
    path = Path(job.folder) / name
    data = path.read_bytes()
    for damaged in (data[:-5], None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        assert finished_result(Path(job.folder), job.spec_hash) is None
    again = run_expert(job, nothing)
    assert again.weights_digest == result.weights_digest
    assert path.exists()


@pytest.mark.parametrize("fault", ["data", "adapter", "diverged", "verification"])
def test_a_fault_of_one_is_nobody_elses(jobs, fault, tmp_path):
    wrong = {
        "data": replace(jobs[1], data=replace(jobs[1].data, folder=tmp_path / "nowhere")),
        "adapter": replace(jobs[1], adapter=AdapterSpec(targets=("nothing",))),
        "diverged": replace(jobs[1], train=jobs[1].train.model_copy(update={"lr": 1e38, "clip": 0.0})),
        "verification": replace(jobs[1], parameters=7),
    }[fault]
    found = run_experts((wrong, jobs[0]), nothing)
    assert list(found) == ["animals", "colours"]
    assert found["animals"].kind == "code"
    expected = {"data": "InputError", "adapter": "InputError", "diverged": "DivergedError"}
    assert found["animals"].error == expected.get(fault, "VerificationError")
    assert found["colours"].metrics["test.accuracy"] > 0.95
    assert not load_resident_base(wrong.base, "cpu").bank.experts
    again = run_experts((jobs[1], jobs[0]), nothing)  # mended: only the one that failed is trained
    assert again["colours"] == found["colours"]
    if fault != "diverged":
        assert again["animals"].metrics["test.accuracy"] > 0.95


@pytest.mark.parametrize(("error", "kind"), [(MemoryError("gone"), "memory"), (OSError(5, "I/O error"), "system")])
def test_what_goes_wrong_around_them_is_the_failure_of_all_that_are_not_finished(jobs, error, kind, monkeypatch):
    done = run_expert(jobs[0], nothing)
    third = replace(jobs[1], task="third", spec_hash="ef" * 32, folder=f"{jobs[1].folder}3")
    taken, honest = [], gradients.score_inputs

    def failing(*args, **more):
        taken.append(1)
        if len(taken) > 25:
            raise error
        return honest(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(gradients, "score_inputs", failing)
        found = run_experts((*jobs, third), nothing)
    assert found["colours"] == done
    assert found["animals"] == found["third"]
    assert (found["third"].kind, found["third"].error) == (kind, type(error).__name__)
    reports = []
    again = run_experts((*jobs, third), reports.append)
    assert {r.step for r in reports if r.state == "training"} == set(range(21, 61))  # from the checkpoint on
    assert again["third"].metrics["test.accuracy"] > 0.95


@pytest.mark.parametrize(("first_layer", "budget", "asked"), [(1, 10**9, True), (1, 0, False), (0, 10**9, False)])
def test_trunk_states_are_opened_where_there_is_a_trunk_and_room(job, monkeypatch, first_layer, budget, asked):
    seen = []

    def load_or_compute_trunk(bank, rows, **more):
        more["report"](Progress("trunk", 1, 2))
        seen.append((more["split"], more["depth"], more["budget"], more["cache"], more["fingerprint"], more["pad_id"]))
        return InMemory(bank, rows, more["pad_id"])

    monkeypatch.setattr(expert_job, "load_or_compute_trunk", load_or_compute_trunk)
    spec = AdapterSpec(rank=4, alpha=8.0, first_layer=first_layer)
    count = count_parameters(plan_groups(load_body(job.base), spec))
    job, reports = replace(job, adapter=spec, parameters=count, trunk_bytes=budget), []
    result = run_expert(job, reports.append)
    splits = ["train", "validation", "test"] if asked else []
    assert seen == [(s, 1, 10**9, job.cache_folder, job.data.fingerprint, 0) for s in splits]
    assert result.metrics["test.accuracy"] > 0.9
    assert len([r for r in reports if (r.state, r.key) == ("trunk", "colours")]) == len(splits)


@pytest.mark.parametrize(
    ("steps", "trainings", "rows"), [(2, 1, 8), pytest.param(30, 1, 180, marks=pytest.mark.thorough), (2, 12, 180)]
)
def test_the_trunk_of_training_rows_is_computed_for_those_that_steps_read(
    job, tmp_path, monkeypatch, steps, trainings, rows
):
    """Of 180 rows; all of them if at least half are read, by this training and others."""
    spec, passed = AdapterSpec(rank=4, alpha=8.0, first_layer=1), []
    # Its states for the scale of the head are kept from test to test. Releasing it would collect garbage.
    monkeypatch.setattr(resident, "_resident", None)
    monkeypatch.setattr(resident, "_began_loading", False)
    bank = load_resident_base(job.base, "cpu").bank
    query = next(layer for layer in layer_list(bank.model)[0].modules() if isinstance(layer, nn.Linear))
    trunk, inputs = bank.trunk(1), collate([{"input_ids": [2], "attention_mask": [1]}], 0)
    trunk.run_above(trunk.states(inputs), inputs)  # the first time it runs a layer to look at its output
    train = job.train.model_copy(update={"steps": steps, "batch_size": 4, "eval_every": steps})
    job = replace(job, adapter=spec, train=train, trunk_bytes=10**9, cache=str(tmp_path), trainings=trainings)
    with query.register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0]))):
        run_trials([TrialJob(job, steps)], lambda progress: None)
    assert sum(passed) == 180 + 60 + rows  # for the scale of the head; validation rows, once; and training rows


def test_a_trial_counts_the_trials_that_read_its_rows(job):
    trial = replace(job, train=job.train.model_copy(update={"steps": 10, "batch_size": 10}))
    assert [trial.caches_training_trunk(rows, 10 * rows) for rows in (200, 201)] == [True, False]
    assert replace(trial, trainings=2).caches_training_trunk(400, 4000)
    by_tokens = replace(trial, train=trial.train.model_copy(update={"batch_tokens": 200}))  # 20 rows
    assert [by_tokens.caches_training_trunk(rows, 10 * rows) for rows in (400, 401)] == [True, False]


def test_the_cache_of_trunk_states_changes_no_answer(job, tmp_path):
    spec = AdapterSpec(rank=4, alpha=8.0, first_layer=1)
    job = replace(job, adapter=spec, parameters=count_parameters(plan_groups(load_body(job.base), spec)))
    kept = replace(job, trunk_bytes=10**9, folder=f"{job.folder}-kept", cache=str(tmp_path / "cache"))
    one, other = run_expert(job, nothing), run_expert(kept, nothing)
    assert (tmp_path / "cache" / "trunk").is_dir()
    for key in ("validation.accuracy", "validation.loss", "test.accuracy", "test.loss", "best_step"):
        assert other.metrics[key] == pytest.approx(one.metrics[key], abs=1e-4)


def test_a_training_keeps_to_what_was_planned_for_the_largest_of_a_job(job, monkeypatch):
    limits = []

    def allow(limit):
        limits.append(limit)
        return memory_limit.MemoryLimit(2**60)

    monkeypatch.setattr(joint_training, "MemoryLimit", allow)
    one = replace(job, train=job.train.model_copy(update={"steps": 2, "eval_every": 2}))
    many = replace(one, task="other", train=one.train.model_copy(update={"batch_size": 4096}), folder=f"{job.folder}-2")
    run_experts((one, many), nothing)
    body = load_resident_base(job.base, "cpu").bank.model
    assert limits == [estimate_jobs_memory((many, many), body).host]
    assert limits[0] > estimate_jobs_memory((one, one), body).host
