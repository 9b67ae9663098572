"""The frozen language head of a causal base, which every expert that generates text shares.

The weights are the base's: its input embeddings if they are tied, else read from its folder. Steps between the last
hidden states and the logits (the soft cap of Gemma 2, the scale of Granite and Cohere, ...) are run by transformers'
own causal model of the architecture, with a body that returns the given hidden states in place of its own.
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

from ttmoe.attention import any_padding
from ttmoe.errors import InputError
from ttmoe.sequence_packing import RowSpan
from ttmoe.transfer import tensor_on

MAX_POSITIONS = 256  # token positions whose logits exist at a time: 50 MB for a vocabulary of 50,000 in fp32
_OLD_KEYS = {"lm_head.weight": "embed_out.weight"}  # the key in files of GPT-NeoX


class LanguageHead:
    """The language head of a transformers body, in the body's dtype. It shares all other weights with the body.

    Args:
        body: The body, loaded from a folder that also contains the head's weights unless they are tied.

    Raises:
        InputError: If the base is not causal, or its folder does not contain the head's weights.
    """

    def __init__(self, body: nn.Module) -> None:
        require_causal(body.config)
        self.body = body
        self.causal, self._body_attribute, missing = _empty_causal_model(body)
        if missing:
            files = _find_tensors(body.config._name_or_path, missing, _embedding_keys(body, self.causal))  # type: ignore[union-attr, arg-type]
            dtype, device = next(body.parameters()).dtype, next(body.parameters()).device
            self.causal.load_state_dict(_read_tensors(files, dtype, device), strict=False, assign=True)
        self.causal.requires_grad_(False).eval()

    def logits(self, states: Tensor) -> Tensor:
        """Compute the logits of the next token.

        Args:
            states: Last hidden states, (positions, width).

        Returns:
            Logits (positions, vocabulary), fp32.
        """
        dtype = self._move_to(states.device)
        return self.causal(inputs_embeds=states.unsqueeze(0).to(dtype), use_cache=False).logits[0].float()

    @contextmanager
    def generation_model(self) -> Iterator[Any]:
        """Yield transformers' causal model over the real body, for ``generate``.

        The experts that are active in the bank act in it.
        """
        self._move_to(next(self.body.parameters()).device)
        stand_in = getattr(self.causal, self._body_attribute)
        setattr(self.causal, self._body_attribute, self.body)
        try:
            with any_padding(self.body):  # generation pads on the left
                yield self.causal
        finally:
            setattr(self.causal, self._body_attribute, stand_in)

    def _move_to(self, device: torch.device) -> torch.dtype:
        """Move the head to ``device``, to which the bank may have been moved, and return its dtype."""
        if next(self.causal.parameters()).device != device:
            self.causal.to(device)
        return next(self.causal.parameters()).dtype


def answer_scores(head: LanguageHead, last_hidden_state: Tensor, inputs: dict[str, Tensor],
                  answers: Sequence[RowSpan]) -> Tensor:  # fmt: skip
    """Compute the log-probabilities of the answer tokens of each row (teacher forcing).

    At most ``MAX_POSITIONS`` logits exist at a time. If there are more positions, the backward pass recomputes them.

    Args:
        head: The language head.
        last_hidden_state: Last hidden states of ``inputs``, (rows, tokens, width).
        inputs: Token ids and attention mask, (rows, tokens), padded on the right.
        answers: The row of each answer, its first token, which is above 0, and the token after its last one.

    Returns:
        (answer tokens of all rows, 2), fp32: the log-probability of each token, and the largest log-probability at its
        position.
    """
    positions = [(row, token) for row, start, end in answers for token in range(start, end)]
    if not positions:
        return last_hidden_state.new_zeros(0, 2, dtype=torch.float32)
    rows, tokens = tensor_on(last_hidden_state.device, positions).unbind(1)
    # The state at a position predicts the next token.
    states, targets = last_hidden_state[rows, tokens - 1], inputs["input_ids"][rows, tokens]
    chunks = zip(states.split(MAX_POSITIONS), targets.split(MAX_POSITIONS), strict=True)
    if torch.is_grad_enabled() and len(targets) > MAX_POSITIONS:
        parts = [checkpoint(_log_probabilities, head, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [_log_probabilities(head, *chunk) for chunk in chunks]
    return torch.cat(parts)


def _log_probabilities(head: LanguageHead, states: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities (positions, 2) of the target tokens and of the likeliest tokens."""
    logits = head.logits(states)
    selected = torch.stack([logits.gather(1, targets.unsqueeze(1)).squeeze(1), logits.amax(1)], dim=1)
    return selected - logits.logsumexp(1, keepdim=True)


