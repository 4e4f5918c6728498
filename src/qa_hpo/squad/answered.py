"""What a checkpoint answered to a corpus, and what that is worth: small enough to be kept."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.answer_tokens import AnswerTokens
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.scoring import QuestionScores, best_threshold, score_predictions
from qa_hpo.squad.spans import Predictions

__all__ = ["Answered"]

# Zip archives carry times; a fixed one makes equal answers equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Answered:
    """The best span of each question, and its scores; arrays are (questions,).

    Attributes:
        char_start: int32, the span is context[char_start:char_end].
        char_end: int32.
        scores: what each question is worth, answered or not.
        groups: int32, the article of each question, see `Corpus.groups`.
    """

    char_start: NDArray[np.int32]
    char_end: NDArray[np.int32]
    scores: QuestionScores
    groups: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.groups)

    @classmethod
    def of(
        cls, corpus: Corpus, predictions: Predictions, tokens: AnswerTokens = "words"
    ) -> Answered:
        """Score the predictions of a corpus."""
        return cls(
            predictions.char_start.astype(np.int32),
            predictions.char_end.astype(np.int32),
            score_predictions(corpus, predictions, tokens),
            corpus.groups().astype(np.int32),
        )

    @cached_property
    def threshold(self) -> float:
        """The null margin above which the answer is none, tuned for F1 on these questions."""
        scores = self.scores
        return best_threshold(scores.span_f1, scores.null_f1, scores.null_margin)[1]

    @cached_property
    def f1(self) -> NDArray[np.float64]:
        """(questions,) F1 in 0..1 at the tuned threshold."""
        return self.scores.at(self.threshold)[1]

    def texts(self, corpus: Corpus) -> list[str]:
        """Return the answers at the tuned threshold, as `Predictions.texts` does, "" for none.

        Args:
            corpus: the questions that were answered.

        Raises:
            ValueError: if they are not as many.
        """
        spans = zip(
            self.char_start.tolist(),
            self.char_end.tolist(),
            (self.scores.null_margin > self.threshold).tolist(),
            strict=True,
        )
        if len(self) != len(corpus):
            raise ValueError(f"{len(self)} answers, but {len(corpus)} questions")
        return [
            "" if is_null else corpus.context_of(i)[start:end].strip()
            for i, (start, end, is_null) in enumerate(spans)
        ]

    def to_bytes(self) -> bytes:
        """Return all of it as a compressed NumPy archive, the same bytes for the same answers."""
        scores = self.scores
        arrays = {
            "char_start": self.char_start,
            "char_end": self.char_end,
            "groups": self.groups,
            "has_answer": scores.has_answer,
            "null_margin": scores.null_margin,
            "span_exact": scores.span_exact.astype(np.uint8),
            "span_f1": scores.span_f1,
        }
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                entry = io.BytesIO()
                np.lib.format.write_array(entry, array, allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, entry.getvalue())
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Answered:
        """Return the answers of which ``content`` is the :meth:`to_bytes`.

        Raises:
            ValueError: if it is nothing of the kind.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            has_answer = arrays["has_answer"]
            null = (~has_answer).astype(np.float64)
            scores = QuestionScores(
                arrays["span_exact"].astype(np.float64),
                arrays["span_f1"],
                null,
                null,
                has_answer,
                arrays["null_margin"],
            )
            return cls(arrays["char_start"], arrays["char_end"], scores, arrays["groups"])
        except (
            *(zipfile.BadZipFile, zlib.error, NotImplementedError),
            *(KeyError, OSError, EOFError, TypeError),
        ) as error:
            raise ValueError(f"holds no answers: {error}") from None
