"""What a shell offers for arguments when Tab is pressed. Nothing here may fail, wait or write."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import typer

from qa_hpo.config import DEFAULT_STORAGE

__all__ = ["one_of", "studies"]

_PREFIX = "sqlite:///"


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Return what offers those of ``words`` that begin as was typed."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def studies(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return study files, folders that may hold some, and the names of studies in the storage."""
    storage = ctx.params.get("storage") or os.environ.get("QA_HPO_STORAGE") or DEFAULT_STORAGE
    offered = [*_files(incomplete), *_names(str(storage))]
    return sorted({each for each in offered if each.startswith(incomplete)})


def _files(incomplete: str) -> Iterator[str]:
    folder, _, begun = incomplete.rpartition("/")
    place = Path(f"{folder}/" if "/" in incomplete else ".")
    before = f"{folder}/" if "/" in incomplete else ""
    with contextlib.suppress(OSError, RuntimeError):  # the latter: ~ of a user who does not exist
        for path in place.expanduser().iterdir():
            if path.name.startswith(".") and not begun:
                continue
            if path.suffix == ".toml":
                yield f"{before}{path.name}"
            elif path.is_dir():
                yield f"{before}{path.name}/"


def _names(url: str) -> list[str]:
    """Return the studies of a SQLite storage that exists.

    Read with SQLite alone: Optuna would take a second, and a server may not answer.
    """
    path = Path(url.removeprefix(_PREFIX))
    if not url.startswith(_PREFIX) or not path.is_file():
        return []
    try:
        # Whoever only reads a database in WAL mode leaves its two side files behind, unless it is
        # told that nobody writes; where somebody does, they are there already.
        at_rest = not path.with_name(f"{path.name}-wal").exists()
        mode = "immutable=1" if at_rest else "mode=ro"
        uri = f"file:{quote(str(path.absolute()))}?{mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.2)) as database:
            rows = database.execute("SELECT study_name FROM studies").fetchall()
    except sqlite3.Error:
        return []
    # Shells take what is offered as it is, and a space ends a word.
    names = [str(name) for (name,) in rows]
    return [name for name in names if not any(map(str.isspace, name))]
