"""How workers get trials: one at a time, each to one worker, none lost and none too many.

Everything here happens under the study's lock, and may be cut off anywhere: by a worker's death, or
by an outage, in which another worker takes the lock. What is left then, the next one sets right:

- a trial that runs and was not handed out completely goes back into the queue;
- a trial whose worker is dead fails, with a cause;
- a failed trial whose cause may pass is queued again, with what it has reached.
"""

import contextlib
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from qa_hpo.config import parse_study
from qa_hpo.parameters import Parameters
from qa_hpo.search.budget import (
    BEGUN,
    BudgetStep,
    NextStep,
    epochs_left,
    most_trials,
    next_step,
    spent,
)
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.promotion import Ladder
from qa_hpo.search.proposing import propose
from qa_hpo.search.recovering import (
    CLAIM,
    HANDED_OUT,
    fail_trial,
    only,
    put_back,
    running,
    set_right,
)
from qa_hpo.search.sampling import derived_seed
from qa_hpo.search.study import FORGIVEN, STUDY_FILE, told_if_gone
from qa_hpo.search.trials import (
    EPOCHS_RESERVED,
    REPEAT_OF,
    WORKER,
    LostTrialError,
    epoch_records,
    lineage_number,
    trial_id,
)

__all__ = ["Asked", "ask", "go_on", "hand_back", "is_ours", "release_trials", "run_seed"]


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
        stop_reason: Why the trial ends with the epochs that it has; None if it goes on.
    """

    trial: FrozenTrial
    parameters: Parameters
    lineage: int
    seed: int
    epochs_reserved: int
    step: BudgetStep = BudgetStep.ASK
    stop_reason: str | None = None


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
        trials = set_right(joined, mark)
        # As it is now: another run may have changed it.
        stored = parse_study(attributes[STUDY_FILE], f"study {name!r}")
        ladder = Ladder.of(joined.file, trials)
        step = next_step(
            joined.optuna_study,
            stored.budget,
            evaluation=stored.evaluation,
            forgiven=attributes.get(FORGIVEN, 0),
            trials=trials,
            ladder=ladder,
        )
        if step.step is not BudgetStep.ASK:
            return step
        if BEGUN not in attributes:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            joined.optuna_study.set_user_attr(BEGUN, now)
        return _hand_out(joined, trials, step, worker, mark, ladder)

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
            put_back(joined, trial)
            return True
        return False

    return joined.storage.locked(joined.file.study.name, handing_back)


def go_on(joined: JoinedStudy, asked: Asked) -> Asked | None:
    """Promote a trial whose worker has trained as many epochs as a rung says, or let it wait.

    Args:
        joined: The study, which promotes trials.
        asked: The trial.

    Returns:
        The trial with the epochs up to the next rung, or, if nothing can promote it any more, with
        the reason why it ends; None if it waits now, for whichever worker is free when it is
        promoted.

    Raises:
        LostTrialError: It was not this worker's any more.
    """

    def going_on() -> Asked | None:
        trials = joined.optuna_study.get_trials(deepcopy=False)
        own = next((trial for trial in trials if trial.number == asked.trial.number), None)
        if own is not None and own.state is TrialState.WAITING:
            return None  # begun again: it was put back, and the lock lost before that was known
        if not is_ours(joined, asked.trial):
            raise LostTrialError(f"trial {asked.trial.number} was taken over by another worker")
        assert own is not None
        ladder = Ladder.of(joined.file, trials)
        assert ladder is not None
        budget = parse_study(joined.optuna_study.user_attrs[STUDY_FILE], "the study").budget
        so_far = spent(joined.optuna_study, trials=trials, ladder=ladder)
        # Begun again, it may have been promoted already: what it has reserved then is its own.
        trained = len(epoch_records(own))
        mine = max(0, own.user_attrs.get(EPOCHS_RESERVED, 0) - trained)
        so_far = replace(so_far, reserved=so_far.reserved - mine)
        left = epochs_left(so_far, budget)
        if left != 0 and ladder.may_go_on(own):
            reserved = ladder.rules.next_stop(own)
            if left is not None:
                reserved = min(reserved, trained + left)
            joined.storage.rdb.write_trial(
                trial_id(own),
                user_attrs={EPOCHS_RESERVED: reserved},
                expected=(TrialState.RUNNING, {CLAIM: asked.trial.system_attrs[CLAIM]}),
            )
            return replace(asked, epochs_reserved=reserved)
        if ladder.is_hopeless(own, most_trials(so_far, budget, trials, ladder.rules)):
            return replace(asked, stop_reason="hopeless")
        put_back(joined, asked.trial)
        return None

    return joined.storage.locked(joined.file.study.name, going_on)


def is_ours(joined: JoinedStudy, trial: FrozenTrial) -> bool:
    """Return whether a trial that was handed out is still that worker's, and not finished."""
    try:
        now = joined.storage.rdb.get_trial(trial_id(trial))
    except KeyError:
        return False
    claim = trial.system_attrs[CLAIM]
    return now.state is TrialState.RUNNING and now.system_attrs.get(CLAIM) == claim


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
        for trial in running(trials):
            if trial.user_attrs.get(WORKER) == worker:
                fail_trial(joined, trial, f"its worker {worker} ended")
                released.append(trial.number)
        return released

    return joined.storage.locked(joined.file.study.name, releasing)


