"""A database that goes away and comes back, and answers that get lost on the way."""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from bench.postgres import OwnPostgres
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from search_helpers import asked, created, opened, record, run

from qa_hpo.errors import OutageError, UnreachableError
from qa_hpo.search.asking import ask, hand_back, is_ours, release_trials
from qa_hpo.search.retrying import is_outage
from qa_hpo.search.storage import StudyStorage, open_storage
from qa_hpo.search.study import load_study
from qa_hpo.search.trials import epoch_records, finish, record_epoch


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    server = OwnPostgres()
    yield server
    server.close()


def out_for(server: OwnPostgres, seconds: float) -> threading.Thread:
    """Stop the server now, and start it again after ``seconds``."""
    server.stop()
    thread = threading.Thread(target=lambda: (time.sleep(seconds), server.start()))
    thread.start()
    return thread


def test_calls_go_on_through_an_outage(server: OwnPostgres, caplog: pytest.LogCaptureFixture):
    with opened(server.url("through")) as storage:
        joined = created(storage)
        trial = asked(joined).trial
        back = out_for(server, 1.5)
        begun = time.monotonic()
        record_epoch(joined, trial, record(1, 2.5))
        assert time.monotonic() - begun > 1
        back.join()
        back = out_for(server, 0.5)
        assert epoch_records(joined.optuna_study.trials[0]) == [record(1, 2.5)]
        back.join()
        back = out_for(server, 0.5)
        second = asked(joined)  # under the lock
        back.join()
        back = out_for(server, 0.5)
        run(joined, second.trial, 1)
        back.join()
        states = [trial.state for trial in joined.optuna_study.trials]
        assert states == [TrialState.RUNNING, TrialState.COMPLETE]
        # Told once when it begins and once when it ends, not at every attempt.
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert sum("does not answer" in message for message in messages) == 4
        assert sum("answers again after" in message for message in messages) == 4
        assert len(messages) == 8


def test_an_outage_is_not_waited_out_for_ever(server: OwnPostgres):
    with opened(server.url("patience"), patience_s=0.5) as storage:
        joined = created(storage)
        server.stop()
        try:
            with pytest.raises(OutageError, match=r"the database has not answered for [01] s: "):
                ask(joined)
            with pytest.raises(UnreachableError, match="the server cannot be reached"):
                open_storage(storage.url, create=False)
        finally:
            server.start()
        asked(joined)


def test_what_ends_the_waiting(server: OwnPostgres):
    class ToldToEndError(Exception):
        pass

    def wait(_seconds: float) -> None:
        raise ToldToEndError

    with opened(server.url("waiting"), wait=wait) as storage:
        joined = created(storage)
        server.stop()
        try:
            with pytest.raises(ToldToEndError):
                ask(joined)
        finally:
            server.start()


def test_nobody_is_taken_for_dead_after_a_restart(server: OwnPostgres):
    url = server.url("restart")
    patient = {"heartbeat_s": 2, "grace_s": 3}
    with opened(url, **patient) as storage:
        joined = created(storage, budget={"trials": 1})
        trial = asked(joined).trial
        out_for(server, 4).join()  # for longer than the grace: no sign of life got through

        # A worker that has just come, and knows of no outage, asks again and again.
        with opened(url, **patient) as other:
            asking = load_study("demo", other)

            def state_once_asked() -> TrialState:
                ask(asking)
                return joined.optuna_study.trials[0].state

            assert state_once_asked() is TrialState.RUNNING
            for _ in range(6):  # the living worker's next signs of life
                storage.rdb.record_heartbeat(trial._trial_id)
                time.sleep(1)
                assert state_once_asked() is TrialState.RUNNING
            silent_since = time.monotonic()
            while state_once_asked() is TrialState.RUNNING:
                assert time.monotonic() - silent_since < 20
                time.sleep(0.5)
            assert time.monotonic() - silent_since > 3  # and now it is silent


def test_nobody_is_taken_for_dead_when_a_host_wakes_up(storage: StudyStorage):
    """All its workers were suspended: every sign of life is old, and nothing has failed."""
    joined = created(storage, budget={"trials": 1})
    trial = asked(joined, worker="a").trial
    with storage.rdb.engine.begin() as connection:
        old = "datetime('now', '-1 day')"
        if storage.rdb.engine.name == "postgresql":
            old = "now() - interval '1 day'"
        connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = {old}")
    other = load_study("demo", storage)
    for _ in range(3):
        ask(other, worker="b")
    assert joined.optuna_study.trials[0].state is TrialState.RUNNING
    run(joined, trial, 1)


