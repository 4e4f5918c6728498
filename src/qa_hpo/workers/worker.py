"""One worker: takes trials of a study and runs them until the budget is spent."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

from optuna.trial import TrialState

from qa_hpo.config import Runtime
from qa_hpo.errors import QaHpoError, WorkError
from qa_hpo.finetune.run import Inputs
from qa_hpo.paths import CachePaths
from qa_hpo.search.budget import BudgetStep, NextStep
from qa_hpo.search.objective import Objective
from qa_hpo.search.storage import GRACE_S, HEARTBEAT_S, open_storage
from qa_hpo.search.study import (
    Asked,
    JoinedStudy,
    ask,
    check_fingerprints,
    hand_back,
    load_study,
)
from qa_hpo.search.trials import ERROR, LostTrialError, finish, trial_id

__all__ = ["work"]

_logger = logging.getLogger(__name__)

# How long a worker without a trial waits before it asks again.
_WAIT_SECONDS = 1.0


class _Terminated(BaseException):
    """The process was asked to end; no handler of ordinary errors may catch it."""


def work(
    study: str,
    url: str,
    *,
    label: str | None = None,
    cpu_threads: int | None = None,
    debug: bool = False,
    heartbeat_s: int = HEARTBEAT_S,
    grace_s: int = GRACE_S,
) -> NextStep:
    """Work on a study until its budget is spent.

    A worker that is told to end (SIGTERM, Ctrl-C) hands its trial back: another one goes on after
    the last finished epoch.

    Args:
        study: The study's name.
        url: Its storage.
        label: What this worker is called in the storage; host and process number if left out.
        cpu_threads: Threads to compute with on a CPU, where the study file does not say.
        debug: Let an unforeseen error of a trial end the worker.
        heartbeat_s: Seconds between this worker's signs of life.
        grace_s: Seconds without one after which it takes a trial from another worker.

    Returns:
        Why the work is over.

    Raises:
        StorageError: The study cannot be opened, or this host must not work on it.
        WorkError: So many trials failed that the study ended.
    """
    storage = open_storage(url, create=False, heartbeat_s=heartbeat_s, grace_s=grace_s)
    try:
        joined = load_study(study, storage)
        inputs = Inputs(CachePaths())
        data = joined.file.data
        check_fingerprints(
            joined,
            {
                "train": inputs.train_corpus(data.train, data.train_limit).fingerprint,
                "validation": inputs.validation_corpus(data).fingerprint,
            },
        )
        runtime = joined.file.training.runtime()
        if runtime.cpu_threads is None:
            runtime = Runtime(**{**runtime.model_dump(), "cpu_threads": cpu_threads})
        objective = Objective(joined, inputs, runtime)
        with _ended_by_signals():
            ended = _loop(objective, label or f"{socket.gethostname()}-{os.getpid()}", debug)
        if ended.failing:
            raise WorkError(f"study {study!r} ends: {ended.cause}{_last_error(joined)}")
    finally:
        storage.close()
    return ended


def _last_error(joined: JoinedStudy) -> str:
    trials = joined.optuna_study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    errors = [trial.user_attrs[ERROR] for trial in trials if ERROR in trial.user_attrs]
    return f", the last of them of: {errors[-1]}" if errors else ""


def _loop(objective: Objective, label: str, debug: bool) -> NextStep:
    while True:
        answer = ask(objective.joined, worker=label)
        if isinstance(answer, Asked):
            _run(objective, answer, debug)
        elif answer.step is BudgetStep.SPENT:
            _logger.info("the budget is spent: %s", answer.cause)
            return answer
        else:
            time.sleep(_WAIT_SECONDS)


def _run(objective: Objective, asked: Asked, debug: bool) -> None:
    joined, trial = objective.joined, asked.trial
    _logger.info("trial %d: %s", trial.number, asked.parameters)
    try:
        with _heartbeat(joined, asked):
            tuned = objective.run(asked)
        _logger.info("trial %d ended: %s", trial.number, tuned.stop_reason or "complete")
    except LostTrialError as error:
        _logger.warning("%s; its work is dropped", error)
    except (_Terminated, KeyboardInterrupt):
        _logger.warning("told to end; trial %d is handed back", trial.number)
        hand_back(joined, trial)
        raise
    except Exception as error:  # a trial's failure is recorded, whatever it is; the study goes on
        unforeseen = not isinstance(error, QaHpoError)
        cause = " ".join(str(error).split())
        if unforeseen:
            cause = f"{type(error).__name__}: {cause}"
        tell = _logger.exception if unforeseen or debug else _logger.error
        tell("trial %d failed: %s", trial.number, cause)
        with contextlib.suppress(LostTrialError):
            finish(joined, trial, state=TrialState.FAIL, attrs={ERROR: cause})
        if debug:
            raise


@contextlib.contextmanager
def _heartbeat(joined: JoinedStudy, asked: Asked) -> Iterator[None]:
    """Show that this worker lives, from a thread that a failed attempt does not end."""
    over = threading.Event()
    rdb = joined.storage.rdb
    interval = rdb.get_heartbeat_interval()

    def beat() -> None:
        while not over.wait(interval):
            try:
                rdb.record_heartbeat(trial_id(asked.trial))
            except Exception as error:  # noqa: BLE001  (the next beat may get through)
                _logger.warning("a heartbeat was missed: %s", error)

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
