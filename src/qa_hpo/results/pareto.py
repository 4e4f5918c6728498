"""Two scores of each trial: what it has learnt, and what it still knows of the old task.

The front are the trials of which none other is better in both. Where a study has one objective, it
is shown all the same: what the best F1 costs of the old task.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from plotly.graph_objects import Figure

from qa_hpo.results.drawing import INK, Trace, axis, count, edged, figure, label, scatter
from qa_hpo.results.leaderboard import Row, competes, forgets_too_much
from qa_hpo.results.plots import start_colours
from qa_hpo.search.choosing import non_dominated

__all__ = ["front", "start_f1", "trade_off"]


def front(rows: Iterable[Row]) -> list[Row]:
    """Return the trials of which none other is better in best F1 and old-task F1.

    Better is at least as good in both, and better in one: those that are equal in both are all on
    the front, or none of them. Pruned trials are among them, failed ones are not, nor those whose
    old task was not measured.

    Returns:
        The highest best F1 first; equal ones in the order of ``rows``.
    """
    measured = [row for row in rows if competes(row) and row.old_task_f1 is not None]
    on = non_dominated([(row.best_f1 or 0.0, row.old_task_f1 or 0.0) for row in measured])
    found = [row for row, is_on in zip(measured, on, strict=True) if is_on]
    return sorted(found, key=lambda row: -(row.best_f1 or 0.0))


def start_f1(rows: Iterable[Row]) -> dict[str, float]:
    """Return the F1 that starts had on the old task, in percent, as far as they had learnt it."""
    return {
        str(row.params["start"]): row.old_task_f1 + row.old_task_drop
        for row in rows
        if row.old_task_f1 is not None and row.old_task_drop is not None
    }


def trade_off(rows: Sequence[Row], *, most: float | None = None) -> Figure:
    """Show what trials still know of the old task beside what they have learnt.

    Args:
        rows: The trials as the leaderboard has them, the winner first.
        most: Points of F1 that may be forgotten, if the study says so.
    """
    measured = [row for row in rows if competes(row) and row.old_task_f1 is not None]
    if not measured:
        return figure([], "", "")
    colours, found = start_colours(rows), front(rows)
    before = start_f1(measured)
    scores = sorted(row.best_f1 or 0.0 for row in measured)
    ends = [scores[0], scores[-1]]
    traces = [
        scatter(
            "lines",
            ends if ends[0] < ends[1] else [ends[0] - 1, ends[1] + 1],
            [before[start]] * 2,
            f"{label(start)} itself: {before[start]:.2f}%",
            line={"color": colours[start], "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
        )
        for start in colours
        if start in before
    ]
    step = {"color": INK, "width": 1, "shape": "hv"}
    traces.append(_points(found, "the front", mode="lines", line=step, hoverinfo="skip"))
    size = 8 if len(measured) <= 100 else 5
    for start, colour in colours.items():
        own = [row for row in measured if str(row.params["start"]) == start]
        symbols = ["x" if forgets_too_much(row, most) else "circle" for row in own]
        marker = {"color": colour, "size": size, "symbol": symbols, "opacity": 0.75}
        traces += [_points(own, label(start), marker=marker)] if own else []
    ring = {"symbol": "circle-open", "size": size + 6, "color": INK, "line": {"width": 1.5}}
    traces.append(_points(found, "on the front", marker=ring, hoverinfo="skip"))
    winner = measured[0]
    star = edged(colours[str(winner.params["start"])], "star", 16)
    traces.append(_points([winner], f"winner: trial {winner.number}", marker=star))
    note = "A point is a trial. A ring: no other one is better in both. Dashed: what a start had."
    if most is not None:
        note += f" A cross: it forgets more than {most:g} points."
    return figure(
        traces,
        f"{count(len(found), 'trial')} of {len(measured)} on the front of best F1 and old-task F1",
        note,
        xaxis=axis("best F1 (%)"),
        yaxis=axis("old-task F1 (%)"),
    )


def _points(rows: Sequence[Row], name: str, *, mode: str = "markers", **more: Any) -> Trace:
    x, y = [row.best_f1 for row in rows], [row.old_task_f1 for row in rows]
    hover = "trial %{customdata}: best F1 %{x}%, old-task F1 %{y}%"
    numbers = [row.number for row in rows]
    return scatter(mode, x, y, name, **{"customdata": numbers, "hovertemplate": hover, **more})
