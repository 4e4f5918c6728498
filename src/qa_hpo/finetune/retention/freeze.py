"""A fixed part: the embeddings and the lowest layers keep the start's weights.

J. Lee, R. Tang and J. Lin, "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning",
2019, find that a quarter of the layers, trained, gives nine tenths of the quality. What is lowest
is most general and what a task needs last: J. Howard and S. Ruder, "Universal Language Model
Fine-tuning for Text Classification", ACL 2018, thaw layers from the top down against forgetting.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.retention.base import RetentionMethod

__all__ = ["Freeze"]


class Freeze(RetentionMethod):
    """The embeddings and the lowest layers do not train; all above them, and the head, do.

    Embeddings are the input embeddings and whatever else the model has below its layers, such as
    positions and a projection to the layers' width: what the frozen layers compute is fixed. Only
    DeBERTa's relative positions, which all layers share, go on training with the upper ones.
    Dropout stays as it is.

    Args:
        strength: Share of the layers that is frozen, 0 to 1, rounded to whole layers (a half to the
            even number). 0 freezes the embeddings alone, 1 leaves the head and what is between it
            and the layers.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def prepare(self, model: PreTrainedModel, steps: int) -> None:
        """Freeze.

        Raises:
            CheckpointError: The model has no layers that can be told apart and are to be frozen.
        """
        name, layers = _layers(model)
        # Families in which layers share their weights have fewer modules than layers.
        count = getattr(model.config, "num_hidden_layers", len(layers))
        frozen = round(self.strength * count)
        if frozen and count != len(layers):
            raise CheckpointError(
                f"{model.name_or_path}: {frozen} of its {count} layers cannot be frozen, as only "
                f"{len(layers)} can be told apart; a strength of 0 freezes its embeddings alone"
            )
        for module in [*_below(model, name), *layers[:frozen]]:
            module.requires_grad_(False)


def _layers(model: PreTrainedModel) -> tuple[str, list[torch.nn.Module]]:
    """Return the base model's longest list of modules of one class, and its name there."""
    found: tuple[str, list[torch.nn.Module]] = ("", [])
    for name, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            alike = len({type(layer) for layer in module}) == 1
            if alike and len(module) > len(found[1]):
                found = name, list(module)
    return found


def _below(model: PreTrainedModel, layers: str) -> Iterator[torch.nn.Module]:
    """Yield the input embeddings, and the base model's parts that come before its ``layers``."""
    yield model.get_input_embeddings()
    holder = layers.partition(".")[0]
    if holder:
        for name, module in model.base_model.named_children():
            if name == holder:
                break
            yield module
