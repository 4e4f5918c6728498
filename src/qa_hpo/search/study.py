"""A study in its storage: created, continued, and joined by workers.

The storage holds all that a worker needs: the study file, fingerprints of the data and the
versions of the packages are attributes of the study.
"""

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from qa_hpo.config import Budget, StudyFile, parse_study
from qa_hpo.errors import MissingStudyError, StorageError, StudyFileError
from qa_hpo.search.agreement import as_json, check_unchanged, check_versions, versions
from qa_hpo.search.budget import NextStep, next_step, spent
from qa_hpo.search.damage import check_study_attributes
from qa_hpo.search.experimental import on_purpose
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.learning import learnt_from, prior_trials
from qa_hpo.search.promotion import Ladder
from qa_hpo.search.pruning import make_pruner
from qa_hpo.search.sampling import PerTrialTPESampler
from qa_hpo.search.space import SearchSpace
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import BASELINE
from qa_hpo.validation import nearest

__all__ = [
    "COMMITS",
    "DATA",
    "FORGIVEN",
    "STUDY_FILE",
    "UID",
    "VERSIONS",
    "JoinedStudy",
    "check_fingerprints",
    "continued",
    "creatable",
    "create_study",
    "foreseen",
    "load_study",
    "set_budget",
    "stored_commits",
    "told_if_gone",
]

STUDY_FILE = "study_file"
"""Study attribute: the study file as JSON, without its storage. Written last of all: a study
that has it is complete."""
DATA = "data"
"""Study attribute: the fingerprints of the corpora and of the starts."""
COMMITS = "hub_commits"
"""Study attribute: the commits of the hub's repositories that it uses, by "models/ID" and
"datasets/ID". Whoever works on the study uses these, whatever the hub has now."""
VERSIONS = "versions"
"""Study attribute: the versions of the packages that the study was created with."""
FORGIVEN = "failures_forgiven"
"""Study attribute: how many trials had failed when the study was last continued. Who starts it
again wants it tried again."""
LEARNT = "learnt_from"
"""Study attribute: what it has learnt from other studies, in the order of its file."""
UID = "uid"
"""Study attribute: what tells its artifacts from those of other studies."""

_logger = logging.getLogger(__name__)


def create_study(
    file: StudyFile,
    storage: StudyStorage,
    *,
    fingerprints: Mapping[str, str],
    commits: Mapping[str, str] | None = None,
) -> JoinedStudy:
    """Create the study that ``file`` describes, or continue it where it exists.

    A study is continued with the same file; only the storage, the budget, the artifacts,
    ``data.test`` and the finals may differ, and all but the first are taken over.

    Args:
        file: The study file.
        storage: Where the study is to be.
        fingerprints: Of the corpora and starts, by their key in the file: ``{"data.train": …,
            "data.validation": …, "starts.base": …}``.
        commits: Of the hub's repositories that are used, by "models/ID" and "datasets/ID"; those
            that an existing study knows stay as they are.

    Raises:
        StudyFileError: The file's search space or a baseline cannot be used.
        StorageError: The study exists and differs, or another program's study has its name, or
            there is nothing to learn from a study that it is to learn from.
    """
    space = SearchSpace(file)
    baselines = [space.baseline(entry) for entry in file.baseline]
    name = file.study.name

    def creating() -> JoinedStudy:
        joined = continued(file, storage, fingerprints)
        if joined is None:
            learnt = creatable(file, storage)
            _create(file, storage, baselines, fingerprints, learnt, commits or {})
            return replace(_joined(_stored_file(name, storage), storage), created=True)
        known = joined.optuna_study.user_attrs.get(COMMITS, {})
        used = {**(commits or {}), **known}
        if used != known:
            joined.optuna_study.set_user_attr(COMMITS, used)
        joined.optuna_study.set_user_attr(STUDY_FILE, as_json(joined.file))
        joined.optuna_study.set_user_attr(FORGIVEN, spent(joined.optuna_study).failed)
        return joined

    return storage.locked(name, creating)


def stored_commits(name: str, storage: StudyStorage) -> dict[str, str]:
    """Return the commits of the hub's repositories that a study uses; none where there is none."""
    return dict((_attributes(name, storage) or {}).get(COMMITS, {}))


