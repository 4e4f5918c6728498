"""Exact match and F1 per question, corpus metrics and the no-answer threshold.

Names and semantics are those of the official SQuAD 2.0 evaluation script, but for its sweep of the
threshold, which differs from what a threshold does in two cases. It goes question by question, so
that it can part two questions of the same null margin; here they are answered together. And it
counts any text for an unanswerable question as wrong, even one that normalises to nothing and so
scores 1 elsewhere in the script; here it counts as it scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qa_hpo.squad.answer_tokens import AnswerTokens, answer_f1, answer_tokens
from qa_hpo.squad.corpus import Answers, Corpus
from qa_hpo.squad.spans import Predictions

__all__ = [
    "QuestionScores",
    "best_metrics",
    "best_threshold",
    "corpus_metrics",
    "crossfit",
    "exact_match",
    "normalize_answer",
    "score_answers",
    "score_predictions",
    "score_texts",
    "threshold_metrics",
    "token_f1",
]

Floats = NDArray[np.float64]


def normalize_answer(text: str, tokens: AnswerTokens = "words") -> str:
    """The normalised tokens with single spaces between them.

    Of ``words``, that is the official normalisation: lower case, no ASCII punctuation, no articles.
    """
    return " ".join(answer_tokens(text, tokens))


def exact_match(prediction: str, gold: str, tokens: AnswerTokens = "words") -> float:
    """1.0 if both texts normalise to the same, else 0.0."""
    return float(answer_tokens(prediction, tokens) == answer_tokens(gold, tokens))


def token_f1(prediction: str, gold: str, tokens: AnswerTokens = "words") -> float:
    """F1 of the normalised tokens, in 0..1; where either has none, 1.0 if both have none."""
    return answer_f1(answer_tokens(prediction, tokens), answer_tokens(gold, tokens), tokens)


@dataclass(frozen=True, eq=False)
class QuestionScores:
    """What each question is worth, answered or not: all arrays are (questions,), scores in 0..1.

    Attributes:
        span_exact: exact match if the span is answered, the best over the gold answers; for an
            unanswerable question 1.0 only if the span normalises to nothing.
        span_f1: F1 in the same way.
        null_exact: exact match if "" is answered: 1.0 for an unanswerable question, else 0.0.
        null_f1: F1 in the same way.
        has_answer: whether the question has gold answers.
        null_margin: how much the null answer outscores the span, in logits (or a probability of
            no answer).
    """

    span_exact: Floats
    span_f1: Floats
    null_exact: Floats
    null_f1: Floats
    has_answer: NDArray[np.bool_]
    null_margin: Floats

    def at(self, threshold: float) -> tuple[Floats, Floats]:
        """(exact, F1) per question with "" answered where null_margin > threshold."""
        is_null = self.null_margin > threshold
        exact = np.where(is_null, self.null_exact, self.span_exact)
        return exact, np.where(is_null, self.null_f1, self.span_f1)


def score_predictions(
    corpus: Corpus, predictions: Predictions, tokens: AnswerTokens = "words"
) -> QuestionScores:
    """Score the best spans of a corpus' questions."""
    return score_texts(corpus, predictions.texts(corpus), predictions.null_margin, tokens)


def score_texts(
    corpus: Corpus, texts: Sequence[str], null_margin: Floats, tokens: AnswerTokens = "words"
) -> QuestionScores:
    """Score one answer text per question, in the corpus' order.

    Args:
        corpus: the questions with their gold answers.
        texts: (questions,) what is answered where the null answer is not.
        null_margin: (questions,) compared with the threshold; finite.
        tokens: what answers are compared by.

    Raises:
        ValueError: if the lengths differ, or a margin is not a finite number.
    """
    return score_answers(corpus.answers, texts, null_margin, tokens)


def score_answers(
    answers: Sequence[Answers],
    texts: Sequence[str],
    null_margin: Floats,
    tokens: AnswerTokens = "words",
) -> QuestionScores:
    """As `score_texts`, with the gold answers by themselves, (questions,)."""
    margins = np.asarray(null_margin, dtype=np.float64)
    if len(texts) != len(answers) or margins.shape != (len(answers),):
        raise ValueError(
            f"{len(answers)} questions, but {len(texts)} texts and margins of shape {margins.shape}"
        )
    if not np.isfinite(margins).all():
        raise ValueError("null_margin holds a value that is not a finite number")
    pairs = [_best_of(text, golds, tokens) for text, golds in zip(texts, answers, strict=True)]
    span = np.array(pairs, dtype=np.float64).reshape(-1, 2)  # (questions, exact and F1)
    has_answer = np.array([bool(golds) for golds in answers])
    null = (~has_answer).astype(np.float64)
    return QuestionScores(span[:, 0], span[:, 1], null, null, has_answer, margins)


def _best_of(text: str, golds: Answers, tokens: AnswerTokens) -> tuple[float, float]:
    """The best exact match and the best F1 over the gold answers that normalise to something."""
    predicted = answer_tokens(text, tokens)
    wanted = {own for gold, _ in golds if (own := answer_tokens(gold, tokens))} or {()}
    if predicted in wanted:
        return 1.0, 1.0
    return 0.0, max(answer_f1(predicted, gold, tokens) for gold in wanted)


