"""Replays searches: the study's own code, on recorded curves, by a simulated clock.

A simulated worker asks the study for a trial as real ones do, looks up what its epochs have
measured, records them and heeds the same rules after each; only the training is a look into the
table, and the time is what the recorded epoch took.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from bench.curves.memory import open_memory
from bench.curves.table import Curve, Point
from qa_hpo.config import StudyFile
from qa_hpo.finetune.records import EpochRecord
from qa_hpo.parameters import Parameters
from qa_hpo.search.asking import Asked, ask
from qa_hpo.search.budget import BudgetStep
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.sampling import derived_seed
from qa_hpo.search.stopping import PAUSED, StoppingRules
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.study import create_study
from qa_hpo.search.trials import finish, record_epoch

__all__ = ["Curves", "GridPoints", "RandomPoints", "Step", "Strategy", "Trace", "simulate"]


class Curves:
    """The curves of a table, found by any point near them.

    Args:
        study: the study file whose grid was recorded.
        curves: the curves.
    """

    def __init__(self, study: StudyFile, curves: Sequence[Curve]) -> None:
        self.study = study
        self.horizon = study.defaults.epochs
        self._axes = {name: dimension.values() for name, dimension in study.search.items()}
        self.runs: dict[Point, list[Curve]] = {}
        for curve in curves:
            self.runs.setdefault(curve.point, []).append(curve)
        self.points = list(self.runs)

    @property
    def best_f1(self) -> float:
        """The highest F1 that any run has reached, in percent."""
        return max(curve.best_f1 for curve in self.all())

    def all(self) -> list[Curve]:
        """All curves."""
        return [curve for runs in self.runs.values() for curve in runs]

    def near(self, parameters: Mapping[str, Any], seed: int) -> Curve:
        """A run of the nearest recorded point: its learning rate is the nearest by its logarithm.

        Args:
            parameters: the point.
            seed: decides which of its runs.
        """
        point = tuple((name, self._nearest(name, parameters[name])) for name in self._axes)
        runs = self.runs[point]
        return runs[seed % len(runs)]

    def whole(self) -> bool:
        """Whether every point of the grid has a run."""
        return len(self.points) == math.prod(len(axis) for axis in self._axes.values())

    def _nearest(self, name: str, value: Any) -> Any:
        axis = self._axes[name]
        if value in axis:
            return value
        return min(axis, key=lambda other: abs(math.log(other) - math.log(value)))  # type: ignore[arg-type]


class RandomPoints(BaseSampler):
    """Draws uniformly, each trial by its own seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = RandomSampler()

    def begin(self, number: int, draw: int = 0) -> None:
        self._random = RandomSampler(seed=derived_seed(f"random {draw}", self._seed, number))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class GridPoints(RandomPoints):
    """Goes through the points of a grid, in an order of chance."""

    def __init__(self, seed: int, points: Sequence[Point]) -> None:
        super().__init__(seed)
        self._points = random.Random(seed).sample(list(points), len(points))
        self._point: dict[str, Any] = {}

    def begin(self, number: int, draw: int = 0) -> None:
        super().begin(number, draw)
        self._point = dict(self._points[(number + draw) % len(self._points)])

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._point[param_name]


