"""How sure a study's winner is, on studies with answers of a known order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_studies import MadeStudy, made_answers
from optuna.trial import TrialState

from cli_helpers import run_cli
from qa_hpo.errors import InputError
from qa_hpo.results.certainty import Certainty, Compared, certainty, compare
from qa_hpo.results.leaderboard import leaderboard
from qa_hpo.search.trials import BASELINE, REPEAT_OF
from qa_hpo.squad.answered import Answered

# 12 articles of 10 to 21 questions, in no order.
GROUPS = np.random.default_rng(1).permutation(np.repeat(np.arange(12), np.arange(10, 22)))
HARDNESS = np.random.default_rng(2).random(len(GROUPS))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[MadeStudy]:
    study = MadeStudy(tmp_path)
    yield study
    study.close()


def scores(quality: float, seed: int) -> np.ndarray:
    """F1 of each question: the better the trial, the higher, but for some luck."""
    luck = np.random.default_rng(seed).normal(0, 0.1, len(GROUPS))
    return np.clip(quality - 0.3 * HARDNESS + luck, 0, 1)


def answers(quality: float, seed: int) -> Answered:
    return made_answers(scores(quality, seed), GROUPS)


def mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    """In points, question by question."""
    total = 0.0
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        total += 100 * (one - other)
    return total / len(first)


def sure_of(made: MadeStudy) -> Certainty:
    found = certainty(made.joined, leaderboard(made.joined))
    assert found is not None
    return found


def numbers(pair: Compared | None) -> tuple[int, int]:
    assert pair is not None
    return pair.first.number, pair.second.number


# ---------------------------------------------------------------------------- the winner


def test_how_probable_it_is_of_each_trial_that_it_is_the_best(made: MadeStudy):
    for seed, quality in enumerate([0.3, 0.7, 0.5, 0.698, 0.6]):
        made.add(answers=answers(quality, seed))
    made.add(f1=[1.0])  # of an earlier version: its answers are not kept
    made.add(state=TrialState.FAIL, f1=[])
    probable = sure_of(made).probability_best
    assert set(probable) == {0, 1, 2, 3, 4}
    assert sum(probable.values()) == pytest.approx(1)
    means = {number: scores(q, number).mean() for number, q in ((1, 0.7), (3, 0.698))}
    first, second = sorted(means, key=lambda number: -means[number])
    assert probable[first] >= probable[second] > 0.1
    assert probable[first] + probable[second] > 0.999
    assert probable[0] == probable[2] == 0


def test_trials_with_the_same_answers_share_their_probability(made: MadeStudy):
    for _ in range(2):
        made.add(answers=answers(0.6, 1))
    made.add(answers=answers(0.2, 2))
    assert sure_of(made).probability_best == {0: 0.5, 1: 0.5, 2: 0.0}


def test_the_winner_and_the_baseline(made: MadeStudy):
    made.add(answers=answers(0.5, 0), start="v1")
    made.add(answers=answers(0.4, 1), **{BASELINE: "notebook"})
    made.add(answers=answers(0.6, 2), start="v1")
    made.add(answers=answers(0.3, 3), **{BASELINE: "another"})
    pair = sure_of(made).against_baseline
    assert numbers(pair) == (2, 1)
    assert pair is not None
    expected = mean_difference(scores(0.6, 2), scores(0.4, 1))
    assert pair.difference.mean == pytest.approx(expected)
    assert 10 < pair.difference.low < expected < pair.difference.high
    assert pair.difference.p_better == 1


def test_a_baseline_that_wins_or_failed_or_has_no_answers_is_not_compared(made: MadeStudy):
    made.add(answers=answers(0.6, 0), **{BASELINE: "notebook"})
    made.add(answers=answers(0.5, 1))
    assert sure_of(made).against_baseline is None
    for name, baseline in (("failed", {"state": TrialState.FAIL, "f1": []}), ("old", {})):
        study = MadeStudy(made.folder, made.url, study={"name": name})
        study.add(**baseline, **{BASELINE: "notebook"})
        study.add(answers=answers(0.9, 1))
        found = sure_of(study)
        study.close()
        assert found.against_baseline is None
        assert list(found.probability_best) == [1]


def test_the_best_trial_of_the_winners_start_beside_that_of_each_other(made: MadeStudy):
    given = [(0.5, "base"), (0.45, "base"), (0.6, "v1"), (0.7, "v1"), (0.55, "v2"), (0.4, "v2")]
    for seed, (quality, start) in enumerate(given):
        made.add(answers=answers(quality, seed), start=start)
    made.add(state=TrialState.FAIL, f1=[], start="v2")
    pairs = sure_of(made).starts
    assert [numbers(pair) for pair in pairs] == [(3, 4), (3, 0)]
    for pair, (quality, seed) in zip(pairs, [(0.55, 4), (0.5, 0)], strict=True):
        expected = mean_difference(scores(0.7, 3), scores(quality, seed))
        assert pair.difference.mean == pytest.approx(expected)


def test_where_finals_decided_the_best_of_a_start_is_that_of_its_f1(made: MadeStudy):
    """And not the one that comes first, by the mean over seeds."""
    study = MadeStudy(made.folder, made.url, study={"name": "finals"},
                      evaluation={"seeds": 2, "finalists": 2})  # fmt: skip
    lucky = study.add(answers=answers(0.8, 0), start="v1")
    steady = study.add(answers=answers(0.75, 1), start="v1")
    other = study.add(answers=answers(0.5, 2))
    study.add(answers=answers(0.4, 3), start="v1", **{REPEAT_OF: lucky})
    again = study.add(answers=answers(0.74, 4), start="v1", **{REPEAT_OF: steady})
    winner = leaderboard(study.joined).winner
    pairs = sure_of(study).starts
    study.close()
    assert winner is not None
    assert winner.number in (steady, again)
    assert [numbers(pair) for pair in pairs] == [(lucky, other)]


def test_a_start_whose_best_trial_has_no_answers_is_left_out(made: MadeStudy):
    made.add(answers=answers(0.9, 0))
    made.add(f1=[50.0], start="v1")
    made.add(answers=answers(0.4, 2), start="v2")
    assert [numbers(pair) for pair in sure_of(made).starts] == [(0, 2)]


def test_a_winner_that_is_ahead_on_every_question_is_worth_what_was_measured(made: MadeStudy):
    best = scores(0.6, 1)
    for behind in (0.2, 0.0, 0.1):
        made.add(answers=made_answers(np.clip(best - behind, 0, 1), GROUPS))
    found = sure_of(made).rescored
    assert found is not None
    assert found.raw == pytest.approx(100 * best.mean())
    assert found.honest == pytest.approx(found.raw)


def test_luck_among_many_equals_is_taken_off(made: MadeStudy):
    """No trial is better than another: what the best one has above the mean is luck."""
    drawn = [np.random.default_rng(seed).random(len(GROUPS)) for seed in range(20)]
    for one in drawn:
        made.add(answers=made_answers(one, GROUPS))
    found = sure_of(made).rescored
    assert found is not None
    means = [100 * one.mean() for one in drawn]
    assert found.raw == pytest.approx(max(means))
    assert found.optimism > 0.5 * (max(means) - np.mean(means))


def test_of_very_many_trials_the_leading_ones_with_the_winner_and_the_baseline(made: MadeStudy):
    """Those far behind cost time, but for the baseline and the best of a start."""
    qualities = np.linspace(0.4, 0.6, 104)  # the later the better
    baseline = made.add(answers=answers(0.2, 0), **{BASELINE: "notebook"})
    best_of_v1 = made.add(answers=answers(0.3, 1), start="v1")
    worst_of_v1 = made.add(answers=answers(0.25, 2), start="v1")
    for seed, quality in enumerate(qualities):
        base = np.full(len(GROUPS), quality)  # no luck, so that the order is known
        base[seed] += 0.01
        made.add(answers=made_answers(base, GROUPS))
    found = sure_of(made)
    newest = range(worst_of_v1 + 5, worst_of_v1 + 105)
    assert set(found.probability_best) == {*newest, baseline, best_of_v1}
    assert max(found.probability_best, key=lambda n: found.probability_best[n]) == newest[-1]
    assert numbers(found.against_baseline) == (newest[-1], baseline)
    assert [numbers(pair) for pair in found.starts] == [(newest[-1], best_of_v1)]
    assert found.rescored is not None
    assert found.rescored.raw == pytest.approx(100 * 0.6 + 1 / len(GROUPS))


# ---------------------------------------------------------------------------- nothing to say


def test_of_a_study_without_a_finished_trial_nothing_is_said(made: MadeStudy):
    assert certainty(made.joined, leaderboard(made.joined)) is None
    made.add(state=TrialState.FAIL, f1=[])
    made.add(state=TrialState.RUNNING, f1=[])
    assert certainty(made.joined, leaderboard(made.joined)) is None


def test_of_answers_that_were_not_kept_or_are_gone_nothing_is_said(made: MadeStudy):
    made.add(f1=[50.0])
    made.add(f1=[60.0])
    assert certainty(made.joined, leaderboard(made.joined)) is None
    winner = made.add(answers=answers(0.9, 0))
    assert sure_of(made).probability_best == {winner: 1.0}
    made.store.remove(made.store.keys(made.joined.uid))
    assert certainty(made.joined, leaderboard(made.joined)) is None


def test_of_a_winner_whose_answers_are_not_kept_nothing_is_said(made: MadeStudy):
    made.add(answers=answers(0.5, 0))
    made.add(f1=[99.0])
    assert certainty(made.joined, leaderboard(made.joined)) is None


def test_with_one_article_nothing_is_said(made: MadeStudy):
    for quality in (0.5, 0.6):
        made.add(answers=made_answers([quality, 0.2, 0.3], [4, 4, 4]))
    board = leaderboard(made.joined)
    assert certainty(made.joined, board) is None
    with pytest.raises(InputError, match="are of one article: nothing to compare by"):
        compare(made.joined, board, 0, 1)


# ---------------------------------------------------------------------------- two trials


def test_two_trials_compared(made: MadeStudy):
    for seed, quality in enumerate([0.5, 0.52]):
        made.add(answers=answers(quality, seed))
    board = leaderboard(made.joined)
    pair = compare(made.joined, board, 0, 1)
    assert numbers(pair) == (0, 1)
    expected = mean_difference(scores(0.5, 0), scores(0.52, 1))
    assert pair.difference.mean == pytest.approx(expected)
    assert pair.difference.low < expected < pair.difference.high
    back = compare(made.joined, board, 1, 0).difference
    assert back.mean == pytest.approx(-expected)
    assert back.p_better == pytest.approx(1 - pair.difference.p_better)
    with pytest.raises(InputError, match="0 and 0 are one trial"):
        compare(made.joined, board, 0, 0)


@pytest.mark.parametrize("pair", [(7, 0), (0, 7), (3, 0), (0, 4), (-1, 0)])
def test_unknown_and_unfinished_trials_are_refused_with_the_valid_ones(
    made: MadeStudy, pair: tuple[int, int]
):
    for seed in range(3):
        made.add(answers=answers(0.5, seed))
    made.add(state=TrialState.FAIL, f1=[])
    made.add(state=TrialState.RUNNING, f1=[])
    with pytest.raises(InputError) as raised:
        compare(made.joined, leaderboard(made.joined), *pair)
    (wrong,) = {*pair} - {0}
    assert str(raised.value) == f"{wrong} is not a finished trial; valid: 0, 1, 2"


def test_where_none_has_finished_none_is_valid(made: MadeStudy):
    with pytest.raises(InputError, match=r"^0 is not a finished trial; valid: none yet$"):
        compare(made.joined, leaderboard(made.joined), 0, 1)


def test_a_trial_without_answers_is_refused(made: MadeStudy):
    made.add(answers=answers(0.5, 0))
    made.add(f1=[60.0])
    with pytest.raises(InputError, match=r"^trial 1: its answers are not kept$"):
        compare(made.joined, leaderboard(made.joined), 0, 1)


def test_runs_of_a_configuration_with_other_seeds_can_be_compared(made: MadeStudy):
    first = made.add(answers=answers(0.5, 0))
    again = made.add(answers=answers(0.5, 1), **{REPEAT_OF: first})
    pair = compare(made.joined, leaderboard(made.joined), again, first)
    assert pair.difference.mean == pytest.approx(mean_difference(scores(0.5, 1), scores(0.5, 0)))


def test_the_command_compares(made: MadeStudy):
    for seed, quality in enumerate([0.5, 0.6]):
        made.add(answers=answers(quality, seed), start="v1")
    pair = compare(made.joined, leaderboard(made.joined), 1, 0).difference
    ended = run_cli("compare", "made", "1", "0", "--storage", made.url, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json() == {
        "first": {"number": 1, "best_f1": pytest.approx(100 * scores(0.6, 1).mean())},
        "second": {"number": 0, "best_f1": pytest.approx(100 * scores(0.5, 0).mean())},
        "difference": pair.mean,
        "interval": [pair.low, pair.high],
        "p_better": pair.p_better,
    }
    ended = run_cli("compare", "made", "1", "0", "--storage", made.url)
    assert (ended.code, ended.err) == (0, "")
    one, other, line, chosen = ended.out.splitlines()
    assert one.startswith(f"trial 1: best F1 {100 * scores(0.6, 1).mean():.2f} (start v1, ")
    assert other.startswith(f"trial 0: best F1 {100 * scores(0.5, 0).mean():.2f} (start v1, ")
    assert line.startswith(f"difference {mean_difference(scores(0.6, 1), scores(0.5, 0)):+.2f}, ")
    assert "trial 1 scores higher with probability 1.000" in line
    flatters = "trial 1, the winner, was chosen for its score: the difference flatters it"
    assert chosen == flatters
    swapped = run_cli("compare", "made", "0", "1", "--storage", made.url)
    assert swapped.out.splitlines()[3:] == [flatters]
    made.add(answers=answers(0.7, 2))  # a new winner, so that the other two were not chosen
    ended = run_cli("compare", "made", "1", "0", "--storage", made.url)
    assert ended.out.splitlines() == [one, other, line]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("made", "0", "9"), "error: 9 is not a finished trial; valid: 0, 1"),
        (("made", "0", "1"), "error: trial 1: its answers are not kept"),
        (("other", "0", "1"), "no study is called 'other'"),
    ],
)
def test_what_the_command_refuses_has_exit_code_2(
    made: MadeStudy, arguments: tuple[str, ...], error: str
):
    made.add(answers=answers(0.5, 0))
    made.add(f1=[60.0])
    ended = run_cli("compare", *arguments, "--storage", made.url, "--json")
    assert (ended.code, ended.out) == (2, "")
    assert error in ended.err
    assert len(ended.err.splitlines()) == 1
