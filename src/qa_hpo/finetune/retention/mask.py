"""Freezing: the weights that the old task depends on most get no updates.

As in PackNet (A. Mallya and S. Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by
Iterative Pruning", CVPR 2018), but after one task, without pruning or retraining, with the weights
chosen by their Fisher information rather than by magnitude, and over the whole model rather than
layer by layer.
"""

from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from qa_hpo.finetune.retention.anchors import trained_parameters
from qa_hpo.finetune.retention.base import OldData, RetentionMethod
from qa_hpo.finetune.retention.fisher import diagonal_fisher

__all__ = ["Mask", "highest"]


class Mask(RetentionMethod):
    """Keeps a share of the weights, those with the highest Fisher information, as they are.

    Their gradient is set to 0, so that clipping does not count it, and after every step they get
    their values back: weight decay would move them, and so would an optimizer's momentum.

    Args:
        strength: The share, 0 … 1, of all weights that are trained.
        old: The old task's training questions.
    """

    needs_old_data = True
    needs_head = True

    def __init__(self, strength: float, old: OldData) -> None:
        self.strength = strength
        self.old = old
        self._frozen: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Choose the weights, and take their values."""
        trained = trained_parameters(model)
        fisher = diagonal_fisher(self.old)
        masks = highest({name: fisher[name] for name in trained}, self.strength)
        # Each with its mask and its values; those of which nothing is frozen are left out.
        self._frozen = [
            (weight, masks[name].to(weight.device), weight.detach().clone())
            for name, weight in trained.items()
            if bool(masks[name].any())
        ]

    @torch.no_grad()
    def after_backward(self, scale: float = 1.0) -> None:
        """Leave no gradient on frozen weights."""
        for weight, mask, _ in self._frozen:
            if weight.grad is not None:
                weight.grad.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Give frozen weights their values back, bit by bit."""
        for weight, mask, values in self._frozen:
            torch.where(mask, values, weight, out=weight)


def highest(values: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Return masks of the highest values over all tensors, in time linear in their number.

    Args:
        values: Tensors on the CPU, float32, without NaN.
        share: 0 … 1 of all their elements; rounded to a whole number of them.

    Returns:
        Bool, by the same names and of the same shapes: True on that many elements in all. Of
        equal values those come first that are in an earlier tensor, or further ahead in theirs.
    """
    total = sum(tensor.numel() for tensor in values.values())
    count = round(share * total)
    if count == 0:
        return {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in values.items()}
    flat = np.concatenate([tensor.numpy().ravel() for tensor in values.values()])
    flat.partition(total - count)  # a sort would take ten times as long
    lowest = float(flat[total - count])
    del flat
    masks = {name: tensor > lowest for name, tensor in values.items()}
    missing = count - sum(int(mask.sum()) for mask in masks.values())
    for name, tensor in values.items():
        if missing == 0:
            break
        ties = (tensor == lowest).flatten().nonzero().flatten()[:missing]
        masks[name].view(-1)[ties] = True
        missing -= len(ties)
    return masks
