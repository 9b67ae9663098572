"""The score of generated texts: what a function of the user's own says of them, beside the answers of the test rows."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Callable
from statistics import fmean

from ttmoe.errors import InputError
from ttmoe.generation import conversation_of, generate, prompt_of
from workers.base.resident import ResidentBase
from workers.data.prepared import load_split
from workers.expert_job import ExpertJob
from workers.training.batches import to_input

Scorer = Callable[[str, str], float]
"""Takes a generated text and the answer of the row, and returns how good the text is."""

_AT_ONCE = 32  # rows between two reports


def load_scorer(name: str, where: str) -> Scorer:
    """Import a scorer.

    Args:
        name: Its module and its name there, as in ``package.module:function``.
        where: Config key for the error.

    Raises:
        InputError: If it cannot be imported or called.
    """
    fix = "write package.module:function, of a module that Python finds on every node"
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise InputError(f"{name!r} does not name a function of a module", where=where, fix=fix)
    try:
        scorer: Scorer = pkgutil.resolve_name(name)
    except Exception as error:  # whatever the module raises
        what = f"the scorer {name!r} cannot be imported: {type(error).__name__}: {error}"
        raise InputError(what, where=where, fix=fix) from error
    if not callable(scorer):
        raise InputError(f"the scorer {name!r} cannot be called", where=where, fix=fix)
    return scorer


def generated_score(
    job: ExpertJob, resident_base: ResidentBase, answer_tokens: int, on_batch: Callable[[], None]
) -> float:
    """Let a trained expert write the answers of the first test rows, and return their mean score.

    Args:
        job: The job; its expert must be in the bank.
        resident_base: The loaded base of the job.
        answer_tokens: The largest number of tokens of a text.
        on_batch: Called after each batch, for example to report a heartbeat.

    Raises:
        InputError: If the scorer cannot be imported, fails, or returns something else than a finite number.
    """
    where = f"tasks.{job.task}.scorer"
    scorer, examples, scores = load_scorer(job.scorer, where), load_split(job.data, "test")[: job.scorer_rows], []
    as_prompt = conversation_of if job.data.kind == "chat" else prompt_of
    for start in range(0, len(examples), _AT_ONCE):
        part = examples[start : start + _AT_ONCE]
        prompts = [as_prompt(to_input(example)) for example in part]
        texts = generate(resident_base.bank, resident_base.tokenizer, prompts, job.task, max(1, answer_tokens),
                         max_length=job.base.max_length)  # fmt: skip
        for number, (written, example) in enumerate(zip(texts, part, strict=True), start):
            try:
                scores.append(float(scorer(written.text, example.answer)))
            except Exception as error:  # whatever the function raises
                what = f"the scorer {job.scorer!r} failed on test row {number}: {type(error).__name__}: {error}"
                fix = "correct it, and repeat the command: the training itself is finished and is not repeated"
                raise InputError(what, where=where, fix=fix) from error
            if not math.isfinite(scores[-1]):
                what = f"the scorer {job.scorer!r} returned {scores[-1]} for test row {number}"
                raise InputError(what, where=where, fix="return a finite number")
        on_batch()
    return fmean(scores)
