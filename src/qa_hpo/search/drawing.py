"""Configurations as a study's trials may have them, drawn before it has begun."""

import optuna

from qa_hpo.config import StudyFile
from qa_hpo.parameters import Parameters
from qa_hpo.search.space import SearchSpace

__all__ = ["drawn"]


def drawn(file: StudyFile, number: int) -> list[Parameters]:
    """Return the configurations of ``number`` trials: the baselines, then drawn at random.

    They are the same each time. A sampler that learns will choose others.

    Raises:
        StudyFileError: The search space or a baseline cannot be used.
    """
    space = SearchSpace(file)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=file.study.seed))
        for entry in file.baseline:
            study.enqueue_trial(space.baseline(entry))
        return [space.suggest(study.ask()) for _ in range(number)]
    finally:
        optuna.logging.set_verbosity(verbosity)