def continued(
    file: StudyFile, storage: StudyStorage, fingerprints: Mapping[str, str]
) -> JoinedStudy | None:
    """Return the study as ``create_study`` would continue it, or None where it would create it.

    Nothing is written.

    Raises:
        StorageError: The study exists and differs, or another program's study has its name.
    """
    name = file.study.name
    existing = _attributes(name, storage)
    if existing is None or STUDY_FILE not in existing:
        return None
    stored = _stored_file(name, storage)
    check_unchanged(stored, file, name)
    if file.artifacts.folder != stored.artifacts.folder:
        _logger.warning(
            "artifacts.folder was %s; move what is kept there to %s",
            *(stored.artifacts.folder, file.artifacts.folder),
        )
    # Whatever else differs was refused.
    taken_over = {
        "budget": file.budget,
        "artifacts": file.artifacts,
        "data": file.data,
        "evaluation": file.evaluation,
    }
    joined = _joined(stored.model_copy(update=taken_over), storage)
    check_fingerprints(joined, fingerprints)
    return joined


def creatable(file: StudyFile, storage: StudyStorage) -> list[list[dict[str, Any]]]:
    """Return what ``create_study`` would let a study learn from others, where it would create it.

    Nothing is written.

    Raises:
        StorageError: Another program's study has its name, or there is nothing to learn from a
            study that it is to learn from.
    """
    learnt = learnt_from(file, storage, STUDY_FILE)
    if _attributes(file.study.name, storage) is not None:
        _queued(optuna.load_study(study_name=file.study.name, storage=storage.rdb), file, storage)
    return learnt


def load_study(name: str, storage: StudyStorage) -> JoinedStudy:
    """Load a study from its storage alone.

    Raises:
        MissingStudyError: There is no such study, or it is another program's.
        StorageError: It cannot be used.
    """
    existing = _attributes(name, storage)
    if existing is None:
        names = optuna.get_all_study_names(storage.rdb)
        hint = nearest(name, names) if names else "it holds no study; 'qa-hpo run' creates it"
        raise MissingStudyError(f"{storage.shown}: no study is called {name!r}; {hint}")
    if STUDY_FILE not in existing:
        # Or it is just being created: the file is stored last.
        raise MissingStudyError(f"{storage.shown}: {name!r} is not a qa_hpo study")
    return _joined(_stored_file(name, storage), storage)


def check_fingerprints(joined: JoinedStudy, fingerprints: Mapping[str, str]) -> None:
    """Check that this host may work on the study: the same data, the same major versions.

    Args:
        joined: The study.
        fingerprints: Of corpora and starts on this host; one that is left out is not compared.

    Raises:
        StorageError: A corpus, a start or a major version differs; it is named, with both values.
    """
    name = joined.file.study.name
    stored = joined.optuna_study.user_attrs
    for what, fingerprint in fingerprints.items():
        expected = stored[DATA].get(what)
        if fingerprint != expected:
            raise StorageError(
                f"study {name!r}: {what} is not the one that the study was created with "
                f"(fingerprint {fingerprint}, the study has {expected})"
            )
    check_versions(name, stored[VERSIONS])


@contextlib.contextmanager
def told_if_gone(joined: JoinedStudy) -> Iterator[None]:
    """Tell of a study that was deleted or renamed meanwhile, in a dashboard perhaps.

    Raises:
        MissingStudyError: It was.
    """
    try:
        yield
    except KeyError:
        name = joined.file.study.name
        if _attributes(name, joined.storage) is not None:
            raise
        raise MissingStudyError(
            f"{joined.storage.shown}: study {name!r} was deleted or renamed"
        ) from None


def foreseen(joined: JoinedStudy) -> NextStep:
    """Return what a worker that asked now would be told, by the study as it was joined.

    Whoever only watches asks this: without the study's lock, and without taking a trial.
    """
    file, study = joined.file, joined.optuna_study
    trials = study.get_trials(deepcopy=False)
    return next_step(
        study,
        file.budget,
        evaluation=file.evaluation,
        forgiven=study.user_attrs.get(FORGIVEN, 0),
        trials=trials,
        ladder=Ladder.of(file, trials),
    )


def set_budget(joined: JoinedStudy, budget: Budget) -> JoinedStudy:
    """Store another budget, which all workers heed when they next ask.

    Returns:
        The study with that budget.
    """
    name = joined.file.study.name

    def setting() -> JoinedStudy:
        file = _stored_file(name, joined.storage).model_copy(update={"budget": budget})
        joined.optuna_study.set_user_attr(STUDY_FILE, as_json(file))
        return replace(joined, file=file)

    return joined.storage.locked(name, setting)