class Loses:
    """Loses the answers to the commits of a storage: they land, and the client hears an error."""

    def __init__(self, storage: StudyStorage, *numbers: int) -> None:
        self.dialect = storage.rdb.engine.dialect
        self.own = self.dialect.do_commit
        self.numbers = numbers
        self.count = 0
        self.error: Exception = sqlite3.OperationalError("database is locked")
        if self.dialect.name == "postgresql":
            self.error = psycopg.OperationalError("the connection is lost")

    def __enter__(self) -> "Loses":
        self.dialect.do_commit = self.commit  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: Any) -> None:
        self.dialect.do_commit = self.own  # type: ignore[method-assign]

    def commit(self, connection: Any) -> None:
        self.own(connection)
        self.count += 1
        if self.count in self.numbers:
            raise self.error


def commits(storage: StudyStorage, work: Any) -> int:
    with Loses(storage) as counting:
        work()
    return counting.count


def test_a_finish_whose_answer_was_lost_counts_once(storage: StudyStorage):
    joined = created(storage, budget={"trials": 100})

    def finished(trial: Any) -> None:
        finish(joined, trial, state=TrialState.COMPLETE, attrs={"best_f1": 61.5})

    count = commits(storage, lambda: finished(asked(joined).trial))
    for number in range(1, count + 1):
        trial = asked(joined).trial
        with Loses(storage, number):
            finished(trial)
        stored = joined.optuna_study.trials[trial.number]
        assert (stored.state, stored.value) == (TrialState.COMPLETE, 61.5)
    assert len(joined.optuna_study.trials) == count + 1


def test_an_epoch_whose_answer_was_lost_is_there_once(storage: StudyStorage):
    joined = created(storage)
    trial = asked(joined).trial
    count = commits(storage, lambda: record_epoch(joined, trial, record(1, 2.0)))
    for epoch in range(2, count + 2):
        with Loses(storage, epoch - 1):
            record_epoch(joined, trial, record(epoch, 2.0))
    epochs = [known["epoch"] for known in epoch_records(joined.optuna_study.trials[0])]
    assert epochs == list(range(1, count + 2))


def test_a_trial_whose_answer_was_lost_is_handed_out_once(storage: StudyStorage):
    """Every commit of asking for a trial loses its answer in turn; nothing is created twice."""
    joined = created(storage, budget={"trials": 100})
    trials = [asked(joined).trial]
    count = commits(storage, lambda: trials.append(asked(joined).trial))
    assert count > 5
    for number in range(1, count + 1):
        with Loses(storage, number):
            trials.append(asked(joined).trial)
    assert [trial.number for trial in trials] == list(range(count + 2))
    stored = joined.optuna_study.trials
    assert [trial.state for trial in stored] == [TrialState.RUNNING] * (count + 2)


def test_a_hand_back_whose_answer_was_lost_takes_nothing_from_others(storage: StudyStorage):
    joined = created(storage, budget={"trials": 1})
    count = commits(storage, lambda: hand_back(joined, asked(joined).trial))
    for number in range(1, count + 1):
        trial = asked(joined).trial
        with Loses(storage, number):
            hand_back(joined, trial)
        assert joined.optuna_study.trials[0].state is TrialState.WAITING
    assert len(joined.optuna_study.trials) == 1


def test_a_lock_that_is_lost_is_taken_again(postgres_url: str):
    """The server ends the connection that holds the lock: another worker is let in at once."""
    with opened(postgres_url) as storage, opened(postgres_url) as other:
        created(storage)
        order: list[str] = []

        def first() -> str:
            order.append("first begins")
            if len(order) == 1:
                end_lock_holders(postgres_url)
                other.locked("demo", lambda: order.append("other"))
                # What the first does now, it does without the lock.
            order.append("first ends")
            return f"attempt {order.count('first begins')}"

        assert storage.locked("demo", first) == "attempt 2"
        assert order == ["first begins", "other", "first ends", "first begins", "first ends"]


