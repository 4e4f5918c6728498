"""Whether a study in a database is as qa_hpo wrote it: other programs can change it there.

What reads a study relies on the types of its attributes; here they are looked at once, so that a
value that somebody changed is named instead of failing wherever it is first used.
"""

import contextlib
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from qa_hpo.errors import StorageError
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.retrying import first_line, is_outage
from qa_hpo.search.storage import StudyStorage
from qa_hpo.search.trials import KEPT
from qa_hpo.validation import reason

__all__ = ["check_exported", "check_study_attributes", "check_trials", "telling_of_damage"]


def _representable(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number of hundreds of digits
        raise ValueError("is too large") from None


Number = Annotated[float | int, AfterValidator(_representable)] | None


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("has no time zone")
    return text


# Of files in a folder.
_Key = Annotated[str, Field(pattern=r"^[0-9A-Za-z][\w.-]*$")]


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _StudyAttributes(_Stored):
    uid: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")] | None = None
    study_file: str
    data: dict[str, str]
    versions: dict[str, str]
    failures_forgiven: int = 0
    begun: Annotated[str, AfterValidator(_moment)] | None = None


class _Epoch(_Stored):
    epoch: Annotated[int, Field(ge=1)]
    val_loss: Number
    train_loss: Number = None
    seconds: float | int = 0.0
    eval_seconds: float | int = 0.0
    # JSON has no tuples.
    looks: list[Annotated[tuple[float | int, Number], Field(strict=False)]] = []
    __pydantic_extra__: dict[str, Number]


class _ExportedEpoch(_Epoch):
    train_loss: Number
    seconds: float | int
    eval_seconds: float | int
    best_f1: float | int


class _TrialAttributes(_Stored):
    epochs: list[_Epoch] = []
    best_epoch: int | None = None
    f1: Number = None
    exact: Number = None
    best_f1: Number = None
    best_exact: Number = None
    threshold: Number = None
    crossfit_f1: Number = None
    old_task_f1: Number = None
    old_task_drop: Number = None
    train_seconds: Number = None
    peak_memory_mib: Number = None
    epochs_reserved: int = 0
    cpu_threads: int | None = None
    device_batch: int | None = None
    repeat_of: int | None = None
    worker: str | None = None
    stop_reason: str | None = None
    baseline: str | None = None
    cause: str | None = None
    error: str | None = None


class _Kept(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    epoch: int
    resume: _Key | None
    checkpoint: _Key
    checkpoint_epoch: int
    answers: _Key | None = None


_STUDY = TypeAdapter(_StudyAttributes)
_TRIAL = TypeAdapter(_TrialAttributes)
_KEPT = TypeAdapter(_Kept | None)
_EXPORTED = TypeAdapter(list[_ExportedEpoch])

_SCORES = ("f1", "exact", "best_f1", "best_exact", "best_f1_thresh", "total")
# What a score on the old task comes with.
_OLD_TASK = {"old_task_f1": "old_task_f1_no_null", "old_task_drop": "old_task_drop_no_null"}


def check_study_attributes(attributes: dict[str, Any], shown: str, name: str) -> None:
    """Check what a study says of itself.

    Args:
        attributes: The study's user attributes.
        shown: The storage, for people.
        name: The study's name.

    Raises:
        StorageError: Something is not of the type that qa_hpo wrote.
    """
    _check(_STUDY, attributes, f"{shown}: study {name!r}")


def check_trials(joined: JoinedStudy) -> None:
    """Check what the trials of a study say of themselves.

    Raises:
        StorageError: Something is not of the type that qa_hpo wrote; the trial is named.
    """
    for trial in joined.optuna_study.get_trials(deepcopy=False):
        place = _place(joined, trial)
        _check(_TRIAL, trial.user_attrs, place)
        _check(_KEPT, trial.system_attrs.get(KEPT), place, KEPT)
        _check_best_epoch(trial, place)


def check_exported(joined: JoinedStudy, trial: FrozenTrial) -> None:
    """Check that what is exported of a trial is all there; tables and reports need less.

    Raises:
        StorageError: Something is missing, or not of the type that qa_hpo wrote.
    """
    place = _place(joined, trial)
    _check(_EXPORTED, trial.user_attrs.get("epochs", []), place, "epochs")
    best = trial.user_attrs.get("best_epoch")
    if best is None:
        raise _damaged(place, "best_epoch is missing")
    _check_best_epoch(trial, place)
    record = _records(trial)[best]
    with_old_task = [name for score, name in _OLD_TASK.items() if record.get(score) is not None]
    for name in (*_SCORES, *with_old_task):
        if record.get(name) is None:
            raise _damaged(place, f"epochs: {name} of epoch {best} is missing")


def _place(joined: JoinedStudy, trial: FrozenTrial) -> str:
    return f"{joined.storage.shown}: study {joined.file.study.name!r}, trial {trial.number}"


def _records(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    return {record["epoch"]: record for record in trial.user_attrs.get("epochs", [])}


def _check_best_epoch(trial: FrozenTrial, place: str) -> None:
    best = trial.user_attrs.get("best_epoch")
    if best is None:
        return
    records = _records(trial)
    if best not in records:
        raise _damaged(place, f"best_epoch is {best}, of which there is no record")
    for name in ("best_f1", "threshold"):
        if trial.user_attrs.get(name) is None:
            raise _damaged(place, f"{name} is missing, and best_epoch is {best}")
    for name in _SCORES:
        value = records[best].get(name, 0.0)  # absent is enough for tables
        if value is None or not math.isfinite(value):
            raise _damaged(place, f"epochs: {name} of epoch {best} is {value!r}, not a number")


def _check(type_: TypeAdapter[Any], value: Any, place: str, within: str = "") -> None:
    try:
        type_.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [within, *map(str, first["loc"])]
        # The union's members, of which the user wrote none.
        where = ".".join(p for p in parts if p and p not in {"float", "int", "_Kept"})
        missing = first["type"] == "missing"  # its input is all the rest
        why = "is missing" if missing else f"{reason(first)}, got {first['input']!r}"
        raise _damaged(place, f"{where}{' ' if missing else ': '}{why}") from None


def _damaged(place: str, what: str) -> StorageError:
    return StorageError(f"{place}: {what}; another program has changed it, or damaged the database")


@contextlib.contextmanager
def telling_of_damage(storage: StudyStorage, *more: type[Exception]) -> Iterator[None]:
    """Tell of a database in which tables or rows cannot be read, in one line.

    Args:
        storage: The database.
        more: What means the same here, beside a database's own errors.

    Raises:
        StorageError: It is damaged.
    """
    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *more)
    try:
        yield
    except kinds as error:
        if is_outage(error):
            raise
        why = first_line(error)
        raise StorageError(f"{storage.shown}: the database is damaged: {why}") from error
