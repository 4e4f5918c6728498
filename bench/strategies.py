"""Search strategies beside each other, by replaying them on recorded curves."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import SuccessiveHalvingPruner

from bench.curves.simulate import Curves, Strategy, Trace, simulate
from bench.curves.table import read_curves
from bench.curves.top_k import top_k
from bench.price import Price, price_table, prices
from bench.report import Finding, machine, table
from qa_hpo.config import StudyFile

__all__ = ["run"]

FOLDER = Path(__file__).parent
CURVES = FOLDER / "curves"
PLOT = FOLDER / "images" / "search.svg"
PACKAGES = ("qa_hpo", "optuna")

REPETITIONS = 100
WORKERS = (1, 4, 16, 64)
EPOCHS = 360
"""The budget of each search: sixty trials of six epochs."""
BUDGETS = (60, 120, 240)
WITHIN = 0.3
"""So near to the table's best F1, in points, is near enough."""
TOP_K = (1, 3, 5)
TOP_K_BUDGETS = tuple(range(12, EPOCHS + 1, 12))

_FULL = {"across": "none", "patience": 99}
_NO_RULE = {"patience": 99, "min_delta": 0.0}
RULE = {"patience": 1, "min_delta": 0.02}


def _halving() -> SuccessiveHalvingPruner:
    return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


RANDOM_FULL = "random, all epochs"
STRATEGIES = (
    Strategy(RANDOM_FULL, _FULL, "random"),
    Strategy("grid, all epochs", _FULL, "grid"),
    Strategy("TPE, all epochs", _FULL),
    Strategy("TPE, median", {"across": "median", **_NO_RULE}),
    Strategy("TPE, median, overfitting", {"across": "median", **RULE}),
    Strategy("TPE, Hyperband", {"across": "hyperband", **_NO_RULE}),
    Strategy("random, ASHA", _FULL, "random", _halving),
    Strategy("TPE, ASHA", _FULL, "tpe", _halving),
    Strategy("TPE, promote", {"across": "promote", **_NO_RULE}),
    Strategy("TPE, promote, overfitting", {"across": "promote", **RULE}),
)
OURS = ("TPE, promote, overfitting", "TPE, promote", "TPE, median, overfitting")
"""What the package can be set to do; the best of them is its default."""
PEERS = ("random, ASHA", "TPE, ASHA", *(f"one epoch, then top {k}" for k in TOP_K))


@dataclass(frozen=True)
class Outcome:
    """What a strategy came to with so many workers, one value for each repetition.

    Attributes:
        epochs: epochs until it was near enough; infinite where the budget was not enough.
        regret: for each budget, by how much its best F1 was below the table's, in points.
        utilisation: share of the workers' time in which they trained.
        curve: best F1 after each epoch, (repetitions, EPOCHS).
    """

    epochs: np.ndarray
    regret: dict[int, np.ndarray]
    utilisation: np.ndarray
    curve: np.ndarray


def run(pairs: int, *, repetitions: int = REPETITIONS, workers: Sequence[int] = WORKERS) -> Any:
    """Replay all strategies on the recorded curves of the demo.

    Args:
        pairs: not used: a repetition of each side takes the same seed.
        repetitions: searches of each strategy with each number of workers.
        workers: how many work at once.
    """
    curves = _curves()
    if not curves.whole():
        raise ValueError(f"{CURVES / 'demo.csv'}: points of the grid are missing; record them")
    jobs = [
        (name, seed, count)
        for count in workers
        for name in (*(s.name for s in STRATEGIES), *(f"one epoch, then top {k}" for k in TOP_K))
        for seed in range(repetitions)
    ]
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        found = dict(zip(jobs, pool.map(_search, jobs, chunksize=10), strict=True))
    outcomes: dict[tuple[str, int], Outcome] = {}
    for name, _, count in jobs:
        if (name, count) not in outcomes:
            mine = [found[name, seed, count] for seed in range(repetitions)]
            outcomes[name, count] = _outcome(mine, curves.best_f1)
    cost = prices(curves)
    draw(outcomes, workers)
    return {
        "search": Finding(_fields(outcomes, workers), _body(outcomes, workers, curves)),
        "pruning_price": Finding(_price_fields(cost), price_table(cost, curves)),
    }


@lru_cache(maxsize=1)
def _curves() -> Curves:
    study = StudyFile.from_toml(CURVES / "demo.toml")
    return Curves(study, read_curves(CURVES / "demo.csv", study))


