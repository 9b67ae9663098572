import errno
import os
from dataclasses import replace

import pytest
import torch

from workers.training.checkpoints import Checkpoint, CheckpointFolder, common_checkpoints

SPEC = "ab" * 32


def checkpoint(step, *, done=False, spec_hash=SPEC):
    weight = torch.nn.Parameter(torch.full((3,), float(step)))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    best = {"accuracy": 0.1 + 0.2, "loss": 1 / 3}
    return Checkpoint(spec_hash, step, done, {"w": weight.detach()}, optimizer.state_dict(), best, step,
                      {"w": weight.detach() + 1}, 2, 1.5, [3, 4])  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints", SPEC)


def steps(folder):
    return [checkpoint.step for checkpoint in folder.load()]


def test_what_was_saved_comes_back_to_the_last_bit(folder):
    saved = checkpoint(7)
    folder.save(saved)
    (found,) = folder.load()
    for key in ("step", "done", "best", "best_step", "waited", "seconds", "tokens"):
        assert getattr(found, key) == getattr(saved, key)
    assert torch.equal(found.expert["w"], saved.expert["w"])
    assert torch.equal(found.best_expert["w"], saved.best_expert["w"])
    state, expected = found.optimizer["state"][0], saved.optimizer["state"][0]
    assert all(torch.equal(state[key], expected[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert found.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_the_newest_come_first_and_two_are_kept(folder):
    for step in (5, 20, 100):
        folder.save(checkpoint(step))
    assert steps(folder) == [100, 20]
    assert len(list(folder.folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no pickle", "foreign", "other fields"])
def test_damaged_and_foreign_checkpoints_are_logged_and_ignored(folder, damage, caplog):
    for step in (10, 20):
        folder.save(checkpoint(step))
    path = folder.folder / "00000020.checkpoint"
    data = path.read_bytes()
    if damage == "foreign":
        CheckpointFolder(folder.folder, "cd" * 32).save(checkpoint(20, spec_hash="cd" * 32))
    elif damage in ("no pickle", "other fields"):
        from io import BytesIO

        from workers.training.checksummed_files import write_checksummed

        buffer = BytesIO()
        torch.save({"step": 20}, buffer)
        write_checksummed(path, b"not a pickle" if damage == "no pickle" else buffer.getvalue())
    else:
        path.write_bytes({"cut": data[:-100], "flipped": data[:900] + b"\0\1" + data[902:], "empty": b""}[damage])
    assert steps(folder) == [10]
    assert str(path) in caplog.text
    folder.save(checkpoint(15))
    assert steps(folder) == [15, 10]
    assert len(list(folder.folder.iterdir())) == 2  # the damaged one is gone: it lies ahead


def test_nothing_but_plain_values_is_unpickled(folder, caplog):
    folder.save(replace(checkpoint(3), best={"accuracy": os.getcwd}))  # type: ignore[dict-item]
    assert folder.load() == []
    assert "cannot be read" in caplog.text


def test_a_full_disk_leaves_the_older_one(folder, monkeypatch, caplog):
    folder.save(checkpoint(10))

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    folder.save(checkpoint(20))
    assert "step 20 could not be saved" in caplog.text
    assert "No space left" in caplog.text
    assert steps(folder) == [10]
    assert len(list(folder.folder.iterdir())) == 1  # no part of a file is left on the full disk


def test_parts_that_a_killed_process_left_are_cleared_away(folder):
    folder.save(checkpoint(10))
    (folder.folder / ".00000020.checkpoint.77-ab").write_bytes(b"half")
    folder.save(checkpoint(20))
    assert sorted(path.name for path in folder.folder.iterdir()) == ["00000010.checkpoint", "00000020.checkpoint"]


def test_removed_when_finished(folder):
    folder.remove()
    folder.save(checkpoint(10))
    folder.remove()
    assert not folder.folder.exists()
    assert folder.load() == []


@pytest.mark.parametrize(
    ("histories", "expected"),
    [
        ([], []),
        ([[]], [None]),
        ([[20, 10]], [20]),
        ([[20, 10], [20, 10]], [20, 20]),
        ([[20, 10], [10, 5]], [10, 10]),  # stopped between one's save and the other's
        ([[10], []], [10, None]),  # a newcomer beside one that was stopped
        ([[400, 350], [50, 25]], [400, 50]),  # not together before
        ([["40", 30], [60, 50]], [40, 60]),  # the first had ended by then
        ([["40", 30], [30, 20]], [30, 30]),  # it had not when the second was at 30
    ],
)
def test_common_checkpoints(histories, expected):
    given = [[checkpoint(int(step), done=isinstance(step, str)) for step in steps] for steps in histories]
    assert [chosen.step if chosen else None for chosen in common_checkpoints(given)] == expected
