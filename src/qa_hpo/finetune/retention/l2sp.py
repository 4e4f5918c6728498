"""L2-SP: the weights are pulled back to the start's, each as strongly as any other.

X. Li, Y. Grandvalet and F. Davoine, "Explicit Inductive Bias for Transfer Learning with
Convolutional Networks", ICML 2018.
"""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from qa_hpo.finetune.retention.anchors import QuadraticPenalty, trained_parameters

__all__ = ["L2SP"]


class L2SP(QuadraticPenalty):
    """Adds strength / 2 * ||w - w0||^2, with the start's weights w0, to the loss.

    Nothing of the old task is needed. The paper also decays the head, which is fresh there, to 0;
    here that is what weight decay is for.

    Args:
        strength: The paper's alpha, at least 0.
        head_is_fresh: Whether the start had no question-answering head: the one drawn for it says
            nothing about any task, so what is outside the model's base is not pulled back to it.
    """

    def __init__(self, strength: float, *, head_is_fresh: bool = False) -> None:
        super().__init__(strength / 2)
        self.head_is_fresh = head_is_fresh

    def held(self, model: PreTrainedModel) -> Mapping[str, torch.nn.Parameter]:
        """Return the parameters that are pulled back: without a head that is fresh."""
        held = trained_parameters(model)
        if not self.head_is_fresh:
            return held
        base = {id(weight) for weight in model.base_model.parameters()}
        return {name: weight for name, weight in held.items() if id(weight) in base}