@dataclass(frozen=True)
class Strategy:
    """A way to search.

    Attributes:
        name: what tables call it.
        pruning: the study file's `[pruning]`.
        sampler: "tpe" for the study's own, "random" or "grid".
        pruner: Optuna's pruner in place of the study's own, if any.
    """

    name: str
    pruning: Mapping[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    pruner: Callable[[], BasePruner] | None = None


@dataclass(frozen=True)
class Step:
    """An epoch of a simulated search.

    Attributes:
        seconds: when it was recorded, by the simulated clock.
        trial: its trial's number.
        best_f1: the best F1 of the search so far, in percent.
    """

    seconds: float
    trial: int
    best_f1: float


@dataclass(frozen=True)
class Trace:
    """A simulated search.

    Attributes:
        steps: its epochs, in their order.
        utilisation: the share of the workers' time in which they trained, until the last of the
            budget was handed out, 0 … 1.
        pauses: how often a trial waited at a rung.
    """

    steps: tuple[Step, ...]
    utilisation: float
    pauses: int

    def epochs_to(self, f1: float) -> float:
        """Epochs until a trial reached an F1, infinite if none did."""
        return next((n for n, s in enumerate(self.steps, 1) if s.best_f1 >= f1), math.inf)

    def best_after(self, epochs: int) -> float:
        """The best F1 after so many epochs, in percent."""
        return self.steps[min(epochs, len(self.steps)) - 1].best_f1


def search_file(curves: Curves, strategy: Strategy, seed: int, epochs: int) -> StudyFile:
    """The study that searches the recorded space: its learning rates are a range."""
    recorded = curves.study
    search: dict[str, Any] = {
        name: {"choices": dimension.values()} for name, dimension in recorded.search.items()
    }
    if strategy.sampler != "grid":
        rates = cast("list[float]", recorded.search["learning_rate"].values())
        search["learning_rate"] = {"low": min(rates), "high": max(rates), "log": True}
    sections = recorded.model_dump(mode="json", by_alias=True, exclude={"search", "pruning"})
    return StudyFile.from_dict(
        {
            **sections,
            "study": {**sections["study"], "name": "simulated", "seed": seed},
            "search": search,
            "pruning": dict(strategy.pruning),
            "budget": {"epochs": epochs},
        }
    )


def simulate(
    curves: Curves,
    strategy: Strategy,
    *,
    seed: int,
    workers: int,
    epochs: int,
    until: float = math.inf,
    at_least: int = 0,
    opened: Callable[[], StudyStorage] = open_memory,
) -> Trace:
    """Search until a budget of epochs is spent, or an F1 is reached.

    Args:
        curves: what trials measure.
        strategy: how to search.
        seed: the study's seed.
        workers: how many work at once.
        epochs: the budget.
        until: an F1, in percent, that ends the search once it has spent `at_least` epochs.
        at_least: see there.
        opened: opens an empty storage.
    """
    joined = create_study(search_file(curves, strategy, seed, epochs), opened(), fingerprints={})
    study = joined.optuna_study
    if strategy.sampler != "tpe":
        grid = strategy.sampler == "grid"
        study.sampler = GridPoints(seed, curves.points) if grid else RandomPoints(seed)
    if strategy.pruner is not None:
        study.pruner = strategy.pruner()
    return _Simulation(joined, curves, workers, until, at_least).run()


class _Simulation:
    """Workers that take turns by a clock of their own."""

    def __init__(
        self, joined: JoinedStudy, curves: Curves, workers: int, until: float, at_least: int
    ) -> None:
        self.joined = joined
        self.curves = curves
        self.rules = StoppingRules(joined)
        self.until = until
        self.at_least = at_least
        self.workers = workers
        self.events: list[tuple[float, int, Asked]] = []
        self.order = itertools.count()
        self.records: dict[int, list[EpochRecord]] = {}
        self.steps: list[Step] = []
        self.best = 0.0
        self.busy: list[tuple[float, float]] = []
        self.last_handed_out = 0.0
        self.pauses = 0

    def run(self) -> Trace:
        idle = self.workers
        now = 0.0
        while self.best < self.until or len(self.steps) < self.at_least:
            while idle and self._begin(now):
                idle -= 1
            if not self.events:
                break
            now, _, asked = heapq.heappop(self.events)
            idle += not self._epoch(now, asked)
        end = self.last_handed_out
        used = sum(min(b, end) - a for a, b in self.busy if a < end)
        share = used / (end * self.workers) if end else 1.0
        return Trace(tuple(self.steps), share, self.pauses)

    def _begin(self, now: float) -> bool:
        """Whether a free worker has something to train now."""
        while isinstance(answer := ask(self.joined, worker="simulated"), Asked):
            if answer.stop_reason is None and self._train(now, answer):
                self.last_handed_out = now
                return True
            # All that was left was to finish it.
            self._finish(answer, self.rules.reason(answer, self._so_far(answer)))
        assert answer.step is not BudgetStep.ASK
        return False

    def _so_far(self, asked: Asked) -> list[EpochRecord]:
        return self.records.setdefault(asked.trial.number, [])

    def _train(self, now: float, asked: Asked) -> bool:
        """Begin a trial's next epoch; False if it has none left."""
        done = len(self._so_far(asked))
        if done >= asked.epochs_reserved:
            return False
        seconds = self._curve(asked).records[done].seconds
        heapq.heappush(self.events, (now + seconds, next(self.order), asked))
        self.busy.append((now, now + seconds))
        return True

    def _curve(self, asked: Asked) -> Curve:
        return self.curves.near(asked.parameters.flat(), asked.seed)

    def _epoch(self, now: float, asked: Asked) -> bool:
        """Record an epoch that has ended; return whether its worker goes on with the trial."""
        records = self._so_far(asked)
        record = self._curve(asked).records[len(records)]
        records.append(record)
        record_epoch(self.joined, asked.trial, record.as_dict())
        self.best = max(self.best, record.metrics["best_f1"])
        self.steps.append(Step(now, asked.trial.number, self.best))
        reserved = asked.epochs_reserved
        asked, reason = self.rules.after(asked, records)
        if asked.epochs_reserved > reserved:  # promoted at once
            self.last_handed_out = now
        if reason == PAUSED:
            self.pauses += 1
        elif reason is not None or not self._train(now, asked):
            self._finish(asked, reason)
        else:
            return True
        return False

    def _finish(self, asked: Asked, reason: str | None) -> None:
        best = max(record.metrics["best_f1"] for record in self._so_far(asked))
        finish(
            self.joined,
            asked.trial,
            state=TrialState.COMPLETE if reason is None else TrialState.PRUNED,
            stop_reason=reason,
            attrs={"best_f1": best},
        )


def parameters_of(curves: Curves, point: Point) -> Parameters:
    """A recorded point as complete parameters."""
    return Parameters.from_flat({**curves.study.defaults.flat(), **dict(point)})
