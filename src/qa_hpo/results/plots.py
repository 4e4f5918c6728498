"""What a study found, in plots."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial
from plotly.graph_objects import Figure

from qa_hpo.results.drawing import (
    COLOURS,
    DASHES,
    INK,
    Trace,
    axis,
    bars,
    count,
    cut,
    edged,
    figure,
    label,
    ruler,
    scatter,
    short,
    thinned,
    view,
    whiskers,
)
from qa_hpo.results.leaderboard import Row, best_of_starts, competes
from qa_hpo.search.finalists import finished_trials
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.pruning import STOP_REASONS
from qa_hpo.search.trials import REPEAT_OF
from qa_hpo.squad.answered import Answered

__all__ = [
    "f1_by_start",
    "f1_by_threshold",
    "history",
    "importance_of",
    "importances",
    "loss_curves",
    "start_colours",
    "time_by_reason",
]

_MOST_TRIALS = 200
_MOST_POINTS = 200
_NEAR = 10.0  # points of F1 below the best, to where a threshold is of interest
# Of trials rather than starts: other colours than those of the first three starts.
_LINES = (INK, *COLOURS[:2:-1], "#888888")
_LEAST_TRIALS = 10  # that tell what matters

Floats = NDArray[np.float64]


def start_colours(rows: Iterable[Row]) -> dict[str, str]:
    """Return each start's colour, the same in all plots of the same trials."""
    starts = sorted({_start(row) for row in rows})
    return {start: COLOURS[index % len(COLOURS)] for index, start in enumerate(starts)}


