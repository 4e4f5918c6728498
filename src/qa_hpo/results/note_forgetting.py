"""What a study's note tells of the old task: what is forgotten, what may be, and the front."""

from collections.abc import Sequence

from qa_hpo.results.leaderboard import Row, forgets_too_much
from qa_hpo.results.note_words import escaped, table, trial_link, two_digits
from qa_hpo.results.pareto import front
from qa_hpo.search.joined import JoinedStudy

__all__ = ["bound", "objectives", "old_task", "pareto_front"]

_MOST = 20  # trials that a note lists


def old_task(f1: float | None, drop: float | None) -> list[list[str]]:
    """Return the line of a table on a trial's F1 on the old task, if that was measured."""
    if f1 is None:
        return []
    less = "" if drop is None else f", {drop:.2f} less than its start"
    return [["on the old task, at the same threshold", f"{f1:.2f}{less}"]]


def bound(joined: JoinedStudy, winner: Row) -> list[str]:
    """Return whether the winner keeps to ``constraints.max_forgetting``, if there is one."""
    most = joined.file.constraints.max_forgetting
    if most is None:
        return []
    allowed = f"at most {most:g} points of F1 on the old task may be forgotten"
    if forgets_too_much(winner, most):
        return [
            f"**No trial keeps to that {allowed}.** Trial {winner.number} leads because it forgets "
            f"the least, {winner.old_task_drop:.2f} points."
        ]
    return [f"It leads those that keep to the study's bound: {allowed}."]


def objectives(joined: JoinedStudy) -> list[str]:
    """Return what the objectives are, and the intermediate values if there are any."""
    best = (
        "the best F1 in percent: that of a trial's best epoch, at the no-answer threshold that is "
        "tuned on the validation questions."
    )
    names = joined.file.study.objectives
    if len(names) == 1:
        return [
            f"- The **objective** is {best}",
            "- **Intermediate values** are *minus* the validation loss after each epoch: -0.43 is "
            "a loss of 0.43 nats per window. The higher, the better.",
        ]
    meaning = {
        "best_f1": best,
        "old_task_f1": "the F1 of the same checkpoint on the old task, at the same threshold.",
    }
    return [
        "- There are two **objectives**, both to be high.",
        *(f"- Objective {n}, `{name}`, is {meaning[name]}" for n, name in enumerate(names)),
        "- There are no intermediate values: Optuna takes none beside two objectives.",
    ]


def pareto_front(joined: JoinedStudy, rows: Sequence[Row]) -> list[str]:
    """Return which trials are on the front, in a study with two objectives.

    Args:
        joined: The study.
        rows: The trials that compete, the winner first.
    """
    if len(joined.file.study.objectives) == 1:
        return []
    found = front(rows)
    if not found:
        return []
    text = (
        "No other trial is better in both best F1 and old-task F1 than each of these. "
        "`qa-hpo export study.toml OUT --prefer RULE` chooses one: `best_f1`, `old_task_f1`, or "
        "`forgetting<=X`, the best that forgets at most X points."
    )
    lines = [
        [
            trial_link(joined, row.number),
            escaped(row.params["start"]),
            two_digits(row.best_f1),
            two_digits(row.old_task_f1),
            two_digits(row.old_task_drop),
        ]
        for row in found[:_MOST]
    ]
    more = [] if len(found) <= _MOST else [f"And {len(found) - _MOST} more."]
    heads = ["trial", "start", "best F1 (%)", "old-task F1 (%)", "forgotten (points)"]
    return ["## Best F1 and old-task F1", text, table(heads, lines), *more]
