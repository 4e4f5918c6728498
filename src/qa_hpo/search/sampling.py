"""The sampler of a study: Optuna's TPE, seeded anew for each trial."""

import copy
import hashlib
from collections.abc import Container, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.search.experimental import on_purpose

__all__ = ["STARTUP_TRIALS", "PerTrialTPESampler", "derived_seed"]

STARTUP_TRIALS = 10
"""Finished trials before TPE takes over from random sampling: Optuna's default."""


def derived_seed(purpose: str, seed: int, number: int) -> int:
    """Return a seed that depends on its arguments alone, the same on every host.

    Args:
        purpose: What it is for, so that no two uses draw the same numbers.
        seed: The study's seed.
        number: A trial's number.

    Returns:
        A number in 0 … 2**32 - 1.
    """
    text = f"{purpose}:{seed}:{number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")


class PerTrialTPESampler(BaseSampler):
    """Multivariate TPE whose random numbers depend on the study's seed and the trial's number.

    Workers that share one seed would otherwise propose the same points, and workers with
    different seeds would make the start-up points depend on who asks first. Here the points
    sampled before ``STARTUP_TRIALS`` trials have finished are a function of seed and number
    alone; later ones also depend on what has finished by then.

    With two objectives, TPE is shown trials that ended early as if they were complete: it would
    rank them by their reports, and without any it puts them behind all complete ones in the order
    of their numbers, whatever their values. They are pruned for overfitting, and compete with
    their best epoch; so their values count like those of the others.

    A sampler serves one thread, and one trial at a time: sampling a trial ends before the next
    one is asked for.

    Args:
        seed: The study's seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = self._fresh(0)

    def begin(self, number: int, draw: int = 0) -> None:
        """Start anew from the seed of a trial, and of a draw for it, from 0."""
        purpose = "sampler" if draw == 0 else f"sampler, draw {draw}"
        self._tpe = self._fresh(derived_seed(purpose, self._seed, number))

    def _fresh(self, seed: int) -> TPESampler:
        with on_purpose():
            return TPESampler(
                multivariate=True,
                group=True,  # conditional parameters split the space
                constant_liar=True,  # running trials of other workers count as bad ones
                n_startup_trials=STARTUP_TRIALS,
                seed=seed,
            )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Start anew from this trial's own seed."""
        self.begin(trial.number)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample the parameters of ``search_space`` together."""
        return self._tpe.sample_relative(_by_values(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one parameter by itself."""
        study = _by_values(study)
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell TPE that ``trial`` is about to be finished."""
        self._tpe.after_trial(study, trial, state, values)


def _by_values(study: optuna.Study) -> optuna.Study:
    """Return a study in which TPE ranks every trial that has values by these."""
    several = len(study.directions) > 1
    return cast("optuna.Study", _ByValues(study)) if several else study


class _ByValues:
    """A study whose pruned trials seem to be complete, as far as they have values."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy, states, use_cache)
        return [_completed(trial) if _ended_early(trial) else trial for trial in trials]


def _ended_early(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.PRUNED and trial.values is not None


def _completed(trial: FrozenTrial) -> FrozenTrial:
    seeming = copy.copy(trial)  # the storage keeps finished trials as it has read them
    seeming.state = TrialState.COMPLETE
    return seeming
