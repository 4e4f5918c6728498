"""A caller's way to end a run between two batches."""

from collections.abc import Callable
from typing import TypeVar

__all__ = ["Check", "carried", "delivered"]

Check = Callable[[], None]
"""Called between batches; whatever it raises ends the run."""

Result = TypeVar("Result")


class _Carrier(BaseException):
    """Takes what a check raised past every handler that could take it for an error of the run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def carried(check: Check | None) -> Check:
    """Return a check whose exceptions come out of :func:`delivered` only, unchanged.

    Args:
        check: The caller's; None for none.
    """

    def call() -> None:
        if check is None:
            return
        try:
            check()
        except Exception as error:  # noqa: BLE001  (raised again by delivered)
            raise _Carrier(error) from None

    return call


def delivered(work: Callable[[], Result]) -> Result:
    """Return what ``work`` returns, or raise what a :func:`carried` check raised in it."""
    try:
        return work()
    except _Carrier as carrier:
        error = carrier.error
    # Outside the handler, so that nothing is added to what the caller raised.
    raise error
