"""What dead workers, and locks that were lost, have left: set right by whoever asks next.

Everything here happens under the study's lock, and may itself be cut off anywhere.
"""

import contextlib
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from qa_hpo.search.failures import Cause, awaiting_retry
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import (
    BASELINE,
    EPOCHS,
    KEPT,
    REPEAT_OF,
    WORKER,
    LostTrialError,
    fail,
    lineage_number,
    trial_id,
)

__all__ = ["CLAIM", "HANDED_OUT", "fail_trial", "only", "put_back", "running", "set_right"]

CLAIM = "qa_hpo:claim"
"""System attribute: who has taken the trial, each time another mark."""
HANDED_OUT = "qa_hpo:handed_out"
"""System attribute: the same mark, once the trial has been handed out completely."""
# What a retry has of the trial before it.
_INHERITED_USER_ATTRS = (BASELINE, EPOCHS, REPEAT_OF)
_INHERITED_SYSTEM_ATTRS = (KEPT, "fixed_params")


def running(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return those of ``trials`` that run."""
    return [trial for trial in trials if trial.state is TrialState.RUNNING]


def set_right(joined: JoinedStudy, mark: str) -> list[FrozenTrial]:
    """Set right what dead workers and lost locks have left, and return the study's trials."""
    trials = joined.optuna_study.get_trials(deepcopy=False)
    if _take_back(joined, trials, mark):
        trials = joined.optuna_study.get_trials(deepcopy=False)
    if _fail_dead(joined, trials):
        trials = joined.optuna_study.get_trials(deepcopy=False)
    if _queue_retries(joined, trials):
        trials = joined.optuna_study.get_trials(deepcopy=False)
    return trials


def _take_back(joined: JoinedStudy, trials: list[FrozenTrial], mark: str) -> bool:
    """Queue the trials that nobody was handed, and return whether there are any.

    Trials are handed out under the lock, which we hold: whoever was about to hand one out is dead,
    or has lost the lock and begins again, perhaps with the trial that has our own mark.
    """
    nobodys = [
        trial for trial in running(trials) if trial.system_attrs.get(HANDED_OUT) in {None, mark}
    ]
    for trial in nobodys:
        put_back(joined, trial)
    return bool(nobodys)


def put_back(joined: JoinedStudy, trial: FrozenTrial) -> None:
    """Put a trial that runs into the queue, with what it has reached.

    Raises:
        UpdateFinishedTrialError: It is finished.
        NotOursError: It is not as it was seen.
    """
    joined.storage.rdb.write_trial(
        trial_id(trial),
        system_attrs={CLAIM: None, HANDED_OUT: None},
        state=TrialState.WAITING,
        expected=(TrialState.RUNNING, {CLAIM: trial.system_attrs.get(CLAIM)}),
    )


def _fail_dead(joined: JoinedStudy, trials: list[FrozenTrial]) -> bool:
    """Fail the trials whose workers have given no sign of life for too long."""
    rdb = joined.storage.rdb
    if not running(trials):
        return False
    dead = set(rdb.dead_trials(joined.key))
    for trial in running(trials):
        if trial_id(trial) in dead:
            worker, grace = trial.user_attrs.get(WORKER, ""), rdb.grace_period
            fail_trial(joined, trial, f"its worker {worker} gave no sign of life for {grace} s")
    return bool(dead)


def fail_trial(joined: JoinedStudy, trial: FrozenTrial, error: str) -> None:
    """Fail a trial whose worker is dead, unless it has finished."""
    with contextlib.suppress(LostTrialError):  # it has finished after all
        fail(joined, trial, Cause.WORKER_DIED, error)


def _queue_retries(joined: JoinedStudy, trials: list[FrozenTrial]) -> bool:
    """Queue failed trials that are tried again, and return whether there are any."""
    retried = awaiting_retry(trials)
    for trial in retried:
        lineage = lineage_number(trial)
        history = [*trial.system_attrs.get("retry_history", []), trial.number]
        joined.storage.rdb.create_new_trial(
            joined.key,
            create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=only(trial.user_attrs, _INHERITED_USER_ATTRS),
                system_attrs={
                    **only(trial.system_attrs, _INHERITED_SYSTEM_ATTRS),
                    # As Optuna's own retries have them.
                    "failed_trial": lineage,
                    "retry_history": history,
                },
                intermediate_values=trial.intermediate_values,
            ),
        )
    return bool(retried)


def only(attributes: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return those of ``attributes`` that have one of these names."""
    return {name: attributes[name] for name in names if name in attributes}
