import math
from statistics import median

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.trial import TrialState, create_trial
from search_helpers import asked, created, record, study_file

from qa_hpo.search.pruning import (
    OverfittingRule,
    SameHorizonPruner,
    diverged,
    is_control,
    make_pruner,
)
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import finish, record_epoch

NOTEBOOK = [1.235, 1.217, 1.359]
REAL_RUN = [2.638, 2.357, 2.350, 2.593]


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "overfits"),
    [
        ([], 1, 0.0, False),
        (NOTEBOOK[:1], 1, 0.0, False),
        (NOTEBOOK[:2], 1, 0.0, False),
        (NOTEBOOK, 1, 0.0, True),
        (NOTEBOOK, 1, 0.1, True),  # 1.359 > 1.217 + 0.1
        (NOTEBOOK, 1, 0.15, False),  # 1.359 < 1.217 + 0.15
        (NOTEBOOK, 2, 0.0, False),  # only one epoch is above
        ([*NOTEBOOK, 1.3], 2, 0.0, True),  # falls again, but both are above 1.217
        ([*NOTEBOOK, 1.217], 1, 0.0, False),  # equal to the best is not above it
        ([*NOTEBOOK, 1.217, 1.218], 2, 0.0, False),  # ... and begins the count again
        (REAL_RUN[:3], 1, 0.0, False),
        (REAL_RUN, 1, 0.0, True),
        ([3.0, 2.0, 2.5, 1.9], 1, 0.0, False),  # a new best
        ([1.0, 2.0, 2.0, 2.0], 3, 0.5, True),
        ([1.0, 2.0, 2.0, 2.0], 4, 0.5, False),
        ([1.0, math.nan], 1, 5.0, True),
        ([math.nan, 1.0], 1, 0.0, False),
        ([math.nan, math.nan], 1, 0.0, False),
        ([1.0, math.inf], 1, 5.0, True),
    ],
)
def test_overfitting_worked_by_hand(losses, patience, min_delta, overfits):
    assert OverfittingRule(patience, min_delta).overfits(losses) is overfits


@pytest.mark.parametrize(
    ("losses", "patience", "evaluations", "overfits"),
    [
        ([2.0, 1.0, 1.1], 1, 2, False),  # half an epoch above the best
        ([2.0, 1.0, 1.1, 1.2], 1, 2, True),
        ([2.0, 1.0, 1.1, 1.0, 1.2], 1, 2, False),  # as good as the best begins the count again
        ([2.0, 1.0, 1.1, 1.2, 1.2], 2, 2, False),
        ([2.0, 1.0, 1.1, 1.2, 1.2, 1.3], 2, 2, True),
        ([1.0, 1.1, 1.2, 1.3], 1, 4, False),  # the first epoch
        ([1.0, 1.1, 1.2, 1.3, 1.4], 1, 4, True),
        ([1.0, math.nan, math.nan], 1, 2, True),
    ],
)
def test_patience_counts_an_epochs_evaluations(losses, patience, evaluations, overfits):
    assert OverfittingRule(patience, 0.0, evaluations).overfits(losses) is overfits


def slowly(losses: list[float], patience: int, min_delta: float) -> bool:
    """Follow the trial epoch by epoch, counting those above the best before them."""
    best, in_a_row = math.inf, 0
    for loss in losses:
        in_a_row = in_a_row + 1 if loss > best + min_delta else 0
        best = min(best, loss)
    return in_a_row >= patience


