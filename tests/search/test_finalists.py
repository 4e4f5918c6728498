"""The finals: the best configurations run again with other seeds, within the budget."""

import itertools
import threading
import time

import pytest
from optuna.trial import TrialState, create_trial
from search_helpers import FINGERPRINTS, asked, created, opened, record, run, study_file

from qa_hpo.errors import StorageError, StudyFileError
from qa_hpo.search.asking import Asked, ask, hand_back
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.failures import Cause
from qa_hpo.search.finalists import Plan, finished_trials, plan
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import create_study, load_study, set_budget
from qa_hpo.search.trials import REPEAT_OF, fail, finish, record_epoch

EVALUATION = {"seeds": 3, "finalists": 2}


def trial(number, state=TrialState.COMPLETE, best_f1=None, repeat_of=None):
    user_attrs = {} if best_f1 is None else {"best_f1": best_f1}
    if repeat_of is not None:
        user_attrs[REPEAT_OF] = repeat_of
    made = create_trial(
        state=state,
        value=best_f1 if state.is_finished() and state is not TrialState.FAIL else None,
        user_attrs=user_attrs,
    )
    made.number = number
    return made


def planned(trials, budget, seeds=3, finalists=2):
    return plan(trials, budget, seeds=seeds, finalists=finalists)


def test_places_are_left_for_the_finalists():
    """Of 10 trials, 2 finalists with 3 seeds each take 4 more: 6 are for the search."""
    done = [trial(n, best_f1=50.0 + n) for n in range(5)]
    assert planned(done, 10) == Plan(search=True)
    assert planned([*done, trial(5, best_f1=1.0)], 10) == Plan(search=False, repeat=4)


def test_a_running_trial_may_become_a_finalist():
    done = [trial(n, best_f1=50.0 + n) for n in range(5)]
    assert planned([*done, trial(5, TrialState.RUNNING)], 10) == Plan(search=False, wait=True)


def test_each_finalist_gets_its_seeds_and_no_more():
    done = [trial(n, best_f1=50.0 + n) for n in range(6)]
    repeats = []
    for number in itertools.count(6):
        now = planned([*done, *repeats], 10)
        if now.repeat is None:
            break
        repeats.append(trial(number, best_f1=40.0, repeat_of=now.repeat))
    assert [r.user_attrs[REPEAT_OF] for r in repeats] == [5, 5, 4, 4]
    assert now == Plan(search=False)


def test_a_raised_budget_searches_on_as_long_as_a_newcomer_would_fit_with_its_seeds():
    done = [trial(n, best_f1=50.0 + n) for n in range(6)]
    repeats = [trial(6 + i, best_f1=40.0, repeat_of=of) for i, of in enumerate((5, 5, 4, 4))]
    assert planned([*done, *repeats], 12) == Plan(search=False)
    assert planned([*done, *repeats], 13) == Plan(search=True)
    newcomer = trial(10, best_f1=99.0)
    assert planned([*done, *repeats, newcomer], 13) == Plan(search=False, repeat=10)


def test_a_finalist_whose_seeds_fail_for_good_is_not_tried_for_ever():
    done = [trial(n, best_f1=50.0 + n) for n in range(6)]
    failed = trial(6, TrialState.FAIL, repeat_of=5)
    failed.user_attrs["cause"] = Cause.OOM
    now = planned([*done, failed], 10)
    assert now.repeat == 5
    again = trial(7, TrialState.FAIL, repeat_of=5)
    again.user_attrs["cause"] = Cause.OOM
    assert planned([*done, failed, again], 10).repeat == 4


def scored(joined, answer, f1):
    for epoch in range(1, answer.epochs_reserved + 1):
        record_epoch(joined, answer.trial, record(epoch))
    finish(joined, answer.trial, state=TrialState.COMPLETE, attrs={"best_f1": f1})


