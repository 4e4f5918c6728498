"""A study that learns from others: ranks worked out by hand, on a real database."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from search_helpers import asked, created, opened, record

from qa_hpo.errors import StorageError, StudyFileError
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.search.asking import ask
from qa_hpo.search.budget import BudgetStep, spent
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.learning import by_rank
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import load_study
from qa_hpo.search.trials import finish, record_epoch

RATE = {"low": 1e-5, "high": 1e-3, "log": True}
BEST = 1e-4


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    with opened(f"sqlite:///{tmp_path}/study.db") as storage:
        yield storage


def score(learning_rate: float) -> float:
    """A made-up F1: 80 at the best learning rate, 30 points less a factor of ten away."""
    return 80 - 30 * abs(math.log10(learning_rate / BEST))


def complete(joined: JoinedStudy, count: int, *, minus: float = 0.0) -> None:
    """Finish trials of which the last is pruned, with made-up scores."""
    for n in range(count):
        one = asked(joined)
        f1 = score(one.parameters.learning_rate) - minus
        record_epoch(joined, one.trial, record(1, best_f1=f1))
        state = TrialState.PRUNED if n == count - 1 else TrialState.COMPLETE
        reason = "overfitting" if n == count - 1 else None
        finish(joined, one.trial, state=state, stop_reason=reason, attrs={"best_f1": f1})


def quick_look(storage: StudyStorage, *, minus: float = 0.0, name: str = "quick") -> JoinedStudy:
    joined = created(
        storage,
        study={"name": name, "seed": 5},
        search={"learning_rate": RATE},
        starts={"base": "some/base"},
        budget={"trials": 40},
    )
    complete(joined, 40, minus=minus)
    return joined


def learner(storage: StudyStorage, name: str = "full", **sections: Any) -> JoinedStudy:
    given = {
        "study": {"name": name, "seed": 1, "learn_from": ["quick"]},
        "search": {"learning_rate": RATE},
        "starts": {"base": "some/base"},
        **sections,
    }
    return created(storage, **given)


def proposals(joined: JoinedStudy, count: int) -> list[float]:
    return [asked(joined).parameters.learning_rate for _ in range(count)]


def test_the_first_proposals_are_informed_and_cost_nothing(storage: StudyStorage) -> None:
    quick_look(storage)
    off = []
    for seed in (1, 2, 3):
        study = {"name": f"full {seed}", "seed": seed, "learn_from": ["quick"]}
        joined = learner(storage, study=study)
        off += [abs(math.log10(rate / BEST)) for rate in proposals(joined, 4)]
    # Uniform over the two decades, twelve are half a decade away on average, with a standard
    # deviation of 0.29 / sqrt(12) = 0.08.
    assert sum(off) / 12 < 0.25
    so_far = spent(joined.optuna_study)
    assert (so_far.trials, so_far.running) == (0, 4)
    assert [trial.number for trial in joined.optuna_study.trials] == list(range(4))


def test_the_budget_is_the_studys_own(storage: StudyStorage) -> None:
    quick_look(storage)
    joined = learner(storage, budget={"trials": 3})
    complete(joined, 3)
    assert ask(joined).step is BudgetStep.SPENT
    assert [row.number for row in leaderboard(joined).trials] != []
    assert len(leaderboard(joined).trials) == 3


def test_scores_of_another_study_count_by_their_ranks(storage: StudyStorage) -> None:
    quick_look(storage)
    quick_look(storage, minus=40.0, name="poor")  # as of a tenth of the data
    budget = {"trials": 20}
    one = learner(storage, budget=budget)
    study = {"name": "other", "seed": 1, "learn_from": ["poor"]}
    other = learner(storage, study=study, budget=budget)
    # Their own first results come in, and are far above what the poor study has seen.
    for _ in range(12):
        rates = []
        for joined in (one, other):
            taken = asked(joined)
            rates.append(taken.parameters.learning_rate)
            f1 = score(rates[-1])
            finish(joined, taken.trial, state=TrialState.COMPLETE, attrs={"best_f1": f1})
        assert rates[0] == rates[1]


def test_ranks_become_quantiles() -> None:
    def ended(number: int, f1: float | None, state: TrialState = TrialState.COMPLETE) -> Any:
        attributes = {} if f1 is None else {"best_f1": f1}
        value = 1.0 if state is TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, user_attrs=attributes)
        trial.number = number
        return trial

    trials = [
        ended(0, 80.0),
        ended(1, 70.0),
        ended(2, None, TrialState.RUNNING),
        ended(3, 90.0, TrialState.PRUNED),
        ended(4, 80.0),
        ended(5, None, TrialState.FAIL),
    ]
    seen = by_rank(trials, ["best_f1"])
    # Of four, the lowest is at 1/8, the two equal ones at 1/2, the highest at 7/8; the normal
    # distribution's quantile of 7/8 is 1.1503 (any table).
    assert [t.value for t in seen if t.state is TrialState.COMPLETE] == pytest.approx(
        [0.0, -1.1503, 1.1503, 0.0], abs=1e-4
    )
    assert [t.state.name for t in seen if t.state is not TrialState.COMPLETE] == ["RUNNING", "FAIL"]
    assert trials[3].state is TrialState.PRUNED
    assert trials[0].value == 1.0


def test_what_does_not_fit_is_left_out(storage: StudyStorage) -> None:
    joined = quick_look(storage)
    rates = [trial.params["learning_rate"] for trial in joined.optuna_study.trials]
    fitting = [rate for rate in rates if 5e-5 <= rate <= 1e-3]
    assert 0 < len(fitting) < len(rates)
    narrow = {"low": 5e-5, "high": 1e-3, "log": True}
    other = learner(storage, search={"learning_rate": narrow, "warmup": {"low": 0.0, "high": 0.2}})
    assert sorted(t.params["learning_rate"] for t in other.prior) == sorted(fitting)
    # What the other study did not search had its default there.
    assert {t.params["warmup"] for t in other.prior} == {0.0}


def test_it_needs_the_other_study_only_when_it_is_created(storage: StudyStorage) -> None:
    quick_look(storage)
    joined = learner(storage)
    optuna.delete_study(study_name="quick", storage=storage.rdb)
    again = load_study("full", storage)
    assert [t.params for t in again.prior] == [t.params for t in joined.prior]
    assert len(again.prior) == 40
    assert learner(storage).prior[0].values == joined.prior[0].values  # continued


def test_what_cannot_be_learnt_from(storage: StudyStorage) -> None:
    with pytest.raises(StorageError, match="has no study 'quick'; it holds none"):
        learner(storage)
    optuna.create_study(study_name="quick", storage=storage.rdb, direction="maximize")
    with pytest.raises(StorageError, match="'quick' is not a qa_hpo study"):
        learner(storage)
    optuna.delete_study(study_name="quick", storage=storage.rdb)
    quick_look(storage)
    with pytest.raises(StorageError, match="has no study 'quik'; did you mean 'quick'"):
        learner(storage, study={"name": "full", "learn_from": ["quik"]})
    high = {"low": 0.1, "high": 0.5}
    with pytest.raises(StorageError, match=r"'quick' has no finished trial that fits .*40 finish"):
        learner(storage, search={"learning_rate": high})
    # Nothing was created meanwhile.
    assert optuna.get_all_study_names(storage.rdb) == ["quick"]


def test_names_of_the_study_file(storage: StudyStorage) -> None:
    for names, problem in (
        (["full"], "a study cannot learn from itself: 'full'"),
        (["a", "a"], "names a study twice"),
    ):
        with pytest.raises((StudyFileError, ValueError), match=problem):
            learner(storage, study={"name": "full", "learn_from": names})


def test_it_is_part_of_what_a_study_is(storage: StudyStorage) -> None:
    quick_look(storage)
    learner(storage)
    with pytest.raises(StorageError, match=r"study.learn_from: \[\"quick\"\] in the study, \[\]"):
        learner(storage, study={"name": "full", "seed": 1})
