"""What a study may spend, shared exactly by all its workers.

Exactly, because ``next_step`` is asked under the study's lock, and what running trials will
spend is counted before they have spent it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

import optuna
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import Budget, StudyEvaluation
from qa_hpo.search.failures import awaiting_retry
from qa_hpo.search.finalists import plan
from qa_hpo.search.trials import EPOCHS_RESERVED, epoch_records, lineage_number

__all__ = [
    "BEGUN",
    "LEAST_FAILURES",
    "BudgetStep",
    "NextStep",
    "Spent",
    "next_step",
    "spent",
    "time_is_up",
]

BEGUN = "begun"
"""User attribute of a study: when its first trial was handed out, as ISO 8601 with a zone."""

LEAST_FAILURES = 3
"""A study ends when this many trials have failed, and no fewer than have finished."""


class BudgetStep(Enum):
    """What a worker does next."""

    ASK = "ask"
    """Take a trial."""
    WAIT = "wait"
    """Ask again later: running trials may leave something over, or die and need a retry."""
    SPENT = "spent"
    """End: there is nothing left to do."""


@dataclass(frozen=True)
class Spent:
    """What a study has spent.

    Attributes:
        trials: Finished trials, complete and pruned.
        epochs: Epochs on record, those of failed trials included. What a retry takes over from
            the trial before it, or does again, counts once.
        reserved: Epochs that running trials may still add.
        hours: Wall hours since the first trial began.
        running: Trials that are running.
        waiting: Trials in the queue: baselines, trials that were handed back, and failed ones
            that are tried again.
        failed: Trials that failed and are not tried again.
        begun: Of the waiting ones, those that have epochs on record.
    """

    trials: int
    epochs: int
    reserved: int
    hours: float
    running: int
    waiting: int
    failed: int
    begun: int = 0


@dataclass(frozen=True)
class NextStep:
    """What a worker does next, and why.

    Attributes:
        step: ASK, WAIT or SPENT.
        spent: What the study has spent.
        epochs_left: Epochs that are neither on record nor reserved; None without such a budget.
        cause: Why the study ends or waits, in one line; empty for ASK.
        failing: Whether the study ends because its trials fail.
        repeat: The number of the trial whose configuration is to be run with another seed.
    """

    step: BudgetStep
    spent: Spent
    epochs_left: int | None = None
    cause: str = ""
    failing: bool = False
    repeat: int | None = None


def spent(
    study: optuna.Study,
    *,
    now: datetime | None = None,
    trials: Sequence[FrozenTrial] | None = None,
) -> Spent:
    """Return what ``study`` has spent.

    Args:
        study: The study.
        now: The time, by this host's clock; without a zone, it is the local one.
        trials: The study's trials, if they are at hand.
    """
    if trials is None:
        trials = study.get_trials(deepcopy=False)
    count = {state: sum(trial.state is state for trial in trials) for state in TrialState}
    latest = {lineage_number(trial): trial for trial in trials}  # by number: a retry comes later
    epochs = {number: len(epoch_records(trial)) for number, trial in latest.items()}
    retried = awaiting_retry(trials)
    queued = [trial for trial in trials if trial.state is TrialState.WAITING]
    again = len(retried)
    failed = sum(trial.state is TrialState.FAIL for trial in latest.values())
    return Spent(
        trials=count[TrialState.COMPLETE] + count[TrialState.PRUNED],
        epochs=sum(epochs.values()),
        reserved=sum(
            max(0, trial.user_attrs.get(EPOCHS_RESERVED, 0) - epochs[number])
            for number, trial in latest.items()
            if trial.state is TrialState.RUNNING
        ),
        hours=_hours(study, trials, now),
        running=count[TrialState.RUNNING],
        waiting=count[TrialState.WAITING] + again,
        failed=failed - again,
        begun=sum(bool(epoch_records(trial)) for trial in [*queued, *retried]),
    )


def next_step(
    study: optuna.Study,
    budget: Budget,
    *,
    evaluation: StudyEvaluation | None = None,
    forgiven: int = 0,
    now: datetime | None = None,
    trials: Sequence[FrozenTrial] | None = None,
) -> NextStep:
    """Return whether a worker takes a trial, waits or ends. Ask under the study's lock.

    Trials: as many finish as the budget says. Epochs: as many are trained; a trial may get
    fewer than it wants, and ends after them. Hours: nothing is begun after them, and running
    trials end after their epoch. What was interrupted is finished with what it has, when there is
    no more for it. Failures: a study ends when at least three trials, and no
    fewer than have finished, failed for good.

    Args:
        study: The study.
        budget: What it may spend.
        evaluation: How many finalists there are, with how many seeds each; none if left out.
        forgiven: Failed trials that do not count, because the study was continued after them.
        now: The time, by this host's clock.
        trials: The study's trials, if they are at hand.
    """
    if trials is None:
        trials = study.get_trials(deepcopy=False)
    so_far = spent(study, now=now, trials=trials)
    left = None
    if budget.epochs is not None:
        left = max(0, budget.epochs - so_far.epochs - so_far.reserved)
    failed = so_far.failed - forgiven
    if failed >= max(LEAST_FAILURES, so_far.trials):
        cause = f"{failed} trials failed and {so_far.trials} finished"
        return NextStep(BudgetStep.SPENT, so_far, left, cause, failing=True)
    if cause := _why_spent(so_far, budget, left):
        room = budget.trials is None or so_far.trials < budget.trials
        if so_far.begun and room:
            # Somebody finishes what was interrupted, with what it has.
            return NextStep(BudgetStep.ASK, so_far, 0)
        return NextStep(BudgetStep.SPENT, so_far, left, cause)
    if cause := _why_wait(so_far, budget, left):
        return NextStep(BudgetStep.WAIT, so_far, left, cause)
    asking = NextStep(BudgetStep.ASK, so_far, left)
    if evaluation is None or evaluation.seeds == 1 or budget.trials is None or so_far.waiting:
        return asking
    return _with_finals(asking, trials, budget.trials, evaluation)


def _with_finals(
    asking: NextStep, trials: Sequence[FrozenTrial], budget: int, evaluation: StudyEvaluation
) -> NextStep:
    """Return whether the next trial is a finalist's; see :func:`finalists.plan`."""
    seeds, finalists = evaluation.seeds, evaluation.finalists
    planned = plan(trials, budget, seeds=seeds, finalists=finalists)
    if planned.search or planned.repeat is not None:
        return replace(asking, repeat=planned.repeat)
    if planned.wait:
        return replace(
            asking, step=BudgetStep.WAIT, cause="trials are running that decide the finals"
        )
    return replace(
        asking, step=BudgetStep.SPENT, cause="the finalists have run with all their seeds"
    )


