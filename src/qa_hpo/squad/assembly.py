"""Windows put together from texts that were tokenised once, by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.layout import Windows
from qa_hpo.squad.tokens import PairTemplate, PlacedTokens, Tokens

__all__ = ["assemble_windows"]

CHUNK = 4096  # windows gathered at once, which bounds the index arrays to some tens of MiB
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Slices:
    """Which tokens of its context each window holds; all arrays are (windows,).

    Attributes:
        question: the window's question.
        context: its context.
        begin: the first token, counted from the context's start.
        end: one past the last.
    """

    question: Ints
    context: Ints
    begin: Ints
    end: Ints


def assemble_windows(
    corpus: Corpus,
    questions: Tokens,
    contexts: PlacedTokens,
    template: PairTemplate,
    *,
    context_first: bool,
    token_types: bool,
    max_length: int,
    doc_stride: int,
) -> Windows:
    """Cut every question's context into windows, as a tokenizer that truncates on the right.

    Every question must leave room for more than doc_stride tokens of context, and the tokens'
    offsets must never move backwards (see `PlacedTokens.in_order`).
    """
    slices = _slice(corpus, questions, contexts, max_length - template.length, doc_stride)
    starts, lengths = _segments(questions, contexts, template, slices, context_first)
    places = np.cumsum(lengths, axis=1) - lengths  # (windows, 5) each segment's place in its window
    group, position = template.cls
    cls_index = places[:, 2 * group] + position
    start, end = _labels(corpus, contexts, slices, places[:, 1 if context_first else 3], cls_index)
    offsets = np.append(0, np.cumsum(lengths.sum(axis=1)))
    gathered = _gather(_pool(questions, contexts, template, context_first), starts, lengths)
    return Windows(
        input_ids=gathered[0],
        token_type_ids=gathered[3].astype(np.uint8) if token_types else None,
        char_start=gathered[1],
        char_end=gathered[2],
        offsets=offsets,
        question_index=slices.question.astype(np.int32),
        cls_index=cls_index.astype(np.int16),
        start_positions=start.astype(np.int16),
        end_positions=end.astype(np.int16),
        questions=len(corpus),
    )


def _slice(
    corpus: Corpus, questions: Tokens, contexts: PlacedTokens, room: int, doc_stride: int
) -> _Slices:
    """Where the windows of each question lie in its context.

    Args:
        corpus: the questions.
        questions: their tokens.
        contexts: the contexts' tokens.
        room: tokens of a window that are not special ones.
        doc_stride: tokens that a window shares with the next.
    """
    capacity = room - questions.lengths  # (questions,) tokens of context per window
    step = capacity - doc_stride
    length = contexts.lengths[corpus.context_index]
    count = 1 + -(-np.maximum(length - capacity, 0) // step)  # rounded up
    question = np.repeat(np.arange(len(corpus)), count)
    number = np.arange(len(question)) - np.repeat(np.cumsum(count) - count, count)
    begin = number * step[question]
    end = np.minimum(begin + capacity[question], length[question])
    return _Slices(question, corpus.context_index[question], begin, end)


def _segments(
    questions: Tokens,
    contexts: PlacedTokens,
    template: PairTemplate,
    slices: _Slices,
    context_first: bool,
) -> tuple[Ints, Ints]:
    """(windows, 5) where in the pool each segment of a window starts, and its length.

    The segments are special tokens, first text, special tokens, second text, special tokens; the
    pool (see `_pool`) is all special tokens, then all questions, then all contexts.
    """
    before, between, after = (len(ids) for ids in template.specials)
    context_base = template.length + len(questions.ids)
    texts = [
        (template.length + questions.offsets[slices.question], questions.lengths[slices.question]),
        (
            context_base + contexts.offsets[slices.context] + slices.begin,
            slices.end - slices.begin,
        ),
    ]
    if context_first:
        texts.reverse()
    starts = np.empty((len(slices.question), 5), dtype=np.int64)
    lengths = np.empty_like(starts)
    starts[:, 0], lengths[:, 0] = 0, before
    starts[:, 1], lengths[:, 1] = texts[0]
    starts[:, 2], lengths[:, 2] = before, between
    starts[:, 3], lengths[:, 3] = texts[1]
    starts[:, 4], lengths[:, 4] = before + between, after
    return starts, lengths


def _pool(
    questions: Tokens, contexts: PlacedTokens, template: PairTemplate, context_first: bool
) -> NDArray[np.int32]:
    """(4, tokens of the pool): ids, char_start, char_end and token types."""
    special_ids = [token for ids in template.specials for token in ids]
    special_types = [kind for kinds in template.special_types for kind in kinds]
    question_type, context_type = template.text_types[:: -1 if context_first else 1]
    sizes = [len(special_ids), len(questions.ids), len(contexts.ids)]
    pool = np.full((4, sum(sizes)), -1, dtype=np.int32)
    outside = sizes[0] + sizes[1]
    pool[0] = np.concatenate([special_ids, questions.ids, contexts.ids])
    pool[1, outside:] = contexts.char_start
    pool[2, outside:] = contexts.char_end
    pool[3, : sizes[0]] = special_types
    pool[3, sizes[0] : outside] = question_type
    pool[3, outside:] = context_type
    return pool


def _gather(pool: NDArray[np.int32], starts: Ints, lengths: Ints) -> NDArray[np.int32]:
    """(4, tokens): the stretches of the pool, (windows, segments), one after another."""
    gathered = np.empty((len(pool), int(lengths.sum())), dtype=np.int32)
    done = 0
    for first in range(0, len(starts), CHUNK):
        length = lengths[first : first + CHUNK].ravel()
        start = starts[first : first + CHUNK].ravel()
        ends = np.cumsum(length)
        index = np.arange(ends[-1]) + np.repeat(start - (ends - length), length)
        np.take(pool, index, axis=1, out=gathered[:, done : done + len(index)])
        done += len(index)
    return gathered


def _labels(
    corpus: Corpus, contexts: PlacedTokens, slices: _Slices, context_place: Ints, cls_index: Ints
) -> tuple[Ints, Ints]:
    """(start, end) label of each window, (windows,): the first gold answer's tokens, or CLS.

    Among the window's context, the start is the last token that begins no later than the answer,
    and the end the first one that ends no earlier. Where one character makes several tokens
    (an emoji in bytes), that search meets the same character's tokens the wrong way round; then
    the two are exchanged, so that the label is all of them.
    """
    first_golds = [golds[0] if golds else ("", -1) for golds in corpus.answers]
    answer_start = np.array([start for _, start in first_golds])  # (questions,)
    answer_end = answer_start + [len(text) for text, _ in first_golds]
    # One search for all: tokens and answers are ordered by context, then by character.
    wide = max(map(len, corpus.contexts)) + 2
    token_base = np.repeat(np.arange(len(corpus.contexts)), contexts.lengths) * wide
    answer_base = corpus.context_index * wide
    first_token = contexts.offsets[corpus.context_index]
    start = np.searchsorted(token_base + contexts.char_start, answer_base + answer_start, "right")
    end = np.searchsorted(token_base + contexts.char_end, answer_base + answer_end, "left")

    q, begin, last = slices.question, slices.begin, slices.end - 1
    held = (answer_start[q] >= 0) & (last >= begin)
    w, at = np.flatnonzero(held), contexts.offsets[slices.context[held]]
    held[w] = (contexts.char_start[at + begin[held]] <= answer_start[q[held]]) & (
        contexts.char_end[at + last[held]] >= answer_end[q[held]]
    )
    start_token = np.clip((start - 1 - first_token)[q], begin, np.maximum(last, begin))
    end_token = np.clip((end - first_token)[q], begin, np.maximum(last, begin))
    shift = context_place - begin
    return (
        np.where(held, np.minimum(start_token, end_token) + shift, cls_index),
        np.where(held, np.maximum(start_token, end_token) + shift, cls_index),
    )
