"""The task that a start has learnt before: how much of it a run forgets.

Most of what is lost may be abstention: a model that has learnt to give no answer gives none to
questions that it could still answer. Therefore every score is taken twice: with the threshold that
is tuned on the new task, and with the null answer disabled.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from qa_hpo.config import Evaluation, Runtime
from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.evaluation import forward_pass
from qa_hpo.finetune.hardware import best_device, lower_precision
from qa_hpo.finetune.inputs import ValidationSet
from qa_hpo.finetune.interruption import Check
from qa_hpo.finetune.memory import PassSize, releasing
from qa_hpo.finetune.models import checkpoint_fingerprint, load_model
from qa_hpo.paths import read_json, write_json
from qa_hpo.squad.scoring import QuestionScores, best_metrics, score_predictions
from qa_hpo.squad.spans import Predictions

__all__ = ["OldTask", "start_scores"]


@dataclass(frozen=True)
class OldTask:
    """Questions of the old task, and what the start made of them.

    Attributes:
        questions: The questions and their windows.
        collator: How the windows are padded.
        start: What the start scored, as :func:`start_scores` returns it.
    """

    questions: ValidationSet
    collator: WindowCollator
    start: Mapping[str, float] = field(default_factory=dict)

    def measure(
        self,
        model: PreTrainedModel,
        threshold: float,
        *,
        evaluation: Evaluation,
        batch_size: int | PassSize,
        autocast: torch.dtype | None,
        check: Check | None,
    ) -> dict[str, float]:
        """Return what a model still scores on the old task, in percent.

        Args:
            model: The model.
            threshold: The null margin above which it gives no answer, in logits.
            evaluation: How questions are answered.
            batch_size: Windows per batch.
            autocast: Lower precision of the pass, or None.
            check: Called before every batch; what it raises ends the pass.

        Returns:
            ``old_task_f1`` and ``old_task_exact`` at the threshold, ``old_task_f1_no_null`` with
            the null answer disabled; and where the start has learnt the task, how far the first
            and the last of them are below the start's: ``old_task_drop`` and
            ``old_task_drop_no_null``.
        """
        forward = forward_pass(
            model,
            self.collator,
            n_best=evaluation.n_best,
            max_answer_length=evaluation.max_answer_length,
            batch_size=batch_size,
            autocast=autocast,
            check=check,
        )
        scores = score_predictions(self.questions.corpus, forward.predictions, evaluation.tokens)
        exact, f1 = scores.at(threshold)
        found = {
            "old_task_f1": _percent(f1),
            "old_task_exact": _percent(exact),
            "old_task_f1_no_null": _no_null(scores),
        }
        if self.start:
            found["old_task_drop"] = self.start["f1"] - found["old_task_f1"]
            found["old_task_drop_no_null"] = self.start["f1_no_null"] - found["old_task_f1_no_null"]
        return found


def start_scores(
    checkpoint: str,
    questions: ValidationSet,
    collator: WindowCollator,
    *,
    max_length: int,
    evaluation: Evaluation,
    runtime: Runtime,
    cache: Path,
    check: Check | None = None,
) -> dict[str, float]:
    """Return what a start scores on the old task before anything else is learnt, in percent.

    It is measured once and kept; trials from the same start find it there.

    Args:
        checkpoint: The start.
        questions: The old task's questions.
        collator: How their windows are padded.
        max_length: Tokens of a window.
        evaluation: How questions are answered.
        runtime: How the hardware is used.
        cache: The folder in which it is kept.
        check: Called before every batch; what it raises ends the pass.

    Returns:
        ``f1``, at the threshold that is best for the start on these questions, and
        ``f1_no_null``, with the null answer disabled; nothing where the start has no trained
        head, and so has not learnt the task.

    Raises:
        OutOfMemoryError: One window at a time does not fit.
    """
    key = [
        checkpoint_fingerprint(checkpoint),
        questions.corpus.fingerprint,
        max_length,
        evaluation.model_dump(mode="json"),
    ]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = cache / f"{name}.json"
    try:
        known: dict[str, float] = read_json(path)
    except (OSError, ValueError):
        known = {}
    else:
        return known
    with contextlib.suppress(CheckpointError):  # its head is fresh
        answers = _answers(checkpoint, collator, evaluation, runtime, check)
        scores = score_predictions(questions.corpus, answers, evaluation.tokens)
        known = {"f1": best_metrics(scores)["best_f1"], "f1_no_null": _no_null(scores)}
    write_json(path, known)
    return known


def _answers(
    checkpoint: str,
    collator: WindowCollator,
    evaluation: Evaluation,
    runtime: Runtime,
    check: Check | None,
) -> Predictions:
    with releasing():
        model = load_model(checkpoint, attention=runtime.attention, fresh_head=False)
        torch.nn.Module.to(model, best_device())
        forward = forward_pass(
            model,
            collator,
            n_best=evaluation.n_best,
            max_answer_length=evaluation.max_answer_length,
            batch_size=runtime.eval_batch_size,
            autocast=lower_precision(runtime),
            check=check,
        )
        del model
    return forward.predictions


def _no_null(scores: QuestionScores) -> float:
    """Return the F1 of the answerable questions if a span is always answered, in percent."""
    return _percent(scores.span_f1[scores.has_answer])


def _percent(values: NDArray[np.float64]) -> float:
    return 100.0 * float(values.mean()) if len(values) else 0.0
