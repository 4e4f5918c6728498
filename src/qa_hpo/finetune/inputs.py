"""What runs share within a process: corpora, tokenizers and windows, each loaded once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from qa_hpo.config import Data, Evaluation, RunConfig
from qa_hpo.finetune.models import checkpoint_fingerprint, folder_of, is_hub_model, load_tokenizer
from qa_hpo.hub import HubKind, commit_of, snapshot
from qa_hpo.paths import CachePaths
from qa_hpo.squad.corpus import Corpus, load_corpus
from qa_hpo.squad.readers import hub_dataset
from qa_hpo.squad.windows import Windows, load_windows

__all__ = ["Inputs", "ValidationSet"]

# Sets of windows that are kept in memory. A study that searches doc_stride asks for another set in
# almost every trial, and one of SQuAD's size takes a few hundred MiB.
_KEPT_WINDOWS = 6


@dataclass(frozen=True)
class ValidationSet:
    """Validation questions, their windows, and their article, (questions,)."""

    corpus: Corpus
    windows: Windows
    groups: NDArray[np.int64]


class Inputs:
    """Loads what runs need, and keeps it for the next run of this process.

    Args:
        cache: Where windows and built starts are kept.
        commits: Those to use of the hub's repositories, by "models/ID" and "datasets/ID"; of what
            is left out, it is the newest when it is first asked for.

    Attributes:
        cache: As given.
        commits: As given, with those of what has been used since.
        device_batches: For each checkpoint with which a training step ran out of memory, the most
            windows per pass that are known to fit; the next run from it begins with as many.
    """

    def __init__(self, cache: CachePaths, commits: Mapping[str, str] | None = None) -> None:
        self.cache = cache
        self.commits = dict(commits or {})
        self.device_batches: dict[str, int] = {}
        self._corpora: dict[tuple[str, str, int | None], Corpus] = {}
        self._tokenizers: dict[str, PreTrainedTokenizerFast] = {}
        self._windows: dict[tuple[str, str, int, int], Windows] = {}

    def train_corpus(self, source: str, limit: int | None) -> Corpus:
        """Return the training questions of ``source``, at most ``limit``."""
        return self.corpus(source, "train", limit)

    def validation_corpus(self, data: Data) -> Corpus:
        """Return the validation questions of ``data``."""
        return self.corpus(data.validation, "validation", data.validation_limit)

    def corpus(self, source: str, split: str, limit: int | None = None) -> Corpus:
        """Return the questions of a split of ``source``, at most ``limit``."""
        key = (source, split, limit)
        if key not in self._corpora:
            name = hub_dataset(source)
            self._corpora[key] = load_corpus(
                source,
                "train" if split == "train" else "validation",
                limit=limit,
                commit=None if name is None else self._commit("dataset", name),
            )
        return self._corpora[key]

    def checkpoint(self, start: str) -> str:
        """Return the folder of a checkpoint; the files of a hub id are fetched if need be.

        Raises:
            CheckpointError: There is no such checkpoint, or it cannot be had.
            WorkError: The hub fails.
        """
        if not is_hub_model(start):
            return folder_of(start)
        return str(snapshot(start, self._commit("model", start)))

    def checkpoint_key(self, start: str) -> str:
        """Return what differs where the weights of a checkpoint, a folder or hub id, may."""
        if not is_hub_model(start):
            return checkpoint_fingerprint(start)
        return f"{start}@{self._commit('model', start)}"

    def _commit(self, kind: HubKind, name: str) -> str:
        key = f"{kind}s/{name}"
        if key not in self.commits:
            self.commits[key] = commit_of(kind, name)
        return self.commits[key]

    def tokenizer(self, checkpoint: str) -> PreTrainedTokenizerFast:
        """Return the tokenizer of ``checkpoint``."""
        if checkpoint not in self._tokenizers:
            self._tokenizers[checkpoint] = load_tokenizer(checkpoint)
        return self._tokenizers[checkpoint]

    def windows(
        self, corpus: Corpus, checkpoint: str, *, max_length: int, doc_stride: int
    ) -> Windows:
        """Return the windows of ``corpus`` with the tokenizer of ``checkpoint``."""
        key = (corpus.fingerprint, checkpoint, max_length, doc_stride)
        windows = self._windows.pop(key, None)
        if windows is None:
            windows = load_windows(
                corpus,
                self.tokenizer(checkpoint),
                max_length=max_length,
                doc_stride=doc_stride,
                cache_folder=self.cache.windows,
            )
        self._windows[key] = windows  # the last to be forgotten
        if len(self._windows) > _KEPT_WINDOWS:
            del self._windows[next(iter(self._windows))]
        return windows

    def old_task(self, config: RunConfig, checkpoint: str) -> ValidationSet | None:
        """Return the old task's questions for models with the tokenizer of ``checkpoint``."""
        evaluation = config.evaluation
        if evaluation.old_task is None:
            return None
        corpus = self.old_task_corpus(evaluation)
        windows = self.windows(
            corpus,
            checkpoint,
            max_length=config.data.max_length,
            doc_stride=evaluation.doc_stride,
        )
        return ValidationSet(corpus, windows, corpus.groups())

    def old_task_corpus(self, evaluation: Evaluation) -> Corpus:
        """Return the questions on which forgetting is measured; there must be some."""
        assert evaluation.old_task is not None
        return self.corpus(evaluation.old_task, "validation", evaluation.old_task_limit)

    def old_training_corpus(self, config: RunConfig) -> Corpus:
        """Return the training questions of what the run's start has learnt before."""
        source = config.old_training(config.parameters.start)
        assert source is not None  # which is checked with the configuration
        return self.train_corpus(*source)

    def old_training(self, config: RunConfig, checkpoint: str) -> tuple[Corpus, Windows]:
        """Return these questions and their windows, for models with ``checkpoint``'s tokenizer."""
        corpus = self.old_training_corpus(config)
        windows = self.windows(
            corpus,
            checkpoint,
            max_length=config.data.max_length,
            # The same for all trials of a study: what is computed from them is kept.
            doc_stride=config.evaluation.doc_stride,
        )
        return corpus, windows

    def validation(self, data: Data, checkpoint: str, doc_stride: int) -> ValidationSet:
        """Return the validation set of ``data`` for models with the tokenizer of ``checkpoint``."""
        corpus = self.validation_corpus(data)
        windows = self.windows(
            corpus, checkpoint, max_length=data.max_length, doc_stride=doc_stride
        )
        return ValidationSet(corpus, windows, corpus.groups())
