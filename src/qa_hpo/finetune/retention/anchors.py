"""What is held at the start's weights: which parameters, and the pull back to them.

A quadratic penalty is a sum over weights, c * importance * (weight - anchor)^2, with the start's
weights as anchors. Its gradient is known in closed form, so it is added to the gradient of the loss
where that lies: nothing goes through autograd, and a step costs a few passes over the weights.
"""

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from qa_hpo.finetune.retention.base import RetentionMethod

__all__ = ["QuadraticPenalty", "trained_parameters"]

# Weights whose distances from their anchors are held at once: 64 MiB in float32, so that memory
# does not grow by a copy of the model and a GPU still gets many tensors per launch.
_CHUNK = 1 << 24


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that get updates, by name; a tied one comes once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


class QuadraticPenalty(RetentionMethod):
    """A coefficient times the sum of importance * (weight - anchor)^2.

    The anchors are the weights at the time of `prepare`. A run that goes on needs no state of it:
    `prepare` sees the start's weights there too.

    Args:
        coefficient: In nats per unit of importance and squared distance; at least 0.
    """

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient
        self._weights: list[torch.Tensor] = []
        self._anchors: list[torch.Tensor] = []
        self._importances: list[torch.Tensor] | None = None

    def held(self, model: PreTrainedModel) -> Mapping[str, torch.nn.Parameter]:
        """Return the parameters that are pulled back, by name: all that are trained."""
        return trained_parameters(model)

    def importances(
        self, held: Mapping[str, torch.nn.Parameter]
    ) -> Mapping[str, torch.Tensor] | None:
        """Return the importance of each weight, by name, shaped like it, at least 0; None for 1.

        Args:
            held: What is pulled back; more may be returned.
        """
        return None

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Take the model's weights as anchors."""
        held = self.held(model)
        importances = self.importances(held)
        self._weights = list(held.values())
        self._anchors = [weight.detach().clone() for weight in self._weights]
        self._importances = None
        if importances is not None:
            self._importances = [importances[name].to(weight) for name, weight in held.items()]

    @torch.no_grad()
    def penalty(self) -> torch.Tensor:
        """Return the penalty of the weights as they are, in nats: a scalar of their own type."""
        total = torch.zeros((), dtype=torch.float32)
        for index, (weight, anchor) in enumerate(zip(self._weights, self._anchors, strict=True)):
            squared = (weight - anchor).square_()
            if self._importances is not None:
                squared.mul_(self._importances[index])
            total = squared.sum() + total.to(squared)
        return self.coefficient * total

    @torch.no_grad()
    def after_backward(self, scale: float = 1.0) -> None:
        """Add the penalty's gradient, times ``scale``, to that of the loss.

        A parameter without a gradient is left out: no optimizer moves it, so it is at its anchor.
        """
        # The derivative of the square.
        factor = 2 * self.coefficient * scale
        for chunk in self._chunks():
            weights = [self._weights[index] for index in chunk]
            gradients = [weight.grad for weight in weights if weight.grad is not None]  # of all
            distances = torch._foreach_sub(weights, [self._anchors[index] for index in chunk])
            if self._importances is None:
                torch._foreach_add_(gradients, distances, alpha=factor)
            else:
                importances = [self._importances[index] for index in chunk]
                torch._foreach_addcmul_(gradients, distances, importances, value=factor)

    def _chunks(self) -> Iterator[list[int]]:
        """Yield the numbers of the parameters that have a gradient, few enough at a time."""
        chunk: list[int] = []
        size = 0
        for index, weight in enumerate(self._weights):
            if weight.grad is None:
                continue
            if chunk and size + weight.numel() > _CHUNK:
                yield chunk
                chunk, size = [], 0
            chunk.append(index)
            size += weight.numel()
        if chunk:
            yield chunk
