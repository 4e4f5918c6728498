"""How workers get trials: one at a time, each to one worker, none lost and none too many.

Everything here happens under the study's lock, and may be cut off anywhere: by a worker's death, or
by an outage, in which another worker takes the lock. What is left then, the next one sets right:

- a trial that runs and was not handed out completely goes back into the queue;
- a trial whose worker is dead fails, with a cause;
- a failed trial whose cause may pass is queued again, with what it has reached.
"""

import contextlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from qa_hpo.config import parse_study
from qa_hpo.parameters import Parameters
from qa_hpo.search.budget import BEGUN, BudgetStep, NextStep, next_step
from qa_hpo.search.failures import Cause, awaiting_retry
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.proposing import propose
from qa_hpo.search.sampling import derived_seed
from qa_hpo.search.study import FORGIVEN, STUDY_FILE, told_if_gone
from qa_hpo.search.trials import (
    BASELINE,
    EPOCHS,
    EPOCHS_RESERVED,
    KEPT,
    REPEAT_OF,
    WORKER,
    LostTrialError,
    epoch_records,
    fail,
    lineage_number,
    trial_id,
)

__all__ = ["Asked", "ask", "hand_back", "is_ours", "release_trials", "run_seed"]

# System attribute: who has taken the trial, each time another mark.
_CLAIM = "qa_hpo:claim"
# System attribute: the same mark, once the trial has been handed out completely.
_HANDED_OUT = "qa_hpo:handed_out"
# What a retry has of the trial before it.
_INHERITED_USER_ATTRS = (BASELINE, EPOCHS, REPEAT_OF)
_INHERITED_SYSTEM_ATTRS = (KEPT, "fixed_params")


@dataclass(frozen=True)
class Asked:
    """A trial to run.

    Attributes:
        trial: The trial as it was handed out. Its first heartbeat is recorded; the next are the
            worker's.
        parameters: What to run.
        lineage: The number of the trial that this one is a retry of, or its own.
        seed: The run's seed.
        epochs_reserved: Epochs after which the run ends, its inherited ones included: fewer
            than ``parameters.epochs`` where the budget has no more.
        step: Always ASK: so that ``ask``'s answers can be told apart by their ``step``.
    """

    trial: FrozenTrial
    parameters: Parameters
    lineage: int
    seed: int
    epochs_reserved: int
    step: BudgetStep = BudgetStep.ASK


def run_seed(study_seed: int, number: int) -> int:
    """Return the seed of a run, 0 … 2**32 - 1, from its lineage number."""
    return derived_seed("run", study_seed, number)


def ask(joined: JoinedStudy, *, worker: str | None = None) -> Asked | NextStep:
    """Take a trial, or learn why there is none.

    Trials of dead workers are failed and queued again on the way. What is queued, baselines and
    retries, comes before what the sampler proposes.

    Args:
        joined: The study.
        worker: Who asks; stored with the trial.

    Returns:
        The trial, or a ``NextStep`` whose step is WAIT or SPENT.

    Raises:
        StorageError: The study was deleted or renamed.
        OutageError: The database has not answered for too long.
    """
    name = joined.file.study.name
    mark = uuid.uuid4().hex

    def asking() -> Asked | NextStep:
        with told_if_gone(joined):
            attributes = joined.optuna_study.user_attrs
        trials = _set_right(joined, mark)
        # As it is now: another run may have changed it.
        stored = parse_study(attributes[STUDY_FILE], f"study {name!r}")
        step = next_step(
            joined.optuna_study,
            stored.budget,
            evaluation=stored.evaluation,
            forgiven=attributes.get(FORGIVEN, 0),
            trials=trials,
        )
        if step.step is not BudgetStep.ASK:
            return step
        if BEGUN not in attributes:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            joined.optuna_study.set_user_attr(BEGUN, now)
        return _hand_out(joined, trials, step, worker, mark)

    return joined.storage.locked(name, asking)


def hand_back(joined: JoinedStudy, trial: FrozenTrial) -> bool:
    """Put a trial whose worker was told to end back into the queue, with what it has reached.

    It may be handed back as often as it takes: being told to end is no sign that the trial ends
    its workers.

    Returns:
        False if the trial was not this worker's any more.
    """

    def handing_back() -> bool:
        # Not by its state alone: it may run again, as another worker's.
        if not is_ours(joined, trial):
            return False
        with contextlib.suppress(UpdateFinishedTrialError):
            _queue(joined, trial)
            return True
        return False

    return joined.storage.locked(joined.file.study.name, handing_back)


def is_ours(joined: JoinedStudy, trial: FrozenTrial) -> bool:
    """Return whether a trial that was handed out is still that worker's, and not finished."""
    try:
        now = joined.storage.rdb.get_trial(trial_id(trial))
    except KeyError:
        return False
    claim = trial.system_attrs[_CLAIM]
    return now.state is TrialState.RUNNING and now.system_attrs.get(_CLAIM) == claim


def release_trials(joined: JoinedStudy, worker: str) -> list[int]:
    """Fail the trials of a worker that is known to be dead, so that others go on at once.

    Args:
        joined: The study.
        worker: What the dead worker was called; no living one may be called the same.

    Returns:
        The numbers of its trials.
    """

    def releasing() -> list[int]:
        released = []
        with told_if_gone(joined):
            trials = joined.optuna_study.get_trials(deepcopy=False)
        for trial in _running(trials):
            if trial.user_attrs.get(WORKER) == worker:
                _fail(joined, trial, f"its worker {worker} ended")
                released.append(trial.number)
        return released

    return joined.storage.locked(joined.file.study.name, releasing)


