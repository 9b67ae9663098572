"""Accuracy of an expert on a split: right labels, right options, or answers that it writes word for word."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ttmoe.bank import Bank
from ttmoe.scoring import score
from workers.training.batches import TokenizedRows, longest_first, token_batches

# Padded tokens in a batch. On one core, MiniLM in bf16 reads 13,800 tokens of QNLI a second with 2,048 of them, 14,700
# with 3,072, 11,000 with 8,192 and 9,100 in batches of 128 rows; of TREC 13,500, 13,100, 9,100 and 12,600.
TOKENS = 2048
TOKENS_ON_GPU = 32768  # which a small batch leaves idle


@torch.no_grad()
def expert_scores(
    bank: Bank,
    name: str,
    rows: TokenizedRows,
    pad_id: int,
    tokens: int | None = None,
    pulse: Callable[[], None] | None = None,
) -> list[Tensor]:
    """Scores of every row through expert ``name``, in order, on the CPU, ``tokens`` padded tokens in a batch.

    ``pulse`` is called after each batch: a sign of life, where a split is large.
    """
    tokens = tokens or (TOKENS if bank.device.type == "cpu" else TOKENS_ON_GPU)
    found: dict[int, Tensor] = {}
    for batch in token_batches(rows, longest_first(rows), tokens):
        items, states = [rows.items[row] for row in batch], rows.gather_states(batch, bank.device)
        scores = score(bank, items, name, pad_id, states=states, depth=rows.states.depth if rows.states else 0)
        sizes = [len(s) for s in scores]
        found.update(zip(batch, torch.cat(scores).cpu().split(sizes), strict=True))  # one wait for the device
        if pulse:
            pulse()
    return [found[row] for row in range(len(rows))]


@torch.no_grad()
def evaluate(
    bank: Bank, name: str, rows: TokenizedRows, pad_id: int, pulse: Callable[[], None] | None = None
) -> dict[str, float]:
    """``accuracy`` and mean ``loss`` of expert ``name``; the bank is left in the mode it was in. ``pulse`` as above.

    Of an expert that writes, a row is right where every token of its answer is the likeliest behind those before it:
    that is where greedy decoding would write exactly this answer and end (where two tokens tie, it may take the other).
    """
    training = bank.training
    bank.eval()
    try:
        found = expert_scores(bank, name, rows, pad_id, pulse=pulse)
    finally:
        bank.train(training)
    if found and found[0].ndim == 2:
        right = [bool((row[:, 0] >= row[:, 1]).all()) for row in found]
        means = torch.stack([-row[:, 0].double().mean() for row in found])
        return {"accuracy": sum(right) / len(right), "loss": float(means.mean())}
    scores = pad_sequence(found, batch_first=True, padding_value=-torch.inf)
    labels = torch.tensor(rows.labels)
    losses = -scores.log_softmax(-1).gather(1, labels.unsqueeze(1)).double()
    return {"accuracy": float((scores.argmax(1) == labels).double().mean()), "loss": float(losses.mean())}
