"""Optuna's relational storage, made to outlive outages of its database.

A server that restarts, a network that fails for a minute or a file that others keep locked must
not cost a trial. Every call is made again until it succeeds; one whose commit landed although its
answer was lost is recognised when it is made again. What belongs together is written in one
transaction.
"""

import contextlib
import copy
import functools
import gc
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from qa_hpo.errors import OutageError
from qa_hpo.search.statements import insert_params, is_as, set_state, upsert

__all__ = ["PATIENCE_S", "NotOursError", "RetryingRDBStorage", "first_line", "is_outage"]

PATIENCE_S = 1800.0
"""How long calls are made again before an outage is given up: a server's upgrade takes less, and
a worker that waits for longer only keeps a GPU from others."""

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 10.0

# What SQLite calls a database that others write to for longer than the busy timeout.
_SQLITE_BUSY = ("locked", "busy")
# PostgreSQL's errors that pass, or the classes of them: connections, serialisation, resources,
# and the server's shutdown and start.
_PASSING_STATES = ("08", "40", "53", "57P01", "57P02", "57P03")
# What a server says before there is a connection, where errors have no state.
_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "pg_hba.conf")

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Optuna's storage is called by Study, by its samplers and by its cache; each method is one
# transaction and may be made again, but for those that are defined below.
_REPEATABLE = (
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "set_trial_param",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
)


def is_outage(error: BaseException | None) -> bool:
    """Return whether a call that failed with ``error`` may succeed when it is made again."""
    # The last of these: a call that was made on after its connection had broken.
    passing = (PoolTimeoutError, PendingRollbackError)
    while error is not None and not isinstance(error, (DBAPIError, *passing)):
        error = error.__cause__
    if error is None:
        return False
    if isinstance(error, passing) or error.connection_invalidated:
        return True
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_PASSING_STATES)
    if type(error.orig).__module__.startswith("sqlite3"):
        return any(word in str(error.orig) for word in _SQLITE_BUSY)
    return not any(words in str(error.orig) for words in _REFUSALS)


class NotOursError(Exception):
    """A trial is not as it was seen under the study's lock, which is lost: begin again."""


