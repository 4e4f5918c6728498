"""Checkpoints to tokenizers and extractive question-answering models, safely."""

import hashlib
import json
import os
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

from qa_hpo.errors import CheckpointError, OutOfMemoryError, WindowError
from qa_hpo.finetune.config_checks import DROPOUT_NAMES, check_dropout, check_layers
from qa_hpo.finetune.families import (
    adapt_model,
    check_family,
    position_limit,
    settle_token_types,
)
from qa_hpo.finetune.linear import multiplies_at_half_width, use_quick_linear
from qa_hpo.finetune.memory import telling_of_memory
from qa_hpo.hub import check_no_adapter, commit_of, snapshot
from qa_hpo.paths import read_json
from qa_hpo.squad.windows import Windows, check_tokenizer

__all__ = [
    "check_place",
    "check_windows",
    "checkpoint_fingerprint",
    "folder_of",
    "has_trained_head",
    "is_hub_model",
    "load_model",
    "load_tokenizer",
    "parameter_count",
    "quiet",
    "read_config",
    "supports_flash_attention",
]

_NO_MODEL = "cannot be loaded as a question-answering model"
# Labels are of classifiers, of which some know tens of thousands.
_MOST_LABELS = 1_000_000
# A letter that one manuscript of the 15th century has, the multiocular O: no vocabulary has it.
_UNKNOWN = "\ua66e"