def test_a_study_with_finals(storage: StudyStorage):
    joined = created(storage, evaluation=EVALUATION, budget={"trials": 10})
    scores = [60.0, 70.0, 65.0, 69.0, 50.0, 40.0]
    for score in scores:
        answer = asked(joined)
        assert REPEAT_OF not in answer.trial.user_attrs
        scored(joined, answer, score)

    finals = []
    for score in (50.0, 50.0, 68.0, 67.0):
        answer = asked(joined)
        finals.append(answer)
        scored(joined, answer, score)
    assert [f.trial.user_attrs[REPEAT_OF] for f in finals] == [1, 1, 3, 3]
    originals = {t.number: t for t in joined.optuna_study.get_trials()}
    for final in finals:
        original = originals[final.trial.user_attrs[REPEAT_OF]]
        assert final.trial.params == original.params
    # Each with a seed of its own, that of the original among them.
    assert len({final.seed for final in finals}) == 4
    end = ask(joined)
    assert end.step is BudgetStep.SPENT

    # Trial 1 was lucky: 70, 50, 50. Trial 3 is good: 69, 68, 67.
    ranked = [t.number for t in finished_trials(joined)]
    assert ranked == [3, 8, 9, 1, 6, 7, 2, 0, 4, 5]


def test_a_budget_too_small_for_the_seeds_still_searches():
    assert planned([], 2) == Plan(search=True)


def test_finals_that_did_not_end_decide_nothing(sqlite: StudyStorage):
    """Epochs are spent in the midst of them: one run is compared with one run."""
    joined = created(sqlite, evaluation=EVALUATION, budget={"trials": 10, "epochs": 60})
    for score in (60.0, 70.0, 65.0, 69.0, 50.0, 40.0):
        scored(joined, asked(joined), score)
    scored(joined, asked(joined), 45.0)
    assert [t.number for t in finished_trials(joined)][:3] == [1, 3, 2]
    for score in (45.0, 69.0):
        scored(joined, asked(joined), score)
    assert [t.number for t in finished_trials(joined)][:2] == [1, 3]
    # The last of them is cut off by the budget, and is no measure of the others.
    cut = asked(joined)
    record_epoch(joined, cut.trial, record(1))
    finish(
        joined, cut.trial, state=TrialState.PRUNED, stop_reason="budget", attrs={"best_f1": 80.0}
    )
    assert [t.number for t in finished_trials(joined)][:3] == [9, 1, 3]


def test_a_finalist_that_failed_for_good_does_not_hold_up_the_others(sqlite: StudyStorage):
    joined = created(sqlite, evaluation={"seeds": 2, "finalists": 2}, budget={"trials": 5})
    for score in (60.0, 70.0, 65.0):
        scored(joined, asked(joined), score)
    fail(joined, asked(joined).trial, Cause.OOM, "too large")
    scored(joined, asked(joined), 50.0)
    # 70 alone, and 65 and 50.
    assert [t.number for t in finished_trials(joined)] == [1, 2, 4, 0]


def test_a_finalist_that_lost_its_place_keeps_its_mean(sqlite: StudyStorage):
    joined = created(sqlite, evaluation=EVALUATION, budget={"trials": 7})
    for score in (70.0, 69.0, 10.0, 50.0, 50.0, 69.0, 69.0):
        scored(joined, asked(joined), score)
    assert finished_trials(joined)[0].number == 1
    joined = set_budget(joined, joined.file.budget.model_copy(update={"trials": 10}))
    for score in (69.5, 55.0, 55.0):  # a newcomer, second of the first runs, and its other seeds
        scored(joined, asked(joined), score)
    assert ask(joined).step is BudgetStep.SPENT
    best = [t.number for t in finished_trials(joined) if t.user_attrs["best_f1"] == 69.0]
    assert finished_trials(joined)[0].number in best
    # Of the means 69, 59.8 and 56.7.
    assert [t.number for t in finished_trials(joined)][::3][:3] == [1, 7, 0]


