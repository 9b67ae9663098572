"""Train one or several experts together on a frozen base."""

from __future__ import annotations

from collections.abc import Sequence

from ttmoe.bank import Bank
from workers.failure import Failure
from workers.progress import ProgressCallback
from workers.stopping import deferred_sigterm, raise_if_stopped
from workers.training.engines.engine import SINGLE_PROCESS, Engine
from workers.training.gradients import activation_checkpointing
from workers.training.memory_limit import MemoryLimit
from workers.training.session import TrainingSession
from workers.training.state import ExpertTraining, FitResult


class TrainingFailedError(RuntimeError):
    """The training of one expert failed; ``failure`` describes the error."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


def fit_experts(
    bank: Bank,
    trainings: Sequence[ExpertTraining],
    *,
    pad_id: int,
    report: ProgressCallback,
    memory_limit: MemoryLimit | None = None,
    engine: Engine = SINGLE_PROCESS,
) -> dict[str, FitResult | Failure]:
    """Train experts together; each ends with its best weights on its validation split.

    Every expert has its own optimizer, data, number of steps and early stopping. Experts with the same trunk share
    forward and backward passes. If an expert fails by its own fault (its data, or a loss that is not finite), the
    others continue. Any other error, such as lack of memory, is raised; so is StoppedError, after a checkpoint. With
    several processes, only a loss that is not finite is the fault of one expert: all processes see it.

    Args:
        bank: Bank that holds the experts.
        trainings: What to train; not empty.
        pad_id: Token id used for padding.
        report: Receives the progress of each expert, with its name as key.
        memory_limit: Called after each step to return freed memory.
        engine: How this process trains, alone or with others.

    Returns:
        The result or the failure of each expert, by name.
    """
    session = TrainingSession(bank, pad_id, report, engine)
    bank.eval()
    session.start(trainings)
    with activation_checkpointing(bank.model, any(training.settings.recomputes for training in trainings)):
        bank.train()
        try:
            with deferred_sigterm():
                while session.active:
                    raise_if_stopped(session.save, engine.any)
                    session.step()
                    if memory_limit:
                        memory_limit.after_step()
        finally:
            session.end()
            bank.eval()
    return {training.name: session.outcomes[training.name] for training in trainings}


def fit_expert(bank: Bank, training: ExpertTraining, *, pad_id: int, report: ProgressCallback) -> FitResult:
    """Train one expert as ``fit_experts`` does.

    Raises:
        TrainingFailedError: If the training fails.
    """
    outcome = fit_experts(bank, [training], pad_id=pad_id, report=report)[training.name]
    if isinstance(outcome, Failure):
        raise TrainingFailedError(outcome)
    return outcome
