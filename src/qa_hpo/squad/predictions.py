"""Scoring predictions that came from anywhere, in the official format."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qa_hpo.errors import CorpusError
from qa_hpo.squad.answer_tokens import AnswerTokens
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.readers import describe, read_json
from qa_hpo.squad.scoring import best_metrics, score_texts, threshold_metrics

__all__ = ["score_predictions_file"]

OFFICIAL_THRESHOLD = 1.0  # the official script's default for probabilities of no answer
EXAMPLES = 3  # ids named in a message


def score_predictions_file(
    corpus: Corpus,
    predictions: Path,
    null_scores: Path | None,
    tokens: AnswerTokens = "words",
) -> dict[str, float]:
    """Score a predictions file as the official SQuAD 2.0 script does.

    Args:
        corpus: the questions with their gold answers.
        predictions: JSON, {question id: answer text}; "" is no answer.
        null_scores: JSON, {question id: number}, the higher the likelier no answer; None if there
            are none.
        tokens: what answers are compared by; the official script knows "words".

    Returns:
        exact, f1, total, and the same for HasAns_ and NoAns_ questions, in percent. With null
        scores, "" counts as the answer where they are above 1.0 (the official default), and
        best_exact, best_f1 and their thresholds best_*_thresh are there too.

    Raises:
        CorpusError: if a file cannot be read, is laid out otherwise, or has other ids than the
            corpus. Ids of questions that were left out of the corpus may be there.
    """
    answers = _values_by_id(predictions, corpus)
    for name, text in answers.items():
        if not isinstance(text, str):
            raise CorpusError(
                f"{predictions}: {name!r}: expected the answer's text, found {describe(text)}"
            )
    texts = [answers[name] for name in corpus.ids]
    if null_scores is None:
        return threshold_metrics(score_texts(corpus, texts, np.zeros(len(corpus)), tokens), 0.0)
    margins = _values_by_id(null_scores, corpus)
    for name, value in margins.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Not math.isfinite, which fails on a whole number beyond the floats; false for NaN too.
        if not is_number or not abs(value) <= sys.float_info.max:
            found = value if isinstance(value, float) else describe(value)
            raise CorpusError(f"{null_scores}: {name!r}: expected a finite number, found {found}")
    values = np.array([float(margins[name]) for name in corpus.ids])
    scores = score_texts(corpus, texts, values, tokens)
    return threshold_metrics(scores, OFFICIAL_THRESHOLD) | best_metrics(scores)


def _values_by_id(path: Path, corpus: Corpus) -> Mapping[str, Any]:
    """The file's object, which has the corpus' ids and no others."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise CorpusError(
            f"{path}: expected an object {{question id: value}}, found {describe(values)}"
        )
    known = {*corpus.ids, *(skip.id for skip in corpus.skipped)}
    missing = [name for name in corpus.ids if name not in values]
    unknown = [name for name in values if name not in known]
    if missing or unknown:
        problems = [
            f"{len(names)} ids {what} {corpus.source} ({_examples(names)})"
            for names, what in ((missing, "are missing that stand in"), (unknown, "are not in"))
            if names
        ]
        raise CorpusError(f"{path}: {'; '.join(problems)}; expected its {len(corpus)} ids")
    return values


def _examples(names: list[str]) -> str:
    more = ", ..." if len(names) > EXAMPLES else ""
    return ", ".join(map(repr, names[:EXAMPLES])) + more
