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
from tqdm import tqdm

from bench.curves.simulate import Curves, Strategy, Trace, simulate
from bench.curves.table import read_curves
from bench.curves.top_k import random_curves, top_k
from bench.price import Price, price_table, prices
from bench.report import Finding, machine, table
from qa_hpo.config import StudyFile
from qa_hpo.sections import Pruning

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
LARGE = 1440
"""The budget in which 64 workers' utilisation is measured: as many epochs for each of them as 16
have of the other."""
LARGE_REPETITIONS = 10
TOP_K = (1, 3, 5)
RANDOM_EPOCHS = 1440
"""The budget of random search with all epochs: in the usual one, fewer than half of its searches
come near enough, and there would be nothing to compare with."""
TOP_K_BUDGETS = tuple(range(12, EPOCHS + 1, 6))

_FULL = {"across": "none", "patience": 99}
_NO_RULE = {"patience": 99, "min_delta": 0.0}
FACTORS = (3, 4, 6, 10)
RULE = {"patience": Pruning().patience, "min_delta": Pruning().min_delta}
"""The package's default."""


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
    Strategy("TPE, promote 1 of 3", {"across": "promote", "reduction_factor": 3, **_NO_RULE}),
    *(
        Strategy(
            f"TPE, promote 1 of {factor}, overfitting",
            {"across": "promote", "reduction_factor": factor, **RULE},
        )
        for factor in FACTORS
    ),
)
OURS = (
    "TPE, median, overfitting",
    "TPE, promote 1 of 3",
    *(f"TPE, promote 1 of {factor}, overfitting" for factor in FACTORS),
)
"""What the package can be set to do; the best of them is its default."""
PEERS = ("random, ASHA", "TPE, ASHA", *(f"one epoch, then top {k}" for k in TOP_K))


@dataclass(frozen=True)
class Outcome:
    """What a strategy came to with so many workers, one value for each repetition.

    Attributes:
        near: whether it was near enough after each epoch of its budget, (repetitions, epochs).
        regret: for each budget, by how much its best F1 was below the table's, in points.
        curve: best F1 after each epoch, (repetitions, epochs); of a search that stopped because it
            was near enough, what it had then.
    """

    near: np.ndarray
    regret: dict[int, np.ndarray]
    curve: np.ndarray

    def epochs(self, share: float = 0.5) -> float:
        """Epochs after which that share of the searches was near enough; infinite if never."""
        return float(_first(self.near.mean(axis=0) >= share))


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
        searches = pool.map(_search, jobs, chunksize=10)
        shown = tqdm(searches, "searches", len(jobs), mininterval=10)
        found = dict(zip(jobs, shown, strict=True))
    outcomes: dict[tuple[str, int], Outcome] = {}
    for name, _, count in jobs:
        if (name, count) not in outcomes:
            mine = [found[name, seed, count] for seed in range(repetitions)]
            outcomes[name, count] = _outcome(mine, curves.best_f1)
    cost = prices(curves)
    draw(outcomes, workers)
    fields = _fields(outcomes, workers)
    fields["utilisation_64"] = _utilisation_64(curves, fields["strategy"])
    return {
        "search": Finding(fields, _body(outcomes, fields, workers, curves)),
        "pruning_price": Finding(_price_fields(cost), price_table(cost, curves)),
    }


@lru_cache(maxsize=1)
def _curves() -> Curves:
    study = StudyFile.from_toml(CURVES / "demo.toml")
    return Curves(study, read_curves(CURVES / "demo.csv", study))


def _utilisation_64(curves: Curves, name: str) -> float:
    jobs = [(name, seed) for seed in range(LARGE_REPETITIONS)]
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool:
        return round(float(np.mean(list(pool.map(_busy, jobs)))), 4)


def _busy(job: tuple[str, int]) -> float:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name, seed = job
    (strategy,) = (each for each in STRATEGIES if each.name == name)
    return simulate(_curves(), strategy, seed=seed, workers=64, epochs=LARGE).utilisation


