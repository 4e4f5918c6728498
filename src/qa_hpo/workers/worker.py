"""One worker: takes trials of a study and runs them until the budget is spent."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from qa_hpo.config import Runtime
from qa_hpo.errors import (
    MissingStudyError,
    OutageError,
    QaHpoError,
    UnreachableError,
    WorkError,
)
from qa_hpo.finetune.allocator import give_back_freed_memory
from qa_hpo.finetune.preflight import fingerprints
from qa_hpo.finetune.run import Inputs
from qa_hpo.paths import CachePaths
from qa_hpo.search.asking import Asked, ask, hand_back, is_ours
from qa_hpo.search.budget import BudgetStep, NextStep
from qa_hpo.search.failures import Cause, cause_of
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.objective import Objective
from qa_hpo.search.retrying import first_line
from qa_hpo.search.stopping import PAUSED
from qa_hpo.search.storage import GRACE_S, HEARTBEAT_S, StudyStorage, open_storage
from qa_hpo.search.study import COMMITS, check_fingerprints, load_study
from qa_hpo.search.trials import ERROR, LostTrialError, fail, trial_id
from qa_hpo.squad.answered import Answered
from qa_hpo.workers.interrupts import Interrupts, ToldToEnd

if TYPE_CHECKING:
    from qa_hpo.results.publishing import Publisher

__all__ = ["work"]

_logger = logging.getLogger(__name__)

# How long a worker without a trial waits before it asks again.
_WAIT_S = 1.0
# For how long a worker that starts waits for a database that does not answer: one that is started
# in the middle of a server's restart must not be lost.
_OPENING_S = 120.0


def work(
    study: str,
    url: str,
    *,
    label: str | None = None,
    cpu_threads: int | None = None,
    debug: bool = False,
    wait_s: float = 0.0,
    heartbeat_s: int = HEARTBEAT_S,
    grace_s: int = GRACE_S,
) -> NextStep:
    """Work on a study until its budget is spent.

    A worker that is told to end (SIGTERM, Ctrl-C) hands its trial back: another one goes on after
    the last finished epoch. A second Ctrl-C ends it at once.

    Args:
        study: The study's name.
        url: Its storage.
        label: What this worker is called in the storage; host and process number if left out.
        cpu_threads: Threads to compute with on a CPU, where the study file does not say.
        debug: Let an unforeseen error of a trial end the worker.
        wait_s: Seconds to wait for a study that is not there yet.
        heartbeat_s: Seconds between this worker's signs of life.
        grace_s: Seconds without one after which it takes a trial from another worker.

    Returns:
        Why the work is over.

    Raises:
        StorageError: The study cannot be opened, or this host must not work on it.
        WorkError: So many trials failed that the study ended, or the database failed.
        SystemExit: The worker was told to end by SIGTERM; the code is 143.
        KeyboardInterrupt: It was told to by Ctrl-C.
    """
    interrupts = Interrupts()
    with _ended_by(interrupts):
        storage, joined = _joined(
            study,
            partial(
                open_storage,
                url,
                create=False,
                heartbeat_s=heartbeat_s,
                grace_s=grace_s,
                wait=interrupts.wait,
            ),
            wait_s,
        )
        try:
            ended = _Worker(joined, interrupts, label, cpu_threads, debug).loop()
        except (StorageInternalError, SQLAlchemyError) as error:
            if debug:
                raise
            raise WorkError(f"{storage.shown}: {first_line(error)}") from None
        else:
            if ended.failing:
                cause = f"{ended.cause}{_last_error(joined)}"
                raise WorkError(f"study {study!r} ends: {cause}")
            return ended
        finally:
            storage.close()


@contextlib.contextmanager
def _ended_by(interrupts: Interrupts) -> Iterator[None]:
    """End as programs do that a signal ends."""
    try:
        with interrupts.handled():
            yield
    except ToldToEnd as told:
        if told.signal == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + told.signal) from None


def _joined(
    study: str, opened: Callable[[], StudyStorage], wait_s: float
) -> tuple[StudyStorage, JoinedStudy]:
    """Open the storage and load the study, after waiting for either."""
    begun = time.monotonic()
    told: set[str] = set()
    while True:
        storage = None
        try:
            storage = opened()
            return storage, load_study(study, storage)
        except (UnreachableError, MissingStudyError) as error:
            if storage is not None:
                storage.close()
            unreachable = isinstance(error, UnreachableError)
            if time.monotonic() - begun >= (_OPENING_S if unreachable else wait_s):
                if unreachable:  # the work failed: whoever launched the worker tries again
                    raise OutageError(f"{error} (for {_OPENING_S:g} s)") from None
                raise
            if str(error) not in told:
                told.add(str(error))
                _logger.warning("%s; waiting for it", error)
            time.sleep(_WAIT_S)


def _last_error(joined: JoinedStudy) -> str:
    trials = joined.optuna_study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    errors = [trial.user_attrs[ERROR] for trial in trials if ERROR in trial.user_attrs]
    return f", the last of them of: {errors[-1]}" if errors else ""


class _Worker:
    """A worker that has joined a study.

    Raises:
        StorageError: This host must not work on it: its data, starts or versions differ.
    """

    def __init__(
        self,
        joined: JoinedStudy,
        interrupts: Interrupts,
        label: str | None,
        cpu_threads: int | None,
        debug: bool,
    ) -> None:
        inputs = Inputs(CachePaths(), joined.optuna_study.user_attrs.get(COMMITS))
        check_fingerprints(joined, fingerprints(joined.file, inputs))
        runtime = joined.file.training.runtime()
        if runtime.cpu_threads is None:
            runtime = Runtime(**{**runtime.model_dump(), "cpu_threads": cpu_threads})
        self.joined = joined
        self.interrupts = interrupts
        self.label = label or f"{socket.gethostname()}-{os.getpid()}"
        self.debug = debug
        self.lost = threading.Event()
        self.objective = Objective(
            joined, inputs, runtime, judge=_judge, check=self._check, whole=interrupts.deferred
        )
        self.publisher: Publisher | None = None

    def loop(self) -> NextStep:
        """Run trials until there is nothing left to do."""
        while True:
            asked = None
            try:
                with self.interrupts.deferred():
                    answer = ask(self.joined, worker=self.label)
                    asked = answer if isinstance(answer, Asked) else None
                if asked is not None:
                    self._run(asked)
            except (ToldToEnd, KeyboardInterrupt):
                if asked is not None and hand_back(self.joined, asked.trial):
                    _logger.warning("told to end; trial %d is handed back", asked.trial.number)
                raise
            if isinstance(answer, NextStep):
                if answer.step is BudgetStep.SPENT:
                    self._collect()
                    self._publish(None)
                    _logger.info("the budget is spent: %s", answer.cause)
                    return answer
                give_back_freed_memory()  # for as long as it is of no use here
                time.sleep(_WAIT_S)

    def _run(self, asked: Asked) -> None:
        trial = asked.trial
        _logger.info("trial %d: %s", trial.number, asked.parameters)
        try:
            with self._heartbeat(asked):
                stop_reason = self.objective.run(asked)
            if stop_reason == PAUSED:
                _logger.info("trial %d waits for its promotion", trial.number)
                return
            _logger.info("trial %d ended: %s", trial.number, stop_reason or "complete")
        except LostTrialError as error:
            _logger.warning("%s; its work is dropped", error)
        except OutageError:
            raise  # there is nobody to tell; the trial is taken over
        except Exception as error:  # whatever it is, it is the trial's failure; the study goes on
            self._failed(asked, error)
            if self.debug or _device_is_lost(error):
                raise
        self._collect()
        self._publish(trial)

    def _publish(self, finished: FrozenTrial | None) -> None:
        """Tell whoever looks at the dashboard of a finished trial, or of the whole study."""
        try:
            if self.publisher is None:
                # Only here, where it costs no trial: it needs much that training does not.
                from qa_hpo.results.publishing import Publisher  # noqa: PLC0415

                self.publisher = Publisher(self.joined)
            if finished is None:
                self.publisher.study()
            else:
                self.publisher.trial_finished(finished)
        except Exception as error:  # noqa: BLE001  (no trial's failure, and nothing to lose)
            _logger.warning("the dashboard's notes are not written: %s", first_line(error))

    def _collect(self) -> None:
        try:
            self.objective.collect()
        except Exception as error:  # noqa: BLE001  (no trial's failure; the next one collects)
            _logger.warning("checkpoints are not collected: %s", first_line(error))

    def _failed(self, asked: Asked, error: Exception) -> None:
        number = asked.trial.number
        cause = cause_of(error)
        unforeseen = cause is Cause.ERROR and not isinstance(error, QaHpoError)
        text = " ".join(str(error).split())
        if unforeseen:
            text = f"{type(error).__name__}: {text}"
        elif cause is Cause.DATABASE:
            text = first_line(error)
        tell = _logger.exception if unforeseen or self.debug else _logger.error
        tell("trial %d failed (%s): %s", number, cause, text)
        with contextlib.suppress(LostTrialError), self.interrupts.deferred():
            fail(self.joined, asked.trial, cause, text)

    def _check(self) -> None:
        self.interrupts.check()
        if self.lost.is_set():
            raise LostTrialError("another worker took the trial over")

    @contextlib.contextmanager
    def _heartbeat(self, asked: Asked) -> Iterator[None]:
        """Show that this worker lives, from a thread that no outage ends.

        The thread also sees when the trial has been taken over: a worker that was suspended, or
        cut off from the database, for longer than the grace.
        """
        over = threading.Event()
        self.lost.clear()
        rdb = self.joined.storage.rdb
        interval = rdb.get_heartbeat_interval()
        key = trial_id(asked.trial)

        def beat() -> None:
            while not over.wait(interval):
                try:
                    with rdb.fenced():  # the next beat is the next attempt
                        rdb.record_heartbeat(key)
                        lost = not is_ours(self.joined, asked.trial)
                except Exception as error:  # noqa: BLE001  (the next beat may get through)
                    _logger.warning("a sign of life was missed: %s", first_line(error))
                else:
                    if lost and not over.is_set():
                        self.lost.set()
                        return

        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            # Not for ever: its call may wait for a server that does not answer.
            thread.join(_WAIT_S)


def _judge(answered: Answered) -> dict[str, Any]:
    """Return the user attributes that tell how sure a trial's best F1 is."""
    from qa_hpo.results.publishing import judge  # noqa: PLC0415

    return judge(answered)


def _device_is_lost(error: Exception) -> bool:
    """Return whether no other trial can run in this process, as its GPU's context is broken."""
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
