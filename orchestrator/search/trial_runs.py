"""The MLflow runs of a search's trials, written as they happen; a search that is repeated reads them again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from orchestrator.registry import Registry
from orchestrator.report.search_content import point_text
from orchestrator.search.trial import Trial, read_trial

_LONGEST_ERROR = 2000  # characters of the tag `error`


@dataclass
class TrialRuns:
    """The runs of the trials of one search.

    Attributes:
        library: Name of the library.
        run_id: Run of the search.
        registry: An open registry.
        known: Trials of the library's other searches that are complete, by spec hash.
    """

    library: str
    run_id: str
    registry: Registry
    known: dict[str, Trial] = field(default_factory=dict)
    _existing: set[tuple[str, str]] = field(default_factory=set)
    _open: set[str] = field(default_factory=set)  # runs that this process has started

    def read(self) -> list[Trial]:
        """Return this search's trials, and keep the complete ones of other searches in ``known``.

        Trials of this search that have failed are tried again.
        """
        own = []
        for run in self.registry.trial_runs(self.library):
            is_own = run.tags.get("run") == self.run_id
            if is_own:
                self._existing.add((run.tags.get("task", ""), run.tags.get("spec_hash", "")))
            trial = read_trial(run)
            if trial is None:
                continue
            if is_own:
                own.append(replace(trial, state="waiting", error="") if trial.state == "failed" else trial)
            elif trial.state == "finished":
                self.known[trial.spec_hash] = trial
        return own

    def start(self, trial: Trial) -> None:
        """Record that a trial is trained: before its first rung, so that a search that is killed knows its point."""
        if trial.run_id in self._open:
            self.registry.tag_run(trial.run_id, {"state": trial.state})
        else:  # also one that was interrupted: MLflow shows it as running again
            self._start(trial)

    def record_rung(self, trial: Trial) -> None:
        """Record the last result of a trial, and its end if it has ended."""
        if not trial.run_id:
            self._start(trial)
        last, now = trial.rungs[-1], int(time.time() * 1000)
        rows = [(key, value, last.steps, now) for key, value in trial.metrics().items()]
        self.registry.log_metrics(trial.run_id, rows, trial.tags(), trial.params())
        if trial.has_ended:
            self.registry.finish_run(trial.run_id, "FINISHED")

    def record_failure(self, trial: Trial) -> None:
        """Record that a trial has failed."""
        trial.error = trial.error[:_LONGEST_ERROR]
        if not trial.run_id:
            self._start(trial)
        self.registry.tag_run(trial.run_id, trial.tags())
        self.registry.finish_run(trial.run_id, "FAILED")

    def _start(self, trial: Trial) -> None:
        """Start a run, or continue the one that the trial has."""
        identity = (trial.task, trial.spec_hash)
        trial.run_id = self.registry.expert_run(
            self.library,
            self.run_id,
            trial.task,
            trial.spec_hash,
            {},  # with the first results, which spares a request
            search=True,
            is_new=identity not in self._existing,
            name=trial.key,
            tags=trial.first_tags() | trial.tags() | {"mlflow.note.content": _describe(trial)},
        )
        self._existing.add(identity)
        self._open.add(trial.run_id)


def _describe(trial: Trial) -> str:
    seed = f", seed {trial.seed}" if trial.seed else ""
    return f"{trial.origin}{seed}: {point_text(trial.point, trial.point)}. {trial.parameters:,} parameters"
