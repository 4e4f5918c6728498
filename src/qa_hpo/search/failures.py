"""Why trials fail, and which of them are tried again.

A failed trial carries its cause. What may pass is tried again, by whichever worker asks next, from
the last finished epoch. A configuration that fails wherever it is tried is not tried for ever.
"""

import errno
from collections.abc import Iterable
from enum import StrEnum
from itertools import takewhile

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from qa_hpo.errors import (
    ArtifactError,
    DiskFullError,
    DivergedError,
    InputError,
    OutageError,
    OutOfMemoryError,
    StorageError,
)
from qa_hpo.search.trials import CAUSE, epoch_records, lineage_number

__all__ = ["RETRIES", "Cause", "awaiting_retry", "cause_of", "is_retried", "lineages"]


class Cause(StrEnum):
    """Why a trial failed."""

    OOM = "oom"
    """Not even one window at a time fits into the memory."""
    DIVERGED = "diverged"
    """A start that the trial needs could not be built."""
    DATA = "data"
    """Data, start and lengths do not go together, or one of them is not there."""
    WORKER_DIED = "worker died"
    """Its worker ended, or has given no sign of life for too long."""
    DATABASE = "database"
    """The study's database failed, or was out for too long."""
    ARTIFACTS = "artifacts"
    """The store of checkpoints failed."""
    DISK = "disk"
    """A disk is full."""
    ERROR = "error"
    """Anything unforeseen."""


RETRIES = {
    # Killed from outside, more often than not: a night of preemptions must not lose a trial.
    Cause.WORKER_DIED: 9,
    Cause.DATABASE: 3,
    Cause.ARTIFACTS: 3,
    Cause.DISK: 3,
    Cause.ERROR: 1,
}
"""How often a trial that failed of a cause is tried again without getting any further. Causes that
are left out would come again."""


_CAUSES: tuple[tuple[type[BaseException], Cause], ...] = (
    (OutOfMemoryError, Cause.OOM),
    (MemoryError, Cause.OOM),
    (DivergedError, Cause.DIVERGED),
    (DiskFullError, Cause.DISK),
    (ArtifactError, Cause.ARTIFACTS),
    (OutageError, Cause.DATABASE),
    (StorageError, Cause.DATABASE),
    (StorageInternalError, Cause.DATABASE),
    (SQLAlchemyError, Cause.DATABASE),
    (InputError, Cause.DATA),
)


def cause_of(error: BaseException) -> Cause:
    """Return the cause of which a trial that raised ``error`` failed."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Cause.DISK
    causes = (cause for kind, cause in _CAUSES if isinstance(error, kind))
    return next(causes, Cause.ERROR)


def lineages(trials: Iterable[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """Return each trial with its retries, oldest first, by the number of the first."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        found.setdefault(lineage_number(trial), []).append(trial)
    return {number: sorted(own, key=lambda trial: trial.number) for number, own in found.items()}


def is_retried(attempts: list[FrozenTrial]) -> bool:
    """Return whether the latest of a trial's ``attempts``, oldest first, failed and is tried again.

    It is while its cause may pass, and while not too many attempts in a row failed at the same
    epoch: a trial that gets further each time is worth another worker.
    """
    latest = attempts[-1]
    cause = latest.user_attrs.get(CAUSE)
    if latest.state is not TrialState.FAIL or cause not in RETRIES:
        return False
    reached = len(epoch_records(latest))
    here = takewhile(lambda trial: len(epoch_records(trial)) == reached, reversed(attempts))
    causes = [trial.user_attrs.get(CAUSE) for trial in here]
    of_this = sum(1 for _ in takewhile(lambda other: other == cause, causes))
    return of_this <= RETRIES[cause] and len(causes) <= max(RETRIES.values())


def awaiting_retry(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the failed trials that are to be tried again and are not queued yet."""
    return [own[-1] for own in lineages(trials).values() if is_retried(own)]