def require_language_head(body: nn.Module, folder: str | Path, where: str = "base") -> None:
    """Check that a base can generate text. Nothing is loaded.

    Args:
        body: The body; it may be on the meta device.
        folder: Folder of the base.
        where: Config key for the error message.

    Raises:
        InputError: If the base is not causal, or ``folder`` does not contain the head's weights.
    """
    require_causal(body.config, where)
    _, _, missing = _empty_causal_model(body)
    _find_tensors(folder, missing)


def require_causal(config: Any, where: str = "base") -> None:
    """Raise InputError unless ``config`` is of a causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    bidirectional = getattr(config, "use_bidirectional_attention", False) is True
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or encoder or config.is_encoder_decoder or bidirectional:
        raise InputError(f"the base ({config.model_type}) is not a causal language model and cannot generate text",
                         where=where,
                         fix="use a causal base (as the recipe smollm2 does), or another kind of task")  # fmt: skip


def is_tied(config: Any) -> bool:
    """Return whether the head's weights are the input embeddings."""
    return bool(getattr(config, "tie_word_embeddings", False))


class _StatesBody(nn.Module):
    """A body that returns the states it is given as input embeddings."""

    @property
    def decoder(self) -> _StatesBody:
        """Return the module that OPT's causal model calls in place of the body."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _BodyOutput:
        return _BodyOutput((inputs_embeds,))


class _BodyOutput(tuple):
    """A body's output, for callers that index it and callers that read attributes: all but the states are None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


def _empty_causal_model(body: nn.Module) -> tuple[Any, str, list[str]]:
    """Build transformers' causal model around a ``_StatesBody``.

    Returns:
        The model, on the meta device except for tied weights; the attribute that holds its body; the names of the
        parameters to load.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(copy.deepcopy(body.config), trust_remote_code=False)
    attribute, head = causal.base_model_prefix, causal.get_output_embeddings()
    if type(getattr(causal, attribute, None)) is not type(body) or head is None:
        raise InputError(f"cannot find the language head of architecture {causal.config.model_type!r}", where="base",
                         fix="use another causal base")  # fmt: skip
    setattr(causal, attribute, _StatesBody())
    causal.config = body.config  # shared, so that settings changed on the body apply to the whole model
    tied = body.get_input_embeddings().weight if is_tied(body.config) else None  # type: ignore[operator]
    if hasattr(tied, "ds_id"):  # DeepSpeed divides it among processes: each needs a copy for the head
        tied = None
    if tied is not None:
        head.weight = tied
    return causal, attribute, [name for name, value in causal.named_parameters() if value is not tied]


def _embedding_keys(body: nn.Module, causal: Any) -> tuple[str, ...]:
    """Return the keys in files of the input embeddings, if they are the head's weights too; else nothing."""
    if not is_tied(body.config):
        return ()
    weight = body.get_input_embeddings().weight  # type: ignore[operator]
    name = next(name for name, value in body.named_parameters() if value is weight)
    return f"{causal.base_model_prefix}.{name}", name


def _find_tensors(
    folder: str | Path | None, names: Sequence[str], others: Sequence[str] = ()
) -> dict[str, tuple[Path, str]]:
    """Find the safetensors file of each tensor, and its key there: its name, or one of ``others``.

    Raises:
        InputError: If one is missing.
    """
    files: dict[str, tuple[Path, str]] = {}
    for path in sorted(Path(folder).glob("*.safetensors")) if names and folder else ():
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
        files |= {name: (path, key) for name in names
                  for key in (name, _OLD_KEYS.get(name, name), *others) if key in keys}  # fmt: skip
    if missing := [name for name in names if name not in files]:
        raise InputError(f"the base has no {', '.join(missing)}: it was saved without its language head",
                         where=str(folder or "base"), fix="save the causal model as safetensors")  # fmt: skip
    return files


def _read_tensors(files: dict[str, tuple[Path, str]], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    tensors = {}
    for name, (path, key) in files.items():
        with safe_open(path, "pt") as file:
            tensors[name] = file.get_tensor(key).to(device=device, dtype=dtype)
    return tensors
