"""What planning asks of a base's modules, remembered, because transformers takes seconds to import a model's classes.

``<cache>/fits/`` contains a small file for each base and each version of the code that decides the answers. A file that
cannot be read or written is no error, because the answers can be computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version as installed
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ttmoe.adapter import AdapterSpec, count_lora_parameters, count_parameters, plan_groups
from ttmoe.atomic_write import write_atomically
from ttmoe.base import COPY_FIX, Base, empty_body, load_tokenizer
from ttmoe.chat_template import ChatTemplate
from ttmoe.errors import InputError
from ttmoe.language_head import require_language_head
from ttmoe.positions import embedded_ids, largest_id, usable_positions
from ttmoe.template_files import template_digest
from workers.base.base_sources import CONFIG_ALONE
from workers.data.examples import Example
from workers.data.prepared import PreparedTask, first_examples
from workers.training.batches import tokenize

if TYPE_CHECKING:
    from torch import nn


SAMPLED_ROWS = 256  # of a task, whose tokens are counted
_UNLIMITED = 2**30  # tokens
_LONGEST_TOKEN = 64  # characters; of a longer text, those are counted that could be so many tokens


@dataclass(frozen=True)
class AdapterFit:
    """Shape and size of an adapter on a base.

    Attributes:
        shapes: Shape by role, with ``auto`` resolved.
        parameters: Trainable parameters, without the head.
        lora_parameters: Parameters of a LoRA adapter of rank 16 on the same layers, for comparison.
    """

    shapes: dict[str, str]
    parameters: int
    lora_parameters: int


class _Answers(BaseModel):
    """Content of the file.

    The base's number of layers and width, its positions (0: any number), whether its tokenizer's ids have embeddings,
    whether it can generate text, the digest of a chat template that works, the fit of each adapter, and by data and
    length the share of longer rows.
    """

    layers: int | None = None
    width: int | None = None
    positions: int | None = None
    embeds: bool = False
    generates: bool = False
    chats: str = ""
    fits: dict[str, AdapterFit] = {}
    cut: dict[str, float] = {}


class AdapterFits:
    """Answers about one base; its modules are built, on the meta device, only for an answer that is not known.

    Args:
        base: The base.
        cache: Root folder of the cache.
    """

    def __init__(self, base: Base, cache: Path) -> None:
        self._base = base
        name = hashlib.sha256(f"{base.digest} {installed('transformers')} {_code_digest()}".encode()).hexdigest()
        self._file = cache / "fits" / f"{name}.json"
        self._answers = _Answers()
        with suppress(OSError, ValueError):
            self._answers = _Answers.model_validate_json(self._file.read_bytes())
        self._known = self._answers.model_copy(deep=True)

    @cached_property
    def _model(self) -> nn.Module:
        return empty_body(self._base)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._base)

    @property
    def layers(self) -> int:
        """Number of layers of the base."""
        if self._answers.layers is None:
            self._answers.layers = int(self._model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        return self._answers.layers

    @property
    def width(self) -> int:
        """Width of the hidden states of the base."""
        if self._answers.width is None:
            self._answers.width = int(self._model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        return self._answers.width

    def require_sound_base(self, *, length_is_given: bool) -> None:
        """Check that the base reads what its tokenizer writes, up to ``base.max_length`` tokens.

        Args:
            length_is_given: Whether the config has ``base.max_length``. The default may exceed the positions of a small
                base, whose texts may be short.

        Raises:
            InputError: If it has fewer positions, or no embedding for a token of the tokenizer.
        """
        if length_is_given and self._lacks_positions:
            raise self._too_few_positions()
        if not self._answers.embeds and self._base.source != CONFIG_ALONE:
            embedded, largest = embedded_ids(self._model), largest_id(self._tokenizer)
            if largest >= embedded:
                what = f"the tokenizer makes the token id {largest}, and the base has embeddings for {embedded} ids"
                raise InputError(what, where=self._base.folder, fix=COPY_FIX)
            self._answers.embeds = True

    @property
    def _lacks_positions(self) -> bool:
        if self._answers.positions is None:
            self._answers.positions = usable_positions(self._model) or 0
        return 0 < self._answers.positions < self._base.max_length

    def _too_few_positions(self) -> InputError:
        what = f"the base has {self._answers.positions} positions, and base.max_length is {self._base.max_length}"
        return InputError(what, where="base.max_length", fix=f"set it to {self._answers.positions} or less")

    def require_language_head(self, where: str) -> None:
        """Raise InputError at ``where`` if the base cannot generate text, see ``ttmoe.language_head``."""
        if not self._answers.generates:
            require_language_head(self._model, self._base.folder, where)
            self._answers.generates = True

    def require_chat_template(self, where: str) -> None:
        """Raise InputError at ``where`` if the base cannot write conversations, see ``ttmoe.chat_template``."""
        if self._answers.chats != (digest := template_digest(self._base.chat_template)):
            _ = ChatTemplate(self._tokenizer, where).end_ids
            self._answers.chats = digest

    def fit(self, adapter: AdapterSpec) -> AdapterFit:
        """Return the fit of an adapter, computed once for equal adapters. Raise InputError like ``plan_groups``."""
        key = repr(adapter)
        if key not in self._answers.fits:
            groups = plan_groups(self._model, adapter)
            shapes = {group.role: str(group.method) for group in groups}
            self._answers.fits[key] = AdapterFit(shapes, count_parameters(groups), count_lora_parameters(groups))
        return self._answers.fits[key]

    def cut_share(self, data: PreparedTask) -> float:
        """Return the share of the training rows with more than ``base.max_length`` tokens, by a sample of them.

        Raises:
            InputError: If a row has more tokens than the base has positions, and is not cut.
        """
        if self._lacks_positions and (data.declared_tokens or self._longest(data)) > (self._answers.positions or 0):
            raise self._too_few_positions()
        if data.declared_tokens:
            return float(data.declared_tokens > self._base.max_length)
        key = f"{data.fingerprint} {self._base.max_length}"
        key += f" {template_digest(self._base.chat_template)}" if data.kind == "chat" else ""
        if key not in self._answers.cut:
            try:
                sample = first_examples(data, "train", SAMPLED_ROWS)
            except InputError:  # the job that reads the whole file makes it again
                return 0.0
            if data.kind == "chat":
                self._answers.cut[key] = self._cut_share_of_conversations(data.name, sample)
                return self._answers.cut[key]
            most = _LONGEST_TOKEN * (self._base.max_length + 1)
            short = [replace(each, texts=tuple(text[:most] for text in each.texts)) for each in sample]
            lengths = tokenize(self._tokenizer, short, self._base.max_length + 1).lengths
            self._answers.cut[key] = sum(length > self._base.max_length for length in lengths) / len(lengths)
        return self._answers.cut[key]

    def _longest(self, data: PreparedTask) -> int:
        """Return the tokens of the longest row of a sample, at most ``base.max_length``."""
        with suppress(InputError):
            sample = first_examples(data, "train", SAMPLED_ROWS)
            return max(tokenize(self._tokenizer, sample, self._base.max_length).lengths)
        return 0

    def _cut_share_of_conversations(self, task: str, sample: Sequence[Example]) -> float:
        """Return the share of longer conversations; raise InputError if one cannot be written or cut."""
        try:
            lengths = tokenize(self._tokenizer, sample, _UNLIMITED).lengths
            longer = [each for each, n in zip(sample, lengths, strict=True) if n > self._base.max_length]
            tokenize(self._tokenizer, longer, self._base.max_length)
        except InputError as error:
            raise InputError(error.what, where=f"tasks.{task}, {error.where}", fix=error.fix) from error
        return len(longer) / len(sample)

    def save(self) -> None:
        """Keep new answers for the next plan."""
        if self._answers != self._known:
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file, self._answers.model_dump_json().encode(), synchronize=False)


def _code_digest() -> str:
    """Return the digest of the source of the package ``ttmoe``, which decides every answer."""
    modules = sorted(Path(str(files("ttmoe"))).glob("*.py"))
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