def _hand_out(
    joined: JoinedStudy,
    trials: list[FrozenTrial],
    step: NextStep,
    worker: str | None,
    mark: str,
    ladder: Ladder | None,
) -> Asked:
    trial = _popped(joined, trials, mark, step, ladder)
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
    reserved = parameters.epochs if ladder is None else ladder.rules.next_stop(trial)
    if step.epochs_left is not None:
        reserved = min(reserved, len(epoch_records(trial)) + step.epochs_left)
    params = {name: (value, joined.space.distributions[name]) for name, value in chosen.items()}
    user_attrs = {EPOCHS_RESERVED: reserved, **({} if worker is None else {WORKER: worker})}
    system_attrs = {HANDED_OUT: mark}
    joined.storage.rdb.write_trial(
        key,
        params=params,
        user_attrs=user_attrs,
        system_attrs=system_attrs,
        # Should the lock be lost meanwhile, another worker may have taken the trial back.
        expected=(TrialState.RUNNING, {CLAIM: mark}),
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
    seed = run_seed(joined.file.study.seed, lineage)
    return Asked(trial, parameters, lineage, seed, reserved, stop_reason=step.stop_reason)


def _new_trial(trials: list[FrozenTrial], repeat: int | None, mark: str) -> FrozenTrial:
    """Return a trial without parameters, or with those of the trial that it repeats."""
    claim = {CLAIM: mark}
    if repeat is None:
        return create_trial(state=TrialState.WAITING, system_attrs=claim)
    (original,) = (trial for trial in trials if trial.number == repeat)
    return create_trial(
        state=TrialState.WAITING,
        params=original.params,
        distributions=original.distributions,
        user_attrs={REPEAT_OF: lineage_number(original)},
        system_attrs={**claim, **only(original.system_attrs, ("fixed_params",))},
    )


def _popped(
    joined: JoinedStudy,
    trials: list[FrozenTrial],
    mark: str,
    step: NextStep,
    ladder: Ladder | None,
) -> FrozenTrial | None:
    """Return the first trial in the queue, which now runs, or the one that leaves its rung.

    Those that have begun come first: the budget may be spent before the others' turn.
    """
    waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
    if step.resume is not None:
        waiting = [trial for trial in waiting if trial.number == step.resume]
    elif ladder is not None:
        paused = {trial.number for trial in ladder.paused}
        waiting = [trial for trial in waiting if trial.number not in paused]
    if not waiting:
        return None
    first = min(waiting, key=lambda trial: (not epoch_records(trial), trial.number))
    joined.storage.rdb.write_trial(
        trial_id(first),
        system_attrs={CLAIM: mark},
        state=TrialState.RUNNING,
        expected=(TrialState.WAITING, {}),
    )
    return joined.storage.rdb.get_trial(trial_id(first))