def _create(
    file: StudyFile,
    storage: StudyStorage,
    baselines: list[dict[str, Any]],
    fingerprints: Mapping[str, str],
    learnt: Sequence[Sequence[Mapping[str, Any]]],
    commits: Mapping[str, str],
) -> None:
    """Create a study, or complete one whose creator died on the way. The lock is held."""
    name = file.study.name
    objectives = file.study.objectives
    study = optuna.create_study(
        study_name=name,
        storage=storage.rdb,
        directions=["maximize"] * len(objectives),
        load_if_exists=True,
    )
    queued = _queued(study, file, storage)
    with on_purpose():
        study.set_metric_names(list(objectives))
    study.set_user_attr(UID, uuid.uuid4().hex[:8])
    study.set_user_attr(DATA, dict(fingerprints))
    study.set_user_attr(VERSIONS, versions())
    if commits:
        study.set_user_attr(COMMITS, dict(commits))
    if learnt:
        study.set_user_attr(LEARNT, learnt)
    for index in range(len(queued), len(baselines)):
        label = str(file.baseline[index].get("name", f"baseline {index}"))
        study.enqueue_trial(baselines[index], user_attrs={BASELINE: label})
    study.set_user_attr(STUDY_FILE, as_json(file))


def _queued(study: optuna.Study, file: StudyFile, storage: StudyStorage) -> list[FrozenTrial]:
    """Return the baselines in the queue of a study that is new, or was never completed.

    Raises:
        StorageError: It is another program's.
    """
    queued = study.get_trials(deepcopy=False)
    ours = all(
        trial.state is TrialState.WAITING and BASELINE in trial.user_attrs for trial in queued
    )
    if not _maximises(study, file.study.objectives) or not ours:
        raise StorageError(
            f"{storage.shown}: {file.study.name!r} is not a qa_hpo study; choose another study.name"
        )
    return queued


def _joined(file: StudyFile, storage: StudyStorage) -> JoinedStudy:
    study = optuna.load_study(
        study_name=file.study.name,
        storage=storage.rdb,
        sampler=PerTrialTPESampler(file.study.seed),
        pruner=make_pruner(file),
    )
    if not _maximises(study, file.study.objectives):
        objectives = file.study.objectives
        alike = len(study.directions) == len(objectives)
        wrong = "is minimised" if alike else "has other objectives"
        raise StorageError(
            f"{storage.shown}: study {file.study.name!r} {wrong}; qa_hpo maximises "
            f"{' and '.join(objectives)}"
        )
    attributes = study.user_attrs
    uid = attributes.get(UID)
    if uid is None:
        raise StorageError(
            f"{storage.shown}: study {file.study.name!r} is of an earlier version of qa_hpo; "
            "choose another study.name"
        )
    check_study_attributes(attributes, storage.shown, file.study.name)
    key = storage.rdb.get_study_id_from_name(file.study.name)
    space = SearchSpace(file)
    prior = prior_trials(attributes.get(LEARNT, ()), space)
    return JoinedStudy(file, storage, study, space, key, uid, prior)


def _maximises(study: optuna.Study, objectives: Sequence[str]) -> bool:
    return study.directions == [StudyDirection.MAXIMIZE] * len(objectives)


def _attributes(name: str, storage: StudyStorage) -> dict[str, Any] | None:
    """Return a study's user attributes, or None where there is no such study."""
    try:
        number = storage.rdb.get_study_id_from_name(name)
    except KeyError:
        return None
    return storage.rdb.get_study_user_attrs(number)


def _stored_file(name: str, storage: StudyStorage) -> StudyFile:
    attributes = _attributes(name, storage) or {}
    if STUDY_FILE not in attributes:
        raise StorageError(f"{storage.shown}: study {name!r} was deleted or renamed")
    try:
        # As JSON, whatever else another program has put there: then it is not valid.
        return parse_study(str(attributes[STUDY_FILE]), f"study {name!r}")
    except StudyFileError as error:
        mistakes = "; ".join(error.lines)
        raise StorageError(
            f"{storage.shown}: the stored study file is not valid: {mistakes}"
        ) from None
