"""One forward pass over windows: the loss, and per question the best span and the null margin."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qa_hpo.errors import DivergedError
from qa_hpo.finetune.batching import PaddedBatch, WindowCollator, longest_first
from qa_hpo.finetune.interruption import Check
from qa_hpo.finetune.memory import PassSize
from qa_hpo.squad.spans import Predictions, SpanAccumulator

__all__ = ["Forward", "evaluation_passes", "forward_pass", "mean_loss", "span_loss"]


@dataclass(frozen=True)
class Forward:
    """What a pass over windows gives: the mean loss per window in nats, and the predictions."""

    loss: float
    predictions: Predictions


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    attention_mask: torch.Tensor,
    start_positions: torch.Tensor,
    end_positions: torch.Tensor,
) -> torch.Tensor:
    """Return each window's loss: the mean cross-entropy of its start and its end, in nats.

    Padding takes no part, so that a window's loss does not depend on its batch.

    Args:
        start_logits: (batch, tokens).
        end_logits: (batch, tokens).
        attention_mask: (batch, tokens), 0 on padding.
        start_positions: (batch,).
        end_positions: (batch,).

    Returns:
        (batch,), float32.
    """
    padding = attention_mask == 0
    losses = [
        F.cross_entropy(
            logits.float().masked_fill(padding, -torch.inf), positions, reduction="none"
        )
        for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
    ]
    return (losses[0] + losses[1]) / 2


def forward_pass(
    model: PreTrainedModel,
    collator: WindowCollator,
    *,
    n_best: int,
    max_answer_length: int,
    batch_size: int | PassSize,
    autocast: torch.dtype | None = None,
    check: Check | None = None,
) -> Forward:
    """Run ``model`` once over all windows of ``collator``, longest first.

    Logits are reduced to spans batch by batch; nothing of the size of the whole set is held. A
    batch that does not fit into the memory goes through in smaller ones, as do those after it;
    the results are the same.

    Args:
        model: A model with a question-answering head; put in evaluation mode here.
        collator: The windows and how they are padded.
        n_best: Starts and ends that a window may contribute.
        max_answer_length: Longest answer, in tokens.
        batch_size: Windows per batch. Give a :class:`~qa_hpo.finetune.memory.PassSize` where a
            later call is to begin with what has fitted.
        autocast: Lower precision of the pass, or None.
        check: Called before every batch; what it raises ends the pass.

    Raises:
        DivergedError: A logit is not a finite number.
        OutOfMemoryError: One window at a time does not fit.
    """
    windows = collator.windows
    spans = SpanAccumulator(windows.questions, n_best=n_best, max_answer_length=max_answer_length)
    if isinstance(batch_size, int):
        batch_size = evaluation_passes(model, batch_size)
    total = 0.0
    with _evaluating(model, autocast):
        for done in _batches(model, collator, batch_size, check):
            total += done.loss
            batch, indices = done.batch, done.indices
            inside = batch.mask
            try:
                spans.update(
                    window_index=indices,
                    question_index=windows.question_index[indices],
                    cls_index=windows.cls_index[indices] + batch.shift,
                    start_logits=done.start_logits,
                    end_logits=done.end_logits,
                    char_start=np.where(inside, windows.char_start[batch.source], -1),
                    char_end=np.where(inside, windows.char_end[batch.source], -1),
                )
            except ValueError as error:
                raise DivergedError(f"the model's logits cannot be used: {error}") from None
    return Forward(total / len(windows), spans.finish())


def mean_loss(
    model: PreTrainedModel,
    collator: WindowCollator,
    *,
    batch_size: PassSize,
    autocast: torch.dtype | None = None,
    check: Check | None = None,
) -> float:
    """Return the loss that :func:`forward_pass` gives, without what it finds out about spans.

    Args:
        model: A model with a question-answering head; put in evaluation mode here.
        collator: The windows and how they are padded.
        batch_size: Windows per batch.
        autocast: Lower precision of the pass, or None.
        check: Called before every batch; what it raises ends the pass.

    Returns:
        The mean loss per window, in nats. It is NaN where a window's logits are.

    Raises:
        OutOfMemoryError: One window at a time does not fit.
    """
    total = 0.0
    with _evaluating(model, autocast):
        for done in _batches(model, collator, batch_size, check):
            total += done.loss
    return total / len(collator.windows)


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel, autocast: torch.dtype | None) -> Iterator[None]:
    model.train(False)
    lower = (
        torch.autocast(model.device.type, dtype=autocast) if autocast else contextlib.nullcontext()
    )
    with torch.inference_mode(), lower:
        yield


def evaluation_passes(model: PreTrainedModel, size: int) -> PassSize:
    """Return how many windows go through ``model`` at once in evaluation: ``size``, if they fit."""
    return PassSize(
        size,
        checkpoint=getattr(model, "name_or_path", "") or "the model",
        unchanged="the evaluation's results stay the same",
    )


@dataclass(frozen=True)
class _Batch:
    """A batch that went through the model.

    Attributes:
        indices: Its windows, (batch,).
        batch: How they were padded.
        loss: Sum of the windows' losses, in nats.
        start_logits: (batch, tokens), float32.
        end_logits: (batch, tokens), float32.
    """

    indices: NDArray[np.int64]
    batch: PaddedBatch
    loss: float
    start_logits: NDArray[np.float32]
    end_logits: NDArray[np.float32]


def _batches(
    model: PreTrainedModel, collator: WindowCollator, passes: PassSize, check: Check | None
) -> Iterator[_Batch]:
    for indices in longest_first(collator.windows.lengths, passes.size):
        first = 0
        while first < len(indices):
            if check is not None:
                check()
            left = indices[first:]
            done = passes.fit(len(left), partial(_through, model, collator, left))
            yield done
            first += len(done.indices)


def _through(
    model: PreTrainedModel, collator: WindowCollator, windows: NDArray[np.int64], size: int
) -> _Batch:
    """Run the first ``size`` of ``windows`` through the model."""
    indices = windows[:size]
    batch = collator.layout(indices)
    inputs = _on(model.device, collator.inputs(batch))
    labels = _on(model.device, collator.labels(indices, batch))
    outputs = model(**inputs)
    start, end = outputs.start_logits.float(), outputs.end_logits.float()
    losses = span_loss(start, end, inputs["attention_mask"], **labels)
    return _Batch(
        indices,
        batch,
        losses.double().sum().item(),
        start.cpu().numpy(),
        end.cpu().numpy(),
    )


def _on(device: torch.device, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
