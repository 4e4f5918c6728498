"""Whether and when a worker that died is started again."""

import signal
import time
from collections.abc import Callable

__all__ = ["Restarts"]

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_SOON_S = 60.0
"""A worker that lived for less has died of something that may kill the next one, too."""
_MOST_IN_A_ROW = 10

_DONE, _REFUSED = 0, 2
# Someone ended it from outside: nothing is wrong with the worker.
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}


class Restarts:
    """Decides for one worker, in all its processes.

    A worker that is done (code 0) or was refused because its input is wrong (2) is not started
    again. Another one is, after a delay that doubles from 0.5 s to 30 s, without delay if it was
    killed from outside; at most ten times in a row, where only deaths within 60 s of the start
    count.

    Args:
        clock: Tells seconds; never goes back.

    Attributes:
        delay: What ``ended`` returned last.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = clock()
        self._in_a_row = 0
        self.delay: float | None = None

    def started(self) -> None:
        """Note that a process of the worker was started."""
        self._started_at = self._clock()

    def ended(self, code: int) -> float | None:
        """Note the end of the process.

        Args:
            code: Its exit code, negative for a signal.

        Returns:
            The seconds after which to start the next; None if there is none.
        """
        self.delay = self._delay(code)
        return self.delay

    def _delay(self, code: int) -> float | None:
        if code in {_DONE, _REFUSED}:
            return None
        if self._clock() - self._started_at >= _SOON_S:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
        if self._in_a_row > _MOST_IN_A_ROW:
            return None
        if code in _FROM_OUTSIDE:
            return 0.0
        return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** max(0, self._in_a_row - 1))
