"""How far a search came, for whoever is told of its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from orchestrator.search.trial import Trial


@dataclass
class SearchInProgress:
    """What a search has made so far, filled while it goes on.

    Attributes:
        library: The library.
        run_id: Its MLflow run; None if there was nothing to do, or it ended before its work began.
        trials: The trials of each task.
        cached: Number of trials of a search that had finished before.
    """

    library: str
    run_id: str | None = None
    trials: Sequence[Sequence[Trial]] = ()
    cached: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state, those of an earlier search as ``cached``."""
        counts = Counter(trial.state for trial in chain(*self.trials)) + Counter(cached=self.cached)
        return dict(counts)