def _why_spent(so_far: Spent, budget: Budget, left: int | None) -> str:
    if budget.hours is not None and so_far.hours >= budget.hours:
        return "" if so_far.running else f"{budget.hours:g} hours have passed"
    if budget.trials is not None and so_far.trials >= budget.trials:
        return f"{so_far.trials} of {budget.trials} trials have finished"
    if left == 0 and not so_far.running:
        return f"{so_far.epochs} of {budget.epochs} epochs are trained"
    return ""


def _why_wait(so_far: Spent, budget: Budget, left: int | None) -> str:
    if budget.hours is not None and so_far.hours >= budget.hours:
        return f"{budget.hours:g} hours have passed, and {so_far.running} trials are running"
    if budget.trials is not None and so_far.trials + so_far.running >= budget.trials:
        return f"the last {so_far.running} trials are running"
    return "running trials have reserved the last epochs" if left == 0 else ""


def time_is_up(study: optuna.Study, budget: Budget, *, now: datetime | None = None) -> bool:
    """Return whether running trials end after their epoch, because the hours have passed."""
    if budget.hours is None:
        return False
    return _hours(study, study.get_trials(deepcopy=False), now) >= budget.hours


def _hours(study: optuna.Study, trials: Sequence[FrozenTrial], now: datetime | None) -> float:
    now = (now or datetime.now()).astimezone()
    stored = study.user_attrs.get(BEGUN)
    if stored is not None:  # with a zone, for workers in others
        begun = [datetime.fromisoformat(stored)]
    else:
        begun = [trial.datetime_start.astimezone() for trial in trials if trial.datetime_start]
    return max(0.0, (now - min(begun)).total_seconds() / 3600) if begun else 0.0
