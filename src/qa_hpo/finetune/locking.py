"""One process works while the others that want the same wait, and can be told not to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from qa_hpo.finetune.interruption import Check

__all__ = ["locked"]

_POLL_S = 0.5
"""Seconds between two looks at whether the wait for another process is to go on."""


@contextlib.contextmanager
def locked(path: Path, check: Check | None = None) -> Iterator[None]:
    """Hold the lock of what is to be made at ``path``.

    Args:
        path: A file or folder. The lock is a file beside it, which stays there.
        check: Called before the wait and again and again in it; what it raises ends it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    while True:
        if check is not None:
            check()
        try:
            lock.acquire(timeout=_POLL_S)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()