def quiet() -> None:
    """Keep transformers from telling about fresh heads and loading bars, in this process."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def checkpoint_fingerprint(checkpoint: str) -> str:
    """Return a hash of a checkpoint folder's files, or the hub id itself."""
    folder = Path(_expanded(checkpoint))
    if not folder.is_dir():
        return checkpoint
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in {".safetensors", ".json", ".txt", ".model"} and file.is_file():
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
    checkpoint = folder_of(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  (a file that is no good makes them raise anything)
        raise CheckpointError(
            f"{checkpoint}: no tokenizer could be loaded: {_why(error)}"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{checkpoint}: its tokenizer is not a fast one")
    limit = tokenizer.model_max_length
    if not isinstance(limit, (int, float)) or not limit > 0:
        raise CheckpointError(
            f"{checkpoint}: its tokenizer's model_max_length is {limit!r}, not a number above 0"
        )
    _check_template(tokenizer, checkpoint)
    _check_unknown(tokenizer, checkpoint)
    check_tokenizer(tokenizer)
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
    folder = folder_of(checkpoint)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
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
    checkpoint = folder_of(checkpoint)
    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        check_layers(config, checkpoint)
        check_dropout(config, checkpoint)
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
        raise CheckpointError(f"{checkpoint}: {_NO_MODEL}: {_why(error)}") from None
    _check_weights(checkpoint, model, sorted(loading["missing_keys"]), fresh_head)
    adapt_model(model)
    if multiplies_at_half_width():
        use_quick_linear(model)
    return model  # type: ignore[no-any-return]


def _check_weights(
    checkpoint: str, model: PreTrainedModel, lacking: list[str], fresh_head: bool
) -> None:
    """Check that the weights that a checkpoint lacks are those of a head that may be fresh.

    Raises:
        CheckpointError: They are others, or it may not.
    """
    body = [name for name in lacking if name.startswith(f"{model.base_model_prefix}.")]
    if body:
        kind = model.config.model_type
        raise CheckpointError(
            f"{checkpoint}: its weights are not those of the {kind} model that its "
            f"config.json describes (they lack {', '.join(body[:3])})"
        )
    if lacking and not fresh_head:
        raise CheckpointError(
            f"{checkpoint}: has no trained question-answering head (its weights lack "
            f"{', '.join(lacking[:3])})"
        )


def parameter_count(checkpoint: str) -> int:
    """Return how many parameters a checkpoint's question-answering model has; loads no weights.

    Raises:
        CheckpointError: No such model can be made of its configuration.
    """
    config = read_config(checkpoint)
    checkpoint = folder_of(checkpoint)
    try:
        check_layers(config, checkpoint)
        check_dropout(config, checkpoint)
        with torch.device("meta"):
            model = AutoModelForQuestionAnswering.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  (numbers that do not go together)
        raise CheckpointError(f"{checkpoint}: {_NO_MODEL}: {_why(error)}") from None
    return sum(parameter.numel() for parameter in model.parameters())


def has_trained_head(checkpoint: str) -> bool:
    """Return whether a checkpoint says that it was saved with a question-answering head."""
    checkpoint = folder_of(checkpoint)
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


def check_windows(windows: Windows, config: Any, checkpoint: str) -> None:
    """Check that a model has an embedding for everything that windows hold.

    Args:
        windows: The windows.
        config: The model's configuration.
        checkpoint: Where it and the tokenizer are from.

    Raises:
        WindowError: A window is longer than the model has positions, or the tokenizer has tokens
            or token types that the model has not.
    """
    limit = position_limit(config)
    if limit is not None and (longest := int(windows.lengths.max(initial=0))) > limit:
        raise WindowError(
            f"{checkpoint}: a window has {longest} tokens and the model {limit} positions; lower "
            "data.max_length"
        )
    held = {"token": windows.input_ids, "token type": windows.token_type_ids}
    known = {"token": "vocab_size", "token type": "type_vocab_size"}
    for what, ids in held.items():
        size = getattr(config, known[what], None)
        if ids is None or not isinstance(size, int) or not 0 < size <= ids.max(initial=0):
            continue
        raise WindowError(
            f"{checkpoint}: its tokenizer gives the {what} {ids.max()}, and its config.json has "
            f"{known[what]} {size}; they are not of the same model"
        )


def _set_dropout(config: Any, checkpoint: str, dropout: float) -> None:
    # Some configurations say 0 where they mean 0.0.
    given = {name: getattr(config, name, None) for name in DROPOUT_NAMES}
    names = [name for name, value in given.items() if type(value) in {int, float}]
    if not names:
        raise CheckpointError(f"{checkpoint}: has no dropout that could be set to {dropout}")
    for name in names:
        setattr(config, name, dropout)


def is_hub_model(checkpoint: str) -> bool:
    """Return whether ``checkpoint`` means a model of the hub; otherwise it is a checkpoint folder.

    Raises:
        CheckpointError: It can be neither.
    """
    check_place(checkpoint)
    return not Path(_expanded(checkpoint)).is_dir()


def folder_of(checkpoint: str) -> str:
    """Return the folder of a checkpoint: where ``checkpoint`` leads, or the files of a hub id.

    The newest ones; a study's are those of the commit that it was created with, which
    :meth:`Inputs.checkpoint <qa_hpo.finetune.inputs.Inputs.checkpoint>` returns.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot be had.
        WorkError: The hub fails.
    """
    if not is_hub_model(checkpoint):
        return _expanded(checkpoint)
    return str(snapshot(checkpoint, commit_of("model", checkpoint)))


def check_place(checkpoint: str) -> None:
    """Check that ``checkpoint`` is a checkpoint folder, or may be a hub id.

    Raises:
        CheckpointError: It is neither, or the folder holds an adapter.
    """
    folder = Path(_expanded(checkpoint))
    try:
        is_folder, is_there = folder.is_dir(), folder.exists() or folder.is_symlink()
    except OSError as error:  # a name too long
        raise CheckpointError(f"{checkpoint}: cannot be read: {error.strerror}") from None
    if is_folder:
        check_no_adapter(folder, checkpoint)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{checkpoint}: is no checkpoint: it has no config.json")
        _check_labels(folder)
    elif checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1 or is_there:
        raise CheckpointError(f"{checkpoint}: no such checkpoint folder (looked in {Path.cwd()})")


def _expanded(checkpoint: str) -> str:
    """Return ``checkpoint`` with its ``~``, if it begins with one, written out."""
    # pathlib would fail where no such user is, and rewrite what has none.
    return os.path.expanduser(checkpoint)  # noqa: PTH111


def _check_template(tokenizer: PreTrainedTokenizerFast, checkpoint: str) -> None:
    """Check that a tokenizer has the special tokens that it puts around texts: it panics if not.

    Raises:
        CheckpointError: It lacks some.
    """
    processor: Any = tokenizer.backend_tokenizer.post_processor
    if processor is None:
        return
    state = json.loads(processor.__getstate__())
    for template in state.get("processors", [state]):
        if template.get("type") != "TemplateProcessing":
            continue
        pieces = [*template["single"], *template["pair"]]
        named = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        if lacking := sorted(named - template["special_tokens"].keys()):
            raise CheckpointError(
                f"{checkpoint}: its tokenizer's post-processor puts the token {lacking[0]!r} "
                "beside texts, and does not have it"
            )


def _check_labels(folder: Path) -> None:
    """Check that a configuration has few labels: reading it makes a name for each of them.

    Raises:
        CheckpointError: It has more than any model, or cannot be read.
    """
    try:
        given = read_json(folder / "config.json")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: its config.json is not JSON: {_why(error)}") from None
    if not isinstance(given, dict):
        raise CheckpointError(f"{folder}: its config.json is not a JSON object")
    labels = given.get("num_labels")
    if isinstance(labels, int) and labels > _MOST_LABELS:
        raise CheckpointError(
            f"{folder}: its config.json has num_labels {labels}; a question-answering model has 2"
        )


def _check_unknown(tokenizer: PreTrainedTokenizerFast, checkpoint: str) -> None:
    """Check that a tokenizer has a token for what it does not know, or needs none.

    Raises:
        CheckpointError: It has none, and would fail in the middle of a corpus.
    """
    try:
        tokenizer(_UNKNOWN)
    except Exception as error:  # noqa: BLE001  (the Rust library raises nothing more special)
        raise CheckpointError(
            f"{checkpoint}: its tokenizer fails on what it does not know: {_why(error)}"
        ) from None


def _why(error: BaseException) -> str:
    """Return the first sentence of a library's message, which may go on for a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
