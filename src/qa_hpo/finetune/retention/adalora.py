"""Adaptive low-rank adaptation: a budget of ranks goes to where they matter most.

Q. Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR
2023. An adapter is a product like a singular value decomposition, B E A with a diagonal E. All
begin with more ranks than there are to be in the end. As training goes on, the entries of E whose
triplets (a column of B, an entry of E, a row of A) matter least for the loss, over all adapters
together, are set to 0, more and more of them, until the budget is met.
"""

from collections.abc import Mapping
from typing import cast

import torch
from peft.tuners.adalora import AdaLoraConfig, AdaLoraModel
from transformers import PreTrainedModel

from qa_hpo.finetune.retention.adapters import ADAPTER, adapted_modules, merged, train_head
from qa_hpo.finetune.retention.base import RetentionMethod

__all__ = ["AdaLora", "budget_phases"]

# The allocator's averages: how much each entry matters in this step, on average, and how unsure
# that is.
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def budget_phases(steps: int) -> tuple[int, int] | None:
    """Return the steps before ranks are taken away and those after it: a tenth and three tenths.

    There are at least two steps that are not after it: the first to see what matters, the last to
    bring the ranks down to the budget. None for a run of one step, which has no room for both.

    Args:
        steps: Optimizer steps of the run, at least 1.
    """
    if steps < 2:
        return None
    return round(0.1 * steps), min(round(0.3 * steps), steps - 2)


class AdaLora(RetentionMethod):
    """Beside each linear module of the layers, a product of three matrices trains, and the head.

    The budget is ``rank`` per adapter on average, and 1.5 times as many to begin with. It is full
    for the first tenth of the steps, falls with the third power of the steps that are left, and is
    met for the last three tenths. A run of one step cannot see what matters before its ranks must
    be down: there every adapter has ``rank`` from the beginning.

    B and A are held orthogonal, as in a singular value decomposition, by a penalty on the mean of
    ||P P^T - I|| over all of them, with peft's coefficient. Its gradient is part of each step; the
    training loss that is told is that of the task alone.

    Args:
        rank: Ranks per adapter in the end, on average, at least 1.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._tuner: AdaLoraModel | None = None
        self._adapters: dict[str, torch.nn.Parameter] = {}
        self._step = 0
        self._allocates = False

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Put the adapters in; all but them and the head is frozen.

        Raises:
            CheckpointError: The model has no linear modules in its layers.
        """
        phases = budget_phases(steps)
        before, after = phases or (0, 0)
        initial = round(1.5 * self.rank) if phases else self.rank
        config = AdaLoraConfig(
            init_r=initial,
            target_r=self.rank,
            tinit=before,
            tfinal=after,
            total_step=steps,
            # peft divides by the initial rank: products count twice, as in Lora.
            lora_alpha=2 * initial,
            lora_dropout=0.0,
            target_modules=adapted_modules(model),
        )
        self._tuner = AdaLoraModel(model, config, ADAPTER)  # type: ignore[no-untyped-call]
        self._adapters = {
            name: weight for name, weight in model.named_parameters() if ".lora_" in name
        }
        self._step = 0
        self._allocates = phases is not None
        train_head(model)

    def after_backward(self, scale: float = 1.0) -> None:
        """Add the gradient of the orthogonality penalty, times ``scale``."""
        assert self._tuner is not None
        # Rows of A and columns of B are the singular vectors.
        vectors = {
            name: weight for name, weight in self._adapters.items() if ".lora_E." not in name
        }
        terms = []
        for name, weight in vectors.items():
            rows = weight if ".lora_A." in name else weight.T
            identity = torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
            terms.append(torch.linalg.matrix_norm(rows @ rows.T - identity))
        penalty = self._config().orth_reg_weight * torch.stack(terms).mean()
        gradients = torch.autograd.grad(penalty, list(vectors.values()))
        for weight, gradient in zip(vectors.values(), gradients, strict=True):
            if weight.grad is None:
                weight.grad = gradient * scale
            else:
                weight.grad.add_(gradient, alpha=scale)

    @torch.no_grad()
    def after_step(self) -> None:
        """Look at what matters, and bring the ranks down to the step's budget."""
        assert self._tuner is not None
        self._step += 1
        if not self._allocates:
            return
        for weight in self._adapters.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            else:
                # A step that was left out, as float16 had overflown: averages would never recover.
                weight.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._tuner.update_and_allocate(self._step)  # type: ignore[no-untyped-call]

    def portable(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a copy of the model without adapters that answers as it does."""
        assert self._tuner is not None
        assert self._tuner.model is model
        return merged(self._tuner)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the step, the allocator's averages, and which ranks are left."""
        assert self._tuner is not None
        kept = {"step": torch.tensor(self._step)}
        for average in _AVERAGES:
            for name, values in getattr(self._tuner.rankallocator, average).items():
                kept[f"{average}/{name}"] = values.contiguous()
        for name, left in (self._config().rank_pattern or {}).items():
            kept[f"rank_pattern/{name}"] = torch.tensor(left, dtype=torch.bool)
        return kept

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned, after `prepare`."""
        assert self._tuner is not None
        self._step = int(state["step"])
        kinds: dict[str, dict[str, torch.Tensor]] = {}
        for key, values in state.items():
            kind, _, name = key.partition("/")
            kinds.setdefault(kind, {})[name] = values
        for average in _AVERAGES:
            there = {
                name: values.to(self._adapters[name])
                for name, values in kinds.get(average, {}).items()
            }
            setattr(self._tuner.rankallocator, average, there)
        pattern = {name: left.tolist() for name, left in kinds.get("rank_pattern", {}).items()}
        self._config().rank_pattern = pattern or None

    def _config(self) -> AdaLoraConfig:
        assert self._tuner is not None
        return cast("AdaLoraConfig", self._tuner.peft_config[ADAPTER])