def loss_curves(rows: Sequence[Row]) -> Figure:
    """Show the validation loss of every trial after each epoch, and where it rises.

    Args:
        rows: The trials as the leaderboard has them, the winner first.
    """
    measured = [row for row in rows if any(loss is not None for loss in row.val_loss)]
    shown = measured[:_MOST_TRIALS]
    colours = start_colours(rows)
    width, opacity, size = (1.5, 0.8, 10) if len(shown) <= 50 else (1, 0.5, 6)
    traces = []
    for index, (start, colour) in enumerate(colours.items()):
        line = {"color": colour, "width": width, "dash": DASHES[index // len(COLOURS) % 4]}
        own = [row for row in shown if _start(row) == start]
        traces += [_losses(own, label(start), line=line, opacity=opacity)] if own else []
    for winner in _competing(shown)[:1]:
        line = {"color": colours[_start(winner)], "width": 5}
        traces.append(_losses([winner], f"winner: trial {winner.number}", line=line))
    turns = [(row, turn) for row in shown if (turn := _turn(row.val_loss)) is not None]
    if turns:
        x = [turn + 1 for _, turn in turns]
        y = [row.val_loss[turn] for row, turn in turns]
        marker = {"symbol": "circle-open", "size": size, "color": INK, "line": {"width": 1.5}}
        name = "lowest loss"
        traces.append(scatter("markers", x, y, name, marker=marker, hoverinfo="skip"))
    note = "A line is a trial. A ring is where its loss was lowest before it rose."
    if len(measured) > len(shown):
        note += f" Of {count(len(measured), 'trial')}, the best {len(shown)} are shown."
    window, above = view([loss for row in shown for loss in row.val_loss if loss is not None])
    if above:
        note += f" Higher than what is shown: {count(above, 'point')}."
    longest = max((len(row.val_loss) for row in shown), default=0)
    return figure(
        traces,
        f"The validation loss rises again in {len(turns)} of {count(len(shown), 'trial')}",
        note,
        xaxis=axis("epoch", dtick=1 if longest <= 15 else None, tickformat="d"),
        yaxis=axis("validation loss<br>(nats per window)", range=window),
    )


def f1_by_start(rows: Sequence[Row], *, baseline: Row | None = None) -> Figure:
    """Show the best F1 of every trial by its start.

    Args:
        rows: The trials as the leaderboard has them, the winner first.
        baseline: The one that is marked.
    """
    scored = _competing(rows)
    if not scored:
        return figure([], "", "")
    colours = start_colours(rows)
    place = {start: index for index, start in enumerate(colours)}
    # By multiples of the golden ratio, neighbours in time lie apart, and each call draws the same.
    across = {
        row.number: place[_start(row)] + 0.6 * (row.number * 0.618034 % 1 - 0.5) for row in rows
    }
    traces, ticks = [], []
    for start, colour in colours.items():
        own = [row for row in scored if _start(row) == start]
        ticks.append(f"{label(start)}<br>{count(len(own), 'trial')}")
        marker = {"color": colour, "size": _size(scored), "opacity": 0.75}
        traces.append(_points(own, across, label(start), marker=marker, showlegend=False))
    best = best_of_starts(scored)
    leading = [best[start] for start in colours if start in best]
    judged = [row for row in leading if row.best_f1_interval is not None]
    if judged:
        error = whiskers([(_f1(row), *(row.best_f1_interval or ())) for row in judged])
        marker, name = {"color": INK, "size": 4}, "best of its start, 95% interval"
        traces.append(_points(judged, across, name, marker=marker, error_y=error))
    winner = scored[0]
    ends = [-0.6, len(place) - 0.4]
    return figure(
        [*traces, *_marked(winner, baseline, across, colours)],
        f"The winner, trial {winner.number}, starts from {cut(_start(winner))}",
        f"F1 {_f1(winner):.2f}%. A point is a trial in its best epoch, at its tuned threshold.",
        xaxis=axis("start", tickvals=[*range(len(place))], ticktext=ticks, range=ends),
        yaxis=axis("best F1 (%)"),
    )


def f1_by_threshold(answered: Mapping[str, Answered]) -> Figure:
    """Show F1 as a function of the no-answer threshold.

    Args:
        answered: What trials answered to the validation questions, by what to call them, the
            winner first.
    """
    shown = dict([item for item in answered.items() if len(item[1])][: len(_LINES)])
    if not shown:
        return figure([], "", "")
    steps = {name: _steps(one) for name, one in shown.items()}
    tuned = [one.threshold for one in shown.values()]
    window = (min(0.0, *tuned), max(0.0, *tuned))
    for one, (thresholds, f1) in zip(shown.values(), steps.values(), strict=True):
        near = thresholds[f1 >= f1.max() - _NEAR]
        usual = np.quantile(one.scores.null_margin, [0.01, 0.99])
        left, right = np.clip([near[0], near[-1]], *usual).tolist()
        window = (min(window[0], left), max(window[1], right))
    best, traces = [], []
    for k, (name, (thresholds, f1)) in enumerate(steps.items()):
        at = int(np.searchsorted(thresholds, tuned[k]))
        best.append(float(f1[at]))
        points = thinned(thresholds, _MOST_POINTS, at, window)
        x, y = thresholds[points].tolist(), f1[points].tolist()
        line = {"color": _LINES[k], "width": 1.5 if k else 3, "shape": "hv"}
        traces.append(scatter("lines", x, y, label(name), line=line))
    marker = edged(_LINES[: len(tuned)], "circle", 10)
    traces.append(scatter("markers", tuned, best, "tuned threshold", marker=marker))
    first, leader = next(iter(shown.items()))
    at_zero = 100 * float(leader.scores.at(0.0)[1].mean())
    low = min(min(best) - _NEAR, at_zero - 1)
    note = "A question is left unanswered where its null margin is above the threshold."
    if len(answered) > len(shown):
        note += f" Shown: {len(shown)} of {count(len(answered), 'trial')}."
    return figure(
        traces,
        f"Tuning the threshold takes {cut(first)} from F1 {at_zero:.2f}% to {best[0]:.2f}%",
        note,
        xaxis=axis("threshold (logits)", range=[short(end) for end in window]),
        yaxis=axis("F1 (%)", range=[short(low), short(max(best) + 0.07 * (max(best) - low))]),
        shapes=[ruler("x", 0.0)],
    )


def history(rows: Sequence[Row], *, baseline: Row | None = None) -> Figure:
    """Show the best F1 of the trials in the order in which they were tried.

    Args:
        rows: The trials as the leaderboard has them, the winner first.
        baseline: The one that is marked, with a line at its F1.
    """
    scored = _competing(rows)
    if not scored:
        return figure([], "", "")
    colours = start_colours(rows)
    number = {row.number: row.number for row in rows}
    in_order = sorted(scored, key=lambda row: row.number)
    leaders = in_order[:1]
    for row in in_order:
        leaders += [row] if _f1(row) > _f1(leaders[-1]) else []
    x = [row.number for row in (*leaders, in_order[-1])]
    y = [_f1(row) for row in (*leaders, leaders[-1])]
    by_state = sorted(in_order, key=lambda row: row.state)
    line = {"color": INK, "width": 1.5, "shape": "hv"}
    traces = [scatter("lines", x, y, "best so far", line=line, hoverinfo="skip")]
    for start, colour in colours.items():
        # In the legend is the first one's symbol.
        own = [row for row in by_state if _start(row) == start]
        edge = {"color": colour, "width": 1.5}
        symbols = ["circle-open" if _is(row, TrialState.PRUNED) else "circle" for row in own]
        marker = {"color": colour, "size": _size(scored), "symbol": symbols, "line": edge}
        traces += [_points(own, number, label(start), marker=marker)] if own else []
    pruned = sum(_is(row, TrialState.PRUNED) for row in scored)
    return figure(
        [*traces, *_marked(scored[0], baseline, number, colours)],
        f"Highest F1 so far: {_f1(leaders[-1]):.2f}% (trial {leaders[-1].number})",
        f"Filled: {len(scored) - pruned} complete. Open: {pruned} pruned, which compete too.",
        xaxis=axis("trial", dtick=1 if in_order[-1].number <= 10 else None, tickformat="d"),
        yaxis=axis("best F1 (%)"),
        shapes=[ruler("y", _f1(row)) for row in _competing([baseline] if baseline else [])],
    )


def importances(names_to_values: Mapping[str, float]) -> Figure:
    """Show how much each parameter matters, given shares of 1: see :func:`importance_of`."""
    ranked = sorted(names_to_values.items(), key=lambda item: -item[1])
    shares = {name.replace("_", " "): 100 * share for name, share in ranked}
    texts = [f"{share:.0f}%" for share in shares.values()]
    return bars(
        shares,
        texts,
        f"What matters most: {', '.join(list(shares)[:1])} ({''.join(texts[:1])})",
        "What tells the best trials from the others, by PED-ANOVA.",
        "share of the importance (%)",
    )


def time_by_reason(rows: Sequence[Row]) -> Figure:
    """Show where the training time went, by how the trials ended."""
    seconds: dict[str, list[float]] = {}
    for row in rows:
        if row.train_seconds is not None:
            seconds.setdefault(_ending(row), []).append(row.train_seconds)
    spent = {
        f"{end} ({len(seconds[end])})": sum(seconds[end]) / 60
        for end in ("complete", *STOP_REASONS, "pruned", "failed")
        if end in seconds
    }
    whole = sum(spent.values())
    kept = sum(sum(seconds.get(end, [])) / 60 for end in ("complete", "failed"))
    timed = sum(len(own) for own in seconds.values())
    note = "By how trials ended, with their number."
    if timed < len(rows):
        note += f" The time of {count(len(rows) - timed, 'trial')} is not known."
    return bars(
        spent,
        [f"{minutes:,.1f} min" for minutes in spent.values()],
        f"{100 * (whole - kept) / (whole or 1):.0f}% of {whole:,.1f} minutes went into trials "
        "that were stopped early",
        note,
        "training time (minutes)",
    )


def importance_of(joined: JoinedStudy) -> dict[str, float] | None:
    """Return how much each searched parameter decides whether a trial is among the best.

    Of the parameters that all trials that compete have, with PED-ANOVA. A configuration counts
    once: its runs with other seeds say the same again.

    Returns:
        Shares of 1, the greatest first; None where too few trials or parameters vary.
    """
    trials = [t for t in finished_trials(joined) if REPEAT_OF not in t.user_attrs]
    values = [float(trial.user_attrs["best_f1"]) for trial in trials]
    common = set.intersection(*(set(trial.params) for trial in trials)) if trials else set()
    varied = [
        name
        for name in joined.space.distributions
        if name in common and len({trial.params[name] for trial in trials}) > 1
    ]
    # Fewer than five of the best tell little of what they have in common.
    quantile = max(0.1, 5 / max(len(trials), _LEAST_TRIALS))
    best = sorted(values, reverse=True)[: math.ceil(quantile * len(values))]
    if len(trials) < _LEAST_TRIALS or len(varied) < 2 or best[-1] == min(values):
        return None
    # The evaluator reads complete trials alone, and pruned ones compete here.
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            create_trial(
                params={name: trial.params[name] for name in varied},
                distributions={name: trial.distributions[name] for name in varied},
                value=value,
            )
            for trial, value in zip(trials, values, strict=True)
        ]
    )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    return dict(get_param_importances(study, evaluator=evaluator))


