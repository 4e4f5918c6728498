"""What the overfitting rule costs and saves, read off recorded curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.curves.simulate import Curves
from bench.curves.table import Curve
from bench.report import table
from qa_hpo.search.pruning import OverfittingRule
from qa_hpo.sections import Pruning

__all__ = ["Price", "price_table", "prices"]

PATIENCES = (1, 2, 3)
MIN_DELTAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
GOOD = 0.25
"""The share of the best runs, of which it is told apart what the rule costs."""


@dataclass(frozen=True)
class Price:
    """What a setting of the rule costs and saves on a table of curves.

    Attributes:
        patience: epochs in a row.
        min_delta: by how much the loss is above its best, in nats.
        stopped: share of the runs that it ends, 0 … 1.
        share_saved: share of all epochs that it saves, 0 … 1.
        f1_lost: mean F1 that a run loses, in points.
        good_lost: the same of the best quarter of the runs.
        best_lost: by how much the best of all runs is lower.
        is_default: whether it is the package's default.
    """

    patience: int
    min_delta: float
    stopped: float
    share_saved: float
    f1_lost: float
    good_lost: float
    best_lost: float
    is_default: bool


def stop_of(curve: Curve, rule: OverfittingRule) -> int:
    """After how many epochs the rule ends a run; all of them if it does not."""
    losses = [math.nan if r.val_loss is None else r.val_loss for r in curve.records]
    for epoch in range(1, len(losses)):  # the last one needs no rule to end
        if rule.overfits(losses[:epoch]):
            return epoch
    return len(losses)


def prices(curves: Curves) -> list[Price]:
    """The price of each setting."""
    runs = curves.all()
    whole = np.array([curve.best_f1 for curve in runs])
    good = whole >= np.quantile(whole, 1 - GOOD)
    epochs = np.array([len(curve.records) for curve in runs])
    found = []
    for patience in PATIENCES:
        for min_delta in MIN_DELTAS:
            stops = np.array([stop_of(c, OverfittingRule(patience, min_delta)) for c in runs])
            reached = np.array(
                [
                    max(record.metrics["best_f1"] for record in curve.records[:stop])
                    for curve, stop in zip(runs, stops, strict=True)
                ]
            )
            lost = whole - reached
            found.append(
                Price(
                    patience=patience,
                    min_delta=min_delta,
                    stopped=float((stops < epochs).mean()),
                    share_saved=float(1 - stops.sum() / epochs.sum()),
                    f1_lost=float(lost.mean()),
                    good_lost=float(lost[good].mean()),
                    best_lost=float(whole.max() - reached.max()),
                    is_default=(patience, min_delta) == _default(),
                )
            )
    return found


def _default() -> tuple[int, float]:
    return Pruning().patience, Pruning().min_delta


def price_table(found: Sequence[Price], curves: Curves) -> str:
    """The section for people."""
    rows = [
        [
            f"{p.patience}{' (default)' if p.is_default else ''}",
            f"{p.min_delta:g}",
            f"{p.stopped:.0%}",
            f"{p.share_saved:.0%}",
            f"{p.f1_lost:.2f}",
            f"{p.good_lost:.2f}",
            f"{p.best_lost:.2f}",
        ]
        for p in found
    ]
    head = ["patience", "min_delta", "runs ended", "epochs saved", "F1 lost"]
    head += ["by the best quarter", "best run's"]
    return f"""## What the overfitting rule costs and saves

The rule, applied to the {len(curves.all())} recorded runs of the section on search strategies, all
of {curves.horizon} epochs: how many it ends, which share of their epochs it saves, and the F1 that
a run reaches after the rule would have ended it (mean over all runs, over the best quarter of them,
and what the best run of all loses), in points.

{table(head, rows)}
"""