@given(
    st.lists(st.sampled_from([1.0, 1.25, 1.5, 1.75, 2.0]) | st.floats(0, 10), max_size=12),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.25, 0.5]) | st.floats(0, 2),
    st.integers(1, 3),
)
def test_overfitting_agrees_with_a_slow_reference(losses, patience, min_delta, evaluations):
    expected = slowly(losses, patience * evaluations, min_delta)
    assert OverfittingRule(patience, min_delta, evaluations).overfits(losses) is expected


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((0, 0.0), "patience must be at least 1, got 0"),
        ((1, -0.1), "min_delta must be at least 0 and finite, got -0.1"),
        ((1, math.nan), "min_delta must be at least 0 and finite, got nan"),
        ((1, 0.0, 0), "evaluations_per_epoch must be at least 1, got 0"),
    ],
)
def test_an_overfitting_rule_is_validated(arguments, line):
    with pytest.raises(ValueError, match=line):
        OverfittingRule(*arguments)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(5.94, False), (5.96, True), (math.nan, True), (math.inf, True), (0.0, False)],
)
def test_diverged_means_worse_than_a_uniform_guess(loss, expected):
    assert diverged(loss, 384) is expected  # ln 384 = 5.9506


def test_control_trials():
    chosen = [n for n in range(2000) if is_control(11, n, 0.2)]
    assert chosen == [n for n in range(2000) if is_control(11, n, 0.2)]
    assert 340 < len(chosen) < 460  # 400 expected, standard deviation 18
    assert chosen != [n for n in range(2000) if is_control(12, n, 0.2)]
    assert set(chosen) < {n for n in range(2000) if is_control(11, n, 0.5)}
    assert not any(is_control(11, n, 0.0) for n in range(2000))
    assert all(is_control(11, n, 1.0) for n in range(2000))


EPOCHS = {"epochs": optuna.distributions.IntDistribution(1, 6)}


def with_history(horizons: dict[int, list[list[float]]]) -> optuna.Study:
    """A study with complete trials: reports per trial, grouped by the number of epochs."""
    study = optuna.create_study(direction="maximize")
    for horizon, trials in horizons.items():
        for reports in trials:
            study.add_trial(
                create_trial(
                    params={"epochs": horizon},
                    distributions=EPOCHS,
                    value=1.0,
                    intermediate_values=dict(enumerate(reports, start=1)),
                )
            )
    return study


def pruned(study: optuna.Study, horizon: int, report: float, step: int = 2) -> bool:
    study.enqueue_trial({"epochs": horizon})
    trial = study.ask(EPOCHS)
    trial.report(report, step)
    return trial.should_prune()


def test_only_trials_of_the_same_horizon_are_compared():
    pruning = {"across": "median", "startup_trials": 2, "warmup_epochs": 1}
    study = with_history({2: [[-1.0, -0.5], [-1.0, -0.6]], 4: [[-3.0, -2.5], [-3.0, -2.7]]})
    study.pruner = make_pruner(study_file(pruning=pruning))
    assert isinstance(study.pruner, SameHorizonPruner)
    assert median([-0.5, -0.6]) == -0.55
    assert median([-2.5, -2.7]) == -2.6
    assert pruned(study, 2, -0.58)
    assert not pruned(study, 2, -0.52)
    assert pruned(study, 4, -2.65)
    assert not pruned(study, 4, -0.58)  # hopeless beside the short trials, good beside its like
    assert not pruned(study, 3, -100.0)  # none of its like has finished


def test_epochs_that_are_not_searched_are_one_horizon():
    study = with_history({})
    for loss in (1.0, 2.0, 3.0):
        study.add_trial(create_trial(value=1.0, intermediate_values={1: -loss}))
    pruner = SameHorizonPruner(optuna.pruners.MedianPruner(n_startup_trials=3))
    trial = create_trial(state=TrialState.RUNNING, intermediate_values={1: -2.5})
    assert pruner.prune(study, trial)
    trial = create_trial(state=TrialState.RUNNING, intermediate_values={1: -1.5})
    assert not pruner.prune(study, trial)


@pytest.mark.parametrize(("warmup", "first"), [(0, 1), (1, 2), (3, 4)])
def test_warmup_epochs_are_never_judged(warmup, first):
    study = with_history({6: [[-1.0] * 6] * 3})
    pruning = {"across": "median", "startup_trials": 0, "warmup_epochs": warmup}
    study.pruner = make_pruner(study_file(pruning=pruning))
    judged = [epoch for epoch in range(1, 7) if pruned(study, 6, -9.0, step=epoch)]
    assert judged == list(range(first, 7))


