"""The trials of a search, recorded as each ends: in its work folder and as MLflow runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.registry import Registry
from ttmoe.atomic_write import write_atomically

METRICS = ("accuracy", "loss", "parameters", "seconds")
DESCRIPTION = ("rank", "cores", "factors", "shapes", "spec_hash")
PARAMS = ("rank", "factors", "shapes")
_COMPARED = ("accuracy", "parameters")  # without them a trial is of no use
_FOLDER = "trials"
_LONGEST_ERROR = 2000  # characters of the tag `error`


class TrialRecords:
    """The trials of one search that have ended. The files of finished trials outlive an interrupted search.

    Args:
        folder: Work folder of the search.
        library: Name of the library.
        task: The searched task.
        registry: An open registry.
        run: Run id of the search.

    Attributes:
        finished: Metrics and description of each finished trial, those of an interrupted search first.
        failed: Description of each failed trial, and its ``error``.
    """

    def __init__(self, folder: Path, library: str, task: str, registry: Registry, run: str) -> None:
        self.folder, self.library, self.task, self.registry, self.run = folder / _FOLDER, library, task, registry, run
        self.finished: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def read_earlier(self, space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """Read the trials that finished before this search was interrupted, and make their runs parts of its run.

        Args:
            space: Options by name. A trial of another choice is left out, as is a damaged record or a second one of a
                choice: such a trial is made again if the space has its choice.
        """
        choices = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                content = json.loads(path.read_text())
                trial = {key: content[key] for key in METRICS + DESCRIPTION}
                sound = all(math.isfinite(trial[key]) for key in _COMPARED)
            except (ValueError, KeyError, TypeError):
                continue  # a damaged file: the trial is made again
            choice = {name: trial.get(name) for name in space}
            if not sound or choice in choices or any(choice[name] not in options for name, options in space.items()):
                continue
            choices.append(choice)
            self.finished.append(trial)
            self._log_finished(trial)
        return list(self.finished)

    def add(self, result: dict[str, Any]) -> dict[str, Any]:
        """Record a finished trial, on disk first; return the metrics and the description in ``result``."""
        trial = {key: result[key] for key in METRICS + DESCRIPTION}
        write_atomically(self.folder / f"{trial['spec_hash']}.json", json.dumps(trial).encode())
        self.finished.append(trial)
        self._log_finished(trial)
        return trial

    def add_failed(self, description: dict[str, Any], error: str) -> None:
        """Record a failed trial: its run ends as FAILED with the tag ``error``."""
        self.failed.append(description | {"error": error})
        run = self._start_run(description, {})
        self.registry.tag_run(run, {"error": error[:_LONGEST_ERROR]})
        self.registry.finish_run(run, "FAILED")

    def _log_finished(self, trial: dict[str, Any]) -> None:
        self.registry.finish_run(self._start_run(trial, {key: trial[key] for key in METRICS}), "FINISHED")

    def _start_run(self, trial: dict[str, Any], metrics: dict[str, float]) -> str:
        now = int(time.time() * 1000)
        return self.registry.expert_run(
            self.library,
            self.run,
            self.task,
            trial["spec_hash"],
            {key: trial[key] for key in PARAMS},
            search=True,
            metrics=[(key, value, 0, now) for key, value in metrics.items()],
        )
