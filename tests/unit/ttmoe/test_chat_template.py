"""Conversations as tokens: which of them are answers, what is left of a long conversation, and where a turn ends."""

from __future__ import annotations

import copy
import json
import random

import pytest
import tiny_causal
import tiny_chat
import torch
from torch.nn import functional as F

from ttmoe.adapter import AdapterSpec
from ttmoe.bank import Bank
from ttmoe.base import Base, digest_folder, load_body, load_tokenizer
from ttmoe.chat_template import ChatTemplate
from ttmoe.conversation import Conversation, Message, answered_part, single_turn
from ttmoe.encoding import Completion, encode_inputs
from ttmoe.errors import InputError
from ttmoe.generation import conversation_of, generate, prompt_of
from ttmoe.routed import _prompt
from ttmoe.template_files import read_chat_template
from ttmoe.text_bank import TextBank
from workers.training.batches import TokenizedRows
from workers.training.evaluation import evaluate
from workers.training.gradients import ExpertBatch, add_gradients

TEMPLATES = {"marked": tiny_chat.MARKED, "thinking": tiny_chat.THINKING, "opened": tiny_chat.OPENED,
             "strict": tiny_chat.STRICT, "plain": tiny_chat.PLAIN}  # fmt: skip
WITH_SYSTEM = ("marked", "thinking", "opened")
SPEC = AdapterSpec(method="lora", targets=("q", "k", "v", "o", "up", "down"), rank=8, alpha=8.0)


def base_in(folder):
    return Base("folder", "tiny", "", digest_folder(folder), str(folder), "float32", 64, "last")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {name: base_in(tiny_chat.save_chat_base(tmp_path_factory.mktemp(name), template))
            for name, template in TEMPLATES.items()}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(bases):
    return {name: load_tokenizer(base) for name, base in bases.items()}


