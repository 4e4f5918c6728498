"""The arrays that hold a corpus cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

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
