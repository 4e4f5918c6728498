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
from qa_hpo.search.promotion import Ladder, Rules
from qa_hpo.search.trials import EPOCHS_RESERVED, epoch_records, lineage_number

__all__ = [
    "BEGUN",
    "LEAST_FAILURES",
    "BudgetStep",
    "NextStep",
    "Spent",
    "epochs_left",
    "most_trials",
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
        paused: Trials that wait at a rung for their promotion; not among the waiting ones.
    """

    trials: int
    epochs: int
    reserved: int
    hours: float
    running: int
    waiting: int
    failed: int
    begun: int = 0
    paused: int = 0


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
        resume: The number of the trial at a rung that goes on, or ends there.
        stop_reason: Why it ends there; None if it goes on.
    """

    step: BudgetStep
    spent: Spent
    epochs_left: int | None = None
    cause: str = ""
    failing: bool = False
    repeat: int | None = None
    resume: int | None = None
    stop_reason: str | None = None


def spent(
    study: optuna.Study,
    *,
    now: datetime | None = None,
    trials: Sequence[FrozenTrial] | None = None,
    ladder: Ladder | None = None,
) -> Spent:
    """Return what ``study`` has spent.

    Args:
        study: The study.
        now: The time, by this host's clock; without a zone, it is the local one.
        trials: The study's trials, if they are at hand.
        ladder: Where they stand, if the study promotes them.
    """
    if trials is None:
        trials = study.get_trials(deepcopy=False)
    count = {state: sum(trial.state is state for trial in trials) for state in TrialState}
    latest = {lineage_number(trial): trial for trial in trials}  # by number: a retry comes later
    epochs = {number: len(epoch_records(trial)) for number, trial in latest.items()}
    retried = awaiting_retry(trials)
    paused = {trial.number for trial in ladder.paused} if ladder else set()
    queued = [
        trial
        for trial in trials
        if trial.state is TrialState.WAITING and trial.number not in paused
    ]
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
        waiting=len(queued) + again,
        failed=failed - again,
        begun=sum(bool(epoch_records(trial)) for trial in [*queued, *retried]),
        paused=len(paused),
    )


def next_step(
    study: optuna.Study,
    budget: Budget,
    *,
    evaluation: StudyEvaluation | None = None,
    forgiven: int = 0,
    now: datetime | None = None,
    trials: Sequence[FrozenTrial] | None = None,
    ladder: Ladder | None = None,
) -> NextStep:
    """Return whether a worker takes a trial, waits or ends. Ask under the study's lock.

    Trials: as many finish as the budget says. Epochs: as many are trained; a trial may get
    fewer than it wants, and ends after them. Hours: nothing is begun after them, and running
    trials end after their epoch. What was interrupted is finished with what it has, when there is
    no more for it. Failures: a study ends when at least three trials, and no
    fewer than have finished, failed for good.

    Where trials are promoted, one that may go on comes before another configuration, and all that
    wait at their rungs in the end finish with what they have.

    Args:
        study: The study.
        budget: What it may spend.
        evaluation: How many finalists there are, with how many seeds each; none if left out.
        forgiven: Failed trials that do not count, because the study was continued after them.
        now: The time, by this host's clock.
        trials: The study's trials, if they are at hand.
        ladder: Where they stand, if the study promotes them.
    """
    if trials is None:
        trials = study.get_trials(deepcopy=False)
    so_far = spent(study, now=now, trials=trials, ladder=ladder)
    left = epochs_left(so_far, budget)
    failed = so_far.failed - forgiven
    got_somewhere = so_far.trials + so_far.paused
    if failed >= max(LEAST_FAILURES, got_somewhere):
        cause = f"{failed} trials failed and {got_somewhere} finished"
        return NextStep(BudgetStep.SPENT, so_far, left, cause, failing=True)
    if cause := _why_spent(so_far, budget, left):
        room = budget.trials is None or so_far.trials < budget.trials
        finishing = _finishing(so_far, ladder) if room else None
        return finishing or NextStep(BudgetStep.SPENT, so_far, left, cause)
    out_of_time = budget.hours is not None and so_far.hours >= budget.hours
    climbing = ladder if so_far.paused and not out_of_time else None
    if climbing is not None:
        most = most_trials(so_far, budget, trials, climbing.rules)
        resumed = _resumed(NextStep(BudgetStep.ASK, so_far, left), climbing, most)
        if resumed is not None and not so_far.begun:
            return resumed
    if cause := _why_wait(so_far, budget, left):
        step = NextStep(BudgetStep.WAIT, so_far, left, cause)
    else:
        step = NextStep(BudgetStep.ASK, so_far, left)
        finals = evaluation is not None and evaluation.seeds > 1 and not so_far.waiting
        if finals and evaluation is not None and budget.trials is not None:
            step = _with_finals(step, trials, budget.trials, evaluation)
    if climbing is not None and step.step is not BudgetStep.ASK and not so_far.running:
        return _ended(NextStep(BudgetStep.ASK, so_far, left), climbing)
    return step


def epochs_left(so_far: Spent, budget: Budget) -> int | None:
    """Return the epochs that are neither on record nor reserved; None without such a budget."""
    if budget.epochs is None:
        return None
    return max(0, budget.epochs - so_far.epochs - so_far.reserved)


def most_trials(
    so_far: Spent, budget: Budget, trials: Sequence[FrozenTrial], rules: Rules
) -> int | None:
    """Return how many trials a study can come to have, or None if nobody knows.

    Args:
        so_far: What it has spent.
        budget: What it may spend.
        trials: Its trials.
        rules: How it promotes them.
    """
    limits = []
    if budget.trials is not None:
        limits.append(budget.trials)
    left = epochs_left(so_far, budget)
    if left is not None:
        there = len({lineage_number(trial) for trial in trials})
        least = rules.rungs[0] if rules.rungs else rules.horizon
        # What is reserved may be left over, by trials that end early.
        limits.append(there + (left + so_far.reserved) // least)
    return min(limits, default=None)


def _finishing(so_far: Spent, ladder: Ladder | None) -> NextStep | None:
    """Return how somebody finishes with what it has a trial that was interrupted, or waits."""
    if so_far.begun:
        return NextStep(BudgetStep.ASK, so_far, 0)
    if so_far.paused and ladder is not None:
        number = ladder.paused[-1].number
        return NextStep(BudgetStep.ASK, so_far, 0, resume=number, stop_reason="budget")
    return None


def _resumed(asking: NextStep, ladder: Ladder, most: int | None) -> NextStep | None:
    """Return which trial at a rung is taken next, or None."""
    if (ended := ladder.hopeless(most)) is not None:
        return replace(asking, resume=ended.number, stop_reason="hopeless", epochs_left=0)
    promoted = None if asking.epochs_left == 0 else ladder.promoted()
    return None if promoted is None else replace(asking, resume=promoted.number)


def _ended(asking: NextStep, ladder: Ladder) -> NextStep:
    """Return which trial at a rung is taken when no other comes that they could be compared with.

    The best at a rung goes on, even where too few have come as far for anyone to be promoted: else
    a small study would end with no trial trained to the end.
    """
    leader = next((trial for trial in ladder.paused if ladder.leads(trial)), None)
    if leader is not None:
        return replace(asking, resume=leader.number)
    last = ladder.paused[-1].number
    return replace(asking, resume=last, stop_reason="hopeless", epochs_left=0)


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
    if budget.trials is not None:
        begun = so_far.trials + so_far.running + so_far.paused
        if begun >= budget.trials:
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
