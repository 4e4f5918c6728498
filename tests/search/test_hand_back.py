"""What a worker that is told to end gives back, and what a dead one leaves."""

from datetime import UTC, datetime, timedelta

import pytest
from optuna.trial import TrialState
from search_helpers import asked, created, opened, record, run

from qa_hpo.search.asking import ask, hand_back, release_trials
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.failures import RETRIES, Cause
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import load_study
from qa_hpo.search.trials import Kept, epoch_records, fail, finish, kept, record_epoch


def test_a_trial_may_be_handed_back_as_often_as_it_takes(storage: StudyStorage):
    joined = created(storage)
    first = asked(joined)
    record_epoch(joined, first.trial, record(1, 2.5), kept=Kept(1, "resume", "best", 1))
    latest = first
    for _ in range(RETRIES[Cause.WORKER_DIED] + 2):
        assert hand_back(joined, latest.trial)
        assert [trial.state for trial in joined.optuna_study.trials] == [TrialState.WAITING]
        latest = asked(joined)
        assert (latest.trial.number, latest.lineage, latest.seed) == (0, 0, first.seed)
        assert latest.parameters == first.parameters
    assert epoch_records(latest.trial) == [record(1, 2.5)]
    assert latest.trial.intermediate_values == {1: -2.5}
    assert kept(latest.trial) == Kept(1, "resume", "best", 1)
    # None of this counts as a death, of which RETRIES are forgiven.
    for _ in range(RETRIES[Cause.WORKER_DIED]):
        fail(joined, latest.trial, Cause.WORKER_DIED, "killed")
        latest = asked(joined)
        assert latest.lineage == first.lineage
    fail(joined, latest.trial, Cause.WORKER_DIED, "killed")
    assert asked(joined).lineage != first.lineage


def test_what_is_not_ones_own_is_not_handed_back(storage: StudyStorage):
    joined = created(storage)
    trial = asked(joined).trial
    run(joined, trial, 1)
    assert not hand_back(joined, trial)
    mine = asked(joined).trial
    assert hand_back(joined, mine)
    assert not hand_back(joined, mine)  # it is in the queue already
    theirs = asked(load_study("demo", storage))
    assert theirs.trial.number == mine.number
    assert not hand_back(joined, mine)  # the answer to the first time was lost, say
    states = [trial.state for trial in joined.optuna_study.get_trials(deepcopy=False)]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING]
    assert hand_back(joined, theirs.trial)


EPOCHS = {
    "start": {"choices": ["base", "v1"]},
    "learning_rate": {"low": 1e-5, "high": 1e-3},
    "epochs": {"value": 3},
}


@pytest.mark.parametrize("how", ["handed back", "killed"])
def test_what_was_interrupted_is_finished_when_the_epochs_are_spent(
    storage: StudyStorage, how: str
):
    """All epochs of the budget are on record, but for the end of the trial that has them."""
    joined = created(storage, budget={"epochs": 3}, search=EPOCHS)
    trial = asked(joined, worker="a").trial
    for epoch in (1, 2, 3):
        record_epoch(joined, trial, record(epoch))
    if how == "killed":
        release_trials(joined, "a")
    else:
        assert hand_back(joined, trial)
    answer = asked(joined)
    assert (answer.lineage, answer.epochs_reserved, len(epoch_records(answer.trial))) == (0, 3, 3)
    run(joined, answer.trial, 3)
    assert ask(joined).step is BudgetStep.SPENT


def test_what_has_begun_goes_on_before_others_begin(storage: StudyStorage):
    baselines = [{"start": start, "learning_rate": 1e-4} for start in ("base", "v1")]
    joined = created(storage, budget={"epochs": 5}, search=EPOCHS, baseline=baselines)
    first = asked(joined, worker="a")
    for epoch in (1, 2):
        record_epoch(joined, first.trial, record(epoch))
    release_trials(joined, "a")
    again = asked(joined)
    assert (again.lineage, again.epochs_reserved) == (0, 3)
    other = asked(joined)
    assert (other.lineage, other.epochs_reserved) == (1, 2)


def test_what_was_interrupted_is_finished_after_the_hours(storage: StudyStorage):
    joined = created(storage, budget={"hours": 1.0}, search=EPOCHS)
    trial, running = asked(joined).trial, asked(joined).trial
    record_epoch(joined, trial, record(1))
    hand_back(joined, trial)
    before = datetime.now(UTC) - timedelta(hours=1.1)
    joined.optuna_study.set_user_attr("begun", before.isoformat())
    waiting = ask(joined)  # whoever runs may die, and leave something to finish
    assert (waiting.step, waiting.spent.running) == (BudgetStep.WAIT, 1)
    finish(joined, running, state=TrialState.COMPLETE, attrs={"best_f1": 1.0})
    answer = asked(joined)
    assert (answer.trial.number, answer.epochs_reserved) == (0, 1)
    run(joined, answer.trial, 1)
    assert ask(joined).step is BudgetStep.SPENT


def test_causes_in_turn_do_not_go_on_for_ever(storage: StudyStorage):
    joined = created(storage)
    attempts = 0
    while (answer := asked(joined)).lineage == 0:
        fail(joined, answer.trial, [Cause.ERROR, Cause.WORKER_DIED][attempts % 2], "again")
        attempts += 1
    assert attempts == 10


def test_a_dead_workers_trials_are_released_at_once(storage_url: str):
    with opened(storage_url) as storage:  # whose grace is long
        joined = created(storage)
        dead, alive = asked(joined, worker="a-1"), asked(joined, worker="a-10")
        record_epoch(joined, dead.trial, record(1, 2.5))
        assert release_trials(joined, "a-1") == [0]
        assert release_trials(joined, "a-1") == []
        first, second = joined.optuna_study.trials
        assert (first.state, second.state) == (TrialState.FAIL, TrialState.RUNNING)
        assert first.user_attrs["cause"] == "worker died"
        assert first.user_attrs["error"] == "its worker a-1 ended"
        answer = asked(joined, worker="b")
        assert (answer.trial.number, answer.lineage, answer.seed) == (2, 0, dead.seed)
        assert answer.parameters == dead.parameters
        assert epoch_records(answer.trial) == [record(1, 2.5)]
        assert "cause" not in answer.trial.user_attrs
        assert answer.trial.system_attrs["retry_history"] == [0]
        run(joined, alive.trial, 1)
