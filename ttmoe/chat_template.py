"""The base's chat template: which tokens a conversation has, which of them are answers, and where a turn ends.

The answers are found by the template itself: what it writes for the messages before a turn, with the beginning of the
assistant's turn, begins what it writes for the whole conversation; the rest is the turn. So the loss is on exactly what
the assistant has to write after a prompt, whatever the template adds, and templates need no marks of their own.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ttmoe.conversation import Conversation, Message
from ttmoe.errors import InputError

Tokens = dict[str, list[int]]
"""One sequence as a tokenizer returns it: ``input_ids`` and, for some tokenizers, ``token_type_ids``."""

Spans = tuple[tuple[int, int], ...]
"""First token of each answer in a sequence, and the token after its last one."""

_OPTIONS = {"add_special_tokens": False, "return_attention_mask": False}  # the template writes special tokens itself
_PROBE = Conversation((Message("user", "ttmoe?"), Message("assistant", "ttmoe!")))
_FIX = "use a base that was made for conversations (an instruct model), or tasks of kind generate"


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The base's tokenizer.
        where: Config key for error messages.

    Raises:
        InputError: If it has no chat template, or does not tell where its tokens are in a text.
    """

    def __init__(self, tokenizer: Any, where: str = "base") -> None:
        self.tokenizer, self.where = tokenizer, where
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("the base's tokenizer has no chat template, which writes conversations as tokens",
                             where=where, fix=_FIX)  # fmt: skip
        if not getattr(tokenizer, "is_fast", False):
            raise InputError("the base's tokenizer does not tell where its tokens are in a text", where=where,
                             fix="use a base with a tokenizer.json")  # fmt: skip

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids at which the assistant's turn is over.

        These are the tokenizer's end token, those that the base's ``generation_config.json`` names, and the special
        token that the template writes after a turn.
        """
        [(tokens, spans)] = self.encode([_PROBE], 2**30)
        if not spans:
            raise InputError("the base's chat template does not write the assistant's turn", where=self.where, fix=_FIX)
        last, named = tokens["input_ids"][spans[-1][1] - 1], None
        with suppress(OSError, ValueError, AttributeError):
            path = Path(str(self.tokenizer.name_or_path), "generation_config.json")
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        ends = [self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        ends += [last] if last in self._special_ids else []
        return tuple(sorted({int(end) for end in ends if end is not None}))

    @cached_property
    def lead(self) -> str:
        """What the template writes before each last answer, without special tokens: of Qwen3, empty reasoning.

        The model writes it too, and it is no part of the answer's text.
        """
        text, places = self._turns(_PROBE.messages)
        ids = self.tokenizer(text[places[-1][0] : text.rfind(_PROBE.answer)], **_OPTIONS)["input_ids"]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()

    def encode(self, rows: Sequence[Conversation], max_length: int) -> list[tuple[Tokens, Spans]]:
        """Tokenize conversations that end with an answer, without padding.

        A conversation of more than ``max_length`` tokens loses whole turns, the earliest first, but not the system's
        message; then the system's message; then the beginning of the last prompt. No answer is cut.

        Args:
            rows: The conversations.
            max_length: The largest number of tokens.

        Returns:
            Of each conversation its tokens and its answers. An answer includes the special token that ends the turn;
            where the template writes none, the last answer gets the tokenizer's end token. A turn that the template
            writes otherwise once others follow it (without its reasoning, for example) is an answer as it is written
            then, and none if its text is not in it.

        Raises:
            InputError: If the template refuses a conversation, or an answer leaves no room for its prompt.
        """
        if not rows:
            return []
        written = [self._turns(row.messages) for row in rows]
        batch = self.tokenizer([text for text, _ in written], return_offsets_mapping=True, **_OPTIONS)
        encoded = []
        for number, (row, (_, places)) in enumerate(zip(rows, written, strict=True)):
            tokens, spans = self._with_spans({key: values[number] for key, values in batch.items()}, places)
            if _length(tokens) > max_length:
                tokens, spans = self._shortened(row.messages, max_length, spans[-1][1] - spans[-1][0])
            encoded.append((tokens, spans))
        return encoded

    def encode_prompt(self, prompt: Conversation, max_length: int) -> Tokens:
        """Tokenize a conversation and the beginning of the assistant's turn, shortened as ``encode`` does it."""
        for messages in _parts(prompt.messages):
            if _length(tokens := self._opened(messages)) <= max_length:
                return tokens
        *before, last = messages

        def shorter(text: str) -> Tokens:
            return self._opened([*before, Message(last.role, text)])

        tokens = shorter(_longest_tail(last.content, lambda text: _length(shorter(text)) <= max_length))
        return {key: values[-max_length:] for key, values in tokens.items()}  # where no character fits

    def _shortened(self, row: Sequence[Message], max_length: int, longest: int) -> tuple[Tokens, Spans]:
        """Return the tokens of a conversation that is too long; its last answer has ``longest`` tokens."""
        for messages in _parts(row):
            if _length((made := self._closed(messages))[0]) <= max_length:
                return made
        last = max(i for i, message in enumerate(messages) if message.role == "user")

        def shorter(text: str) -> tuple[Tokens, Spans]:
            return self._closed([*messages[:last], Message("user", text), *messages[last + 1 :]])

        made = shorter(_longest_tail(messages[last].content, lambda text: _length(shorter(text)[0]) <= max_length))
        if _length(made[0]) > max_length:
            raise InputError(f"an answer has {longest} tokens, but prompt and answer together are limited to "
                             f"{max_length}", where="base.max_length",
                             fix=f"raise it well above {longest}, or leave rows out")  # fmt: skip
        return made

    def _opened(self, messages: Sequence[Message]) -> Tokens:
        return dict(self.tokenizer(self._write(messages, opening=True), **_OPTIONS))

    def _closed(self, messages: Sequence[Message]) -> tuple[Tokens, Spans]:
        text, places = self._turns(messages)
        return self._with_spans(dict(self.tokenizer(text, return_offsets_mapping=True, **_OPTIONS)), places)

    def _turns(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of a conversation, and where in it the answers are."""
        text, places = self._write(messages), []
        for i in [i for i, message in enumerate(messages) if message.role == "assistant" and i]:
            opening, is_last = self._write(messages[:i], opening=True), i == len(messages) - 1
            start = len(opening) if text.startswith(opening) else _start_of(messages[i].content, text, opening)
            if start < 0:
                if is_last:
                    raise InputError("the base's chat template begins an answer otherwise than it writes a finished "
                                     "one", where=self.where, fix="use another instruct model")  # fmt: skip
                continue
            if is_last:  # it begins as a prompt for it does; some templates open reasoning there alone
                text, start = opening + text[start:], len(opening)
            end = len(text) if is_last else self._end_of_turn(text, start, messages, i)
            bare = text[start:end].rstrip()  # templates write a line feed after the end token
            places.append((start, start + len(bare) if bare.endswith(self._special_tokens) else end))
        return text, places

    def _end_of_turn(self, text: str, start: int, messages: Sequence[Message], number: int) -> int:
        """Return where the turn that begins at ``start`` ends, if others follow it; ``start`` if its text is gone."""
        closed, content = self._write(messages[: number + 1]), messages[number].content
        if text.startswith(closed):
            return len(closed)
        found, last = text.find(content, start), closed.rfind(content)  # it is written otherwise now
        if found < 0 or last < 0 or any(token in text[start:found] for token in self._special_tokens):
            return start  # what stands after the end of a turn is another one's
        after, end = found + len(content), closed[last + len(content) :].rstrip()
        if text.find(messages[number + 1].content, after) < 0:
            return start  # these are words of the next turn
        return after + len(end) if text.startswith(end, after) else after

    def _with_spans(self, tokens: dict[str, list[Any]], places: Sequence[tuple[int, int]]) -> tuple[Tokens, Spans]:
        """Convert the places of answers in the text to spans of tokens; nothing follows the last one but its end."""
        offsets = tokens.pop("offset_mapping")
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        found = [(max(1, bisect_right(ends, start)), bisect_left(starts, end)) for start, end in places]
        found = [(first, last) for first, last in found if first < last]
        if not found:
            return tokens, ()
        first, last = found[-1]
        end, closing = self.tokenizer.eos_token_id, list[int]()
        if end is not None and tokens["input_ids"][last - 1] not in self._special_ids:
            closing, found[-1] = [end], (first, last + 1)
        return {key: [*values[:last], *(closing if key == "input_ids" else [0] * len(closing))]
                for key, values in tokens.items()}, tuple(found)  # fmt: skip

    def _write(self, messages: Sequence[Message], *, opening: bool = False) -> str:
        """Return the text that the template writes; with ``opening`` it goes on to the beginning of an answer."""
        try:
            return str(self.tokenizer.apply_chat_template([message._asdict() for message in messages], tokenize=False,
                                                          add_generation_prompt=opening))  # fmt: skip
        except Exception as error:  # whatever a template raises: of a role that it does not know, or of their order
            roles = ", ".join(message.role for message in messages)
            raise InputError(f"the base's chat template refuses a conversation ({roles}): {error}", where=self.where,
                             fix="leave such rows out with `where`, or use another base") from error  # fmt: skip

    @cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        found = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        return tuple(sorted(found - {self.tokenizer.unk_token}))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids(list(self._special_tokens)))


def _parts(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """Yield what is left of a conversation without its earliest turns, the longest first.

    Each part begins with a turn of the user, as templates demand; the last one has no message of the system.
    """
    yield tuple(messages)
    system = tuple(messages[:1]) if messages[0].role == "system" else ()
    starts = [i for i, message in enumerate(messages) if message.role == "user"]
    for start in starts:
        if start > len(system):
            yield (*system, *messages[start:])
    if system:
        yield tuple(messages[starts[-1] :])


def _longest_tail(text: str, fits: Callable[[str], bool]) -> str:
    """Return the longest end of a text that fits, by bisection; at least its last character."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[-middle:]) else (low, middle - 1)
    return text[-low:]


def _start_of(content: str, text: str, opening: str) -> int:
    """Return where ``text`` has ``content`` in place of what ``opening`` goes on with; -1 if it has something else."""
    shorter = min(len(text), len(opening))
    same = next((i for i in range(shorter) if text[i] != opening[i]), shorter)
    return text.find(content, max(0, same - len(content) + 1), same + len(content))  # both may go on with one letter


def _length(tokens: Tokens) -> int:
    return len(tokens["input_ids"])
