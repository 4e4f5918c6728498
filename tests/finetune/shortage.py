"""Memory that is too small, by torch's own allocator."""

import contextlib
from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest
import torch
from transformers import BertForQuestionAnswering

__all__ = ["allocate_too_much", "room_for"]


def allocate_too_much() -> None:
    """Ask the allocator for more than any address space holds: what it raises is real."""
    torch.empty(1 << 60, dtype=torch.uint8)


@contextlib.contextmanager
def room_for(windows: int, *, forward: int = 1, backward: bool = False) -> Iterator[list[int]]:
    """Let BERT run out of memory with more than so many windows at once.

    Args:
        windows: How many fit.
        forward: Which pass of too many windows is the first that fails, from 1.
        backward: Whether it fails on the way back.

    Yields:
        The windows of every pass, failed ones included.
    """
    own = BertForQuestionAnswering.forward
    seen: list[int] = []
    large = 0

    def tight(grad: torch.Tensor) -> None:
        allocate_too_much()

    @wraps(own)
    def limited(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        nonlocal large
        seen.append(len(input_ids))
        large += len(input_ids) > windows
        fails = len(input_ids) > windows and large >= forward
        if fails and not backward:
            allocate_too_much()
        outputs = own(self, input_ids, **options)
        if fails and outputs.start_logits.requires_grad:
            outputs.start_logits.register_hook(tight)
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertForQuestionAnswering, "forward", limited)
        yield seen
