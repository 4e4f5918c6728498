"""The SQuAD metrics as an `evaluate.Metric` that needs no hub."""

from __future__ import annotations

import tempfile
from typing import Any, get_args

import numpy as np
from datasets.features import Features, List, Value
from evaluate.info import MetricInfo
from evaluate.module import Metric

from qa_hpo.squad.answer_tokens import AnswerTokens
from qa_hpo.squad.scoring import (
    best_metrics,
    exact_match,
    normalize_answer,
    score_answers,
    threshold_metrics,
    token_f1,
)

__all__ = ["SquadMetric"]

INPUTS = """
Args:
    predictions: dictionaries with id and prediction_text; for "squad_v2" also
        no_answer_probability.
    references: dictionaries with id and answers: {"text": [...], "answer_start": [...]}.
    no_answer_threshold: "squad_v2" only: "" is answered where no_answer_probability is above it.
Returns:
    "squad": exact_match and f1. "squad_v2": exact, f1, total, the same for HasAns_ and NoAns_
    questions, best_exact, best_exact_thresh, best_f1 and best_f1_thresh. Scores are in percent.
"""


class SquadMetric(Metric):
    """What `evaluate.load("squad")` and `evaluate.load("squad_v2")` give, offline.

    It takes and returns the same dictionaries. The thresholds differ from theirs only among
    predictions of one and the same no_answer_probability: see `qa_hpo.squad.scoring`.

    Predictions are kept in memory, and nothing is left on the disk, unless evaluate's own options
    (`keep_in_memory`, `cache_dir`, `num_process`, ...) ask otherwise.

    Args:
        config_name: "squad" (SQuAD 1.1) or "squad_v2".
        tokens: what answers are compared by, see `qa_hpo.squad.answer_tokens`.
        options: evaluate's own.

    Raises:
        ValueError: if the name or the tokens are others; from compute, if the ids of predictions
            and references differ.
    """

    def __init__(
        self, config_name: str = "squad_v2", *, tokens: AnswerTokens = "words", **options: Any
    ) -> None:
        if config_name not in ("squad", "squad_v2"):
            raise ValueError(f"config_name is {config_name!r}: expected 'squad' or 'squad_v2'")
        if tokens not in get_args(AnswerTokens):
            raise ValueError(f"tokens is {tokens!r}: expected 'words' or 'characters'")
        self.tokens = tokens
        if options.keys() & {"keep_in_memory", "cache_dir", "num_process"}:
            super().__init__(config_name, **options)
            return
        # evaluate makes its cache folder even when it keeps everything in memory.
        with tempfile.TemporaryDirectory() as scratch:
            super().__init__(config_name, keep_in_memory=True, cache_dir=scratch, **options)

    def _info(self) -> MetricInfo:
        prediction = {"id": Value("string"), "prediction_text": Value("string")}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = Value("float32")
        answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
        reference = {"id": Value("string"), "answers": answers}
        return MetricInfo(
            description="Exact match and F1 of extractive question answering, as SQuAD scores it.",
            citation="",
            inputs_description=INPUTS,
            features=Features(predictions=prediction, references=reference),  # type: ignore[no-untyped-call]
        )

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **options: Any
    ) -> dict[str, Any]:
        predicted = {prediction["id"]: prediction for prediction in predictions}
        missing = [ref["id"] for ref in references if ref["id"] not in predicted]
        if missing:
            raise ValueError(f"{len(missing)} references have no prediction, e.g. {missing[0]!r}")
        chosen = [predicted[reference["id"]] for reference in references]
        golds = [reference["answers"]["text"] for reference in references]
        if self.config_name == "squad":
            return _score_v1(chosen, golds, self.tokens, **options)
        return _score_v2(chosen, golds, self.tokens, **options)


def _score_v2(
    predictions: list[dict[str, Any]],
    golds: list[list[str]],
    tokens: AnswerTokens,
    no_answer_threshold: float = 1.0,
) -> dict[str, float]:
    """The metrics of `evaluate.load("squad_v2")`."""
    probabilities = np.array([prediction["no_answer_probability"] for prediction in predictions])
    answers = [tuple((gold, 0) for gold in of_question) for of_question in golds]
    texts = [prediction["prediction_text"] for prediction in predictions]
    scores = score_answers(answers, texts, probabilities, tokens)
    metrics = threshold_metrics(scores, no_answer_threshold) | best_metrics(scores)
    for name in ("best_exact_thresh", "best_f1_thresh"):
        # evaluate's way to say that answering nothing is best.
        if metrics[name] < probabilities.min():
            metrics[name] = 0.0
    return metrics


def _score_v1(
    predictions: list[dict[str, Any]], golds: list[list[str]], tokens: AnswerTokens
) -> dict[str, float]:
    """exact_match and f1, in percent, by the rules of SQuAD 1.1.

    They differ from those of 2.0 where nothing is left of an answer ("The"): F1 is then 0.
    """
    unanswerable = sum(not of_question for of_question in golds)
    if unanswerable:
        raise ValueError(f"{unanswerable} references have no answer: use 'squad_v2' for such data")
    exact, f1 = 0.0, 0.0
    for prediction, of_question in zip(predictions, golds, strict=True):
        text = prediction["prediction_text"]
        exact += max(exact_match(text, gold, tokens) for gold in of_question)
        f1 += max(
            token_f1(text, gold, tokens) if normalize_answer(gold, tokens) else 0.0
            for gold in of_question
        )
    return {"exact_match": 100.0 * exact / len(golds), "f1": 100.0 * f1 / len(golds)}
