"""A study, ready for a worker or for reading."""

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from qa_hpo.config import StudyFile
from qa_hpo.search.space import SearchSpace
from qa_hpo.search.storage import StudyStorage

__all__ = ["JoinedStudy"]


@dataclass(frozen=True)
class JoinedStudy:
    """A study, ready for a worker or for reading.

    Attributes:
        file: The study file as it is stored, with the storage's URL left out.
        storage: Where the study is kept.
        optuna_study: Optuna's study, with the sampler and the pruner that the file asks for.
        space: What is searched.
        key: Its key in the storage.
        uid: What tells this study's artifacts from those of others, 8 hexadecimal digits.
        prior: What it has learnt from other studies, as trials for its sampler alone.
        created: Whether this call created the study.
    """

    file: StudyFile
    storage: StudyStorage
    optuna_study: optuna.Study
    space: SearchSpace
    key: int
    uid: str
    prior: tuple[FrozenTrial, ...] = ()
    created: bool = False
