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
    """

    library: str
    run_id: str | None = None
    trials: Sequence[Sequence[Trial]] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state."""
        return dict(Counter(trial.state for trial in chain(*self.trials)))
