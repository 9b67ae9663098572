"""Experts that generate text: encoding of completions, teacher-forced scores, greedy text in mixed batches."""

from __future__ import annotations

import math

import pytest
import tiny_causal
import torch
from architectures import stir

from ttmoe import AdapterSpec, GeneratedText, TextBank, generate
from ttmoe.bank import Bank
from ttmoe.base import Base, digest_folder, load_body, load_tokenizer
from ttmoe.encoding import Choice, Completion, collate, encode, encode_inputs, encode_prompts, end_id_of
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert, read_manifest, save_expert
from ttmoe.generation import prompt_of
from ttmoe.interchange import export_lora, import_lora
from ttmoe.scoring import score

PROMPTS = ["north1 red", "south3 blue south2 north4 north9", "green", "north7 north7 north7 red cat dog", "blue cat"]
NAMES = ["one", "two", "one", "two", "two"]
FAMILIES = {"Llama": {"tie_word_embeddings": False}, "Gemma2": {"head_dim": 16, "sliding_window": 4,
            "final_logit_softcapping": 3.0}, "GPT2": {}}  # fmt: skip
FULL = AdapterSpec(method="lora", targets=("q", "k", "v", "o", "up", "down"), rank=8, alpha=8.0)


def base_in(folder):
    return Base("folder", "tiny", "", digest_folder(folder), str(folder), "float32", 32, "last")


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return base_in(tiny_causal.save_causal_base(folder, request.param, **FAMILIES[request.param]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return base_in(tiny_causal.save_causal_base(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def tokenizer(llama):
    return load_tokenizer(llama)


def writers(base):
    """Build two experts that generate text and one that classifies, with random weights."""
    bank = Bank(load_body(base), base.pooling).eval()
    for seed, (name, classes) in enumerate((("one", 0), ("two", 0), ("three", 3))):
        bank.add(name, FULL, classes, torch.Generator())
        stir(bank.expert(name), seed, 0.2).requires_grad_(False)
    return bank


def texts(found):
    return [each.text for each in found]


def test_a_completion_is_prompt_answer_and_end(tokenizer):
    text, pair, row = encode_inputs(tokenizer, ["red", ("red", "cat"), Completion("north1 red", "cat dog")], 32)
    words = tokenizer.convert_ids_to_tokens(row.options[0]["input_ids"])
    assert words == ["<s>", "north1", "red", "cat", "dog", "</s>"]
    assert (row.answer_length, row.length, len(row.options)) == (3, 6, 1)
    assert row.whole == encode(tokenizer, ["north1 red"], 32)[0]  # what the router reads of the prompt alone
    assert (text.answer_length, text.options, pair.answer_length) == (0, (), 0)


def test_a_long_prompt_is_truncated_on_the_left_and_an_answer_never(tokenizer):
    prompt = " ".join(f"north{i}" for i in range(20))
    row = encode_inputs(tokenizer, [Completion(prompt, "cat dog")], 8)[0]
    assert tokenizer.decode(row.options[0]["input_ids"]) == "<s> north16 north17 north18 north19 cat dog </s>"
    assert tokenizer.decode(row.whole["input_ids"]).startswith("<s> north0 north1")
    assert tokenizer.truncation_side == "right"
    cut = encode_prompts(tokenizer, [prompt, "red", prompt], [3, 9, 5])
    assert [tokenizer.decode(row["input_ids"]) for row in cut] == ["<s> north18 north19", "<s> red",
                                                                  "<s> north16 north17 north18 north19"]  # fmt: skip
    with pytest.raises(InputError, match=r"an answer has 9 tokens, .* together are limited to 9") as caught:
        encode_inputs(tokenizer, [Completion("red", "cat " * 8)], 9)
    assert caught.value.where == "base.max_length"


def test_an_end_token_that_the_tokenizer_appends_is_removed_from_prompts(llama):
    from tokenizers import processors

    closing = load_tokenizer(llama)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    assert encode_prompts(closing, ["red cat"], [9]) == encode_prompts(load_tokenizer(llama), ["red cat"], [9])
    assert closing.decode(encode_prompts(closing, ["red cat dog"], [2])[0]["input_ids"]) == "<s> dog"
    row = encode_inputs(closing, [Completion("red", "cat")], 9)[0]
    assert closing.decode(row.options[0]["input_ids"]) == "<s> red cat </s>"
    closing.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        end_id_of(closing)


@torch.no_grad()
def test_scores_of_a_mixed_batch_equal_those_of_single_rows(base):
    bank, tokenizer = writers(base), load_tokenizer(base)
    rows = [Completion("north1 red", "dog"), "red cat", Completion("green north2 north3", "cat dog"), "blue"]
    items, names = encode_inputs(tokenizer, rows, 32), ["one", "three", "two", "two"]
    mixed = score(bank, items, names, 0)
    assert [tuple(s.shape) for s in mixed] == [(2, 2), (3,), (3, 2), (0, 2)]
    for found, item, name in zip(mixed, items, names, strict=True):
        torch.testing.assert_close(found, score(bank, [item], name, 0)[0], rtol=1e-4, atol=1e-4)
    others = score(bank, items[:1], "two", 0)[0]
    assert (others - mixed[0]).abs().max() > 0.05  # an expert of its own
    assert (mixed[0][:, 0] <= mixed[0][:, 1]).all()
    states = bank.trunk(0).states(collate([items[0].options[0]], 0))
    assert torch.equal(score(bank, items[:1], "one", 0, states=states)[0], score(bank, items[:1], "one", 0)[0])


def test_a_row_does_not_depend_on_the_other_rows(base):
    bank, tokenizer = writers(base), load_tokenizer(base)
    most = [6, 9, 3, 6, 6]
    mixed = generate(bank, tokenizer, PROMPTS, NAMES, most, max_length=32)
    again = generate(bank, tokenizer, PROMPTS, NAMES, most, max_length=32, batch_size=2)
    for i, (prompt, name) in enumerate(zip(PROMPTS, NAMES, strict=True)):
        alone = generate(bank, tokenizer, [prompt], name, most[i], max_length=32)[0]
        assert mixed[i].text == alone.text == again[i].text
        assert mixed[i].probability == pytest.approx(alone.probability, rel=1e-3)
    swapped = generate(bank, tokenizer, PROMPTS, NAMES[::-1], most, max_length=32)
    assert texts(swapped) != texts(mixed)
    assert len({each.text for each in mixed}) > 2
    assert mixed == generate(bank, tokenizer, PROMPTS, NAMES, most, max_length=32)


@torch.no_grad()
def test_each_generated_token_is_the_likeliest(base):
    """Compare with single steps without cache and padding, and with the teacher-forced scores."""
    bank, tokenizer, end = writers(base), load_tokenizer(base), 3
    whole = bank.language_head
    found = generate(bank, tokenizer, PROMPTS, NAMES, 6, max_length=32)
    for prompt, name, written in zip(PROMPTS, NAMES, found, strict=True):
        ids, total = tokenizer(prompt)["input_ids"], 0.0
        start = len(ids)
        while len(ids) - start < 6 and (len(ids) == start or ids[-1] != end):
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            logs = whole.logits(bank.last_hidden_state(inputs, name)[0, -1:]).log_softmax(-1)[0]
            ids, total = [*ids, int(logs.argmax())], total + float(logs.max())
        assert written.text == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert written.probability == pytest.approx(math.exp(total), rel=1e-3)
        item = encode_inputs(tokenizer, [Completion(prompt, "cat")], 32)[0]
        tokens = {key: values[: len(values) - item.answer_length] for key, values in item.options[0].items()}
        forced = type(item)(item.whole, ({key: tokens[key] + ids[start:] for key in tokens},), len(ids) - start)
        scores = score(bank, [forced], name, 0)[0]
        torch.testing.assert_close(scores[:, 0], scores[:, 1])


def test_generating_changes_no_state(base):
    bank, tokenizer = writers(base), load_tokenizer(base)
    _ = bank.language_head
    before, items = {k: v.clone() for k, v in bank.state_dict().items()}, encode_inputs(tokenizer, ["red cat"], 32)
    scores = score(bank, items, "three", 0)[0]
    bank.train()
    generate(bank, tokenizer, PROMPTS, NAMES, 3, max_length=32)
    assert bank.training
    bank.eval()
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())
    assert torch.equal(score(bank, items, "three", 0)[0], scores)


def test_prompt_and_answer_together_stay_within_max_length(tmp_path):
    """GPT-2 has no position beyond its last one: no batch of a long prompt and a long answer may exceed it."""
    base = base_in(tiny_causal.save_causal_base(tmp_path, "GPT2", max_position_embeddings=16))
    bank, tokenizer = writers(base), load_tokenizer(base)
    long = " ".join(f"north{i}" for i in range(12))
    tokenizer.eos_token = "<unk>"  # which is never likely: every answer is as long as it may be
    with torch.no_grad():
        bank.model.wte.weight[1] = 0
        bank.model.wte.weight[:, 0] += 1
    found = generate(bank, tokenizer, [long, "red", long, "red"], "one", [3, 13, 60, 60], max_length=16)
    assert [len(each.text.split()) for each in found] == [3, 13, 8, 14]


def test_invalid_arguments(llama, base_folder):
    bank, tokenizer = writers(llama), load_tokenizer(llama)
    assert generate(bank, tokenizer, [], "one", max_length=32) == []
    for names, most, what in ((["one"], 3, "1 names"), ("one", [3], "1 values of max_new_tokens"),
                              ("one", 0, "below 1"), ("three", 3, "'three' has a classification head"),
                              ("four", 3, "no expert named 'four'")):  # fmt: skip
        with pytest.raises(InputError, match=what):
            generate(bank, tokenizer, PROMPTS[:2], names, most, max_length=32)
    bank = TextBank.open(base_folder, dtype="float32")
    with pytest.raises(InputError, match=r"\(bert\) is not a causal"):
        bank.add("words", kind="generate")
    with pytest.raises(InputError, match="kind 'generate' with 2 labels"):
        bank.add("words", ("a", "b"), kind="generate")


def test_any_input_is_a_prompt():
    rows = ["red", ("red", "cat"), Choice("which?", ("red", "blue")), Completion("say", "cat")]
    assert [prompt_of(row) for row in rows] == ["red", "red\ncat", "which?\nred\nblue", "say"]


def test_files_and_adapters_of_an_expert_that_generates(llama, tmp_path):
    bank, tokenizer = writers(llama), load_tokenizer(llama)
    save_expert(bank.expert("one"), tmp_path / "one", task="one", kind="generate", labels=(), base=llama.record(),
                spec_hash="", metrics={}, answer_tokens=4)  # fmt: skip
    manifest = read_manifest(tmp_path / "one")
    assert (manifest.classes, manifest.answer_tokens, manifest.labels) == (0, 4, ())
    load_expert(bank, tmp_path / "one", llama.digest, "copy")
    export_lora(bank, "one", tmp_path / "lora", manifest=manifest, task_type="CAUSAL_LM")
    import_lora(bank, tmp_path / "lora", "back", base_digest=llama.digest)
    (tmp_path / "lora" / "head.safetensors").unlink()
    import_lora(bank, tmp_path / "lora", "headless", classes=0)
    expected = generate(bank, tokenizer, PROMPTS, "one", 5, max_length=32)
    for name in ("copy", "back", "headless"):
        found = generate(bank, tokenizer, PROMPTS, name, 5, max_length=32)
        assert texts(found) == texts(expected)
    path = tmp_path / "one" / "expert.json"
    path.write_text(path.read_text().replace('"answer_tokens": 4,\n', ""))  # as it was written before there were such
    assert read_manifest(tmp_path / "one").answer_tokens == 0


def test_text_bank_learns_to_generate(llama, tmp_path):
    rows = tiny_causal.completions(240)
    train, test = rows[:200], rows[200:]
    bank = TextBank.open(llama.folder, dtype="float32", max_length=32)
    bank.add("reply", spec=FULL, kind="generate")
    bank.add("colour", ("red", "green", "blue"), FULL)
    before = bank.answer([prompt for prompt, _ in test], "reply")
    losses = bank.fit("reply", *map(list, zip(*train, strict=True)), epochs=10, lr=1e-2)
    assert losses[-1] < losses[0] / 4
    assert bank.longest_answer == {"reply": 3}
    answers = bank.answer([prompt for prompt, _ in test], "reply")
    right = sum(found == answer for found, (_, answer) in zip(answers, test, strict=True)) / len(test)
    assert right > 0.9
    assert sum(found == answer for found, (_, answer) in zip(before, test, strict=True)) / len(test) < 0.3
    mixed = bank.answer([test[0][0], "red", test[1][0]], ["reply", "colour", "reply"])
    assert mixed[0::2] == answers[:2]
    assert mixed[1] in ("red", "green", "blue")
    bank.save("reply", tmp_path)
    other = TextBank.open(llama.folder, dtype="float32", max_length=32)
    other.load(tmp_path)
    assert other.answer([prompt for prompt, _ in test], "reply") == answers
    assert other.longest_answer == {"reply": 3}
    assert isinstance(generate(other.bank, other.tokenizer, ["red"], "reply", max_length=32)[0], GeneratedText)
