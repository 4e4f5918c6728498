"""The sampler of a study: Optuna's TPE, seeded anew for each trial."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

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
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
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
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample one parameter by itself."""
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
