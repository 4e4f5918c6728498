"""A hub on this host with tiny repositories behind the real ids, and places to work in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_processes import Place
from hub_server import Hub
from hub_world import Contents, fill


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return Contents(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def hub(contents: Contents) -> Iterator[Hub]:
    with Hub() as hub:
        fill(hub, contents)
        yield hub


@pytest.fixture
def place(hub: Hub, tmp_path: Path) -> Place:
    return Place(tmp_path, hub.url)
