"""Distillation: on questions of the old task, the model is to answer as the start did.

After Z. Li and D. Hoiem, "Learning without Forgetting", ECCV 2016, which has no old data and
takes the start's answers to the new task's inputs as targets. Here the inputs are the old
task's own: the start knows nothing of the new one's, where it has yet to learn what it should say.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qa_hpo.finetune.batching import PaddedBatch, WindowCollator, longest_first
from qa_hpo.finetune.evaluation import evaluation_passes
from qa_hpo.finetune.hardware import lower_precision
from qa_hpo.finetune.retention.base import OldData
from qa_hpo.finetune.retention.replay import Replay
from qa_hpo.squad.layout import Windows

__all__ = ["Distill", "softened_divergence"]


class Distill(Replay):
    """The mix of replay, but an old window is not learnt by its labels.

    Its loss is the divergence of the model's distribution over the tokens from the start's, both
    softened by a temperature, the mean of start and end. G. Hinton, O. Vinyals and J. Dean,
    "Distilling the Knowledge in a Neural Network", 2015: softening shows what the start thinks of
    the unlikely tokens, and as it divides the gradient by the square of the temperature, the loss
    is multiplied by that, which leaves its weight beside the labels' loss as it is.

    The start's logits are computed once per run, by the model itself before it is trained, so
    that a resumed run has the same ones.

    Args:
        strength: Share of the old task's questions that is remembered, above 0 to 1.
        old: The old task's questions.
        seed: Seed of the draw.
        temperature: Logits are divided by it; above 0.
    """

    needs_head = True
    batch_keys = ("is_old", "soft_start", "soft_end")

    def __init__(self, strength: float, old: OldData, seed: int, temperature: float = 2.0) -> None:
        super().__init__(strength, old, seed)
        self.temperature = temperature
        self._collators: list[_SoftCollator] = []

    def batches(self, collator: WindowCollator) -> WindowCollator:
        """Return the mix of replay, with the start's logits for the memory's windows."""
        mixed = _SoftCollator(super().batches(collator), first_old=len(collator.windows))
        self._collators.append(mixed)
        return mixed

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Compute the start's logits for the memory's windows.

        Raises:
            OutOfMemoryError: One window at a time does not fit.
        """
        soft = _logits(model, self.old, self.memory)
        for collator in self._collators:
            collator.soft = soft

    def window_losses(
        self,
        losses: torch.Tensor,
        outputs: Any,
        inputs: Mapping[str, torch.Tensor],
        extras: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the span loss of new windows, and of old ones how far they are from the start."""
        padding = inputs["attention_mask"] == 0
        start, end = (
            softened_divergence(extras[f"soft_{side}"], logits, padding, self.temperature)
            for side, logits in (("start", outputs.start_logits), ("end", outputs.end_logits))
        )
        return torch.where(extras["is_old"], (start + end) / 2, losses)


def softened_divergence(
    target: torch.Tensor, logits: torch.Tensor, padding: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return T^2 KL(softmax(target / T) || softmax(logits / T)) of each row, over its real tokens.

    Args:
        target: (batch, tokens), logits without gradient.
        logits: (batch, tokens).
        padding: (batch, tokens), bool, True on padding.
        temperature: T.

    Returns:
        (batch,), float32, in nats.
    """
    # Not minus infinity, as in other losses: here differences of logarithms are taken.
    least = torch.finfo(torch.float32).min
    theirs, own = (
        F.log_softmax((values.float() / temperature).masked_fill(padding, least), dim=-1)
        for values in (target, logits)
    )
    return temperature**2 * F.kl_div(own, theirs, reduction="none", log_target=True).sum(-1)


class _SoftCollator(WindowCollator):
    """Adds to a batch what the start makes of its old windows.

    Args:
        mixed: The new task's windows and then the memory's.
        first_old: Number of the memory's first window.

    Attributes:
        soft: (2, tokens of the memory's windows): the start's logits for start and end, flat like
            the windows' own arrays, float32; None until they are computed.
    """

    def __init__(self, mixed: WindowCollator, first_old: int) -> None:
        super().__init__(mixed.windows, mixed.pad_id, left=mixed.left, multiple=mixed.multiple)
        self.first_old = first_old
        self.soft: NDArray[np.float32] | None = None

    def labels(self, indices: NDArray[np.int64], batch: PaddedBatch) -> dict[str, torch.Tensor]:
        """Return the labels, and of each window whether it is old and the start's logits for it.

        ``is_old`` is (batch,), bool; ``soft_start`` and ``soft_end`` are (batch, tokens), float32,
        0 on padding and in new windows.
        """
        assert self.soft is not None, "the start's logits come before the first batch"
        is_old = indices >= self.first_old
        inside = batch.mask & is_old[:, None]
        first_token = self.windows.offsets[self.first_old]
        source = np.where(inside, batch.source - first_token, 0)
        start, end = np.where(inside, self.soft[:, source], np.float32(0))
        return {
            **super().labels(indices, batch),
            "is_old": torch.from_numpy(is_old),
            "soft_start": torch.from_numpy(start),
            "soft_end": torch.from_numpy(end),
        }


def _logits(model: PreTrainedModel, old: OldData, windows: Windows) -> NDArray[np.float32]:
    """Return a model's logits for the tokens of ``windows``, (2, tokens): start and end.

    The model is left in the mode, training or evaluation, in which it came.
    """
    collator = old.padded(windows)
    passes = evaluation_passes(model, old.runtime.eval_batch_size)
    flat = np.empty((2, len(windows.input_ids)), dtype=np.float32)
    precision = lower_precision(old.runtime)
    lower = (
        torch.autocast(model.device.type, dtype=precision)
        if precision
        else contextlib.nullcontext()
    )
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode(), lower:
            for indices in longest_first(windows.lengths, passes.size):
                first = 0
                while first < len(indices):
                    if old.check is not None:
                        old.check()
                    left = indices[first:]
                    work = partial(_through, model, collator, left, flat)
                    first += passes.fit(len(left), work)
    finally:
        model.train(was_training)
    return flat


def _through(
    model: PreTrainedModel,
    collator: WindowCollator,
    windows: NDArray[np.int64],
    flat: NDArray[np.float32],
    size: int,
) -> int:
    """Write the logits of the first ``size`` of ``windows`` into ``flat``; return how many."""
    indices = windows[:size]
    batch = collator.layout(indices)
    inputs = {name: rows.to(model.device) for name, rows in collator.inputs(batch).items()}
    outputs = model(**inputs)
    tokens = batch.source[batch.mask]
    for row, logits in zip(flat, (outputs.start_logits, outputs.end_logits), strict=True):
        row[tokens] = logits.float().cpu().numpy()[batch.mask]
    return len(indices)
