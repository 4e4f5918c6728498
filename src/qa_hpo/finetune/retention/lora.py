"""Low-rank adaptation: the start's weights stay, and what is added to them has a low rank.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. D. Biderman et al.,
"LoRA Learns Less and Forgets Less", TMLR 2024, show that it keeps more of what a model could before
than training all weights does, or than dropout and weight decay do.
"""

from peft.tuners.lora import LoraConfig, LoraModel
from transformers import PreTrainedModel

from qa_hpo.finetune.retention.adapters import ADAPTER, adapted_modules, merged, train_head
from qa_hpo.finetune.retention.base import RetentionMethod

__all__ = ["Lora"]


class Lora(RetentionMethod):
    """Beside each linear module of the layers, a product of two matrices trains, and the head.

    Their entries are drawn from torch's random state; the product begins at 0, so that the model
    begins as the start. It counts twice (alpha is twice the rank). Learning rates that suit it are
    some ten times those that suit training all weights.

    Args:
        rank: Rank of the products, at least 1.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._tuner: LoraModel | None = None

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Put the adapters in; all but them and the head is frozen.

        Raises:
            CheckpointError: The model has no linear modules in its layers.
        """
        config = LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            lora_dropout=0.0,
            target_modules=adapted_modules(model),
        )
        self._tuner = LoraModel(model, config, ADAPTER)
        train_head(model)

    def portable(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a copy of the model without adapters that answers as it does."""
        assert self._tuner is not None
        assert self._tuner.model is model
        return merged(self._tuner)
