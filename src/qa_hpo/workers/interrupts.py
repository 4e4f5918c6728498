"""SIGTERM and Ctrl-C in a worker: end soon, in good order."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupts", "ToldToEnd"]

_LAST_WAIT_S = 10.0
"""For how long an outage is still waited out by a worker that was told to end. Those who told it
kill it after a while."""


class ToldToEnd(BaseException):
    """The process was told to end; no handler of ordinary errors may catch it.

    Attributes:
        signal: By which signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interrupts:
    """Raises :class:`ToldToEnd` where a signal finds the main thread, or soon after.

    Within :meth:`deferred` it comes at the end of the block, so that what belongs together is
    done whole. A second Ctrl-C ends the process at once.

    Signals are handled within :meth:`handled`, and only in the main thread.
    """

    def __init__(self) -> None:
        self._told: int | None = None
        self._told_at = 0.0
        self._deferring = 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what is in this block be done whole."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        if self._told is not None and not self._deferring:
            raise ToldToEnd(self._told)

    def check(self) -> None:
        """Raise again, unless deferred: where a handler's exception was lost on its way.

        Python drops what is raised while it finalises an object.
        """
        if self._told is not None and not self._deferring:
            raise ToldToEnd(self._told)

    def wait(self, seconds: float) -> None:
        """Wait for an outage to end; not for long once the process was told to."""
        time.sleep(seconds)
        if self._told is not None and time.monotonic() - self._told_at > _LAST_WAIT_S:
            raise ToldToEnd(self._told)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._told is not None:
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            return
        self._told, self._told_at = number, time.monotonic()
        if not self._deferring:
            raise ToldToEnd(number)
