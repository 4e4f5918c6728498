"""How sure a study's answer is: which differences are real, and what its best F1 is worth."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qa_hpo.errors import ArtifactError, InputError
from qa_hpo.results.leaderboard import Leaderboard, Row, best_of_starts, competes, contenders
from qa_hpo.results.significance import (
    Difference,
    Rescored,
    difference,
    probability_best,
    rescored,
)
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.keeping import read_answers
from qa_hpo.squad.answered import Answered

__all__ = ["Certainty", "Compared", "certainty", "compare", "compare_with_baseline"]

_LEADING = 100  # trials further behind have no part in who is best, and cost time


@dataclass(frozen=True)
class Compared:
    """Two trials on the same questions.

    Attributes:
        first: One trial.
        second: The other.
        difference: The first one's F1 less the second one's, in points, each at its own threshold.
    """

    first: Row
    second: Row
    difference: Difference

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as ``qa-hpo compare --json`` prints it."""
        return {
            "first": {"number": self.first.number, "best_f1": self.first.best_f1},
            "second": {"number": self.second.number, "best_f1": self.second.best_f1},
            "difference": self.difference.mean,
            "interval": [self.difference.low, self.difference.high],
            "p_better": self.difference.p_better,
        }


@dataclass(frozen=True)
class Certainty:
    """What can be said of a study's winner.

    Attributes:
        probability_best: For each leading trial whose answers are kept, by its number, the
            probability that it is truly the best of them; for the best of each start and the
            baseline as well.
        against_baseline: The winner and the baseline, where there is one and it is another trial.
        starts: The best trial of the winner's start and the best one of each other start, see
            `best_of_starts`; where finals decided, the former may be another trial than the winner.
        rescored: The best F1 as it was chosen, and as it holds on articles that did not choose it.
    """

    probability_best: Mapping[int, float]
    against_baseline: Compared | None
    starts: tuple[Compared, ...]
    rescored: Rescored | None


def certainty(joined: JoinedStudy, board: Leaderboard) -> Certainty | None:
    """Return how sure a study's winner is.

    Returns:
        None where nothing can be said: no trial has finished, the validation questions are of one
        article, or the winner's answers are not kept.

    Raises:
        ArtifactError: The artifact store refuses.
    """
    # Who cannot win for having forgotten too much has no part in who is best.
    rows = contenders(board.trials, joined.file.constraints.max_forgetting)
    wanted = {row.number: row for row in rows[:_LEADING]}
    best = best_of_starts(rows)
    for row in (*best.values(), board.baseline):
        if row is not None and competes(row):
            wanted.setdefault(row.number, row)
    answers = _answers(joined, list(wanted))
    leading = [number for number in wanted if number in answers]
    if board.winner is None or board.winner.number not in answers:
        return None
    f1 = np.array([answers[number].f1 for number in leading])
    groups = answers[leading[0]].groups
    probabilities = probability_best(f1, groups)
    if probabilities is None:
        return None
    own = best.pop(str(board.winner.params["start"]))
    return Certainty(
        dict(zip(leading, probabilities.tolist(), strict=True)),
        _compared(board.winner, board.baseline, answers),
        tuple(
            found
            for other in best.values()
            if (found := _compared(own, other, answers)) is not None
        ),
        rescored([answers[number] for number in leading]),
    )


def compare_with_baseline(joined: JoinedStudy, board: Leaderboard) -> Compared | None:
    """Compare winner and baseline; None where they are one trial, or answers are missing."""
    winner, baseline = board.winner, board.baseline
    if winner is None or baseline is None or winner.number == baseline.number:
        return None
    with contextlib.suppress(InputError, ArtifactError):
        return compare(joined, board, winner.number, baseline.number)
    return None


def compare(joined: JoinedStudy, board: Leaderboard, first: int, second: int) -> Compared:
    """Compare two trials on the validation questions, article by article.

    Raises:
        InputError: There is no such finished trial, its answers are not kept, or the questions
            are of one article.
        ArtifactError: The artifact store refuses.
    """
    rows = {row.number: row for row in board.trials if competes(row)}
    for number in (first, second):
        if number not in rows:
            valid = ", ".join(map(str, sorted(rows))) or "none yet"
            raise InputError(f"{number} is not a finished trial; valid: {valid}")
    if first == second:
        raise InputError(f"{first} and {second} are one trial: give another one's number")
    answers = _answers(joined, [first, second])
    for number in (first, second):
        if number not in answers:
            raise InputError(f"trial {number}: its answers are not kept")
    found = difference(answers[first].f1, answers[second].f1, answers[first].groups)
    if found is None:
        raise InputError("the validation questions are of one article: nothing to compare by")
    return Compared(rows[first], rows[second], found)


def _compared(first: Row, second: Row | None, answers: Mapping[int, Answered]) -> Compared | None:
    if second is None or second.number == first.number:
        return None
    if not {first.number, second.number} <= answers.keys():
        return None
    one, other = answers[first.number], answers[second.number]
    found = difference(one.f1, other.f1, one.groups)
    return None if found is None else Compared(first, second, found)


def _answers(joined: JoinedStudy, numbers: list[int]) -> dict[int, Answered]:
    trials = {trial.number: trial for trial in joined.optuna_study.get_trials(deepcopy=False)}
    found = {number: read_answers(joined, trials[number]) for number in numbers}
    return {number: answered for number, answered in found.items() if answered is not None}
