"""Where a study is kept: SQLite or PostgreSQL, opened so that many workers can share it.

Optuna's defaults let two workers on SQLite take the same trial, and workers that create the
tables at the same time crash. Here SQLite is in WAL mode and every transaction takes the write
lock at its start, and whatever must happen once happens under a lock across processes.
"""

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from qa_hpo.errors import MissingStudyError, StorageError, UnreachableError
from qa_hpo.legible import mask
from qa_hpo.paths import check_folder
from qa_hpo.search.experimental import on_purpose
from qa_hpo.search.retrying import PATIENCE_S, RetryingRDBStorage, first_line, is_outage
from qa_hpo.search.storage_url import parse_storage_url, shown_url

__all__ = [
    "GRACE_S",
    "HEARTBEAT_S",
    "StudyStorage",
    "nothing_yet",
    "open_storage",
]

BUSY_TIMEOUT_S = 60
"""How long a SQLite transaction waits for the others' (measured: 4 s at most with 8 workers)."""
HEARTBEAT_S = 15
"""Seconds between a worker's signs of life."""
GRACE_S = 90
"""Seconds without a sign of life after which a trial is taken from its worker: more than one
beat that had to wait for the whole busy timeout."""
CONNECT_TIMEOUT_S = 10
"""How long a PostgreSQL server may take to answer."""

