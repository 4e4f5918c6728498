"""A study in its storage: created, continued, joined by workers, and asked for trials.

The storage holds all that a worker needs: the study file, fingerprints of the data and the
versions of the packages are attributes of the study.
"""

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import TrialState

from qa_hpo.config import Budget, StudyFile, parse_study
from qa_hpo.errors import StorageError, StudyFileError
from qa_hpo.parameters import Parameters
from qa_hpo.paths import StudyPaths
from qa_hpo.search.agreement import as_json, check_unchanged, check_versions, versions
from qa_hpo.search.budget import BudgetStep, NextStep, next_step, spent
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.pruning import make_pruner
from qa_hpo.search.sampling import PerTrialTPESampler, derived_seed
from qa_hpo.search.space import SearchSpace
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import (
    BASELINE,
    EPOCHS_RESERVED,
    WORKER,
    epoch_records,
    lineage_number,
    trial_id,
)
from qa_hpo.validation import nearest

__all__ = [
    "DATA",
    "FORGIVEN",
    "METRIC",
    "STUDY_FILE",
    "VERSIONS",
    "Asked",
    "JoinedStudy",
    "ask",
    "check_fingerprints",
    "create_study",
    "hand_back",
    "load_study",
    "run_seed",
    "set_budget",
]

_logger = logging.getLogger(__name__)

STUDY_FILE = "study_file"
"""Study attribute: the study file as JSON, without its storage. Written last of all: a study
that has it is complete."""
DATA = "data"
"""Study attribute: the fingerprints of the corpora."""
VERSIONS = "versions"
"""Study attribute: the versions of the packages that the study was created with."""
FORGIVEN = "failures_forgiven"
"""Study attribute: how many trials had failed when the study was last continued. Who starts it
again wants it tried again."""
METRIC = "best_f1"
"""What a trial's value is."""

# System attribute: the trial's number, once it has been handed out completely. A retry has its
# predecessor's attributes, so the number says whose mark it is.
_HANDED_OUT = "qa_hpo:handed_out"


@dataclass(frozen=True)
class Asked:
    """A trial to run.

    Attributes:
        trial: The running trial. Its first heartbeat is recorded; the next are the worker's.
        parameters: What to run.
        lineage: The number of the trial that this one is a retry of, or its own.
        seed: The run's seed.
        epochs_reserved: Epochs after which the run ends, its inherited ones included: fewer
            than ``parameters.epochs`` where the budget has no more.
        step: Always ASK: so that ``ask``'s answers can be told apart by their ``step``.
    """

    trial: optuna.Trial
    parameters: Parameters
    lineage: int
    seed: int
    epochs_reserved: int
    step: BudgetStep = BudgetStep.ASK


def run_seed(study_seed: int, number: int) -> int:
    """Return the seed of a run, 0 … 2**32 - 1, from its lineage number."""
    return derived_seed("run", study_seed, number)


def create_study(
    file: StudyFile, storage: StudyStorage, *, fingerprints: Mapping[str, str]
) -> JoinedStudy:
    """Create the study that ``file`` describes, or continue it where it exists.

    A study is continued with the same file; only the storage, the budget and the artifacts may
    differ, and the latter two are taken over.

    Args:
        file: The study file.
        storage: Where the study is to be.
        fingerprints: Of the corpora: ``{"train": …, "validation": …}``.

    Raises:
        StudyFileError: The file's search space or a baseline cannot be used.
        StorageError: The study exists and differs, or another program's study has its name.
    """
    space = SearchSpace(file)
    baselines = [space.baseline(entry) for entry in file.baseline]
    name = file.study.name
    with storage.lock(name):
        existing = _attributes(name, storage)
        created = existing is None or STUDY_FILE not in existing
        if created:
            _set_aside_artifacts(file)
            _create(file, storage, baselines, fingerprints)
            file = _stored_file(name, storage)
        else:
            stored = _stored_file(name, storage)
            check_unchanged(stored, file, name)
            file = stored.model_copy(update={"budget": file.budget, "artifacts": file.artifacts})
        joined = replace(_joined(file, storage), created=created)
        if not created:
            check_fingerprints(joined, fingerprints)
            joined.optuna_study.set_user_attr(STUDY_FILE, as_json(file))
            failed = spent(joined.optuna_study).failed
            joined.optuna_study.set_user_attr(FORGIVEN, failed)
    return joined


