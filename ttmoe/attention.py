"""The attention of a base on a GPU: transformers' ``sdpa`` without reads of masks on the host.

For each pass transformers asks the GPU whether a batch has padding, and the host waits for all work that is queued.
With padding it then builds a mask, for which torch has no flash attention. Here no mask is needed in layers that are
causal: rows are padded on the right, so that no real token sees padding. Other layers get their mask unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

NAME = "ttmoe_sdpa"


def use_right_padding(model: nn.Module) -> None:
    """Make a transformers model use this attention, if it uses ``sdpa``. Its batches must be padded on the right."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, right_padded_mask)
    if model.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        model.config._attn_implementation = NAME  # type: ignore[union-attr]


@contextmanager
def any_padding(model: nn.Module) -> Iterator[None]:
    """Within this context the batches of the model may be padded on either side."""
    config: Any = model.config
    before = config._attn_implementation
    if before == NAME:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


def right_padded_mask(**arguments: Any) -> Tensor | None:
    """Return the mask of a layer's attention as ``transformers.masking_utils.sdpa_mask`` does, reading no values.

    The arguments are those of ``sdpa_mask``, which differ between releases of transformers.

    Returns:
        None for a causal layer whose window is not shorter than the batch: ``is_causal`` of torch's attention is
        enough. Else a boolean mask (batch, 1, queries, keys).
    """
    from transformers.masking_utils import sdpa_mask

    keys, window = arguments["kv_length"], arguments.get("local_size")
    queries = arguments["q_length"] if "q_length" in arguments else len(arguments["cache_position"])
    if arguments.get("allow_is_causal_skip", True) and queries == keys and (window is None or keys < window):
        return None
    return sdpa_mask(**{**arguments, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