class RetryingRDBStorage(RDBStorage):
    """Optuna's storage, whose calls are made again until an outage is over.

    Heartbeats are not: the next one comes soon. Within :meth:`fenced` nothing is: who holds a
    study's lock may have lost it with the connection, and has to begin again.

    Attributes:
        patience_s: Seconds after which an outage is given up with an ``OutageError``.
        wait: Waits for so many seconds between two attempts; what it raises ends the waiting.
    """

    patience_s: float = PATIENCE_S
    wait: Callable[[float], None] = staticmethod(time.sleep)

    # Made here, as Optuna's constructor calls some of the methods.
    def __new__(cls, *_arguments: Any, **_options: Any) -> "RetryingRDBStorage":
        """Make the storage ready for the calls of Optuna's constructor."""
        storage = super().__new__(cls)
        storage._thread = threading.local()
        storage._silent_since = {}
        return storage

    _thread: threading.local
    _silent_since: dict[int, float]

    @contextlib.contextmanager
    def fenced(self) -> Iterator[None]:
        """Let the calls of this thread fail at once meanwhile."""
        before = getattr(self._thread, "fenced", False)
        self._thread.fenced = True
        try:
            yield
        finally:
            self._thread.fenced = before

    def through_outages(self, call: Callable[[], Result]) -> Result:
        """Return what ``call`` returns, which is called again while the database is out.

        Args:
            call: Whatever may be begun again after it failed at any point.

        Raises:
            OutageError: The outage lasted longer than ``patience_s``.
        """
        if getattr(self._thread, "fenced", False):
            return call()
        began: float | None = None
        delay = _FIRST_DELAY_S
        while True:
            try:
                result = call()
            except NotOursError:
                self.wait(_FIRST_DELAY_S)
            except (StorageInternalError, SQLAlchemyError) as error:
                if not is_outage(error):
                    raise
                now = time.monotonic()
                self.remove_session()
                if began is None:
                    began = now
                    _logger.warning(
                        "the database does not answer (%s); trying again", first_line(error)
                    )
                if now - began > self.patience_s:
                    lasted = f"the database has not answered for {now - began:.0f} s"
                    raise OutageError(f"{lasted}: {first_line(error)}") from None
                # Not all workers at once, when a server comes back; and no longer than is left.
                left = self.patience_s - (now - began)
                self.wait(min(delay * random.uniform(0.5, 1.5), left))
                delay = min(2 * delay, _LONGEST_DELAY_S)
            else:
                if began is not None:
                    _logger.warning(
                        "the database answers again after %.1f s", time.monotonic() - began
                    )
                return result

    def _get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        """Return trials, which may be thousands of them, as Optuna does."""

        def read() -> list[FrozenTrial]:
            with _collecting_later():
                return RDBStorage._get_trials(self, *arguments, **options)

        return self.through_outages(read)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set a trial's state and values, as Optuna says."""
        return self._finishing(
            trial_id,
            state,
            values,
            lambda: RDBStorage.set_trial_state_values(self, trial_id, state, values),
            landed=True,
        )

    def write_trial(
        self,
        trial_id: int,
        *,
        params: Mapping[str, tuple[Any, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
        reports: Mapping[int, float] | None = None,
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
        expected: tuple[TrialState, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write all of this to an unfinished trial in one transaction: all of it or nothing.

        Args:
            trial_id: The trial's key.
            params: Parameters that it has not had, each with its distribution. That other
                trials have the same is not checked: whoever joins a study has its space.
            user_attrs: User attributes.
            system_attrs: System attributes.
            reports: Intermediate values by their step; a step that has one is overwritten.
            state: The state that the trial gets, if another one.
            values: Its values.
            expected: The state that the trial must be in, and system attributes that it must
                have; None stands for one that it must not have.

        Raises:
            UpdateFinishedTrialError: The trial is finished.
            KeyError: There is no such trial.
            NotOursError: The trial is not as ``expected``.
        """

        def write() -> None:
            with _create_scoped_session(self.scoped_session) as session:
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                self.check_trial_is_updatable(trial_id, cast("TrialState", trial.state))
                if expected is not None and not is_as(trial, session, *expected):
                    raise NotOursError(f"trial {trial.number} is not as it was seen")
                if params:
                    session.execute(insert_params(trial_id, params))
                for model, attributes in (
                    (models.TrialUserAttributeModel, user_attrs),
                    (models.TrialSystemAttributeModel, system_attrs),
                ):
                    if attributes:
                        session.execute(upsert(self.engine.name, model, trial_id, attributes))
                for step, report in (reports or {}).items():
                    self._set_trial_intermediate_value_without_commit(
                        session, trial_id, step, report
                    )
                for objective, value in enumerate(values or ()):
                    self._set_trial_value_without_commit(session, trial, objective, value)
                if state is not None:
                    set_state(trial, state)

        if state is None or not state.is_finished():
            self.through_outages(write)
        else:
            self._finishing(trial_id, state, values, write, landed=None)

    def forget_system_attrs(self, trial_id: int, keys: Sequence[str]) -> None:
        """Remove system attributes of a trial, of a finished one too.

        Optuna keeps finished trials as they are. The metadata of an artifact whose bytes are gone
        must go nevertheless: everything that lists artifacts would offer it.
        """
        model = models.TrialSystemAttributeModel
        statement = sqlalchemy.delete(model).where(
            model.trial_id == trial_id, model.key.in_(list(keys))
        )

        def remove() -> None:
            with _create_scoped_session(self.scoped_session) as session:
                session.execute(statement)

        self.through_outages(remove)

    def write_study(
        self, study_id: int, system_attrs: Mapping[str, Any], *, prefixes: Sequence[str]
    ) -> None:
        """Write system attributes of a study in one transaction.

        Args:
            study_id: The study's key.
            system_attrs: The attributes.
            prefixes: Others whose names begin with one of these are removed.
        """
        model = models.StudySystemAttributeModel
        # Not by LIKE, which takes upper and lower case for the same in SQLite.
        beginnings = (
            sqlalchemy.func.substr(model.key, 1, len(prefix)) == prefix for prefix in prefixes
        )
        stale = sqlalchemy.delete(model).where(
            model.study_id == study_id,
            sqlalchemy.or_(*beginnings),
            model.key.not_in(list(system_attrs)),
        )

        def write() -> None:
            with _create_scoped_session(self.scoped_session) as session:
                session.execute(upsert(self.engine.name, model, study_id, system_attrs))
                session.execute(stale)

        self.through_outages(write)

    def dead_trials(self, study_id: int) -> list[int]:
        """Return the running trials whose workers are dead, as far as this worker can tell.

        Their heartbeats are older than the grace period, and still were when this was asked
        again, two heartbeats later by this process's clock. After an outage, or when a host wakes
        up, every heartbeat is old; the living give the next one soon.
        """
        now = time.monotonic()
        silent = set(self._get_stale_trial_ids(study_id))
        self._silent_since = {key: self._silent_since.get(key, now) for key in silent}
        patience = 2 * (self.get_heartbeat_interval() or 0)
        return [key for key, since in self._silent_since.items() if now - since >= patience]

    def create_trial(self, study_id: int, template: FrozenTrial) -> FrozenTrial:
        """Return a new trial that has everything of ``template`` but its number and key."""
        return self._create_new_trial(study_id, template)

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        """Create a trial, once.

        Optuna's own makes up to five attempts, each of which may have created one. Trials are
        created under the study's lock, and whoever loses that begins again.
        """
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            created = self._get_prepared_new_trial(study_id, template_trial, session)
            trial_id, number = cast("int", created.trial_id), cast("int", created.number)
        if template_trial is None:
            return self.get_trial(trial_id)
        trial = copy.deepcopy(template_trial)
        trial._trial_id, trial.number = trial_id, number
        return trial

    def _finishing(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        write: Callable[[], Result],
        *,
        landed: Result,
    ) -> Result:
        """Finish a trial; where the answer of an attempt was lost, see whether it landed."""
        attempts = 0

        def attempt() -> Result:
            nonlocal attempts
            attempts += 1
            try:
                return write()
            except UpdateFinishedTrialError:
                if attempts == 1:
                    raise
                # Nobody else completes or prunes this trial, and whoever fails it does what a
                # worker that fails it wants.
                trial = RDBStorage.get_trial(self, trial_id)
                if trial.state is state and (values is None or trial.values == list(values)):
                    return landed
                raise

        return self.through_outages(attempt)


@contextlib.contextmanager
def _collecting_later() -> Iterator[None]:
    """Collect no garbage meanwhile.

    A trial is some hundred objects, and none of those that are read is garbage: each collection
    on the way would look at all that are there before, so that reading takes longer per trial the
    more there are.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _repeating(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(self: RetryingRDBStorage, *arguments: Any, **options: Any) -> Any:
        return self.through_outages(lambda: method(self, *arguments, **options))

    return call


for _name in _REPEATABLE:
    setattr(RetryingRDBStorage, _name, _repeating(_name))


def first_line(error: BaseException) -> str:
    """Return the first line of what a database's driver said."""
    cause: BaseException = error.__cause__ or error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
