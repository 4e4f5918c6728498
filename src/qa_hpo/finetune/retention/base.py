"""What a retention method may do in a run, and what it is given of the old task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qa_hpo.config import Runtime
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.interruption import Check
from qa_hpo.squad.windows import Windows

__all__ = ["NoRetention", "OldData", "RetentionMethod"]


@dataclass(frozen=True)
class OldData:
    """The training questions of the task that a start has learnt before.

    Attributes:
        checkpoint: The start, a folder or hub id.
        windows: The questions' windows, cut with the start's tokenizer.
        groups: The article of each question, (questions,).
        key: Names the questions and how they were cut: equal keys mean equal windows.
        padded: Returns how windows are padded for the start.
        runtime: How the hardware is used.
        cache: Folder for what is computed once per start.
        check: Called before every batch of work; what it raises ends the work.
    """

    checkpoint: str
    windows: Windows
    groups: NDArray[np.int64]
    key: str
    padded: Callable[[Windows], WindowCollator]
    runtime: Runtime
    cache: Path
    check: Check | None = None


class RetentionMethod:
    """What keeps the old task while a run learns a new one. One instance serves one run.

    A run calls `batches`, then `prepare`, then, where it goes on from a resume state, `load_state`;
    then, in every step, `window_losses` for each pass, `after_backward` and `after_step`; and
    `portable` and `save` for every checkpoint, `state` for every resume state. What a method
    leaves out does nothing.

    Attributes:
        needs_old_data: Whether it is built from the old task's training questions.
        needs_head: Whether the start must have learnt the old task: a fresh head knows nothing.
        batch_keys: What the collator of `batches` adds to a batch for `window_losses`.
    """

    needs_old_data: bool = False
    needs_head: bool = False
    batch_keys: tuple[str, ...] = ()

    def batches(self, collator: WindowCollator) -> WindowCollator:
        """Return what is trained on instead of the new task's windows alone."""
        return collator

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Take what is needed from the start's weights, and choose what is trained.

        Args:
            model: The model with the start's weights, on its device, before its optimizer is made.
            steps: Optimizer steps of the whole run.
        """

    def window_losses(
        self,
        losses: torch.Tensor,
        outputs: Any,
        inputs: Mapping[str, torch.Tensor],
        extras: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the loss of each window of a pass, in nats, with gradient.

        Args:
            losses: (windows,), the span loss of each.
            outputs: The model's, with ``start_logits`` and ``end_logits``, (windows, tokens).
            inputs: The model's inputs, ``attention_mask`` among them.
            extras: What was asked for by `batch_keys`.
        """
        return losses

    def after_backward(self, scale: float = 1.0) -> None:
        """Change the gradient of a whole step, which is there, before it is clipped.

        Args:
            scale: What the gradient has been multiplied by (against underflow in float16).
        """

    def after_step(self) -> None:
        """Look at or change the weights after the optimizer's step; the gradient is still there."""

    def portable(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a model of the start's own class that answers as ``model`` does."""
        return model

    def save(self, folder: Path) -> None:
        """Write into a checkpoint's folder what later methods want to know of this run."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a resume state has to keep beside weights and optimizer."""
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""


class NoRetention(RetentionMethod):
    """Nothing is done for the old task: what all others are compared with."""
