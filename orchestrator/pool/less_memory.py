"""Versions of jobs that use less memory, for a retry: half of what is in the model at once, whatever set it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ttmoe.batching import batch_tokens, half_of
from workers.expert_job import ExpertJob

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and options of a job, as ``WorkUnit.of`` keeps them."""

_LEAST_CHUNK = 16  # rows of features; fewer take no memory beside the features that are loaded


def with_half_micro_batch(job: ExpertJob) -> ExpertJob | None:
    """Return the job of an expert with half the rows in the model at once, or None if that is one row already."""
    train = job.train
    most = train.batch_tokens or train.batch_size  # no row has less than one token
    half = half_of(min(most, train.rows_at_once or most), train.batch_tokens, job.base.max_length)
    return None if half is None else replace(job, train=train.model_copy(update={"micro_batch": half}))


def with_half_batch(call: Call, max_length: int) -> Call | None:
    """Return a call with half its option ``batch_rows``, or None if one row is in the model at once already.

    Args:
        call: Call of a function that passes rows through the base in batches, see ``ttmoe.batching``.
        max_length: Tokens of the longest row.
    """
    args, options = call
    half = half_of(options["batch_rows"], batch_tokens(options["device"]), max_length)
    return None if half is None else (args, {**options, "batch_rows": half})


def with_half_chunk(call: Call) -> Call | None:
    """Return a call whose first argument, a ``RouterJob``, converts half the rows at a time; None if they are few."""
    (job, *args), options = call
    half = job.chunk_rows // 2
    return None if half < _LEAST_CHUNK else ((replace(job, chunk_rows=half), *args), options)
