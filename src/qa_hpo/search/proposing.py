"""Which point of the search space a new trial gets: what the sampler draws, and nothing twice."""

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.parameters import Parameters
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.learning import by_rank
from qa_hpo.search.promotion import Rules
from qa_hpo.search.sampling import PerTrialTPESampler, derived_seed
from qa_hpo.search.space import SearchSpace
from qa_hpo.search.trials import FORGETTING, epoch_records

__all__ = ["propose"]

# How often the sampler may draw a point that another trial has, and how often chance then. A space
# of a few points runs out of them: one comes again then, with another seed.
_SAMPLER_DRAWS = 10
_RANDOM_DRAWS = 500


def propose(
    joined: JoinedStudy, trial: FrozenTrial, trials: Sequence[FrozenTrial]
) -> dict[str, Any]:
    """Return the searched parameters, those that apply, of a trial that has none yet.

    Call it under the study's lock, so that no other worker draws the same meanwhile.

    Args:
        joined: The study.
        trial: The trial, which runs.
        trials: The study's trials, as they were read under the lock.
    """
    study = cast("optuna.Study", _Snapshot(joined.optuna_study, _as_sampled(joined, trials)))
    taken = {
        _point(joined.space.parameters_of(other.params))
        for other in trials
        if other.params and other.number != trial.number
    }
    sampler = cast("PerTrialTPESampler", study.sampler)
    for draw in range(_SAMPLER_DRAWS):
        sampler.begin(trial.number, draw)
        drawn = _drawn(joined.space, _by_sampler(study, sampler, trial))
        if _point(joined.space.parameters_of(drawn)) not in taken:
            return drawn
    # The sampler keeps to the best corner of a small space.
    chance = RandomSampler(seed=derived_seed("chance", joined.file.study.seed, trial.number))
    for _ in range(_RANDOM_DRAWS):
        by_chance = _drawn(
            joined.space,
            lambda name, distribution: chance.sample_independent(study, trial, name, distribution),
        )
        if _point(joined.space.parameters_of(by_chance)) not in taken:
            return by_chance
    return drawn


def _as_sampled(joined: JoinedStudy, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return what the sampler is shown: the study's trials as they compare, and prior ones."""
    if Rules.of(joined.file) is not None:
        most = joined.file.constraints.max_forgetting
        trials = [_as_far(trial, most) for trial in trials]
    if not joined.prior:
        return trials
    return [*joined.prior, *by_rank(trials, joined.file.study.objectives)]


def _as_far(trial: FrozenTrial, most: float | None) -> FrozenTrial:
    """Return an unfinished trial as if it had ended with the epochs that it has.

    Samplers look at what has finished, and take what runs for bad, so that workers do not all try
    the same. Where trials are promoted, most of those with a result wait for more, and the ones
    that run further are the good ones. Of what they forget, ``most`` points are allowed.
    """
    records = epoch_records(trial)
    if trial.state.is_finished() or not records:
        return trial
    seeming = copy.copy(trial)  # the storage keeps trials as it has read them
    seeming.state = TrialState.PRUNED
    best = max(records, key=lambda record: record.get("best_f1") or 0.0)
    seeming.values = [best.get("best_f1") or 0.0]
    if most is not None:
        beyond = (best.get("old_task_drop") or 0.0) - most
        seeming.system_attrs = {**trial.system_attrs, FORGETTING: beyond}
    return seeming


class _Snapshot:
    """A study for a sampler, which would ask the database for its trials again."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study = study
        self._trials = trials
        self._storage = _Unwritten()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self,
        deepcopy: bool = False,  # never: samplers do not change trials
        states: Container[TrialState] | None = None,
        use_cache: bool = True,
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]


class _Unwritten:
    """A storage that drops what TPE notes of a running trial: the parameters that it will have.

    Other workers see it with all of them, since they are written before the lock is released.
    """

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Drop an attribute."""


def _by_sampler(
    study: optuna.Study, sampler: PerTrialTPESampler, trial: FrozenTrial
) -> Callable[[str, BaseDistribution], Any]:
    """Return what chooses as Optuna's ``Trial.suggest_…`` do: together where that is possible."""
    space = sampler.infer_relative_search_space(study, trial)
    together = sampler.sample_relative(study, trial, space)

    def choose(name: str, distribution: BaseDistribution) -> Any:
        if name in together and distribution._contains(
            distribution.to_internal_repr(together[name])
        ):
            return together[name]
        return sampler.sample_independent(study, trial, name, distribution)

    return choose


def _drawn(space: SearchSpace, choose: Callable[[str, BaseDistribution], Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}

    def choosing(name: str, distribution: BaseDistribution) -> Any:
        if not distribution.single():
            chosen[name] = choose(name, distribution)
        elif isinstance(distribution, CategoricalDistribution):
            chosen[name] = distribution.choices[0]
        else:
            chosen[name] = distribution.low  # type: ignore[attr-defined]
        return chosen[name]

    space.complete(choosing)
    return chosen


def _point(parameters: Parameters) -> tuple[Any, ...]:
    return tuple(parameters.flat().items())
