"""Windows cut by the tokenizer itself, pair by pair: slower, and right for every fast tokenizer."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.layout import Windows

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["overflow_windows"]

BATCH = 256  # questions encoded at once


def overflow_windows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    chosen: NDArray[np.int64],
    *,
    max_length: int,
    doc_stride: int,
) -> Windows:
    """The windows of the chosen questions, by the tokenizer's own truncation with overflow.

    Args:
        corpus: the questions.
        tokenizer: a fast one.
        chosen: (n,) numbers of the questions to cut, n >= 1.
        max_length: tokens per window, at most.
        doc_stride: tokens that a window shares with the next.
    """
    context_owner = 1 if tokenizer.padding_side == "right" else 0
    parts: dict[str, list[NDArray[np.int64]]] = {
        name: [] for name in ("ids", "types", "starts", "ends")
    }
    rows: list[tuple[int, int, int, int, int]] = []  # question, tokens, cls, start, end
    for first in range(0, len(chosen), BATCH):
        batch = chosen[first : first + BATCH].tolist()
        encoded = _encode_pairs(corpus, tokenizer, batch, max_length, doc_stride)
        for sample, encoding in zip(
            encoded["overflow_to_sample_mapping"], encoded.encodings or (), strict=True
        ):
            owners = np.array([-1 if s is None else s for s in encoding.sequence_ids])
            in_context = owners == context_owner
            ids = np.array(encoding.ids)
            offsets = np.fromiter(chain.from_iterable(encoding.offsets), dtype=np.int64)
            characters = np.where(in_context[:, None], offsets.reshape(-1, 2), -1)  # (tokens, 2)
            cls_index = int(np.flatnonzero((ids == tokenizer.cls_token_id) & (owners == -1))[0])
            golds = corpus.answers[batch[sample]]
            labels = _label(characters, golds[0]) if golds else None
            rows.append((batch[sample], len(ids), cls_index, *(labels or (cls_index, cls_index))))
            parts["ids"].append(ids)
            parts["types"].append(np.array(encoding.type_ids))
            parts["starts"].append(characters[:, 0])
            parts["ends"].append(characters[:, 1])
    flat = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    table = np.array(rows)  # (windows, 5)
    has_types = "token_type_ids" in tokenizer.model_input_names
    return Windows(
        input_ids=flat["ids"].astype(np.int32),
        token_type_ids=flat["types"].astype(np.uint8) if has_types else None,
        char_start=flat["starts"].astype(np.int32),
        char_end=flat["ends"].astype(np.int32),
        offsets=np.append(0, np.cumsum(table[:, 1])),
        question_index=table[:, 0].astype(np.int32),
        cls_index=table[:, 2].astype(np.int16),
        start_positions=table[:, 3].astype(np.int16),
        end_positions=table[:, 4].astype(np.int16),
        questions=len(corpus),
    )


def _encode_pairs(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[int],
    max_length: int,
    doc_stride: int,
) -> BatchEncoding:
    """Some questions with their contexts, truncated with overflow."""
    questions = [corpus.questions[i].lstrip() for i in batch]
    contexts = [corpus.context_of(i) for i in batch]
    context_first = tokenizer.padding_side != "right"
    encoded: BatchEncoding = tokenizer(
        contexts if context_first else questions,
        questions if context_first else contexts,
        truncation="only_first" if context_first else "only_second",
        max_length=max_length,
        stride=doc_stride,
        padding=False,
        return_overflowing_tokens=True,
        verbose=False,
    )
    return encoded


def _label(characters: NDArray[np.int64], gold: tuple[str, int]) -> tuple[int, int] | None:
    """(start, end) token of an answer in a window; None if the window does not hold all of it.

    Args:
        characters: (tokens, 2) first character and one past the last; -1 outside the context.
        gold: the answer's text and its offset.
    """
    context = np.flatnonzero(characters[:, 0] >= 0)
    begin, end = gold[1], gold[1] + len(gold[0])
    if not len(context):
        return None
    starts, ends = characters[context].T
    if starts[0] > begin or ends[-1] < end:
        return None
    # From the left to the last token before one that begins after the answer does; from the right
    # to the last token before one that ends before the answer does.
    later, earlier = np.flatnonzero(starts > begin), np.flatnonzero(ends < end)
    first = int(later[0]) - 1 if len(later) else len(context) - 1
    last = int(earlier[-1]) + 1 if len(earlier) else 0
    return int(context[min(first, last)]), int(context[max(first, last)])
