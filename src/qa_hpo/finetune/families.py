"""What model families differ in, beyond what transformers' auto classes even out."""

import inspect
from typing import Any

from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from qa_hpo.errors import CheckpointError

__all__ = [
    "adapt_model",
    "check_family",
    "position_limit",
    "settle_token_types",
]

# Families that number a window's positions from the padding's id + 1.
_POSITIONS_AFTER_PADDING = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet"),
        *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
# Families with token types, of any number, and no type_vocab_size that says so.
_ANY_TOKEN_TYPES = frozenset({"xlnet"})


def check_family(config: Any, attention: str = "auto") -> None:
    """Check that transformers can answer questions extractively with a model of this family.

    Args:
        config: The model's configuration.
        attention: The implementation that it is to be loaded with.

    Raises:
        CheckpointError: It cannot; the line says why, without the checkpoint's name.
    """
    a_model = f"a {config.model_type} model"
    if type(config) not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        raise CheckpointError(f"{a_model} cannot answer questions extractively in transformers")
    names = _input_names(config)
    if not {"start_positions", "end_positions"} <= names:
        raise CheckpointError(f"{a_model} gives answers that are no spans of a text")
    if "bbox" in names:
        raise CheckpointError(f"{a_model} reads pages, with the place of each word, and no texts")
    if "attention_mask" not in names:
        raise CheckpointError(
            f"{a_model} takes no attention mask, so that a window's answer would depend on the "
            "padding of its batch"
        )
    family: Any = MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)]
    if attention == "sdpa" and not family._supports_sdpa:
        raise CheckpointError(
            f"training.attention: {a_model} has no 'sdpa' in transformers; valid: auto, eager"
        )


def position_limit(config: Any) -> int | None:
    """Return how many tokens a model has learnt positions for, or None where it takes any."""
    relative = not getattr(config, "position_biased_input", True)
    if relative or getattr(config, "rope_parameters", None) is not None:
        return None
    limit = getattr(config, "max_position_embeddings", None)
    # 0 or less: the model's family has none, and says so.
    if not isinstance(limit, int) or limit <= 0:
        return None
    if config.model_type in _POSITIONS_AFTER_PADDING:
        padding = getattr(config, "pad_token_id", None)
        return limit - 1 - (1 if padding is None else padding)
    return limit


def settle_token_types(tokenizer: PreTrainedTokenizerFast, config: Any) -> None:
    """Let a tokenizer give token types where its model has learnt them, and only there; in place.

    Not every tokenizer knows. One of no class of its own may give types that the model does not
    take (DistilBERT) or has no embedding for (RoBERTa). And ALBERT's and XLNet's lay out token
    types that transformers 5, unlike 4, keeps back: the model would be told that the question and
    its context are one text. A ``model_input_names`` in the tokenizer's own configuration is left
    alone as far as the model can take it.

    What is chosen is saved with the tokenizer, so that a checkpoint is used as it was trained. So
    is on which side it pads, which some classes (XLNet's) leave unsaid.
    """
    if tokenizer.padding_side != "right":
        tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side
    names = list(tokenizer.model_input_names)
    kinds = _kinds_of_tokens(config)
    if "token_type_ids" in names:
        if kinds is not None and kinds != 1:
            return
        names.remove("token_type_ids")
    else:
        said = "model_input_names" in tokenizer.init_kwargs
        laid_out = max(tokenizer("a", "b", verbose=False).encodings[0].type_ids)
        if said or not kinds or not 0 < laid_out < kinds:
            return
        names.insert(1, "token_type_ids")
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names


def adapt_model(model: PreTrainedModel) -> None:
    """See to it that a model takes every window, in place."""
    if model.config.model_type == "longformer":
        model.register_forward_pre_hook(_attend_to_question, with_kwargs=True)


def _attend_to_question(
    model: Any, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a Longformer global attention on what precedes the first separator, as by default.

    By default it also insists on three separators, and fails where a context has one of its own.
    """
    if "input_ids" in inputs and inputs.get("global_attention_mask") is None:
        ids = inputs["input_ids"]  # (windows, tokens)
        separators = ids == model.config.sep_token_id
        question = separators.cumsum(dim=1) == 0
        inputs = {**inputs, "global_attention_mask": question.long()}
    return args, inputs


def _input_names(config: Any) -> frozenset[str]:
    """Return what the family's question-answering model can be given."""
    family: Any = MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)]
    return frozenset(inspect.signature(family.forward).parameters)


def _kinds_of_tokens(config: Any) -> float | None:
    """Return how many token types a model distinguishes; 0 for any number that it does not look at.

    None where it takes none at all.
    """
    if "token_type_ids" not in _input_names(config):
        return None
    if config.model_type in _ANY_TOKEN_TYPES:
        return float("inf")
    kinds = getattr(config, "type_vocab_size", None)
    return float(kinds) if isinstance(kinds, int) else 0.0
