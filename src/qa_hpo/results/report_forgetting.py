"""What a report tells of the old task: what is forgotten, what may be, and the front."""

from qa_hpo.results.drawing import count
from qa_hpo.results.leaderboard import Row, forgets_too_much
from qa_hpo.results.pareto import front, start_f1
from qa_hpo.results.report_data import Report

__all__ = ["bound", "forgotten", "on_the_front"]


def forgotten(report: Report, winner: Row) -> str:
    """Return what became of the task that the winner's start had learnt before."""
    old_task = report.file.evaluation.old_task
    if old_task is None or winner.old_task_f1 is None:
        return ""
    text = (
        f"On the old task ({old_task}) the winner has F1 {winner.old_task_f1:.2f}% with the same "
        "threshold"
    )
    if winner.old_task_f1_no_null is not None:
        text += f", and {winner.old_task_f1_no_null:.2f}% with the null answer disabled"
    if winner.old_task_drop is None or winner.old_task_drop_no_null is None:
        return f"{text}. Its start had not learnt that task."
    return (
        f"{text}: {winner.old_task_drop:+.2f} and {winner.old_task_drop_no_null:+.2f} points "
        "forgotten, beside what its start had. The difference between the two is abstention."
    )


def bound(report: Report, winner: Row) -> str:
    """Return whether trials keep to ``constraints.max_forgetting``; empty where there is none."""
    most = report.file.constraints.max_forgetting
    if most is None:
        return ""
    too_much = sum(forgets_too_much(row, most) for row in report.measured)
    text = f"The study allows that {most:g} points of F1 on the old task are forgotten."
    if forgets_too_much(winner, most):
        return (
            f"{text} No trial keeps to that: trial {winner.number} is named as the winner because "
            f"it forgets the least, {winner.old_task_drop:.2f} points."
        )
    if not too_much:
        return f"{text} All trials keep to that."
    forget = "forgets" if too_much == 1 else "forget"
    text += f" {count(too_much, 'trial')} of {len(report.measured)} {forget} more, and cannot win"
    best = max(report.measured, key=lambda row: row.best_f1 or 0.0)
    if forgets_too_much(best, most):
        text += (
            f"; trial {best.number} among them, which has F1 {best.best_f1:.2f}% and forgets "
            f"{best.old_task_drop:.2f} points"
        )
    return f"{text}."


def on_the_front(report: Report) -> str:
    """Return what there is to choose between; empty where no old task was measured."""
    found = front(report.measured)
    if not found:
        return ""
    best, other = found[0], found[-1]
    measured = sum(row.old_task_f1 is not None for row in report.measured)
    text = (
        f"{count(len(found), 'trial')} of {measured} {'is' if len(found) == 1 else 'are'} on the "
        "front: no other trial is better in both best F1 and old-task F1, the F1 of the same "
        "checkpoint on the old task."
    )
    if len(found) > 1 and best.old_task_f1 != other.old_task_f1:
        text += (
            f" From trial {best.number} to trial {other.number}, best F1 falls from "
            f"{best.best_f1:.2f}% to {other.best_f1:.2f}%, and old-task F1 rises from "
            f"{best.old_task_f1:.2f}% to {other.old_task_f1:.2f}%."
        )
    before = start_f1(report.measured)
    if before:
        had = ", ".join(f"{start} {f1:.2f}%" for start, f1 in before.items())
        text += f" Before, the old-task F1 of starts that had learnt the task was: {had}."
    return (
        f"{text} The winner goes by best F1; qa-hpo export --prefer old_task_f1, or --prefer "
        "forgetting<=X for the best that forgets at most X points, takes another trial."
    )
