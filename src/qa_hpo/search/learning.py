"""What a study learns from others: their trials as the sampler's prior knowledge.

With ``study.learn_from`` a study begins with what finished trials of other studies have shown, of a
quick look on a tenth of the data, say. They are copied when the study is created, are never run,
and count for no budget. Only the sampler sees them.

Scores of two studies do not compare: less data gives lower ones everywhere. So each trial counts by
its rank among the trials of its own study, as a quantile of a normal distribution, which is the
transformation of Salinas et al. 2020 ("A Quantile-based Approach for Hyperparameter Transfer
Learning").
"""

import copy
import logging
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from qa_hpo.config import StudyFile, parse_study
from qa_hpo.errors import StorageError
from qa_hpo.parameters import parameter_of
from qa_hpo.search.space import SearchSpace
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import epoch_records
from qa_hpo.validation import nearest

__all__ = ["by_rank", "learnt_from", "prior_trials"]

_logger = logging.getLogger(__name__)


def learnt_from(
    file: StudyFile, storage: StudyStorage, study_file: str
) -> list[list[dict[str, Any]]]:
    """Return what a new study learns from each study that its file names.

    Args:
        file: The new study's file.
        storage: Where all of them are.
        study_file: What the attribute is called that holds a study's file.

    Returns:
        For each study its finished trials that fit into the new one's space, each as ``params``,
        the searched ones, and ``values``, a score in percent for each of the study's objectives.

    Raises:
        StorageError: There is no such study, or it is not qa_hpo's, or none of its trials fits.
    """
    space = SearchSpace(file)
    learnt = []
    for name in file.study.learn_from:
        trials, other = _finished(name, storage, study_file)
        points = [_point(space, other.parameters_of(trial.params).flat()) for trial in trials]
        known = [
            {"params": point, "values": values}
            for trial, point in zip(trials, points, strict=True)
            if point is not None and (values := _values(trial, file.study.objectives)) is not None
        ]
        if not known:
            raise StorageError(
                f"study.learn_from: study {name!r} has no finished trial that fits into this "
                f"study's search space (it has {len(trials)} finished)"
            )
        _logger.info("learns from %d of %d trials of study %r", len(known), len(trials), name)
        learnt.append(known)
    return learnt


def prior_trials(
    learnt: Sequence[Sequence[dict[str, Any]]], space: SearchSpace
) -> tuple[FrozenTrial, ...]:
    """Return what a study has learnt as trials for its sampler, by their ranks.

    Their numbers are below 0, as no trial of the study's own has them.

    Args:
        learnt: What :func:`learnt_from` returned.
        space: The study's space.
    """
    found: list[FrozenTrial] = []
    for trials in learnt:
        scores = _quantiles([each["values"] for each in trials])
        for each, values in zip(trials, scores, strict=True):
            params = each["params"]
            trial = create_trial(
                params=params,
                distributions={name: space.distributions[name] for name in params},
                values=values,
            )
            trial.number = trial._trial_id = -1 - len(found)
            found.append(trial)
    return tuple(found)


def by_rank(trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> list[FrozenTrial]:
    """Return a study's own trials as they stand beside its prior ones.

    Those that have finished with a score, early or not, seem to be complete, with the quantiles of
    their ranks. Others are as they were.

    Args:
        trials: The trials.
        objectives: What the study maximises.
    """
    scored = {
        trial.number: values
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and (values := _values(trial, objectives)) is not None
    }
    quantiles = dict(zip(scored, _quantiles(list(scored.values())), strict=True))
    return [_complete(trial, quantiles.get(trial.number)) for trial in trials]


def _finished(
    name: str, storage: StudyStorage, study_file: str
) -> tuple[list[FrozenTrial], SearchSpace]:
    """Return a study's finished trials and its space."""
    try:
        key = storage.rdb.get_study_id_from_name(name)
    except KeyError:
        names = optuna.get_all_study_names(storage.rdb)
        hint = nearest(name, names) if names else "it holds none"
        raise StorageError(
            f"study.learn_from: {storage.shown} has no study {name!r}; {hint}"
        ) from None
    stored = storage.rdb.get_study_user_attrs(key).get(study_file)
    if stored is None:
        raise StorageError(f"study.learn_from: {name!r} is not a qa_hpo study")
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = storage.rdb.get_all_trials(key, deepcopy=False, states=states)
    return trials, SearchSpace(parse_study(stored, f"study {name!r}"))


def _point(space: SearchSpace, flat: dict[str, Any]) -> dict[str, Any] | None:
    """Return the searched parameters of a point, or None if it is not in a space."""
    point: dict[str, Any] = {}

    def choose(name: str, distribution: BaseDistribution) -> Any:
        value = flat.get(parameter_of(name))
        if not _contains(distribution, value):
            raise ValueError(name)
        point[name] = distribution.to_external_repr(distribution.to_internal_repr(value))
        return point[name]

    try:
        space.complete(choose)
    except ValueError:
        return None
    return point


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def _values(trial: FrozenTrial, objectives: Sequence[str]) -> list[float] | None:
    """Return a trial's score for each objective, or None if it lacks one."""
    scores = [trial.user_attrs.get(name) for name in objectives]
    if scores[0] is None and len(objectives) == 1:  # it has not finished yet
        of_epochs = [record.get(objectives[0]) for record in epoch_records(trial)]
        scores = [max((score for score in of_epochs if score is not None), default=None)]
    return None if None in scores else [float(score) for score in scores if score is not None]


def _quantiles(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return each value as the normal quantile of its rank among those of the same objective."""
    count, normal = len(values), NormalDist()
    columns = []
    for column in zip(*values, strict=True):
        ordered = sorted(column)
        # Equal values have the middle of their ranks.
        places = [(ordered.index(v) + count - ordered[::-1].index(v)) / 2 for v in column]
        columns.append([normal.inv_cdf(place / count) for place in places])
    return [list(row) for row in zip(*columns, strict=True)]


def _complete(trial: FrozenTrial, values: list[float] | None) -> FrozenTrial:
    if values is None:
        return trial
    seeming = copy.copy(trial)  # the storage keeps trials as it has read them
    seeming.state, seeming.values = TrialState.COMPLETE, values
    return seeming
