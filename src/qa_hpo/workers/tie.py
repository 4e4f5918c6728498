"""Runs a command that is told to end when the process that started it has ended.

``python -m qa_hpo.workers.tie PARENT COMMAND …`` replaces itself by the command. It is a program
because the processes that need it have threads, after whose fork no Python code is safe.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
# A cluster's scheduler may tell the whole job of its coming end by one of these. Whoever started
# the command heeds it; the command, which does not know it, would be killed.
_FOR_THE_PARENT = (signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: Sequence[str]) -> None:
    """Tie this process to its parent and become the command.

    Args:
        arguments: The parent's process number, and the command.
    """
    parent, *command = arguments
    for number in _FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != int(parent):  # it has ended already
            sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
