"""Storages on which every test of the search runs."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.postgres import OwnPostgres
from search_helpers import opened

from qa_hpo.search.storage import StudyStorage

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[OwnPostgres]:
    """A PostgreSQL server of our own."""
    server = OwnPostgres()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres_server: OwnPostgres) -> str:
    """The URL of an empty PostgreSQL database."""
    return postgres_server.url(f"study_{next(_numbers)}")


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
