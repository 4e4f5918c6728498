"""Promotion: all trials a little, the better ones further, none of it done twice.

With ``pruning.across = "promote"`` a trial waits when it has trained as many epochs as a *rung*
says, its resume state kept, and goes on when it is among the best of those that have come as far.
That is asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning", algorithm 2), but a promoted trial is the same trial, from where it waited.
No worker waits for a rung to fill: whoever is free promotes a trial that may go on, or else begins
another one.

All trials of such a study have the same horizon, which the learning rate's schedule spans, and are
compared after equally many epochs of it: a trial's epochs are the same whether it waits in between
or not, and no trial is ahead because its learning rate has come down already.

Where a trial stands follows from its epoch records alone: it waits at a rung when it is in the
queue with as many epochs as that rung says. So nothing has to be set right when a worker dies.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import StudyFile
from qa_hpo.search.failures import is_retried, lineages
from qa_hpo.search.pruning import is_control
from qa_hpo.search.trials import (
    BASELINE,
    REPEAT_OF,
    configuration_number,
    epoch_records,
)

__all__ = ["Ladder", "Rules", "rungs"]


def rungs(first: int, reduction_factor: int, horizon: int) -> tuple[int, ...]:
    """Return after how many epochs trials wait: ``first``, and each time as many times more.

    Args:
        first: Epochs of the first rung.
        reduction_factor: Of this many trials, one goes on.
        horizon: Epochs of a trial that is promoted all the way; it does not wait there.
    """
    found = []
    while first < horizon:
        found.append(first)
        first *= reduction_factor
    return tuple(found)


@dataclass(frozen=True)
class Rules:
    """How a study promotes.

    Attributes:
        reduction_factor: Of this many trials, one goes on.
        rungs: After how many epochs trials wait.
        horizon: Epochs of a trial that is promoted all the way.
        seed: The study's seed.
        control_fraction: The share of trials that never wait.
    """

    reduction_factor: int
    rungs: tuple[int, ...]
    horizon: int
    seed: int
    control_fraction: float

    @classmethod
    def of(cls, file: StudyFile) -> "Rules | None":
        """Return the rules of a study, or None if it does not promote."""
        pruning = file.pruning
        if pruning.across != "promote":
            return None
        fixed = file.search.get("epochs")
        horizon = file.defaults.epochs if fixed is None else int(fixed.values()[0])
        steps = rungs(pruning.first_rung, pruning.reduction_factor, horizon)
        return cls(
            reduction_factor=pruning.reduction_factor,
            rungs=steps,
            horizon=horizon,
            seed=file.study.seed,
            control_fraction=pruning.control_fraction,
        )

    def expected_epochs(self, trials: int, exempt: int = 0) -> int:
        """Return how many epochs a study trains that many trials for, if none ends early.

        As if those that never wait were like the others.

        Args:
            trials: All of them.
            exempt: Of these, how many never wait.
        """
        stops = (*self.rungs, self.horizon)
        climbing = trials - exempt
        total = exempt * self.horizon + climbing * stops[0]
        for here, there in itertools.pairwise(stops):
            climbing = min(climbing, max(1, climbing // self.reduction_factor))
            total += climbing * (there - here)
        return total

    def exempts(self, trial: FrozenTrial) -> bool:
        """Return whether a trial never waits.

        Baselines are what all others are compared with, finalists have shown what they are worth,
        and controls show what promotion costs.
        """
        return (
            BASELINE in trial.user_attrs
            or REPEAT_OF in trial.user_attrs
            or is_control(self.seed, configuration_number(trial), self.control_fraction)
        )

    def next_stop(self, trial: FrozenTrial) -> int:
        """Return after how many epochs a trial that goes on waits again, or is done."""
        if self.exempts(trial):
            return self.horizon
        trained = len(epoch_records(trial))
        return next((rung for rung in self.rungs if rung > trained), self.horizon)


class Ladder:
    """Where the trials of a study stand.

    Args:
        rules: How the study promotes.
        trials: All its trials, as they were read under the study's lock.
    """

    def __init__(self, rules: Rules, trials: Sequence[FrozenTrial]) -> None:
        self.rules = rules
        self._by_rung: dict[int, dict[int, int]] = {}
        # Of each trial the latest attempt; one that failed for good is out of the comparison.
        self._trials = [
            own[-1]
            for own in lineages(trials).values()
            if own[-1].state is not TrialState.FAIL or is_retried(own)
        ]
        self._records = {trial.number: epoch_records(trial) for trial in self._trials}

    @classmethod
    def of(cls, file: StudyFile, trials: Sequence[FrozenTrial]) -> "Ladder | None":
        """Return where a study's trials stand, or None if it does not promote."""
        rules = Rules.of(file)
        return None if rules is None else cls(rules, trials)

    @cached_property
    def paused(self) -> list[FrozenTrial]:
        """The trials that wait at a rung, the highest rung first, and there the best first."""
        waiting = [
            (-rung, self._ranks(rung)[trial.number], trial)
            for trial in self._trials
            if trial.state is TrialState.WAITING and (rung := self.rung(trial)) is not None
        ]
        return [trial for _, _, trial in sorted(waiting, key=lambda each: each[:2])]

    def rung(self, trial: FrozenTrial) -> int | None:
        """Return the rung at which a trial waits if it does not run; None if at none."""
        trained = len(epoch_records(trial))
        return trained if trained in self.rules.rungs and not self.rules.exempts(trial) else None

    def promoted(self) -> FrozenTrial | None:
        """Return the trial that goes on next, or None if no waiting one may."""
        return next((trial for trial in self.paused if self.may_go_on(trial)), None)

    def may_go_on(self, trial: FrozenTrial) -> bool:
        """Return whether a trial at a rung is among the best of those that have come as far."""
        return self.is_among_best(trial, len(epoch_records(trial)))

    def is_among_best(self, trial: FrozenTrial, rung: int) -> bool:
        """Return whether a trial was, at a rung that it has reached, among the best so far."""
        ranks = self._ranks(rung)
        return ranks[trial.number] < len(ranks) // self.rules.reduction_factor

    def hopeless(self, most: int | None) -> FrozenTrial | None:
        """Return a waiting trial that cannot be promoted any more, or None.

        Args:
            most: As many trials can there ever be, those there are included; None if nobody knows.
        """
        return next((t for t in reversed(self.paused) if self.is_hopeless(t, most)), None)

    def is_hopeless(self, trial: FrozenTrial, most: int | None) -> bool:
        """Return whether too many trials are ahead of one at a rung for it ever to go on.

        Unless trials that are ahead fail for good later, which nobody can know. The best at a rung
        is not hopeless, however few trials there can be.

        Args:
            trial: A trial at a rung.
            most: As many trials can there ever be, those there are included; None if nobody knows.
        """
        if most is None:
            return False
        rank = self._ranks(len(epoch_records(trial)))[trial.number]
        return rank >= max(1, most // self.rules.reduction_factor)

    def leads(self, trial: FrozenTrial) -> bool:
        """Return whether a trial at a rung is the best of those that have come as far."""
        return self._ranks(len(epoch_records(trial)))[trial.number] == 0

    def _ranks(self, rung: int) -> dict[int, int]:
        """Return how many are ahead of each trial that has come as far as a rung, by its number.

        Wherever they are now, they are ranked by what they had reached there.
        """
        if rung not in self._by_rung:
            as_far = [
                (*_standing(records[:rung]), number)
                for number, records in self._records.items()
                if len(records) >= rung
            ]
            self._by_rung[rung] = {each[-1]: rank for rank, each in enumerate(sorted(as_far))}
        return self._by_rung[rung]


def _standing(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return what a trial had reached with these epochs, less being better.

    By its best F1 so far, which is what it is worth. While a model answers no question yet, all
    have the same F1, and the loss tells more; among equals the earlier trial goes on.
    """
    scores = [record.get("best_f1") for record in records]
    losses = [record.get("val_loss") for record in records]
    best = max((score for score in scores if score is not None), default=-math.inf)
    loss = min((loss for loss in losses if loss is not None), default=math.inf)
    return -best, loss
