"""The host's memory between allocations: kept by a process that trains, given back when told.

glibc takes each block above 32 MiB from the system and gives it back as soon as it is freed. On a
CPU these are attention's weights and their gradients, of each layer in each step, and the system
clears them anew page by page: with windows of 384 tokens that takes longer than attention itself.
"""

import contextlib
import ctypes
import os

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

# Parameters of glibc's mallopt(3), and what a user sets who knows better.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it allocates next.

    That holds for the whole process and for as long as it lives, so it is for programs to choose
    and not for libraries. What is kept lies in pieces, so a run's peak is higher, by up to a fifth
    in the benchmarks' trials; with a GPU, which computes in its own memory, it brings nothing.
    Nothing happens where malloc is not glibc's, or where the environment has settings of it
    (``MALLOC_…_``, ``GLIBC_TUNABLES``).

    Returns:
        Whether it does so from here on.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _SETTINGS) or "glibc.malloc" in tunables:
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
    return False


def give_back_freed_memory() -> None:
    """Return what this process has freed to the system, where malloc is glibc's."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