@dataclass(frozen=True)
class _Found:
    epochs: float
    best: np.ndarray
    utilisation: float


def _search(job: tuple[str, int, int]) -> _Found:
    """Search once; return when it was near enough, and its best F1 after each epoch."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name, seed, workers = job
    curves = _curves()
    near = curves.best_f1 - WITHIN
    by_name = {strategy.name: strategy for strategy in STRATEGIES}
    if name in by_name:
        trace = simulate(curves, by_name[name], seed=seed, workers=workers, epochs=EPOCHS)
        return _Found(trace.epochs_to(near), _best(trace), trace.utilisation)
    search = partial(top_k, curves, int(name.rsplit(maxsplit=1)[1]), seed=seed, workers=workers)
    # What it tries depends on its budget: there is a search for each.
    traces = [search(epochs=budget) for budget in TOP_K_BUDGETS]
    reached = (len(t.steps) for t in traces if t.steps[-1].best_f1 >= near)
    best = np.repeat([t.steps[-1].best_f1 for t in traces], TOP_K_BUDGETS[0])[:EPOCHS]
    best = np.concatenate([np.full(TOP_K_BUDGETS[0] - 1, np.nan), best])[:EPOCHS]
    return _Found(next(reached, math.inf), best, traces[-1].utilisation)


def _best(trace: Trace) -> np.ndarray:
    best = [step.best_f1 for step in trace.steps][:EPOCHS]
    return np.array(best + [best[-1]] * (EPOCHS - len(best)))


def _outcome(found: Sequence[_Found], best: float) -> Outcome:
    curve = np.array([each.best for each in found])
    return Outcome(
        epochs=np.array([each.epochs for each in found]),
        regret={budget: best - curve[:, budget - 1] for budget in BUDGETS},
        utilisation=np.array([each.utilisation for each in found]),
        curve=curve,
    )


def median_ratio(
    ours: np.ndarray, theirs: np.ndarray, draws: int = 2000
) -> tuple[float, float, float]:
    """The ratio of two medians and its 95% interval, by drawing repetitions again.

    What did not come near enough within the budget counts as the budget: the ratio is then too high
    where that happened to `theirs`.
    """
    ours, theirs = np.minimum(ours, EPOCHS), np.minimum(theirs, EPOCHS)
    random = np.random.default_rng(0)
    picks = random.integers(len(ours), size=(draws, len(ours)))
    drawn = np.median(ours[picks], axis=1) / np.median(theirs[picks], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(ours) / np.median(theirs)), float(low), float(high)


def best_of(names: Sequence[str], outcomes: dict[tuple[str, int], Outcome], workers: int) -> str:
    """The one that needs the fewest epochs in the median, and of equals on average."""
    return min(
        names,
        key=lambda name: (
            np.median(outcomes[name, workers].epochs),
            np.minimum(outcomes[name, workers].epochs, EPOCHS).mean(),
        ),
    )


def _fields(outcomes: dict[tuple[str, int], Outcome], workers: Sequence[int]) -> dict[str, Any]:
    one = 4 if 4 in workers else workers[0]
    ours, peer = best_of(OURS, outcomes, one), best_of(PEERS, outcomes, one)
    mine = outcomes[ours, one]
    random = median_ratio(mine.epochs, outcomes[RANDOM_FULL, one].epochs)
    beside = median_ratio(mine.epochs, outcomes[peer, one].epochs)
    return {
        "strategy": ours,
        "workers": one,
        "epochs_vs_random_full": round(random[0], 3),
        "epochs_vs_random_full_interval": [round(x, 3) for x in random[1:]],
        "epochs_vs_best_peer": round(beside[0], 3),
        "epochs_vs_best_peer_interval": [round(x, 3) for x in beside[1:]],
        "best_peer": peer,
        "regret_at_budget": {str(b): round(float(r.mean()), 3) for b, r in mine.regret.items()},
        "utilisation_64": round(float(outcomes[ours, 64].utilisation.mean()), 4)
        if 64 in workers
        else None,
    }


def _price_fields(cost: Sequence[Price]) -> dict[str, float]:
    (default,) = (price for price in cost if price.is_default)
    return {
        "f1_lost": round(default.f1_lost, 3),
        "epochs_saved": round(default.share_saved, 4),
    }


def _body(outcomes: dict[tuple[str, int], Outcome], workers: Sequence[int], curves: Curves) -> str:
    fields = _fields(outcomes, workers)
    near = sum(c.best_f1 >= curves.best_f1 - WITHIN for c in curves.all())
    runs = len(curves.all())
    per = sorted({len(own) for own in curves.runs.values()})
    tables = "\n\n".join(_table(outcomes, count) for count in workers)
    beside, low, high = (fields["epochs_vs_best_peer"], *fields["epochs_vs_best_peer_interval"])
    against, least, most = (
        fields["epochs_vs_random_full"],
        *fields["epochs_vs_random_full_interval"],
    )
    return f"""## Search strategies on recorded curves

