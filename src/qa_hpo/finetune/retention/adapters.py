"""What low-rank adapters have in common: where they go, and a copy of the model without them.

peft puts them into the model, beside its linear modules: the model stays the object and the class
that it was, and only names of its weights change.
"""

import copy
from typing import cast

import torch
from peft.tuners.lora import LoraModel
from transformers import PreTrainedModel

from qa_hpo.errors import CheckpointError

__all__ = ["ADAPTER", "adapted_modules", "merged", "train_head"]

# peft's own name for the only adapter of a model.
ADAPTER = "default"


def adapted_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear modules in the base model's layers.

    All of them, not the attention's alone: T. Dettmers et al., "QLoRA: Efficient Finetuning of
    Quantized LLMs", NeurIPS 2023, find that this matters more than the rank. The head is not
    among them.

    Raises:
        CheckpointError: There are none.
    """
    inside = {
        id(module)
        for layers in model.base_model.modules()
        if isinstance(layers, torch.nn.ModuleList)
        for module in layers.modules()
        if isinstance(module, torch.nn.Linear)
    }
    names = [name for name, module in model.named_modules() if id(module) in inside]
    if not names:
        raise CheckpointError(
            f"{model.name_or_path}: its layers have no linear modules, beside which adapters go"
        )
    return names


def train_head(model: PreTrainedModel) -> None:
    """Let the parameters outside the base model train, which peft freezes with the others."""
    body = {id(weight) for weight in model.base_model.parameters()}
    for weight in model.parameters():
        if id(weight) not in body:
            weight.requires_grad_(True)


def merged(tuner: LoraModel) -> PreTrainedModel:
    """Return a copy of the adapted model with its adapters added to the weights beside them.

    It is of the class that the model was before, with the same names of weights. The adapted model
    itself is not touched: adding and taking away again would not give the same bits.
    """
    # For as long as it is kept, a second model; its gradients are not copied.
    model = cast("PreTrainedModel", copy.deepcopy(tuner).merge_and_unload())
    # accelerate puts a forward with lower precision into the model's own attributes; that of the
    # copy would still be the original's.
    for name in ("forward", "_original_forward"):
        vars(model).pop(name, None)
    return model