def _losses(rows: Sequence[Row], name: str, **more: Any) -> Trace:
    """Return one trace of the losses of many trials, with gaps between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for row in rows:
        x += [*range(1, len(row.val_loss) + 1), None]
        y += [*row.val_loss, None]
        numbers += [row.number] * len(row.val_loss) + [None]
    hover = "trial %{customdata}, epoch %{x}: %{y} nats"
    more |= {"marker": {"size": 4}, "customdata": numbers[:-1], "hovertemplate": hover}
    return scatter("lines+markers", x[:-1], y[:-1], name, **more)


def _turn(losses: Sequence[float | None]) -> int | None:
    """Return the index of the lowest loss if it rises after it; one that is None is the highest."""
    finite = [loss for loss in losses if loss is not None]
    if not finite:
        return None
    last = max(index for index, loss in enumerate(losses) if loss == min(finite))
    return last if last < len(losses) - 1 else None


def _steps(answered: Answered) -> tuple[Floats, Floats]:
    """Return F1 in percent as a step function: from each threshold on, up to the next.

    The thresholds are those of ``best_threshold``: below all margins, and each margin.
    """
    scores = answered.scores
    order = np.argsort(scores.null_margin, kind="stable")
    margins = scores.null_margin[order]
    gains = np.cumsum((scores.span_f1 - scores.null_f1)[order])
    last = np.flatnonzero(np.append(np.diff(margins) > 0, True))
    f1 = (scores.null_f1.sum() + np.append(0.0, gains[last])) / len(margins)
    return np.append(margins[0] - 1.0, margins[last]), 100 * f1


def _points(rows: Sequence[Row], across: Mapping[int, float], name: str, **more: Any) -> Trace:
    """Return points at the trials' best F1."""
    x, y = [across[row.number] for row in rows], [row.best_f1 for row in rows]
    hover = "trial %{customdata}: F1 %{y}%"
    numbers = [row.number for row in rows]
    return scatter("markers", x, y, name, customdata=numbers, hovertemplate=hover, **more)


def _size(rows: Sequence[Row]) -> int:
    return 8 if len(rows) <= 100 else 5


def _marked(
    winner: Row, baseline: Row | None, across: Mapping[int, float], colours: Mapping[str, str]
) -> list[Trace]:
    """Return a diamond for the baseline and a star for the winner."""
    traces = []
    for row, what, symbol, size in (
        (baseline, "baseline", "diamond", 12),
        (winner, "winner", "star", 16),
    ):
        if row is not None and competes(row) and row.number in across:
            marker = edged(colours[_start(row)], symbol, size)
            traces.append(_points([row], across, f"{what}: trial {row.number}", marker=marker))
    return traces


def _start(row: Row) -> str:
    return str(row.params["start"])


def _f1(row: Row) -> float:
    return row.best_f1 or 0.0


def _is(row: Row, state: TrialState) -> bool:
    return row.state == state.name


def _competing(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if competes(row)]


def _ending(row: Row) -> str:
    if _is(row, TrialState.FAIL):
        return "failed"
    return row.stop_reason or row.state.lower()