def test_startup_trials_are_never_judged():
    study = with_history({3: [[-1.0] * 3] * 4})
    study.pruner = make_pruner(study_file(pruning={"startup_trials": 5, "warmup_epochs": 0}))
    assert not pruned(study, 3, -9.0)
    study.add_trial(study.trials[0])
    assert pruned(study, 3, -9.0)


def test_other_pruners():
    assert isinstance(make_pruner(study_file(pruning={"across": "none"})), NopPruner)
    assert isinstance(make_pruner(study_file(pruning={"across": "hyperband"})), HyperbandPruner)


@pytest.mark.parametrize(
    ("search", "brackets"),
    [
        ({"epochs": {"low": 1, "high": 9}}, 3),  # log_3(9 / 1) + 1
        ({"epochs": [2, 3, 8]}, 2),
        ({}, 1),  # [training] says 2
        ({"epochs": {"value": 27, "when": {"start": "v1"}}}, 4),
        ({"epochs": {"value": 1, "when": {"start": "v1"}}}, 1),  # elsewhere it is 2
    ],
)
def test_hyperband_knows_the_longest_trial(sqlite: StudyStorage, search, brackets):
    joined = created(
        sqlite, search={"start": ["base", "v1"], **search}, pruning={"across": "hyperband"}
    )
    for number in range(10):
        trial = asked(joined).trial
        record_epoch(joined, trial, record(1, 1.0))
        assert isinstance(pruned_now(joined, trial), bool)
        finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": float(number)})
    pruner = joined.optuna_study.pruner
    assert isinstance(pruner, HyperbandPruner)
    assert pruner._n_brackets == brackets


def pruned_now(joined, trial) -> bool:
    stored = joined.storage.rdb.get_trial(trial._trial_id)
    return joined.optuna_study.pruner.prune(joined.optuna_study, stored)


def curve(quality: float) -> list[float]:
    """Validation losses of four epochs: the better, the lower."""
    return [3.0 - quality * epoch / 4 for epoch in range(1, 5)]


def test_the_bad_are_pruned_and_the_good_are_not(sqlite: StudyStorage):
    """Reports have the right sign in the real study: the losses here are what F1 follows."""
    joined = created(
        sqlite,
        study={"name": "signs", "seed": 5},
        search={"learning_rate": {"low": 0.0001, "high": 1.0}, "epochs": {"value": 4}},
        starts={"base": "x"},
        pruning={"across": "median", "startup_trials": 4, "warmup_epochs": 1},
        budget={"trials": 40},
    )
    ended: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(40):
        answer = asked(joined)
        quality = 2 * answer.parameters.learning_rate
        stopped = False
        for epoch, loss in enumerate(curve(quality), start=1):
            record_epoch(joined, answer.trial, record(epoch, loss))
            stopped = pruned_now(joined, answer.trial)
            if stopped:
                break
        ended[stopped].append(quality)
        finish(
            joined,
            answer.trial,
            state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
            stop_reason="hopeless" if stopped else None,
            attrs={"best_f1": 40 + 20 * quality},
        )
    assert len(ended[True]) >= 5
    assert sum(ended[True]) / len(ended[True]) < sum(ended[False]) / len(ended[False]) - 0.3
    best = max(ended[True] + ended[False])
    assert best in ended[False]
    # The median rule, by hand: whoever was pruned was worse than half of those complete so far.
    trials = joined.optuna_study.get_trials()
    for trial in trials:
        if trial.state is TrialState.PRUNED:
            last = max(trial.intermediate_values)
            before = [
                t.intermediate_values[last]
                for t in trials[: trial.number]
                if t.state is TrialState.COMPLETE
            ]
            assert max(trial.intermediate_values.values()) < median(before)
