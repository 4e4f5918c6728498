"""The arrays that hold a corpus cut into windows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

__all__ = ["Windows"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows without padding: token arrays are flat, one window after another.

    Attributes:
        input_ids: int32 (tokens,).
        token_type_ids: uint8 (tokens,); None where the tokenizer's models do not take them.
        char_start: int32 (tokens,) the token's first character in its question's context; -1
            outside the context.
        char_end: int32 (tokens,) one past its last character; -1 outside the context.
        offsets: int64 (windows + 1,) window w holds the tokens offsets[w]:offsets[w + 1].
        question_index: int32 (windows,) the window's question.
        cls_index: int16 (windows,) where CLS stands in the window.
        start_positions: int16 (windows,) the first token of the first gold answer, counted from
            the window's own start; CLS where the window does not hold the whole answer.
        end_positions: int16 (windows,) its last token, likewise.
        questions: number of questions; each has at least one window.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.uint8] | None
    char_start: NDArray[np.int32]
    char_end: NDArray[np.int32]
    offsets: NDArray[np.int64]
    question_index: NDArray[np.int32]
    cls_index: NDArray[np.int16]
    start_positions: NDArray[np.int16]
    end_positions: NDArray[np.int16]
    questions: int

    def __len__(self) -> int:
        return len(self.question_index)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(windows,) tokens in each window."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or in a file."""
        values = (getattr(self, field.name) for field in fields(self))
        return sum(value.nbytes for value in values if isinstance(value, np.ndarray))

    def take(self, indices: NDArray[np.int64]) -> Windows:
        """Return the windows ``indices``, (chosen,), in that order.

        Their questions keep their numbers, and ``questions`` stays: a question may be left without
        a window.
        """
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        offsets = np.append(0, np.cumsum(lengths))
        tokens = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        types = self.token_type_ids
        return Windows(
            input_ids=self.input_ids[tokens],
            token_type_ids=None if types is None else types[tokens],
            char_start=self.char_start[tokens],
            char_end=self.char_end[tokens],
            offsets=offsets,
            question_index=self.question_index[indices],
            cls_index=self.cls_index[indices],
            start_positions=self.start_positions[indices],
            end_positions=self.end_positions[indices],
            questions=self.questions,
        )

    def concatenated(self, other: Windows) -> Windows:
        """Return these windows and then ``other``'s, whose questions are numbered after these.

        Raises:
            ValueError: One of the two has token types and the other has none.
        """
        mine, theirs = self.token_type_ids, other.token_type_ids
        if (mine is None) != (theirs is None):
            raise ValueError("windows with token types and windows without cannot be put together")
        types = None if mine is None or theirs is None else np.concatenate([mine, theirs])
        renumbered = (other.question_index + self.questions).astype(np.int32)
        return Windows(
            input_ids=np.concatenate([self.input_ids, other.input_ids]),
            token_type_ids=types,
            char_start=np.concatenate([self.char_start, other.char_start]),
            char_end=np.concatenate([self.char_end, other.char_end]),
            offsets=np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            question_index=np.concatenate([self.question_index, renumbered]),
            cls_index=np.concatenate([self.cls_index, other.cls_index]),
            start_positions=np.concatenate([self.start_positions, other.start_positions]),
            end_positions=np.concatenate([self.end_positions, other.end_positions]),
            questions=self.questions + other.questions,
        )
