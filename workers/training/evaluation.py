"""Scores, accuracy and loss of one expert on a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ttmoe.bank import Bank
from ttmoe.batching import batch_tokens
from ttmoe.scoring import score
from workers.training.batches import TokenizedRows, longest_first, token_batches
from workers.training.engines.engine import SINGLE_PROCESS, Engine, share


@torch.no_grad()
def expert_scores(
    bank: Bank,
    name: str,
    rows: TokenizedRows,
    pad_id: int,
    max_tokens: int | None = None,
    on_batch: Callable[[], None] | None = None,
    engine: Engine = SINGLE_PROCESS,
) -> list[Tensor]:
    """Compute the scores of every row through one expert. Several processes share the batches.

    Args:
        bank: Bank that holds the expert.
        name: Name of the expert.
        rows: Rows to score.
        pad_id: Token id used for padding.
        max_tokens: Padded tokens in a batch; by default the value for the bank's device.
        on_batch: Called after each batch, for example to report a heartbeat.
        engine: How this process evaluates, alone or with others.

    Returns:
        One tensor for each row, in order, on the CPU: (classes,), (options,), or for an expert that generates text
        (answer tokens, 2) as ``ttmoe.scoring.score`` defines it.
    """
    order: list[int] = []
    parts: list[list[Tensor]] = []
    for batch, counts in share(engine, _batches(bank, rows, max_tokens)):
        scores = _batch_scores(bank, name, rows, batch, pad_id)
        if counts:
            order += batch
            parts.append(scores)
        if on_batch:
            on_batch()
    own = dict(zip(order, to_host([score for part in parts for score in part]), strict=True))
    row_scores = reduce(or_, engine.gather(own))
    return [row_scores[row] for row in range(len(rows))]


@torch.no_grad()
def last_batch_scores(bank: Bank, name: str, rows: TokenizedRows, pad_id: int) -> dict[int, Tensor]:
    """Compute the scores of the last batch that ``expert_scores`` makes of the rows, the one of the shortest.

    Two experts with the same weights have the same scores to the last bit only in the same batch.

    Returns:
        Scores by the row's index.
    """
    batch = _batches(bank, rows)[-1]
    return dict(zip(batch, to_host(_batch_scores(bank, name, rows, batch, pad_id)), strict=True))


def _batches(bank: Bank, rows: TokenizedRows, max_tokens: int | None = None) -> list[list[int]]:
    return list(token_batches(rows, longest_first(rows), max_tokens or batch_tokens(bank.device.type)))


def _batch_scores(bank: Bank, name: str, rows: TokenizedRows, batch: list[int], pad_id: int) -> list[Tensor]:
    items, states = [rows.items[row] for row in batch], rows.gather_states(batch, bank.device)
    return score(bank, items, name, pad_id, states=states, depth=rows.states.depth if rows.states else 0)


def to_host(scores: list[Tensor]) -> list[Tensor]:
    """Copy scores of rows to main memory at once: the host waits for the device once."""
    if not scores:
        return []
    return list(torch.cat(scores).cpu().split([len(row) for row in scores]))


@torch.no_grad()
def evaluate(
    bank: Bank,
    name: str,
    rows: TokenizedRows,
    pad_id: int,
    on_batch: Callable[[], None] | None = None,
    engine: Engine = SINGLE_PROCESS,
) -> dict[str, float]:
    """Measure one expert on a split. The bank keeps its training mode.

    For an expert that generates text, a row is correct if every token of its answer is the most likely one after the
    tokens before it: greedy decoding then writes exactly this answer and stops, except where two tokens tie. Of a
    conversation this is the last answer, while the loss is of all.

    Args:
        bank: Bank that holds the expert.
        name: Name of the expert.
        rows: Rows to evaluate.
        pad_id: Token id used for padding.
        on_batch: Called after each batch, for example to report a heartbeat.
        engine: How this process evaluates, alone or with others.

    Returns:
        ``accuracy`` (0 to 1) and ``loss``, the mean over rows of the cross-entropy, or of its mean over a row's answer
        tokens; for an expert that generates text also ``perplexity``, of all answer tokens.
    """
    training = bank.training
    bank.eval()
    try:
        row_scores = expert_scores(bank, name, rows, pad_id, on_batch=on_batch, engine=engine)
    finally:
        bank.train(training)
    return accuracy_and_loss(row_scores, rows.labels, rows.last_answers)


def accuracy_and_loss(
    row_scores: list[Tensor], labels: Sequence[int], last_answers: Sequence[int] = ()
) -> dict[str, float]:
    """Return what ``evaluate`` measures.

    Args:
        row_scores: The scores of all rows, as ``expert_scores`` returns them.
        labels: The label of each row.
        last_answers: For rows with several answers the number of tokens of the last one.
    """
    if row_scores and row_scores[0].ndim == 2:
        last = [row[-count:] for row, count in zip(row_scores, last_answers or map(len, row_scores), strict=True)]
        correct = [bool((row[:, 0] >= row[:, 1]).all()) for row in last]
        negative = [-row[:, 0].double() for row in row_scores]
        means = torch.stack([row.mean() for row in negative])
        perplexity = float(torch.cat(negative).mean().exp())
        return {"accuracy": sum(correct) / len(correct), "loss": float(means.mean()), "perplexity": perplexity}
    scores = pad_sequence(row_scores, batch_first=True, padding_value=-torch.inf)
    expected = torch.tensor(labels)
    losses = -scores.log_softmax(-1).gather(1, expected.unsqueeze(1)).double()
    return {"accuracy": float((scores.argmax(1) == expected).double().mean()), "loss": float(losses.mean())}
