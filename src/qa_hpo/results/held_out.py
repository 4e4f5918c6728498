"""A corpus that no trial has seen: what the exported checkpoint is worth on it."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qa_hpo.config import RunConfig
from qa_hpo.errors import CorpusError, QaHpoError, WindowError, WorkError
from qa_hpo.paths import CachePaths
from qa_hpo.results.significance import interval
from qa_hpo.search.joined import JoinedStudy
from qa_hpo.search.study import COMMITS
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.scoring import score_predictions, threshold_metrics

__all__ = ["TESTED", "held_out_scores", "known_scores"]

TESTED = "tested"
"""User attribute of a study: the scores on ``data.test`` by the trial's number."""

_logger = logging.getLogger(__name__)


def known_scores(joined: JoinedStudy, number: int) -> tuple[dict[str, Any] | None, Corpus | None]:
    """Return what the study remembers of a trial on ``data.test``, or the questions to measure.

    A trial is measured once, and the study remembers it: a corpus on which one trial after another
    is measured is a second validation corpus. What was measured on other questions than those
    that are there now does not count.

    Args:
        joined: The study.
        number: The trial's number.

    Returns:
        The scores, as :func:`held_out_scores` has them, or None; and the questions on which the
        trial is still to be measured, or None. Both are None where the study names no such
        corpus, and where it cannot be read, of which a warning tells.
    """
    data = joined.file.data.test
    if data is None:
        return None, None
    scores = joined.optuna_study.user_attrs.get(TESTED, {}).get(str(number))
    try:
        corpus = _corpus(data, joined)
    except (CorpusError, WorkError) as error:
        # What was measured on it while it was there is as good as it was.
        if scores is not None and scores["data"] == data:
            return _counted(joined, scores), None
        _without(error)
        return None, None
    if scores is None or scores.get("fingerprint") != corpus.fingerprint:
        return None, corpus
    return _counted(joined, {**scores, "data": data}), None


def held_out_scores(
    joined: JoinedStudy,
    number: int,
    corpus: Corpus,
    config: RunConfig,
    checkpoint: Path,
    threshold: float,
) -> dict[str, Any] | None:
    """Measure a trial's checkpoint on ``data.test``, with its threshold as it is; remember it.

    Args:
        joined: The study.
        number: The trial's number.
        corpus: The questions.
        config: The trial's configuration.
        checkpoint: The folder of its weights.
        threshold: Its threshold, in logits.

    Returns:
        ``f1`` and ``exact`` in percent, ``f1_interval`` (95%; None with one article), ``total``,
        ``data``, ``fingerprint`` (of the questions), ``when``, and ``trials``: how many trials of
        the study have been measured on these questions, this one included. None where the
        questions cannot be cut into the trial's windows, of which a warning tells.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    try:
        measured = _measured(corpus, config, checkpoint, threshold)
    except WindowError as error:
        _without(error)
        return None
    scores = {
        **measured,
        "data": corpus.source,
        "fingerprint": corpus.fingerprint,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    study = joined.optuna_study

    def remember() -> None:
        study.set_user_attr(TESTED, {**study.user_attrs.get(TESTED, {}), str(number): scores})

    joined.storage.locked(joined.file.study.name, remember)
    return _counted(joined, scores)


def _without(error: QaHpoError) -> None:
    why = " ".join(str(error).split())
    _logger.warning("data.test: the trial is exported without test scores: %s", why)


def _counted(joined: JoinedStudy, scores: dict[str, Any]) -> dict[str, Any]:
    """Return scores with the number of trials that have been measured on the same questions."""
    tested = joined.optuna_study.user_attrs[TESTED].values()
    same = [other for other in tested if other.get("fingerprint") == scores.get("fingerprint")]
    return {**scores, "trials": len(same)}


# Torch and transformers are imported when there is something to measure: what else is asked of a
# study needs neither.


def _corpus(data: str, joined: JoinedStudy) -> Corpus:
    from qa_hpo.finetune.inputs import Inputs  # noqa: PLC0415

    commits = joined.optuna_study.user_attrs.get(COMMITS)
    return Inputs(CachePaths(), commits).corpus(data, "validation")


def _measured(
    corpus: Corpus, config: RunConfig, checkpoint: Path, threshold: float
) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    from qa_hpo.finetune.hardware import best_device, use_threads  # noqa: PLC0415
    from qa_hpo.finetune.models import load_model, load_tokenizer  # noqa: PLC0415
    from qa_hpo.finetune.predictor import QuestionAnswerer  # noqa: PLC0415

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
    predictions = answerer.predict(corpus).predictions
    scores = score_predictions(corpus, predictions, config.evaluation.tokens)
    metrics = threshold_metrics(scores, threshold)
    found = interval(scores.at(threshold)[1], corpus.groups())
    return {
        "f1": metrics["f1"],
        "exact": metrics["exact"],
        "f1_interval": None if found is None else [found.low, found.high],
        "total": metrics["total"],
    }
