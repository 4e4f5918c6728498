from datetime import datetime, timedelta

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from qa_hpo.config import Budget
from qa_hpo.search.budget import BudgetStep, next_step, spent, time_is_up

NOON = datetime(2026, 1, 1, 12)


def add(study, state, epochs=0, *, reserved=None, retry_of=None, start=NOON, value=None):
    """Add a trial that has ``epochs`` epoch records."""
    attributes = {"epochs": [{"epoch": n} for n in range(1, epochs + 1)]}
    if reserved is not None:
        attributes["epochs_reserved"] = reserved
    history = {"failed_trial": retry_of, "retry_history": [retry_of]}
    trial = create_trial(
        state=state,
        value=1.0 if state is TrialState.COMPLETE else value,
        user_attrs=attributes,
        system_attrs={} if retry_of is None else history,
    )
    trial.datetime_start = None if state is TrialState.WAITING else start
    study.add_trial(trial)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def test_an_empty_study_has_spent_nothing(study):
    nothing = spent(study)
    assert (nothing.trials, nothing.epochs, nothing.reserved, nothing.hours) == (0, 0, 0, 0.0)
    assert next_step(study, Budget(trials=1)).step is BudgetStep.ASK


def test_what_is_spent(study):
    add(study, TrialState.COMPLETE, 3)
    add(study, TrialState.PRUNED, 2, start=NOON - timedelta(hours=1))
    add(study, TrialState.FAIL, 1)
    add(study, TrialState.RUNNING, 1, reserved=4)  # may add 3
    add(study, TrialState.WAITING)
    so_far = spent(study, now=NOON + timedelta(minutes=30))
    assert (so_far.trials, so_far.running, so_far.waiting, so_far.failed) == (2, 1, 1, 1)
    assert (so_far.epochs, so_far.reserved) == (3 + 2 + 1 + 1, 3)
    assert so_far.hours == 1.5


def test_what_a_retry_takes_over_counts_once(study):
    add(study, TrialState.FAIL, 2, reserved=3)  # 0
    add(study, TrialState.FAIL, 2, reserved=3, retry_of=0)  # died again, before its next epoch
    add(study, TrialState.RUNNING, 2, reserved=3, retry_of=0)
    so_far = spent(study)
    assert (so_far.epochs, so_far.reserved, so_far.failed) == (2, 1, 0)


def test_trials_are_exact(study):
    budget = Budget(trials=3)
    add(study, TrialState.COMPLETE)
    add(study, TrialState.FAIL)
    add(study, TrialState.WAITING)
    add(study, TrialState.RUNNING)
    assert next_step(study, budget).step is BudgetStep.ASK  # 1 finished, 1 running, 1 may begin
    add(study, TrialState.RUNNING)
    waiting = next_step(study, budget)
    assert (waiting.step, waiting.cause) == (BudgetStep.WAIT, "the last 2 trials are running")
    add(study, TrialState.PRUNED)
    add(study, TrialState.PRUNED)
    done = next_step(study, budget)
    assert (done.step, done.cause) == (BudgetStep.SPENT, "3 of 3 trials have finished")
    assert not done.failing


def test_epochs_are_exact(study):
    budget = Budget(epochs=10)
    add(study, TrialState.COMPLETE, 4)
    add(study, TrialState.RUNNING, 1, reserved=3)
    step = next_step(study, budget)
    assert (step.step, step.epochs_left) == (BudgetStep.ASK, 3)
    add(study, TrialState.RUNNING, 0, reserved=3)
    step = next_step(study, budget)
    assert (step.step, step.epochs_left) == (BudgetStep.WAIT, 0)


def test_epochs_that_a_pruned_trial_leaves_over_are_used(study):
    add(study, TrialState.PRUNED, 2, reserved=5)
    step = next_step(study, Budget(epochs=5))
    assert (step.step, step.epochs_left) == (BudgetStep.ASK, 3)


def test_epochs_are_spent_when_nobody_runs(study):
    add(study, TrialState.COMPLETE, 5)
    add(study, TrialState.WAITING)
    step = next_step(study, Budget(epochs=5))
    assert (step.step, step.cause) == (BudgetStep.SPENT, "5 of 5 epochs are trained")
    assert next_step(study, Budget(epochs=4)).epochs_left == 0  # lowered since


def test_hours(study):
    budget = Budget(hours=2)
    assert not time_is_up(study, budget)
    add(study, TrialState.COMPLETE)
    before, after = NOON + timedelta(hours=1.9), NOON + timedelta(hours=2)
    assert next_step(study, budget, now=before).step is BudgetStep.ASK
    assert not time_is_up(study, budget, now=before)
    step = next_step(study, budget, now=after)
    assert (step.step, step.cause) == (BudgetStep.SPENT, "2 hours have passed")
    assert time_is_up(study, budget, now=after)
    assert not time_is_up(study, Budget(trials=1), now=after)


def test_whatever_runs_out_first_ends_the_study(study):
    add(study, TrialState.COMPLETE, 4)
    now = NOON + timedelta(hours=1)
    assert next_step(study, Budget(trials=9, epochs=4), now=now).step is BudgetStep.SPENT
    assert next_step(study, Budget(trials=1, epochs=9), now=now).step is BudgetStep.SPENT
    assert next_step(study, Budget(trials=9, hours=0.5), now=now).step is BudgetStep.SPENT
    assert next_step(study, Budget(trials=9, epochs=9, hours=9), now=now).step is BudgetStep.ASK


@pytest.mark.parametrize(
    ("failed", "finished", "ends"),
    [(2, 0, False), (3, 0, True), (3, 3, True), (3, 4, False), (7, 8, False), (8, 8, True)],
)
def test_a_study_of_failures_ends(study, failed, finished, ends):
    for _ in range(failed):
        add(study, TrialState.FAIL)
    for _ in range(finished):
        add(study, TrialState.PRUNED)
    step = next_step(study, Budget(trials=100))
    assert (step.step is BudgetStep.SPENT) is ends
    assert step.failing is ends
    if ends:
        assert step.cause == f"{failed} trials failed and {finished} finished"
        assert next_step(study, Budget(trials=100), forgiven=failed).step is BudgetStep.ASK


def test_failures_that_are_tried_again_do_not_end_a_study(study):
    for number in range(4):
        add(study, TrialState.FAIL)
        add(study, TrialState.WAITING, retry_of=2 * number)
    assert next_step(study, Budget(trials=100)).step is BudgetStep.ASK
