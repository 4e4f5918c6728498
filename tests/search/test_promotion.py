"""Who waits at a rung, who goes on, and who ends there, by what was counted by hand."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import optuna
import pytest
from bench.curves.memory import open_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from promoted import Simulation, end, measured, never_waits, promoting, standing, tell
from pydantic import ValidationError
from search_helpers import SECTIONS, asked, study_file

from qa_hpo import printing
from qa_hpo.config import Budget, StudyFile
from qa_hpo.errors import InputError
from qa_hpo.results.progress import headline
from qa_hpo.search import proposing
from qa_hpo.search.asking import Asked, ask, go_on, hand_back, release_trials
from qa_hpo.search.budget import BudgetStep, NextStep, most_trials, next_step, spent
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.promotion import Ladder, Rules, rungs
from qa_hpo.search.stopping import PAUSED, StoppingRules
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import (
    BASELINE,
    FORGETTING,
    REPEAT_OF,
    epoch_records,
    fail,
    lineage_number,
)

WAITING, RUNNING, FAIL = TrialState.WAITING, TrialState.RUNNING, TrialState.FAIL
RULES = Rules(reduction_factor=2, rungs=(1, 2), horizon=4, seed=0, control_fraction=0.0)


def a_trial(
    number: int,
    scores: Sequence[float | None],
    losses: Sequence[float | None] | None = None,
    state: TrialState = WAITING,
    *,
    retry_of: int | None = None,
    **attrs: Any,
) -> FrozenTrial:
    records = [
        {"epoch": n, "val_loss": 1.0 if losses is None else losses[n - 1], "best_f1": score}
        for n, score in enumerate(scores, start=1)
    ]
    trial = create_trial(
        state=state,
        value=1.0 if state is TrialState.COMPLETE else None,
        user_attrs={"epochs": records, **attrs},
        system_attrs={} if retry_of is None else {"failed_trial": retry_of},
    )
    trial.number = number
    return trial


def paused(trials: list[FrozenTrial], rules: Rules = RULES) -> list[int]:
    return [trial.number for trial in Ladder(rules, trials).paused]


def going_on(trials: list[FrozenTrial], rules: Rules = RULES) -> set[int]:
    ladder = Ladder(rules, trials)
    return {trial.number for trial in ladder.paused if ladder.may_go_on(trial)}


# ---------------------------------------------------------------------------- rungs and ranks


@pytest.mark.parametrize(
    ("first", "factor", "horizon", "found"),
    [
        (1, 3, 9, (1, 3)),
        (1, 3, 10, (1, 3, 9)),
        (1, 2, 4, (1, 2)),
        (2, 2, 9, (2, 4, 8)),
        (4, 3, 4, ()),
        (5, 3, 4, ()),
    ],
)
def test_rungs(first: int, factor: int, horizon: int, found: tuple[int, ...]):
    assert rungs(first, factor, horizon) == found


def test_ties_go_by_the_loss_and_then_by_the_number():
    trials = [
        a_trial(0, [0.0], [1.4]),
        a_trial(1, [0.0], [1.2]),
        a_trial(2, [0.0], [1.3]),
        a_trial(3, [0.0], [1.2]),
        a_trial(4, [10.0], [9.0]),
        a_trial(5, [None], [None]),
    ]
    assert paused(trials) == [4, 1, 3, 2, 0, 5]
    assert going_on(trials) == {4, 1, 3}
    assert going_on(trials[:5]) == {4, 1}  # half of five, rounded down
    assert going_on(trials[:1]) == set()


def test_records_that_lack_what_is_compared_come_last():
    lacking = a_trial(0, [None, 30.0], [None, 0.5])
    del lacking.user_attrs["epochs"][0]["best_f1"]
    trials = [lacking, a_trial(1, [0.0, 20.0]), a_trial(2, [0.0], [3.0])]
    # At the second rung, where it has an F1, it is ahead.
    assert paused(trials) == [0, 1, 2]
    assert going_on(trials) == {0}
    # At the first it was the last of the three, and so 2 is behind 1 alone.
    ladder = Ladder(RULES, [*trials, a_trial(3, [0.0], [4.0])])
    assert ladder.may_go_on(trials[2])


def test_who_went_further_is_ranked_by_what_it_had_at_the_rung():
    trials = [
        a_trial(0, [40.0, 90.0, 95.0], state=RUNNING),
        a_trial(1, [60.0]),
        a_trial(2, [50.0]),
        a_trial(3, [55.0, 56.0, 57.0, 58.0], state=TrialState.COMPLETE),
    ]
    assert going_on(trials) == {1}  # 60, 55 are the better half
    assert going_on([*trials, a_trial(4, [1.0]), a_trial(5, [2.0])]) == {1, 2}


def test_failed_trials_are_out_and_retried_ones_count_once():
    gone = a_trial(0, [90.0], state=FAIL, cause="oom")
    assert going_on([gone, a_trial(1, [50.0]), a_trial(2, [40.0])]) == {1}
    again = a_trial(0, [90.0], state=FAIL, cause="worker died")
    both = [a_trial(1, [50.0]), a_trial(2, [40.0])]
    assert going_on([again, *both]) == set()  # one of three, and it is not queued yet
    retry = a_trial(3, [90.0], retry_of=0)
    assert going_on([again, *both, retry]) == {3}
    assert paused([again, *both, retry]) == [3, 1, 2]


def test_those_that_never_wait_count():
    rules = Rules(2, (1, 2), 4, seed=0, control_fraction=0.0)
    exempt = [
        a_trial(0, [80.0], **{BASELINE: "b"}),
        a_trial(1, [70.0], **{REPEAT_OF: 5}),
        a_trial(2, [60.0], state=RUNNING, **{BASELINE: "c"}),
    ]
    others = [a_trial(3, [65.0]), a_trial(4, [50.0]), a_trial(5, [40.0])]
    assert paused([*exempt, *others], rules) == [3, 4, 5]
    assert going_on([*exempt, *others], rules) == {3}  # behind 0 and 1 alone
    assert [rules.next_stop(trial) for trial in exempt] == [4, 4, 4]
    assert rules.next_stop(others[0]) == 2
    assert rules.next_stop(a_trial(6, [])) == 1
    assert rules.next_stop(a_trial(6, [1.0, 1.0])) == 4
    every = Rules(2, (1, 2), 4, seed=0, control_fraction=1.0)
    assert paused(others, every) == []
    assert every.next_stop(others[0]) == 4


@given(
    order=st.permutations(range(12)),
    scores=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    losses=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    most=st.integers(1, 12),
    factor=st.integers(2, 4),
)
@settings(deadline=None, max_examples=150)
def test_who_is_hopeless_is_never_promoted(
    order: list[int], scores: list[int], losses: list[int], most: int, factor: int
):
    """Whatever comes later: trials arrive at a rung in any order, up to as many as there can be."""
    rules = Rules(factor, (1,), 4, seed=0, control_fraction=0.0)
    there: list[FrozenTrial] = []
    given_up: set[int] = set()
    for number in order[:most]:
        there.append(a_trial(number, [float(scores[number])], [float(losses[number])]))
        ladder = Ladder(rules, there)
        for trial in there:
            if trial.number in given_up:
                assert not ladder.may_go_on(trial)
                assert ladder.is_hopeless(trial, most)
            if ladder.is_hopeless(trial, most):
                given_up.add(trial.number)
    # And nobody is given up who could be promoted: the better ones would be behind as well.
    assert len(there) - len(given_up) == max(1, most // factor)


def test_nobody_is_hopeless_where_nobody_knows_how_many_come():
    trials = [a_trial(number, [float(number)]) for number in range(9)]
    assert Ladder(RULES, trials).hopeless(None) is None
    ended = Ladder(RULES, trials).hopeless(10)
    assert ended is not None
    assert ended.number == 0


# ---------------------------------------------------------------------------- whole studies


def _ladder(joined: JoinedStudy) -> Ladder | None:
    return Ladder.of(joined.file, joined.optuna_study.get_trials(deepcopy=False))


class Watch:
    """Looks at the study after every step: what is spent, and whether anybody waits in vain."""

    def __init__(self, joined: JoinedStudy, trials: int = 10**9, epochs: int = 10**9) -> None:
        self.joined, self.trials, self.epochs = joined, trials, epochs

    def __call__(self, answer: Asked | NextStep | None) -> None:
        trials = self.joined.optuna_study.get_trials(deepcopy=False)
        latest = {lineage_number(trial): trial for trial in trials}
        assert sum(len(epoch_records(trial)) for trial in latest.values()) <= self.epochs
        assert len(latest) <= self.trials
        if isinstance(answer, NextStep):
            self.nobody_waits_in_vain(answer, list(trials), latest)

    def nobody_waits_in_vain(
        self, answer: NextStep, trials: list[FrozenTrial], latest: dict[int, FrozenTrial]
    ) -> None:
        live = [trial for trial in latest.values() if not trial.state.is_finished()]
        if answer.step is BudgetStep.SPENT:
            assert [trial for trial in live if trial.state is not RUNNING] == []
            return
        running = [trial for trial in live if trial.state is RUNNING]
        assert running
        reserved = sum(trial.user_attrs["epochs_reserved"] for trial in running)
        others = sum(len(epoch_records(t)) for t in latest.values() if t not in running)
        if reserved + others < self.epochs:
            assert len(latest) == self.trials  # nothing can be begun
            for trial in live:
                if trial.state is WAITING:
                    done = len(epoch_records(trial))
                    assert done in (1, 2)
                    ahead, far = standing(trials, done, lineage_number(trial))
                    assert ahead >= far // self.joined.file.pruning.reduction_factor


def check_ends(simulation: Simulation, *, budget: bool = False) -> list[FrozenTrial]:
    """Check what became of all trials, and return them, each in its latest attempt."""
    joined = simulation.joined
    trials = joined.optuna_study.get_trials(deepcopy=False)
    latest = {lineage_number(trial): trial for trial in trials}
    assert {trial.state for trial in latest.values()} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(simulation.trained) == len(set(simulation.trained))  # none of it twice
    for lineage, trial in latest.items():
        records = epoch_records(trial)
        done = len(records)
        assert records == [simulation.measure(lineage, n + 1).as_dict() for n in range(done)]
        reason = trial.user_attrs.get("stop_reason")
        if done == 4:
            assert (trial.state, reason) == (TrialState.COMPLETE, None)
        elif simulation.overfits(lineage) and done == 2 and not never_waits(joined, trial):
            assert reason == "overfitting"
        else:
            assert reason in ({"hopeless", "budget"} if budget else {"hopeless"})
            if reason == "hopeless":
                assert done in (1, 2)
                assert not never_waits(joined, trial)
                ahead, far = standing(list(trials), done, lineage)
                assert ahead >= max(1, far // joined.file.pruning.reduction_factor)
    return list(latest.values())


TROUBLES = [(seed, 0.15 * (seed % 2), 0.3 * (seed % 3 > 0)) for seed in range(10)]


@pytest.mark.parametrize(("seed", "trouble", "overfitting"), TROUBLES)
def test_trials_are_exact(seed: int, trouble: float, overfitting: float):
    joined = promoting(open_memory(), budget={"trials": 9}, control_fraction=0.2 * (seed % 4 > 1))
    watch = Watch(joined, trials=9)
    simulation = Simulation(joined, seed, trouble=trouble, overfitting=overfitting, watch=watch)
    simulation.run()
    trials = check_ends(simulation)
    assert len(trials) == 9
    assert any(trial.state is TrialState.COMPLETE for trial in trials)


@pytest.mark.parametrize(("seed", "trouble", "overfitting"), TROUBLES)
def test_epochs_are_exact(seed: int, trouble: float, overfitting: float):
    joined = promoting(open_memory(), budget={"epochs": 23}, control_fraction=0.2 * (seed % 4 > 1))
    watch = Watch(joined, epochs=23)
    simulation = Simulation(joined, seed, trouble=trouble, overfitting=overfitting, watch=watch)
    simulation.run()
    trials = check_ends(simulation, budget=True)
    assert sum(len(epoch_records(trial)) for trial in trials) == 23
    assert len(simulation.trained) == 23


def test_a_database_says_the_same(storage: StudyStorage):
    joined = promoting(storage, budget={"trials": 6, "epochs": 14})
    watch = Watch(joined, 6, 14)
    simulation = Simulation(joined, 1, trouble=0.1, overfitting=0.2, watch=watch)
    simulation.run()
    check_ends(simulation, budget=True)


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_the_best_of_a_few_trains_to_the_end(trials: int):
    """Of fewer than the reduction factor, none is among the best third."""
    joined = promoting(open_memory(), budget={"trials": trials}, horizon=9, reduction_factor=3)
    simulation = Simulation(joined, 5)
    simulation.run()
    ends = joined.optuna_study.get_trials(deepcopy=False)
    first = min(ends, key=lambda t: (-simulation.measure(t.number, 1).metrics["best_f1"], t.number))
    for trial in ends:
        assert len(epoch_records(trial)) == (9 if trial.number == first.number else 1)
        reason = None if trial.number == first.number else "hopeless"
        assert trial.user_attrs.get("stop_reason") == reason


def test_the_hours_end_what_waits_with_what_it_has(sqlite: StudyStorage):
    joined = promoting(sqlite, budget={"hours": 1.0})
    rules = StoppingRules(joined)
    first, second = asked(joined), asked(joined)
    for one in (first, second):
        records = [measured(1, 50.0 - one.trial.number)]
        tell(joined, one, records[0])
        # One of one, and then of two: the first is no better half until the second is there.
        assert rules.after(one, records)[1] == PAUSED
    promoted = asked(joined)
    assert (promoted.trial.number, promoted.epochs_reserved) == (0, 2)
    before = datetime.now(UTC) - timedelta(hours=1.1)
    joined.optuna_study.set_user_attr("begun", before.isoformat())
    answer = ask(joined)
    assert answer.step is BudgetStep.WAIT
    records = [measured(1, 50.0), measured(2, 51.0)]
    tell(joined, promoted, records[1])
    assert rules.after(promoted, records)[1] == "budget"
    end(joined, promoted, records, "budget")
    last = asked(joined)
    assert (last.trial.number, last.epochs_reserved, last.stop_reason) == (1, 1, "budget")
    assert rules.reason(last, [measured(1, 49.0)]) == "budget"
    end(joined, last, [measured(1, 49.0)], "budget")
    assert ask(joined).step is BudgetStep.SPENT


# ---------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("how", ["dies", "is told to end"])
@pytest.mark.parametrize("when", ["before the record", "before go_on", "after go_on"])
def test_a_worker_that_ends_at_a_rung_loses_nothing(storage: StudyStorage, how: str, when: str):
    joined = promoting(storage, budget={"trials": 4})
    rules = StoppingRules(joined)
    other = asked(joined, worker="other")
    tell(joined, other, measured(1, 40.0))
    assert rules.after(other, [measured(1, 40.0)])[1] == PAUSED

    one = asked(joined, worker="one")
    assert (one.lineage, one.epochs_reserved) == (1, 1)
    if when != "before the record":
        tell(joined, one, measured(1, 50.0))
    if when == "after go_on":
        promoted = go_on(joined, one)
        assert promoted is not None
        assert (promoted.epochs_reserved, promoted.stop_reason) == (2, None)
    if how == "dies":
        release_trials(joined, "one")
    else:
        assert hand_back(joined, one.trial)

    again = asked(joined, worker="two")
    done = 0 if when == "before the record" else 1
    assert (again.lineage, again.seed, again.parameters) == (1, one.seed, one.parameters)
    assert (len(epoch_records(again.trial)), again.epochs_reserved) == (done, done + 1)
    records = [measured(1, 50.0)]
    if done == 0:
        tell(joined, again, records[0])
        promoted = go_on(joined, again)
        assert promoted is not None
        again = promoted
    records.append(measured(2, 52.0))
    tell(joined, again, records[1])
    assert rules.after(again, records)[1] == PAUSED
    so_far = spent(joined.optuna_study, ladder=_ladder(joined))
    assert (so_far.paused, so_far.waiting, so_far.running, so_far.epochs) == (2, 0, 0, 3)
    latest = joined.optuna_study.get_trials(deepcopy=False)[-1]
    assert [record["epoch"] for record in epoch_records(latest)] == [1, 2]


def test_one_between_rungs_goes_on_before_any_is_promoted(sqlite: StudyStorage):
    joined = promoting(sqlite, horizon=9, first_rung=3, budget={"trials": 8})
    rules = StoppingRules(joined)
    cut = asked(joined)
    tell(joined, cut, measured(1, 10.0))
    for score in (50.0, 40.0):
        one = asked(joined)
        records = [measured(epoch, score) for epoch in (1, 2, 3)]
        for record in records:
            tell(joined, one, record)
        assert rules.after(one, records)[1] == PAUSED
    hand_back(joined, cut.trial)
    again, promoted = asked(joined), asked(joined)
    assert (again.trial.number, again.epochs_reserved) == (0, 3)
    assert (promoted.trial.number, promoted.epochs_reserved) == (1, 6)


def test_what_is_decided_and_not_told_is_decided_again(sqlite: StudyStorage):
    """A worker dies after an epoch at a rung with which its trial overfits."""
    joined = promoting(sqlite, budget={"trials": 2})
    rules = StoppingRules(joined)
    one = asked(joined, worker="one")
    records = [measured(1, 50.0, 1.0), measured(2, 51.0, 1.5)]
    for record in records:
        tell(joined, one, record)
    release_trials(joined, "one")
    other = asked(joined)  # beside which it is the best
    tell(joined, other, measured(1, 10.0))
    assert rules.after(other, [measured(1, 10.0)])[1] == "hopeless"
    end(joined, other, [measured(1, 10.0)], "hopeless")
    again = asked(joined)
    assert again.lineage == 0
    assert rules.after(again, records)[1] == "overfitting"


def test_promotion_that_is_begun_again_is_the_same(
    sqlite: StudyStorage, monkeypatch: pytest.MonkeyPatch
):
    """An outage at its end: what was done is done, and is done again under another lock."""
    joined = promoting(sqlite, budget={"epochs": 4})
    rules = StoppingRules(joined)
    once = StudyStorage.locked
    twice = lambda self, name, work: (once(self, name, work), once(self, name, work))[1]  # noqa: E731
    first, second, _ = asked(joined), asked(joined), asked(joined)
    tell(joined, first, measured(1, 50.0))
    tell(joined, second, measured(1, 60.0))
    with monkeypatch.context() as patch:
        patch.setattr(StudyStorage, "locked", twice)
        # The last epoch there is, to the next rung, is its own and not spent already.
        promoted = go_on(joined, second)
        waiting = go_on(joined, first)
    assert promoted is not None
    assert promoted.epochs_reserved == 2
    assert waiting is None
    assert rules.after(promoted, [measured(1, 60.0)])[1] is None
    states = [trial.state for trial in joined.optuna_study.get_trials(deepcopy=False)]
    assert states == [WAITING, RUNNING, RUNNING]
    assert spent(joined.optuna_study, ladder=_ladder(joined)).reserved == 2


# ---------------------------------------------------------------------------- budgets


def test_what_is_reserved_may_come_back():
    """Trials that end early leave epochs for others, beside which more may be promoted."""
    trials = [
        a_trial(0, [70.0], state=RUNNING, epochs_reserved=5, **{BASELINE: "a"}),
        a_trial(1, [70.0], state=RUNNING, epochs_reserved=5, **{BASELINE: "b"}),
        a_trial(2, [60.0]),
        a_trial(3, [50.0]),
    ]
    study, budget = optuna.create_study(), Budget(epochs=12)
    so_far = spent(study, trials=trials, ladder=Ladder(RULES, trials))
    assert (so_far.epochs, so_far.reserved, so_far.paused) == (4, 8, 2)
    # All else is reserved; but eight more trials come if both baselines diverge.
    assert most_trials(so_far, budget, trials, RULES) == 4 + 8
    assert most_trials(so_far, Budget(epochs=12, trials=6), trials, RULES) == 6
    assert most_trials(so_far, Budget(hours=1), trials, RULES) is None
    step = next_step(study, budget, trials=trials, ladder=Ladder(RULES, trials))
    assert (step.step, step.resume) == (BudgetStep.WAIT, None)


def test_a_lowered_budget_does_not_wait_for_ever(sqlite: StudyStorage):
    joined = promoting(sqlite, horizon=9, first_rung=2, budget={"trials": 9})
    cut = asked(joined)
    tell(joined, cut, measured(1, 10.0))
    for one, score in zip([asked(joined) for _ in range(3)], (50.0, 40.0, 30.0), strict=True):
        records = [measured(epoch, score) for epoch in (1, 2)]
        for record in records:
            tell(joined, one, record)
        assert StoppingRules(joined).after(one, records)[1] == PAUSED
    hand_back(joined, cut.trial)
    promoting(sqlite, horizon=9, first_rung=2, budget={"trials": 2})
    ends = 0
    while not isinstance(answer := ask(joined), NextStep):
        records = [measured(r["epoch"], r["best_f1"]) for r in epoch_records(answer.trial)]
        assert len(records) == 2
        end(joined, answer, records, answer.stop_reason or "budget")
        ends += 1
    assert (answer.step, ends) == (BudgetStep.SPENT, 2)


def test_finals_come_when_nobody_waits_any_more(sqlite: StudyStorage):
    joined = promoting(sqlite, budget={"trials": 6}, evaluation={"seeds": 2, "finalists": 2})
    simulation = Simulation(joined, 3, workers=2)
    simulation.run()
    trials = joined.optuna_study.get_trials(deepcopy=False)
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    repeats = [trial for trial in trials if REPEAT_OF in trial.user_attrs]
    assert (len(trials), len(repeats)) == (6, 2)
    assert [len(epoch_records(trial)) for trial in repeats] == [4, 4]
    searched = [trial for trial in trials if REPEAT_OF not in trial.user_attrs]
    best = sorted(searched, key=lambda t: (-t.user_attrs["best_f1"], t.number))[:2]
    assert {t.user_attrs[REPEAT_OF] for t in repeats} == {t.number for t in best}


class NoLauncher:
    """A launcher none of whose workers dies."""

    def poll(self) -> list[Any]:
        return []


def test_failures_do_not_end_a_study_that_gets_somewhere(
    sqlite: StudyStorage, capsys: pytest.CaptureFixture[str]
):
    joined = promoting(sqlite, budget={"trials": 20})
    some = [asked(joined) for _ in range(7)]
    for number, one in enumerate(some):
        if number < 4:
            tell(joined, one, measured(1, 40.0 + number))
            hand_back(joined, one.trial)
        else:
            fail(joined, one.trial, "oom", "no memory")
    best = asked(joined)
    assert best.trial.number == 3
    hand_back(joined, best.trial)
    teller = printing._Teller(joined, cast("Any", NoLauncher()), printing.console())
    now = teller.tell(live=False)
    assert not teller.over  # whoever watches would end the workers
    assert now is not None
    assert (now.spent.failed, now.spent.paused, now.spent.waiting) == (3, 4, 0)
    assert headline(now) == "0 of 20 trials, 0 pruned, 4 waiting at a rung, 3 failed"
    assert now.as_dict()["at_a_rung"] == [
        {"number": number, "epoch": 1, "epochs": 4, "f1": 40.0 + number} for number in (3, 2, 1, 0)
    ]
    teller.tell(live=False)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if "rung" in line] == [
        f"trial {number} waits at a rung, epoch 1 of 4: best F1 {40 + number}.00"
        for number in (3, 2, 1, 0)
    ]


# ---------------------------------------------------------------------------- what samplers see


def test_samplers_see_what_waits_as_ended(sqlite: StudyStorage):
    joined = promoting(sqlite, budget={"trials": 9})
    waits, runs = asked(joined), asked(joined)
    tell(joined, waits, measured(1, 30.0, 0.7))
    assert go_on(joined, waits) is None
    tell(joined, runs, measured(1, 60.0, 0.9))
    new = asked(joined)
    trials = joined.optuna_study.get_trials(deepcopy=False)
    before = [(t.state, t.values, dict(t.user_attrs), dict(t.system_attrs)) for t in trials]
    seen = [proposing._as_far(trial, None) for trial in trials]
    # All are unfinished; those with a result seem to have ended with it.
    assert [(t.state, t.values) for t in seen] == [
        (TrialState.PRUNED, [30.0]),
        (TrialState.PRUNED, [60.0]),
        (RUNNING, None),
    ]
    assert [t.intermediate_values for t in seen] == [{1: -0.7}, {1: -0.9}, {}]
    assert [t.params for t in seen] == [t.params for t in trials]
    assert seen[2].number == new.trial.number
    after = [(t.state, t.values, dict(t.user_attrs), dict(t.system_attrs)) for t in trials]
    assert after == before
    assert [t.state for t in trials] == [WAITING, RUNNING, RUNNING]


def test_samplers_see_what_is_forgotten():
    trial = a_trial(0, [40.0, 60.0])
    for record, drop in zip(trial.user_attrs["epochs"], (1.0, 7.5), strict=True):
        record["old_task_drop"] = drop
    assert proposing._as_far(trial, 5.0).constraints == {"max_forgetting": 2.5}
    assert proposing._as_far(trial, None).constraints == {}
    assert FORGETTING not in trial.system_attrs


# ---------------------------------------------------------------------------- study files


def with_pruning(**sections: Any) -> StudyFile:
    return study_file(**{"pruning": {"across": "promote"}, **sections})


RATE = {
    "start": {"choices": ["base", "v1"]},
    "learning_rate": {"low": 1e-5, "high": 1e-3},
}


@pytest.mark.parametrize(
    "epochs",
    [
        {"low": 1, "high": 4},
        {"choices": [2, 4]},
        {"value": 4, "when": {"start": "v1"}},
    ],
)
def test_a_range_of_epochs_is_refused(epochs: dict[str, Any]):
    search = {**RATE, "epochs": epochs}
    with pytest.raises(
        (ValidationError, InputError), match=r"give search[.]epochs one value"
    ) as told:
        StudyFile.from_dict(json.loads(with_json(search)))
    assert len(str(told.value).splitlines()) == 1


def with_json(search: dict[str, Any], **sections: Any) -> str:
    return json.dumps({**SECTIONS, "search": search, "pruning": {"across": "promote"}, **sections})


def test_one_value_of_epochs_is_the_horizon():
    given_there = Rules.of(with_pruning(search={**RATE, "epochs": {"value": 10}}))
    given_here = Rules.of(with_pruning(search=RATE, training={"epochs": 4}))
    assert given_there is not None
    assert given_here is not None
    assert (given_there.horizon, given_there.rungs) == (10, (1, 6))
    assert (given_here.horizon, given_here.rungs) == (4, (1,))
    assert Rules.of(study_file()) is None


@pytest.mark.parametrize(
    ("epochs", "across"),
    [
        (None, "promote"),
        ({"value": 4}, "promote"),
        ({"choices": [4]}, "promote"),
        ({"low": 1, "high": 4}, "median"),
        ({"choices": [2, 4]}, "median"),
        ({"value": 4, "when": {"start": "v1"}}, "median"),
    ],
)
def test_studies_promote_where_nothing_else_is_said_and_all_trials_have_one_horizon(
    epochs: dict[str, Any] | None, across: str
):
    search = RATE if epochs is None else {**RATE, "epochs": epochs}
    file = study_file(search=search, pruning={"patience": 2})
    assert file.pruning.across == across
    assert (Rules.of(file) is not None) == (across == "promote")
    stored = StudyFile.model_validate_json(file.model_dump_json(by_alias=True))
    assert stored == file
    assert study_file(search=search, pruning={"across": "none"}).pruning.across == "none"


def test_two_objectives_are_refused():
    study = {"name": "demo", "seed": 3, "objectives": ["best_f1", "old_task_f1"]}
    evaluation = {"old_task": "validation.json"}
    with pytest.raises(InputError, match="'promote' needs one objective") as told:
        StudyFile.from_dict(json.loads(with_json(RATE, study=study, evaluation=evaluation)))
    assert len(str(told.value).splitlines()) == 1