def _search(job: tuple[str, int, int]) -> np.ndarray:
    """Search once; return its best F1 after each epoch."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name, seed, workers = job
    curves = _curves()
    by_name = {strategy.name: strategy for strategy in STRATEGIES}
    if name in by_name:
        epochs = RANDOM_EPOCHS if name == RANDOM_FULL else EPOCHS
        # As far as anything of it is looked at.
        trace = simulate(
            curves,
            by_name[name],
            seed=seed,
            workers=workers,
            epochs=epochs,
            until=curves.best_f1 - WITHIN,
            at_least=max(BUDGETS),
        )
        return _best(trace, epochs)
    # What it tries depends on its budget: there is a search for each.
    drawn = random_curves(curves, seed, EPOCHS)
    search = partial(top_k, drawn, int(name.rsplit(maxsplit=1)[1]), horizon=curves.horizon)
    traces = [search(workers=workers, epochs=budget) for budget in TOP_K_BUDGETS]
    best = np.full(EPOCHS, np.nan)
    for budget, trace in zip(TOP_K_BUDGETS, traces, strict=True):
        best[budget - 1 :] = trace.steps[-1].best_f1
    return best


def _best(trace: Trace, epochs: int) -> np.ndarray:
    best = [step.best_f1 for step in trace.steps][:epochs]
    return np.array(best + [best[-1]] * (epochs - len(best)))


def _outcome(found: Sequence[np.ndarray], best: float) -> Outcome:
    curve = np.array(found)
    return Outcome(
        near=curve >= best - WITHIN,
        regret={budget: best - curve[:, budget - 1] for budget in BUDGETS},
        curve=curve,
    )


def median_ratio(
    ours: np.ndarray, theirs: np.ndarray, draws: int = 2000
) -> tuple[float, float, float]:
    """The ratio of the epochs after which half of the searches were near enough.

    Where the budget was not enough for half of them, the budget counts: the ratio is then too high
    where that happened to `theirs`.

    Args:
        ours: whether each search was near enough after each epoch, (repetitions, epochs).
        theirs: the same of the other side, whose repetitions have the same seeds.
        draws: how often repetitions are drawn again.

    Returns:
        The ratio and its 95% interval.
    """
    random = np.random.default_rng(0)
    picks = random.integers(len(ours), size=(draws, len(ours)))
    drawn = [_half(ours[pick]) / _half(theirs[pick]) for pick in picks]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _half(ours) / _half(theirs), float(low), float(high)


def _half(near: np.ndarray) -> float:
    return min(_first(near.mean(axis=0) >= 0.5), near.shape[1])


def _first(reached: np.ndarray) -> float:
    """After how many epochs it is true for the first time; infinite if never."""
    return int(reached.argmax()) + 1 if reached.any() else math.inf


def best_of(names: Sequence[str], outcomes: dict[tuple[str, int], Outcome], workers: int) -> str:
    """The one that needs the fewest epochs in the median, and of equals the nearest on average."""
    return min(
        names,
        key=lambda name: (
            outcomes[name, workers].epochs(),
            outcomes[name, workers].regret[BUDGETS[1]].mean(),
        ),
    )


def _fields(outcomes: dict[tuple[str, int], Outcome], workers: Sequence[int]) -> dict[str, Any]:
    one = 4 if 4 in workers else workers[0]
    ours, peer = best_of(OURS, outcomes, one), best_of(PEERS, outcomes, one)
    mine = outcomes[ours, one]
    random = median_ratio(mine.near, outcomes[RANDOM_FULL, one].near)
    beside = median_ratio(mine.near, outcomes[peer, one].near)
    return {
        "strategy": ours,
        "workers": one,
        "epochs_vs_random_full": round(random[0], 3),
        "epochs_vs_random_full_interval": [round(x, 3) for x in random[1:]],
        "epochs_vs_best_peer": round(beside[0], 3),
        "epochs_vs_best_peer_interval": [round(x, 3) for x in beside[1:]],
        "best_peer": peer,
        "regret_at_budget": {str(b): round(float(r.mean()), 3) for b, r in mine.regret.items()},
    }


def _price_fields(cost: Sequence[Price]) -> dict[str, float]:
    (default,) = (price for price in cost if price.is_default)
    return {
        "f1_lost": round(default.f1_lost, 3),
        "epochs_saved": round(default.share_saved, 4),
    }


def _body(
    outcomes: dict[tuple[str, int], Outcome],
    fields: dict[str, Any],
    workers: Sequence[int],
    curves: Curves,
) -> str:
    near = sum(c.best_f1 >= curves.best_f1 - WITHIN for c in curves.all())
    runs = len(curves.all())
    per = sorted({len(own) for own in curves.runs.values()})
    tables = "\n\n".join(_table(outcomes, count) for count in workers)
    beside, low, high = (fields["epochs_vs_best_peer"], *fields["epochs_vs_best_peer_interval"])
    unreached = math.isinf(outcomes[fields["best_peer"], fields["workers"]].epochs())
    bound = (
        f", or fewer: half of that one's searches were not near enough with all {EPOCHS}"
        if unreached
        else ""
    )
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
- Searches: {len(outcomes[RANDOM_FULL, workers[0]].curve)} of each strategy with each number of
  workers, {EPOCHS} epochs each; random search with all epochs has {RANDOM_EPOCHS}.
- Random, TPE and grid draw from the recorded space, learning rates but for the grid from its whole
  range; a drawn point has the curve of the nearest recorded one, and its seed decides which of its
  runs.
- ASHA is Optuna's `SuccessiveHalvingPruner` (reduction factor 3), which stops trials and resumes
  none. One epoch, then top K: as many random points as the budget has room for; a search of its own
  for each budget.

With {fields["workers"]} workers, the best of the package's own strategies is
**{fields["strategy"]}**: it needs {against:.2f} times the epochs of random search with all epochs
(95% interval {least:.2f} to {most:.2f}), and {beside:.2f} times ({low:.2f} to {high:.2f}) those of
the best other one, {fields["best_peer"]}{bound}.

64 workers with a budget of {LARGE} epochs train for {fields["utilisation_64"]:.1%} of their time
with that strategy ({LARGE_REPETITIONS} searches), until the last of the budget is handed out; what
is then left to do is not for all of them, whatever the strategy.

{tables}

Epochs: after which a quarter, half and three quarters of the searches have a checkpoint within
{WITHIN} F1; "-" where the budget was not enough. Regret: mean F1 below the table's best after a
budget, ± 1.96 standard errors.

![Best F1 against epochs](images/{PLOT.name})
"""


