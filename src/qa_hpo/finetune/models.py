"""Checkpoints to tokenizers and extractive question-answering models, safely."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from qa_hpo.errors import CheckpointError, OutOfMemoryError
from qa_hpo.finetune.families import adapt_model, check_family, settle_token_types
from qa_hpo.finetune.memory import telling_of_memory
from qa_hpo.squad.windows import check_tokenizer

__all__ = [
    "check_place",
    "checkpoint_fingerprint",
    "has_trained_head",
    "load_model",
    "load_tokenizer",
    "quiet",
    "read_config",
    "supports_flash_attention",
]

# What the model families call the dropout of hidden states and of attention weights.
_DROPOUT_NAMES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "mlp_dropout",
    "embedding_dropout",
)


def quiet() -> None:
    """Keep transformers from telling about fresh heads and loading bars, in this process."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def checkpoint_fingerprint(checkpoint: str) -> str:
    """Return a hash of a checkpoint folder's files, or the hub id itself."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return checkpoint
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".txt", ".model"}:
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerFast:
    """Load a checkpoint's fast tokenizer.

    Raises:
        CheckpointError: There is none that can be loaded.
        WindowError: It cannot cut questions into windows (no CLS token, say).
    """
    check_place(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  (a file that is no good makes them raise anything)
        raise CheckpointError(
            f"{checkpoint}: no tokenizer could be loaded: {_why(error)}"
        ) from None
    check_tokenizer(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{checkpoint}: its tokenizer is not a fast one")
    settle_token_types(tokenizer, read_config(checkpoint))
    return tokenizer


def read_config(checkpoint: str, attention: str = "auto") -> Any:
    """Return the configuration of a checkpoint whose family can answer questions extractively.

    Args:
        checkpoint: A folder or a hub id.
        attention: The implementation that the model is to be loaded with.

    Raises:
        CheckpointError: It cannot be read, or the family cannot do that.
    """
    check_place(checkpoint)
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  (a file that is no good makes it raise anything)
        raise CheckpointError(f"{checkpoint}: cannot be loaded: {_why(error)}") from None
    try:
        check_family(config, attention)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    return config


def load_model(
    checkpoint: str,
    *,
    attention: str = "auto",
    dropout: float | None = None,
    fresh_head: bool = True,
) -> PreTrainedModel:
    """Load a checkpoint with a question-answering head, in float32.

    A checkpoint without such a head gets a fresh one, initialised from torch's random state,
    unless ``fresh_head`` is False.

    Args:
        checkpoint: A folder or a hub id. Weights must be safetensors; no code of it is run.
        attention: An implementation that transformers knows, or ``auto`` for its choice.
        dropout: Dropout of hidden states and attention weights; the checkpoint's own if None.
        fresh_head: Whether a checkpoint without a question-answering head is welcome.

    Raises:
        CheckpointError: It cannot be loaded as such a model.
        OutOfMemoryError: No memory is left for it.
    """
    config = read_config(checkpoint, attention)
    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        if dropout is not None:
            _set_dropout(config, checkpoint, dropout)
        with telling_of_memory(checkpoint, "the model"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, loading = AutoModelForQuestionAnswering.from_pretrained(
                checkpoint,
                output_loading_info=True,
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                **options,
            )
    except (CheckpointError, OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001  (a file that is no good makes them raise anything)
        raise CheckpointError(
            f"{checkpoint}: cannot be loaded as a question-answering model: {_why(error)}"
        ) from None
    lacking = sorted(loading["missing_keys"])
    body = [name for name in lacking if name.startswith(f"{model.base_model_prefix}.")]
    if body:
        raise CheckpointError(
            f"{checkpoint}: its weights are not those of the {config.model_type} model that its "
            f"config.json describes (they lack {', '.join(body[:3])})"
        )
    if lacking and not fresh_head:
        raise CheckpointError(
            f"{checkpoint}: has no trained question-answering head (its weights lack "
            f"{', '.join(lacking[:3])})"
        )
    adapt_model(model)
    return model  # type: ignore[no-any-return]


def has_trained_head(checkpoint: str) -> bool:
    """Return whether a checkpoint says that it was saved with a question-answering head."""
    check_place(checkpoint)
    config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    classes: list[str] = getattr(config, "architectures", None) or []
    return any(name.endswith("ForQuestionAnswering") for name in classes)


def supports_flash_attention(checkpoint: str) -> bool:
    """Return whether transformers has flash attention for a checkpoint's family.

    It leaves padding out of the attention. False also where the checkpoint cannot be read:
    loading it says why.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        family = MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)]
    except Exception:  # noqa: BLE001  (a file that is no good makes it raise anything)
        return False
    return bool(getattr(family, "_supports_flash_attn", False))


def _set_dropout(config: Any, checkpoint: str, dropout: float) -> None:
    # Some configurations say 0 where they mean 0.0.
    given = {name: getattr(config, name, None) for name in _DROPOUT_NAMES}
    names = [name for name, value in given.items() if type(value) in {int, float}]
    if not names:
        raise CheckpointError(f"{checkpoint}: has no dropout that could be set to {dropout}")
    for name in names:
        setattr(config, name, dropout)


def check_place(checkpoint: str) -> None:
    """Check that ``checkpoint`` is a checkpoint folder, or may be a hub id.

    Raises:
        CheckpointError: It is neither.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{checkpoint}: is no checkpoint: it has no config.json")
    elif checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1 or folder.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint folder (looked in {Path.cwd()})")


def _why(error: BaseException) -> str:
    """Return the first sentence of a library's message, which may go on for a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
