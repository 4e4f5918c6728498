"""When a trial ends early: its loss rises, it is hopeless beside others, or it diverges.

Reports are minus the validation loss at step = epoch, counted from 1, in a maximised study:
Optuna's pruners and TPE read reports in the study's direction.
"""

import itertools
import math
from collections.abc import Container, Sequence
from typing import Any, cast

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import StudyFile
from qa_hpo.search.sampling import derived_seed
from qa_hpo.sections import Pruning

__all__ = [
    "STOP_REASONS",
    "OverfittingRule",
    "SameHorizonPruner",
    "as_number",
    "diverged",
    "is_control",
    "make_pruner",
    "overfits",
]

STOP_REASONS = ("overfitting", "hopeless", "diverged", "budget")
"""Why a trial ended before the end of its last epoch."""


class OverfittingRule:
    """The rule that a validation loss which keeps above its best means overfitting.

    A trial overfits after an evaluation if each of its last losses, as many as ``patience`` epochs
    have, is above the best of the losses before them by more than ``min_delta``. With 1.235,
    1.217, 1.359 at the ends of epochs, patience 1 and min_delta 0 it overfits after the third
    epoch, by 0.142; with patience 2 it does not yet. A loss that is NaN counts as above every
    number and never as the best.

    Args:
        patience: Epochs in a row, at least 1.
        min_delta: By how much the loss must be above its best, in nats, at least 0.
        evaluations_per_epoch: Losses of an epoch, its looks and its end, at least 1. Where an
            epoch has too few steps for as many as were asked for, give how many it has.

    Raises:
        ValueError: A number below its least value.
    """

    def __init__(
        self, patience: int = 1, min_delta: float = 0.0, evaluations_per_epoch: int = 1
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be at least 0 and finite, got {min_delta}")
        if evaluations_per_epoch < 1:
            raise ValueError(
                f"evaluations_per_epoch must be at least 1, got {evaluations_per_epoch}"
            )
        self.patience = patience
        self.min_delta = min_delta
        self.evaluations_per_epoch = evaluations_per_epoch

    def overfits(self, val_losses: Sequence[float]) -> bool:
        """Return whether a trial overfits after the last of its ``val_losses``.

        Args:
            val_losses: All of them in their order, in nats, looks within epochs included.
        """
        last = self.patience * self.evaluations_per_epoch
        earlier = [loss for loss in val_losses[:-last] if not math.isnan(loss)]
        if not earlier:
            return False
        # None of the last losses is a new best, so all of them have the same best before them.
        limit = min(earlier) + self.min_delta
        return all(not loss <= limit for loss in val_losses[-last:])


def overfits(
    pruning: Pruning, epochs: Sequence[Sequence[float]], looks: Sequence[float] = ()
) -> bool:
    """Return whether a trial overfits after an epoch, or after a look within the next one.

    Looks can show it earlier. They never show it later: after an epoch, the rule is also applied to
    the ends of epochs alone, since a loss that was low for a moment within an epoch would otherwise
    begin the patience anew.

    Args:
        pruning: How much a loss may rise, and for how long.
        epochs: The losses of each finished epoch in nats, its end last.
        looks: Those of the epoch that goes on.
    """
    # As many as there are: an epoch of few steps has fewer than the file asks for. Before the
    # first one has ended, no trial overfits: patience is an epoch at least.
    evaluations = len(epochs[-1]) if epochs else pruning.evaluations_per_epoch
    patience, min_delta = pruning.patience, pruning.min_delta
    losses = [*itertools.chain(*epochs), *looks]
    if OverfittingRule(patience, min_delta, evaluations).overfits(losses):
        return True
    ends = [epoch[-1] for epoch in epochs]
    return not looks and OverfittingRule(patience, min_delta).overfits(ends)


class SameHorizonPruner(BasePruner):
    """Show another pruner only the trials that train for as many epochs as the one it judges.

    The learning rate's schedule spans all epochs of a trial, so the first epochs of a 2-epoch
    and a 4-epoch trial differ for reasons other than quality. Where epochs are not searched,
    all trials have the same horizon.

    Args:
        pruner: The pruner that judges. It may read trials and direction of a study, no more.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self._pruner = pruner

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the inner pruner ends ``trial``, judged among its like."""
        return self._pruner.prune(cast("optuna.Study", _SameHorizon(study, trial)), trial)


class _SameHorizon:
    """A study that seems to hold only the trials with the same horizon as ``trial``."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._study = study
        self._horizon = trial.params.get("epochs")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [trial for trial in trials if trial.params.get("epochs") == self._horizon]


def make_pruner(study: StudyFile) -> BasePruner:
    """Return the pruner across trials that ``study`` asks for.

    The median pruner compares trials of the same number of epochs. Hyperband compares all
    trials at the same epoch, whatever their horizon, and wants to be the study's own pruner.
    With two objectives there is none: the study file says so, since nothing is reported there.
    """
    pruning = study.pruning
    if pruning.across == "median":
        # Optuna counts steps from 0 and leaves those below n_warmup_steps alone; ours are
        # counted from 1.
        return SameHorizonPruner(
            MedianPruner(
                n_startup_trials=pruning.startup_trials, n_warmup_steps=pruning.warmup_epochs + 1
            )
        )
    if pruning.across == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=_longest(study))
    return NopPruner()


def _longest(study: StudyFile) -> int:
    """Return the greatest number of epochs that a trial of ``study`` can have."""
    dimension = study.search.get("epochs")
    own = dimension.values() if dimension else []
    fallback = [] if dimension and not dimension.when else [study.defaults.epochs]
    return max(int(value) for value in [*own, *fallback])


def is_control(seed: int, number: int, fraction: float) -> bool:
    """Return whether a trial is a control, which is never pruned.

    Args:
        seed: The study's seed.
        number: The trial's number.
        fraction: The share of trials that are controls, 0 … 1.
    """
    return derived_seed("control", seed, number) < fraction * 2**32


def as_number(loss: float | None) -> float:
    """Return a loss as records have it as a number: null stands for one that is not finite."""
    return math.nan if loss is None else loss


def diverged(val_loss: float, max_length: int) -> bool:
    """Return whether a validation loss shows that training has gone wrong.

    Args:
        val_loss: The mean of the start's and the end's cross-entropy, in nats.
        max_length: The most tokens a window has: guessing uniformly among them costs
            ln(max_length), so a model with a higher loss is worse than one that knows nothing.
    """
    return not math.isfinite(val_loss) or val_loss > math.log(max_length)
