"""One training, every rank: the cutting job on a base that takes a second to train on."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import tiny
import tiny_causal
import torch

from ttmoe.adapter import AdapterSpec
from ttmoe.base import Base
from ttmoe.cutting import cut_expert
from ttmoe.expert_files import EXPERT_WEIGHTS, load_expert, read_manifest
from workers.base.base_sources import resolve_base
from workers.base.resident import load_resident_base
from workers.data.prepared import PreparedTask, prepare_task
from workers.data.task import Task
from workers.expert_job import ExpertJob, load_rows, prepare_training
from workers.stopping import StoppedError, stopped_by
from workers.training.evaluation import evaluate
from workers.training.loop import fit_expert
from workers.training.settings import TrainSettings
from workers.tuning import cutting_job, parent
from workers.tuning.cutting_job import run_cutting
from workers.tuning.distillation import distil, distillation_settings, distillation_steps, teacher_answers
from workers.tuning.members import CuttingJob
from workers.tuning.passes import measure_experts, training_moments

TRAIN = TrainSettings(steps=40, batch_size=16, eval_every=20, lr=1e-2, head_lr=1e-2, seed=2)
SPEC = AdapterSpec(rank=8, first_layer=1, dropout=0.1)
ALL = AdapterSpec(targets=("q", "v", "o", "up", "down"), rank=4, first_layer=1)


def ignore(progress: object) -> None:
    pass


def job_on(base: Base, data: PreparedTask, folder: object, spec: AdapterSpec = SPEC, **settings: object) -> CuttingJob:
    train = TRAIN.model_copy(update=settings)
    expert = ExpertJob(data.name, base, data, spec, "trained", train, "aa" * 32, 0, str(folder), trunk_bytes=10**8)
    return CuttingJob(expert, (8, 4, 1), rows=64)


@pytest.fixture(scope="module")
def job(base, colours, tmp_path_factory):
    return job_on(base, colours, tmp_path_factory.mktemp("cutting") / "expert")


@pytest.fixture(scope="module")
def result(job):
    return run_cutting(job, ignore)


def quality(result):
    return [(m.rank, m.accuracy, m.loss) for m in (result.parent, *result.members)]


def test_one_training_gives_every_rank(job, result):
    whole, (same, half, least) = result.parent, result.members
    assert (whole.rank, whole.steps, whole.accuracy) == (8, 40, 1.0)
    assert [m.rank for m in result.members] == [8, 4, 1]
    assert whole.parameters == same.parameters > half.parameters > least.parameters
    assert same.loss == pytest.approx(whole.loss, rel=1e-3)
    assert least.loss > half.loss > 0
    assert half.accuracy > 0.9
    assert half.shapes == {"q": "8x8|8x8@4", "v": "8x8|8x8@4"}
    assert {m.folder for m in result.members} == {""}
    assert result.metrics["steps"] == 40
    assert {"seconds.moments", "seconds.cuts", "seconds.validation"} < result.metrics.keys()
    kept = {path.name.rsplit("-", 1)[1] for path in (job.expert.cache_folder / "tokens").iterdir()}
    assert kept == {"train", "validation"}  # the test split is not even read


def test_again_it_trains_nothing_and_finds_the_same(job, result, monkeypatch, tmp_path):
    def train(*args: object, **settings: object) -> None:
        raise AssertionError

    monkeypatch.setattr(parent, "fit_expert", train)
    states = []
    again = run_cutting(job, lambda progress: states.append((progress.key, progress.state)))
    assert quality(again) == quality(result)
    assert again.parent.steps == 40
    assert {key for key, _ in states} == {"colours"}
    assert list(dict.fromkeys(state for _, state in states)) == ["loading", "moments", "cutting", "validating"]
    given = run_cutting(
        replace(job, expert=replace(job.expert, folder=str(tmp_path / "given")), parent=result.parent.folder), ignore
    )
    assert quality(given) == pytest.approx([pytest.approx(each, rel=1e-3) for each in quality(result)])
    assert (given.parent.steps, given.metrics["steps"]) == (0, 0)


def test_a_damaged_parent_is_trained_again(job, result, tmp_path, caplog):
    folder = tmp_path / "again"
    mine = replace(job, expert=replace(job.expert, folder=str(folder), cache=str(job.expert.cache_folder)))
    shutil.copytree(result.parent.folder, folder / "parent")
    (folder / "parent" / EXPERT_WEIGHTS).write_bytes(b"half")
    states = []
    assert quality(run_cutting(mine, lambda progress: states.append(progress.state))) == quality(result)
    assert "training" in states
    assert "The parent is trained again" in caplog.text


def test_it_stops_on_request_and_then_continues(job, result, tmp_path):
    mine = replace(
        job, expert=replace(job.expert, folder=str(tmp_path / "stopped"), cache=str(job.expert.cache_folder))
    )
    steps = []

    def is_midway() -> bool:
        return len(steps) > 25

    with stopped_by(is_midway), pytest.raises(StoppedError):
        run_cutting(mine, lambda progress: steps.append(1) if progress.state == "training" else None)
    assert not load_resident_base(job.expert.base, "cpu").bank.experts
    assert list((tmp_path / "stopped" / "checkpoints").iterdir())
    reached = []
    again = run_cutting(mine, lambda progress: reached.append(progress.step) if progress.state == "training" else None)
    assert min(reached) > 20
    assert quality(again) == quality(result)


@pytest.fixture
def every_cut_is_distilled(monkeypatch):
    """Distil each cut for all steps, however little it has lost."""
    monkeypatch.setattr(cutting_job, "distillation_steps", lambda most, *losses: most)


@pytest.mark.parametrize(
    ("losses", "steps"),
    [((0.5, 1.0), 50), ((0.5, 9.0), 50), ((0.4, 0.5), 25), ((0.5, 0.52), 10), ((0.5, 0.518), 0), ((0.5, 0.4), 0),
     ((0.0, 0.1), 50)],
)  # fmt: skip
def test_the_more_a_cut_has_lost_the_longer_it_is_distilled(losses, steps):
    assert distillation_steps(50, *losses) == steps
    assert distillation_steps(0, *losses) == 0


def test_a_cut_that_has_lost_nothing_is_not_distilled(job, result):
    again = run_cutting(replace(job, distill_steps=5), ignore)
    lost = [member.loss_cut - again.parent.loss > 0.05 * again.parent.loss for member in again.members]
    assert [member.steps > 0 for member in again.members] == lost
    assert len(set(lost)) == 2


def test_kept_members_are_expert_files(job, result, every_cut_is_distilled):
    kept = run_cutting(replace(job, keep={4: "bb" * 32}, distill_steps=5), ignore)
    member = kept.members[1]
    assert member.steps == 5
    manifest = read_manifest(tmp := parent.Path(member.folder))
    assert (manifest.spec_hash, manifest.parameters, manifest.adapter.rank) == ("bb" * 32, member.parameters, 4)
    assert manifest.labels == job.expert.data.label_names
    resident = load_resident_base(job.expert.base, "cpu")
    with resident.in_use() as bank:
        load_expert(bank, tmp, job.expert.base.digest)
        rows = load_rows(job.expert, resident, "validation", ignore)
        found = evaluate(bank, "colours", rows, resident.pad_id)
    # In other batches, which round in another order.
    assert found == pytest.approx({"accuracy": member.accuracy, "loss": member.loss}, rel=1e-3)
    assert (member.accuracy_cut, member.loss_cut) == quality(result)[2][1:]


@pytest.mark.parametrize("worse", [{}, {"accuracy": 1.0, "loss": 99.0}, {"accuracy": 0.1, "loss": 0.0}])
def test_a_distillation_is_kept_where_validation_says_so(job, result, monkeypatch, worse, every_cut_is_distilled):
    """Not if the loss rises, nor if it falls with many right answers."""
    honest, calls = measure_experts, []

    def measure(bank, names, *args):
        found = honest(bank, names, *args)
        calls.append({name: found[name] for name in names})
        return {names[0]: worse} if len(names) == 1 and worse else found  # one alone: after its distillation

    monkeypatch.setattr(cutting_job, "measure_experts", measure)
    folder = replace(job, distill_steps=12, keep={1: "cc"})
    member = run_cutting(folder, ignore).members[2]
    after = next(iter(calls[-1].values()))
    assert after["loss"] < member.loss_cut  # it helps
    assert member.distilled == (not worse)
    assert member.loss == (member.loss_cut if worse else after["loss"])
    resident = load_resident_base(job.expert.base, "cpu")
    with resident.in_use() as bank:
        load_expert(bank, parent.Path(member.folder), job.expert.base.digest)
        rows = load_rows(job.expert, resident, "validation", ignore)
        assert evaluate(bank, "colours", rows, resident.pad_id)["loss"] == pytest.approx(member.loss, rel=1e-3)


def test_what_members_share_changes_no_measurement(job, result):
    resident = load_resident_base(job.expert.base, "cpu")
    with resident.in_use() as bank:
        names = [str(rank) for rank in (1, 2)]
        for name in names:
            bank.add(name, replace(SPEC, rank=int(name)), 3, torch.Generator().manual_seed(int(name)), random_head=True)
        bank.attach("colours", bank.experts["1"])
        rows = load_rows(job.expert, resident, "validation", ignore)
        assert rows.states is not None
        for each in (rows, replace(rows, states=None)):
            found = measure_experts(bank, names, each, resident.pad_id, lambda: None)
            for name in names:
                assert found[name] == pytest.approx(evaluate(bank, name, each, resident.pad_id), rel=1e-5)


def choice_task(folder):
    texts = enumerate(tiny.sentences(120, tiny.ANIMALS, "south"))
    rows = ({"text": text, "choices": [f"{word} north{i % 20}" for word in tiny.ANIMALS],
             "label": tiny.ANIMALS.index(own)} for i, (text, own) in texts)  # fmt: skip
    path = tiny.write_rows(folder / "rows.jsonl", rows)
    task = {"kind": "choice", "source": {"path": str(path)}, "columns": {"text": "text", "choices": "choices"},
            "label": {"column": "label"}, "split": {"validation": 0.2, "test": 0.2}}  # fmt: skip
    return prepare_task("which", Task.model_validate(task), folder)


def pair_task(folder):
    rows = ({"a": text, "b": f"{word} north{i % 20}", "label": word}
            for i, (text, word) in enumerate(tiny.sentences(120, tiny.ANIMALS, "south")))  # fmt: skip
    path = tiny.write_rows(folder / "rows.jsonl", rows)
    task = {"kind": "pair", "source": {"path": str(path)}, "columns": {"first": "a", "second": "b"},
            "label": {"column": "label"}, "split": {"validation": 0.2, "test": 0.2}}  # fmt: skip
    return prepare_task("pairs", Task.model_validate(task), folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tiny_causal.save_causal_base(tmp_path_factory.mktemp("causal"))
    return resolve_base(folder=str(folder), cache=folder / "cache", dtype="float32", max_length=32)


@pytest.mark.parametrize("kind", ["choice", "pair", "generate"])
def test_every_kind_of_task(kind, base, request, tmp_path, every_cut_is_distilled):
    if kind == "generate":
        base = request.getfixturevalue("causal")
        task = Task.model_validate(tiny_causal.writing_task(tmp_path / "rows.jsonl", 120))
        data = prepare_task("replies", task, tmp_path)
    else:
        data = (choice_task if kind == "choice" else pair_task)(tmp_path)
    mine = job_on(base, data, tmp_path / "expert", ALL, steps=30, eval_every=30)
    result = run_cutting(replace(mine, ranks=(4, 1), distill_steps=4), ignore)
    whole, (same, least) = result.parent, result.members
    assert same.loss_cut == pytest.approx(whole.loss, rel=1e-2)
    assert least.loss_cut != pytest.approx(whole.loss, rel=1e-6)
    assert least.steps == 4
    # Towards the whole expert's answers: a distillation of as many steps again brings them closer.
    resident = load_resident_base(base, "cpu")
    with resident.in_use() as bank:
        load_expert(bank, parent.Path(whole.folder), base.digest, name=data.name)
        rows = load_rows(mine.expert, resident, "train", ignore)
        moments = training_moments(bank, data.name, rows, resident.pad_id, TRAIN, 64, lambda: None)
        assert all(m.diagonal(dim1=1, dim2=2).sum(1).min() > 0 for m in moments.gradients.values())
        bank.attach("one", cut_expert(bank, data.name, replace(ALL, rank=1), moments))
        batches = [list(range(16))] * 8
        answers = teacher_answers(bank, data.name, rows, batches, resident.pad_id)

        def distance() -> float:
            own = teacher_answers(bank, "one", rows, batches, resident.pad_id)
            pairs = [(own[row], answers[row]) for row in answers]
            if kind == "generate":
                return sum(float((a[:, 0] - b[:, 0]).square().mean()) for a, b in pairs)
            return sum(float((a.log_softmax(0) - b.log_softmax(0)).square().mean()) for a, b in pairs)

        before = distance()
        settings = distillation_settings(TRAIN.model_copy(update={"lr": 2e-3, "head_lr": 1e-3}), 4, 1, 8)
        assert (settings.lr, settings.steps) == (2e-3, 8)
        distil(bank, "one", rows, batches, answers, settings, resident.pad_id, lambda: None)
        assert distance() < before


def test_moments_do_not_depend_on_how_rows_pass_or_on_stored_states(job, result):
    resident = load_resident_base(job.expert.base, "cpu")
    with resident.in_use() as bank:
        load_expert(bank, parent.Path(result.parent.folder), job.expert.base.digest)
        rows = load_rows(job.expert, resident, "train", ignore)
        assert rows.states is not None
        found = [
            training_moments(bank, "colours", each, resident.pad_id, TRAIN.model_copy(update=update), 50, lambda: None)
            for each, update in (
                (rows, {}),
                (replace(rows, states=None), {"micro_batch": 3}),
                (rows, {"checkpointing": True}),
                (rows, {"batch_tokens": 40}),
            )
        ]
    for other in found[1:]:
        for side in ("inputs", "gradients"):
            for key, value in getattr(found[0], side).items():
                scale = float(value.abs().max())
                torch.testing.assert_close(getattr(other, side)[key], value, rtol=1e-3, atol=1e-4 * scale)


def test_the_parent_is_trained_as_the_expert_job_trains_it(job, result):
    resident = load_resident_base(job.expert.base, "cpu")
    with resident.in_use() as bank:
        training = prepare_training(job.expert, resident, ignore, resumes=False)
        fit = fit_expert(bank, training, pad_id=resident.pad_id, report=ignore)
        state = bank.expert("colours").state_dict()
        load_expert(bank, parent.Path(result.parent.folder), job.expert.base.digest, name="saved")
        assert all(torch.equal(value, state[key]) for key, value in bank.expert("saved").state_dict().items())
    assert fit.steps == result.parent.steps
