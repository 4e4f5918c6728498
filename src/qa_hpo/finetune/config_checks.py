"""What a config.json may not say: libraries would notice late, or never."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from qa_hpo.errors import CheckpointError

__all__ = ["DROPOUT_NAMES", "check_dropout", "check_layers"]

# Built in no time, whatever the weights are.
_FEW_LAYERS = 100

# What the model families call the dropout of hidden states and of attention weights.
DROPOUT_NAMES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "mlp_dropout",
    "embedding_dropout",
)


def check_layers(config: Any, checkpoint: str) -> None:
    """Check that a model has no more layers than weights: each is built before any is loaded.

    Raises:
        CheckpointError: It has.
    """
    layers = getattr(config, "num_hidden_layers", None)
    files = sorted(Path(checkpoint).glob("*.safetensors")) if Path(checkpoint).is_dir() else []
    if not isinstance(layers, int) or layers <= _FEW_LAYERS or not files:
        return
    tensors = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())
    if layers > tensors:
        raise CheckpointError(
            f"{checkpoint}: its config.json has {layers} layers (num_hidden_layers), and its "
            f"weights are {tensors} tensors"
        )


def check_dropout(config: Any, checkpoint: str) -> None:
    """Check that a model's dropout is a probability: torch would say so in its first batch.

    Raises:
        CheckpointError: It is not.
    """
    for name in DROPOUT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, float) and not 0 <= value <= 1:
            raise CheckpointError(
                f"{checkpoint}: {name} in its config.json is {value}, not in 0 … 1"
            )
