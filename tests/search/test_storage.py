import contextlib
import fcntl
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from search_helpers import created, opened
from worker_processes import started

from qa_hpo.errors import StorageError
from qa_hpo.legible import mask
from qa_hpo.search.storage import StudyStorage, open_storage

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cr3t@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgres://me:p@ss/w:rd@host/db", "postgres://me:***@host/db"),
        ("postgresql://me@host/db?password=s3cr3t&x=1", "postgresql://me@host/db?password=***&x=1"),
        ("postgresql://me@h/db?sslpassword=s3cr3t", "postgresql://me@h/db?sslpassword=***"),
        ("postgresql://:s3cr3t@host/db", "postgresql://:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:///storage/a:b@c.db", "sqlite:///storage/a:b@c.db"),
        ("postgresql://h/db?a=1&authtoken=s3cr3t&x=1", "postgresql://h/db?a=1&authtoken=***&x=1"),
        ("no url at all", "no url at all"),
        # Words that only sound like secrets, in text of several lines.
        (
            'name = "secret-sauce"\nseed = 3\ntrain = "data/tokenized/train.json"',
            'name = "secret-sauce"\nseed = 3\ntrain = "data/tokenized/train.json"',
        ),
        ("the tokenizer has padding_side=left", "the tokenizer has padding_side=left"),
        (
            "http://localhost:8080/x is up\nwrite to admin@x.org",
            "http://localhost:8080/x is up\nwrite to admin@x.org",
        ),
    ],
)
def test_mask(url, shown):
    assert mask(url) == shown


def test_a_storage_is_created_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with opened("sqlite:///a b/ü/study.db") as storage:
        assert (tmp_path / "a b" / "ü" / "study.db").is_file()
        assert str(tmp_path) in storage.shown
        assert optuna.get_all_study_names(storage.rdb) == []
    monkeypatch.chdir("/")
    with opened(storage.url) as again:  # the URL holds from every folder
        assert again.url == storage.url


def test_a_file_name_with_odd_characters(tmp_path: Path):
    name = "100%25 {SCHEMA} a%3Fb.db"  # as a URL has "100% {SCHEMA} a?b.db"
    with opened(f"sqlite:///{tmp_path}/{name}"):
        assert (tmp_path / "100% {SCHEMA} a?b.db").is_file()
    open_storage(f"sqlite:///{tmp_path}/{name}", create=False).close()


def test_sqlite_serialises_its_transactions(sqlite: StudyStorage):
    with sqlite.rdb.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
        other = sqlite3.connect(sqlite.rdb.engine.url.database, timeout=0, isolation_level=None)
        with (
            contextlib.closing(other),
            pytest.raises(sqlite3.OperationalError, match="database is locked"),
        ):
            other.execute("BEGIN IMMEDIATE")  # a mere SELECT has taken the write lock


def test_a_password_is_not_in_the_representation():
    storage = StudyStorage(f"postgresql://me:{SECRET}@h/d", "postgresql://me:***@h/d", None, None)
    assert SECRET not in repr(storage) + str(storage)


# -- what cannot be opened


def refused(url: str, *, create: bool = False) -> str:
    with pytest.raises(StorageError) as caught:
        open_storage(url, create=create)
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    return line


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("storage/qa_hpo.db", "is not the URL of a storage; give sqlite:///FOLDER/NAME.db"),
        ("", "is not the URL of a storage"),
        (f"postgresql://me:{SECRET}@host:port/db", "'postgresql://me:***@host:port/db' is not"),
        (f"mysql://me:{SECRET}@host/db", "mysql://me:***@host/db: mysql is not supported; give "),
        (f"postgresql+psycopg2://me:{SECRET}@host/db", "is not supported"),
        (f"mysql://me@server:{SECRET}@host/db", "@host/db: mysql is not supported"),
        (f"mysql://me:my {SECRET}@host/db", "mysql://me:***@host/db: mysql is not supported"),
        (f"mysql://me:{SECRET * 100}@host/db", "mysql://me:***@host/db: mysql is not supported"),
        (f"my sql://me:my {SECRET}@host/db", "'my sql://me:***@host/db' is not the URL"),
        (f"me:{SECRET}@host/db", "'***@host/db' is not the URL"),
        ("sqlite://", "workers cannot share a database in memory"),
        ("sqlite:///:memory:", "workers cannot share a database in memory"),
        ("sqlite:///file:a.db?mode=ro&uri=true", "options are not supported"),
        ("sqlite:///a.db?timeout=3", "options are not supported"),
    ],
)
@pytest.mark.parametrize("create", [True, False])
def test_urls_that_are_refused(url, why, create):
    assert why in refused(url, create=create)