def best_threshold(
    span_score: Floats, null_score: Floats, null_margin: Floats
) -> tuple[float, float]:
    """The threshold with the highest mean score.

    Candidates are the distinct margins (a question is answered when its margin <= threshold) and
    the lowest margin - 1.0, which answers nothing. Among equals the smallest threshold wins, that
    is, the one that answers fewest questions.

    Args:
        span_score: (questions,) a question's score if its span is answered, in 0..1.
        null_score: (questions,) its score if "" is answered, in 0..1.
        null_margin: (questions,) finite.

    Returns:
        (mean score in percent, threshold in the unit of the margins)

    Raises:
        ValueError: if there is no question.
    """
    if len(null_margin) == 0:
        raise ValueError("no question to fit a threshold on")
    order = np.argsort(null_margin, kind="stable")
    margins = null_margin[order]
    gains = np.cumsum((span_score - null_score)[order])
    last_of_margin = np.flatnonzero(np.append(np.diff(margins) > 0, True))
    thresholds = np.append(margins[0] - 1.0, margins[last_of_margin])
    # Rounded, so that the noise of a sum in floating point does not decide between equals.
    best = int(np.argmax(np.round(np.append(0.0, gains[last_of_margin]), 9)))
    threshold = float(thresholds[best])
    return _percent(np.where(null_margin > threshold, null_score, span_score)), threshold


def crossfit(scores: QuestionScores, groups: NDArray[np.int64]) -> float | None:
    """The F1, in percent, of a threshold that was fitted on other articles.

    The groups are split into two halves of about equally many questions; the threshold with the
    best F1 on one half is applied to the other, both ways. The split depends on the groups'
    numbers and sizes alone.

    Args:
        scores: of all questions.
        groups: (questions,) the group of each question, see `Corpus.groups`.

    Returns:
        The mean over all questions, or None with fewer than two groups.
    """
    in_first = _first_half(np.asarray(groups))
    if in_first.all():
        return None
    total = 0.0
    for fitted in (in_first, ~in_first):
        _, threshold = best_threshold(
            scores.span_f1[fitted], scores.null_f1[fitted], scores.null_margin[fitted]
        )
        total += float(scores.at(threshold)[1][~fitted].sum())
    return 100.0 * total / len(in_first)


def _first_half(groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(questions,) whether a question's group is in the first half; all True with one group."""
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)

    def largest_first(k: int) -> tuple[int, str]:
        # Equal sizes in an order that has nothing to do with the order of the articles.
        return -int(sizes[k]), hashlib.sha256(str(names[k]).encode()).hexdigest()

    in_first = np.zeros(len(names), dtype=bool)
    balance = 0  # questions in the first half minus those in the second
    for k in sorted(range(len(names)), key=largest_first):
        in_first[k] = balance <= 0
        balance += int(sizes[k]) if in_first[k] else -int(sizes[k])
    return in_first[inverse]


def corpus_metrics(
    scores: QuestionScores, groups: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """The official metrics of a corpus, in percent, and what the tuned threshold is worth.

    Returns:
        exact, f1, total, and the same for HasAns_ and NoAns_ (where there are such questions), all
        at threshold 0; best_exact, best_exact_thresh, best_f1, best_f1_thresh at the tuned
        threshold; crossfit_f1 if groups are given and there are two; HasAns_f1_no_null, the F1 of
        the answerable questions if a span is always answered.

    Raises:
        ValueError: if there is no question.
    """
    metrics = threshold_metrics(scores, 0.0) | best_metrics(scores)
    crossfitted = None if groups is None else crossfit(scores, groups)
    if crossfitted is not None:
        metrics["crossfit_f1"] = crossfitted
    if scores.has_answer.any():
        metrics["HasAns_f1_no_null"] = _percent(scores.span_f1[scores.has_answer])
    return metrics


def threshold_metrics(scores: QuestionScores, threshold: float) -> dict[str, float]:
    """exact, f1 and total at a threshold: over all, HasAns_ and NoAns_ questions."""
    exact, f1 = scores.at(threshold)
    metrics: dict[str, float] = {}
    everything = np.ones_like(scores.has_answer)
    for prefix, chosen in (
        ("", everything),
        ("HasAns_", scores.has_answer),
        ("NoAns_", ~scores.has_answer),
    ):
        if chosen.any():
            metrics[f"{prefix}exact"] = _percent(exact[chosen])
            metrics[f"{prefix}f1"] = _percent(f1[chosen])
            metrics[f"{prefix}total"] = int(chosen.sum())
    return metrics


def best_metrics(scores: QuestionScores) -> dict[str, float]:
    """best_exact, best_f1, and the thresholds that give them, best_*_thresh."""
    exact = best_threshold(scores.span_exact, scores.null_exact, scores.null_margin)
    f1 = best_threshold(scores.span_f1, scores.null_f1, scores.null_margin)
    return {
        "best_exact": exact[0],
        "best_exact_thresh": exact[1],
        "best_f1": f1[0],
        "best_f1_thresh": f1[1],
    }


def _percent(values: Floats) -> float:
    return 100.0 * float(values.mean())
