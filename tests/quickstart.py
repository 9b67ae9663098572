"""The quickstart recipe on few rows and few steps."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Downloads and tasks are kept by their digests, so it does not matter which test or `make quickstart` fills it.
CACHE = ROOT / "runs" / "cache"
TASKS = ("trec", "sms_spam", "reviews", "sarcasm")
# A task's own settings win over those for all, so the tasks that have their own are named.
FEW = ["train.steps=20", "train.batch_size=8", "train.eval_every=20", "search.trials=2", "search.steps=5",
       "router.rows_per_task=200", "router.epochs=10",
       *(f"tasks.{task}.split.sample=200" for task in TASKS)]  # fmt: skip


def few_steps() -> list[str]:
    """``--set`` for a run of the quickstart that takes a minute."""
    recipe = (ROOT / "orchestrator" / "recipes" / "quickstart.yaml").read_text()
    own = [task for task in TASKS if re.search(rf"^  {task}:\n(?:    .*\n|\n)*?    train: ", recipe, re.MULTILINE)]
    settings = [*FEW, *(f"tasks.{task}.train.steps=20" for task in own), f"storage.cache={CACHE}"]
    return [word for setting in settings for word in ("--set", setting)]
