"""How the plots of a study look: plain Plotly figures, small as JSON, readable on a phone.

The dashboard keeps a figure as JSON in the study's database and draws it with a plotly.js of its
own. So numbers are plain and have four digits, there is no template, and no figure has a size.
"""

import html
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly.graph_objects import Figure

__all__ = [
    "COLOURS",
    "DASHES",
    "INK",
    "Trace",
    "axis",
    "bars",
    "count",
    "cut",
    "edged",
    "figure",
    "label",
    "ruler",
    "scatter",
    "short",
    "thinned",
    "view",
    "whiskers",
]

# Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow, which is pale
# on white, and its black, which is for what is marked.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")
INK = "#222222"
_GREY, _PALE = "#666666", "#E5E5E5"

_TITLE_LETTERS, _NOTE_LETTERS = 38, 56  # in a line, on a phone
_LABEL_LETTERS = 18
_TITLE_PIXELS = 15

# Buttons that nobody needs here; the last one would give the data away.
_BUTTONS = ("zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "sendChartToCloud")

Trace = dict[str, Any]


def short(value: float | None) -> float | None:
    """Return a number with four digits, and None for one that is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.4g}")


def cut(text: str) -> str:
    """Return a name from outside, not too long."""
    return text if len(text) <= _LABEL_LETTERS else f"{text[: _LABEL_LETTERS - 1]}…"


def label(text: str) -> str:
    """Return a name from outside as Plotly shows it: not too long, and no markup."""
    return html.escape(cut(text), quote=False)


def count(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def scatter(
    mode: str, x: Sequence[float | None], y: Sequence[float | None], name: str, **more: Any
) -> Trace:
    """Return a trace of points or lines; it has gaps where there is None."""
    own = {"x": [short(value) for value in x], "y": [short(value) for value in y]}
    return {"type": "scatter", "mode": mode, "name": name, **own, **more}


def edged(colour: str | Sequence[str], symbol: str, size: int) -> dict[str, Any]:
    """Return a marker that stands out."""
    edge = {"color": INK, "width": 1.5}
    return {"color": colour, "symbol": symbol, "size": size, "line": edge}


def ruler(at: str, value: float) -> dict[str, Any]:
    """Return a line across the plot at a value of the axis ``at``, x or y."""
    other = "y" if at == "x" else "x"
    ends = {f"{at}0": short(value), f"{at}1": short(value), f"{other}0": 0, f"{other}1": 1}
    line = {"color": _GREY, "width": 1.5, "dash": "dash"}
    return {"type": "line", f"{other}ref": "paper", **ends, "line": line, "layer": "below"}


def whiskers(values: Iterable[Sequence[float]]) -> dict[str, Any]:
    """Return the error bars of points, each given as its value and its lower and upper end."""
    above, below = [], []
    for value, low, high in values:
        above.append(short(high - value))
        below.append(short(value - low))
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": INK,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis; what is None is left to Plotly."""
    style = {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": _PALE,
        "linecolor": _GREY,
        "ticks": "outside",
        "tickcolor": _GREY,
        "showline": True,
        "zeroline": False,
    }
    return style | {key: value for key, value in more.items() if value is not None}


def view(values: Sequence[float]) -> tuple[list[float | None] | None, int]:
    """Return a range in which values can be told apart, and how many of them are above it.

    None where all can: where none is far above the others, as that of a diverged trial is.
    """
    if len(values) < 8:
        return None, 0
    low, _, high = statistics.quantiles(values, n=4)
    limit = high + 3 * (high - low)
    within = [value for value in values if value <= limit]
    if len(within) == len(values):
        return None, 0
    pad = 0.06 * (max(within) - min(within)) or 0.1
    return [short(min(within) - pad), short(max(within) + pad)], len(values) - len(within)


def thinned(
    x: NDArray[np.float64], most: int, best: int, window: tuple[float, float]
) -> NDArray[np.int64]:
    """Return which of many points are drawn, ``most`` at most.

    Args:
        x: Their values, ascending.
        most: How many.
        best: The one that must not be missed, like the ends.
        window: The values between which most of them are to be, evenly.
    """
    if len(x) <= most:
        return np.arange(len(x))
    few = most // 4
    everywhere = np.linspace(0, len(x) - 1, few).round().astype(np.int64)
    grid = np.linspace(*window, most - few - 1)
    within = (np.searchsorted(x, grid, side="right") - 1).clip(0)
    return np.unique(np.concatenate([everywhere, within, [best]]))


def bars(
    values: Mapping[str, float], texts: Sequence[str], title: str, note: str, unit: str
) -> Figure:
    """Return a figure of horizontal bars, the first on top.

    Args:
        values: The bars' lengths by their names.
        texts: What is written at the ends of the bars.
        title: As of :func:`figure`.
        note: As of :func:`figure`.
        unit: The axis' title.
    """
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [short(value) for value in values.values()],
        "y": [label(name) for name in values],
        "text": list(texts),
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": COLOURS[0]},
        "hoverinfo": "skip",
    }
    # The texts need room.
    longest = max(values.values(), default=0.0) or 1.0
    return figure(
        [trace] if values else [],
        title,
        note,
        xaxis=axis(unit, range=[0, short(1.25 * longest)]),
        yaxis=axis("", autorange="reversed", showgrid=False, ticks=""),
        bargap=0.35,
    )


def figure(traces: Sequence[Trace], title: str, note: str, **layout: Any) -> Figure:
    """Return a figure.

    Args:
        traces: What is drawn; without any, the figure says that there is nothing yet.
        title: What is to be seen, as plain text.
        note: What the marks mean, as plain text.
        layout: Axes, and what else is not the same in all figures.
    """
    if not traces:
        hidden = {"visible": False}
        title, note = "Nothing to show yet", "No trial that could be shown has finished."
        layout = {"xaxis": hidden, "yaxis": hidden}
    lines = [f"<b>{line}</b>" for line in _lines(title, _TITLE_LETTERS)]
    for line in _lines(note, _NOTE_LETTERS):
        lines.append(f'<span style="font-size:12px">{line}</span>')
    return Figure(
        traces,
        {
            "template": "none",
            "title": {
                "text": "<br>".join(lines),
                "font": {"size": _TITLE_PIXELS},
                "x": 0,
                "xref": "container",
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 24, "l": 12},  # down to where the first line stands,
            },
            "font": {"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
            "margin": {
                "l": 60,
                "r": 16,
                "t": 26 + round(1.3 * _TITLE_PIXELS * len(lines)),
                "b": 60,
            },
            "legend": {
                "orientation": "h",
                "x": 0.01,
                "xref": "container",
                "xanchor": "left",
                "y": 0,
                "yref": "container",
                "yanchor": "bottom",
                "itemsizing": "constant",
            },
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "hovermode": "closest",
            # Beside the title, which leaves room for it.
            "modebar": {"remove": list(_BUTTONS), "orientation": "v"},
            "uirevision": "kept",  # what a reader zoomed into stays when the data grow
            **layout,
        },
    )


def _lines(text: str, letters: int) -> list[str]:
    lines = textwrap.wrap(text, letters, break_on_hyphens=False)
    return [html.escape(line, quote=False) for line in lines]