How many epochs a search needs until it has a checkpoint within {WITHIN} F1 of the best that the
table has, and how far from it it is after fixed budgets. Replayed through the study's own code, by
a simulated clock: `make bench-search`.

{machine(PACKAGES)}
- Curves: {runs} runs of {len(curves.points)} configurations ({per[0]} to {per[-1]} runs each) of
  the demo, {curves.horizon} epochs; best F1 {curves.best_f1:.2f}, and {near} runs within {WITHIN}
  of it.
- Searches: {len(outcomes[RANDOM_FULL, workers[0]].epochs)} of each strategy with each number of
  workers, {EPOCHS} epochs each.
- Random, TPE and grid draw from the recorded space, learning rates but for the grid from its whole
  range; a drawn point has the curve of the nearest recorded one, and its seed decides which of its
  runs.
- ASHA is Optuna's `SuccessiveHalvingPruner` (reduction factor 3), which stops trials and resumes
  none. One epoch, then top K: as many random points as the budget has room for; a search of its own
  for each budget.

With {fields["workers"]} workers, the best of the package's own strategies is
**{fields["strategy"]}**: it needs {against:.2f} times the epochs of random search with all epochs
(95% interval {least:.2f} to {most:.2f}), and {beside:.2f} times ({low:.2f} to {high:.2f}) those of
the best other one, {fields["best_peer"]}.

{tables}

Epochs: until the best checkpoint so far is within {WITHIN} F1, first quartile, median and third
quartile; "-" where the budget was not enough. Regret: mean F1 below the table's best after a
budget, ± 1.96 standard errors. Utilisation: the share of the workers' time in which they trained,
until the last epoch of the budget was begun.

![Best F1 against epochs](images/{PLOT.name})
"""


def _table(outcomes: dict[tuple[str, int], Outcome], workers: int) -> str:
    head = [
        f"{workers} worker{'s' if workers > 1 else ''}",
        "epochs, q1",
        "median",
        "q3",
        *(f"regret at {budget}" for budget in BUDGETS),
        "utilisation",
    ]
    rows = []
    for (name, count), outcome in outcomes.items():
        if count != workers:
            continue
        # By order: an interpolated quantile of what is infinite is no number.
        quartiles = np.quantile(outcome.epochs, [0.25, 0.5, 0.75], method="higher")
        rows.append(
            [
                name,
                *(f"{q:.0f}" if math.isfinite(q) else "-" for q in quartiles),
                *(_mean(outcome.regret[budget]) for budget in BUDGETS),
                f"{outcome.utilisation.mean():.1%}",
            ]
        )
    return table(head, rows)


def _mean(values: np.ndarray) -> str:
    error = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{values.mean():.2f} ± {error:.2f}"


def draw(outcomes: dict[tuple[str, int], Outcome], workers: Sequence[int]) -> None:
    """Draw the mean best F1 against epochs, a panel for each number of workers."""
    import matplotlib as mpl  # noqa: PLC0415  (takes a second to import)

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    shown = (RANDOM_FULL, "TPE, all epochs", *OURS, "TPE, ASHA", f"one epoch, then top {TOP_K[1]}")
    figure, axes = plt.subplots(
        1, len(workers), figsize=(4 * len(workers), 4), sharey=True, squeeze=False
    )
    for axis, count in zip(axes[0], workers, strict=True):
        for name in dict.fromkeys(shown):
            axis.plot(
                np.arange(1, EPOCHS + 1), outcomes[name, count].curve.mean(axis=0), label=name
            )
        axis.set_title(f"{count} worker{'s' if count > 1 else ''}")
        axis.set_xlabel("epochs spent")
        axis.set_xscale("log")
    axes[0][0].set_ylabel("mean best F1 so far")
    best = max(outcome.curve[:, -1].mean() for outcome in outcomes.values())
    axes[0][0].set_ylim(best - 5, best + 0.3)
    axes[0][-1].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    PLOT.parent.mkdir(exist_ok=True)
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "qa_hpo"
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)
