"""The points that new trials get: as Optuna draws them, and none twice."""

from itertools import pairwise

import optuna
import pytest
from optuna.trial import TrialState
from search_helpers import asked, created, run

from qa_hpo.search.failures import Cause
from qa_hpo.search.proposing import propose
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import fail, finish, trial_id

SPACES = {
    "plain": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 4},
    },
    "conditional": {
        "start": {"choices": ["base", "v1"]},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "warmup": {"low": 0.0, "high": 0.5, "when": {"start": "base"}},
        "weight_decay": {"low": 0.0, "high": 0.4, "step": 0.1, "when": {"start": "v1"}},
        "batch_size": {"choices": [8]},
    },
}


@pytest.mark.parametrize("space", SPACES)
def test_a_new_point_is_the_one_that_optuna_draws(sqlite: StudyStorage, space: str):
    """The same sampler, asked by Optuna's own trial in the usual way, says the same."""
    joined = created(sqlite, search=SPACES[space], budget={"trials": 100})
    rdb = sqlite.rdb
    for number in range(25):
        trial = rdb.get_trial(rdb.create_new_trial(rdb.get_study_id_from_name("demo")))
        study = joined.optuna_study
        proposed = propose(joined, trial, study.get_trials(deepcopy=False))
        study._thread_local.cached_all_trials = None  # as Study.ask() does
        theirs = optuna.Trial(study, trial_id(trial))
        parameters = joined.space.suggest(theirs)
        assert proposed == theirs.params
        assert parameters == joined.space.parameters_of(proposed)
        best = 50.0 + 1e4 * parameters.learning_rate
        finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": best + number % 3})


def points(joined) -> list[tuple]:
    return [tuple(sorted(trial.params.items())) for trial in joined.optuna_study.trials]


@pytest.mark.parametrize("seed", range(5))
def test_no_point_comes_twice_while_there_are_others(sqlite: StudyStorage, seed: int):
    joined = created(
        sqlite,
        study={"name": "demo", "seed": seed},
        search={"start": ["base", "v1"], "epochs": {"low": 1, "high": 4}, "batch_size": [8, 16]},
        baseline=[{"start": "v1", "epochs": 3, "batch_size": 8}],
        budget={"trials": 18},
    )
    for number in range(18):
        answer = asked(joined)
        if number == 5:  # what has failed for good is not tried again under another number
            fail(joined, answer.trial, Cause.DATA, "no good")
        elif number != 7:  # one stays running
            run(joined, answer.trial, 1, best_f1=float(answer.parameters.epochs))
    assert len(set(points(joined)[:16])) == 16  # all of the 2 * 4 * 2 points there are
    assert len(set(points(joined))) == 16  # and then some again
    assert len(points(joined)) == 18


def test_a_queued_point_of_somebody_else_is_completed(sqlite: StudyStorage):
    joined = created(sqlite)
    joined.optuna_study.enqueue_trial({"start": "v1"})
    answer = asked(joined)
    assert answer.parameters.start == "v1"
    assert set(answer.trial.params) == {"start", "learning_rate", "epochs"}


def test_the_seeds_decide(sqlite: StudyStorage):
    """The first points follow from the study's seed and the trial's number alone."""
    first = created(sqlite, study={"name": "one", "seed": 3})
    second = created(sqlite, study={"name": "two", "seed": 3})
    other = created(sqlite, study={"name": "three", "seed": 4})
    for joined in (first, second, other):
        for _ in range(5):
            asked(joined)
    assert points(first) == points(second)
    assert points(first) != points(other)
    assert all(a != b for a, b in pairwise(points(first)))
