"""Which trial is taken home: what can be asked for besides the winner, and who may be chosen.

A model that learns a new task forgets some of the old one, and how much of that is too much, nobody
knows before the results are there. So a trial can be chosen by another rule when it is exported:

- ``best_f1``: the leaderboard's winner.
- ``old_task_f1``: the trial that still knows most of the old task. Trials that forget more than
  ``constraints.max_forgetting`` allows are chosen only where all do.
- ``forgetting<=X``: the best of the trials that forget at most X points of F1, whatever
  ``constraints.max_forgetting`` says; the best as the leaderboard has it.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from qa_hpo.errors import InputError
from qa_hpo.search.finalists import finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.trials import excess, forgotten

__all__ = [
    "RULES",
    "Rule",
    "candidates",
    "choose",
    "non_dominated",
    "parse_rule",
    "trials_on_front",
]

RULES = "best_f1, old_task_f1 or forgetting<=X (X in points of F1, at least 0)"
"""What a rule may be, in words."""


@dataclass(frozen=True)
class Rule:
    """By what a trial is chosen.

    Attributes:
        name: ``best_f1``, ``old_task_f1`` or ``forgetting``.
        most: For ``forgetting``, the points of F1 that may be forgotten.
    """

    name: str
    most: float = math.inf

    def __str__(self) -> str:
        return f"{self.name}<={self.most:g}" if self.name == "forgetting" else self.name


def parse_rule(text: str) -> Rule:
    """Return the rule that ``text`` is.

    Raises:
        InputError: It is none.
    """
    if text in {"best_f1", "old_task_f1"}:
        return Rule(text)
    found = re.fullmatch(r"forgetting\s*<=\s*(\S+)", text)
    try:
        most = float(found[1]) if found else math.nan
    except ValueError:
        most = math.nan
    if not 0 <= most < math.inf:
        raise InputError(f"--prefer {text!r}: valid: {RULES}")
    return Rule("forgetting", most)


def choose(joined: JoinedStudy, rule: Rule) -> FrozenTrial | None:
    """Return the trial that a rule chooses; None where no trial has finished.

    Among equals, the one that ranks higher on the leaderboard is chosen.

    Raises:
        InputError: The study measures no old task, or no trial forgets so little.
    """
    name = joined.file.study.name
    if rule.name != "best_f1" and joined.file.evaluation.old_task is None:
        raise InputError(
            f"--prefer {rule}: study {name!r} has no evaluation.old_task, so that what is "
            "forgotten was not measured; valid: best_f1"
        )
    if rule.name == "forgetting":
        return _among_those_that_keep(finished_trials(joined, constrained=False), rule)
    ranked = finished_trials(joined)
    if not ranked or rule.name == "best_f1":
        return ranked[0] if ranked else None
    allowed = [trial for trial in ranked if not excess(trial)] or ranked
    return max(allowed, key=_old_task_f1)  # the first of equals


def _among_those_that_keep(ranked: Sequence[FrozenTrial], rule: Rule) -> FrozenTrial | None:
    keeping = [trial for trial in ranked if forgotten(trial) <= rule.most]
    if ranked and not keeping:
        least = min(ranked, key=forgotten)
        raise InputError(
            f"--prefer {rule}: no finished trial forgets so little; the least is "
            f"{forgotten(least):.2f} points of F1, of trial {least.number}"
        )
    return keeping[0] if keeping else None


def candidates(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that a rule may choose, whatever its bound.

    They are on a front: that of best F1 and old-task F1, or that of best F1 and little forgotten,
    which differ where starts do; of all trials, or of those that forget no more than the study
    allows. Whoever has been beaten in both stays beaten, so that a trial which is none any more
    will never be one again. Of n trials whose two scores have nothing to do with each other, about
    ln n are on a front; the more the two are at odds, the more there are, and n at most.

    Args:
        trials: The trials that compete.
    """
    allowed = [trial for trial in trials if not excess(trial)]
    return {
        number
        for some, other in itertools.product(
            (trials, allowed), (_old_task_f1, lambda trial: -forgotten(trial))
        )
        for number in _front(some, other)
    }


def trials_on_front(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials of which none other is better in best F1 and old-task F1.

    Args:
        trials: The trials that compete.
    """
    return _front(trials, _old_task_f1)


def _front(trials: Sequence[FrozenTrial], other: Callable[[FrozenTrial], float]) -> set[int]:
    measured = [t for t in trials if t.user_attrs.get("old_task_f1") is not None]
    points = [(float(trial.user_attrs["best_f1"]), other(trial)) for trial in measured]
    found = non_dominated(points)
    return {trial.number for trial, on in zip(measured, found, strict=True) if on}


def non_dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return of each point whether none other is as high in both numbers and higher in one.

    Equal points are on the front together.
    """
    found = [False] * len(points)
    order = sorted(range(len(points)), key=lambda index: points[index], reverse=True)
    highest = -math.inf  # second number of the points whose first one is higher
    for _, group in itertools.groupby(order, key=lambda index: points[index][0]):
        own = list(group)
        top = points[own[0]][1]
        if top > highest:
            highest = top
            for index in own:
                found[index] = points[index][1] == top
    return found


def _old_task_f1(trial: FrozenTrial) -> float:
    measured = trial.user_attrs.get("old_task_f1")
    return -math.inf if measured is None else float(measured)
