"""Cached trunk states equal computed ones, are computed once, and stay within the budget."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import COLOURS, sentences, wait_for

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import load_body, load_tokenizer, sha256_of_file
from ttmoe.encoding import Choice, collate, encode_inputs, pad_id_of
from ttmoe.features import pool_states
from ttmoe.scoring import score
from workers.cache import trunk_folder, trunk_layout, trunk_states
from workers.cache.trunk_layout import state_bytes, trunk_size
from workers.cache.trunk_states import find_trunk_states, load_or_compute_trunk
from workers.data.prepared import load_split
from workers.training.batches import TokenizedRows, tokenize

PLENTY = 10**9


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(base)


@pytest.fixture(scope="module")
def rows(base, colours, tokenizer):
    return tokenize(tokenizer, load_split(colours, "train"), base.max_length)


@pytest.fixture(scope="module")
def choices(base, tokenizer):
    """Rows of two to four options, and one that has none."""
    texts = [text for text, _ in sentences(40, COLOURS, "north", seed=1)]
    inputs = [Choice(text, tuple(texts[i + 1 : i + 3 + i % 3])) for i, text in enumerate(texts[:30])]
    return TokenizedRows(encode_inputs(tokenizer, [*inputs, texts[0]], base.max_length), [0] * 31)


def bank_of(model, classes=3, lowest=1):
    """One expert that answers by what its adapter makes of the states."""
    bank = Bank(model, "mean")
    bank.add("expert", AdapterSpec(method="lora", rank=2, alpha=4.0, targets=("q", "v"), first_layer=lowest), classes,
             torch.Generator().manual_seed(0), random_head=True)  # fmt: skip
    with torch.no_grad():
        for parameter in bank.expert("expert").adapter.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return bank.eval()


@pytest.fixture(scope="module")
def bank(base):
    return bank_of(load_body(base))


@pytest.fixture
def opened(bank, rows, base, tokenizer, tmp_path):
    """``load_or_compute_trunk`` with every argument given; a test says what is otherwise."""

    def call(**other):
        given = dict(base=base, fingerprint="colours", split="train", depth=1, pad_id=pad_id_of(tokenizer),
                     cache=tmp_path, budget=PLENTY, report=lambda progress: None)  # fmt: skip
        return load_or_compute_trunk(other.pop("bank", bank), other.pop("rows", rows), **{**given, **other})

    return call


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "trunk").glob("[!.]*"))


def scraps(cache: Path) -> list[Path]:
    """What is neither an entry nor a lock."""
    return [path for path in (cache / "trunk").glob(".*") if path.suffix != ".lock" and path.name != ".lock"]


def shards(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "trunk").glob("[!.]*/*") if path.suffix != ".json"}


def one_size(base, rows, depth=1, width=64):
    tokens = sum(len(item.whole["input_ids"]) for item in rows.items)
    return trunk_size(base, tokens, width, sequences=len(rows), depth=depth)


@pytest.mark.parametrize("shard", [trunk_layout.SHARD_BYTES, 2000])  # all in one, and a few sequences in each
@torch.no_grad()
def test_states_are_the_trunks_own_in_any_batch(opened, bank, rows, monkeypatch, tmp_path, shard):
    monkeypatch.setattr(trunk_layout, "SHARD_BYTES", shard)
    for depth in (1, 2):
        states = opened(depth=depth)
        assert states.depth == depth
        for batch in ([7, 0, 99, 3], [5], list(range(len(rows)))):
            inputs = collate([rows.items[i].whole for i in batch], 0)
            mask = inputs["attention_mask"].bool()
            gathered = states.gather(batch, "cpu")
            assert gathered.dtype == torch.float32
            assert gathered.shape[:2] == mask.shape
            assert not gathered[~mask].any()
            torch.testing.assert_close(gathered[mask], bank.trunk(depth).states(inputs)[mask], rtol=0, atol=1e-5)
    assert max(path.stat().st_size for path in (tmp_path / "trunk").glob("*/*.states")) <= shard
    assert all(map(torch.equal, states.gather([4, 4], "cpu"), states.gather([4], "cpu").expand(2, -1, -1)))


@pytest.mark.parametrize("shard", [trunk_layout.SHARD_BYTES, 2000])
@torch.no_grad()
def test_hidden_states_below_are_kept_pooled_both_ways(opened, bank, rows, monkeypatch, shard):
    """In half precision, for every router that reads them, whatever it reads."""
    monkeypatch.setattr(trunk_layout, "SHARD_BYTES", shard)
    for depth in (1, 2):
        states = opened(depth=depth)
        assert states.has_pooled
        for batch in ([7, 0, 99, 3], [5]):
            inputs = collate([rows.items[i].whole for i in batch], 0)
            *below, _ = bank.trunk(depth).hidden_states(inputs)
            found = states.gather_pooled(batch, "cpu")
            assert (found.dtype, found.shape) == (torch.float32, (len(batch), depth, 2, 64))
            torch.testing.assert_close(found, pool_states(below, inputs["attention_mask"]), rtol=0, atol=1e-3)
            assert torch.equal(found.half().float(), found)


@torch.no_grad()
def test_texts_score_the_same_from_kept_states(opened, bank, rows):
    states, batch = opened(), [9, 1, 30, 2, 77]
    inputs = collate([rows.items[i].whole for i in batch], 0)
    kept = bank(inputs, "expert", states=states.gather(batch, "cpu"), depth=1)
    torch.testing.assert_close(kept, bank(inputs, "expert"), rtol=1e-6, atol=1e-6)
    other = bank(inputs, "expert", states=states.gather([1, 9, 2, 30, 77], "cpu"), depth=1)
    assert not torch.allclose(kept, other, atol=1e-3)  # the states are what it goes by


@torch.no_grad()
def test_choices_are_numbered_option_by_option(opened, base, choices):
    bank = bank_of(load_body(base), classes=1)
    states, start, numbers = opened(bank=bank, rows=choices), 0, []
    for item in choices.items:
        numbers.append(list(range(start, start + max(1, len(item.options)))))
        start += len(numbers[-1])
    picked = [30, 2, 11, 4]
    items = [choices.items[i] for i in picked]
    gathered = states.gather([number for i in picked for number in numbers[i]], "cpu")
    kept = score(bank, items, "expert", 0, states=gathered, depth=1)
    assert [len(scores) for scores in kept] == [1, 4, 4, 3]
    for one, other in zip(kept, score(bank, items, "expert", 0), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert not states.has_pooled  # which the router reads: these are not kept


@torch.no_grad()
def test_a_causal_base_in_bf16(opened, base, rows):
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    bank = bank_of(LlamaModel(config).to(torch.bfloat16), lowest=2)
    states = opened(bank=bank, base=replace(base, dtype="bfloat16", digest="11" * 32, pooling="last"), depth=2)
    gathered = states.gather([3, 4], "cpu")
    assert gathered.dtype == torch.bfloat16
    inputs = collate([rows.items[i].whole for i in (3, 4)], 0)
    torch.testing.assert_close(bank(inputs, "expert", states=gathered, depth=2), bank(inputs, "expert"),
                               rtol=2e-2, atol=2e-2)  # fmt: skip


def test_the_second_time_nothing_is_computed(opened, bank, rows, base, colours, tmp_path, monkeypatch):
    reports = []
    first = opened(report=reports.append)
    assert {r.state for r in reports} == {"trunk"}
    assert (reports[-1].step, reports[-1].steps) == (len(rows), len(rows))
    monkeypatch.setattr(trunk_states, "_compute", None)
    second = opened(report=reports.remove)
    assert torch.equal(first.gather([0, 5], "cpu"), second.gather([0, 5], "cpu"))
    found = find_trunk_states(rows, base=base, fingerprint="colours", split="train", depth=1, device="cpu", width=64,
                       cache=tmp_path)  # fmt: skip
    assert torch.equal(first.gather([0, 5], "cpu"), found.gather([0, 5], "cpu"))
    assert not find_trunk_states(rows, base=base, fingerprint="colours", split="train", depth=2, device="cpu", width=64,
                          cache=tmp_path)  # fmt: skip


def test_the_same_bytes_whoever_makes_them(opened, base, tmp_path):
    assert opened(cache=tmp_path / "a")
    assert opened(cache=tmp_path / "b", bank=bank_of(load_body(base), classes=2).train())  # another expert, in training
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert [p.name for p in entries(tmp_path / "a")] == [p.name for p in entries(tmp_path / "b")]


def test_whatever_decides_the_states_is_in_the_key(base, rows, choices):
    def key(b=base, rows=rows, **other):
        given = dict(fingerprint="colours", split="train", depth=1, device="cpu", width=64)
        return trunk_layout.make_trunk_layout(b, rows, **{**given, **other}).key

    others = [key(replace(base, digest="00" * 32)), key(replace(base, dtype="bfloat16")),
              key(replace(base, max_length=16)), key(fingerprint="animals"), key(split="test"), key(depth=2),
              key(device="cuda"), key(rows=choices), key(rows=TokenizedRows(rows.items[:-1], rows.labels[:-1])),
              key(rows=TokenizedRows(rows.items[::-1], rows.labels))]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)
    assert key(replace(base, folder="/elsewhere", id="other")) == key()
    turned = [replace(item, whole=dict(reversed(item.whole.items()))) for item in rows.items]
    assert key(rows=TokenizedRows(turned, [1] * len(rows))) == key()


def test_the_size_is_known_beforehand(opened, base, rows, tmp_path):
    assert state_bytes(1000, 64, torch.bfloat16) == 128_000
    for depth in (1, 2):
        assert opened(depth=depth, cache=tmp_path / str(depth))
        assert sum(map(len, shards(tmp_path / str(depth)).values())) == one_size(base, rows, depth)


def test_what_does_not_fit_leaves_nothing(opened, base, rows, tmp_path):
    assert opened(budget=one_size(base, rows) - 1) is None
    assert opened(budget=0) is None
    assert opened(depth=0) is None
    assert not (tmp_path / "trunk").exists()
    assert opened(budget=one_size(base, rows))
    assert opened(budget=0) is None  # none is none, even of what is there


def test_the_least_recently_used_goes_first_and_never_what_is_in_use(opened, base, rows, tmp_path):
    budget = 2 * one_size(base, rows)
    names = {}
    for fingerprint in ("a", "b"):
        before = set(entries(tmp_path))
        assert opened(fingerprint=fingerprint, budget=budget)  # not held
        (names[fingerprint],) = set(entries(tmp_path)) - before
        os.utime(names[fingerprint] / "index.json", (1, 1) if fingerprint == "a" else (2, 2))
    assert opened(fingerprint="a", budget=budget)  # b is now the one that was used longer ago
    used = opened(fingerprint="c", budget=budget)
    assert names["a"] in entries(tmp_path)
    assert names["b"] not in entries(tmp_path)
    also = opened(fingerprint="a", budget=budget)
    before = entries(tmp_path)
    assert opened(fingerprint="d", budget=budget) is None  # both are held
    assert entries(tmp_path) == before
    assert not scraps(tmp_path)
    kept = used.gather([0, 1], "cpu")
    del also
    assert opened(fingerprint="d", budget=budget)
    assert names["a"] not in entries(tmp_path)
    assert torch.equal(used.gather([0, 1], "cpu"), kept)


def test_nothing_is_evicted_in_vain(opened, base, rows, tmp_path):
    budget = 2 * one_size(base, rows)
    held = opened(fingerprint="a", budget=budget)
    assert opened(fingerprint="b", budget=budget)
    before = entries(tmp_path)
    assert opened(depth=2, budget=budget) is None  # more than b's room
    assert held
    assert entries(tmp_path) == before


def test_what_another_is_making_counts_and_stays(opened, base, rows, tmp_path):
    size, inner = one_size(base, rows), []

    def meanwhile(progress):
        if not inner:
            inner.append(opened(fingerprint="b", budget=2 * size - 1))
            inner.append(opened(fingerprint="b", budget=2 * size))

    outer = opened(fingerprint="a", report=meanwhile)
    assert inner[0] is None
    assert torch.equal(inner[1].gather([0], "cpu"), outer.gather([0], "cpu"))
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "torn index", "no index", "no digests"])
def test_what_is_not_whole_is_made_again(opened, tmp_path, damage):
    opened()
    whole, (entry,) = shards(tmp_path), entries(tmp_path)
    if damage == "cut":
        os.truncate(entry / "0.states", 1000)
    elif damage == "flipped":
        data = bytearray((entry / "0.states").read_bytes())
        data[len(data) // 2] ^= 1
        (entry / "0.states").write_bytes(data)
    elif damage == "no digests":  # of an earlier version
        index = json.loads((entry / "index.json").read_text())
        del index["sha256"]
        (entry / "index.json").write_text(json.dumps(index))
    elif damage == "gone":
        (entry / "0.pooled").unlink()
    elif damage == "torn index":
        (entry / "index.json").write_text((entry / "index.json").read_text()[:50])
    else:
        (entry / "index.json").unlink()
    assert opened()
    assert shards(tmp_path) == whole
    assert not scraps(tmp_path)


def test_a_digest_is_read_once_while_the_files_do_not_change(opened, monkeypatch):
    read = []
    monkeypatch.setattr(trunk_folder, "sha256_of_file", lambda path: read.append(path.name) or sha256_of_file(path))
    opened()
    assert sorted(read) == ["0.pooled", "0.states"]  # for the index
    for _ in range(3):
        assert opened()
    assert sorted(read) == ["0.pooled", "0.pooled", "0.states", "0.states"]


def test_counting_meets_an_entry_that_is_published_or_removed_meanwhile(tmp_path, monkeypatch):
    entry, iterdir = tmp_path / "key", Path.iterdir
    scratch = trunk_folder.scratch_folder(entry)
    scratch.mkdir()
    (scratch / "0.states").write_bytes(b"12345")
    (scratch / ".index.json.1-ab").write_bytes(b"being renamed")

    def listed(path: Path):
        names = list(iterdir(path))
        if path == scratch:
            scratch.rename(entry)
        return names

    assert trunk_folder._entry_bytes(scratch) == 5
    monkeypatch.setattr(Path, "iterdir", listed)
    assert trunk_folder._entry_bytes(scratch) == 5
    assert trunk_folder._entry_bytes(tmp_path / "removed") == 0


def test_half_of_an_eviction_is_finished_by_the_next_who_makes_room(opened, tmp_path):
    opened(fingerprint="a")
    (entry,) = entries(tmp_path)
    (entry / "index.json").unlink()
    opened(fingerprint="b")
    assert entry not in entries(tmp_path)


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_a_full_disk_costs_the_cache_and_not_the_work(opened, tmp_path, monkeypatch, caplog, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert opened() is None
    assert "No space left on device" in caplog.text
    assert not entries(tmp_path)
    assert not scraps(tmp_path)
    assert opened()


@pytest.mark.parametrize(
    ("module", "call", "number"),
    [("fcntl", "flock", errno.ENOLCK), ("fcntl", "flock", errno.EOPNOTSUPP), ("fcntl", "flock", errno.ENOSYS),
     ("os", "mkdir", errno.EACCES), ("os", "mkdir", errno.EROFS)],
)  # fmt: skip
def test_without_locks_or_permission_nothing_is_cached(opened, tmp_path, monkeypatch, caplog, module, call, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "trunk").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[module], call, refused)
        assert opened() is None
    assert os.strerror(number) in caplog.text
    states = opened()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[module], call, refused)
        assert (opened() is None) == (call == "flock")  # what another user has made can be read
    del states


def test_the_entries_of_another_user_are_read_and_never_evicted(opened, base, rows, tmp_path, monkeypatch, caplog):
    """They can be opened for reading only, and their times cannot be set."""

    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def open_own(path, mode="r", *arguments, **options):
        if path in theirs and mode == "r+b":
            refused()
        return builtin(path, mode, *arguments, **options)

    opened()
    (entry,) = entries(tmp_path)
    theirs, builtin = [entry / "index.json"], Path.open
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Path, "open", open_own)
    assert opened()
    assert opened(fingerprint="other", budget=one_size(base, rows)) is None  # no room beside it
    assert entries(tmp_path) == [entry]
    assert caplog.text == ""


def test_other_errors_come_through_and_leave_nothing(opened, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            opened()
    assert not scraps(tmp_path)


def test_a_file_system_that_sets_nothing_aside(opened, tmp_path, monkeypatch):
    opened(cache=tmp_path / "a")
    monkeypatch.delattr(trunk_folder.os, "posix_fallocate")
    opened(cache=tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


# Opens the trunk in another process, and stops after the first batch until the file `go` is there.
BUILDER = """
import pickle, sys, time
from pathlib import Path
from ttmoe.bank import Bank
from ttmoe.base import load_body
from workers.cache import trunk_states
folder = Path(sys.argv[1])
base, rows, given = pickle.loads((folder / "given").read_bytes())
trunk_states.CPU_TOKENS = 100
def report(progress):
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
trunk_states.load_or_compute_trunk(Bank(load_body(base), base.pooling), rows, base=base, report=report, **given)
"""


@pytest.fixture
def builder(base, rows, tmp_path):
    """Another process that is in the middle of making what ``opened`` asks for."""
    given = dict(fingerprint="colours", split="train", depth=1, pad_id=0, cache=tmp_path, budget=PLENTY)
    (tmp_path / "given").write_bytes(pickle.dumps((base, rows, given)))
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(tmp_path)]) as process:
        try:
            assert wait_for(lambda: (tmp_path / "begun").exists() or process.poll() is not None, 60)
            assert process.poll() is None
            yield process
        finally:
            process.kill()


def test_two_processes_make_it_once(opened, builder, tmp_path, monkeypatch):
    monkeypatch.setattr(trunk_states, "_compute", None)  # this one must not
    reports = []

    def go(progress):
        reports.append(progress)
        (tmp_path / "go").touch()

    assert opened(report=go)
    assert {(r.state, r.step) for r in reports} == {("trunk", 0)}  # it said that it was waiting
    assert builder.wait(30) == 0
    assert len(entries(tmp_path)) == 1


def test_what_a_killed_process_leaves_is_removed(opened, builder, tmp_path):
    builder.send_signal(signal.SIGKILL)
    builder.wait(30)
    assert len(scraps(tmp_path)) == 1
    assert opened(fingerprint="other")  # whoever makes room next
    assert not scraps(tmp_path)
    assert opened()
    assert len(entries(tmp_path)) == 2


def test_a_scrap_of_the_same_states_is_no_hindrance(opened, tmp_path):
    opened(cache=tmp_path / "a")
    (entry,) = entries(tmp_path / "a")
    scrap = tmp_path / "b" / "trunk" / f".{entry.name}.part"
    scrap.mkdir(parents=True)
    (scrap / "0.states").write_bytes(b"half")
    assert opened(cache=tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert not scraps(tmp_path / "b")
