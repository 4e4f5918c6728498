"""Questions -> windows, for training and for prediction; kept on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qa_hpo.errors import WindowError
from qa_hpo.squad.assembly import assemble_windows
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.layout import Windows
from qa_hpo.squad.overflow import overflow_windows
from qa_hpo.squad.tokens import check_tokenizer, learn_template
from qa_hpo.squad.words import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Windows", "build_windows", "check_tokenizer", "load_windows"]

CACHE_FORMAT = 1  # to be raised whenever windows of the same key would come out differently
UNLIMITED = 1_000_000  # tokenizers without a known limit have a model_max_length far above this
# Questions of each kind that are checked against the tokenizer's own windows. So few are enough,
# since what is imitated, how a pair is laid out and cut, is done alike to every pair.
SAMPLE = 12


def build_windows(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, max_length: int, doc_stride: int
) -> Windows:
    """Cut every question into windows.

    As in the SQuAD recipe: the question, stripped on its left, and as much of the context as fits;
    the context second where the tokenizer pads on the right, else first. Windows of a question
    overlap by doc_stride tokens. Labels mark the first gold answer, or CLS where the window does
    not hold it whole. Nothing is padded.

    Texts are tokenised once (see `TextEncoder`) and put together by numpy. A sample is compared
    with the tokenizer's own windows; where they differ by more than the white space around a
    token's characters, the tokenizer cuts all of them.

    Args:
        corpus: the questions.
        tokenizer: a fast one, with a CLS and a padding token.
        max_length: tokens per window, at most, special tokens included.
        doc_stride: tokens of context that a window shares with the next.

    Raises:
        WindowError: if tokenizer, lengths and questions do not go together.
    """
    check_tokenizer(tokenizer)
    _check_lengths(tokenizer, max_length, doc_stride)
    encoder = TextEncoder(tokenizer)
    questions = encoder.encode([text.lstrip() for text in corpus.questions])
    _check_room(corpus, tokenizer, questions.lengths, max_length, doc_stride)
    template = learn_template(tokenizer)
    everything = np.arange(len(corpus))
    if template is not None and tokenizer.truncation_side == "right":
        contexts = encoder.encode_and_place(corpus.contexts)
        if contexts.in_order:
            windows = assemble_windows(
                corpus,
                questions,
                contexts,
                template,
                context_first=tokenizer.padding_side != "right",
                token_types="token_type_ids" in tokenizer.model_input_names,
                max_length=max_length,
                doc_stride=doc_stride,
            )
            sample = _sample(windows)
            expected = overflow_windows(
                corpus, tokenizer, sample, max_length=max_length, doc_stride=doc_stride
            )
            if _agree(corpus, windows, sample, expected):
                return windows
    return overflow_windows(
        corpus, tokenizer, everything, max_length=max_length, doc_stride=doc_stride
    )


def load_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    doc_stride: int,
    cache_folder: Path,
) -> Windows:
    """The windows of `build_windows`, from the cache where they are there, else built and kept.

    Several processes, also on several hosts that share the folder, may ask for the same windows
    at once: one builds them and the others wait. A damaged file is built again.

    Raises:
        WindowError: as `build_windows`; or if the folder cannot be written.
    """
    check_tokenizer(tokenizer)
    name = f"windows-{_cache_key(corpus, tokenizer, max_length, doc_stride)}"
    path = cache_folder / f"{name}.safetensors"
    windows = _read(path)  # needs no lock: a file that has its name is whole
    if windows is not None:
        return windows
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_folder / f"{name}.lock"):
            windows = _read(path)
            if windows is None:
                windows = build_windows(
                    corpus, tokenizer, max_length=max_length, doc_stride=doc_stride
                )
                _write(windows, path)
    except OSError as error:
        raise WindowError(f"{cache_folder}: windows cannot be kept there: {error}") from error
    return windows


# ---------------------------------------------------------------------------- checks


def _check_lengths(tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> None:
    limit = min(tokenizer.model_max_length, np.iinfo(np.int16).max)
    if max_length > limit:
        whose = "the tokenizer's model" if tokenizer.model_max_length <= UNLIMITED else "windows"
        raise WindowError(
            f"max_length is {max_length}, but {whose} can take {limit} tokens at most"
        )
    if doc_stride < 0:
        raise WindowError(f"doc_stride is {doc_stride}, but must be at least 0")


def _check_room(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    question_lengths: NDArray[np.int64],
    max_length: int,
    doc_stride: int,
) -> None:
    """Refuse lengths that leave the longest question no room for context."""
    longest = int(question_lengths.argmax())
    tokens = int(question_lengths[longest])
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - specials - tokens
    if room > doc_stride:
        return
    shorter = f"a doc_stride of at most {room - 1}, or " if room > 0 else ""
    raise WindowError(
        f"question {corpus.ids[longest]!r} has {tokens} tokens: max_length {max_length} leaves "
        f"{max(room, 0)} for its context, which must be more than doc_stride {doc_stride}; valid "
        f"would be {shorter}a max_length of at least {doc_stride + specials + tokens + 1}"
    )


def _sample(windows: Windows) -> NDArray[np.int64]:
    """(n,) questions to check: some spread over the corpus, and some of several windows."""
    count = np.bincount(windows.question_index, minlength=windows.questions)
    several = np.flatnonzero(count > 1)
    spread = np.linspace(0, windows.questions - 1, SAMPLE).astype(np.int64)
    several = several[np.linspace(0, len(several) - 1, SAMPLE).astype(int)] if len(several) else []
    return np.unique(np.concatenate([spread, several, [count.argmax()]])).astype(np.int64)


def _agree(
    corpus: Corpus, windows: Windows, questions: NDArray[np.int64], expected: Windows
) -> bool:
    """Whether the windows of some questions are those expected.

    Characters may differ by white space: byte-level tokenizers trim the space before a word, but
    not that of a window's first token, which ours trim as everywhere.
    """
    chosen = np.isin(windows.question_index, questions)
    of_token = np.repeat(chosen, windows.lengths)
    if not np.array_equal(windows.lengths[chosen], expected.lengths):
        return False
    for name, theirs in _arrays(expected).items():
        if name == "offsets":
            continue
        ours = _arrays(windows)[name][of_token if len(theirs) > len(expected) else chosen]
        if name not in ("char_start", "char_end"):
            if not np.array_equal(ours, theirs):
                return False
            continue
        for token in np.flatnonzero(ours != theirs):
            window = np.searchsorted(expected.offsets, token, side="right") - 1
            first, last = sorted((int(ours[token]), int(theirs[token])))
            context = corpus.context_of(expected.question_index[window])
            if first < 0 or context[first:last].strip():
                return False
    return True


# ---------------------------------------------------------------------------- cache


def _arrays(windows: Windows) -> dict[str, NDArray[np.generic]]:
    values = {field.name: getattr(windows, field.name) for field in fields(windows)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _cache_key(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int
) -> str:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # What the last call happened to ask for: no part of the tokenizer, and set anew by each call.
    backend["truncation"] = backend["padding"] = None
    key = [
        CACHE_FORMAT,
        corpus.fingerprint,
        backend,
        tokenizer.padding_side,
        tokenizer.truncation_side,
        tokenizer.cls_token_id,
        tokenizer.pad_token_id,
        "token_type_ids" in tokenizer.model_input_names,
        tokenizer.split_special_tokens,
        max_length,
        doc_stride,
    ]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _write(windows: Windows, path: Path) -> None:
    """Write a file that appears whole; the caller holds the lock, so the name is ours alone."""
    temporary = path.with_suffix(".tmp")
    try:
        arrays = {**_arrays(windows), "questions": np.array([windows.questions])}
        save_file(arrays, temporary)
        temporary.replace(path)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Windows | None:
    """A kept file; None if it is not there or damaged."""
    try:
        arrays = load_file(path)
        questions = int(arrays.pop("questions")[0])
        windows = Windows(
            **{"token_type_ids": None, **arrays},  # type: ignore[arg-type]
            questions=questions,
        )
        whole = windows.offsets[-1] == len(windows.input_ids)
    except (SafetensorError, OSError, KeyError, TypeError, IndexError):
        return None
    return windows if whole else None