@pytest.mark.parametrize("begins", ["with a baseline", "with a new trial", "with a retry"])
def test_a_trial_whose_lock_was_lost_has_one_worker(postgres_url: str, begins: str):
    """One worker is slow after it has taken a trial, and another one is let in meanwhile."""
    baseline = [{"start": "base", "learning_rate": 1e-4, "epochs": 2}]
    sections = {"baseline": baseline} if begins == "with a baseline" else {}
    with opened(postgres_url) as storage, opened(postgres_url) as other:
        slow, quick = created(storage, **sections), load_study("demo", other)
        if begins == "with a retry":
            asked(slow, worker="dead")
            release_trials(slow, "dead")
        inside, go_on = threading.Event(), threading.Event()
        write, count = storage.rdb.write_trial, 0

        def writes_slowly(*arguments: Any, **options: Any) -> None:
            nonlocal count
            count += "qa_hpo:handed_out" in options["system_attrs"]
            if count == 1:  # it has taken the trial, and is about to say to whom it is handed
                count += 1
                inside.set()
                assert go_on.wait(30)
            write(*arguments, **options)

        storage.rdb.write_trial = writes_slowly  # type: ignore[method-assign]
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(ask(slow, worker="slow")))
        thread.start()
        assert inside.wait(30)
        end_lock_holders(postgres_url)
        answers.append(ask(quick, worker="quick"))
        go_on.set()
        thread.join(60)
        numbers = sorted(answer.trial.number for answer in answers)
        assert len(set(numbers)) == 2, numbers
        stored = {trial.number: trial for trial in slow.optuna_study.get_trials()}
        for answer in answers:
            assert is_ours(slow, answer.trial)
            assert stored[answer.trial.number].state is TrialState.RUNNING
        workers = {stored[number].user_attrs["worker"] for number in numbers}
        assert workers == {"slow", "quick"}


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_connection_that_breaks_in_the_middle_of_a_call(postgres_url: str, nth: int):
    """The server ends it while trials are read, which Optuna tries to read on."""
    with opened(postgres_url) as storage, opened(postgres_url) as other:
        joined = created(storage)
        asked(joined)
        count = 0

        @sqlalchemy.event.listens_for(storage.rdb.engine, "before_cursor_execute")
        def breaks(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            nonlocal count
            count += "FROM trials" in statement
            if count == nth:
                count += 1
                pid = connection.connection.driver_connection.info.backend_pid
                with other.rdb.engine.connect() as ending:
                    ending.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")

        assert [trial.number for trial in joined.optuna_study.get_trials()] == [0]
        assert asked(joined).trial.number == 1
        assert count > nth


def end_lock_holders(url: str) -> None:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    statement = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_locks "
        "WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid() "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with engine.connect() as connection:
        assert connection.exec_driver_sql(statement).scalar_one() == 1
    engine.dispose()


def internal(error: Exception) -> StorageInternalError:
    """As Optuna raises it."""
    raised = StorageInternalError("An exception is raised during the commit.")
    raised.__cause__ = error
    return raised


def wrapped(kind: Any, original: Exception) -> Exception:
    return kind("SELECT 1", {}, original)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (wrapped(sqlalchemy.exc.OperationalError, sqlite3.OperationalError("database is locked")),
         True),
        (wrapped(sqlalchemy.exc.OperationalError,
                 sqlite3.OperationalError("database or disk is full")), False),
        (wrapped(sqlalchemy.exc.OperationalError,
                 sqlite3.OperationalError("attempt to write a readonly database")), False),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.errors.AdminShutdown("bye")), True),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.errors.TooManyConnections("no")), True),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.errors.DeadlockDetected("no")), True),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.OperationalError("refused")), True),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.errors.InvalidPassword("no")), False),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.errors.DatabaseDropped("no")), False),
        (wrapped(sqlalchemy.exc.OperationalError,
                 psycopg.OperationalError('FATAL: database "x" does not exist')), False),
        (wrapped(sqlalchemy.exc.OperationalError, psycopg.OperationalError(
            'FATAL: password authentication failed for user "me"')), False),
        (wrapped(sqlalchemy.exc.ProgrammingError, psycopg.errors.UndefinedTable("no")), False),
        (sqlalchemy.exc.TimeoutError("the pool is empty"), True),
        (sqlalchemy.exc.PendingRollbackError("roll back first"), True),
        (ValueError("anything else"), False),
    ],
)  # fmt: skip
def test_what_may_pass(error: Exception, passes: bool):
    assert is_outage(error) is passes
    assert is_outage(internal(error)) is passes
