"""Conversations and chat templates of the tests' own, and a tiny causal base that has one.

A conversation asks about a colour in each turn, and the answer is the animal of that colour, as in ``tiny_causal``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tiny
import tiny_causal

MARKS = ["<|start|>", "<|end|>"]
WORDS = ["user", "assistant", "system", "think", "USER:", "ASSISTANT:"]
# Like ChatML, the form of Qwen and SmolLM: no special token but that of a turn's end closes an answer.
MARKED = (
    "{%- for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|start|>assistant\n{% endif -%}"
)
# Like Qwen3: the last answer begins with empty reasoning, which is gone once another turn follows.
THINKING = (
    "{%- set last = messages | selectattr('role', 'equalto', 'user') | list | length -%}"
    "{%- set ns = namespace(users=0) -%}"
    "{%- for m in messages %}{% if m.role == 'user' %}{% set ns.users = ns.users + 1 %}{% endif -%}"
    "<|start|>{{ m.role }}\n{% if m.role == 'assistant' and ns.users == last %}think think\n{% endif -%}"
    "{{ m.content }}<|end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|start|>assistant\n{% endif -%}"
)
# Like R1: a prompt opens reasoning, of which nothing is left in a finished answer.
OPENED = MARKED.replace("<|start|>assistant\n{%", "<|start|>assistant\nthink think\n{%")
# Like Gemma: turns must alternate, and there is no system.
STRICT = (
    "{{ bos_token }}{%- for m in messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif -%}"
    "{{ m.role }} {{ m.content }}</s>{% endfor -%}{%- if add_generation_prompt %}assistant {% endif -%}"
)
# Without any special token.
PLAIN = (
    "{%- for m in messages %}{{ 'USER:' if m.role == 'user' else 'ASSISTANT:' }} {{ m.content }}\n{% endfor -%}"
    "{%- if add_generation_prompt %}ASSISTANT:{% endif -%}"
)


def save_chat_base(folder: Path, template: str | None = MARKED, prefix: str = "Llama", **settings: Any) -> Path:
    """Write a causal model and its tokenizer with this template; None: without one."""
    tiny_causal.save_causal_base(folder, prefix, more=[*MARKS, *WORDS], special=MARKS, **settings)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def conversation(draw: random.Random, turns: int, *, system: bool = False, words: int = 4) -> list[dict[str, str]]:
    """Messages of so many turns; the colour of each turn decides its answer."""
    messages = [{"role": "system", "content": " ".join(draw.choices(tiny.FILLERS["south"], k=2))}] if system else []
    for _ in range(turns):
        colour = draw.choice(list(tiny_causal.ANSWERS))
        text = draw.choices(tiny.FILLERS["north"], k=draw.randint(1, words))
        text.insert(draw.randrange(len(text) + 1), colour)
        messages += [{"role": "user", "content": " ".join(text)},
                     {"role": "assistant", "content": tiny_causal.ANSWERS[colour]}]  # fmt: skip
    return messages


def conversations(count: int, *, turns: int = 2, seed: int = 0) -> list[list[dict[str, str]]]:
    """Conversations of one to ``turns`` turns, all prompts different."""
    draw, found = random.Random(f"chat {seed}"), dict[str, list[dict[str, str]]]()
    while len(found) < count:
        messages = conversation(draw, draw.randint(1, turns), system=draw.random() < 0.3)
        found.setdefault(json.dumps(messages[:-1]), messages)
    return list(found.values())


def chat_task(path: Path, count: int = 240, turns: int = 2) -> dict[str, Any]:
    """A config's entry for a task on such conversations, which are written to ``path``."""
    tiny.write_rows(path, ({"messages": messages} for messages in conversations(count, turns=turns)))
    return {"kind": "chat", "source": {"path": str(path)}, "columns": {"messages": "messages"},
            "split": {"validation": 0.2, "test": 0.2}}  # fmt: skip


def same_length(written: str, answer: str) -> float:
    """A scorer."""
    return float(len(written.split()) == len(answer.split()))
