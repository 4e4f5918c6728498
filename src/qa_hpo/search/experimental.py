"""Optuna's experimental features, where they are used on purpose."""

import contextlib
import threading
import warnings
from collections.abc import Iterator

from optuna.exceptions import ExperimentalWarning

__all__ = ["on_purpose"]

_lock = threading.RLock()


@contextlib.contextmanager
def on_purpose() -> Iterator[None]:
    """Use an experimental feature without being warned of it, in one thread at a time.

    The filters of warnings belong to the process. Of two threads that set them and set them back
    at once, one takes the other's away in the midst of it, and may leave its own behind for good.
    """
    with _lock, warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        yield
