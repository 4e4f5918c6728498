"""A start with a head, and the questions that it is said to have learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertForQuestionAnswering

from qa_hpo.config import Runtime
from qa_hpo.finetune.batching import WindowCollator
from qa_hpo.finetune.inputs import Inputs
from qa_hpo.finetune.retention.base import OldData
from tiny import bert_config, bert_tokenizer


def write_start(folder: Path) -> Path:
    """Write a checkpoint with a random body and a random head, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        BertForQuestionAnswering(bert_config()).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def old_data(
    tiny: Path,
    inputs: Inputs,
    checkpoint: Path,
    cache: Path,
    *,
    questions: int = 8,
    check: Callable[[], None] | None = None,
    padded: Any = None,
) -> OldData:
    corpus = inputs.train_corpus(str(tiny / "train.json"), questions)
    windows = inputs.windows(corpus, str(checkpoint), max_length=40, doc_stride=8)
    return OldData(
        checkpoint=str(checkpoint),
        windows=windows,
        groups=corpus.groups(),
        key=f"{corpus.fingerprint}-40-8",
        padded=padded or (lambda windows: WindowCollator(windows, 0, left=False)),
        runtime=Runtime(cpu_threads=1),
        cache=cache,
        check=check,
    )