def _running(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state is TrialState.RUNNING]


def _set_right(joined: JoinedStudy, mark: str) -> list[FrozenTrial]:
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
        trial for trial in _running(trials) if trial.system_attrs.get(_HANDED_OUT) in {None, mark}
    ]
    for trial in nobodys:
        _queue(joined, trial)
    return bool(nobodys)


def _queue(joined: JoinedStudy, trial: FrozenTrial) -> None:
    joined.storage.rdb.write_trial(
        trial_id(trial),
        system_attrs={_CLAIM: None, _HANDED_OUT: None},
        state=TrialState.WAITING,
        expected=(TrialState.RUNNING, {_CLAIM: trial.system_attrs.get(_CLAIM)}),
    )


def _fail_dead(joined: JoinedStudy, trials: list[FrozenTrial]) -> bool:
    """Fail the trials whose workers have given no sign of life for too long."""
    rdb = joined.storage.rdb
    if not _running(trials):
        return False
    dead = set(rdb.dead_trials(joined.key))
    for trial in _running(trials):
        if trial_id(trial) in dead:
            worker, grace = trial.user_attrs.get(WORKER, ""), rdb.grace_period
            _fail(joined, trial, f"its worker {worker} gave no sign of life for {grace} s")
    return bool(dead)


def _fail(joined: JoinedStudy, trial: FrozenTrial, error: str) -> None:
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
                user_attrs=_only(trial.user_attrs, _INHERITED_USER_ATTRS),
                system_attrs={
                    **_only(trial.system_attrs, _INHERITED_SYSTEM_ATTRS),
                    # As Optuna's own retries have them.
                    "failed_trial": lineage,
                    "retry_history": history,
                },
                intermediate_values=trial.intermediate_values,
            ),
        )
    return bool(retried)


def _only(attributes: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: attributes[name] for name in names if name in attributes}


def _hand_out(
    joined: JoinedStudy,
    trials: list[FrozenTrial],
    step: NextStep,
    worker: str | None,
    mark: str,
) -> Asked:
    trial = _popped(joined, trials, mark)
    if trial is None:
        new = _new_trial(trials, step.repeat, mark)
        new.state, new.datetime_start = TrialState.RUNNING, datetime.now()
        trial = joined.storage.rdb.create_trial(joined.key, new)
    key = trial_id(trial)
    joined.storage.rdb.record_heartbeat(key)  # a trial without one is never found dead
    chosen: dict[str, Any] = {}
    if trial.params or "fixed_params" in trial.system_attrs:
        # What a queued trial lacks (a point that somebody queued by hand, say) is sampled here.
        parameters = joined.space.suggest(optuna.Trial(joined.optuna_study, key))
        trial = joined.storage.rdb.get_trial(key)
    else:
        chosen = propose(joined, trial, trials)
        parameters = joined.space.parameters_of(chosen)
    reserved = parameters.epochs
    if step.epochs_left is not None:
        reserved = min(reserved, len(epoch_records(trial)) + step.epochs_left)
    params = {name: (value, joined.space.distributions[name]) for name, value in chosen.items()}
    user_attrs = {EPOCHS_RESERVED: reserved, **({} if worker is None else {WORKER: worker})}
    system_attrs = {_HANDED_OUT: mark}
    joined.storage.rdb.write_trial(
        key,
        params=params,
        user_attrs=user_attrs,
        system_attrs=system_attrs,
        # Should the lock be lost meanwhile, another worker may have taken the trial back.
        expected=(TrialState.RUNNING, {_CLAIM: mark}),
    )
    # As the storage has it now, which need not be asked.
    trial.params |= {
        name: kind.to_external_repr(kind.to_internal_repr(value))
        for name, (value, kind) in params.items()
    }
    trial.distributions |= {name: kind for name, (_, kind) in params.items()}
    trial.user_attrs |= user_attrs
    trial.system_attrs |= system_attrs
    lineage = lineage_number(trial)
    return Asked(trial, parameters, lineage, run_seed(joined.file.study.seed, lineage), reserved)


def _new_trial(trials: list[FrozenTrial], repeat: int | None, mark: str) -> FrozenTrial:
    """Return a trial without parameters, or with those of the trial that it repeats."""
    claim = {_CLAIM: mark}
    if repeat is None:
        return create_trial(state=TrialState.WAITING, system_attrs=claim)
    (original,) = (trial for trial in trials if trial.number == repeat)
    return create_trial(
        state=TrialState.WAITING,
        params=original.params,
        distributions=original.distributions,
        user_attrs={REPEAT_OF: lineage_number(original)},
        system_attrs={**claim, **_only(original.system_attrs, ("fixed_params",))},
    )


def _popped(joined: JoinedStudy, trials: list[FrozenTrial], mark: str) -> FrozenTrial | None:
    """Return the first trial in the queue, which now runs.

    Those that have begun come first: the budget may be spent before the others' turn.
    """
    waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
    if not waiting:
        return None
    first = min(waiting, key=lambda trial: (not epoch_records(trial), trial.number))
    joined.storage.rdb.write_trial(
        trial_id(first),
        system_attrs={_CLAIM: mark},
        state=TrialState.RUNNING,
        expected=(TrialState.WAITING, {}),
    )
    return joined.storage.rdb.get_trial(trial_id(first))
