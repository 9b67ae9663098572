from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ttmoe.base import load_tokenizer
from workers.cache import tokens
from workers.cache.tokens import load_tokenized_rows, token_path
from workers.data.examples import Example
from workers.data.prepared import load_split
from workers.training.batches import tokenize


@pytest.fixture(scope="module")
def tokenizer(base):
    tokenizer = load_tokenizer(base)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def forbidden(*args):
    raise AssertionError("tokenised again")


def test_the_second_time_nothing_is_tokenised_and_nothing_read(base, colours, tokenizer, tmp_path, monkeypatch):
    expected = tokenize(tokenizer, load_split(colours, "train"), base.max_length)
    assert load_tokenized_rows(base, tokenizer, colours, "train", tmp_path) == expected
    monkeypatch.setattr(tokens, "tokenize", forbidden)
    monkeypatch.setattr(tokens, "load_split", forbidden)
    assert load_tokenized_rows(base, tokenizer, colours, "train", tmp_path) == expected
    assert {"input_ids", "token_type_ids"} <= expected.items[0].whole.keys()


def test_pairs_and_options_come_back(base, colours, tokenizer, tmp_path, monkeypatch):
    examples = [
        Example(("red", "cat dog"), (), 1, ""),
        Example(("green",), ("cat", "dog north1", "blue"), 2, ""),
        Example(("north1 north2",), ("red", "dog"), 0, ""),
        Example(("blue",), (), 0, ""),
    ]
    monkeypatch.setattr(tokens, "load_split", lambda *_: examples)
    made, kept = (load_tokenized_rows(base, tokenizer, colours, "test", tmp_path) for _ in range(2))
    assert made == kept == tokenize(tokenizer, examples, base.max_length)
    assert [len(item.options) for item in kept.items] == [0, 3, 2, 0]
    assert 1 in kept.items[0].whole["token_type_ids"]


def test_the_disk_is_not_waited_for(base, colours, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", forbidden)
    load_tokenized_rows(base, tokenizer, colours, "train", tmp_path)
    assert token_path(base, colours, "train", tmp_path).is_file()


def test_what_decides_the_tokens_is_in_the_name(base, colours, tmp_path):
    paths = {
        token_path(b, data, split, tmp_path)
        for b in (base, replace(base, max_length=16), replace(base, digest="0" * 64))
        for data in (colours, replace(colours, fingerprint="0" * 64))
        for split in ("train", "test")
    }
    assert len(paths) == 12
    assert token_path(replace(base, folder="elsewhere"), colours, "train", tmp_path) in paths


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:200] + b"x" + data[201:], lambda _: b""])
def test_a_damaged_file_is_made_again(base, colours, tokenizer, tmp_path, damage, caplog, monkeypatch):
    expected = load_tokenized_rows(base, tokenizer, colours, "train", tmp_path)
    path = token_path(base, colours, "train", tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert load_tokenized_rows(base, tokenizer, colours, "train", tmp_path) == expected
    assert str(path) in caplog.text
    assert path.read_bytes() == whole


def test_several_may_do_it_at_once(base, colours, tokenizer, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_tokenized_rows(base, tokenizer, colours, "train", tmp_path), range(8)))
    assert all(rows == found[0] for rows in found)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [
        token_path(base, colours, "train", tmp_path).name
    ]


def test_a_cache_that_cannot_be_written_costs_no_more_than_time(base, colours, tokenizer, tmp_path, caplog):
    (tmp_path / "tokens").write_text("a file where the folder should be")
    assert len(load_tokenized_rows(base, tokenizer, colours, "test", tmp_path)) == sum(colours.counts["test"].values())
    assert "could not be cached" in caplog.text
