"""Out of memory: recognised, met with fewer windows at once, else told in one line."""

import contextlib
import errno
import logging
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils.memory import (  # type: ignore[import-untyped]
    clear_device_cache,
    should_reduce_batch_size,
)

from qa_hpo.errors import OutOfMemoryError

__all__ = [
    "PassSize",
    "PeakMemory",
    "RandomState",
    "is_out_of_memory",
    "releasing",
    "telling_of_memory",
]

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What accelerate does not know of: a driver's own message, matrix libraries without room for their
# workspace (on GPU and on CPU), and C++ without memory. torch raises all of them as RuntimeError.
_MESSAGES = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not execute a primitive",
    "Cannot allocate memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that the device or the host has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    # accelerate looks into the message without asking whether it is text.
    known = isinstance(error.args[0] if error.args else None, str)
    return known and (
        should_reduce_batch_size(error) or any(text in str(error) for text in _MESSAGES)
    )


@contextlib.contextmanager
def telling_of_memory(checkpoint: str, what: str) -> Iterator[None]:
    """Turn what libraries raise when they are out of memory into one line.

    Args:
        checkpoint: What the model was loaded from.
        what: What needs the memory, in words: "the model", say.

    Raises:
        OutOfMemoryError: The block ran out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{checkpoint}: no memory is left for {what}; a smaller model or a device with more "
            "free memory would help"
        ) from None


@contextlib.contextmanager
def releasing() -> Iterator[None]:
    """Give back the memory of what the block held, also when the block fails.

    A model and its trainer refer to each other, and an exception's traceback refers to both until
    whoever handles it is done: the next run would meet a device that is not empty.
    """
    try:
        yield
    except BaseException as error:
        chained: BaseException | None = error
        while chained is not None:
            traceback.clear_frames(chained.__traceback__)
            chained = chained.__context__
        raise
    finally:
        clear_device_cache(garbage_collection=True)


class PeakMemory:
    """The most memory at once since this object was made.

    On a GPU that is what torch had allocated on it; else what the process held of the host's
    memory, code and data included, and so what it had freed and kept before. Where the system does
    not count anew (other than Linux), the latter is since the process began.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def mib(self) -> float:
        """Return the peak in MiB."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


class PassSize:
    """How many windows go through a model at once: halved whenever they do not fit.

    Args:
        size: Windows per pass to begin with.
        checkpoint: What the model was loaded from, for messages.
        unchanged: What stays as it is with smaller passes, in words, for messages.
        on_smaller: Told of each smaller size.

    Attributes:
        size: Windows per pass from here on, as far as is known.
    """

    def __init__(
        self,
        size: int,
        *,
        checkpoint: str,
        unchanged: str,
        on_smaller: Callable[[int], None] | None = None,
    ) -> None:
        self.size = size
        self.checkpoint = checkpoint
        self.unchanged = unchanged
        self.on_smaller = on_smaller

    def fit(
        self,
        windows: int,
        work: Callable[[int], Result],
        undo: Callable[[], None] | None = None,
    ) -> Result:
        """Return ``work(size)``, with half the size and again as long as memory runs out.

        Args:
            windows: How many windows there are; no size above it is tried.
            work: What to do with passes of at most so many windows.
            undo: Takes back what ``work`` began, before it is tried again.

        Raises:
            OutOfMemoryError: One window at a time does not fit.
        """
        while True:
            size = min(self.size, windows)
            try:
                return work(size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, outside the handler: the exception's frames held what did not fit.
            if undo is not None:
                undo()
            clear_device_cache(garbage_collection=True)
            self._halve(size)

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise OutOfMemoryError(
                f"{self.checkpoint}: not even one window at a time fits into the memory; a shorter "
                "data.max_length, a smaller model or a device with more free memory would help"
            )
        self.size = -(-tried // 2)
        _logger.warning(
            "%s: out of memory with %d windows per pass; %d per pass from here on, and %s",
            *(self.checkpoint, tried, self.size, self.unchanged),
        )
        if self.on_smaller is not None:
            self.on_smaller(self.size)


class RandomState:
    """torch's random state at a moment, on the CPU and on the device that computes.

    Args:
        device: The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device else None

    def restore(self) -> None:
        """Go back to that moment."""
        torch.set_rng_state(self._cpu)
        if self._device is not None and self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
