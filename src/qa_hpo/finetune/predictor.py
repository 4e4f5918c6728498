"""Answers questions with a checkpoint, its threshold applied."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from qa_hpo.config import Evaluation, Runtime, load_run_config
from qa_hpo.errors import CheckpointError
from qa_hpo.finetune.evaluation import Forward, forward_pass
from qa_hpo.finetune.families import position_limit
from qa_hpo.finetune.hardware import best_device, lower_precision, use_threads
from qa_hpo.finetune.memory import telling_of_memory
from qa_hpo.finetune.models import (
    check_windows,
    folder_of,
    load_model,
    load_tokenizer,
    quiet,
)
from qa_hpo.finetune.training import collator
from qa_hpo.paths import CONFIG_NAME, METRICS_NAME, read_json
from qa_hpo.squad.corpus import Corpus
from qa_hpo.squad.scoring import corpus_metrics, score_predictions
from qa_hpo.squad.windows import build_windows

__all__ = ["Answer", "QuestionAnswerer"]


@dataclass(frozen=True)
class Answer:
    """An answer, or that the context does not hold one.

    Attributes:
        text: The context's own substring; None for "no answer".
        score: The best span's score less the null score, in logits.
        start: Where the best span begins in the context, in characters.
        end: Where it ends.
        threshold: The answer is given while ``-score`` is at most this, in logits.
    """

    text: str | None
    score: float
    start: int
    end: int
    threshold: float


class QuestionAnswerer:
    """A question-answering checkpoint, used as it was measured.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        threshold: Answer "" when the null margin is above this, in logits.
        max_length: Tokens of a window.
        evaluation: How questions are answered.
        runtime: How the hardware is used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        threshold: float = 0.0,
        max_length: int = 384,
        evaluation: Evaluation | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.threshold = threshold
        self.max_length = max_length
        self.evaluation = evaluation or Evaluation()
        self.runtime = runtime or Runtime()

    @classmethod
    def from_pretrained(cls, checkpoint: str, *, device: str | None = None) -> "QuestionAnswerer":
        """Load an exported folder, or any question-answering checkpoint, from the hub perhaps.

        An export brings its threshold, lengths and runtime with it; any other checkpoint is used
        with threshold 0 and windows of 384 tokens, or as many as its tokenizer allows.

        Raises:
            CheckpointError: It cannot be loaded, or it has no trained question-answering head.
            OutOfMemoryError: No memory is left for it.
            WorkError: The hub fails.
        """
        quiet()
        checkpoint = folder_of(checkpoint)
        tokenizer = load_tokenizer(checkpoint)
        folder = Path(checkpoint)
        if (folder / CONFIG_NAME).is_file():
            config = load_run_config(folder / CONFIG_NAME)
            runtime, evaluation = _here(config.runtime), config.evaluation
            max_length = config.data.max_length
            threshold = _threshold(folder / METRICS_NAME)
            model = load_model(checkpoint, attention=runtime.attention, fresh_head=False)
        else:
            runtime, threshold = Runtime(), 0.0
            model = load_model(checkpoint, fresh_head=False)
            limit = position_limit(model.config) or tokenizer.model_max_length
            max_length = min(384, tokenizer.model_max_length, limit)
            evaluation = Evaluation(doc_stride=min(128, max_length // 3))
        with telling_of_memory(checkpoint, "the model"):
            torch.nn.Module.to(model, device or best_device())
        use_threads(runtime.cpu_threads)
        return cls(
            model,
            tokenizer,
            threshold=threshold,
            max_length=max_length,
            evaluation=evaluation,
            runtime=runtime,
        )

    def predict(self, corpus: Corpus) -> Forward:
        """Run the model over a corpus; see :func:`~qa_hpo.finetune.evaluation.forward_pass`."""
        windows = build_windows(
            corpus,
            self.tokenizer,
            max_length=self.max_length,
            doc_stride=self.evaluation.doc_stride,
        )
        check_windows(windows, self.model.config, self.model.name_or_path or "the model")
        return forward_pass(
            self.model,
            collator(windows, self.tokenizer),
            n_best=self.evaluation.n_best,
            max_answer_length=self.evaluation.max_answer_length,
            batch_size=self.runtime.eval_batch_size,
            autocast=lower_precision(self.runtime),
        )

    def evaluate(self, corpus: Corpus) -> dict[str, float]:
        """Return the official metrics on ``corpus``, in percent, and a few more.

        ``threshold`` is the one that is best on ``corpus``; ``exported_f1`` and ``exported_exact``
        are at the checkpoint's own, ``exported_threshold``, which ``corpus`` had no part in unless
        it is the validation set.
        """
        forward = self.predict(corpus)
        scores = score_predictions(corpus, forward.predictions, self.evaluation.tokens)
        metrics = corpus_metrics(scores, corpus.groups())
        exact, f1 = scores.at(self.threshold)
        return {
            **metrics,
            "threshold": metrics["best_f1_thresh"],
            "val_loss": forward.loss,
            "exported_threshold": self.threshold,
            "exported_exact": 100 * float(np.mean(exact)),
            "exported_f1": 100 * float(np.mean(f1)),
        }

    def answer(self, question: str, context: str) -> Answer:
        """Answer one question about one context.

        Raises:
            WindowError: The question leaves no room for the context.
        """
        corpus = Corpus(
            ids=["question"],
            questions=[question],
            contexts=[context],
            context_index=np.zeros(1, dtype=np.int64),
            titles=[""],
            title_index=np.zeros(1, dtype=np.int64),
            answers=[()],
            source="question",
            skipped=(),
        )
        best = self.predict(corpus).predictions
        margin = float(best.null_margin[0])
        span = context[int(best.char_start[0]) : int(best.char_end[0])]
        answer = span.strip()
        start = int(best.char_start[0]) + len(span) - len(span.lstrip())
        text = None if margin > self.threshold or not answer else answer
        return Answer(text, -margin, start, start + len(answer), self.threshold)


def _here(runtime: Runtime) -> Runtime:
    """Return ``runtime`` without what only the GPU that it was trained on can do."""
    if torch.cuda.is_available():
        return runtime
    precision = "fp32" if runtime.precision == "fp16" else runtime.precision
    attention = "auto" if runtime.attention == "flash_attention_2" else runtime.attention
    return runtime.model_copy(update={"precision": precision, "attention": attention})


def _threshold(metrics: Path) -> float:
    try:
        threshold = float(read_json(metrics)["threshold"])
        if not math.isfinite(threshold):
            raise ValueError(threshold)  # noqa: TRY301  (as bad as no number)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise CheckpointError(
            f"{metrics}: holds no threshold; 'qa-hpo export' writes it beside {CONFIG_NAME}"
        ) from None
    return threshold
