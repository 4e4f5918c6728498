"""Out of memory: recognised, met with fewer windows at once, else told in one line."""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import (  # type: ignore[import-untyped]
    clear_device_cache,
    should_reduce_batch_size,
)

from qa_hpo.errors import OutOfMemoryError

__all__ = ["PassSize", "RandomState", "is_out_of_memory", "telling_of_memory"]

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# What accelerate does not know of: a driver's own message, matrix libraries without room for their
# workspace (on GPU and on CPU), and C++ without memory. torch raises all of them as RuntimeError.
_MESSAGES = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
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
