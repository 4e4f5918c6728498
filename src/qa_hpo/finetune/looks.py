"""Looks at the validation loss within an epoch, which can end a run before the epoch does."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qa_hpo.finetune.records import Look

__all__ = ["Looks", "OnLook", "look_steps"]

OnLook = Callable[[Look], str | None]
"""Told of each look when it is taken; a reason that it returns ends the run there."""


def look_steps(steps: int, evaluations: int) -> tuple[int, ...]:
    """Return after which steps of an epoch its validation loss is looked at.

    They are those nearest to 1/k, 2/k ... (k-1)/k of its steps, the later one of two that are as
    near, each once. An epoch of fewer than k steps has fewer of them, none at its end, where it
    is evaluated anyway.

    Args:
        steps: Optimizer steps of an epoch.
        evaluations: k, how often an epoch is evaluated, its end included.

    Returns:
        The numbers of the steps, from 1, in ascending order.
    """
    # In whole numbers, so that a middle between two steps is one: (i / k) * steps + 1/2, down.
    nearest = {(2 * i * steps + evaluations) // (2 * evaluations) for i in range(1, evaluations)}
    return tuple(sorted(nearest - {0, steps}))


class Looks(TrainerCallback):
    """Looks at the validation loss after certain steps of each epoch.

    An epoch in which ``on_look`` ends the run is not evaluated, and nothing of it is saved.

    Args:
        measure: Returns the validation loss of the weights as they are, in nats per window, and
            leaves whatever training depends on as it was.
        steps: Optimizer steps of an epoch.

    Attributes:
        at: Numbers of an epoch's steps after which to look, from 1; none to begin with.
        on_look: Told of each look.
        stop_reason: Why the run ended at a look, or None.
        taken: The looks of the epoch that goes on.
        seconds: The time they took.
    """

    def __init__(self, measure: Callable[[], float], steps: int) -> None:
        self.measure = measure
        self.steps = steps
        self.at: frozenset[int] = frozenset()
        self.on_look: OnLook = lambda look: None
        self.stop_reason: str | None = None
        self.taken: list[Look] = []
        self.seconds = 0.0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget the looks of the epoch before."""
        self.taken, self.seconds = [], 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look, if it is time."""
        if state.global_step % self.steps not in self.at:
            return
        started = time.monotonic()
        look = Look(float(state.epoch or 0), self.measure())
        self.seconds += time.monotonic() - started
        self.taken.append(look)
        self.stop_reason = self.on_look(look)
        if self.stop_reason is not None:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Let an epoch that was cut off leave nothing."""
        if self.stop_reason is not None:
            # A run that ends takes the epoch for finished, and asks for all that its end brings.
            control.should_log = control.should_evaluate = control.should_save = False