def test_the_finals_of_a_study_may_be_changed(sqlite: StudyStorage):
    joined = created(sqlite, budget={"trials": 4})
    scored(joined, asked(joined), 50.0)
    changed = study_file(budget={"trials": 4}, evaluation={"seeds": 3, "finalists": 1})
    again = create_study(changed, sqlite, fingerprints=FINGERPRINTS)
    assert not again.created
    scored(again, asked(again), 40.0)
    # A worker that joined before the change heeds it, too.
    assert asked(joined).trial.user_attrs[REPEAT_OF] == 0
    evaluation = {"seeds": 3, "finalists": 1, "n_best": 5}
    other = study_file(budget={"trials": 4}, evaluation=evaluation)
    with pytest.raises(StorageError, match=r"evaluation\.n_best"):
        create_study(other, sqlite, fingerprints=FINGERPRINTS)


def test_workers_in_parallel_keep_to_the_budget(storage: StudyStorage, storage_url: str):
    name = created(storage, evaluation=EVALUATION, budget={"trials": 14}).file.study.name

    def work(worker: int) -> None:
        with opened(storage_url) as own:
            joined = load_study(name, own)
            while True:
                answer = ask(joined, worker=f"w{worker}")
                if isinstance(answer, Asked):
                    run(joined, answer.trial, 1, best_f1=float(answer.trial.number * 37 % 23))
                elif answer.step is BudgetStep.SPENT:
                    return
                time.sleep(0.05)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    joined = load_study(name, storage)
    trials = joined.optuna_study.get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 14
    repeats = [t.user_attrs[REPEAT_OF] for t in trials if REPEAT_OF in t.user_attrs]
    searched = [t for t in trials if REPEAT_OF not in t.user_attrs]
    best = sorted(searched, key=lambda t: (-t.value, t.number))[:2]
    assert sorted(repeats) == sorted([t.number for t in best for _ in range(2)])


def test_an_interrupted_final_goes_on_as_what_it_is(sqlite: StudyStorage):
    joined = created(sqlite, evaluation={"seeds": 2, "finalists": 1}, budget={"trials": 2})
    scored(joined, asked(joined), 50.0)
    first = asked(joined)
    assert hand_back(joined, first.trial)
    second = asked(joined)
    assert second.trial.number == first.trial.number
    assert second.trial.user_attrs[REPEAT_OF] == 0
    assert second.seed == first.seed
    fail(joined, second.trial, Cause.ERROR, "it slipped")
    third = asked(joined)
    assert third.lineage == second.trial.number
    assert third.trial.user_attrs[REPEAT_OF] == 0
    assert third.seed == first.seed
    scored(joined, third, 51.0)
    assert ask(joined).step is BudgetStep.SPENT


def test_the_budget_of_a_study_with_finals_may_be_raised(sqlite: StudyStorage):
    joined = created(sqlite, evaluation={"seeds": 2, "finalists": 1}, budget={"trials": 3})
    for score in (50.0, 51.0, 52.0):
        scored(joined, asked(joined), score)
    assert ask(joined).step is BudgetStep.SPENT
    joined = set_budget(joined, joined.file.budget.model_copy(update={"trials": 5}))
    answer = asked(joined)
    assert REPEAT_OF not in answer.trial.user_attrs
    scored(joined, answer, 60.0)
    answer = asked(joined)
    assert answer.trial.user_attrs[REPEAT_OF] == 3
    scored(joined, answer, 60.0)
    assert ask(joined).step is BudgetStep.SPENT


@pytest.mark.parametrize("trials", [2, 5])
def test_finals_need_room(trials: int):
    with pytest.raises(ValueError, match=r"2 finalists with 3 seeds each are 6 runs"):
        study_file(evaluation=EVALUATION, budget={"trials": trials})
    file = study_file(evaluation=EVALUATION, budget={"trials": 6})
    with pytest.raises(StudyFileError, match=r"^--trials: evaluation\.seeds: 2 finalists"):
        file.with_trials(trials)
    assert file.with_trials(7).budget.trials == 7


def test_finals_need_a_budget_of_trials():
    with pytest.raises((StudyFileError, ValueError), match=r"needs budget\.trials"):
        study_file(evaluation=EVALUATION, budget={"hours": 1.0})