_UNOPENED = "the file cannot be opened or created; is its folder writable?"
_KEEPALIVES = {
    # A host that vanishes says nothing: without these a call to it waits for two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}

# A server has about a hundred connections: a worker keeps one, and needs two more while it holds
# the lock and its heartbeat beats.
_SERVER_SETTINGS = {
    "pool_size": 1,
    "max_overflow": 3,
    "pool_pre_ping": True,  # idle connections are dropped on the way
    "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S, **_KEEPALIVES},
}

_Lock = Callable[[str], AbstractContextManager[None]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class StudyStorage:
    """An open storage.

    Attributes:
        url: The full URL, with its password: hand it to processes, show it to nobody.
        shown: The URL with its password masked.
        rdb: Optuna's storage, which outlives outages.
    """

    url: str
    shown: str
    rdb: RetryingRDBStorage
    _lock: _Lock

    def __repr__(self) -> str:
        return f"StudyStorage({self.shown!r})"

    def locked(self, study_name: str, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns, done while nobody else holds the study's lock.

        A PostgreSQL server forgets a lock when its connection ends, and another worker takes it.
        Therefore calls within ``work`` fail at once where the database does not answer; the lock
        is then taken anew and ``work`` begun again. What it returned counts only if the lock was
        held until the end.

        The lock is not re-entrant, it is waited for as long as it takes, and the death of its
        holder releases it. On SQLite the studies of one database share it, as they share the
        database's write lock.

        Args:
            study_name: The study.
            work: What to do. It may be begun again after it ended at any point.

        Raises:
            OutageError: The database has not answered for too long.
        """

        def once() -> Result:
            with self._lock(study_name), self.rdb.fenced():
                return work()

        return self.rdb.through_outages(once)

    def close(self) -> None:
        """Close the connections; the storage opens new ones if it is used again."""
        self.rdb.remove_session()
        self.rdb.engine.dispose()


def open_storage(
    url: str,
    *,
    create: bool,
    untouched: bool = False,
    heartbeat_s: int = HEARTBEAT_S,
    grace_s: int = GRACE_S,
    patience_s: float = PATIENCE_S,
    wait: Callable[[float], None] = time.sleep,
) -> StudyStorage:
    """Open a storage.

    Args:
        url: ``sqlite:///…`` (relative to the working folder) or ``postgresql://…``.
        create: Whether to create the file, its folder and the tables where they are missing.
        untouched: Whether it is left as it is, for reading alone: another program's SQLite file
            would be put into WAL mode for good.
        heartbeat_s: Seconds between a worker's signs of life.
        grace_s: Seconds without one after which a trial is taken from its worker.
        patience_s: Seconds for which an outage of the open storage is waited out.
        wait: Waits for so many seconds meanwhile; what it raises ends the waiting.

    Raises:
        UnreachableError: The server does not answer.
        MissingStudyError: There is nothing yet, and ``create`` is False.
        StorageError: It cannot be opened, or it holds something else than Optuna's studies.
    """
    # Its warnings tell of each attempt of a database call; the storage tells of an outage once.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parsed = parse_storage_url(url)
    full, shown = parsed.render_as_string(hide_password=False), shown_url(parsed)
    settings: dict[str, Any]
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "")
        _prepare_file(path, shown, create=create)
        settings = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        lock = _file_lock(path, shown)
    else:
        settings = _SERVER_SETTINGS
        lock = _advisory_lock(_engine(parsed))
    try:
        # Before the lock, which would leave its file beside a file that is not ours, and before a
        # file that another Optuna uses is put into WAL mode.
        rdb = None
        if not _is_empty(parsed, shown, create=create):
            rdb = _rdb(full, settings, heartbeat_s, grace_s, create=False)
            _check_schema(rdb, shown)
        with lock("") if not untouched else contextlib.nullcontext():
            if rdb is None:
                new = _is_empty(parsed, shown, create=create)
                rdb = _rdb(full, settings, heartbeat_s, grace_s, create=new)
            if parsed.get_backend_name() == "sqlite" and not untouched:
                _serialise(rdb.engine)
            _check_schema(rdb, shown)
    except (SQLAlchemyError, StorageInternalError) as error:
        kind = UnreachableError if is_outage(error) else StorageError
        raise kind(f"{shown}: {_reason(error, parsed)}") from None
    rdb.patience_s, rdb.wait = patience_s, wait
    if parsed.get_backend_name() == "postgresql":
        lock = _advisory_lock(rdb.engine)
    return StudyStorage(url=full, shown=shown, rdb=rdb, _lock=lock)


@contextlib.contextmanager
def nothing_yet(url: str) -> Iterator[StudyStorage]:
    """Give what ``open_storage`` would create at ``url``, but elsewhere, and gone after the block.

    Raises:
        StorageError: The folder of a file cannot be created or written to.
    """
    parsed = parse_storage_url(url)
    shown = shown_url(parsed)
    if parsed.get_backend_name() == "sqlite":
        above = Path(parsed.database or "").parent
        with _making(above, shown):
            check_folder(above)
    with tempfile.TemporaryDirectory() as folder:
        storage = open_storage(f"sqlite:///{folder}/empty.db", create=True)
        try:
            yield replace(storage, shown=shown)
        finally:
            storage.close()


def _engine(url: URL) -> Engine:
    """Return an engine that keeps no connection."""
    timeout = {"connect_timeout": CONNECT_TIMEOUT_S, **_KEEPALIVES}
    postgresql = url.get_backend_name() == "postgresql"
    return sqlalchemy.create_engine(
        url, poolclass=NullPool, connect_args=timeout if postgresql else {}
    )


def _prepare_file(path: Path, shown: str, *, create: bool) -> None:
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:  # a name too long
        raise StorageError(f"{shown}: cannot be opened: {error.strerror}") from None
    if folder:
        raise StorageError(f"{shown}: is a folder; give the database's file")
    if there:
        if not os.access(path, os.W_OK):
            raise StorageError(f"{shown}: the file is read-only")
        return
    if not create:
        raise MissingStudyError(f"{shown}: no study there yet; 'qa-hpo run' creates it")
    with _making(path.parent, shown):
        path.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _making(folder: Path, shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = f"the folder {folder} cannot be created: {error.strerror}"
        raise StorageError(f"{shown}: {_UNOPENED if folder.is_dir() else why}") from None


def _file_lock(path: Path, shown: str) -> _Lock:
    """Return a lock on a file beside the database.

    ``flock`` belongs to the opened file, so it holds between threads too, and it waits in the
    kernel instead of asking again and again.
    """
    beside = path.with_name(path.name + ".lock")

    @contextlib.contextmanager
    def hold(_study_name: str) -> Iterator[None]:
        try:
            file = beside.open("a")
        except OSError as error:
            raise StorageError(f"{shown}: {beside} cannot be written: {error.strerror}") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Not left to closing: a process forked meanwhile has the file open too.
                fcntl.flock(file, fcntl.LOCK_UN)

    return hold


def _advisory_lock(engine: Engine) -> _Lock:
    """Return a lock that the server keeps for as long as its connection lives."""

    @contextlib.contextmanager
    def hold(study_name: str) -> Iterator[None]:
        digest = hashlib.blake2b(f"qa_hpo {study_name}".encode(), digest_size=8).digest()
        key = int.from_bytes(digest, "big", signed=True)
        with engine.connect() as connection, connection.begin():
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(key)))
            yield

    return hold


def _is_empty(url: URL, shown: str, *, create: bool) -> bool:
    """Return whether Optuna's tables are still to be created, in full or in part."""
    engine = _engine(url)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        stamped = "alembic_version" in tables and _has_rows(engine, "alembic_version")
    finally:
        engine.dispose()
    if tables and "studies" not in tables:
        some = ", ".join(sorted(tables)[:3])
        raise StorageError(f"{shown}: is the database of another application (tables {some} …)")
    # What Optuna writes last, the table and then its row: without it somebody stopped on the way,
    # or is not there yet.
    if stamped:
        return False
    if not create:
        raise MissingStudyError(f"{shown}: no study there yet; 'qa-hpo run' creates it")
    return True


def _has_rows(engine: Engine, table: str) -> bool:
    with engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text(f"SELECT 1 FROM {table} LIMIT 1"))
        return rows.first() is not None


def _rdb(
    url: str, settings: dict[str, Any], heartbeat_s: int, grace_s: int, *, create: bool
) -> RetryingRDBStorage:
    with on_purpose():
        return RetryingRDBStorage(
            url,
            engine_kwargs=settings,
            heartbeat_interval=heartbeat_s,
            grace_period=grace_s,
            skip_compatibility_check=True,
            skip_table_creation=not create,
        )


def _serialise(engine: Engine) -> None:
    """Make every SQLite transaction take the write lock first, so that no two interleave."""

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # leaves BEGIN to SQLAlchemy
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # safe with WAL, but for a power cut

    @event.listens_for(engine, "begin")
    def _began(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before the listeners


def _check_schema(rdb: RetryingRDBStorage, shown: str) -> None:
    there, here = rdb.get_current_version(), rdb.get_head_version()
    if there == here:
        return
    if there in rdb.get_all_versions():
        remedy = f"'optuna storage upgrade --storage {shown}' brings it up to date"
    else:
        remedy = "it was made by a newer Optuna; pip install --upgrade optuna"
    raise StorageError(
        f"{shown}: has Optuna's schema {there}, and Optuna {optuna.__version__} needs {here}; "
        f"{remedy}"
    )


def _reason(error: Exception, url: URL) -> str:
    """Return why a database refused, in one line without its password."""
    text = first_line(error)
    if url.password:
        text = text.replace(str(url.password), "***")
    if "not a database" in text:
        return "the file is not a SQLite database"
    if "readonly" in text or "read-only" in text:
        return "the file or its folder is read-only"
    if "unable to open" in text:
        return _UNOPENED
    if "authentication failed" in text or "no password supplied" in text:
        return f"the server refused user {url.username!r} or the password"
    if url.get_backend_name() == "postgresql" and "does not exist" not in text:
        return f"the server cannot be reached: {mask(text)}"
    return mask(text)
