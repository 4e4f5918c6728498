"""Markdown for the dashboard's notes. Names come from outside, and are escaped."""

import re
from collections.abc import Iterable, Sequence

from qa_hpo.search.joined import JoinedStudy

__all__ = ["NONE", "escaped", "table", "trial_link", "two_digits"]

NONE = "–"
"""What stands where there is nothing."""


def trial_link(joined: JoinedStudy, number: int, word: str = "trial") -> str:
    """Return a link to a trial's page in the dashboard."""
    # The dashboard shows notes on pages of different depth, so the path is a whole one.
    return f"[{word} {number}](/dashboard/studies/{joined.key}/trials?numbers={number})"


def two_digits(value: float | None) -> str:
    """Return a number with two digits after its point."""
    return NONE if value is None else f"{value:.2f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, given as Markdown already."""
    lines = [heads, [":---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(value: object) -> str:
    """Return what comes from outside as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|~&#!$@])", r"\\\1", " ".join(str(value).split()))
