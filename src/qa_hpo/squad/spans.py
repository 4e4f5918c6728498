"""Logits -> the best span and the null margin of each question, vectorised over windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.corpus import Corpus

__all__ = ["Predictions", "SpanAccumulator"]

CELLS = 1 << 19  # pairs of start and end scored at once: float64 grids of a few MiB at most
MARGIN_DECIMALS = 4
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The best span of each question; all arrays are (questions,).

    Margins are rounded to 4 decimals: the same weights give logits that differ by the noise of
    float32 when windows are batched otherwise, and that noise must not carry a question over the
    threshold that was fitted on another pass.

    Attributes:
        char_start: int64, the span is context[char_start:char_end].
        char_end: int64; both are 0 where no window has a token of the context.
        span_score: float64, start + end logit of the span; the null score where there is none.
        null_score: float64, the lowest start + end logit at CLS over the question's windows.
        null_margin: float64, null_score - span_score in logits, rounded.
    """

    char_start: NDArray[np.int64]
    char_end: NDArray[np.int64]
    span_score: NDArray[np.float64]
    null_score: NDArray[np.float64]
    null_margin: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        # Adding 0.0 turns -0.0 into 0.0.
        margin = np.round(self.null_score - self.span_score, MARGIN_DECIMALS) + 0.0
        object.__setattr__(self, "null_margin", margin)

    def __len__(self) -> int:
        return len(self.char_start)

    def texts(self, corpus: Corpus) -> list[str]:
        """The spans as substrings of the questions' contexts, without white space at their edges.

        Some tokenizers count the space before a word as the word's.
        """
        spans = zip(self.char_start.tolist(), self.char_end.tolist(), strict=True)
        return [corpus.context_of(i)[start:end].strip() for i, (start, end) in enumerate(spans)]