def load_study(name: str, storage: StudyStorage) -> JoinedStudy:
    """Load a study from its storage alone.

    Raises:
        StorageError: There is no such study, or it is another program's.
    """
    existing = _attributes(name, storage)
    if existing is None:
        names = optuna.get_all_study_names(storage.rdb)
        hint = nearest(name, names) if names else "it holds no study; 'qa-hpo run' creates it"
        raise StorageError(f"{storage.shown}: no study is called {name!r}; {hint}")
    if STUDY_FILE not in existing:
        raise StorageError(f"{storage.shown}: {name!r} is not a qa_hpo study")
    return _joined(_stored_file(name, storage), storage)


def check_fingerprints(joined: JoinedStudy, fingerprints: Mapping[str, str]) -> None:
    """Check that this host may work on the study: the same data, the same major versions.

    Args:
        joined: The study.
        fingerprints: Of the corpora on this host; one that is left out is not compared.

    Raises:
        StorageError: A corpus or a major version differs; it is named, with both values.
    """
    name = joined.file.study.name
    stored = joined.optuna_study.user_attrs
    for corpus, fingerprint in fingerprints.items():
        expected = stored[DATA].get(corpus)
        if fingerprint != expected:
            raise StorageError(
                f"study {name!r}: data.{corpus} is not the corpus the study was created with "
                f"(fingerprint {fingerprint}, the study has {expected})"
            )
    check_versions(name, stored[VERSIONS])


def set_budget(joined: JoinedStudy, budget: Budget) -> JoinedStudy:
    """Store another budget, which all workers heed when they next ask.

    Returns:
        The study with that budget.
    """
    name = joined.file.study.name
    with joined.storage.lock(name):
        file = _stored_file(name, joined.storage).model_copy(update={"budget": budget})
        joined.optuna_study.set_user_attr(STUDY_FILE, as_json(file))
    return replace(joined, file=file)


def ask(joined: JoinedStudy, *, worker: str | None = None) -> Asked | NextStep:
    """Take a trial, or learn why there is none.

    Trials of dead workers are failed and queued again on the way. What is queued, baselines and
    retries, comes before what the sampler proposes.

    Args:
        joined: The study.
        worker: Who asks; stored with the trial.

    Returns:
        The trial, or a ``NextStep`` whose step is WAIT or SPENT.

    Raises:
        StorageError: The study was deleted or renamed.
    """
    name, study = joined.file.study.name, joined.optuna_study
    with joined.storage.lock(name):
        try:
            attributes = study.user_attrs
        except KeyError:
            raise StorageError(
                f"{joined.storage.shown}: study {name!r} was deleted or renamed"
            ) from None
        budget = parse_study(attributes[STUDY_FILE], f"study {name!r}").budget
        _fail_dead_trials(joined)
        step = next_step(study, budget, forgiven=attributes.get(FORGIVEN, 0))
        if step.step is not BudgetStep.ASK:
            return step
        return _hand_out(joined, step.epochs_left, worker)


def hand_back(joined: JoinedStudy, trial: optuna.Trial) -> None:
    """Fail a trial whose worker was told to end, and queue it again for another one.

    Unlike a dead worker's trial, it may be handed back as often as it takes, and keeps all its
    retries: being told to end is no sign that the trial ends its workers.
    """
    with joined.storage.lock(joined.file.study.name):
        frozen = joined.storage.rdb.get_trial(trial_id(trial))
        if frozen.state is TrialState.RUNNING:
            joined.storage.rdb.set_trial_state_values(trial_id(trial), TrialState.FAIL)
            joined.optuna_study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.WAITING,
                    params=frozen.params,
                    distributions=frozen.distributions,
                    user_attrs=frozen.user_attrs,
                    # As Optuna's own retries, but for the history, whose length is limited.
                    system_attrs={"failed_trial": frozen.number, **frozen.system_attrs},
                    intermediate_values=frozen.intermediate_values,
                )
            )


