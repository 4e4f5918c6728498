"""A corpus that no trial has seen: what the exported checkpoint is worth on it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qa_hpo.config import RunConfig
from qa_hpo.finetune.hardware import best_device, use_threads
from qa_hpo.finetune.models import load_model, load_tokenizer
from qa_hpo.finetune.predictor import QuestionAnswerer
from qa_hpo.results.significance import interval
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.squad.corpus import load_corpus
from qa_hpo.squad.scoring import score_predictions, threshold_metrics

__all__ = ["TESTED", "held_out_scores"]

TESTED = "tested"
"""User attribute of a study: the scores on ``data.test`` by the trial's number."""


def held_out_scores(
    joined: JoinedStudy, number: int, config: RunConfig, checkpoint: Path, threshold: float
) -> dict[str, Any] | None:
    """Return what a trial's checkpoint is worth on ``data.test``, with its threshold as it is.

    A trial is measured once, and the study remembers it: a corpus on which one trial after another
    is measured is a second validation corpus.

    Args:
        joined: The study.
        number: The trial's number.
        config: Its configuration.
        checkpoint: The folder of its weights.
        threshold: Its threshold, in logits.

    Returns:
        ``f1`` and ``exact`` in percent, ``f1_interval`` (95%; None with one article), ``total``,
        ``data``, ``trials`` (how many trials of the study have been measured on it, this one
        included) and ``when``; None where the study names no such corpus.

    Raises:
        CorpusError: It cannot be used.
        CheckpointError: The checkpoint cannot be loaded.
    """
    data = joined.file.data.test
    if data is None:
        return None
    key, study = str(number), joined.optuna_study
    scores = study.user_attrs.get(TESTED, {}).get(key)
    if scores is None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        scores = {**_measured(data, config, checkpoint, threshold), "data": data, "when": when}

        def remember() -> None:
            study.set_user_attr(TESTED, {**study.user_attrs.get(TESTED, {}), key: scores})

        joined.storage.locked(joined.file.study.name, remember)
    return {**scores, "trials": len(study.user_attrs[TESTED])}


def _measured(data: str, config: RunConfig, checkpoint: Path, threshold: float) -> dict[str, Any]:
    corpus = load_corpus(data, "validation")
    model = load_model(str(checkpoint), attention=config.runtime.attention, fresh_head=False)
    torch.nn.Module.to(model, best_device())
    use_threads(config.runtime.cpu_threads)
    answerer = QuestionAnswerer(
        model,
        load_tokenizer(str(checkpoint)),
        threshold=threshold,
        max_length=config.data.max_length,
        evaluation=config.evaluation,
        runtime=config.runtime,
    )
    scores = score_predictions(corpus, answerer.predict(corpus).predictions)
    metrics = threshold_metrics(scores, threshold)
    found = interval(scores.at(threshold)[1], corpus.groups())
    return {
        "f1": metrics["f1"],
        "exact": metrics["exact"],
        "f1_interval": None if found is None else [found.low, found.high],
        "total": metrics["total"],
    }