class SpanAccumulator:
    """Keeps the best span and the null score per question, from batches in any order.

    A span starts and ends at one of its window's n_best highest start and end logits among the
    context's tokens (at equal logits, the earlier tokens), is not reversed, and has at most
    max_answer_length tokens. A window without such a pair offers its best single token, so that
    every window with context has a span and every margin is finite.

    At equal scores the span of the lowest window wins, then the lowest start, then the lowest end,
    whatever the order of the batches.

    Not safe to share between threads.
    """

    def __init__(self, questions: int, *, n_best: int = 20, max_answer_length: int = 30) -> None:
        if n_best < 1 or max_answer_length < 1:
            raise ValueError(
                f"n_best ({n_best}) and max_answer_length ({max_answer_length}) must be at least 1"
            )
        self._n_best = n_best
        self._max_answer_length = max_answer_length
        self._chunk = max(1, CELLS // n_best**2)  # windows scored at once
        self._char_start = np.zeros(questions, dtype=np.int64)
        self._char_end = np.zeros(questions, dtype=np.int64)
        self._score = np.full(questions, -np.inf)
        self._window = np.full(questions, np.iinfo(np.int64).max)
        self._null = np.full(questions, np.inf)

    def update(
        self,
        *,
        window_index: NDArray[np.integer],
        question_index: NDArray[np.integer],
        cls_index: NDArray[np.integer],
        start_logits: NDArray[np.floating],
        end_logits: NDArray[np.floating],
        char_start: NDArray[np.integer],
        char_end: NDArray[np.integer],
    ) -> None:
        """Take in one padded batch.

        Args:
            window_index: (windows,) number of each window in the corpus.
            question_index: (windows,) its question.
            cls_index: (windows,) where CLS stands in the padded row.
            start_logits: (windows, tokens) float32.
            end_logits: (windows, tokens) float32.
            char_start: (windows, tokens) the token's first character in the context; -1 outside
                the context and on padding.
            char_end: (windows, tokens) one past its last character.

        Raises:
            ValueError: if a logit at CLS or in the context is not a finite number.
        """
        for first in range(0, len(window_index), self._chunk):
            rows = slice(first, first + self._chunk)
            starts, ends = np.asarray(start_logits[rows]), np.asarray(end_logits[rows])
            in_context = char_start[rows] >= 0
            questions = np.asarray(question_index[rows], dtype=np.int64)
            null = _at(starts, cls_index[rows]).astype(np.float64) + _at(ends, cls_index[rows])
            finite = np.isfinite(starts) & np.isfinite(ends)
            if not (np.isfinite(null).all() and (finite | ~in_context).all()):
                raise ValueError("a start or end logit is not a finite number")
            np.minimum.at(self._null, questions, null)
            score, start, end = self._best_spans(starts, ends, in_context)
            self._keep_best(
                questions,
                np.asarray(window_index[rows], dtype=np.int64),
                score,
                _at(char_start[rows], start),
                _at(char_end[rows], end),
            )

    def finish(self) -> Predictions:
        """The best span of every question.

        Raises:
            ValueError: if a question has had no window.
        """
        without = np.flatnonzero(np.isinf(self._null))
        if len(without):
            raise ValueError(
                f"{len(without)} of {len(self._null)} questions have had no window, "
                f"the first is number {without[0]}"
            )
        # No token of the context: the span is "", which is the null answer, and scores the same.
        score = np.where(np.isinf(self._score), self._null, self._score)
        return Predictions(self._char_start.copy(), self._char_end.copy(), score, self._null.copy())

    def _best_spans(
        self,
        starts: NDArray[np.floating],
        ends: NDArray[np.floating],
        in_context: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """(score, start token, end token) per window; -inf where it has no context."""
        # float32 stays float32, in which the highest are found in half the time.
        starts = np.where(in_context, starts, starts.dtype.type(-np.inf))  # (windows, tokens)
        ends = np.where(in_context, ends, ends.dtype.type(-np.inf))
        start = _top_positions(starts, self._n_best)  # (windows, n)
        end = _top_positions(ends, self._n_best)
        # (windows, n, n): starts down, ends across, both by position, so that the first maximum
        # has the lowest start and then the lowest end.
        grid = (
            np.take_along_axis(starts, start, axis=1).astype(np.float64)[:, :, None]
            + np.take_along_axis(ends, end, axis=1)[:, None, :]
        )
        # In int32, since grids of this size are what takes the time here.
        length = end.astype(np.int32)[:, None, :] - start.astype(np.int32)[:, :, None] + 1
        grid[(length < 1) | (length > self._max_answer_length)] = -np.inf
        flat = grid.reshape(len(grid), -1)
        best = flat.argmax(axis=1)
        row, column = np.divmod(best, end.shape[1])
        score, start, end = _at(flat, best), _at(start, row), _at(end, column)
        # Where no pair is valid: the best single token.
        none = np.flatnonzero(np.isneginf(score))
        if len(none):
            single = starts[none].astype(np.float64) + ends[none]
            token = single.argmax(axis=1)
            score[none], start[none], end[none] = _at(single, token), token, token
        return score, start, end

    def _keep_best(
        self,
        question: NDArray[np.int64],
        window: NDArray[np.int64],
        score: NDArray[np.float64],
        char_start: NDArray[np.integer],
        char_end: NDArray[np.integer],
    ) -> None:
        """Let the windows' spans, all arguments (windows,), compete with those kept so far."""
        order = np.lexsort((window, -score, question))
        order = order[np.isfinite(score[order])]
        best = order[np.append(True, np.diff(question[order]) > 0)[: len(order)]]
        kept = self._score[question[best]]
        wins = (score[best] > kept) | (
            (score[best] == kept) & (window[best] < self._window[question[best]])
        )
        best = best[wins]
        self._score[question[best]] = score[best]
        self._window[question[best]] = window[best]
        self._char_start[question[best]] = char_start[best]
        self._char_end[question[best]] = char_end[best]


def _at(values: NDArray[T], column: NDArray[np.integer]) -> NDArray[T]:
    """(rows,) one value of each row."""
    picked: NDArray[T] = values[np.arange(len(values)), column]
    return picked


def _top_positions(logits: NDArray[np.floating], n: int) -> NDArray[np.int64]:
    """(rows, n) the positions, in ascending order, of each row's n highest values.

    Among values that equal the n-th highest, the earlier positions are taken. A row of fewer than
    n values gives all.
    """
    rows, width = logits.shape
    n = min(n, width)
    lowest = np.partition(logits, width - n, axis=1)[:, width - n, None]  # (rows, 1) the n-th
    chosen = logits >= lowest
    if np.count_nonzero(chosen) > rows * n:  # more values than one equal an n-th
        above, equal = logits > lowest, logits == lowest
        missing = n - above.sum(axis=1, keepdims=True)
        chosen = above | (equal & (np.cumsum(equal, axis=1) <= missing))
    # A flat array is searched several times faster than one of two dimensions.
    positions: NDArray[np.int64] = np.flatnonzero(chosen).reshape(rows, n)
    positions -= width * np.arange(rows)[:, None]
    return positions