def test_a_missing_file_is_not_created_by_readers(tmp_path: Path):
    line = refused(f"sqlite:///{tmp_path}/none/study.db")
    assert line == (
        f"sqlite:///{tmp_path}/none/study.db: no study there yet; 'qa-hpo run' creates it"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_an_empty_database(tmp_path: Path):
    (tmp_path / "empty.db").touch()
    assert "no study there yet" in refused(f"sqlite:///{tmp_path}/empty.db")
    with opened(f"sqlite:///{tmp_path}/empty.db"):
        pass


def test_tables_without_their_version_are_still_being_created(tmp_path: Path):
    """Whoever creates them holds the lock, and is the one to write it."""
    path = tmp_path / "study.db"
    with opened(f"sqlite:///{path}"):
        pass
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM alembic_version")
        database.commit()
        with (tmp_path / "study.db.lock").open("a") as lock, ThreadPoolExecutor(1) as pool:
            fcntl.flock(lock, fcntl.LOCK_EX)
            other = pool.submit(lambda: open_storage(f"sqlite:///{path}", create=True).close())
            with pytest.raises(TimeoutError):
                other.result(timeout=2)
            assert database.execute("SELECT * FROM alembic_version").fetchall() == []
            fcntl.flock(lock, fcntl.LOCK_UN)
            other.result(timeout=60)
        assert len(database.execute("SELECT * FROM alembic_version").fetchall()) == 1


def test_a_relative_path_is_shown_with_its_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "study.db") in refused("sqlite:///study.db")


@pytest.mark.parametrize("create", [True, False])
def test_what_is_no_study_database_is_left_alone(tmp_path: Path, create):
    (tmp_path / "notes.txt").write_text("These are notes, not a database.\n" * 100)
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as shop:
        shop.execute("CREATE TABLE orders (id INTEGER)")
        shop.commit()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "the file is not a SQLite database" in refused(
        f"sqlite:///{tmp_path}/notes.txt", create=create
    )
    assert "is the database of another application (tables orders …)" in refused(
        f"sqlite:///{tmp_path}/shop.db", create=create
    )
    assert "is a folder; give the database's file" in refused(
        f"sqlite:///{tmp_path}", create=create
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_created(tmp_path: Path):
    (tmp_path / "file").touch()
    line = refused(f"sqlite:///{tmp_path}/file/sub/study.db", create=True)
    assert f"the folder {tmp_path}/file/sub cannot be created: Not a directory" in line


AS_NOBODY = """
import os, sys, tempfile
from qa_hpo.errors import StorageError
from qa_hpo.legible import mask
from qa_hpo.search.storage import open_storage
with tempfile.TemporaryDirectory() as folder:  # imports what root alone may read
    open_storage(f"sqlite:///{folder}/study.db", create=True).close()
if os.geteuid() == 0:
    os.setuid(65534)
try:
    open_storage(sys.argv[1], create=sys.argv[2] == "create")
except StorageError as error:
    print(error)
"""


def refused_to_nobody(url: str, mode: str) -> str:
    command = [sys.executable, "-c", AS_NOBODY, url, mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_folders_and_files_that_may_not_be_written():
    # Not in tmp_path, into which another user could not look.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        open_storage(f"sqlite:///{name}/study.db", create=True).close()
        (folder / "study.db").chmod(0o444)
        folder.chmod(0o555)
        line = refused_to_nobody(f"sqlite:///{name}/study.db", "read")
        assert line == f"sqlite:///{name}/study.db: the file is read-only\n"
        line = refused_to_nobody(f"sqlite:///{name}/new.db", "create")
        assert line == (
            f"sqlite:///{name}/new.db: the file cannot be opened or created; "
            "is its folder writable?\n"
        )
        line = refused_to_nobody(f"sqlite:///{name}/sub/new.db", "create")
        assert f"the folder {name}/sub cannot be created: Permission denied" in line
        (folder / "study.db").chmod(0o666)
        line = refused_to_nobody(f"sqlite:///{name}/study.db", "read")
        assert line == f"sqlite:///{name}/study.db: the file or its folder is read-only\n"
        folder.chmod(0o777)
        (folder / "study.db.lock").chmod(0o444)
        line = refused_to_nobody(f"sqlite:///{name}/study.db", "read")
        assert f"{name}/study.db.lock cannot be written: Permission denied" in line


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("v3.0.0.d", "'optuna storage upgrade --storage "),
        ("v99.0.0", "it was made by a newer Optuna; pip install --upgrade optuna"),
    ],
)
def test_another_optunas_schema(sqlite: StudyStorage, version, remedy):
    with sqlite.rdb.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{version}'")
    line = refused(sqlite.url, create=True)
    assert f"has Optuna's schema {version}, and Optuna {optuna.__version__} needs " in line
    assert remedy in line