def _hand_out(joined: JoinedStudy, epochs_left: int | None, worker: str | None) -> Asked:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Heartbeat of storage")  # ours, see Asked
        trial = joined.optuna_study.ask()
    rdb = joined.storage.rdb
    rdb.record_heartbeat(trial_id(trial))  # a trial without one is never found dead
    parameters = joined.space.suggest(trial)
    reserved = parameters.epochs
    if epochs_left is not None:
        reserved = min(reserved, len(epoch_records(trial)) + epochs_left)
    trial.set_user_attr(EPOCHS_RESERVED, reserved)
    if worker is not None:
        trial.set_user_attr(WORKER, worker)
    lineage = lineage_number(rdb.get_trial(trial_id(trial)))
    rdb.set_trial_system_attr(trial_id(trial), _HANDED_OUT, trial.number)
    seed = run_seed(joined.file.study.seed, lineage)
    return Asked(trial, parameters, lineage, seed, reserved)


def _fail_dead_trials(joined: JoinedStudy) -> None:
    """Fail the trials whose workers died, which queues them again. The lock is held."""
    study = joined.optuna_study
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Trials are handed out under the lock, which we hold: this one's worker died in the
        # middle of it, perhaps before the first heartbeat, so nobody would find it stale.
        if trial.system_attrs.get(_HANDED_OUT) != trial.number:
            joined.storage.rdb.set_trial_state_values(trial_id(trial), TrialState.FAIL)
            retry = joined.storage.rdb.get_heartbeat_stale_trial_callback()
            if retry is not None:
                retry(study, copy.deepcopy(trial))  # it appends to the trial's history


def _create(
    file: StudyFile,
    storage: StudyStorage,
    baselines: list[dict[str, Any]],
    fingerprints: Mapping[str, str],
) -> None:
    """Create a study, or complete one whose creator died on the way. The lock is held."""
    name = file.study.name
    study = optuna.create_study(
        study_name=name, storage=storage.rdb, direction="maximize", load_if_exists=True
    )
    queued = study.get_trials(deepcopy=False)
    ours = all(
        trial.state is TrialState.WAITING and BASELINE in trial.user_attrs for trial in queued
    )
    if study.direction is not StudyDirection.MAXIMIZE or not ours:
        raise StorageError(
            f"{storage.shown}: {name!r} is not a qa_hpo study; choose another study.name"
        )
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        study.set_metric_names([METRIC])
    study.set_user_attr(DATA, dict(fingerprints))
    study.set_user_attr(VERSIONS, versions())
    for index in range(len(queued), len(baselines)):
        label = str(file.baseline[index].get("name", f"baseline {index}"))
        study.enqueue_trial(baselines[index], user_attrs={BASELINE: label})
    study.set_user_attr(STUDY_FILE, as_json(file))


def _set_aside_artifacts(file: StudyFile) -> None:
    """Move away what an earlier study of this name left, whose trials had the same numbers."""
    folder = StudyPaths(file.artifacts.path, file.study.name).folder
    if any(folder.glob("trial-*")):
        aside = folder.with_name(f"{folder.name}.until-{datetime.now():%Y%m%d-%H%M%S}")
        folder.rename(aside)
        _logger.warning("%s was left by an earlier study; it is now %s", folder, aside)


def _joined(file: StudyFile, storage: StudyStorage) -> JoinedStudy:
    study = optuna.load_study(
        study_name=file.study.name,
        storage=storage.rdb,
        sampler=PerTrialTPESampler(file.study.seed),
        pruner=make_pruner(file),
    )
    if study.direction is not StudyDirection.MAXIMIZE:
        raise StorageError(
            f"{storage.shown}: study {file.study.name!r} is minimised; qa_hpo maximises {METRIC}"
        )
    return JoinedStudy(file, storage, study, SearchSpace(file))


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
        return parse_study(attributes[STUDY_FILE], f"study {name!r}")
    except StudyFileError as error:
        mistakes = "; ".join(str(error).splitlines())
        raise StorageError(
            f"{storage.shown}: the stored study file is not valid: {mistakes}"
        ) from None
