"""A generating expert on a real base and a real task: it learns, and ``generate`` confirms its measured accuracy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quickstart import CACHE

from orchestrator.config.loading import load_config
from ttmoe.adapter import AdapterSpec, count_parameters, plan_groups
from ttmoe.bank import Bank
from ttmoe.base import Base, empty_body, load_body, load_tokenizer
from ttmoe.errors import InputError
from ttmoe.expert_files import load_expert
from ttmoe.generation import generate
from workers.base.base_sources import resolve_base
from workers.cache.tokens import load_tokenized_rows
from workers.data.prepared import PreparedTask, load_split, prepare_task
from workers.data.task import Task
from workers.expert_job import ExpertJob
from workers.expert_runner import run_expert
from workers.training.evaluation import evaluate
from workers.training.settings import TrainSettings

pytestmark = pytest.mark.integration
SHAPE = {"q": "24x24|24x24", "v": "24x24|8x24", "down": "32x48|24x24"}


@pytest.fixture(scope="module")
def base() -> Base:
    """SmolLM2, as in its recipe."""
    settings = load_config("smollm2").config.base.model_dump() | {"max_length": 48}
    try:
        return resolve_base(**settings, cache=CACHE)
    except InputError as error:
        pytest.skip(f"SmolLM2 is not available: {error}")


@pytest.fixture(scope="module")
def data() -> PreparedTask:
    """The questions of TREC; the answers are the class names of the file: LOC, NUM, ..."""
    trec = load_config("smollm2").config.tasks["trec"]
    task = {"kind": "generate", "source": trec.source.model_dump(), "columns": {"prompt": "text", "answer": "coarse"},
            "split": {"sample": 900, "test": 0.15}}  # fmt: skip
    try:
        return prepare_task("asked", Task.model_validate(task), CACHE)
    except InputError as error:
        pytest.skip(f"TREC is not available: {error}")


# On a tiny base, tests/unit/workers/test_generate_tasks.py does the same in seconds.
@pytest.mark.thorough
def test_training_teaches_a_base_to_generate_the_answers(base: Base, data: PreparedTask, tmp_path: Path) -> None:
    adapter = AdapterSpec(targets=tuple(SHAPE), first_layer=20, rank=8, shape=SHAPE)
    train = TrainSettings(steps=70, batch_size=16, lr=8e-3, eval_every=70, seed=0)
    job = ExpertJob("asked", base, data, adapter, "trained", train, "ab" * 32,
                    count_parameters(plan_groups(empty_body(base), adapter)), str(tmp_path / "expert"),
                    cache=str(tmp_path / "cache"), trunk_bytes=2 * 10**9)  # fmt: skip
    result = run_expert(job, lambda progress: None)

    bank, tokenizer = Bank(load_body(base), base.pooling).eval(), load_tokenizer(base)
    manifest = load_expert(bank, tmp_path / "expert", base.digest)
    bank.add("untrained", adapter, 0, torch.Generator().manual_seed(0))
    rows = load_tokenized_rows(base, tokenizer, data, "test", tmp_path)
    untrained = evaluate(bank, "untrained", rows, tokenizer.pad_token_id)["accuracy"]
    assert untrained < 0.05
    assert result.metrics["test.accuracy"] > data.majority + 0.2

    test = load_split(data, "test")
    written = generate(bank, tokenizer, [example.texts[0] for example in test], "asked", manifest.answer_tokens,
                       max_length=base.max_length)  # fmt: skip
    right = [text.text == example.answer for text, example in zip(written, test, strict=True)]
    # If two tokens are equally likely in the base's precision, the side of the padding can decide.
    assert sum(right) / len(right) == pytest.approx(result.metrics["test.accuracy"], abs=0.03)
    sure = sorted(zip((text.probability for text in written), right, strict=True), reverse=True)[: len(right) // 2]
    assert sum(is_right for _, is_right in sure) / len(sure) > sum(right) / len(right)
