"""End of a ``ttmoe run``: the error for failed experts, and the report in the run's artifacts."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from orchestrator.plan.planning import Plan
from orchestrator.plan.quantities import format_names
from orchestrator.recording.registrar import Stage1Result
from orchestrator.registry import Registry
from orchestrator.registry.artifacts import INCIDENTS, REPORT
from orchestrator.report.collect import collect_report
from orchestrator.report.incidents import incidents_to_json
from ttmoe.errors import WorkFailedError

_MOST_NAMED = 5  # failed experts that the error names


def experts_failed_error(
    plan: Plan, stage_result: Stage1Result, consequence: str, kind: type[WorkFailedError] = WorkFailedError
) -> WorkFailedError:
    """Return the error that names the failed experts, their logs and the experts that are kept.

    Args:
        plan: The plan of the run.
        stage_result: The result of stage 1.
        consequence: What follows for the router. Not used if the first experts failed with the same error.
        kind: Class of the error, which decides the exit code.
    """
    failed = list(stage_result.failed.items())
    causes = "; ".join(f"{task}: {failure}" for task, failure in failed[:_MOST_NAMED])
    more = f"; and {len(failed) - _MOST_NAMED} more" if len(failed) > _MOST_NAMED else ""
    paths = {task: stage_result.logs.get(task) or Path(plan.experts[task].job.folder) for task, _ in failed}
    logs = ", ".join(dict.fromkeys(str(paths[task]) for task, _ in failed[:_MOST_NAMED]))
    kept = [task for task in plan.experts if task not in stage_result.failed]
    if stage_result.stopped:
        consequence = f"the first {len(failed)} failed with the same error, so the others were not tried"
        kept = list(stage_result.versions)
    return kind(
        f"{len(failed)} of {len(plan.experts)} experts failed ({causes}{more}); {consequence}",
        where=f"library {plan.folders.library}",
        fix=f"see {logs}; repeat the command to train the missing experts (kept: {format_names(kept) or 'none'})",
    )


def log_report(
    plan: Plan, stage_result: Stage1Result, registry: Registry, run_id: str, status: str, console: Console
) -> str | None:
    """Write the report and the incidents to the run's artifacts.

    An error is printed and not raised, because it must not replace the error that ended the run.

    Args:
        plan: The plan of the run.
        stage_result: The result of stage 1.
        registry: An open registry without retries.
        run_id: The run of ``ttmoe run``.
        status: The status that the run will have: FINISHED or FAILED.
        console: Prints the error.

    Returns:
        Path of the report, or its URI where the artifacts are on a server; None if it was not written.
    """
    try:
        from orchestrator.report.page import write_report  # matplotlib takes seconds to import

        if stage_result.incidents:
            registry.log_text(run_id, incidents_to_json(stage_result.incidents), INCIDENTS)
        router_hash = plan.only(plan.experts.keys() - stage_result.failed.keys()).router_hash
        report = collect_report(
            plan,
            registry,
            run_id,
            stage_result.incidents,
            stage_result.usage,
            router_hash=router_hash,
            status=status,
        )
        with TemporaryDirectory() as scratch:
            path = Path(scratch, REPORT)
            write_report(path, report)
            registry.log_file(run_id, path)
        return registry.artifact_address(run_id, REPORT)
    except Exception as error:
        console.print(f"the run's report was not written: {error}", soft_wrap=True, highlight=False, markup=False)
        return None
