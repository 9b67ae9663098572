"""Printing of generated text as it comes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_chat
import torch

from orchestrator.predict.streaming import terminal_streamer
from ttmoe.base import Base, load_tokenizer


@pytest.mark.parametrize(
    ("template", "written", "shown"),
    [(tiny_chat.MARKED, "cat dog <|end|>", ["cat", "cat dog"]),
     (tiny_chat.MARKED, "think think cat <|end|>", ["think", "think think", "think think cat"]),
     (tiny_chat.THINKING, "think think cat dog <|end|>", ["", "", "cat", "cat dog"]),
     (tiny_chat.THINKING, "think cat <|end|>", ["", "think cat"]),
     (tiny_chat.THINKING, "think <|end|>", ["", "think"])],
)  # fmt: skip
def test_words_are_printed_as_they_come_without_what_the_template_writes(tmp_path, capsys, template, written, shown):
    folder = tiny_chat.save_chat_base(tmp_path, template)
    tokenizer = load_tokenizer(Base("folder", "tiny", "", "", str(folder), "float32", 64, "last"))
    model = SimpleNamespace(tokenizer=tokenizer, manifests={"chats": SimpleNamespace(chat_template=template)})
    streamer = terminal_streamer(model)
    streamer.put(torch.tensor([[4, 5, 6]]))  # the prompt
    capsys.readouterr()  # what libraries print when they are imported
    seen, printed = [], ""
    for token in tokenizer(written, add_special_tokens=False)["input_ids"]:
        streamer.put(torch.tensor([token]))
        printed += capsys.readouterr().out
        seen.append(printed.strip())
    streamer.end()
    printed += capsys.readouterr().out
    assert printed == f"{shown[-1]}\n"
    # A word is printed when the next one begins, for it could go on.
    assert all(any(each == part for part in ["", *shown]) for each in seen)