def by_hand(name, messages):
    """The tokens of a conversation, and whether each is learnt, written down turn by turn."""
    words, learnt = (["<s>"], [False]) if name == "strict" else ([], [])
    for number, message in enumerate(messages):
        said, last = message["content"].split(), number == len(messages) - 1
        answers = message["role"] == "assistant"
        if name in WITH_SYSTEM:
            before, after = ["<|start|>", message["role"]], ["<|end|>"]
            before += ["think", "think"] if name == "opened" and answers and last else []
            said = [*(["think", "think"] if name == "thinking" and answers and last else []), *said]
        elif name == "strict":
            before, after = [message["role"]], ["</s>"]
        else:
            before, after = ["USER:" if message["role"] == "user" else "ASSISTANT:"], ["</s>"] if last else []
        words += [*before, *said, *after]
        learnt += [*[False] * len(before), *[answers] * len(said + after)]
    return words, learnt


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_those_written_down_turn_by_turn(tokenizers, name):
    draw, tokenizer = random.Random(name), tokenizers[name]
    rows = [tiny_chat.conversation(draw, draw.randint(1, 5), system=name in WITH_SYSTEM and n % 2 == 0)
            for n in range(60)]  # fmt: skip
    items = encode_inputs(tokenizer, [Conversation.of(row) for row in rows], 200)
    for row, item in zip(rows, items, strict=True):
        words, learnt = by_hand(name, row)
        assert tokenizer.convert_ids_to_tokens(item.options[0]["input_ids"]) == words
        marked = [any(start <= i < end for start, end in item.answers) for i in range(len(words))]
        assert marked == learnt
        assert item.answer_length == sum(learnt) == sum(item.answer_lengths)
        users = "\n".join(message["content"] for message in row if message["role"] == "user")
        assert item.whole == encode_inputs(tokenizer, [users], 200)[0].whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_is_that_of_the_answers_tokens(bases, tokenizers, name):
    bank = Bank(load_body(bases[name]), "last")
    expert = bank.add("e", SPEC, 0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for core in expert.parameters():
            core.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    draw = random.Random(0)
    messages = [tiny_chat.conversation(draw, turns) for turns in (1, 3, 2)]
    rows = TokenizedRows(encode_inputs(tokenizers[name], [Conversation.of(row) for row in messages], 200), [0] * 3)
    means, every = [], []
    for row in messages:
        words, learnt = by_hand(name, row)
        ids = torch.tensor([tokenizers[name].convert_tokens_to_ids(words)])
        with bank.active("e"):
            logits = bank.language_head.logits(bank.model(input_ids=ids).last_hidden_state[0])
        targets = ids[0].masked_fill(~torch.tensor(learnt), -100)
        losses = F.cross_entropy(logits[:-1], targets[1:], reduction="none")[targets[1:] >= 0]
        means.append(losses.mean())
        every.append(losses)
    loss = torch.stack(means).mean()
    for at_once in (None, 1):
        expert.zero_grad()
        batch = ExpertBatch("e", rows, [0, 1, 2], 0.1, seed=0, step=0)
        [passed] = add_gradients(bank, [batch], 0, depth=0, micro_batch=at_once)
        assert passed.loss.item() == pytest.approx(loss.item(), rel=1e-5)
        wanted = torch.autograd.grad(loss, list(expert.adapter.parameters()), retain_graph=True)
        for parameter, grad in zip(expert.adapter.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
    found = evaluate(bank, "e", rows, 0)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(torch.cat(every).mean().exp().item(), rel=1e-5)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_long_conversation_keeps_its_answer(tokenizers, name):
    """Random conversations and lengths: what is left always ends with the whole answer, after a part of its prompt."""
    draw, template, tokenizer, kept = random.Random(f"cut {name}"), ChatTemplate(tokenizers[name]), tokenizers[name], 0
    for _ in range(250):
        system = name in WITH_SYSTEM and draw.random() < 0.5
        messages = tiny_chat.conversation(draw, draw.randint(1, 4), system=system, words=12)
        row, most = Conversation.of(messages), draw.randint(4, 60)
        words, learnt = by_hand(name, messages)
        answer = words[max(i for i, each in enumerate(learnt) if not each) + 1 :]
        least = by_hand(name, [{"role": "user", "content": "x"}, messages[-1]])[0]
        if len(least) > most:
            with pytest.raises(InputError, match=f"an answer has {len(answer)} tokens"):
                template.encode([row], most)
            continue
        [(tokens, spans)] = template.encode([row], most)
        found = tokenizer.convert_ids_to_tokens(tokens["input_ids"])
        assert len(found) <= most
        assert found[slice(*spans[-1])] == answer == found[-len(answer) :]
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        parts = [messages, *([*messages[:first], *messages[i:]] for i in range(first + 2, len(messages), 2))]
        fitting = [by_hand(name, part)[0] for part in parts if len(by_hand(name, part)[0]) <= most]
        if fitting:  # whole turns, as many as fit, and the system's message
            assert found == fitting[0]
        else:  # the end of the last prompt, and nothing before it
            prompt = messages[-2]["content"].split()
            left = [word for word in found if word in prompt]
            assert left
            assert left == prompt[-len(left) :]
        kept += len(fitting) > 0
        prompt_tokens = template.encode_prompt(row.prompt, most)["input_ids"]
        assert len(prompt_tokens) <= most
    assert 30 < kept < 220


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_whole(tokenizers, name):
    template = ChatTemplate(tokenizers[name])
    for messages in tiny_chat.conversations(20, turns=3):
        row = Conversation.of([m for m in messages if m["role"] != "system"])
        [(tokens, spans)] = template.encode([row], 200)
        assert tokens["input_ids"][: spans[-1][0]] == template.encode_prompt(row.prompt, 200)["input_ids"]


def test_ends_of_a_turn(tokenizers, bases, tmp_path):
    for name, tokenizer in tokenizers.items():
        expected = {"</s>", "<|end|>"} if name in WITH_SYSTEM else {"</s>"}
        assert set(tokenizer.convert_ids_to_tokens(ChatTemplate(tokenizer).end_ids)) == expected
        assert ChatTemplate(tokenizer).lead == ("think think" if name == "thinking" else "")
    folder = tiny_chat.save_chat_base(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    assert {3, 7} < set(ChatTemplate(load_tokenizer(base_in(folder))).end_ids)


def test_bases_without_a_usable_template_are_refused(tmp_path, tokenizers):
    with pytest.raises(InputError, match="no chat template") as caught:
        ChatTemplate(load_tokenizer(base_in(tiny_causal.save_causal_base(tmp_path / "bare"))), "tasks.t.kind")
    assert (caught.value.where, "instruct" in caught.value.fix) == ("tasks.t.kind", True)
    system = tiny_chat.conversation(random.Random(0), 1, system=True)
    with pytest.raises(InputError, match=r"refuses a conversation \(system, user, assistant\): turns must alternate"):
        encode_inputs(tokenizers["strict"], [Conversation.of(system)], 99)
    broken = tiny_chat.MARKED.replace("<|start|>assistant\n{%", "<|start|>think\n{%")
    with pytest.raises(InputError, match="begins an answer otherwise"):
        _ = ChatTemplate(load_tokenizer(base_in(tiny_chat.save_chat_base(tmp_path / "broken", broken)))).end_ids


def test_a_later_turn_is_no_answer_where_the_template_hides_an_earlier_one(tokenizers):
    hidden = "{{ m.content if m.role != 'assistant' or loop.last else 'think' }}"
    tokenizer = copy.deepcopy(tokenizers["marked"])
    tokenizer.chat_template = tiny_chat.MARKED.replace("{{ m.content }}", hidden)
    turns = (("user", "red"), ("assistant", "dog"), ("user", "dog red"), ("assistant", "cat"))
    row = Conversation(tuple(Message(*turn) for turn in turns))
    [(tokens, spans)] = ChatTemplate(tokenizer).encode([row], 64)
    assert [tokenizer.decode(tokens["input_ids"][start:end]) for start, end in spans] == ["cat <|end|>"]
    tokenizer.chat_template = tiny_chat.PLAIN.replace("{{ m.content }}", hidden)  # no token marks the end of a turn
    [(tokens, spans)] = ChatTemplate(tokenizer).encode([row], 64)
    assert [tokenizer.decode(tokens["input_ids"][start:end]) for start, end in spans] == ["cat </s>"]
    tokenizer.chat_template = "a text without messages"
    with pytest.raises(InputError, match="does not write the assistant's turn"):
        _ = ChatTemplate(tokenizer).end_ids


def test_a_prompt_may_end_with_a_turn_of_the_assistant():
    turns = (("user", "red"), ("assistant", "dog"), ("assistant", "cat"))
    prompt = Conversation(tuple(Message(*turn) for turn in turns)).prompt
    assert _prompt(prompt, "chat") == prompt
    assert _prompt(prompt, "generate") == "red"
    assert _prompt("red", "chat") == single_turn("red")


def test_the_template_of_a_folder_is_that_which_transformers_reads(tmp_path):
    folder = tiny_chat.save_chat_base(tmp_path)
    assert read_chat_template(folder) == load_tokenizer(base_in(folder)).chat_template == tiny_chat.MARKED
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    for value in (tiny_chat.PLAIN, [{"name": "default", "template": tiny_chat.PLAIN}, {"name": "x", "template": "y"}]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": value}))
        assert read_chat_template(folder) == tiny_chat.PLAIN
    path.write_text("{}")
    assert read_chat_template(folder) == ""
    base = base_in(tiny_chat.save_chat_base(tmp_path))
    given = Base(**{**vars(base), "chat_template": "{{ messages[0].content }}"})
    assert load_tokenizer(given).chat_template == given.chat_template


def test_forms_of_a_conversation():
    messages = [{"role": "system", "content": " be brief "}, {"role": "user", "content": "red"},
                {"role": "assistant", "content": "dog"}, {"role": "user", "content": "blue\n"}]  # fmt: skip
    row = Conversation.of(messages)
    assert row.messages[0] == Message("system", "be brief")
    assert (row.text, row.answer, row.prompt) == ("red\nblue", "", row)
    shared = [{"from": "system", "value": ""}, {"from": "human", "value": "red"}, {"from": "gpt", "value": "dog"}]
    whole = Conversation.of(json.dumps(shared))
    assert whole == Conversation.of(messages[1:3])
    assert (whole.answer, whole.prompt) == ("dog", single_turn("red"))
    assert answered_part(row.messages) == row.messages[:3]
    assert answered_part(row.messages[3:]) == answered_part((Message("assistant", "a"), Message("user", "b"))) == ()
    assert (prompt_of(whole), conversation_of("red")) == ("red", single_turn("red"))
    assert conversation_of(Completion("red", "dog")) == conversation_of(whole) == single_turn("red")
    for wrong, what in (("no list", "not a list"), ({"role": "user"}, "not a list"), ([3], "no role and content"),
                        ([{"role": "tool", "content": "x"}], "role 'tool'"), ([], "no message is of the user"),
                        ([{"role": "user", "content": None}], "is no text"),
                        ([*messages, {"role": "user", "content": " "}], "message 5 is empty")):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            Conversation.of(wrong)


@torch.no_grad()
@pytest.mark.parametrize("name", ["marked", "thinking"])
def test_a_generated_answer_is_the_likeliest_and_ends_with_the_turn(bases, tokenizers, name):
    """Compare with single steps without cache and padding; plain prompts share the call."""
    bank, tokenizer = Bank(load_body(bases[name]), "last").eval(), tokenizers[name]
    for seed in (1, 2):
        for core in bank.add(f"e{seed}", SPEC, 0, torch.Generator().manual_seed(seed)).parameters():
            core.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    prompts = [Conversation.of(row).prompt for row in tiny_chat.conversations(10)]
    rows, names = [prompts[0], "red", *prompts[1:], "green north1"], ["e1", "e2"] * 6
    template, ended = ChatTemplate(tokenizer), 0
    lead = template.lead and f"{template.lead} "
    for row, expert, found in zip(rows, names, generate(bank, tokenizer, rows, names, 9, max_length=48), strict=True):
        chat = isinstance(row, Conversation)
        ids, written = template.encode_prompt(row, 39)["input_ids"] if chat else tokenizer(row)["input_ids"], []
        ends = template.end_ids if chat else (3,)
        while len(written) < 9 and not (written and written[-1] in ends):
            whole = torch.tensor([[*ids, *written]])
            inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
            written.append(int(bank.language_head.logits(bank.last_hidden_state(inputs, expert)[0, -1:]).argmax()))
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        assert found.text == (text.removeprefix(lead) if chat else text)
        ended += chat and len(written) < 9
    assert ended  # at the turn's end, of which the base knows nothing else


def test_text_bank_learns_to_answer_in_conversations(bases, tmp_path):
    rows = [Conversation.of([m for m in each if m["role"] != "system"]) for each in tiny_chat.conversations(240)]
    train, test = rows[:200], rows[200:]
    bank = TextBank.open(bases["marked"].folder, dtype="float32", max_length=64)
    bank.add("reply", spec=SPEC, kind="chat")
    bank.fit("reply", [row.prompt for row in train], [row.answer for row in train], epochs=10, lr=1e-2)
    assert bank.longest_answer == {"reply": 3}
    answers = bank.answer([row.prompt for row in test], "reply")
    assert sum(found == row.answer for found, row in zip(answers, test, strict=True)) / len(test) > 0.9
    assert bank.answer(["red north1"], "reply") == bank.answer([single_turn("red north1")], "reply") == ["dog"]
    bank.save("reply", tmp_path)
    assert json.loads((tmp_path / "expert.json").read_text())["chat_template"] == tiny_chat.MARKED
    bare = tiny_chat.save_chat_base(tmp_path / "bare", None)  # the same base, in a folder without its template
    other = TextBank.open(bare, dtype="float32", max_length=64)
    with pytest.raises(InputError, match="no chat template"):
        other.add("reply", kind="chat")
    other.load(tmp_path)
    assert other.answer([row.prompt for row in test], "reply") == answers
