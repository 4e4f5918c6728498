"""Synaptic intelligence: what each weight did for the old task while that was learnt.

F. Zenke, B. Poole and S. Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017.

It takes two runs. The one that builds the start adds up, weight by weight, how much of the fall of
the loss its moves account for (`PathIntegral`), and leaves the result with the checkpoint. The one
that learns the new task pulls the weights back accordingly (`SynapticIntelligence`).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.disk import telling_of_a_full_disk
from qa_hpo.finetune.retention.anchors import QuadraticPenalty, trained_parameters
from qa_hpo.finetune.retention.base import RetentionMethod
from qa_hpo.paths import write_bytes

__all__ = ["IMPORTANCE_FILE", "PathIntegral", "SynapticIntelligence"]

IMPORTANCE_FILE = "path_integral.safetensors"
"""What a start that was built for it holds beside its weights: the importance of each."""


class PathIntegral(RetentionMethod):
    """Collects the importance of the weights while a start is trained; changes nothing.

    Each step adds -g * d to a weight's omega, with g the gradient of the loss before clipping, and
    d what the optimizer's step did to the weight. Summed over weights and steps that is the fall of
    the loss, to first order in the steps. The gradient is a batch's, as in the paper: the loss of
    the batch that a step is for falls faster than that of all others, so omega is too large on the
    whole.

    It takes four times the memory of the weights.
    """

    def __init__(self) -> None:
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._initial: dict[str, torch.Tensor] = {}
        self._omega: dict[str, torch.Tensor] = {}
        self._before: list[torch.Tensor] = []
        self._gradients: list[torch.Tensor] = []

    @torch.no_grad()
    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Begin the path at the model's weights."""
        self._weights = trained_parameters(model)
        weights = self._weights.items()
        self._initial = {name: weight.detach().clone() for name, weight in weights}
        self._omega = {name: torch.zeros_like(weight) for name, weight in weights}
        self._before = [torch.zeros_like(weight) for _, weight in weights]
        self._gradients = [torch.zeros_like(weight) for _, weight in weights]

    @torch.no_grad()
    def after_backward(self, scale: float = 1.0) -> None:
        """Remember the gradient of the loss, and the weights that it was taken at."""
        weights: list[torch.Tensor] = list(self._weights.values())
        torch._foreach_copy_(self._before, weights)
        for kept, weight in zip(self._gradients, weights, strict=True):
            if weight.grad is None:
                kept.zero_()
            else:
                kept.copy_(weight.grad)
        if scale != 1.0:
            torch._foreach_div_(self._gradients, scale)
            # A step whose gradient has overflowed is left out, and 0 times infinity is no number.
            for kept in self._gradients:
                kept.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what the step did."""
        torch._foreach_sub_(self._before, list(self._weights.values()))  # now minus the move
        torch._foreach_addcmul_(list(self._omega.values()), self._gradients, self._before)

    @property
    def omega(self) -> Mapping[str, torch.Tensor]:
        """What each weight's moves have taken off the loss so far, in nats, by name."""
        return self._omega

    @torch.no_grad()
    def importance(self, damping: float = 1e-3) -> dict[str, torch.Tensor]:
        """Return omega / (distance^2 + damping) for every weight.

        The distance is from the path's beginning to where the weights are. An omega below 0, of a
        weight whose moves raised the loss on balance (momentum, weight decay and noise do that),
        counts as 0: a penalty with a negative importance would push its weight away from the
        start, without bound.

        Args:
            damping: The paper's xi, above 0: bounds the importance of weights that hardly moved.
        """
        return {
            name: self._omega[name].clamp(min=0) / ((weight - initial).square() + damping)
            for (name, weight), initial in zip(
                self._weights.items(), self._initial.values(), strict=True
            )
        }

    def save(self, folder: Path) -> None:
        """Write the importance, `IMPORTANCE_FILE`, into a checkpoint's folder.

        Raises:
            DiskFullError: No space is left for it.
        """
        importance = {name: values.cpu() for name, values in self.importance().items()}
        with telling_of_a_full_disk(folder):
            write_bytes(folder / IMPORTANCE_FILE, save(importance))

    def state(self) -> dict[str, torch.Tensor]:
        """Return the path so far: omega, and the weights at its beginning."""
        parts = (("omega", self._omega), ("initial", self._initial))
        return {
            f"{part}.{name}": values for part, tensors in parts for name, values in tensors.items()
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on with the path of `state`."""
        for part, tensors in (("omega", self._omega), ("initial", self._initial)):
            for name, values in tensors.items():
                values.copy_(state[f"{part}.{name}"])


class SynapticIntelligence(QuadraticPenalty):
    """Adds strength * sum of Omega (w - w*)^2 to the loss.

    Omega is what `PathIntegral` has left with the start, w* the start's weights.

    Args:
        strength: The paper's c, at least 0.
        checkpoint: The start, a folder.
    """

    needs_head = True

    def __init__(self, strength: float, checkpoint: str) -> None:
        super().__init__(strength)
        self.checkpoint = checkpoint

    def importances(self, held: Mapping[str, torch.nn.Parameter]) -> Mapping[str, torch.Tensor]:
        """Return the importance of each weight, from the start's folder.

        Raises:
            CheckpointError: It is not there, or is not that of these weights.
        """
        path = Path(self.checkpoint) / IMPORTANCE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{self.checkpoint}: has no {IMPORTANCE_FILE}: si needs a start that a recipe "
                "built with path_integral = true"
            )
        try:
            found = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        for name, weight in held.items():
            if name not in found or found[name].shape != weight.shape:
                raise CheckpointError(f"{path}: is not that of the start's weights (see {name})")
        return found