def test_a_creation_that_was_interrupted_is_completed(sqlite: StudyStorage):
    with sqlite.rdb.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
        connection.exec_driver_sql("DROP TABLE trial_heartbeats")
    assert "no study there yet" in refused(sqlite.url)
    with opened(sqlite.url) as again:
        optuna.create_study(storage=again.rdb, study_name="s")
        again.rdb.record_heartbeat(again.rdb.create_new_trial(1))


def test_a_server_that_does_not_answer():
    line = refused(f"postgres://me:{SECRET}@127.0.0.1:1/db", create=True)
    assert line.startswith("postgresql+psycopg://me:***@127.0.0.1:1/db: the server cannot be ")
    assert "Connection refused" in line


def test_a_missing_driver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'qa_hpo[postgres]'" in refused(f"postgresql://me:{SECRET}@host/db")


def test_a_missing_database_on_a_server(postgres_url: str):
    database = postgres_url.rpartition("/")[2].partition("?")[0]
    line = refused(postgres_url.replace(database, "no_such"), create=True)
    assert 'database "no_such" does not exist' in line


def test_a_wrong_password(postgres_url: str):
    import sqlalchemy

    url = sqlalchemy.make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        hba = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
        connection.exec_driver_sql("DROP ROLE IF EXISTS guarded")
        connection.exec_driver_sql("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    before = hba.read_text()
    hba.write_text("local all guarded scram-sha-256\n" + before)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        time.sleep(0.3)
        wrong = url.set(drivername="postgresql", username="guarded", password=SECRET)
        line = refused(wrong.render_as_string(hide_password=False))
        assert line.endswith(": the server refused user 'guarded' or the password")
    finally:
        hba.write_text(before)
        engine.dispose()


def test_another_applications_postgres_database(postgres_url: str):
    import sqlalchemy

    url = sqlalchemy.make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url)
    assert "no study there yet" in refused(postgres_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id INTEGER)")
    engine.dispose()
    assert "is the database of another application (tables orders …)" in refused(postgres_url)


# -- the lock


def test_the_lock_excludes_threads(storage: StudyStorage):
    inside, most = 0, 0

    def hold():
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        inside -= 1

    def enter():
        for _ in range(5):
            storage.locked("demo", hold)

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_lock_is_released_by_an_error(storage: StudyStorage):
    def fails():
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        storage.locked("demo", fails)
    assert storage.locked("demo", lambda: "again") == "again"


def test_the_lock_excludes_processes_and_dies_with_its_holder(storage: StudyStorage):
    created(storage)
    holder = started(storage.url, "lock")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    entered = threading.Event()

    def enter():
        storage.locked("demo", entered.set)

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.3)
    holder.kill()
    assert entered.wait(10)
    waiting.join()
    holder.communicate()


def test_studies_of_one_server_do_not_share_a_lock(postgres_url: str):
    with opened(postgres_url) as storage:
        inner = storage.locked("one", lambda: storage.locked("another", lambda: "inside both"))
        assert inner == "inside both"


def test_a_storage_can_be_used_after_close(storage: StudyStorage):
    storage.close()
    assert optuna.get_all_study_names(storage.rdb) == []
