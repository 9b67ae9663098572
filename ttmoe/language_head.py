"""The words: a causal base's own language head, frozen, with which every expert that writes text speaks.

The head's weights are the base's (its input embeddings where they are tied, else what its folder holds). What stands
between the top states and the logits (Gemma 2's soft cap, Granite's and Cohere's scale, ...) is the architecture's own
code: transformers' causal model is asked for the logits, with a body in its place that only hands over the states.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ttmoe.errors import InputError

MAX_POSITIONS = (
    256  # answer tokens whose logits are there at a time: a vocabulary of 50,000 in fp32 is 50 MB for so many
)
_FORMER = {"lm_head.weight": "embed_out.weight"}  # as files of GPT-NeoX call it


class LanguageHead:
    """The language head over a transformers body, in the body's dtype. Only what lies above the body is held anew."""

    def __init__(self, body: nn.Module) -> None:
        """Raises InputError for a base that is not causal, or whose folder lacks the head's weights."""
        require_causal(body.config)
        self.body = body
        self.causal, self._place, missing = _empty_causal(body)
        if missing:
            files = _require_files(body.config._name_or_path, missing)  # type: ignore[union-attr, arg-type]
            dtype, device = next(body.parameters()).dtype, next(body.parameters()).device
            self.causal.load_state_dict(_read(files, dtype, device), strict=False, assign=True)
        self.causal.requires_grad_(False).eval()

    def logits(self, states: Tensor) -> Tensor:
        """Scores of every word (places, vocabulary), fp32, that follow on top states (places, width)."""
        dtype = self._head_on(states.device).dtype
        return self.causal(inputs_embeds=states.unsqueeze(0).to(dtype), use_cache=False).logits[0].float()

    @contextmanager
    def speaking(self) -> Iterator[Any]:
        """Within this context transformers' causal model, over the bank's body as it is: with what is active there."""
        self._head_on(next(self.body.parameters()).device)
        stand_in = getattr(self.causal, self._place)
        setattr(self.causal, self._place, self.body)
        try:
            yield self.causal
        finally:
            setattr(self.causal, self._place, stand_in)

    def _head_on(self, device: torch.device) -> nn.Parameter:
        """The head's weights, brought to where the bank was moved."""
        if next(self.causal.parameters()).device != device:
            self.causal.to(device)
        return next(self.causal.parameters())


def answer_scores(words: LanguageHead, top: Tensor, inputs: dict[str, Tensor], answers: Sequence[int]) -> list[Tensor]:
    """For each row a tensor (answer tokens, 2), fp32: each one's log-probability, and the largest at its place.

    ``top`` (rows, tokens, width) are the last hidden states of ``inputs``, padded on the right; the last
    ``answers[i]`` tokens of row i are its answer, and a row with none gets (0, 2). Logits are worked out at those
    places alone, ``MAX_POSITIONS`` of them at a time: where there are more, the backward pass works them out again.
    """
    ends = inputs["attention_mask"].sum(1).tolist()
    places = [(row, end - count + i) for row, (end, count) in enumerate(zip(ends, answers, strict=True))
              for i in range(count)]  # fmt: skip
    if not places:
        return [top.new_zeros(0, 2, dtype=torch.float32) for _ in answers]
    rows, tokens = torch.tensor(places, device=top.device).unbind(1)
    states, targets = top[rows, tokens - 1], inputs["input_ids"][rows, tokens]  # a state foretells the next token
    parts = []
    for some, wanted in zip(states.split(MAX_POSITIONS), targets.split(MAX_POSITIONS), strict=True):
        if torch.is_grad_enabled() and len(targets) > MAX_POSITIONS:
            parts.append(checkpoint(_said, words, some, wanted, use_reentrant=False))
        else:
            parts.append(_said(words, some, wanted))
    return list(torch.cat(parts).split(list(answers)))


def _said(words: LanguageHead, states: Tensor, targets: Tensor) -> Tensor:
    logits = words.logits(states)
    both = torch.stack([logits.gather(1, targets.unsqueeze(1)).squeeze(1), logits.amax(1)], dim=1)
    return both - logits.logsumexp(1, keepdim=True)


def require_language_head(body: nn.Module, folder: str | Path, where: str = "base") -> None:
    """Raise InputError unless a base (the body may be on the meta device) can write text: nothing is loaded."""
    require_causal(body.config, where)
    _, _, missing = _empty_causal(body)
    _require_files(folder, missing)


def require_causal(config: Any, where: str = "base") -> None:
    """Raise InputError for the config of a model that does not write text from left to right."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    both_ways = getattr(config, "use_bidirectional_attention", False) is True
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or encoder or config.is_encoder_decoder or both_ways:
        raise InputError(f"the base ({config.model_type}) is no causal language model: it writes no text", where=where,
                         fix="name a causal base (such as the recipe smollm2's), or another kind of task")  # fmt: skip


def is_tied(config: Any) -> bool:
    """Whether the head's weights are the input embeddings, as the config says."""
    return bool(getattr(config, "tie_word_embeddings", False))


class _Given(nn.Module):
    """A body that hands over the states it is given."""

    @property
    def decoder(self) -> _Given:
        """OPT's causal model asks the body's decoder."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _Output:
        return _Output((inputs_embeds,))


class _Output(tuple):
    """What a body returns, whichever of transformers' forms it has: beside the states all is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def _empty_causal(body: nn.Module) -> tuple[Any, str, list[str]]:
    """The causal model over nothing, the attribute where its body belongs, and the tensors that are to be read."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(copy.deepcopy(body.config))
    place, head = causal.base_model_prefix, causal.get_output_embeddings()
    if type(getattr(causal, place, None)) is not type(body) or head is None:
        raise InputError(f"the language head of architecture {causal.config.model_type!r} is not known", where="base",
                         fix="name another causal base")  # fmt: skip
    setattr(causal, place, _Given())
    causal.config = body.config  # one config: what is set on the body holds for the whole
    shared = body.get_input_embeddings().weight if is_tied(body.config) else None  # type: ignore[operator]
    if shared is not None:
        head.weight = shared
    return causal, place, [name for name, value in causal.named_parameters() if value is not shared]


def _require_files(folder: str | Path | None, missing: Sequence[str]) -> dict[str, tuple[Path, str]]:
    """The file and the key there of each tensor. Raises InputError where one is in no safetensors file."""
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted(Path(folder).glob("*.safetensors")) if missing and folder else ():
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
        found |= {name: (path, key) for name in missing for key in (name, _FORMER.get(name, name)) if key in keys}
    if lacking := [name for name in missing if name not in found]:
        raise InputError(f"the base holds no {', '.join(lacking)}: it was saved without its language head",
                         where=str(folder or "base"), fix="save the causal model, as safetensors")  # fmt: skip
    return found


def _read(files: dict[str, tuple[Path, str]], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    tensors = {}
    for name, (path, key) in files.items():
        with safe_open(path, "pt") as file:
            tensors[name] = file.get_tensor(key).to(device=device, dtype=dtype)
    return tensors