def _table(outcomes: dict[tuple[str, int], Outcome], workers: int) -> str:
    head = [
        f"{workers} worker{'s' if workers > 1 else ''}",
        "epochs, q1",
        "median",
        "q3",
        *(f"regret at {budget}" for budget in BUDGETS),
    ]
    rows = []
    for (name, count), outcome in outcomes.items():
        if count != workers:
            continue
        quartiles = [outcome.epochs(share) for share in (0.25, 0.5, 0.75)]
        rows.append(
            [
                name,
                *(f"{q:.0f}" if math.isfinite(q) else "-" for q in quartiles),
                *(_mean(outcome.regret[budget]) for budget in BUDGETS),
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
            spent = np.arange(1, max(BUDGETS) + 1)
            axis.plot(
                spent, outcomes[name, count].curve[:, : max(BUDGETS)].mean(axis=0), label=name
            )
        axis.set_title(f"{count} worker{'s' if count > 1 else ''}")
        axis.set_xlabel("epochs spent")
        axis.set_xscale("log")
    axes[0][0].set_ylabel("mean best F1 so far")
    best = max(outcome.curve[:, max(BUDGETS) - 1].mean() for outcome in outcomes.values())
    axes[0][0].set_ylim(best - 5, best + 0.3)
    axes[0][-1].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    PLOT.parent.mkdir(exist_ok=True)
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "qa_hpo"
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)
